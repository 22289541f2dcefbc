"""What Heads draws: the table of one block, the columns that are looked at, and the head that is selected."""

from dataclasses import dataclass

import pandas as pd
import streamlit as st

from wisca_app import cached, clicks, state
from wisca_core.circuits.columns import BY_NAME, MOVED, UNMOVED, Column
from wisca_core.circuits.findings import Finding, findings
from wisca_core.circuits.measure import Circuits
from wisca_core.model import Model
from wisca_core.patterns.blocks import titles

NAMES = [column.name for column in (*UNMOVED, *MOVED)]
# the selection is nobody's choice at first, so its boxes have keys of their own
_BOX = {name: f"heads {name} box" for name in ("layer", "head", "expert")}
_SOURCES = ("heads map", "heads change", "heads scatter", "heads table")


@dataclass(frozen=True, eq=False)
class DrawnHeads:
    """``table``: rows of ``block``; ``blocks``: block -> its name in words; ``selected``: (layer, head, expert)."""

    model: Model
    circuits: Circuits
    table: pd.DataFrame
    block: str
    blocks: dict[str, str]
    column: Column
    found: tuple[Finding, ...]
    selected: tuple[int, int, int]

    @property
    def row(self) -> pd.Series:
        t, (layer, head, expert) = self.table, self.selected
        return t[(t["layer"] == layer) & (t["head"] == head) & (t["expert"] == expert)].iloc[0]


def drawn_heads(model: Model) -> DrawnHeads:
    """Choices that this model does not have give way to ones it has."""
    circuits = cached.circuits(model)
    blocks = titles(dict.fromkeys(circuits.table["block"]))
    block = state.settle("heads_block", list(blocks))
    table = circuits.table[circuits.table["block"] == block]
    column = BY_NAME[state.get("column")]
    return DrawnHeads(model, circuits, table, block, blocks, column, findings(circuits), _selected_head(table, column))


def _selected_head(table: pd.DataFrame, column: Column) -> tuple[int, int, int]:
    """The selected head, where it is there; else the one at the column's end of interest, which is nobody's choice: it
    stands in no address, and Inspect keeps its own layer.
    """
    wanted = (state.get("layer"), state.get("head"), state.get("expert"))
    there = list(zip(table["layer"].tolist(), table["head"].tolist(), table["expert"].tolist()))
    if wanted not in there:
        values = table[column.name]
        at = (values.idxmin() if column.ink == "low" else values.idxmax()) if values.notna().any() else table.index[0]
        wanted = tuple(int(table.loc[at, name]) for name in ("layer", "head", "expert"))
    return wanted


def select_head_from_chart(source: str) -> None:
    """Callback of a chart whose points carry (layer, head, expert, ...)."""
    if point := clicks.point(source):
        select(tuple(int(value) for value in point[:3]), source)


def select_head_from_table(rows: list[tuple[int, int, int]], source: str) -> None:
    """Callback of a table whose lines are these heads."""
    if head := clicks.row(source, rows):
        select(head, source)


def select(head: tuple[int, int, int], by: str = "") -> None:
    for name, value in zip(("layer", "head", "expert"), head):
        state.put(name, value)
    clicks.renew(_SOURCES, by)


def boxes(shown: DrawnHeads) -> None:
    """What chooses the head without a mouse: its layer, its number and, of a model with experts, which one."""
    t, (layer, head, expert) = shown.table, shown.selected
    of_layer = t[t["layer"] == layer]
    of_head = of_layer[of_layer["head"] == head]
    with st.container(horizontal=True, gap="xsmall"):
        for (name, key), value, among in zip(_BOX.items(), shown.selected, (t, of_layer, of_head)):
            state.fill(key, value)
            if name == "expert" and expert < 0:
                continue
            st.selectbox(
                name.capitalize(),
                sorted(set(among[name].tolist())),
                key=key,
                format_func=lambda one, name=name: f"{name} {one}",
                on_change=lambda: _select_from_boxes(t),
                label_visibility="collapsed",
                width=116,
            )


def _select_from_boxes(table: pd.DataFrame) -> None:
    """Callback of the boxes. A layer without the head that was selected gives its first one, a head its first
    expert.
    """
    found = table
    for name, key in _BOX.items():
        same = found[found[name] == state.get(key)]
        found = same if len(same) else found[found[name] == found[name].min()]
    select(tuple(int(found[name].iloc[0]) for name in _BOX))


def mark(column: Column) -> None:
    """The tag beside a column: whether a rescale moves it."""
    st.badge("moves under a rescale" if column.moves else "stays under a rescale", color="gray")
