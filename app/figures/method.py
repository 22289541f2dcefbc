"""Pictures of the method: the valley of the toy loss, what grouped queries do to the ratio, two trainings that are
one.
"""

import numpy as np
import pandas as pd

from wisca_app.figures import words
from wisca_app.figures.template import Drawing, Theme, blend, drawing, legible, log_axis, octave_ticks, unit
from wisca_core.landscape import Descent

REACH = 2.8  # both axes of the landscape go from 0 to here


def landscape(balanced: Descent, unbalanced: Descent, *, theme: Theme) -> Drawing:
    """Lines of equal loss a factor 4 apart, the valley QK = 1, and a path from each start."""
    fig = drawing(theme, 420)
    fig.update_layout(margin=dict(l=36, r=12, t=30, b=44))
    axis = np.linspace(0, REACH, 141)
    loss = (axis[None, :] * axis[:, None] - 1.0) ** 2
    shades = [[i / 6, blend(theme.middle, theme.page, i / 6)] for i in range(7)]
    fig.add_contour(
        x=axis.astype(np.float32),
        y=axis.astype(np.float32),
        z=np.log2(loss + 1e-4).astype(np.float32),
        contours=dict(start=-12, end=6, size=2, coloring="heatmap"),
        colorscale=shades,
        showscale=False,
        line=dict(width=1, color=theme.border),
        hoverinfo="skip",
    )
    valley = np.linspace(1 / REACH, REACH, 200)
    fig.add_scatter(
        x=valley,
        y=1 / valley,
        mode="lines",
        name="valley",
        line=dict(color=theme.ink, width=2.4),
        hovertemplate="valley, QK = C<extra></extra>",
    )
    fig.add_scatter(
        x=[0, REACH],
        y=[0, REACH],
        mode="lines",
        name="balance",
        hoverinfo="skip",
        line=dict(color=theme.quiet, width=1, dash="dot"),
    )
    for path, colour, name in (
        (balanced, theme.ink, "balanced start"),
        (unbalanced, theme.role["q"], "unbalanced start"),
    ):
        fig.add_scatter(
            x=path.q,
            y=path.k,
            mode="lines+markers",
            name=name,
            line=dict(color=colour, width=1.4),
            marker=dict(
                size=[11] + [6] * (len(path.q) - 1),
                color=[theme.page] + [colour] * (len(path.q) - 1),
                line=dict(color=colour, width=1.6),
            ),
            hovertemplate=f"{name}<br>Q %{{x:.3f}}, K %{{y:.3f}}<extra></extra>",
        )
        right = path.q[0] > REACH / 2
        fig.add_annotation(
            text=name,
            x=float(path.q[0]),
            y=float(path.k[0]),
            xanchor="right" if right else "left",
            yanchor="top",
            xshift=-10 if right else 10,
            yshift=-4,
            font=dict(color=legible(colour, theme), size=12),
        )
    fig.add_annotation(text="valley, QK = C", x=0.62, y=2.2, xanchor="left", font=dict(color=theme.ink, size=12))
    fig.add_annotation(text="|Q| = |K|", x=2.55, y=2.62, xanchor="right")
    ticks = [0, 0.5, 1, 1.5, 2, 2.5]
    fig.update_layout(
        xaxis=dict(range=[0, REACH], tickvals=ticks, title=dict(text="Q"), constrain="domain"),
        yaxis=dict(range=[0, REACH], tickvals=ticks, scaleanchor="x", showgrid=False, constrain="domain"),
    )
    unit(fig, "K", dx=-16)
    return fig


def ratio_by_group_size(group_size: float | None, *, theme: Theme) -> Drawing:
    """Ratio of the L1 sums at initialisation against the query heads per KV head; ``group_size``: of the open model."""
    fig = drawing(theme, 300)
    fig.update_layout(margin=dict(l=40, r=12, t=34, b=46))
    g = np.array([1, 2, 4, 8, 16, 32])
    fig.add_scatter(
        x=np.log2(g),
        y=np.log2(g),
        mode="lines+markers",
        line=dict(color=theme.role["q"], width=1.6),
        marker=dict(size=8, color=theme.role["q"]),
        text=[f"{n} query heads a KV head: Wq {n}× heavier, Adam rate {words.digits(n**0.5, 2)}×" for n in g],
        hovertemplate="%{text}<extra></extra>",
    )
    if group_size:
        at = float(np.log2(group_size))
        fig.add_scatter(
            x=[at], y=[at], mode="markers", marker=dict(size=11, color=theme.ink), hoverinfo="skip", name="this model"
        )
        fig.add_annotation(text="this model", x=at, y=at, xanchor="left", yanchor="top", xshift=8, yshift=-2)
    ticks, labels = octave_ticks(0, 5)
    fig.update_layout(
        xaxis=dict(tickvals=ticks, ticktext=[str(2**t) for t in ticks], title=dict(text="query heads per KV head, g")),
        yaxis=dict(tickvals=ticks, ticktext=labels, range=[-0.3, 5.3]),
    )
    unit(fig, "query over key at the start", dx=-36)
    return fig


