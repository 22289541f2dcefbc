"""A comparison as charts and a table: values that a page shows and a report holds."""

import pandas as pd

from wisca_app.figures import compare, dose, words
from wisca_app.figures.chart import Chart
from wisca_core.comparison import statistics
from wisca_core.comparison.arm_words import in_words
from wisca_core.comparison.folder import Comparison
from wisca_core.comparison.report import Report, digits_of, interval, unit
from wisca_core.words import join_names, signed_number

_SHOWN = [
    "Arm",
    "Rate",
    "Loss",
    "Difference",
    "95 % interval",
    "Reading",
    "Better",
    "Steps saved",
    "Perplexity",
    "Bootstrap",
    "What it does",
]


def curves(comparison: Comparison, frame: pd.DataFrame, report: Report | None, rate: float | None) -> Chart | None:
    """Loss and paired difference over the steps; None while no run has a row. ``frame``: of folder.curves."""
    spec = comparison.spec
    bands, gaps = statistics.bands(frame, rate), statistics.gaps(frame, spec.baseline.name, rate)
    if bands.empty:
        return None
    finding = compare.curves_finding(report, spec.arms, rate)
    first = words.markdown_text(compare.labels(spec.arms)[_first(comparison)])
    return Chart(
        words.markdown_text(finding),
        "Above: validation loss after the first tenth of the steps, the mean of the seeds that have the step, bands "
        "from "
        "lowest to highest seed. Below: each run minus the baseline of its own "
        f"seed, with the 95\u00a0% interval of {first}; under zero is better.",
        bands.merge(gaps, on=["arm", "step"], how="left", suffixes=("", "_difference")),
        "curves",
        lambda theme: compare.curves(bands, gaps, spec.arms, theme, spec.steps, unit(spec), digits_of(spec)),
        alt=f"Loss over the steps. {finding}.",
        of=comparison.path.name,
    )


def shown_rate(comparison: Comparison, found: Report | None) -> float | None:
    """The rate that the verdict speaks of: the baseline's best, or the first that has runs; None where each arm has its
    own.
    """
    if comparison.spec.has_pilot:
        return None
    rates = comparison.spec.optimiser.learning_rates
    chosen = found.best[0].baseline_rates if found and found.best else ()
    return (
        max(set(chosen), key=chosen.count) if chosen else next((c.rate for c in comparison.cells if c.step), rates[0])
    )


def _so_far(comparison: Comparison, finding: str) -> str:
    """A title claims only what has happened."""
    if all(cell.state in ("done", "failed") for cell in comparison.cells) and not comparison.n_coming:
        return finding
    return f"So far: {finding[:1].lower()}{finding[1:]}"


def pairs(comparison: Comparison) -> tuple[str, ...]:
    """Whose ratios its runs logged."""
    return comparison.spec.watched


def ratios(comparison: Comparison, frame: pd.DataFrame, rate: float | None, pair: str) -> Chart | None:
    """Ratio of norms of one pair over the steps; None where none was logged."""
    spec, table = comparison.spec, statistics.bands(frame, rate, pair)
    if table.empty:
        return None
    finding = _so_far(comparison, compare.ratio_finding(table, spec.arms, pair))
    frozen = (
        " The base is frozen: only the arms that rescale it move it."
        if spec.model.source == "lora" and pair != "lora"
        else ""
    )
    start = " There is no ratio while B is zero." if pair == "lora" else ""
    return Chart(
        words.markdown_text(finding),
        "Sum of |w| of one matrix over that of the other, median over layers, mean of the seeds; measured before the "
        "rescale of a "
        f"step.{frozen}{start}",
        table,
        f"{pair}-ratios-over-steps",
        lambda theme: compare.ratio(table, spec.arms, pair, theme, spec.steps),
        alt=f"Ratio of norms over the steps. {finding}.",
        of=comparison.path.name,
    )


def gradients(comparison: Comparison, frame: pd.DataFrame, rate: float | None) -> Chart | None:
    """Norm of the gradient over the steps; None where none was logged."""
    spec, norms = comparison.spec, statistics.bands(frame, rate, "grad_norm")
    if norms.empty:
        return None
    finding = compare.gradient_finding(norms, spec.arms, spec.steps)
    if "so far" not in finding.lower():
        finding = _so_far(comparison, finding)
    clipped = f" before it is clipped at {spec.optimiser.clip:g}" if spec.optimiser.clip else ", which is not clipped"
    return Chart(
        words.markdown_text(finding),
        f"Norm of all gradients together{clipped}, mean of the seeds, log axis. A rescale changes it "
        "without changing the function: that is its point.",
        norms,
        "gradient-norms",
        lambda theme: compare.gradients(norms, spec.arms, theme, spec.steps),
        alt=f"Gradient norms over the steps. {finding}.",
        of=comparison.path.name,
    )


def differences(comparison: Comparison, report: Report) -> Chart:
    """Differences against the strength, where arms differ in it; else an arm a row."""
    spec, table = comparison.spec, effects_table(report)
    points = dose.doses(report, spec.arms)
    if len(points) < 2:
        finding = compare.forest_finding(report, spec.arms)
        how = "by pilot runs" if spec.has_pilot else "without the seed it is judged on"
        own = f", each arm at its own best rate, chosen {how}" if report.best else ""
        noise = " Grey band: the placebo's spread." if report.noise else ""
        return Chart(
            words.markdown_text(finding),
            f"Final loss minus the baseline of the same seed{own}. Rings: seeds. Bar: 95\u00a0% interval, diamond: "
            f"mean.{noise}",
            table,
            "differences",
            lambda theme: compare.forest(report, spec.arms, theme),
            alt=f"Paired differences. {finding}.",
            of=comparison.path.name,
        )
    useful, rates = spec.useful_nats, sorted({rate for _, e in points for rate in e.rates})
    finding = dose.dose_finding(points)
    at = f"All at {rates[0]:g}. " if len(rates) == 1 else ""
    return Chart(
        finding,
        f"{at}Diamond: mean, bar: 95\u00a0%, dots: seeds. Grey: beyond −{useful:g}.",
        table,
        "dose",
        lambda theme: dose.dose(points, report, useful, theme),
        alt=f"Difference to the baseline against the strength. {finding}.",
        of=comparison.path.name,
    )


