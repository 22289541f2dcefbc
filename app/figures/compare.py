"""Figures of a comparison: curves with their paired difference, forest, final loss against the rate, ratio of norms.

An arm that touches one pair takes that pair's left role; all others are ink or grey and differ in their dashes.
"""

import math
from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from wisca_app.figures import words
from wisca_app.figures.template import Theme, area, figure, log_axis, log_ticks, octave_ticks, see_through, unit
from wisca_core.comparison.arm_words import title, titles
from wisca_core.comparison.report import Report, interval, is_clear, stands
from wisca_core.comparison.spec import Arm
from wisca_core.comparison.statistics import Effect
from wisca_core.words import join_names, signed_number

_DASHES = ("longdash", "longdashdot", "dash", "dot", "4px 2px 1px 2px", "8px 2px 2px 2px", "2px 2px")
LEGEND = dict(
    orientation="h", xref="container", yref="container", x=0, y=1, xanchor="left", yanchor="top", font=dict(size=12)
)


def _top(arms: Sequence[Arm]) -> int:
    """Room for the legend, px: on a phone it has two entries a row."""
    return 64 + 16 * math.ceil(len(arms) / 2)


def label(arm: Arm) -> str:
    """An arm of our own in words, with how often it acts; a user's arm by its name."""
    return title(arm) + (
        f", every {arm.every:,}" if arm.kind == "balance" and arm.every and arm.name == "wisca" else ""
    )


def labels(arms: Sequence[Arm]) -> dict[str, str]:
    return {arm.name: label(arm) for arm in arms}


def styles(arms: Sequence[Arm], theme: Theme) -> dict[str, tuple[str, str]]:
    """Arm name -> (colour, plotly's dash)."""
    out, others = {}, 0
    for arm in arms:
        if arm.kind == "none":
            out[arm.name] = (theme.quiet, "solid")
        elif arm.kind == "placebo":
            out[arm.name] = (theme.quiet, "dot")
        elif arm.kind == "inverse" or (arm.kind == "rates" and arm.strength == -1):
            out[arm.name] = (theme.text, "dashdot" if arm.kind == "inverse" else "1px 3px")
        elif arm.name in ("wisca", "lora_ab"):
            out[arm.name] = (theme.ink, "solid")
        elif arm.every is None and (theme.ink, "dash") not in out.values():
            out[arm.name] = (theme.ink, "dash")
        elif (
            len(arm.pairs) == 1
            and arm.pairs[0] in words.PAIR_ROLES
            and (colour := _role(arm, theme))
            and (colour, "solid") not in out.values()
        ):
            out[arm.name] = (colour, "solid")
        else:
            out[arm.name] = (theme.text, _DASHES[others % len(_DASHES)])
            others += 1
    return out


def _role(arm: Arm, theme: Theme) -> str | None:
    """The left role of an arm's one pair, where that role has a colour."""
    return theme.role.get(words.PAIR_ROLES[arm.pairs[0]][0])


def curves(
    bands: pd.DataFrame,
    gaps: pd.DataFrame,
    arms: Sequence[Arm],
    theme: Theme,
    steps: int,
    unit_of_loss: str,
    digits: int = 3,
) -> go.Figure:
    """Validation loss (mean, lowest to highest seed) above the paired difference (mean, 95 % where there are two
    seeds).
    """
    fig = figure(theme, 440 + _top(arms), showlegend=True, legend=LEGEND)
    sub = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.13, figure=fig)
    names, looks = labels(arms), styles(arms, theme)
    for arm in arms:
        colour, dash = looks[arm.name]
        rows = bands[bands["arm"] == arm.name].sort_values("step")
        if arm.kind == "none" or arm.name in ("wisca", "lora_ab"):
            _band(sub, rows, colour, 1)
        hover = f"%{{customdata}}<br>step %{{x:,}}: %{{y:.{digits}f}} {unit_of_loss}<extra></extra>"
        _line(sub, rows, names[arm.name], colour, dash, 1, hover, legend=True)
        rows = gaps[gaps["arm"] == arm.name].sort_values("step")
        if len(rows):
            if arm.kind == "balance" and arm.name == next(a.name for a in arms if a.kind == "balance"):
                _band(sub, rows.dropna(), colour, 2)
            texts = [_gap_words(names[arm.name], row, unit_of_loss, digits) for row in rows.itertuples()]
            _line(sub, rows, names[arm.name], colour, dash, 2, "%{customdata}<extra></extra>", texts=texts)
    sub.add_hline(y=0, line=dict(color=theme.border, width=1), row=2, col=1, layer="below")
    sub.update_yaxes(**log_axis(*_loss_range(bands)), row=1, col=1)
    span = _span(gaps)
    marks = signed_ticks(span)
    sub.update_yaxes(range=[-span, span], tickvals=marks, ticktext=[_signed_tick(v) for v in marks], row=2, col=1)
    sub.update_xaxes(range=[0, steps], tickformat=",", showticklabels=False, row=1, col=1)
    sub.update_xaxes(range=[0, steps], tickformat=",", row=2, col=1)
    sub.update_xaxes(title=dict(text="step", standoff=10), row=2, col=1)
    sub.update_layout(margin=dict(l=58, r=12, t=_top(arms), b=48))
    unit(sub, f"validation loss, {unit_of_loss}", dx=-54)
    unit(sub, f"difference to the baseline, {unit_of_loss}; below 0 is better", "2", dx=-54)
    return sub


