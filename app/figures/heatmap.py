"""Ratios over layers and KV groups: strips on one axis, and the layer's ratio below."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from wisca_app.figures import words
from wisca_app.figures.template import OCTAVES, Theme, figure, layer_ticks, octave_ticks, scale, see_through, unit
from wisca_core.patterns.summary import SIDES

TOP, BETWEEN, BOTTOM, LINE = (
    62,
    42,
    48,
    96,
)  # px: above the strips (colour bar), a strip's heading, below, the layers' panel
# Half the span of the colours in octaves -> the ratio labelled on either side. The least that holds every cell is used:
# on the widest one alone, a model that is nearly level would show nothing.
SPANS = {1.0: 1.5, 2.5: 4.0, OCTAVES: 10.0}
MANY = 600  # cells in a strip from which the gaps between them are dropped


def heatmap(
    groups: pd.DataFrame,
    layers: pd.DataFrame,
    *,
    pair: str,
    n_layers: int,
    theme: Theme,
    after: str,
    unit_name: str = "KV group",
    selected: tuple[int, int] | None = None,
    lanes: tuple[str, ...] = (),
) -> go.Figure:
    """Cells of one pair: before, before with size divided out (no such strip where ``has_size`` says no), after.

    ``groups``: rows of one pair, columns layer, group, log2_ratio, log2_size, log2_after (octaves, left over right).
    ``layers``: the same without group, one row a layer. ``after``: heading of the last strip, "" where there is none. ``unit_name``: what a row
    is. ``selected``: (layer, group). ``lanes``: names of the rows, where they have names instead of numbers.
    A cell without a ratio bears a cross; a (layer, group) without a row stays blank. Each cell's overlay point carries
    customdata [layer, group, times heavier], since plotly reports no click on a heatmap.
    """
    left, right = SIDES[pair]
    n_groups = int(groups["group"].max()) + 1 if len(groups) else 1
    strips = [("Before", groups["log2_ratio"].to_numpy())]
    if has_size(groups):
        strips.append(("Before, size divided out", (groups["log2_ratio"] - groups["log2_size"]).to_numpy()))
    if after:
        strips.append((after, groups["log2_after"].to_numpy()))

    span = span_of(np.concatenate([octaves for _, octaves in strips]))

    row = 18.0 if lanes else min(18.0, max(4.0, 220 / n_groups)) if n_groups > 1 else 24.0
    strip = row * n_groups
    height = TOP + len(strips) * strip + len(strips) * BETWEEN + LINE + BOTTOM
    inner = height - TOP - BOTTOM
    # A long headline of ticks would not fit a phone, and the server does not know the width.
    ticks = layer_ticks(list(range(n_layers)))
    fig = figure(theme, round(height))
    names = max((len(name) for name in lanes), default=0)
    fig.update_layout(
        margin=dict(t=TOP, b=BOTTOM, l=min(150, 16 + 6 * names) if lanes else 36),
        hoverdistance=-1,
        clickmode="event+select",
    )
    for number, (heading, octaves) in enumerate(strips):
        axis = "" if number == 0 else str(number + 1)
        top = 1 - number * (strip + BETWEEN) / inner
        _strip(
            fig,
            axis,
            (max(0.0, top - strip / inner), top),
            groups,
            octaves,
            n_layers,
            n_groups,
            pair,
            unit_name,
            theme,
            span,
            lanes,
        )
        fig.add_annotation(
            text=heading,
            xref="x domain",
            x=0,
            xanchor="left",
            yref="paper",
            y=top,
            yanchor="bottom",
            yshift=5,
            font=dict(size=13, color=theme.ink),
        )
        if selected is not None:
            layer, group = selected
            fig.add_shape(
                type="rect",
                xref="x",
                yref=f"y{axis}",
                x0=layer - 0.5,
                x1=layer + 0.5,
                y0=group - 0.5,
                y1=group + 0.5,
                line=dict(color=theme.ink, width=2.5),
            )
    _layers(fig, str(len(strips) + 1), (0, LINE / inner), layers, pair, theme)
    # an axis title of stacked panels lands on the ticks or far below them
    fig.add_annotation(text="layer", xref="paper", x=0.5, yref="paper", y=0, yanchor="top", yshift=-24)
    fig.update_layout(
        xaxis=dict(domain=[0, 1], anchor=f"y{len(strips) + 1}", range=[-0.5, n_layers - 0.5], tickvals=ticks),
        coloraxis=dict(
            colorscale=scale(theme, *words.PAIR_ROLES[pair]),
            cmin=-span,
            cmax=span,
            colorbar=dict(
                orientation="h",
                x=1,
                xanchor="right",
                yref="container",
                y=1,
                yanchor="top",
                ypad=4,
                xpad=0,
                lenmode="pixels",
                len=190,
                thickness=8,
                outlinewidth=0,
                tickvals=[-np.log2(SPANS[span]), 0, np.log2(SPANS[span])],
                ticktext=[f"{right} {SPANS[span]:.3g}×", "equal", f"{left} {SPANS[span]:.3g}×"],
                tickangle=0,
                ticks="",
                ticklabeloverflow="allow",
                tickfont=dict(size=12, color=theme.text),
            ),
        ),
    )
    return fig


def has_size(groups: pd.DataFrame) -> bool:
    """Whether size explains a part of the ratio, so that a strip without it says something."""
    octaves = groups["log2_size"].to_numpy(dtype=float)
    return bool(len(octaves) and np.isfinite(octaves).all() and (np.abs(octaves) > 1e-9).any())


def span_of(octaves: np.ndarray) -> float:
    """The key of SPANS that holds every finite ratio; the widest where none does."""
    finite = np.abs(octaves[np.isfinite(octaves)])
    largest = finite.max() if len(finite) else 0.0
    return next((span for span in SPANS if largest <= span), OCTAVES)


def _strip(
    fig: go.Figure,
    axis: str,
    domain: tuple[float, float],
    groups: pd.DataFrame,
    octaves: np.ndarray,
    n_layers: int,
    n_groups: int,
    pair: str,
    unit_name: str,
    theme: Theme,
    span: float,
    lanes: tuple[str, ...] = (),
) -> None:
    layer, group = groups["layer"].to_numpy(), groups["group"].to_numpy()
    known = np.isfinite(octaves)
    z = np.full((n_groups, n_layers), np.nan, np.float32)
    z[group[known], layer[known]] = np.clip(octaves[known], -span, span)
    gap = 0 if n_groups * n_layers > MANY else 2
    fig.add_heatmap(
        z=z, coloraxis="coloraxis", hoverinfo="skip", xgap=gap, ygap=gap, xaxis="x", yaxis=f"y{axis}", hoverongaps=False
    )
    left, right = SIDES[pair]
    place = words.place("%{customdata[0]:d}", unit_name, "%{customdata[1]:d}")
    if lanes:
        place = words.lane("%{customdata[0]:d}", "%{text}")
    sides = ((left, octaves > 0), (right, octaves < 0), ("", known & (octaves == 0)), ("no ratio", ~known))
    for word, chosen in sides:
        if not chosen.any():
            continue
        times = np.exp2(np.abs(np.where(known, octaves, 0.0)))[chosen]
        data = np.stack([layer[chosen], group[chosen], np.round(times, 2)], axis=1).astype(np.float32)
        figure_of = (
            "no ratio: a norm is zero or not finite"
            if word == "no ratio"
            else f"{word} %{{customdata[2]:.3~g}}×"
            if word
            else "equal"
        )
        fig.add_trace(
            go.Scattergl(
                x=layer[chosen].astype(np.int16),
                y=group[chosen].astype(np.int16),
                customdata=data,
                text=[lanes[g] for g in group[chosen]] if lanes else None,
                mode="markers",
                xaxis="x",
                yaxis=f"y{axis}",
                name=word,
                marker=dict(size=12, opacity=0, color=theme.ink),
                unselected=dict(marker=dict(opacity=0)),
                selected=dict(marker=dict(opacity=0)),
                hovertemplate=f"{place}<br>{figure_of}<extra></extra>",
            )
        )
    if (~known).any():
        fig.add_trace(
            go.Scatter(
                x=layer[~known],
                y=group[~known],
                mode="text",
                text="×",
                textfont=dict(size=12, color=theme.text),
                hoverinfo="skip",
                xaxis="x",
                yaxis=f"y{axis}",
                name="no ratio, mark",
            )
        )
    step = 1 if lanes and n_groups <= 24 else max(1, -(-n_groups // 8))
    ticks = list(range(0, n_groups, step))
    fig.update_layout(
        {
            f"yaxis{axis}": dict(
                domain=list(domain),
                range=[n_groups - 0.5, -0.5],
                showgrid=False,
                tickvals=ticks,
                ticktext=[_short(lanes[i]) for i in ticks] if lanes else None,
                tickfont=dict(size=11),
                anchor="x",
            )
        }
    )


def _short(name: str) -> str:
    return name if len(name) <= 22 else f"…{name[-21:]}"


def _layers(
    fig: go.Figure, axis: str, domain: tuple[float, float], layers: pd.DataFrame, pair: str, theme: Theme
) -> None:
    """Ratio of each whole layer: ring before, dot after, dotted line at size alone, band within 2x."""
    left, right = SIDES[pair]
    x = layers["layer"].to_numpy()
    many = len(x) > 40
    for column, name, colour in (("log2_ratio", "before", theme.ink), ("log2_after", "after", theme.quiet)):
        y = layers[column].to_numpy(dtype=float)
        y = np.where(np.isfinite(y), y, np.nan)
        ring = column == "log2_ratio"
        fig.add_trace(
            go.Scatter(
                x=x,
                y=y,
                mode="lines+markers",
                xaxis="x",
                yaxis=f"y{axis}",
                name=name,
                line=dict(color=colour, width=1.2),
                marker=dict(
                    size=4 if many else 6, color=theme.page if ring else colour, line=dict(color=colour, width=1.2)
                ),
                text=[words.side(pair, v) for v in y],
                hovertemplate=f"layer %{{x}}, {name}<br>%{{text}}<extra></extra>",
            )
        )
    values = layers[["log2_ratio", "log2_after"]].to_numpy(dtype=float)
    values = values[np.isfinite(values)]
    size = float(layers["log2_size"].iloc[0]) if len(layers) and np.ptp(layers["log2_size"]) < 1e-9 else np.nan
    reach = np.concatenate([values, [-1.0, 1.0], [size] if np.isfinite(size) else []])
    low, high = float(reach.min()) - 0.3, float(reach.max()) + 0.5
    ticks, labels = octave_ticks(low, high, most=5)
    fig.add_shape(
        type="rect",
        layer="below",
        xref="x domain",
        yref=f"y{axis}",
        x0=0,
        x1=1,
        y0=-1,
        y1=1,
        line_width=0,
        fillcolor=theme.middle,
    )
    if np.isfinite(size) and abs(size) > 1e-9:
        fig.add_shape(
            type="line",
            xref="x domain",
            yref=f"y{axis}",
            x0=0,
            x1=1,
            y0=size,
            y1=size,
            line=dict(color=theme.quiet, width=1, dash="dot"),
        )
        fig.add_annotation(
            text=f"size alone, {words.ratio(size)}",
            xref="x domain",
            x=1,
            xanchor="right",
            yref=f"y{axis}",
            y=size,
            yanchor="bottom" if _room_above(layers, size) else "top",
            font=dict(size=12, color=theme.text),
            bgcolor=see_through(theme.page, 0.7),
        )
    fig.update_layout(
        {
            f"yaxis{axis}": dict(
                domain=list(domain),
                range=[low, high],
                tickvals=ticks,
                ticktext=labels,
                tickfont=dict(size=11),
                anchor="x",
            )
        }
    )
    unit(fig, f"whole layer, {left} over {right}", "", dx=-30, dy=6)
    fig.layout.annotations[-1].yref = f"y{axis} domain"


def _room_above(layers: pd.DataFrame, size: float) -> bool:
    """Whether the name of the size line has more room above it than below, at its right end."""
    values = layers[["log2_ratio", "log2_after"]].to_numpy(dtype=float)[-max(1, len(layers) // 6) :]
    above, below = values[values >= size] - size, size - values[values < size]
    return above.min(initial=9.0) > below.min(initial=9.0)


def columns(groups: pd.DataFrame) -> pd.DataFrame:
    """What the download holds: one row a cell."""
    return groups[
        [
            "name",
            "layer",
            "block",
            "group",
            "n_left",
            "n_right",
            "left",
            "right",
            "log2_ratio",
            "log2_size",
            "log2_after",
        ]
    ]
