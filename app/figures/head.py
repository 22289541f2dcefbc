"""One KV group looked at closely: sizes of its weights, its channels along the head, its singular values."""

import numpy as np
import pandas as pd

from wisca_app.figures import words
from wisca_app.figures.template import Drawing, Theme, drawing, legible, log_axis, log_ticks, unit
from wisca_core.planning.head import HeadDetail

MOST_CHANNELS = 1000  # points drawn of a feed-forward block, which may have tens of thousands of channels


def histogram(detail: HeadDetail, *, theme: Theme, gains: bool = False, height: int = 360) -> Drawing:
    """log2 |w| in quarter octaves, one panel a side: outline before, filled after."""
    n = len(detail.roles)
    fig = drawing(theme, height)
    fig.update_layout(margin=dict(l=24, t=26, b=34, r=4), bargap=0)
    edges = [role.log2_edges for role in detail.roles if len(role.percent)]
    if not edges:
        fig.add_annotation(text="every value is zero or not finite", xref="paper", yref="paper", x=0.5, y=0.5)
        return fig
    low, high = min(e[0] for e in edges), max(e[-1] for e in edges)
    most = max(max(r.percent.max(), r.percent_after.max()) for r in detail.roles if len(r.percent))
    step = max(1, -(-round(high - low) // 5))
    ticks = [t for t in range(int(np.ceil(low)), int(high) + 1) if t % step == 0]
    panel = (1 - 0.14 * (n - 1)) / n
    for number, role in enumerate(detail.roles):
        axis = "" if number == 0 else str(number + 1)
        top = 1 - number * (panel + 0.14)
        colour = theme.role[role.role]
        if len(role.percent):
            centres = (role.log2_edges[:-1] + role.log2_edges[1:]) / 2
            fig.add_bar(
                x=centres,
                y=role.percent_after,
                width=0.25,
                name=f"{role.role} after",
                xaxis="x",
                yaxis=f"y{axis}",
                marker=dict(color=colour, opacity=0.8, line_width=0),
                hovertemplate="%{y:.2f} % after<extra></extra>",
            )
            x = np.concatenate([role.log2_edges, [role.log2_edges[-1]]])
            y = np.concatenate([role.percent, [role.percent[-1], 0]])
            fig.add_scatter(
                x=x,
                y=y,
                mode="lines",
                line=dict(shape="hv", color=theme.ink, width=1.3),
                name=f"{role.role} before",
                xaxis="x",
                yaxis=f"y{axis}",
                hovertemplate="%{y:.2f} % before<extra></extra>",
            )
        tail = (
            " gains"
            if gains
            else ""
            if role.role in ("a", "b", "up", "down")
            else f", {words.plural(role.n_heads, 'head')}"
        )
        fig.add_annotation(
            text=words.ROLES[role.role].capitalize() + tail,
            xref="x domain",
            x=0,
            yref=f"y{axis} domain",
            y=1,
            xanchor="left",
            yanchor="top",
            font=dict(size=13, color=legible(colour, theme)),
        )
        fig.update_layout(
            **{f"yaxis{axis}": dict(domain=[max(0.0, top - panel), top], range=[0, most * 1.12], nticks=4, anchor="x")}
        )
    unit(fig, "% per ¼ octave", dx=-24, dy=8)
    fig.add_annotation(
        text="outline before, filled after",
        xref="x domain",
        yref="y domain",
        x=1,
        y=1,
        xanchor="right",
        yanchor="bottom",
        yshift=8,
    )
    fig.update_layout(
        xaxis=dict(
            domain=[0, 1],
            anchor=f"y{n}" if n > 1 else "y",
            range=[low, high],
            tickvals=ticks,
            ticktext=[words.power_of_two(t) for t in ticks],
        )
    )
    fig.add_annotation(text="|w|", xref="paper", x=1, xanchor="right", yref="paper", y=0, yanchor="top", yshift=-16)
    return fig


def channels(detail: HeadDetail, *, theme: Theme) -> Drawing:
    """L1 norm of each rotary pair over its tokens per turn, or of each channel: dotted before, solid after."""
    fig = drawing(theme, 360)
    fig.update_layout(margin=dict(l=44, t=40, b=46))
    turns = detail.turns
    rotary = turns is not None and np.isfinite(turns).any()
    shown = np.isfinite(turns) if rotary else None
    place = "%{x:,.4~g} tokens per turn" if rotary else "channel %{x}"
    values = []
    for role in detail.roles:
        for y, kind in ((role.channel_l1, "before"), (role.channel_l1_after, "after")):
            y = np.where(np.isfinite(y) & (y > 0), y, np.nan)
            x = turns if rotary else np.arange(len(y))
            if rotary:
                x, y = x[shown], y[shown]
            elif role.role in ("up", "down"):
                x = np.unique(np.linspace(0, len(y) - 1, MOST_CHANNELS).round().astype(int))
                y = -np.sort(-y)[x]  # those that are not known sort last
            values.append(y)
            dotted = kind == "before"
            many = len(y) > 80
            fig.add_scatter(
                x=x,
                y=y,
                mode="lines" if dotted or many else "lines+markers",
                name=f"{words.ROLES[role.role]} {kind}",
                line=dict(color=theme.role[role.role], width=1.4, dash="dot" if dotted else "solid"),
                marker=dict(size=4, color=theme.role[role.role]),
                hovertemplate=f"{words.ROLES[role.role]} {kind}<br>%{{y:,.4~g}} at {place}<extra></extra>",
            )
    known = np.concatenate(values)
    known = known[np.isfinite(known)]
    if not len(known):
        fig.add_annotation(text="no channel has a finite norm above zero", xref="paper", yref="paper", x=0.5, y=0.5)
        return fig
    fig.update_layout(yaxis=log_axis(known.min() / 10**0.12, known.max() * 10**0.12))
    _name_curves(fig, detail, values, theme)
    if rotary:
        first, last = np.log10(turns[shown].min()), np.log10(turns[shown].max())
        ticks, labels = log_ticks(10**first, 10 ** max(last, first + 0.5), most=5)
        fig.update_layout(
            xaxis=dict(
                type="log",
                range=[first - 0.08, max(last, first + 0.5) + 0.08],
                tickvals=ticks,
                ticktext=labels,
                title=dict(text="tokens per turn of the rotary pair", standoff=14),
            )
        )
    else:
        names = {"a": "rank channel", "up": "channels, the heaviest first"}
        name = names.get(detail.roles[0].role, "channel of the head")
        fig.update_layout(xaxis=dict(title=dict(text=name, standoff=14), nticks=6))
    unit(fig, f"L1 norm of {'a rotary pair' if rotary else 'a channel'}", dx=-40, dy=12)
    return fig


def _name_curves(fig: Drawing, detail: HeadDetail, values: list[np.ndarray], theme: Theme) -> None:
    """Names at the two dotted curves, above the upper and below the lower one."""
    if len(detail.roles) != 2 or any(not np.isfinite(v).any() for v in values):
        return
    upper = int(np.nanmedian(values[0]) < np.nanmedian(values[2]))
    for number, role in enumerate(detail.roles):
        before = values[2 * number]
        part = before[: max(1, len(before) // 3)]
        part = part[np.isfinite(part)]
        if len(part):
            up = number == upper
            fig.add_annotation(
                text=f"{words.ROLES[role.role]} before",
                xref="x domain",
                x=0.02,
                xanchor="left",
                yref="y",
                y=np.log10(part.max() if up else part.min()),
                yanchor="bottom" if up else "top",
                font=dict(size=12, color=theme.word[role.role]),
            )


def spectrum(detail: HeadDetail, *, theme: Theme) -> Drawing:
    """Singular values of both matrices, dotted before and solid after, and of their product, one curve for both."""
    fig = drawing(theme, 360)
    fig.update_layout(margin=dict(l=44, t=40, b=46))
    if not detail.spectrum:
        fig.add_annotation(text="none", xref="paper", yref="paper", x=0.5, y=0.5)
        return fig
    roles = {side: role.role for side, role in zip(("left", "right"), detail.roles)}
    largest = max(float(v.max()) for v in detail.spectrum.values() if len(v))
    floor = largest * 1e-6  # below it only rounding is left
    seen = []
    for side, name, colour, dash in (
        ("left", "before", "", "dot"),
        ("right", "before", "", "dot"),
        ("left_after", "after", "", "solid"),
        ("right_after", "after", "", "solid"),
        ("product", "", theme.ink, "solid"),
    ):
        role = roles.get(side.split("_")[0])
        y = np.where(detail.spectrum[side] > floor, detail.spectrum[side], np.nan)
        seen.append(y)
        label = f"{words.ROLES[role]} {name}" if role else "product, before = after"
        fig.add_scatter(
            x=np.arange(1, len(y) + 1),
            y=y,
            mode="lines",
            name=label,
            line=dict(color=theme.role[role] if role else colour, width=1.6 if dash == "solid" else 1.4, dash=dash),
            hovertemplate=f"{label}<br>%{{y:,.3~g}}, number %{{x}}<extra></extra>",
        )
    known = np.concatenate(seen)
    known = known[np.isfinite(known)]
    if len(known):
        fig.update_layout(yaxis=log_axis(known.min() / 10**0.08, known.max() * 10**0.1))
        _name_product(fig, seen, theme)
    fig.update_layout(
        xaxis=dict(title=dict(text="number of the singular value", standoff=14), nticks=6, rangemode="tozero")
    )
    unit(fig, "singular value", dx=-40, dy=12)
    return fig


def _name_product(fig: Drawing, curves: list[np.ndarray], theme: Theme) -> None:
    """ "product" beside its curve (the last of ``curves``), where no other curve is near on the side the name is on."""
    product, others = np.log10(curves[-1]), np.log10(np.stack(curves[:-1]))
    first, last = int(len(product) * 0.1), max(1, int(len(product) * 0.45))
    best = (-1.0, 0, "bottom")
    for i in range(first, last):
        away = others[:, i] - product[i]
        for anchor, side in (("bottom", away[away > 0]), ("top", -away[away <= 0])):
            room = float(np.nanmin(side)) if len(side) else 9.0
            # a falling curve runs through a name below and to the right of it
            best = max(best, (room if anchor == "bottom" else room / 2, i, anchor)) if np.isfinite(room) else best
    _, at, anchor = best
    if len(product) and np.isfinite(product[at]):
        fig.add_annotation(
            text="product",
            x=at + 1,
            y=product[at],
            xref="x",
            yref="y",
            xanchor="left" if anchor == "bottom" else "right",
            yanchor=anchor,
            xshift=3 if anchor == "bottom" else -3,
            font=dict(size=12, color=theme.ink),
        )


def histogram_table(detail: HeadDetail) -> pd.DataFrame:
    """One row a bin and side: log2 |w| from, to, percent before and after."""
    parts = [
        pd.DataFrame(
            {
                "side": words.ROLES[r.role],
                "tensor": r.tensor,
                "log2_from": r.log2_edges[:-1],
                "log2_to": r.log2_edges[1:],
                "percent_before": r.percent,
                "percent_after": r.percent_after,
            }
        )
        for r in detail.roles
    ]
    return pd.concat(parts, ignore_index=True)


def channel_table(detail: HeadDetail) -> pd.DataFrame:
    """One row a rotary pair (or channel) and side."""
    parts = []
    for r in detail.roles:
        n = len(r.channel_l1)
        parts.append(
            pd.DataFrame(
                {
                    "side": words.ROLES[r.role],
                    "tensor": r.tensor,
                    "number": np.arange(n),
                    "tokens_per_turn": np.full(n, np.nan) if detail.turns is None else detail.turns,
                    "l1_before": r.channel_l1,
                    "l1_after": r.channel_l1_after,
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def spectrum_table(detail: HeadDetail) -> pd.DataFrame:
    """One row a singular value; columns left, right, left_after, right_after, product."""
    return pd.DataFrame({"number": np.arange(1, len(next(iter(detail.spectrum.values()), [])) + 1), **detail.spectrum})