def _loss_range(bands: pd.DataFrame) -> tuple[float, float]:
    """Of the loss panel: what comes after the first tenth of the run fills it, since the fall at the start would
    flatten the bands and what lies between the arms; the start is cut off above.
    """
    late = bands[bands["step"] > bands["step"].max() / 10] if len(bands) else bands
    shown = late if len(late) else bands
    if shown.empty:
        return 1.0, 6.0
    return 0.99 * float(shown["low"].min()), 1.01 * float(shown["high"].max())


def _span(gaps: pd.DataFrame) -> float:
    """Half the height of the difference panel: the later nine tenths of the run decide, so the wide first intervals do
    not flatten it.
    """
    late = gaps[gaps["step"] > gaps["step"].max() / 10] if len(gaps) else gaps
    values = late[["mean", "low", "high"]].abs().to_numpy().ravel() if len(late) else []
    return max(1.1 * max((v for v in values if math.isfinite(v)), default=0.02), 0.002)


def signed_ticks(span: float) -> list[float]:
    """Zero and one or two round values on either side of it, inside ``span``.

    >>> signed_ticks(0.13)
    [-0.1, -0.05, 0.0, 0.05, 0.1]
    """
    power = 10.0 ** math.floor(math.log10(span))
    step = next(m * power for m in (5, 2, 1, 0.5) if m * power <= span * 0.55)
    n = int(span / step + 1e-9)
    return [round(i * step, 12) for i in range(-n, n + 1)]


def _signed_tick(value: float) -> str:
    return words.minus(f"{value:+g}") if value else "0"


def _gap_words(name: str, row, unit_of_loss: str, digits: int) -> str:
    between = (
        f"<br>95 % {signed_number(row.low, digits)} to {signed_number(row.high, digits)}"
        if math.isfinite(row.low)
        else ""
    )
    return (
        f"{name}<br>step {row.step:,.0f}: {signed_number(row.mean, digits)} "
        f"{unit_of_loss}{between}<br>{words.plural(row.n, 'seed')}"
    )


def _line(fig, rows, name, colour, dash, row, hover, legend=False, texts=None, width=1.8) -> None:
    """``row``: of the panels, None where there is one."""
    fig.add_scatter(
        x=rows["step"],
        y=rows["mean"],
        mode="lines",
        name=name,
        line=dict(color=colour, dash=dash, width=width),
        showlegend=legend,
        customdata=texts if texts is not None else [name] * len(rows),
        hovertemplate=hover,
        legendgroup=name,
        row=row,
        col=row and 1,
    )


def _band(fig, rows, colour, row) -> None:
    fig.add_scatter(**area(rows["step"], rows["low"], rows["high"], see_through(colour, 0.16)), row=row, col=1)


def curves_finding(report: Report | None, arms: Sequence[Arm], rate: float | None) -> str:
    """The chart's title, about the rate that is shown. Only with one rate is that what the correction is about."""
    if report is None or report.grade == "none":
        return "Loss and its paired difference so far" if report is None else "Loss and its paired difference"
    shown = [e for e in report.effects if e.rate == rate] if rate else list(report.main)
    apart = [e for e in shown if is_clear(e)]
    if report.best and rate:
        lead = f"At rate {rate:g} "
        return lead + (
            f"{_directions(apart, arms)}, before any correction"
            if apart
            else "no arm can be told from the baseline at the end"
        )
    clear = [e for e in apart if stands(e)]
    if clear:
        return _directions(clear, arms)
    after = f", once corrected for {len(shown)} comparisons" if apart else ""
    return f"At the end no arm can be told from the baseline{after}"


