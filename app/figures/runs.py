"""Curves of logged runs: one line or band a group, ink and dashes, since colour means a matrix role."""

import html
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go

from wisca_app.figures import words
from wisca_app.figures.template import Theme, figure, log_ticks, see_through, unit

# A legend of more names than this covers the chart; hovering still names every line.
MOST_NAMED = 8
MOST_SIGNS = 40


@dataclass(frozen=True, eq=False)
class Curve:
    """One line: x, y and, for a group of several runs, the lowest and highest; ``raw`` is drawn faintly behind a
    smoothed y.
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    raw: np.ndarray | None = None


def plain_text(text: str) -> str:
    """A foreign name for a title, label or hover text: plotly would read <a href> in it."""
    return html.escape(text, quote=False)


def styles(theme: Theme, names: Sequence[str]) -> list[dict]:
    """A line style each: up to eight can be told apart, and a baseline is quiet; more are all quiet."""
    n = len(names)
    if n > MOST_NAMED:
        return [dict(color=see_through(theme.quiet, 0.55 if n <= 60 else 0.3), width=1)] * n
    quiet = [(theme.quiet, dash) for dash in ("solid", "dash", "dot", "dashdot")]
    ink = [(theme.ink, dash) for dash in ("solid", "dash", "dot", "dashdot")]
    left = [style for both in zip(ink, quiet) for style in both]
    out = []
    for name in names:
        is_baseline = "baseline" in name.lower() and quiet[0] in left
        out.append(left.pop(left.index(quiet[0]) if is_baseline else 0))
    return [dict(color=colour, dash=dash, width=1.8) for colour, dash in out]


def curves(
    lines: Sequence[Curve],
    *,
    x_title: str,
    y_title: str,
    theme: Theme,
    log_x: bool = False,
    log_y: bool = False,
    highlight: str | None = None,
) -> go.Figure:
    """``highlight``: the name of the line that is drawn bold, over the others."""
    rows = (
        len(lines) if 1 < len(lines) <= MOST_NAMED else 0
    )  # one below the other: the width of the screen is not known
    fig = figure(theme, 344 + 19 * rows)
    fig.update_layout(margin=dict(l=52, r=14, t=38 + 19 * rows, b=48), hoverdistance=20)
    if rows:
        fig.update_layout(
            showlegend=True,
            legend=dict(
                orientation="v",
                xref="paper",
                x=0,
                xanchor="left",
                y=1,
                yref="container",
                yanchor="top",
                font=dict(size=12, color=theme.text),
                itemwidth=34,
                bgcolor="rgba(0,0,0,0)",
                itemclick=False,
                itemdoubleclick=False,
            ),
        )
    drawn = styles(theme, [one.name for one in lines])
    order = sorted(range(len(lines)), key=lambda i: lines[i].name == highlight)
    for i in order:
        one, style = lines[i], drawn[i]
        if one.name == highlight:
            style = dict(color=theme.ink, width=2.6, dash=style.get("dash", "solid"))
        _band(fig, one, theme, log_y)
        _line(fig, one, style, theme, log_y)
    _axis(fig, "x", lines, log_x, x_title)
    _axis(fig, "y", lines, log_y, y_title)
    return fig


def _positive(values: np.ndarray, log: bool) -> np.ndarray:
    return np.where(values > 0, values, np.nan) if log else values


def _band(fig: go.Figure, one: Curve, theme: Theme, log: bool) -> None:
    if one.low is None or len(one.x) < 2:
        return
    edges = (_positive(one.high, log), _positive(one.low, log)[::-1])
    known = np.isfinite(np.concatenate(edges))
    fig.add_scatter(
        x=np.concatenate([one.x, one.x[::-1]])[known].astype(np.float32),
        y=np.concatenate(edges)[known].astype(np.float32),
        mode="lines",
        line=dict(width=0),
        fill="toself",
        fillcolor=see_through(theme.quiet, 0.22),
        hoverinfo="skip",
        showlegend=False,
    )


def _line(fig: go.Figure, one: Curve, style: dict, theme: Theme, log: bool) -> None:
    scatter = go.Scattergl if len(one.x) > 4000 else go.Scatter
    name = plain_text(one.name)
    if one.raw is not None:
        fig.add_trace(
            scatter(
                x=one.x,
                y=_positive(one.raw, log),
                mode="lines",
                line=dict(color=see_through(theme.quiet, 0.35), width=1),
                hoverinfo="skip",
                showlegend=False,
            )
        )
    text = "<br>lowest %{customdata[0]:.5~g}, highest %{customdata[1]:.5~g}" if one.low is not None else ""
    fig.add_trace(
        scatter(
            x=one.x,
            y=_positive(one.y, log),
            mode="lines+markers" if len(one.x) <= 24 else "lines",
            marker=dict(size=5, color=style["color"]),
            line=style,
            name=name if len(name) <= MOST_SIGNS else name[: MOST_SIGNS - 2] + "…",
            customdata=None if one.low is None else np.stack([one.low, one.high], axis=1),
            hovertemplate=f"{name}<br>%{{x:,.6~g}}: %{{y:.5~g}}{text}<extra></extra>",
        )
    )


def _axis(fig: go.Figure, letter: str, lines: Sequence[Curve], log: bool, title: str) -> None:
    values = [
        v
        for one in lines
        for v in ([one.x] if letter == "x" else [one.y, one.low, one.high, one.raw])
        if v is not None and len(v)
    ]
    values = [v[np.isfinite(v) & ((v > 0) | (not log))] for v in values]
    values = [v for v in values if len(v)]
    place = fig.update_xaxes if letter == "x" else fig.update_yaxes
    if letter == "x":
        place(title=dict(text=plain_text(title), standoff=14))
    else:
        unit(fig, plain_text(title), dx=-44)
    if not values:
        return
    low, high = min(float(v.min()) for v in values), max(float(v.max()) for v in values)
    if log:
        pad = 0.03 * max(np.log10(high / low), 0.1)
        ticks, labels = log_ticks(low, max(high, low * 1.01), most=6)
        place(type="log", range=[np.log10(low) - pad, np.log10(high) + pad], tickvals=ticks, ticktext=labels)
    elif letter == "x":
        pad = 0.005 * (high - low) or 0.5
        ticks = whole_ticks(low, high)
        place(range=[low - pad, high + pad], tickvals=ticks, ticktext=[words.axis_number(t) for t in ticks])


def whole_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers between two values, at most ``most`` + 1."""
    if not high > low:
        return [low]
    rough = (high - low) / most
    power = 10.0 ** np.floor(np.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first = int(np.ceil(low / step - 1e-9))
    return [float(f"{i * step:.12g}") for i in range(first, int(np.floor(high / step + 1e-9)) + 1)]
