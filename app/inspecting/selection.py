"""Which layer and KV group is looked at closely: chosen by a click in a chart, a row of a table, or two boxes."""

from collections.abc import Callable

import streamlit as st

from wisca_app import clicks, state
from wisca_app.figures import words
from wisca_app.inspecting.drawn_pair import DrawnPair
from wisca_app.parts import pick
from wisca_core.patterns.verdict import by_imbalance

SOURCES = ("map", "balance", "most_unbalanced")


def settle(shown: DrawnPair) -> tuple[int, int]:
    """The selected (layer, group) brought into what this pair has; at first the most unbalanced one, which is then in
    no address.
    """
    groups = shown.groups
    place = state.get("layer"), state.get("group")
    if place == state.note("first place") or place[0] not in set(groups["layer"]):
        far = by_imbalance(groups, 1)
        first = (far if len(far) else groups).iloc[0]
        place = int(first["layer"]), int(first["group"])
        state.note("first place", place)
    layer, group = place
    of_layer = groups.loc[groups["layer"] == layer, "group"].tolist()
    if group not in of_layer:
        group = int(of_layer[0])
    state.put("layer", layer)
    state.put("group", group)
    return layer, group


def boxes(shown: DrawnPair) -> None:
    """The two boxes; their keys are names of ``state.CHOICES``."""
    groups = shown.groups
    of_layer = groups.loc[groups["layer"] == state.get("layer"), "group"].tolist()
    with st.container(horizontal=True, gap="xsmall"):
        _box("Layer", sorted(set(groups["layer"].tolist())), "layer", lambda layer: f"layer {layer}", 108)
        if shown.lanes:
            _box(words.title(shown.unit), of_layer, "group", lambda group: shown.lanes[group], 220)
        elif shown.unit != "layer":
            _box(words.title(shown.unit), of_layer, "group", lambda group: f"{shown.unit} {group}", 140)


def _box(label: str, values: list[int], key: str, say: Callable[[int], str], width: int) -> None:
    pick(
        label,
        values,
        key,
        format_func=say,
        width=width,
        on_change=lambda: clicks.renew(SOURCES),
        label_visibility="collapsed",
    )


def select_group_from_chart(source: str) -> None:
    """Callback of a chart: the point's customdata is (layer, group, ...)."""
    if point := clicks.point(source):
        _select(int(point[0]), int(point[1]), source)


def select_group_from_table(rows: list[tuple[int, int]], source: str) -> None:
    """Callback of a table whose lines are these (layer, group)."""
    if row := clicks.row(source, rows):
        _select(*row, source)


def _select(layer: int, group: int, source: str) -> None:
    state.put("layer", layer)
    state.put("group", group)
    clicks.renew(SOURCES, source)
