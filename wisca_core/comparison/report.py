"""What the finished cells of a comparison allow one to say, in numbers and in words.

The words follow the numbers: nothing is concluded from fewer than 4 seeds, 4 to 7 are preliminary, and what was
extended after looking is a hint only. The rule of the answer, in this order, of the interval of the difference: where
the baseline is best at an end of the rates tried, no answer yet; upper end below 0, it helps, where each arm had its
own best rate; lower end above what would be of use, no useful gain; else not settled. The question is one, the arm that
balances, and was there before the first run: its interval is not corrected for the arms beside it; those are for each
other.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path

import pandas as pd

from wisca_core.comparison.arm_words import in_words, title
from wisca_core.comparison.folder import Comparison, pilot_losses
from wisca_core.comparison.spec import ModelSpec, Spec
from wisca_core.comparison.statistics import (
    FEWEST,
    FIRM,
    Effect,
    best_rates,
    check_starts,
    clipped_shares,
    corrected_effects,
    curves_by_cell,
    effect_of,
    finals,
    seeds_to_see,
)
from wisca_core.errors import UnreadableInput
from wisca_core.intervals import CONFIDENCE
from wisca_core.untrusted import read_regular
from wisca_core.words import join_names, plural, signed_number

# Final losses nearer to each other than this are of one and the same training, as far as single precision tells.
SAME_NATS = 1e-4
# Effects that one looks for below this are written with four decimals.
FINE_NATS = 0.01


@dataclass(frozen=True)
class Report:
    """``effects``: every arm at every rate; ``best``: every arm at its own best rate, empty with one rate. ``main``:
    the ones the sentence and the correction are about; ``subject``: the arm of the sentence, in words; ``beside``: a
    sentence for each other arm that is clear of zero. ``unit`` of every loss, written with ``digits`` decimals;
    ``bytes_per_token`` of the held-out text, so that a loss divided by it is one per byte. ``noise``: smallest and
    largest paired difference of the placebo, None without one. ``grade``: none, preliminary or full. ``missing``:
    (cell, reason) of what failed; ``n_unfinished``: cells that are neither finished nor failed. ``answer``: what the
    rule says: "helps", "no useful gain", "not settled", "no answer yet", or "" under 4 seeds. ``decides_more``: what
    the learning rate does to the baseline, where that is more; ``identical``: how far WISCA is from its own learning
    rates, where both were trained. ``clipped``: arm -> share of clipped steps; ``sweeps``: arm -> (rate, mean final
    loss) of the runs that chose the rates, ``tested``: arm -> the rate it was tested at, both empty without a choice of
    rates. ``arm``: the name of the sentence's; ``windows``: how many the final loss is the mean of.
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
    answer: str = ""
    decides_more: str = ""
    identical: str = ""
    clipped: tuple[tuple[str, float], ...] = ()
    sweeps: tuple[tuple[str, tuple[tuple[float, float], ...]], ...] = ()
    tested: tuple[tuple[str, float], ...] = ()
    arm: str = ""
    windows: int = 0

    @property
    def main(self) -> tuple[Effect, ...]:
        return self.best or self.effects

    def to_json(self) -> dict:
        return asdict(self)


