"""The list of runs: which there are, which of them are shown, and a search."""

import pandas as pd
import streamlit as st

from wisca_app import state
from wisca_app.figures import words
from wisca_app.figures.template import Theme
from wisca_app.messages import plain
from wisca_app.parts import KEPT, quiet
from wisca_app.reading.curves import looks
from wisca_app.reading.drawn_runs import DrawnRuns, matching_runs
from wisca_core.runs.groups import ends, lower_is_better, seed_of
from wisca_core.runs.recognise import KINDS
from wisca_core.untrusted import printable

MOST_LISTED = 2000


def draw(shown: DrawnRuns, theme: Theme) -> None:
    """Ticked rows are shown, all where none is ticked."""
    n = len(shown.logs.runs)
    if n < 2:
        return
    with st.expander(f"Runs: {words.count(len(shown.runs))} of {words.count(n)} shown", key="runs_listed"):
        with st.container(horizontal=True, gap="medium", vertical_alignment="bottom"):
            st.text_input(
                "Search names and settings", key="runs_search", placeholder="learning_rate 0.01", **KEPT, width=320
            )
            if len(shown.runs) < n:
                st.button("Show all", key="show_all_runs", type="tertiary", on_click=_show_all)
        text = state.get("runs_search")
        if text.strip() and not matching_runs(shown.logs.runs, text):
            plain(f"No run matches {printable(text, 60)}; all are listed.")
        _list(shown, theme, f"runs list {state.note('runs list turn') or 0} {state.get('runs_search')}")


def _show_all() -> None:
    state.put("runs_chosen", [])
    state.put("runs_search", "")
    state.note("runs list turn", (state.note("runs list turn") or 0) + 1)  # a new list, with nothing ticked


def _list(shown: DrawnRuns, theme: Theme, key: str) -> None:
    runs = shown.found[:MOST_LISTED]
    metric = shown.metrics[0] if shown.metrics else ""
    group = {run.name: title for title, members in shown.all_groups.items() for run in members}
    look = looks(shown, theme)
    last = [ends(run.series[metric], lower_is_better(metric)) if metric in run.series else None for run in runs]
    table = pd.DataFrame(
        {
            "": ["▬▬" for _ in runs],
            "Run": [run.name for run in runs],
            "Group": [group[run.name] for run in runs],
            "Seed": [seed_of(run) or "" for run in runs],
            f"Final {metric}": [one.final if one else float("nan") for one in last],
            "At step": [one.final_step if one else float("nan") for one in last],
            "Logs": [", ".join(KINDS[kind][0] for kind in (run.kind, *run.also)) for run in runs],
        }
    )
    colours = [f"color: {look[run.name]['color']}" for run in runs]
    event = st.dataframe(
        table.style.apply(lambda column: colours, subset=[""]),
        hide_index=True,
        key=key,
        on_select="rerun",
        selection_mode="multi-row",
        height=min(36 * (len(table) + 1) + 2, 320),
        column_config={
            "": st.column_config.TextColumn(width=48),
            "At step": st.column_config.NumberColumn(format="localized"),
        },
        placeholder="",
        alt="The runs that were read; tick those to be shown.",
    )
    quiet("Tick rows to show those alone; nothing ticked shows all. Colours stay as they are.")
    ticked, before = list(event.selection.rows), state.note(f"ticked {key}") or []
    if ticked != before:
        state.note(f"ticked {key}", ticked)
        state.put("runs_chosen", [runs[k].name for k in ticked if k < len(runs)])
        state.rerun()
