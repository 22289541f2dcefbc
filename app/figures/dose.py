"""Dose and response of a comparison, and the learning rates its arms were chosen from."""

import math
from collections.abc import Mapping, Sequence

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from wisca_app.figures import words
from wisca_app.figures.compare import labels, signed_ticks, styles
from wisca_app.figures.template import Theme, figure, legible, see_through, unit
from wisca_core.comparison.report import Report, interval, is_clear
from wisca_core.comparison.spec import Arm
from wisca_core.comparison.statistics import Effect, paired_interval
from wisca_core.words import join_names, signed_number

_HALVES = {0.5: "½", -0.5: "−½", 1.5: "1½", -1.5: "−1½"}


def doses(report: Report, arms: Sequence[Arm]) -> list[tuple[float, Effect]]:
    """(strength, effect), ascending: arms that differ from each other in their strength alone, at the baseline's
    rate.
    """
    found: dict[tuple, dict[float, Effect]] = {}
    by_name = {arm.name: arm for arm in arms}
    for e in report.main:
        arm = by_name[e.arm]
        if arm.kind in ("rates", "balance") and e.loss.n and set(e.rates) == set(e.baseline_rates):
            alike = (arm.kind, arm.clip_norm, arm.pairs, arm.every, arm.norm, arm.granularity, arm.method, e.rate)
            found.setdefault(alike, {}).setdefault(arm.strength, e)
    most = max(found.values(), key=len, default={})
    return sorted(most.items()) if len(most) > 1 else []


def dose(points: Sequence[tuple[float, Effect]], report: Report, useful: float, theme: Theme) -> go.Figure:
    """Difference to the baseline against the strength: diamond and 95 % bar, seeds as dots at its left, the baseline a
    ring at 0, and where a useful gain would lie.
    """
    fig = figure(theme, 360)
    ends = [v for _, e in points for v in (*e.differences, e.loss.low, e.loss.high) if math.isfinite(v)]
    span = max(*map(abs, ends), useful * 1.6)
    low, high = min(*ends, -1.6 * useful) - 0.06 * span, max(*ends, 0.0) + 0.1 * span
    if useful:
        fig.add_hrect(y0=low, y1=-useful, fillcolor=theme.grid, line_width=0, layer="below")
        fig.add_annotation(
            text="a useful gain would lie here",
            x=0,
            y=(low - useful) / 2,
            showarrow=False,
            font=dict(size=11, color=theme.text),
        )
    fig.add_hline(y=0, line=dict(color=theme.quiet, width=1), layer="below")
    means = sorted([*((s, e.loss.mean) for s, e in points), (0.0, 0.0)])
    fig.add_scatter(
        x=[s for s, _ in means],
        y=[m for _, m in means],
        mode="lines",
        line=dict(color=theme.quiet, width=1),
        hoverinfo="skip",
    )
    for strength, e in points:
        texts = [f"seed {s}: {signed_number(d, report.digits)} {report.unit}" for s, d in zip(e.seeds, e.differences)]
        fig.add_scatter(
            x=[strength - 0.13] * len(texts),
            y=e.differences,
            mode="markers",
            customdata=texts,
            marker=dict(size=4, color=see_through(theme.text, 0.6)),
            hovertemplate="%{customdata}<extra></extra>",
        )
        if e.loss.n > 1:
            fig.add_scatter(
                x=[strength] * 2,
                y=[e.loss.low, e.loss.high],
                mode="lines",
                line=dict(color=theme.ink, width=2.5),
                hoverinfo="skip",
            )
        said = (
            f"strength {strength:g}: {signed_number(e.loss.mean, report.digits)} {report.unit}"
            f"<br>95 % {interval(e, report.digits)}<br>better in {e.n_better} of {e.loss.n}"
        )
        mark = dict(symbol="diamond", size=9, color=theme.ink, line=dict(color=theme.page, width=1))
        fig.add_scatter(
            x=[strength], y=[e.loss.mean], mode="markers", marker=mark, hovertemplate=said + "<extra></extra>"
        )
    ring = dict(symbol="circle", size=10, color=theme.page, line=dict(color=theme.quiet, width=1.8))
    fig.add_scatter(x=[0], y=[0], mode="markers", marker=ring, hovertemplate="baseline<extra></extra>")
    names = {-1.0: "inverse rates", 0.0: "baseline", 1.0: "WISCA's rates"}
    ticks = sorted({0.0, *(s for s, _ in points)})
    shown = [_HALVES.get(s, words.minus(f"{s:g}")) + (f"<br>{names[s]}" if s in names else "") for s in ticks]
    room = 0.18 * (ticks[-1] - ticks[0])  # for the name under the outermost, on a phone too
    fig.update_xaxes(range=[ticks[0] - room, ticks[-1] + room])
    fig.update_xaxes(tickvals=ticks, ticktext=shown, title=dict(text="strength", standoff=8))
    marks = [m for m in signed_ticks(span) if low <= m <= high]
    fig.update_yaxes(range=[low, high], tickvals=marks, ticktext=[words.minus(f"{m:+g}") if m else "0" for m in marks])
    fig.update_layout(margin=dict(l=58, r=12, t=30, b=66))
    unit(fig, f"difference to the baseline, {report.unit}", dx=-54)
    return fig


