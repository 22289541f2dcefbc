"""Curves of logged runs: one line or band a group, told apart by colour and dashes both."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go

from wisca_app.figures import words
from wisca_app.figures.template import CONFIG, Theme, area, figure, log_ticks, see_through, unit
from wisca_app.figures.words import plain_text

# A legend of more names than this covers the chart; hovering still names every line.
MOST_NAMED = 8
# One box with the values of all lines; with more it would cover the chart.
MOST_TOGETHER = 12
# Colours of runs and groups, the baseline's grey apart: neighbours differ in lightness too, and no two look alike with
# protan, deutan or tritan sight (smallest OKLab distance simulated: see the test).
PALETTE = {
    "light": ("#1D222B", "#2F7FD6", "#CB7E00", "#7D0477", "#636319", "#9B467E", "#0A53C1", "#05480A"),
    "dark": ("#ECEAE5", "#58A6FF", "#F597A2", "#9E9B06", "#B34905", "#91D3FF", "#C0CD29", "#1C81D4"),
}
_DASHES = ("solid", "dash", "dot", "dashdot")
CONFIG = CONFIG | {"modeBarButtons": [["resetScale2d", "toImage"]], "doubleClick": "reset"}
MOST_SIGNS = 40


@dataclass(frozen=True, eq=False)
class Curve:
    """One line: x, y and, for a group of several runs, the lowest and highest; ``raw`` is drawn faintly behind a
    smoothed y; ``look``: its style, default one of ``styles``.
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    raw: np.ndarray | None = None
    look: dict | None = None


def styles(theme: Theme, names: Sequence[str]) -> list[dict]:
    """A line style each: 32 differ in colour or dashes, every further one repeats; a baseline is quiet."""
    colours, out, k = PALETTE[theme.name], [], 0
    quiet = False
    for name in names:
        if "baseline" in name.lower() and not quiet:
            quiet = True
            out.append(dict(color=theme.quiet, dash="solid", width=1.8))
            continue
        # in the first round dashes change at every fourth, so that eight lines can be told apart in grey as well
        dash = _DASHES[(k // len(colours) + (k % len(colours) >= 4)) % len(_DASHES)]
        out.append(dict(color=colours[k % len(colours)], dash=dash, width=1.8))
        k += 1
    if len(names) > 60:
        out = [style | dict(color=see_through(style["color"], 0.6), width=1) for style in out]
    return out


def curves(
    lines: Sequence[Curve],
    *,
    x_title: str,
    y_title: str,
    theme: Theme,
    log_x: bool = False,
    log_y: bool = False,
    highlight: str | None = None,
    height: int = 344,
) -> go.Figure:
    """``highlight``: the name of the line that is drawn bold, over the others. Dragging zooms."""
    rows = (
        len(lines) if 1 < len(lines) <= MOST_NAMED else 0
    )  # one below the other: the width of the screen is not known
    fig = figure(theme, height + 19 * rows)
    fig.update_layout(margin=dict(l=52, r=14, t=38 + 19 * rows, b=48), hoverdistance=20, dragmode="zoom")
    fig.update_xaxes(fixedrange=False)
    fig.update_yaxes(fixedrange=False)
    together = len(lines) <= MOST_TOGETHER
    if together:
        fig.update_layout(hovermode="x unified")
        fig.update_xaxes(unifiedhovertitle=dict(text=f"{plain_text(x_title)} %{{x:,.6~g}}"))
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
    drawn = [one.look or look for one, look in zip(lines, styles(theme, [one.name for one in lines]))]
    order = sorted(range(len(lines)), key=lambda i: lines[i].name == highlight)
    for i in order:
        one, style = lines[i], drawn[i]
        if one.name == highlight:
            style = style | dict(width=3.2)
        elif highlight is not None:
            style = style | dict(width=1, color=see_through(theme.quiet, 0.45))
        _band(fig, one, style["color"], log_y)
        _line(fig, one, style, theme, log_y, together)
    _axis(fig, "x", lines, log_x, x_title)
    _axis(fig, "y", lines, log_y, y_title)
    return fig


def _positive(values: np.ndarray, log: bool) -> np.ndarray:
    return np.where(values > 0, values, np.nan) if log else values


def _band(fig: go.Figure, one: Curve, colour: str, log: bool) -> None:
    if one.low is None or len(one.x) < 2:
        return
    fill = see_through(colour, 0.14) if colour.startswith("#") else colour
    band = area(one.x, _positive(one.low, log), _positive(one.high, log), fill)
    known = np.isfinite(band["y"])
    fig.add_scatter(**band | {axis: band[axis][known].astype(np.float32) for axis in "xy"})


def _line(fig: go.Figure, one: Curve, style: dict, theme: Theme, log: bool, together: bool) -> None:
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
            hovertemplate=f"{name}: %{{y:.5~g}}{text.replace('<br>', ', ')}<extra></extra>"
            if together
            else f"{name}<br>%{{x:,.6~g}}: %{{y:.5~g}}{text}<extra></extra>",
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
        place(range=[low - pad, high + pad], **whole_axis(low, high))


def whole_axis(low: float, high: float, most: int = 6) -> dict:
    """Plotly's words for an axis with the ticks of ``whole_ticks``."""
    ticks = whole_ticks(low, high, most)
    return dict(tickvals=ticks, ticktext=[words.axis_number(t) for t in ticks])


def whole_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers between two values, at most ``most`` + 1."""
    if not high > low:
        return [low]
    rough = (high - low) / most
    power = 10.0 ** np.floor(np.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first = int(np.ceil(low / step - 1e-9))
    return [float(f"{i * step:.12g}") for i in range(first, int(np.floor(high / step + 1e-9)) + 1)]