def report(comparison: Comparison, curves: pd.DataFrame) -> Report:
    """What follows from the cells that are finished. Raises UnequalStart."""
    check_starts(curves)
    spec, table = comparison.spec, finals(comparison, curves)
    rates, base = () if spec.has_pilot else spec.optimiser.learning_rates, spec.baseline.name
    arms = [arm.name for arm in spec.arms if arm.name != base]
    final = {(r.arm, r.rate, r.seed): r.final for r in table.itertuples()}
    kinds = {arm.name: arm.kind for arm in spec.arms}
    question = _question(spec)
    by_cell = curves_by_cell(curves)
    effects = [effect_of(arm, rate, spec.seeds, final, base, by_cell) for rate in rates for arm in arms]
    if spec.has_pilot:
        chosen = {arm: dict.fromkeys(spec.seeds, comparison.pilot.rate(spec, arm)) for arm in [base, *arms]}
    else:
        chosen = {arm: best_rates(table, arm, rates, spec.seeds) for arm in [base, *arms] if len(rates) > 1}
    best = [effect_of(arm, None, spec.seeds, final, base, by_cell, chosen) for arm in arms if chosen]
    main = corrected_effects(best or effects, question)
    best, effects = (main, effects) if best else ([], main)
    first = next(e for e in main if e.arm == question)
    noise = [d for e in main if kinds[e.arm] == "placebo" for d in e.differences]
    grade = "none" if first.loss.n < FEWEST else "preliminary" if first.loss.n < FIRM else "full"
    diverged = tuple(
        (
            title(spec.arm(arm)),
            int(table.loc[table["arm"] == arm, "diverged"].sum())
            + sum(c.arm == arm and c.state == "failed" and "loss became" in c.reason for c in comparison.cells),
            max(1, len(rates)) * len(spec.seeds),
        )
        for arm in [base, *arms]
    )
    sweeps = _sweeps(comparison, table)
    shares = clipped_shares(curves)
    end = _baseline_end(comparison, dict(sweeps))
    own = not spec.has_pilot or question in comparison.pilot.grids or bool(spec.arm(question).rate_of)
    at_rates = "each arm at its own best rate" if own else "every arm at the baseline's best rate"
    said = _Wording(spec, unit(spec), digits_of(spec), end, at_rates)
    return Report(
        name=spec.name,
        subject=in_words(spec.arm(first.arm)),
        unit=said.unit,
        digits=said.digits,
        bytes_per_token=float(comparison.corpus.get("bytes_per_token", 1.0)),
        sentence=said.sentence(
            first, grade, _fixed_seeds_sentence(comparison, curves) if comparison.is_extended else ""
        ),
        reading=said.reading(first, grade),
        grade=grade,
        n_seeds=first.loss.n,
        is_extended=comparison.is_extended,
        effects=tuple(effects),
        best=tuple(best),
        readings=tuple((e.arm, verdict(e)) for e in main),
        baseline_final=tuple(
            (rate, float(table.loc[(table["arm"] == base) & (table["rate"] == rate), "final"].mean()))
            for rate in rates or sorted(set(table.loc[table["arm"] == base, "rate"]))
        ),
        noise=(min(noise), max(noise)) if noise else None,
        diverged=tuple(row for row in diverged if row[1]),
        missing=tuple((c.name, c.reason) for c in comparison.cells if c.state == "failed"),
        n_unfinished=sum(c.state not in ("done", "failed") for c in comparison.cells),
        beside=said.beside(main, first),
        remarks=_remarks(comparison, main, first, kinds, best, shares),
        corpus_sha256=str(comparison.corpus.get("sha256", "")),
        answer=said.answer(first, grade),
        arm=first.arm,
        windows=_windows(comparison, curves),
        decides_more=said.decides_more(first, dict(sweeps).get(base, ())) if grade != "none" else "",
        identical=said.identical(final),
        clipped=tuple(shares.items()),
        sweeps=sweeps,
        tested=tuple(
            (arm, rate)
            for arm in [base, *arms]
            if spec.has_pilot and (rate := comparison.pilot.rate(spec, arm)) is not None
        ),
    )


def _question(spec: Spec) -> str:
    """The arm whose difference the comparison was made for: the first that balances; of rates alone, the full dose."""
    arms = [arm for arm in spec.arms if arm.name != spec.baseline.name]
    balancing = [arm for arm in arms if arm.kind == "balance"]
    full = [arm for arm in arms if arm.kind == "rates" and arm.strength == 1]
    return (balancing or full or arms)[0].name


