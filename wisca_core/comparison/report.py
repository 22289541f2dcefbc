"""What the finished cells of a comparison allow one to say, in numbers and in words.

The words follow the numbers: nothing is concluded from fewer than 4 seeds, 4 to 7 are preliminary, an interval over zero is
no detectable difference, and what was extended after looking is a hint only.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import pandas as pd

from wisca_core.comparison.arm_words import in_words, listed, title
from wisca_core.comparison.folder import Comparison
from wisca_core.comparison.spec import Spec
from wisca_core.comparison.statistics import (
    CONFIDENCE,
    FEWEST,
    FIRM,
    Effect,
    best_rates,
    check_starts,
    corrected,
    effect_of,
    finals,
    seeds_to_see,
)

# Effects that one looks for below this are written with four decimals.
FINE_NATS = 0.01


@dataclass(frozen=True)
class Report:
    """``effects``: every arm at every rate; ``best``: every arm at its own best rate, empty with one rate. ``main``:
    the ones the sentence and the correction are about; ``subject``: the arm of the sentence, in words; ``beside``: a
    sentence for each other arm that is clear of zero. ``unit`` of every loss, written with ``digits`` decimals;
    ``bytes_per_token`` of the held-out text, so that a loss divided by it is one per byte. ``noise``: smallest and largest
    paired difference of the placebo, None without one. ``grade``: none, preliminary or full. ``missing``: (cell, reason)
    of what failed; ``n_unfinished``: cells that are neither finished nor failed.
    """

    name: str
    subject: str
    sentence: str
    reading: str
    beside: tuple[str, ...]
    unit: str
    digits: int
    bytes_per_token: float
    grade: str
    n_seeds: int
    is_extended: bool
    effects: tuple[Effect, ...]
    best: tuple[Effect, ...]
    readings: tuple[tuple[str, str], ...]
    baseline_final: tuple[tuple[float, float], ...]
    noise: tuple[float, float] | None
    diverged: tuple[tuple[str, int, int], ...]
    missing: tuple[tuple[str, str], ...]
    n_unfinished: int
    remarks: tuple[str, ...]
    corpus_sha256: str

    @property
    def main(self) -> tuple[Effect, ...]:
        return self.best or self.effects

    def to_json(self) -> dict:
        return asdict(self)


def report(comparison: Comparison, curves: pd.DataFrame) -> Report:
    """What follows from the cells that are finished. Raises UnequalStart."""
    check_starts(curves)
    spec, table = comparison.spec, finals(comparison, curves)
    rates, base = spec.optimiser.learning_rates, spec.baseline.name
    arms = [arm.name for arm in spec.arms if arm.name != base]
    final = {(r.arm, r.rate, r.seed): r.final for r in table.itertuples()}
    effects = corrected([effect_of(arm, rate, spec.seeds, final, base, curves) for rate in rates for arm in arms])
    best: list[Effect] = []
    if len(rates) > 1:
        chosen = {arm: best_rates(table, arm, rates, spec.seeds) for arm in [base, *arms]}
        best = corrected([effect_of(arm, None, spec.seeds, final, base, curves, chosen) for arm in arms])
    kinds = {arm.name: arm.kind for arm in spec.arms}
    main = best or effects
    first = next((e for e in main if kinds[e.arm] == "balance"), main[0])
    noise = [d for e in effects if kinds[e.arm] == "placebo" for d in e.differences]
    grade = "none" if first.loss.n < FEWEST else "preliminary" if first.loss.n < FIRM else "full"
    diverged = tuple(
        (
            title(spec.arm(arm)),
            int(table.loc[table["arm"] == arm, "diverged"].sum())
            + sum(c.arm == arm and c.state == "failed" and "loss became" in c.reason for c in comparison.cells),
            len(rates) * len(spec.seeds),
        )
        for arm in [base, *arms]
    )
    said = _Said(spec, unit(spec), digits_of(spec), len(main))
    return Report(
        name=spec.name,
        subject=in_words(spec.arm(first.arm)),
        unit=said.unit,
        digits=said.digits,
        bytes_per_token=float(comparison.corpus.get("bytes_per_token", 1.0)),
        sentence=said.sentence(first, grade, _as_fixed(comparison, curves) if comparison.is_extended else ""),
        reading=said.reading(first, grade),
        grade=grade,
        n_seeds=first.loss.n,
        is_extended=comparison.is_extended,
        effects=tuple(effects),
        best=tuple(best),
        readings=tuple((e.arm, verdict(e)) for e in main),
        baseline_final=tuple(
            (rate, float(table.loc[(table["arm"] == base) & (table["rate"] == rate), "final"].mean())) for rate in rates
        ),
        noise=(min(noise), max(noise)) if noise else None,
        diverged=tuple(row for row in diverged if row[1]),
        missing=tuple((c.name, c.reason) for c in comparison.cells if c.state == "failed"),
        n_unfinished=sum(c.state not in ("done", "failed") for c in comparison.cells),
        beside=said.beside(main, first),
        remarks=_remarks(comparison, main, first, kinds, best),
        corpus_sha256=str(comparison.corpus.get("sha256", "")),
    )


def unit(spec: Spec) -> str:
    """What a loss of this comparison is measured in."""
    return "nats per byte" if spec.data.tokens == "bytes" else "nats per token"


def digits_of(spec: Spec) -> int:
    """Decimals of a difference: enough for the effect that is looked for."""
    return 4 if spec.detect_nats < FINE_NATS else 3


def verdict(effect: Effect) -> str:
    """One arm in a few words."""
    if effect.loss.n < FEWEST:
        return f"too few seeds ({effect.loss.n})"
    if effect.loss.is_nothing:
        return "no difference (under 0.001 nats)"
    if effect.loss.spans_zero:
        return "not distinguishable"
    word = "lower" if effect.loss.mean < 0 else "higher"
    if not effect.p_corrected < 1 - CONFIDENCE:
        return f"{word}, but not after correction (p {_p(effect.p_corrected)})"
    return f"{word} (p {_p(effect.p_corrected)} after correction)"


def is_clear(effect: Effect) -> bool:
    """Whether its interval excludes zero by more than what is written, with seeds enough to say so."""
    return effect.loss.n >= FEWEST and not effect.loss.spans_zero and not effect.loss.is_nothing


def stands(effect: Effect) -> bool:
    """Whether it is clear after the correction too."""
    return is_clear(effect) and effect.p_corrected < 1 - CONFIDENCE


def signed(value: float, digits: int = 3) -> str:
    """Decimals with a sign and a true minus; zero unsigned.

    >>> signed(0.0456), signed(-0.0001), signed(-0.0001, 4)
    ('+0.046', '0', '−0.0001')
    """
    if math.isnan(value):
        return "unknown"
    text = f"{value:+.{digits}f}".replace("-", "−")
    return "0" if float(f"{value:.{digits}f}") == 0 else text


def interval(effect: Effect, digits: int = 3) -> str:
    """ "−0.012 to +0.034"."""
    return f"{signed(effect.loss.low, digits)} to {signed(effect.loss.high, digits)}"


def outward(value: float, digits: int = 3) -> str:
    """|value| rounded up: nothing beyond it is claimed to be excluded that is not.

    >>> outward(-0.0012), outward(0.002)
    ('0.002', '0.002')
    """
    scale = 10**digits
    return f"{math.ceil(abs(value) * scale - 1e-9) / scale:.{digits}f}"


def placebo_words(noise: tuple[float, float]) -> str:
    """ "less than 0.001 nats", or from the smallest to the largest difference."""
    return "less than 0.001 nats" if max(map(abs, noise)) < 0.0005 else f"{signed(noise[0])} to {signed(noise[1])} nats"


@dataclass(frozen=True)
class _Said:
    """The words about one comparison. ``n_tests``: comparisons that are corrected for."""

    spec: Spec
    unit: str
    digits: int
    n_tests: int

    def figures(self, effect: Effect) -> str:
        return f"{signed(effect.loss.mean, self.digits)} {self.unit} (95 % {interval(effect, self.digits)})"

    def sentence(self, effect: Effect, grade: str, before: str = "") -> str:
        """What may be quoted. ``before``: of a comparison that was extended, what it said as it was fixed beforehand."""
        n = f"{effect.loss.n} seed{'' if effect.loss.n == 1 else 's'}{', each arm at its own best rate' if effect.rate is None else ''}"
        if grade == "none":
            return f"Nothing can be concluded from {effect.loss.n} seed{'' if effect.loss.n == 1 else 's'}; at least {FEWEST} are needed."
        if before:
            return f"Extended after looking, so only a hint: {self.figures(effect)}, {n}. As it was fixed beforehand: {before}"
        if effect.loss.is_nothing:
            text = f"No difference: under 0.001 {self.unit} either way, {n}."
        elif effect.loss.spans_zero:
            text = f"No detectable difference: {self.figures(effect)}, {n}."
        else:
            word = "Lower" if effect.loss.mean < 0 else "Higher"
            after = f"p {_p(effect.p_corrected)} after correcting for {self.n_tests} comparison{'' if self.n_tests == 1 else 's'}"
            lead = f"{word} loss than the baseline" if stands(effect) else "Not distinguishable after correction"
            text = f"{lead}: {self.figures(effect)}, {n}; {after}."
        return f"Preliminary. {text}" if grade == "preliminary" else text

    def reading(self, effect: Effect, grade: str) -> str:
        i, wanted = effect.loss, self.spec.detect_nats
        if grade == "none":
            return "Differences of single seeds are shown; they are as large as chance makes them."
        parts = []
        if i.spans_zero and not i.is_nothing:
            excluded = [
                f"gains larger than {outward(i.low, self.digits)}" if i.low < 0 else "",
                f"harms larger than {outward(i.high, self.digits)}" if i.high > 0 else "",
            ]
            parts.append(
                f"The interval excludes {' and '.join(filter(None, excluded))} {self.unit}." if any(excluded) else ""
            )
            if i.sd > 0:
                n = seeds_to_see(wanted, i.sd, self.n_tests)
                after = f", after correcting for {self.n_tests} comparisons," if self.n_tests > 1 else ""
                parts.append(
                    f"With this spread, seeing a true difference of {wanted:g} {self.unit} four times out of five{after} takes about "
                    f"{max(n, FIRM) if grade == 'preliminary' else n} seeds."
                )
        elif not i.is_nothing:
            parts.append(f"Better in {effect.n_better} of {i.n} seeds.")
        if grade == "preliminary":
            parts.append(f"Four seeds have misled before; {FIRM} or more are needed for a firm answer.")
        return " ".join(filter(None, parts))

    def beside(self, main: Sequence[Effect], first: Effect) -> tuple[str, ...]:
        """The other arms whose interval excludes zero, each in a sentence."""
        return tuple(
            f"Beside it, {title(self.spec.arm(e.arm))}: {self.figures(e)}, {verdict(e)}."
            for e in main
            if e is not first and is_clear(e)
        )


def _as_fixed(comparison: Comparison, curves: pd.DataFrame) -> str:
    """The sentence of the seeds that were fixed before any result was there to be seen."""
    added = {seed for addition in comparison.additions if addition.n_finished for seed in addition.seeds}
    seeds = tuple(seed for seed in comparison.spec.seeds if seed not in added)
    fixed = replace(
        comparison,
        spec=replace(comparison.spec, seeds=seeds),
        cells=tuple(c for c in comparison.cells if c.seed in seeds),
        additions=tuple(a for a in comparison.additions if not a.n_finished),
    )
    return report(fixed, curves[curves["seed"].isin(seeds)]).sentence


def _remarks(
    comparison: Comparison, main: Sequence[Effect], first: Effect, kinds: Mapping[str, str], best: Sequence[Effect]
) -> tuple[str, ...]:
    spec = comparison.spec
    out = []
    k = len(main)
    if k > 1:
        chance = 1 - CONFIDENCE**k
        out.append(
            f"With no effect at all, at least one of {k} intervals excludes zero in up to {chance:.0%} of such comparisons; the p values are "
            "corrected for that (Holm), the intervals are not."
        )
    mirrored = [e for e in main if kinds[e.arm] == "inverse"]
    if not first.loss.spans_zero and any(
        not e.loss.spans_zero and (e.loss.mean < 0) == (first.loss.mean < 0) for e in mirrored
    ):
        out.append(
            "The control that is scaled the other way moves the loss in the same direction: the disturbance, not the balance, may be what acts."
        )
    if len(spec.optimiser.learning_rates) == 1:
        out.append("One learning rate was tried. The sign of such a difference has been seen to change with the rate.")
    ends = {min(spec.optimiser.learning_rates), max(spec.optimiser.learning_rates)}
    at_end = [spec.baseline.name] if any(set(e.baseline_rates) & ends for e in best) else []
    at_end += [e.arm for e in best if set(e.rates) & ends]
    if at_end:
        are, their = ("is", "its") if len(at_end) == 1 else ("are", "their")
        # titles hold commas, so a long list of them would read as more arms than there are
        names = "All arms" if len(at_end) == len(spec.arms) > 2 else listed([title(spec.arm(name)) for name in at_end])
        out.append(f"{names} {are} best at an end of the rates tried; {their} true best may lie outside.")
    failed = {c.seed for c in comparison.cells if c.state == "failed"}
    dropped = {seed for e in main for seed in e.missing}
    if dropped & failed:
        lost = ", ".join(map(str, sorted(dropped & failed)))
        out.append(
            f"Seeds without a complete pair are left out: {lost}. If the runs failed because of the arm, this flatters it."
        )
    if dropped - failed:
        out.append(f"Seeds whose runs are not finished are left out: {', '.join(map(str, sorted(dropped - failed)))}.")
    if comparison.is_extended:
        n = sum(len(a.seeds) for a in comparison.additions)
        out.append(
            f"Extended after looking: {n} seeds were added when results could be seen, so the intervals are narrower than they should be."
        )
    return tuple(out)


def remarks(report: Report) -> list[str]:
    """What is to be known beside the sentence, each in one."""
    out = list(report.remarks)
    if report.noise:
        out.append(f"The placebo, which changes rounding only, moves single runs by {placebo_words(report.noise)}.")
    out += [f"{arm}: {n} of {of} runs diverged." for arm, n, of in report.diverged]
    out += [f"No result from {cell}: {reason}" for cell, reason in report.missing]
    if report.n_unfinished:
        out.append(f"{report.n_unfinished} run{' is' if report.n_unfinished == 1 else 's are'} not finished.")
    return out


def _p(value: float) -> str:
    return "unknown" if math.isnan(value) else "< 0.001" if value < 0.001 else f"= {value:.3f}"
