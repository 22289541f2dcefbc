"""The charts of a comparison, each under its finding, with one line how to read it and its data as CSV."""

import pandas as pd
import streamlit as st

from wisca_app.figures import compare, dose, words
from wisca_app.figures.template import Theme
from wisca_app.heading import heading
from wisca_app.inspecting.charts import chart
from wisca_core.architecture.site import DEFAULT_PAIRS
from wisca_core.comparison import folder, statistics
from wisca_core.comparison.arm_words import in_words
from wisca_core.comparison.folder import Comparison
from wisca_core.comparison.report import Report, digits_of, interval, signed, unit

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
_STATES = {"waiting": "waiting", "running": "running", "done": "finished", "failed": "failed"}


def draw_curves(
    comparison: Comparison, frame: pd.DataFrame, report: Report | None, theme: Theme, prefix: str = ""
) -> float | None:
    """Returns the learning rate that is shown, None where each arm has one of its own. ``frame``: of folder.curves, read once a page. ``prefix``: of the keys, so that a live page and a finished one are not the same widgets."""
    spec = comparison.spec
    rate = _choose_rate(comparison, report, prefix)
    bands, gaps = statistics.bands(frame, rate), statistics.gaps(frame, spec.baseline.name, rate)
    names = compare.labels(spec.arms)
    if bands.empty:
        st.markdown(f":gray[No run{f' at {rate:g}' if rate else ''} has a row yet.]")
        return rate
    finding = compare.curves_finding(report, spec.arms, rate)
    heading(
        finding,
        "Above: validation loss after the first tenth of the steps, the mean of the seeds that have the step, bands from "
        "lowest to highest seed. Below: each run "
        "minus the baseline of its own "
        f"seed, with the 95\u00a0% interval of {names[_first(comparison)]}; under zero is better.",
        bands.merge(gaps, on=["arm", "step"], how="left", suffixes=("", "_difference")),
        f"{prefix}curves",
    )
    chart(
        compare.curves(bands, gaps, spec.arms, theme, spec.steps, unit(spec), digits_of(spec)),
        f"{prefix}curves chart",
        f"Loss over the steps. {finding}.",
    )
    return rate


def draw_ratios(
    comparison: Comparison, frame: pd.DataFrame, rate: float | None, theme: Theme, prefix: str = ""
) -> None:
    spec = comparison.spec
    pairs = (*DEFAULT_PAIRS, "lora") if spec.model.source == "lora" else DEFAULT_PAIRS
    pair = st.segmented_control(
        "Pair",
        pairs,
        default=pairs[-1] if len(pairs) > 2 else "qk",
        required=True,
        key=f"{prefix}compare pair",
        format_func=words.PAIR_LABELS.get,
        label_visibility="collapsed",
    )
    ratios = statistics.bands(frame, rate, pair)
    if ratios.empty:
        return
    finding = compare.ratio_finding(ratios, spec.arms, pair)
    frozen = (
        " The base is frozen: only the arms that rescale it move it."
        if spec.model.source == "lora" and pair != "lora"
        else ""
    )
    start = " There is no ratio while B is zero." if pair == "lora" else ""
    heading(
        finding,
        "Sum of |w| of one matrix over that of the other, median over layers, mean of the seeds; measured before the rescale of a "
        f"step.{frozen}{start}",
        ratios,
        f"{prefix}ratios over steps",
    )
    chart(
        compare.ratio(ratios, spec.arms, pair, theme, spec.steps),
        f"{prefix}ratio chart",
        f"Ratio of norms over the steps. {finding}.",
    )


def draw_gradients(
    comparison: Comparison, frame: pd.DataFrame, rate: float | None, theme: Theme, prefix: str = ""
) -> None:
    spec = comparison.spec
    norms = statistics.bands(frame, rate, "grad_norm")
    if norms.empty:
        return
    finding = compare.gradient_finding(norms, spec.arms, spec.steps)
    clipped = f" before it is clipped at {spec.optimiser.clip:g}" if spec.optimiser.clip else ", which is not clipped"
    heading(
        finding,
        f"Norm of all gradients together{clipped}, mean of the seeds, log axis. A rescale changes it "
        "without changing the function: that is its point.",
        norms,
        f"{prefix}gradient norms",
    )
    chart(
        compare.gradients(norms, spec.arms, theme, spec.steps),
        f"{prefix}gradient chart",
        f"Gradient norms over the steps. {finding}.",
    )


def draw_forest(comparison: Comparison, report: Report, theme: Theme) -> None:
    finding = compare.forest_finding(report, comparison.spec.arms)
    how = "by pilot runs" if comparison.spec.has_pilot else "without the seed it is judged on"
    own = f", each arm at its own best rate, chosen {how}" if report.best else ""
    noise = " Grey band: the placebo's spread." if report.noise else ""
    heading(
        finding,
        f"Final loss minus the baseline of the same seed{own}. Rings: seeds. Bar: 95\u00a0% interval, diamond: mean.{noise}",
        effects_table(report, comparison),
        "differences",
    )
    chart(compare.forest(report, comparison.spec.arms, theme), "forest", f"Paired differences. {finding}.")


