"""Logged histograms as distributions over the steps, a layer each, and their norms over the layers."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from wisca_app.figures.runs import whole_axis
from wisca_app.figures.template import Theme, area, figure, see_through, unit
from wisca_app.figures.words import plain_text
from wisca_core.runs.distributions import Distribution

_BANDS = (("lowest", "highest", 0.14), ("q05", "q95", 0.22), ("q25", "q75", 0.34))
PANELS_A_ROW = 2


def fans(panels: Sequence[tuple[str, Distribution]], theme: Theme) -> go.Figure:
    """A panel each, (title, histograms over steps): the median as a line, around it half of all values, nine tenths,
    and all. One scale for all panels.
    """
    n = len(panels)
    across = min(PANELS_A_ROW, n)
    down = math.ceil(n / across)
    fig = figure(theme, 90 + (250 if n == 1 else 170) * down)
    grid = make_subplots(
        rows=down,
        cols=across,
        shared_xaxes="all",
        shared_yaxes="all",
        vertical_spacing=min(0.14, 0.3 / down),
        horizontal_spacing=0.05,
        subplot_titles=[plain_text(title) for title, _ in panels] if n > 1 else None,
        figure=fig,
    )
    for k, (title, one) in enumerate(panels):
        where = dict(row=k // across + 1, col=k % across + 1)
        order = np.argsort(one.step, kind="stable")
        step, name = one.step[order], plain_text(title)
        for low, high, alpha in _BANDS:
            band = area(step, one.column(low)[order], one.column(high)[order], see_through(theme.quiet, alpha))
            grid.add_scatter(**band, **where)
        figures = np.stack(
            [one.column(name)[order] for name in ("lowest", "q05", "q25", "q75", "q95", "highest", "l2")]
        )
        grid.add_scatter(
            x=step,
            y=one.column("median")[order],
            mode="lines+markers" if len(step) <= 40 else "lines",
            line=dict(color=theme.ink, width=1.8),
            marker=dict(size=4, color=theme.ink),
            showlegend=False,
            customdata=figures.T,
            hovertemplate=f"{name}, step %{{x:,}}<br>median %{{y:.4~g}}; half within %{{customdata[2]:.4~g}} to "
            "%{customdata[3]:.4~g}<br>nine tenths %{customdata[1]:.4~g} to %{customdata[4]:.4~g}; all "
            "%{customdata[0]:.4~g} to %{customdata[5]:.4~g}<br>L2 norm %{customdata[6]:.5~g}<extra></extra>",
            **where,
        )
    steps = np.concatenate([one.step for _, one in panels])
    grid.update_xaxes(**whole_axis(float(steps.min()), float(steps.max()), most=5))
    for k in range(max(0, n - across), n):
        grid.update_xaxes(
            title=dict(text="step", standoff=14), showticklabels=True, row=k // across + 1, col=k % across + 1
        )
    grid.update_layout(margin=dict(l=52, r=14, t=44, b=48), dragmode="zoom")
    return grid


def over_layers(wide: pd.DataFrame, y_title: str, theme: Theme) -> go.Figure:
    """``wide``: index step, a column a layer. Every layer is a quiet line, the median bold, nine tenths of the layers a
    band where there are enough of them.
    """
    fig = figure(theme, 330)
    fig.update_layout(margin=dict(l=52, r=14, t=34, b=48), hoverdistance=20)
    steps = wide.index.to_numpy(dtype=float)
    if wide.shape[1] >= 8:
        low, high = wide.quantile(0.05, axis=1).to_numpy(), wide.quantile(0.95, axis=1).to_numpy()
        fig.add_scatter(**area(steps, low, high, see_through(theme.quiet, 0.16)))
    for layer in wide.columns:
        fig.add_scatter(
            x=steps,
            y=wide[layer],
            mode="lines+markers" if len(steps) <= 40 else "lines",
            line=dict(color=see_through(theme.quiet, 0.6), width=1),
            marker=dict(size=3),
            hovertemplate=f"layer {layer}, step %{{x:,}}: %{{y:.5~g}}<extra></extra>",
        )
    if wide.shape[1] > 1:
        fig.add_scatter(
            x=steps,
            y=wide.median(axis=1),
            mode="lines+markers" if len(steps) <= 40 else "lines",
            line=dict(color=theme.ink, width=2.6),
            marker=dict(size=5),
            hovertemplate="median layer, step %{x:,}: %{y:.5~g}<extra></extra>",
        )
    fig.update_xaxes(title=dict(text="step", standoff=14), **whole_axis(float(steps.min()), float(steps.max())))
    unit(fig, plain_text(y_title), dx=-44)
    return fig