def _windows(comparison: Comparison, curves: pd.DataFrame) -> int:
    """How many windows the final losses are means of, as the cells were measured."""
    data, facts = comparison.spec.data, comparison.corpus
    if not curves["final_loss"].notna().any():
        return data.validation_windows
    held_out = int(facts.get("n_validation_tokens", data.final_windows * data.context))
    return min(data.final_windows, max(1, held_out // data.context))


def _sweeps(comparison: Comparison, table: pd.DataFrame) -> tuple[tuple[str, tuple[tuple[float, float], ...]], ...]:
    """Arm -> (rate, mean final loss), ascending: of the pilot, or of the tested seeds where each arm had every rate."""
    spec = comparison.spec
    if spec.pilot.seeds:
        found = {arm: {r: sum(v) / len(v) for r, v in by.items()} for arm, by in pilot_losses(comparison).items()}
    elif not spec.has_pilot and len(spec.optimiser.learning_rates) > 1:
        found = {
            str(arm): rows.groupby("rate")["final"].mean().to_dict() for arm, rows in table.groupby("arm", sort=False)
        }
    else:
        return ()
    return tuple((arm, tuple(sorted(means.items()))) for arm, means in found.items())


def _baseline_end(comparison: Comparison, sweeps: Mapping[str, tuple[tuple[float, float], ...]]) -> str:
    """ "low" or "high" where the baseline's best rate is an end of those tried, "" where it lies inside or one was
    tried.
    """
    base = comparison.spec.baseline.name
    if comparison.spec.has_pilot:
        return comparison.pilot.at_end.get(base, "")
    means = sweeps.get(base, ())
    if len(means) < 2:
        return ""
    best = min(means, key=lambda one: one[1])[0]
    return "low" if best == means[0][0] else "high" if best == means[-1][0] else ""


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
    if effect.p_corrected == effect.loss.p:
        return f"{word} (p {_p(effect.loss.p)})"
    if not stands(effect):
        return f"{word}, but not after correction (p {_p(effect.p_corrected)})"
    return f"{word} (p {_p(effect.p_corrected)} after correction)"


def is_clear(effect: Effect) -> bool:
    """Whether its interval excludes zero by more than what is written, with seeds enough to say so."""
    return effect.loss.n >= FEWEST and not effect.loss.spans_zero and not effect.loss.is_nothing


def stands(effect: Effect) -> bool:
    """Whether it is clear after the correction too."""
    return is_clear(effect) and effect.p_corrected < 1 - CONFIDENCE


def interval(effect: Effect, digits: int = 3) -> str:
    """ "−0.012 to +0.034"."""
    return f"{signed_number(effect.loss.low, digits)} to {signed_number(effect.loss.high, digits)}"


def outward(value: float, digits: int = 3) -> str:
    """|value| rounded up: nothing beyond it is claimed to be excluded that is not.

    >>> outward(-0.0012), outward(0.002)
    ('0.002', '0.002')
    """
    scale = 10**digits
    return f"{math.ceil(abs(value) * scale - 1e-9) / scale:.{digits}f}"


def placebo_words(noise: tuple[float, float]) -> str:
    """ "less than 0.001 nats", or from the smallest to the largest difference."""
    return (
        "less than 0.001 nats"
        if max(map(abs, noise)) < 0.0005
        else f"{signed_number(noise[0])} to {signed_number(noise[1])} nats"
    )


@dataclass(frozen=True)
class _Wording:
    """The words about one comparison. ``end``: of the rates tried, where the baseline is best at it."""

    spec: Spec
    unit: str
    digits: int
    end: str
    at_rates: str

    def answer(self, effect: Effect, grade: str) -> str:
        """The rule."""
        if grade == "none":
            return ""
        if self.end:
            return "no answer yet"
        if effect.loss.high < 0 and not effect.loss.is_nothing:
            return "helps" if effect.rate is None else "not settled"
        return "no useful gain" if effect.loss.low > -self.spec.useful_nats else "not settled"

    def seeds_needed(self, effect: Effect) -> int:
        """To see a gain that is of use four times out of five, with the spread that was seen."""
        return seeds_to_see(self.spec.useful_nats, effect.loss.sd) if self.spec.useful_nats else 0

    def figures(self, effect: Effect) -> str:
        return f"{signed_number(effect.loss.mean, self.digits)} {self.unit} (95 % {interval(effect, self.digits)})"

    def sentence(self, effect: Effect, grade: str, before: str = "") -> str:
        """What may be quoted. ``before``: of a comparison that was extended, what it said as it was fixed
        beforehand.
        """
        if grade == "none":
            return f"Nothing can be concluded from {plural(effect.loss.n, 'seed')}; at least {FEWEST} are needed."
        if before:
            figures = f"{self.figures(effect)}, {plural(effect.loss.n, 'seed')}"
            return f"Extended after looking, so only a hint: {figures}. As it was fixed beforehand: {before}"
        text = self._answered(effect, self.answer(effect, grade))
        return f"Preliminary. {text}" if grade == "preliminary" else text

    def _answered(self, effect: Effect, answer: str) -> str:
        if answer == "no answer yet":
            how = (
                "with the rate, up to the highest tried"
                if self.end == "high"
                else "as the rate falls to the lowest tried"
            )
            return f"No answer yet: the baseline still improves {how}."
        rates = self.spec.optimiser.learning_rates
        where = f", {self.at_rates}" if effect.rate is None else ""
        where = where or (
            f", at the one rate tried ({rates[0]:g})" if len(rates) == 1 else f", at rate {effect.rate:g}"
        )
        n = f"{plural(effect.loss.n, 'seed')}{where}"
        if effect.loss.is_nothing:
            return f"No useful gain: under 0.001 {self.unit} either way, {n}."
        if answer == "helps":
            return f"It helps: {self.figures(effect)}, {n}; p {_p(effect.loss.p)}."
        if answer == "no useful gain":
            return f"No useful gain: loss {self.figures(effect)}, {n}."
        if effect.loss.high < 0:
            return (
                f"Not settled: {self.figures(effect)}, {n}; whether it is at the baseline's own best rate is not known."
            )
        needed = f"; about {self.seeds_needed(effect):,} seeds are needed" if effect.loss.sd > 0 else ""
        return f"Not settled: {self.figures(effect)}, {n}{needed}."

    def reading(self, effect: Effect, grade: str) -> str:
        i = effect.loss
        if grade == "none":
            return "Differences of single seeds are shown; they are as large as chance makes them."
        parts = []
        if self.end:
            parts.append(f"At the rates tried the difference is {self.figures(effect)}; nothing follows from it.")
        if i.spans_zero and not i.is_nothing:
            excluded = [
                f"gains larger than {outward(i.low, self.digits)}" if i.low < 0 else "",
                f"harms larger than {outward(i.high, self.digits)}" if i.high > 0 else "",
            ]
            if any(excluded):
                parts.append(f"The interval excludes {' and '.join(filter(None, excluded))} {self.unit}.")
        if not i.is_nothing:
            flip = f"; exact sign-flip p {_p(effect.p_flip)}" if effect.p_flip is not None else ""
            parts.append(f"Better in {effect.n_better} of {i.n} seeds{flip}.")
        if i.spans_zero and i.sd > 0 and self.spec.useful_nats and not i.is_nothing:
            n = self.seeds_needed(effect)
            parts.append(
                f"With this spread ({i.sd:.{self.digits}f}), seeing a gain of {self.spec.useful_nats:g} {self.unit} "
                "four "
                f"times out of five takes about {max(n, FIRM) if grade == 'preliminary' else n} seeds."
            )
        if grade == "preliminary":
            parts.append(f"Four seeds have misled before; {FIRM} or more are needed for a firm answer.")
        return " ".join(parts)

    def decides_more(self, effect: Effect, means: Sequence[tuple[float, float]]) -> str:
        """What the learning rate does to the baseline, where it is more than what the arm does."""
        fair = [(rate, loss) for rate, loss in means if math.isfinite(loss)]
        if len(fair) < 2:
            return ""
        best = min(fair, key=lambda one: one[1])
        other = fair[0] if best != fair[0] else fair[-1]
        gain = other[1] - best[1]
        if not gain > abs(effect.loss.mean):
            return ""
        return (
            f"The learning rate decides more: from {other[0]:g} to {best[0]:g} the baseline gains "
            f"{gain:.{self.digits}f} {self.unit}."
        )

    def identical(self, final: Mapping) -> str:
        """WISCA against the arm of its own learning rates, by the seeds that both have at one rate."""
        arms = self.spec.arms
        wisca = next((a for a in arms if a.kind == "balance" and a.strength == 1), None)
        rates = next(
            (
                a
                for a in arms
                if a.kind == "rates"
                and a.clip_norm == "weighted"
                and a.strength == 1
                and wisca is not None
                and (a.pairs, a.every, a.norm) == (wisca.pairs, wisca.every, wisca.norm)
            ),
            None,
        )
        if wisca is None or rates is None:
            return ""
        ours = {(rate, seed): loss for (arm, rate, seed), loss in final.items() if arm == wisca.name}
        theirs = {(rate, seed): loss for (arm, rate, seed), loss in final.items() if arm == rates.name}
        both = [theirs[key] - ours[key] for key in ours if key in theirs]
        if not both:
            return ""
        far = max(map(abs, both))
        if far < SAME_NATS:
            return f"WISCA is identical to these learning rates: no seed's loss differs by more than {far:.0e} nats."
        mean = sum(both) / len(both)
        return (
            f"WISCA and its learning rates alone are equal in law; rounding, which training magnifies, parts their "
            f"losses by {signed_number(mean, self.digits)} {self.unit} on average, {far:.{self.digits}f} at most."
        )

    def beside(self, main: Sequence[Effect], first: Effect) -> tuple[str, ...]:
        """The other arms whose interval excludes zero, each in a sentence; arms of a dose are a picture of their
        own.
        """
        doses = [arm.name for arm in self.spec.arms if arm.kind == "rates"]
        return tuple(
            f"Beside it, {title(self.spec.arm(e.arm))}: {self.figures(e)}, {verdict(e)}."
            for e in main
            if e is not first and is_clear(e) and not (len(doses) > 2 and e.arm in doses)
        )


def _fixed_seeds_sentence(comparison: Comparison, curves: pd.DataFrame) -> str:
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
    comparison: Comparison,
    main: Sequence[Effect],
    first: Effect,
    kinds: Mapping[str, str],
    best: Sequence[Effect],
    shares: Mapping[str, float],
) -> tuple[str, ...]:
    spec = comparison.spec
    out = []
    k = len(main)
    if k > 1:
        chance = 1 - CONFIDENCE**k
        out.append(
            f"With no effect at all, at least one of {k} intervals excludes zero in up to {chance:.0%} of such "
            "comparisons. The "
            f"question was one beforehand, {title(spec.arm(first.arm))}, and is not corrected for the arms beside it; "
            "their p values are, for "
            "each other (Holm); no interval is."
        )
    mirrored = [e for e in main if kinds[e.arm] == "inverse"]
    if not first.loss.spans_zero and any(
        not e.loss.spans_zero and (e.loss.mean < 0) == (first.loss.mean < 0) for e in mirrored
    ):
        out.append(
            "The control that is scaled the other way moves the loss in the same direction: the disturbance, not the "
            "balance, may be what acts."
        )
    out += _of_clipping(comparison, shares, first)
    shared = _same_text_titles(comparison)
    if shared:
        out.append(f"Not independent of {join_names(shared)}: the same text, and seeds in common.")
    if len(spec.optimiser.learning_rates) == 1 and not spec.has_pilot:
        out.append("One learning rate was tried. The sign of such a difference has been seen to change with the rate.")
    ends = {min(spec.optimiser.learning_rates), max(spec.optimiser.learning_rates)}
    if spec.has_pilot:
        at_end = [arm.name for arm in spec.arms if arm.name in comparison.pilot.at_end]
    else:
        at_end = [spec.baseline.name] if any(set(e.baseline_rates) & ends for e in best) else []
        at_end += [e.arm for e in best if set(e.rates) & ends]
    if at_end:
        are, their = ("is", "its") if len(at_end) == 1 else ("are", "their")
        # titles hold commas, so a long list of them would read as more arms than there are
        names = (
            "All arms" if len(at_end) == len(spec.arms) > 2 else join_names([title(spec.arm(name)) for name in at_end])
        )
        out.append(f"{names} {are} best at an end of the rates tried; {their} true best may lie outside.")
    failed = {c.seed for c in comparison.cells if c.state == "failed"}
    dropped = {seed for e in main for seed in e.missing}
    if dropped & failed:
        lost = ", ".join(map(str, sorted(dropped & failed)))
        out.append(
            f"Seeds without a complete pair are left out: {lost}. If the runs failed because of the arm, this flatters "
            "it."
        )
    if dropped - failed:
        out.append(f"Seeds whose runs are not finished are left out: {', '.join(map(str, sorted(dropped - failed)))}.")
    if comparison.is_extended:
        n = sum(len(a.seeds) for a in comparison.additions)
        out.append(
            f"Extended after looking: {n} seeds were added when results could be seen, so the intervals are narrower "
            "than they should be."
        )
    return tuple(out)


def _of_clipping(comparison: Comparison, shares: Mapping[str, float], first: Effect) -> list[str]:
    """What clipping looks at, where it binds on most steps: a rescale changes the norm that it measures."""
    here = [shares[name] for name in (first.arm, comparison.spec.baseline.name) if name in shares]
    if not here or max(here) <= 0.5:
        return []
    low, high = min(here), max(here)
    share = f"{high:.0%}" if round(low, 2) == round(high, 2) else f"{low:.0%} to {high:.0%}"
    return [
        f"Clipping at {comparison.spec.optimiser.clip:g} touches {share} of the steps and is measured in the rescaled "
        "coordinates: a part of the difference is what clipping looks at."
    ]


@lru_cache(4096)
def _sha256(corpus: Path, stamp: int) -> str:
    return json.loads(read_regular(corpus, 1 << 20))["sha256"]


def _same_text_titles(comparison: Comparison) -> list[str]:
    """Titles of comparisons beside this one that were tested on the same text with seeds in common."""
    sha, seeds = comparison.corpus.get("sha256"), set(comparison.spec.seeds)
    found = []
    for path in sorted(comparison.path.parent.iterdir()) if sha and comparison.path.parent.is_dir() else ():
        try:
            corpus = path / "corpus.json"
            if path == comparison.path or _sha256(corpus, corpus.stat().st_mtime_ns) != sha:
                continue
            spec = json.loads(read_regular(path / "spec.json", 1 << 20))
            if seeds & set(spec["seeds"]) and ModelSpec(**spec["model"]) == comparison.spec.model:
                found.append(str(spec["name"]))
        except (UnreadableInput, OSError, ValueError, KeyError, TypeError):
            continue  # not a comparison, or one that says nothing: it is reported on its own page
    return found


def remarks(report: Report) -> list[str]:
    """What is to be known beside the sentence, each in one."""
    out = list(report.remarks)
    if report.noise:
        out.append(f"The placebo, which changes rounding only, moves single runs by {placebo_words(report.noise)}.")
    out += [f"{arm}: {n} of {of} runs diverged." for arm, n, of in report.diverged]
    out += [f"No result from {cell}: {reason}" for cell, reason in report.missing]
    if report.n_unfinished:
        out.append(f"{plural(report.n_unfinished, 'run is', 'runs are')} not finished.")
    return out


def _p(value: float) -> str:
    return "unknown" if math.isnan(value) else "< 0.001" if value < 0.001 else f"= {value:.3f}"