def draw_dose(comparison: Comparison, report: Report, theme: Theme) -> None:
    """Differences against the strength, where arms differ in it; else an arm a row."""
    points = dose.doses(report, comparison.spec.arms)
    if len(points) < 2:
        return draw_forest(comparison, report, theme)
    useful, rates = comparison.spec.useful_nats, sorted({rate for _, e in points for rate in e.rates})
    finding = dose.dose_finding(points)
    at = f"All at {rates[0]:g}. " if len(rates) == 1 else ""
    heading(
        finding,
        f"{at}Diamond: mean, bar: 95\u00a0%, dots: seeds. Grey: beyond −{useful:g}.",
        effects_table(report, comparison),
        "dose",
    )
    fig = dose.dose(points, report, useful, theme)
    chart(fig, "dose chart", f"Difference to the baseline against the strength. {finding}.")


def draw_pilot(comparison: Comparison, frame: pd.DataFrame, report: Report | None, theme: Theme) -> None:
    """Final loss against the rate, of the runs that chose it: ``frame`` holds theirs, of the pilot where there is one."""
    spec = comparison.spec
    table = statistics.finals(comparison, frame)
    if table.empty:
        return
    finding = dose.sweep_finding(table, spec.arms)
    n = len(set(table["seed"]))
    who = (
        f"{words.plural(n, 'pilot seed')}, none of them tested. "
        if spec.pilot.seeds
        else f"{words.plural(n, 'seed')}. "
    )
    heading(finding, f"{who}Dots: runs. Ring: the rate tested, or each arm's best.", table, "rates")
    tested = dict(report.tested) if report else {}
    fig = dose.sweep(table, tested, spec.arms, theme, unit(spec), digits_of(spec))
    chart(fig, "rates chart", f"Final loss against the learning rate by arm. {finding}.")


def draw_table(comparison: Comparison, report: Report) -> None:
    st.subheader("All arms", anchor=False)
    st.markdown(
        f":small[:gray[Loss in {report.unit}{_per_byte(report)}. Steps saved: how much earlier the arm reaches the baseline's final loss, "
        "median of the seeds; where not "
        "every seed does, how many do. Bootstrap from 8 seeds on.]]"
    )
    st.dataframe(shown_table(report, comparison), hide_index=True, alt="Every arm against the baseline")


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
                "Difference": signed(e.loss.mean, digits) if e.loss.n else "–",
                "95 % interval": interval(e, digits) if e.loss.n > 1 else "–",
                "Bootstrap": f"{signed(e.bootstrap[0], digits)} to {signed(e.bootstrap[1], digits)}"
                if e.bootstrap
                else "–",
                "Perplexity": f"{signed(e.perplexity.mean)} ({signed(e.perplexity.low)} to {signed(e.perplexity.high)})"
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
    return f"own best, {' and '.join(f'{rate:g}' for rate in sorted(set(rates)))}" if rates else "own best"


def _per_byte(report: Report) -> str:
    return (
        f" ({report.bytes_per_token:.2f} bytes a token: divide by it for nats per byte)"
        if report.unit != "nats per byte"
        else ""
    )


def effects_table(report: Report, comparison: Comparison) -> pd.DataFrame:
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


def draw_runs(comparison: Comparison) -> None:
    """Every run with its state; failures with their reason."""
    failed = [c for c in comparison.cells if c.state == "failed"]
    with st.expander(
        f"Runs: {len(comparison.cells)}" + (f", {len(failed)} failed" if failed else ""), key="compare_runs"
    ):
        names = compare.labels(comparison.spec.arms)
        st.dataframe(
            pd.DataFrame(
                [
                    {
                        "Arm": names[c.arm],
                        "Rate": f"{c.rate:g}",
                        "Seed": f"{c.seed}, pilot" if c.is_pilot else str(c.seed),
                        "State": _STATES[c.state],
                        "Step": c.step,
                        "Seconds": round(c.seconds, 1),
                        "Reason": c.reason,
                    }
                    for c in comparison.cells
                ]
            ),
            hide_index=True,
            alt="All runs of this comparison",
        )


def _choose_rate(comparison: Comparison, report: Report | None, prefix: str) -> float | None:
    """At first the one that is the baseline's best, or the first that has runs; None after a pilot."""
    if comparison.spec.has_pilot:
        return None
    rates = comparison.spec.optimiser.learning_rates
    if len(rates) == 1:
        return rates[0]
    first = next((c.rate for c in comparison.cells if c.step), rates[0])
    chosen = report.best[0].baseline_rates if report and report.best else ()
    default = max(set(chosen), key=chosen.count) if chosen else first
    return st.segmented_control(
        "Learning rate", rates, default=default, required=True, key=f"{prefix}compare rate", format_func="{:g}".format
    )


def draw_log(comparison: Comparison, prefix: str = "") -> None:
    """The end of what the training processes printed."""
    lines = folder.log_lines(comparison)
    with st.expander("Log", key=f"{prefix}compare_log"):
        if lines:
            st.code("\n".join(lines), language=None, wrap_lines=True)
        else:
            st.markdown(":gray[Nothing was printed.]")


def _first(comparison: Comparison) -> str:
    arms = comparison.spec.arms
    return next((a.name for a in arms if a.kind == "balance"), next(a.name for a in arms if a.kind != "none"))