def losses(table: pd.DataFrame, *, theme: Theme) -> Drawing:
    """Loss over the steps, log axis: baseline quiet, WISCA a line, the same rates as rings on it.

    ``table``: columns step, baseline, wisca, rates (nats).
    """
    fig = drawing(theme, 320)
    fig.update_layout(margin=dict(l=40, r=76, t=34, b=44))
    step = table["step"].to_numpy()
    for name, colour in (("baseline", theme.quiet), ("wisca", theme.ink)):
        fig.add_scatter(
            x=step,
            y=table[name],
            mode="lines",
            name=name,
            line=dict(color=colour, width=1.6),
            hovertemplate=f"{name}, step %{{x}}<br>%{{y:.4f}} nats<extra></extra>",
        )
    every = max(1, len(step) // 14)
    fig.add_scatter(
        x=step[::every],
        y=table["rates"][::every],
        mode="markers",
        name="rates",
        marker=dict(size=8, color="rgba(0,0,0,0)", line=dict(color=theme.ink, width=1.4)),
        hovertemplate="the rates, step %{x}<br>%{y:.4f} nats<extra></extra>",
    )
    values = table[["baseline", "wisca", "rates"]].to_numpy()
    low, high = values.min() * 0.98, values.max() * 1.02
    last = {name: float(np.log10(table[name].iloc[-1])) for name in ("wisca", "baseline")}
    apart = 0.05 * np.log10(high / low) / 2
    up = 1 if last["wisca"] >= last["baseline"] else -1
    for name, text, shift in (("wisca", "WISCA<br>= the rates", up), ("baseline", "baseline", -up)):
        fig.add_annotation(
            text=text,
            x=float(step[-1]),
            y=last[name] + shift * apart,
            xanchor="left",
            yanchor="bottom" if shift > 0 else "top",
            xshift=6,
            align="left",
            font=dict(size=12, color=theme.ink if name == "wisca" else theme.text),
        )
    fig.update_layout(xaxis=dict(title=dict(text="step")), yaxis=log_axis(low, high, most=5))
    unit(fig, "loss, nats per byte", dx=-36)
    return fig


def distances(table: pd.DataFrame, *, theme: Theme) -> Drawing:
    """How far the baseline and the rates are from WISCA, on a log axis: what separates the latter is rounding."""
    fig = drawing(theme, 320)
    fig.update_layout(margin=dict(l=48, r=76, t=34, b=44))
    step = table["step"].to_numpy()
    for name, colour, dash in (("baseline", theme.quiet, "solid"), ("rates", theme.ink, "dot")):
        away = np.abs(table[name] - table["wisca"]).to_numpy()
        away = np.maximum(away, 1e-16)
        fig.add_scatter(
            x=step,
            y=away,
            mode="lines",
            name=name,
            line=dict(color=colour, width=1.4, dash=dash),
            hovertemplate=f"{name}, step %{{x}}<br>%{{y:.1e}} nats<extra></extra>",
        )
        fig.add_annotation(
            text="the rates" if name == "rates" else name,
            x=float(step[-1]),
            y=float(np.log10(away[-1])),
            xanchor="left",
            xshift=6,
        )
    ticks = [1.0, 1e-4, 1e-8, 1e-12, 1e-16]
    labels = ["1", *(f"10{words.superscript(p)}" for p in (-4, -8, -12, -16))]
    fig.update_layout(
        xaxis=dict(title=dict(text="step")), yaxis=dict(type="log", range=[-16.6, 0.4], tickvals=ticks, ticktext=labels)
    )
    unit(fig, "distance to WISCA, nats", dx=-44)
    return fig
