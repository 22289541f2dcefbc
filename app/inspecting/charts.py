"""The charts over the whole model, each under its finding, with one line how to read it and its data as CSV."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import streamlit as st

from wisca_app import cached, clicks, state
from wisca_app.figures import balance, depth, findings, heatmap, words
from wisca_app.figures.chart import Chart
from wisca_app.figures.template import Drawing, Theme
from wisca_app.heading import heading, show
from wisca_app.inspecting import selection
from wisca_app.inspecting.drawn_pair import DrawnPair, most_unbalanced_cells
from wisca_core.planning.rates import rate, span


def chart(one: Chart, theme: Theme, key: str, source: str = "", fig: Drawing | None = None) -> None:
    """``source``: of the selection, where a click in it selects a group."""
    if source:
        selects = {"selection_mode": "points", "on_select": lambda: selection.select_group_from_chart(source)}
        show(one, theme, clicks.key(source), fig, **selects)
    else:
        show(one, theme, key, fig)


def map_of(shown: DrawnPair, view: str, selected: tuple[int, int] | None = None) -> Chart:
    """The map in one of its views."""
    left, right = words.PAIR_ROLES[shown.pair]
    finding = findings.map_title(shown.groups, shown.pair, shown.unit, view)
    missing = shown.n_layers - shown.groups["layer"].nunique()
    why = "not covered, named below" if len(shown.blocks) == 1 else "without this block, or not covered"
    blank = f" Blank: {words.plural(missing, 'layer')} {why}." if missing else ""
    return Chart(
        finding,
        f"The heavier side, {words.coloured_word(left)} or {words.coloured_word(right)}; balance fades.{blank}",
        heatmap.columns(shown.groups),
        f"{shown.pair}-ratios",
        lambda theme: heatmap.heatmap(
            shown.groups,
            shown.layers,
            pair=shown.pair,
            n_layers=shown.n_layers,
            theme=theme,
            view=view,
            after=bool(shown.after),
            unit_name=shown.unit,
            selected=selected,
            lanes=shown.lanes,
        ),
        alt=f"Ratio of every {shown.unit} over the layers. {finding}.",
        tip=f"A cell is one {shown.unit} of a layer. Below, each layer as a whole: ring before, small dot after, grey "
        f"within 2×.\n\n{words.tip('size', 'KV group')}",
    )


def draw_map(shown: DrawnPair, theme: Theme, selected: tuple[int, int]) -> None:
    view = state.get("shown_view")
    one, fig = _chart_and_figure(f"map {view} {selected}", shown, theme, lambda: map_of(shown, view, selected))
    chart(one, theme, "map", source="map", fig=fig)


def _chart_and_figure(what: str, shown: DrawnPair, theme: Theme, make: Callable[[], Chart]) -> tuple[Chart, Drawing]:
    """The chart and its figure in this theme. ``what``: all that it depends on beside ``shown``."""

    def both() -> tuple[Chart, Drawing]:
        one = make()
        return one, one.draw(theme)

    return cached.once(f"{what}\n{shown.key}\n{theme.name}", both)


def balance_of(shown: DrawnPair, selected: tuple[int, int] | None = None) -> Chart:
    """Norm against norm."""
    finding = findings.balance_title(shown.groups) if shown.after else "Norm against norm"
    return Chart(
        finding,
        f"One point is one {shown.unit}{'; ring before, dot after' if shown.after else ''}. Grey: within 2×.",
        shown.groups[["name", "layer", "block", "group", "left", "right", "left_after", "right_after"]],
        f"{shown.pair}-balance",
        lambda theme: balance.balance(
            shown.groups,
            pair=shown.pair,
            norm=shown.norm,
            matrices=shown.matrices,
            theme=theme,
            unit_name=shown.unit,
            selected=selected,
            lanes=shown.lanes,
        ),
        alt=f"Norm of the one side against the other. {finding}.",
        tip="A factor moves a point along the anti-diagonal, so the product of the norms stays. On the diagonal both "
        "norms are equal.",
    )


def draw_balance(shown: DrawnPair, theme: Theme, selected: tuple[int, int]) -> None:
    one, fig = _chart_and_figure(f"balance {selected}", shown, theme, lambda: balance_of(shown, selected))
    chart(one, theme, "balance", source="balance", fig=fig)


def draw_most_unbalanced(shown: DrawnPair) -> None:
    table = most_unbalanced_cells(shown.groups, cached.rows(shown.model, shown.options))
    n = len(table)
    number = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six", 7: "seven", 8: "eight"}.get(n, str(n))
    by_layer = bool(shown.after) and shown.options.granularity == "tensor" and shown.unit != "layer"
    heading(
        {0: "No pair has a ratio", 1: "The only pair"}.get(n, f"The {number} most unbalanced"),
        f"Most unbalanced first. Click a row to open {'the head' if shown.head_unit == 'head' else 'it'}."
        + (" Rates and after are of its layer's one factor." if by_layer else ""),
        table,
        f"{shown.pair}-most-unbalanced",
    )
    if not n:
        return
    left, right = shown.matrices
    view = pd.DataFrame(
        {
            "Layer": table["layer"],
            _column(shown): [shown.lanes[g] for g in table["group"]] if shown.lanes else table["group"],
            "Heavier side": [words.side(shown.pair, v) for v in table["log2_ratio"]],
            f"Adam: {left}, {right}": [_rates(row) for row in table.itertuples()],
            "After": [words.side(shown.pair, v) for v in table["log2_after"]],
        }
    )
    if shown.unit == "layer":
        view = view.drop(columns="Group")
    if not shown.after:
        view = view.drop(columns="After")
    places = list(zip(table["layer"].tolist(), table["group"].tolist()))
    st.dataframe(
        view,
        hide_index=True,
        selection_mode="single-row",
        key=clicks.key("most_unbalanced"),
        column_config={
            "Layer": st.column_config.NumberColumn(width=52),
            "Group": st.column_config.NumberColumn(width=56),
            "Head": st.column_config.NumberColumn(width=56),
            "Expert": st.column_config.NumberColumn(width=64),
        },
        on_select=lambda: selection.select_group_from_table(places, "most_unbalanced"),
        alt="The most unbalanced pairs, with the learning rates that balancing them is",
    )


def _rates(row: tuple) -> str:
    """Of the factors it gets, which are what leaves its "after"; of its own balance where it gets none."""
    if np.isfinite(row.factor_low) and (row.factor_low, row.factor_high) != (1.0, 1.0):
        return f"{span(1 / row.factor_high, 1 / row.factor_low)}, {span(1 / row.right_high, 1 / row.right_low)}"
    return f"{rate(row.left_rate)}, {rate(row.right_rate)}"


def _column(shown: DrawnPair) -> str:
    return {"adapted part": "Adapted part", "head": "Head", "expert": "Expert"}.get(shown.unit, "Group")


def depth_of(shown: DrawnPair, heads: pd.DataFrame) -> Chart:
    """Norms of every head over the layers. ``heads``: of ``Shown.heads``."""
    finding = findings.depth_title(heads, shown.head_unit) if shown.after else f"Every {shown.head_unit} over depth"
    bars = heads.groupby(["role", "layer"]).size().max() > depth.FEW
    names = set(heads["name"])
    gains = {
        role
        for site in shown.model.sites.sites
        if site.live == "gains" and site.name in names
        for role in words.PAIR_ROLES[site.key.pair]
    }
    unit = "adapted part" if shown.lanes else shown.head_unit
    return Chart(
        finding,
        f"{words.NORM_SYMBOLS[shown.norm].capitalize()} of one {shown.head_unit}, log "
        f"axis.{' Outline before, filled after.' if shown.after else ''}"
        + (" Bars span 10–90 % of a layer with the median as a notch; dots beyond a bar lie far out." if bars else ""),
        depth.columns(heads),
        "heads",
        lambda theme: depth.depth(heads, n_layers=shown.n_layers, theme=theme, gains=gains, unit_name=unit),
        alt=f"Norm of every {shown.head_unit} over the layers, one panel a matrix. {finding}.",
    )


def draw_depth(shown: DrawnPair, theme: Theme) -> None:
    one, fig = _chart_and_figure("depth", shown, theme, lambda: depth_of(shown, shown.heads()))
    chart(one, theme, "depth", fig=fig)