def _directions(effects: Sequence[Effect], arms: Sequence[Arm]) -> str:
    """ "QK + VO ends lower, Inverse scaling higher" than the baseline."""
    names, parts = titles(arms), []
    for word in ("lower", "higher"):
        found = [names[e.arm] for e in effects if (e.loss.mean < 0) == (word == "lower")]
        if found:
            parts.append(f"{join_names(found)} {'' if parts else 'ends ' if len(found) == 1 else 'end '}{word}")
    return ", ".join(parts)


def forest(report: Report, arms: Sequence[Arm], theme: Theme) -> go.Figure:
    """One row an arm: bar (95 %), diamond (mean), seeds below; the placebo's spread as a band."""
    effects, noise, digits, nats = report.main, report.noise, report.digits, report.unit
    names, looks = labels(arms), styles(arms, theme)
    effects = list(reversed(effects))
    fig = figure(theme, 92 + 62 * len(effects))
    if noise:
        fig.add_vrect(x0=noise[0], x1=noise[1], fillcolor=theme.grid, line_width=0, layer="below")
    fig.add_vline(x=0, line=dict(color=theme.quiet, width=1), layer="below")
    ticktext = []
    for i, e in enumerate(effects):
        colour, _ = looks[e.arm]
        rate = "" if e.rate is None or len({x.rate for x in effects}) == 1 else f"<br>rate {e.rate:g}"
        ticktext.append(names[e.arm].replace(", ", ",<br>") + rate)
        if e.loss.n > 1:
            fig.add_scatter(
                x=[e.loss.low, e.loss.high],
                y=[i + 0.1] * 2,
                mode="lines",
                line=dict(color=colour, width=3),
                hoverinfo="skip",
            )
        said = (
            f"{names[e.arm]}: {signed_number(e.loss.mean, digits)} {nats}<br>95 % {interval(e, digits)}<br>better "
            f"in {e.n_better} of {e.loss.n}"
        )
        if e.loss.n:
            mark = dict(symbol="diamond", size=11, color=colour, line=dict(color=theme.page, width=1))
            fig.add_scatter(
                x=[e.loss.mean], y=[i + 0.1], mode="markers", marker=mark, hovertemplate=said + "<extra></extra>"
            )
        ring = dict(symbol="circle-open", size=7, color=colour, line=dict(width=1.3))
        texts = [f"seed {s}: {signed_number(d, digits)} {nats}" for s, d in zip(e.seeds, e.differences)]
        fig.add_scatter(
            x=e.differences,
            y=[i - 0.17] * len(texts),
            mode="markers",
            marker=ring,
            customdata=texts,
            hovertemplate="%{customdata}<extra></extra>",
        )
    fig.update_yaxes(
        tickvals=list(range(len(effects))), ticktext=ticktext, range=[-0.5, len(effects) - 0.5], showgrid=False
    )
    ends = [abs(v) for e in effects for v in (*e.differences, e.loss.low, e.loss.high) if math.isfinite(v)] + [
        abs(v) for v in noise or ()
    ]
    span = 1.08 * max(ends, default=0.02) or 0.02
    marks = signed_ticks(span)
    fig.update_xaxes(
        showgrid=True,
        range=[-span, span],
        tickvals=marks,
        ticktext=[_signed_tick(v) for v in marks],
        title=dict(text=f"{nats} against the baseline; left is better", standoff=14),
    )
    fig.update_layout(margin=dict(l=118, r=12, t=12, b=56))
    return fig


def forest_finding(report: Report, arms: Sequence[Arm]) -> str:
    if report.grade == "none":
        return f"{words.plural(report.n_seeds, 'seed')}: too few for a conclusion"
    clear = [e for e in report.main if is_clear(e)]
    if not clear:
        return "Every interval spans zero" if len(report.main) > 1 else "The interval spans zero"
    corrected = (
        ""
        if all(map(stands, clear))
        else ", before correction"
        if not any(map(stands, clear))
        else ", in part before correction"
    )
    return f"{_directions(clear, arms)} than the baseline{corrected}"