def dose_finding(points: Sequence[tuple[float, Effect]]) -> str:
    """Which way the loss goes on either side of no change, as far as an interval says so."""
    ways = {}
    for side, holds in (("up", lambda s: s > 0), ("down", lambda s: s < 0)):
        clear = [e.loss.mean for s, e in points if holds(s) and is_clear(e)]
        ways[side] = {"rises" if mean > 0 else "falls" for mean in clear}
    up, down = ways["up"], ways["down"]
    if not up and not down:
        return "No strength can be told from the baseline"
    if up == down and len(up) == 1:
        lead = f"Loss {up.copy().pop()} both ways"
        furthest = max((s for s in points if is_clear(s[1])), key=lambda one: abs(one[1].loss.mean))
        return f"{lead}, most {'with balance' if furthest[0] > 0 else 'the other way'}"
    parts = [
        f"{way.copy().pop()} {words_}"
        for way, words_ in ((up, "with balance"), (down, "the other way"))
        if len(way) == 1
    ]
    return f"Loss {', '.join(parts)}" if parts else "Loss goes up and down with the strength"


def sweep(
    table: pd.DataFrame,
    tested: Mapping[str, float],
    arms: Sequence[Arm],
    theme: Theme,
    unit_of_loss: str,
    digits: int = 3,
) -> go.Figure:
    """Final loss against the learning rate: runs as dots, means as lines, a ring at the rate tested; below it a bracket
    an arm, from the rate under its best to the one above.
    """
    fair = table[~table["diverged"]]
    shown = [arm for arm in arms if arm.name in set(fair["arm"])]
    fig = figure(theme, 360)
    sub = make_subplots(rows=2, cols=1, shared_xaxes=True, row_heights=[0.84, 0.16], vertical_spacing=0.03, figure=fig)
    names, looks = labels(arms), styles(arms, theme)
    rates = sorted(table["rate"].unique())
    means = {arm.name: fair[fair["arm"] == arm.name].groupby("rate")["final"].mean() for arm in shown}
    for i, arm in enumerate(shown):
        colour, dash = looks[arm.name]
        rows, mean = fair[fair["arm"] == arm.name], means[arm.name]
        texts = [
            f"{names[arm.name]}<br>rate {r:g}, seed {s}: {v:.{digits}f}"
            for r, s, v in zip(rows["rate"], rows["seed"], rows["final"])
        ]
        dots = dict(size=4, color=see_through(colour, 0.7))
        sub.add_scatter(
            x=rows["rate"],
            y=rows["final"],
            mode="markers",
            marker=dots,
            customdata=texts,
            hovertemplate="%{customdata}<extra></extra>",
            row=1,
            col=1,
        )
        sub.add_scatter(
            x=mean.index,
            y=mean,
            mode="lines",
            line=dict(color=colour, dash=dash, width=1.8),
            hovertemplate=names[arm.name] + "<br>rate %{x:g}: %{y:.3f}<extra></extra>",
            row=1,
            col=1,
        )
        best = tested.get(arm.name, float(mean.idxmin()))
        if best in mean:
            ring = dict(symbol="circle", size=10, color=theme.page, line=dict(color=colour, width=1.8))
            sub.add_scatter(x=[best], y=[mean[best]], mode="markers", marker=ring, hoverinfo="skip", row=1, col=1)
        sub.add_annotation(
            x=math.log10(mean.index[-1]),
            y=float(mean.iloc[-1]),
            text=names[arm.name],
            showarrow=False,
            xanchor="left",
            xshift=8,
            font=dict(size=11, color=legible(colour, theme)),
            row=1,
            col=1,
        )
        ends = bracket(mean)
        sub.add_scatter(
            x=ends,
            y=[-i] * len(ends),
            mode="lines+markers",
            line=dict(color=colour, width=1.5),
            marker=dict(symbol="line-ns", size=8, line=dict(color=colour, width=1.5)),
            hoverinfo="skip",
            row=2,
            col=1,
        )
        sub.add_scatter(
            x=[best],
            y=[-i],
            mode="markers",
            hoverinfo="skip",
            marker=dict(symbol="circle", size=7, color=theme.page, line=dict(color=colour, width=1.5)),
            row=2,
            col=1,
        )
    span = math.log10(rates[-1] / rates[0]) if len(rates) > 1 else 1.0
    # room for the longest name behind the last rate, of the 274 px that are left on a phone
    for_names = min(0.45, (5.6 * max((len(names[arm.name]) for arm in shown), default=0) - 4) / 274)
    room = 1.06 * for_names / (1 - for_names)
    limits = [math.log10(rates[0]) - 0.06 * span, math.log10(rates[-1]) + room * span]
    base = next((arm.name for arm in arms if arm.kind == "none"), "")
    other = next((arm.name for arm in shown if arm.kind == "balance"), "")
    below = []
    for rate in rates:
        has = base in means and other in means and rate in means[base] and rate in means[other]
        below.append(
            f"{rate:g}" + (f"<br>{signed_number(means[other][rate] - means[base][rate], digits)}" if has else "")
        )
    sub.update_xaxes(type="log", range=limits, showgrid=False, showticklabels=False, row=1, col=1)
    sub.update_xaxes(type="log", range=limits, tickvals=rates, ticktext=below, row=2, col=1)
    sub.update_xaxes(title=dict(text="learning rate; below it the difference", standoff=8), row=2, col=1)
    sub.update_yaxes(tickformat=".2f", row=1, col=1)
    sub.update_yaxes(
        range=[-len(shown) + 0.4, 0.6],
        tickvals=[-(len(shown) - 1) / 2],
        ticktext=["best within"],
        showgrid=False,
        row=2,
        col=1,
    )
    sub.update_layout(margin=dict(l=72, r=12, t=30, b=66))
    unit(sub, f"final loss, {unit_of_loss}", dx=-68)
    return sub


