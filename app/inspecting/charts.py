"""The charts over the whole model, each under its finding, with one line how to read it and its data as CSV."""

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from wisca_app import cached
from wisca_app.figures import balance, depth, findings, heatmap, words
from wisca_app.figures.template import CONFIG, Theme
from wisca_app.heading import heading
from wisca_app.inspecting import selection
from wisca_app.inspecting.shown import Shown, furthest


def chart(fig: go.Figure, key: str, alt: str, source: str = "") -> None:
    """``source``: of the selection, where a click in it selects a group."""
    if source:
        st.plotly_chart(
            fig,
            theme=None,
            config=CONFIG,
            key=selection.key(source),
            alt=alt,
            selection_mode="points",
            on_select=lambda: selection.clicked(source),
        )
    else:
        st.plotly_chart(fig, theme=None, config=CONFIG, key=key, alt=alt)


def draw_map(shown: Shown, theme: Theme, selected: tuple[int, int]) -> None:
    left, right = words.PAIR_ROLES[shown.pair]
    finding = findings.map_title(shown.groups, shown.pair, shown.unit)
    cell = "layer" if shown.unit == "layer" else f"{shown.unit} (row) in one layer"
    why_two = ""
    if not heatmap.has_size(shown.groups):
        why_two = (
            " The largest value has no law of size, so nothing is divided out."
            if shown.norm == "max"
            else " Both sides are of one size in this norm, so nothing is divided out."
        )
    missing = shown.n_layers - shown.groups["layer"].nunique()
    why = "not covered, named below" if len(shown.blocks) == 1 else "without this block, or not covered"
    blank = f" Blank: {words.plural(missing, 'layer')} {why}." if missing else ""
    heading(
        finding,
        f"A cell is one {cell}. Its colour names the heavier side, {words.coloured(left)} or {words.coloured(right)}, "
        f"its strength says by how much; balance fades into the page.{why_two}{blank} Below, each layer as a whole: "
        f"{'ring before, dot after, ' if shown.after else ''}grey band within 2×. Click a cell to open {'its head' if shown.head_unit == 'head' else 'it'}.",
        heatmap.columns(shown.groups),
        "ratios",
    )
    fig = heatmap.heatmap(
        shown.groups,
        shown.layers,
        pair=shown.pair,
        n_layers=shown.n_layers,
        theme=theme,
        after=shown.after,
        unit_name=shown.unit,
        selected=selected,
        lanes=shown.lanes,
    )
    chart(fig, "map", f"Ratio of every {shown.unit} over the layers. {finding}.", source="map")


def draw_balance(shown: Shown, theme: Theme, selected: tuple[int, int]) -> None:
    finding = findings.balance_title(shown.groups) if shown.after else "Norm against norm"
    heading(
        finding,
        f"One point is one {shown.unit}. "
        + (
            "Ring before, dot after; a factor moves it along the anti-diagonal, so the product of the norms stays. "
            if shown.after
            else ""
        )
        + balance.lines_in_words(shown.groups),
        shown.groups[["name", "layer", "block", "group", "left", "right", "left_after", "right_after"]],
        "balance",
    )
    fig = balance.balance(
        shown.groups,
        pair=shown.pair,
        norm=shown.norm,
        matrices=shown.matrices,
        theme=theme,
        unit_name=shown.unit,
        selected=selected,
        lanes=shown.lanes,
    )
    chart(fig, "balance", f"Norm of the one side against the other. {finding}.", source="balance")


def draw_furthest(shown: Shown) -> None:
    table = furthest(shown.groups, cached.rows(shown.model, shown.options))
    n, on = len(table), shown.matrices[0]
    number = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six", 7: "seven", 8: "eight"}.get(n, str(n))
    heading(
        {0: "No pair stands out from the rest", 1: "The pair furthest from the rest"}.get(
            n, f"The {number} pairs furthest from the rest"
        ),
        f"Sorted by distance from the median{f'; the factor is that on {on}' if shown.after else ''}. Click a row to open {'the head' if shown.head_unit == 'head' else 'it'}.",
        table,
        "furthest",
    )
    if not n:
        return
    view = pd.DataFrame(
        {
            "Layer": table["layer"],
            _column(shown): [shown.lanes[g] for g in table["group"]] if shown.lanes else table["group"],
            "Heavier side": [words.side(shown.pair, v) for v in table["log2_ratio"]],
            "Factor": [words.factors(a, b) for a, b in zip(table["factor_low"], table["factor_high"])],
            "After": [words.side(shown.pair, v) for v in table["log2_after"]],
        }
    )
    if shown.unit == "layer":
        view = view.drop(columns="Group")
    if not shown.after:
        view = view.drop(columns=["Factor", "After"])
    places = list(zip(table["layer"].tolist(), table["group"].tolist()))
    st.dataframe(
        view,
        hide_index=True,
        selection_mode="single-row",
        key=selection.key("furthest"),
        column_config={
            "Layer": st.column_config.NumberColumn(width=52),
            "Group": st.column_config.NumberColumn(width=56),
            "Head": st.column_config.NumberColumn(width=56),
            "Expert": st.column_config.NumberColumn(width=64),
        },
        on_select=lambda: selection.picked(places, "furthest"),
        alt="The pairs furthest from the median ratio",
    )


def _column(shown: Shown) -> str:
    return {"adapted part": "Adapted part", "head": "Head", "expert": "Expert"}.get(shown.unit, "Group")


def draw_depth(shown: Shown, theme: Theme) -> None:
    heads = shown.heads()
    finding = findings.depth_title(heads, shown.head_unit) if shown.after else f"Every {shown.head_unit} over depth"
    bars = heads.groupby(["role", "layer"]).size().max() > depth.FEW
    heading(
        finding,
        f"{words.NORM_SYMBOLS[shown.norm].capitalize()} of one {shown.head_unit}, log axis.{' Outline before, filled after.' if shown.after else ''}"
        + (" Bars span 10–90 % of a layer with the median as a notch; dots beyond a bar lie far out." if bars else ""),
        depth.columns(heads),
        "heads",
    )
    names = set(heads["name"])
    gains = {
        role
        for site in shown.model.sites.sites
        if site.live == "gains" and site.name in names
        for role in words.PAIR_ROLES[site.key.pair]
    }
    fig = depth.depth(
        heads,
        n_layers=shown.n_layers,
        theme=theme,
        gains=gains,
        unit_name="adapted part" if shown.lanes else shown.head_unit,
    )
    chart(fig, "depth", f"Norm of every {shown.head_unit} over the layers, one panel a matrix. {finding}.")
