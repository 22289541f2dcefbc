"""Two models side by side: the ratio of one pair over the layers of both."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from wisca_app.figures import words
from wisca_app.figures.compare import LEGEND
from wisca_app.figures.template import Theme, figure, layer_ticks, octave_ticks, unit


def beside(both: pd.DataFrame, *, pair: str, theme: Theme, names: tuple[str, str]) -> go.Figure:
    """``both``: columns layer, log2_ratio (of the open model) and log2_beside, NaN where one of them has no such layer.
    The open model is filled dots, the one beside it rings; a line joins the two of a layer.
    """
    left, right = words.PAIR_ROLES[pair]
    fig = figure(theme, 340, showlegend=True, legend=LEGEND)
    for row in both.itertuples():
        if np.isfinite(row.log2_ratio) and np.isfinite(row.log2_beside):
            fig.add_trace(
                go.Scatter(
                    x=[row.layer] * 2,
                    y=[row.log2_beside, row.log2_ratio],
                    mode="lines",
                    line=dict(color=theme.border, width=1),
                    hoverinfo="skip",
                    showlegend=False,
                )
            )
    for column, name, symbol in (("log2_beside", names[1], "circle-open"), ("log2_ratio", names[0], "circle")):
        rows = both[np.isfinite(both[column])]
        colours = [theme.role[left if v >= 0 else right] for v in rows[column]]
        fig.add_trace(
            go.Scatter(
                x=rows["layer"],
                y=rows[column],
                mode="markers",
                name=name,
                marker=dict(symbol=symbol, size=9, color=colours, line=dict(width=1.6, color=colours)),
                customdata=[f"layer {layer}: {words.side(pair, v)}" for layer, v in zip(rows["layer"], rows[column])],
                hovertemplate=f"{name}<br>%{{customdata}}<extra></extra>",
            )
        )
    values = both[["log2_ratio", "log2_beside"]].to_numpy().ravel()
    values = values[np.isfinite(values)]
    low, high = min(values.min(initial=0), 0) - 0.3, max(values.max(initial=0), 0) + 0.3
    ticks, texts = octave_ticks(low, high)
    fig.update_yaxes(tickvals=ticks, ticktext=texts, range=[low, high])
    fig.add_hline(y=0, line=dict(color=theme.border, width=1), layer="below")
    layers = sorted(both["layer"].unique())
    fig.update_xaxes(
        tickvals=layer_ticks(layers), title=dict(text="layer", standoff=14), range=[layers[0] - 0.5, layers[-1] + 0.5]
    )
    fig.update_layout(margin=dict(l=52, r=12, t=80, b=52))
    unit(fig, f"{words.ROLES[left]} over {words.ROLES[right]}", dx=-48)
    return fig


def finding(both: pd.DataFrame, pair: str) -> str:
    """The chart's title: the median layer of each."""
    here, there = (
        words.side(pair, float(np.nanmedian(both[c]))) if both[c].notna().any() else "×"
        for c in ("log2_ratio", "log2_beside")
    )
    if here == there:
        return f"Both alike in the median layer: {_level(here)}"
    return f"The open model: {_level(here)} in the median layer; beside it: {_level(there)}"


def _level(side: str) -> str:
    return "in balance" if side == "equal" else "no ratio" if side == "×" else side
