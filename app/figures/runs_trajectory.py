"""The ratio of a pair over the checkpoints of one training, above the loss on the same axis."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from wisca_app.figures import words
from wisca_app.figures.runs import whole_axis, whole_ticks
from wisca_app.figures.template import Theme, figure, level, octave_ticks, see_through, unit
from wisca_app.figures.words import plain_text


def trajectory(
    layers: pd.DataFrame,
    groups: pd.DataFrame,
    *,
    pair: str,
    theme: Theme,
    layer: int | None = None,
    loss: tuple[str, np.ndarray, np.ndarray] | None = None,
) -> go.Figure:
    """``layers``: columns step, layer, log2_ratio, log2_size of one pair; ``groups``: step, layer, group, log2_ratio of
    it.

    Every layer is a quiet line, the median bold. With ``layer`` that one stands out, with its KV groups as dots.
    ``loss``: name, steps and values, below.
    """
    left, right = words.PAIR_ROLES[pair]
    fig = figure(theme, 460 if loss else 330)
    fig.update_layout(margin=dict(l=52, r=14, t=34, b=48), hoverdistance=20)
    wide = layers.pivot_table(index="step", columns="layer", values="log2_ratio", aggfunc="last").sort_index()
    steps = wide.index.to_numpy(dtype=float)
    upper = dict(xaxis="x", yaxis="y")
    for number in wide.columns:
        chosen = number == layer
        heavy = words.ROLES[left if wide[number].iloc[-1] >= 0 else right]
        fig.add_scatter(
            x=steps,
            y=wide[number],
            mode="lines+markers",
            **upper,
            name=f"layer {number}",
            line=dict(color=theme.ink if chosen else see_through(theme.quiet, 0.5), width=2.2 if chosen else 1),
            marker=dict(size=5 if chosen else 3),
            text=[words.side(pair, v) for v in wide[number]],
            hovertemplate=f"layer {number}, step %{{x:,}}<br>%{{text}}<extra></extra>",
        )
        if chosen:
            part = groups[groups["layer"] == number]
            fig.add_scatter(
                x=part["step"],
                y=part["log2_ratio"],
                mode="markers",
                **upper,
                name="KV groups",
                customdata=part["group"],
                marker=dict(size=7, color=[theme.role[left if v >= 0 else right] for v in part["log2_ratio"]]),
                text=[words.side(pair, v) for v in part["log2_ratio"]],
                hovertemplate=f"layer {number}, KV group %{{customdata}}, step %{{x:,}}"
                f"<br>%{{text}} ({heavy} side heavier at the end)<extra></extra>",
            )
    if layer is None:
        middle = wide.median(axis=1)
        last = middle.iloc[-1]
        fig.add_scatter(
            x=steps,
            y=middle,
            mode="lines+markers",
            **upper,
            line=dict(color=theme.role[left if last >= 0 else right], width=2.6),
            marker=dict(size=6),
            name="median",
            text=[words.side(pair, v) for v in middle],
            hovertemplate="median layer, step %{x:,}<br>%{text}<extra></extra>",
        )
    shown = wide.to_numpy()
    if layer is not None:
        shown = np.concatenate([shown.ravel(), groups.loc[groups["layer"] == layer, "log2_ratio"].to_numpy()])
    finite = shown[np.isfinite(shown)]
    size = layers["log2_size"].iloc[0]
    ends = [float(finite.min()), float(finite.max())] if len(finite) else [-1.0, 1.0]
    if np.isfinite(size):
        ends = [min(ends[0], size), max(ends[1], size)]
    # balance stays in sight where it is near; far from it, the movement is what counts
    if ends[0] > 0 and ends[1] - ends[0] > 0.5 * ends[0]:
        ends[0] = 0.0
    if ends[1] < 0 and ends[1] - ends[0] > -0.5 * ends[1]:
        ends[1] = 0.0
    pad = max(0.08 * (ends[1] - ends[0]), 0.08)
    low, high = ends[0] - pad, ends[1] + pad
    values, labels = _ratio_ticks(low, high)
    fig.update_layout(
        xaxis=dict(anchor="y2" if loss else "y", title=dict(text="step", standoff=14)),
        yaxis=dict(domain=[0.42, 1] if loss else [0, 1], range=[low, high], tickvals=values, ticktext=labels),
    )
    unit(fig, f"{words.ROLES[left]} over {words.ROLES[right]}", dx=-44)
    if np.isfinite(size) and low < size < high:
        level(fig, size, color=theme.quiet, width=1, dash="dot")
        fig.add_annotation(
            text="size alone",
            xref="x domain",
            yref="y",
            x=1,
            y=size,
            xanchor="right",
            yanchor="bottom",
            font=dict(size=11),
        )
    if low < 0 < high:
        level(fig, 0, color=theme.border, width=1.4)
    x_low, x_high = float(steps.min()), float(steps.max())
    if loss:
        name, at, y = loss
        fig.add_scatter(
            x=at,
            y=y,
            mode="lines",
            xaxis="x",
            yaxis="y2",
            line=dict(color=theme.ink, width=1.6),
            name=plain_text(name),
            hovertemplate=f"{plain_text(name)}, step %{{x:,}}<br>%{{y:.4~g}}<extra></extra>",
        )
        fig.update_layout(yaxis2=dict(domain=[0, 0.3], anchor="x", nticks=4))
        unit(fig, plain_text(name), "2", dx=-44, across="")
        inside = at[np.isfinite(at)]
        if len(inside):
            x_low, x_high = min(x_low, float(inside.min())), max(x_high, float(inside.max()))
    space = 0.012 * (x_high - x_low) or 1.0
    fig.update_xaxes(range=[x_low - space, x_high + space], **whole_axis(x_low, x_high))
    return fig


def _ratio_ticks(low: float, high: float) -> tuple[list[float], list[str]]:
    """Whole octaves; where there are fewer than three, round ratios of the heavier side."""
    values, labels = octave_ticks(low, high)
    if len(values) >= 3:
        return list(values), list(labels)
    sign = 1 if low + high >= 0 else -1
    inside = sorted(2.0 ** (sign * v) for v in (low, high))
    ratios = [r for r in whole_ticks(*inside, most=6) if r > 0]
    return [sign * float(np.log2(r)) for r in ratios], [f"{r:g}×" if sign > 0 else f"1/{r:g}×" for r in ratios]