def ratio(bands: pd.DataFrame, arms: Sequence[Arm], pair: str, theme: Theme, steps: int) -> go.Figure:
    """Median ratio of norms over the steps; ``bands``: arm, step, mean (log2)."""
    fig = figure(theme, 240 + _top(arms), showlegend=True, legend=LEGEND)
    names, looks = labels(arms), styles(arms, theme)
    for arm in arms:
        rows = bands[bands["arm"] == arm.name].sort_values("step")
        texts = [f"{names[arm.name]}<br>step {r.step:,.0f}: {words.side(pair, r.mean)}" for r in rows.itertuples()]
        hover = "%{customdata}<extra></extra>"
        _line(fig, rows, names[arm.name], *looks[arm.name], None, hover, legend=True, texts=texts)
    low, high = (min(bands["mean"].min(), 0), max(bands["mean"].max(), 0)) if len(bands) else (0, 3)
    ticks, texts = octave_ticks(low - 0.3, high + 0.3)
    fig.update_yaxes(tickvals=ticks, ticktext=texts, range=[low - 0.3, high + 0.3])
    fig.add_hline(y=0, line=dict(color=theme.border, width=1), layer="below")
    fig.update_xaxes(range=[0, steps], tickformat=",", title=dict(text="step", standoff=14))
    fig.update_layout(margin=dict(l=48, r=12, t=_top(arms), b=52))
    left, right = (words.ROLES[role] for role in words.PAIR_ROLES[pair])
    unit(fig, f"{left} over {right}", dx=-44)
    return fig


def gradients(bands: pd.DataFrame, arms: Sequence[Arm], theme: Theme, steps: int) -> go.Figure:
    """Norm of the gradient before clipping over the steps, log axis; ``bands``: arm, step, mean."""
    fig = figure(theme, 220 + _top(arms), showlegend=True, legend=LEGEND)
    names, looks = labels(arms), styles(arms, theme)
    for arm in arms:
        rows = bands[(bands["arm"] == arm.name) & (bands["mean"] > 0)].sort_values("step")
        hover = "%{customdata}<br>step %{x:,}: %{y:.3g}<extra></extra>"
        _line(fig, rows, names[arm.name], *looks[arm.name], None, hover, legend=True, width=1.5)
    values = bands.loc[bands["mean"] > 0, "mean"]
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.1, 10.0)
    ticks, texts = log_ticks(0.9 * low, 1.1 * high)
    fig.update_yaxes(type="log", tickvals=ticks, ticktext=texts)
    fig.update_xaxes(range=[0, steps], tickformat=",", title=dict(text="step", standoff=14))
    fig.update_layout(margin=dict(l=58, r=12, t=_top(arms), b=52))
    unit(fig, "norm of the gradient", dx=-54)
    return fig


def gradient_finding(bands: pd.DataFrame, arms: Sequence[Arm], steps: int) -> str:
    """How far the arms are apart in the last quarter of the steps there are; of a run that goes on, so far."""
    late = bands[bands["step"] >= 0.75 * bands["step"].max()] if len(bands) else bands
    means = late[late["mean"] > 0].groupby("arm")["mean"].median()
    base = next(arm.name for arm in arms if arm.kind == "none")
    rescaled = [arm.name for arm in arms if arm.kind in ("balance", "inverse") and arm.name in means]
    if base not in means or not rescaled:
        return "Gradient norms"
    is_late = bands["step"].max() >= 0.75 * steps
    others = (means[rescaled] / means[base]).map(lambda r: max(r, 1 / r))
    far = others.idxmax()
    if others[far] < 1.1:
        return (
            f"{'Late in the run' if is_late else 'So far'} the gradients of all arms are within 10 % of the baseline's"
        )
    word = "larger" if means[far] > means[base] else "smaller"
    return (
        f"Gradients of {labels(arms)[far]} are {words.times(others[far])} {word} than the baseline's "
        f"{'late in the run' if is_late else 'so far'}"
    )


def ratio_finding(bands: pd.DataFrame, arms: Sequence[Arm], pair: str) -> str:
    """Of the baseline at the end and, where there is one, of the first arm that balances this pair again and again: how
    far it goes between two rescales.
    """

    def of(arm: Arm) -> pd.Series:
        return bands[(bands["arm"] == arm.name) & (bands["step"] > 0)].sort_values("step")["mean"]

    base = of(next(arm for arm in arms if arm.kind == "none"))
    held = next((arm for arm in arms if arm.kind == "balance" and pair in arm.pairs and arm.every), None)
    if base.empty:
        return f"The {words.PAIR_LABELS[pair]} ratio over the steps"
    where = words.side(pair, base.iloc[-1])
    side = where.split(" ")[0]
    text = (
        f"Left alone {words.PAIR_LABELS[pair]} is in balance"
        if where == "equal"
        else (f"Left alone the {side} side is {words.ratio(base.iloc[-1])} heavier")
    )
    with_it = of(held) if held else base.iloc[:0]
    return (
        text
        if with_it.empty
        else f"{text}; rescaling keeps it within {words.times(2 ** with_it.abs().max())} of balance"
    )
