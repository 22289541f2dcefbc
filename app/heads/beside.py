"""Another checkpoint beside this one, the change of a column head by head; and a column over the checkpoints of a
training.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import streamlit as st

from wisca_app import cached, state
from wisca_app.figures import circuits as figures
from wisca_app.figures import words
from wisca_app.figures.chart import Chart
from wisca_app.figures.template import Theme
from wisca_app.heads.charts import chart
from wisca_app.heads.drawn_heads import DrawnHeads
from wisca_app.messages import errors_as_messages, plain
from wisca_app.open_model import ask_for_another, choose, normal, title
from wisca_core.errors import UnreadableInput
from wisca_core.trajectories import find_checkpoints

MOST_STEPS = 12
_PLACE = ["block", "layer", "head", "expert"]


def control(shown: DrawnHeads) -> None:
    """Which model stands beside it: another checkpoint of the same training at a press, or a path."""
    with st.popover("Another checkpoint beside it", type="tertiary"):
        own = normal(str(shown.model.checkpoint.path))
        others = [path for _, path in _siblings(shown) if path != own]
        for path in others[-6:]:
            if st.button(title(path), key=f"heads beside {path}"):
                choose("heads_beside", path)
        ask_for_another("heads_beside", "Path on this machine", "Show the change")


def draw(shown: DrawnHeads, theme: Theme) -> None:
    other = normal(state.get("heads_beside"))
    if not other:
        return
    with errors_as_messages("The model beside it cannot be shown"):
        opened = cached.model(other)
        if opened.refusal:
            plain(opened.refusal)
            return
        if cached.heads_wait(opened):
            plain(f"{title(other)} has not been measured yet: open it once here, then it can stand beside this one.")
            return
        _draw(shown, cached.circuits(opened).table, other, theme)


def _draw(shown: DrawnHeads, theirs: pd.DataFrame, other: str, theme: Theme) -> None:
    column = shown.column
    both = shown.table.merge(theirs[[*_PLACE, column.name]], on=_PLACE, suffixes=("", "_other"))
    if both.empty:
        plain(f"{title(other)} has no head of the same layer and number here.")
        return
    own, there = both[column.name].to_numpy(float), both[f"{column.name}_other"].to_numpy(float)
    with np.errstate(all="ignore"):
        octaves = np.where((own > 0) & (there > 0), np.log2(there / own), np.nan)
    change = both.assign(**{column.name: octaves})
    said = figures.change_title(change, column)
    one = Chart(
        said,
        f"{words.markdown_text(title(other))} over the open model, head by head. Ink: a large change either way; the "
        "number says which.",
        both.assign(log2_change=octaves)[[*_PLACE, column.name, f"{column.name}_other", "log2_change"]],
        "heads-beside",
        lambda theme: figures.head_map(change, column, theme=theme, selected=shown.selected, changes=True),
        alt=f"Change of {column.title} between two models. {said}.",
    )
    if not np.isfinite(octaves).any():
        plain(f"{column.title} has no ratio: it is not positive, or one of the two has none.")
        return
    chart(one, theme, "heads change", "heads change")


def _siblings(shown: DrawnHeads) -> list[tuple[int, str]]:
    """(step, path) of the checkpoints of the same training, where the model is one of them."""
    try:
        found = find_checkpoints(shown.model.checkpoint.path.parent)
    except UnreadableInput:
        return []
    return [(one.step, str(one.path)) for one in found if one.step is not None]


def draw_steps(shown: DrawnHeads, theme: Theme) -> None:
    """The selected head over the checkpoints beside the open one."""
    every = _siblings(shown)
    own = str(shown.model.checkpoint.path)
    if len(every) < 2 or own not in {str(Path(path)) for _, path in every}:
        return
    with errors_as_messages("The checkpoints cannot be shown"):
        at = sorted(
            {
                round(i * (len(every) - 1) / (min(len(every), MOST_STEPS) - 1))
                for i in range(min(len(every), MOST_STEPS))
            }
        )
        lines, waiting = [], 0
        for step, path in (every[i] for i in at):
            opened = cached.model(path)
            if opened.refusal or cached.heads_wait(opened):
                waiting += 1
                continue
            table = cached.circuits(opened).table
            table = table[table["block"] == shown.block]
            values = table[shown.column.name]
            mine = table[
                (table["layer"] == shown.selected[0])
                & (table["head"] == shown.selected[1])
                & (table["expert"] == shown.selected[2])
            ]
            if values.notna().any() and len(mine):
                lines.append(
                    (
                        step,
                        float(mine[shown.column.name].iloc[0]),
                        values.median(),
                        values.quantile(0.1),
                        values.quantile(0.9),
                    )
                )
        if len(lines) < 2:
            return
        steps = pd.DataFrame(lines, columns=["step", "own", "middle", "low", "high"])
        first, last = (figures.number(shown.column, steps["middle"].iloc[i]) for i in (0, -1))
        one = Chart(
            f"{shown.column.title} over the training: the median head went from {first} to {last}",
            f"Ink: layer {shown.selected[0]}, head {shown.selected[1]}. Dotted: the median head, its band 10 to 90 % "
            "of all."
            + (f" {words.plural(waiting, 'checkpoint')} not measured yet; open them here." if waiting else ""),
            steps,
            "heads-over-steps",
            lambda theme: figures.over_steps(steps["step"].tolist(), steps, shown.column, theme=theme),
            alt=f"{shown.column.title} over the checkpoints of this training.",
        )
        chart(one, theme, "heads steps")