def bracket(means: pd.Series) -> list[float]:
    """From the rate under the best to the one above it; only as far as rates were tried.

    >>> bracket(pd.Series({0.001: 2.3, 0.002: 2.1, 0.004: 2.0, 0.008: 2.1}))
    [0.002, 0.008]
    """
    at, rates = int(means.to_numpy().argmin()), [float(r) for r in means.index]
    return [rates[max(0, at - 1)], rates[min(len(rates) - 1, at + 1)]]


def sweep_finding(table: pd.DataFrame, arms: Sequence[Arm]) -> str:
    """Whether the bests are inside, and where the other arm is better by more than the seeds' spread."""
    fair = table[~table["diverged"]]
    means = {arm.name: fair[fair["arm"] == arm.name].groupby("rate")["final"].mean() for arm in arms}
    base = next(arm.name for arm in arms if arm.kind == "none")
    if not len(means.get(base, ())):
        return "No run of the baseline ended below its start"
    ends = bracket(means[base])
    best = float(means[base].idxmin())
    if best in (ends[0], ends[-1]) and len(means[base]) > 1:
        return (
            f"The baseline is best at the {'highest' if best == ends[-1] else 'lowest'} rate tried: no bracket, no "
            "answer"
        )
    other = next((arm.name for arm in arms if arm.kind == "balance" and len(means[arm.name])), "")
    both = [rate for rate in means[base].index if other and rate in means[other]]
    if not other or not both:
        return f"The baseline is best at {best:g}, inside the rates tried"
    final = fair.set_index(["arm", "rate", "seed"])["final"].sort_index()
    better = [rate for rate in both if paired_interval((final[other, rate] - final[base, rate]).dropna()).high < 0]
    if not better:
        return "At no rate does it look better, beyond the seeds' spread"
    if max(better) < best:
        return "Only at too low a rate does it look better"
    return (
        "At every rate it looks better"
        if len(better) == len(both)
        else f"It looks better at {join_names([f'{r:g}' for r in better])}"
    )