def sweep(comparison: Comparison, frame: pd.DataFrame, report: Report | None) -> Chart | None:
    """Final loss against the rate, of the runs that chose it; None while none is finished."""
    spec, table = comparison.spec, statistics.finals(comparison, frame)
    if table.empty:
        return None
    finding = _so_far(comparison, dose.sweep_finding(table, spec.arms))
    n = len(set(table["seed"]))
    who = (
        f"{words.plural(n, 'pilot seed')}, none of them tested. "
        if spec.pilot.seeds
        else f"{words.plural(n, 'seed')}. "
    )
    tested = dict(report.tested) if report else {}
    return Chart(
        words.markdown_text(finding),
        f"{who}Dots: runs. Ring: the rate tested, or each arm's best.",
        table,
        "rates",
        lambda theme: dose.sweep(table, tested, spec.arms, theme, unit(spec), digits_of(spec)),
        alt=f"Final loss against the learning rate by arm. {finding}.",
        of=comparison.path.name,
    )


def how_to_read(report: Report) -> str:
    """The line above the table."""
    return (
        f"Loss in {report.unit}{_per_byte(report)}. Steps saved: how much earlier the arm reaches the baseline's final "
        "loss, "
        "median of the seeds; where not every seed does, how many do. Bootstrap from 8 seeds on."
    )


def shown_table(report: Report, comparison: Comparison) -> pd.DataFrame:
    """The table as a person reads it."""
    names, readings, digits = compare.labels(comparison.spec.arms), {}, report.digits
    for effect, (_, text) in zip(report.main, report.readings):
        readings[effect.arm, effect.rate] = text
    base = names[comparison.spec.baseline.name]
    rows = [
        {"Arm": base, "Rate": f"{rate:g}", "Loss": _loss(final, digits), "Reading": "reference"}
        for rate, final in report.baseline_final
    ]
    if report.best and report.best[0].loss.n:
        e = report.best[0]
        rows.insert(
            0,
            {
                "Arm": base,
                "Rate": _own_best(e.baseline_rates),
                "Loss": _loss(e.mean_final - e.loss.mean, digits),
                "Reading": "reference",
            },
        )
    for e in (*report.best, *report.effects):
        rows.append(
            {
                "Arm": names[e.arm],
                "Rate": _own_best(e.rates) if e.rate is None else f"{e.rate:g}",
                "Loss": _loss(e.mean_final, digits),
                "Difference": signed_number(e.loss.mean, digits) if e.loss.n else "–",
                "95 % interval": interval(e, digits) if e.loss.n > 1 else "–",
                "Bootstrap": f"{signed_number(e.bootstrap[0], digits)} to {signed_number(e.bootstrap[1], digits)}"
                if e.bootstrap
                else "–",
                "Perplexity": f"{signed_number(e.perplexity.mean)} ({signed_number(e.perplexity.low)} to "
                f"{signed_number(e.perplexity.high)})"
                if e.loss.n > 1
                else "–",
                "Better": f"{e.n_better} of {e.loss.n}",
                "Steps saved": words.minus(f"{e.steps_saved:,.0f}")
                if e.steps_saved is not None
                else f"{e.n_reached} of {e.loss.n} reach it",
                "Reading": readings.get((e.arm, e.rate), "beside the correction"),
                "What it does": in_words(comparison.spec.arm(e.arm)),
            }
        )
    return pd.DataFrame(rows, columns=_SHOWN).fillna("")


def _loss(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if value == value else "–"


def _own_best(rates: tuple[float, ...]) -> str:
    """The rates chosen for the seeds: "own best, 0.001"."""
    return f"own best, {join_names([f'{rate:g}' for rate in sorted(set(rates))])}" if rates else "own best"


def _per_byte(report: Report) -> str:
    return (
        f" ({report.bytes_per_token:.2f} bytes a token: divide by it for nats per byte)"
        if report.unit != "nats per byte"
        else ""
    )


def effects_table(report: Report) -> pd.DataFrame:
    """The same as numbers, one row a seed, for a spreadsheet."""
    return pd.DataFrame(
        [
            {
                "arm": e.arm,
                "rate": "own best" if e.rate is None else e.rate,
                "seed": seed,
                "difference_nats": d,
                "mean": e.loss.mean,
                "low": e.loss.low,
                "high": e.loss.high,
                "perplexity_mean": e.perplexity.mean,
                "perplexity_low": e.perplexity.low,
                "perplexity_high": e.perplexity.high,
                "p": e.loss.p,
                "p_corrected": e.p_corrected,
            }
            for e in (*report.best, *report.effects)
            for seed, d in zip(e.seeds, e.differences)
        ]
    )


def _first(comparison: Comparison) -> str:
    arms = comparison.spec.arms
    return next((a.name for a in arms if a.kind == "balance"), next(a.name for a in arms if a.kind != "none"))
