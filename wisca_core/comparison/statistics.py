"""The numbers behind a comparison's report.

The unit is the seed: an arm's final validation loss minus the baseline's of the same seed, so that what two runs share
(initial function, order of the data) drops out. The 95 % t interval of the mean decides; a bootstrap from 8 seeds on
and the count of better seeds stand beside it. Fewer than 4 seeds conclude nothing, 4 to 7 are preliminary.
"""

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy import stats

from wisca_core.comparison.folder import Comparison
from wisca_core.errors import UnequalStart
from wisca_core.intervals import CONFIDENCE, mean_interval

Curve = Sequence[tuple[float, float]]  # (step, loss)

# Equal starts are checked in float32, where a rescale moves the loss by rounding only.
START_TOLERANCE = 1e-5
FEWEST, FIRM = 4, 8
# An exact sign-flip p is given from so many differences on: its smallest value is then 2 / 64.
FEWEST_FLIPS, MOST_FLIPS = 6, 40
# What no figure here is written finer than: an interval inside it says that nothing is there, however clear of zero.
NOTHING_NATS = 0.0005
RESAMPLES = 10_000
POWER = 0.8  # four times out of five


@dataclass(frozen=True)
class Interval:
    """Mean of ``n`` paired differences with its 95 % t interval and two-sided p; NaN where n < 2."""

    n: int
    mean: float
    sd: float
    low: float
    high: float
    p: float

    @property
    def is_nothing(self) -> bool:
        """The whole interval is below what is written: rounding, say, that always goes one way."""
        return max(abs(self.low), abs(self.high)) < NOTHING_NATS

    @property
    def spans_zero(self) -> bool:
        """True as well where there is no interval: nothing is then excluded."""
        return not (self.low > 0 or self.high < 0)


@dataclass(frozen=True)
class Effect:
    """One arm against the baseline. ``rate``: the learning rate, None where each arm is at its own best one (``rates``:
    the one chosen for each seed, from the other seeds alone; ``baseline_rates`` the baseline's). ``perplexity``: the
    paired difference of exp(loss). ``bootstrap``: 95 % percentile interval, None under 8 seeds. ``steps_saved``: median
    over seeds of how many steps earlier the arm first reaches the baseline's final loss than the baseline does, None
    where it never does in some seed (``n_reached`` of n do). ``p_flip``: two-sided p of the exact sign-flip test, None
    under 6 seeds.
    """

    arm: str
    rate: float | None
    seeds: tuple[int, ...]
    differences: tuple[float, ...]
    loss: Interval
    perplexity: Interval
    bootstrap: tuple[float, float] | None
    n_better: int
    p_corrected: float
    steps_saved: float | None
    n_reached: int
    missing: tuple[int, ...]
    mean_final: float
    rates: tuple[float, ...] = ()
    baseline_rates: tuple[float, ...] = ()
    p_flip: float | None = None


# --- one sample of differences ----------------------------------------------------------------------------------------


def paired_interval(differences: Sequence[float]) -> Interval:
    """
    >>> i = paired_interval([1.0, 2.0, 3.0, 4.0])
    >>> i.mean, round(i.low, 3), round(i.high, 3), round(i.p, 4)
    (2.5, 0.446, 4.554, 0.0305)
    """
    n = len(differences)
    mean, sd, low, high = mean_interval(differences)
    if n < 2:
        return Interval(n, mean, sd, low, high, math.nan)
    error = sd / math.sqrt(n)
    p = float(2 * stats.t.sf(abs(mean) / error, n - 1)) if error > 0 else (1.0 if mean == 0 else 0.0)
    return Interval(n, mean, sd, low, high, p)


def bootstrap(differences: Sequence[float]) -> tuple[float, float] | None:
    """95 % percentile interval of the mean, always the same for the same values; None under 8 values, where it is too
    narrow.
    """
    d = np.asarray(differences, float)
    if len(d) < FIRM:
        return None
    means = d[np.random.default_rng(0).integers(0, len(d), (RESAMPLES, len(d)))].mean(axis=1)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def sign_flip(differences: Sequence[float]) -> float | None:
    """Two-sided p of the exact test whose null hypothesis is that every difference has either sign with probability one
    half (Fisher's randomisation test): the share of the 2^n sign patterns whose mean is at least as far from zero. None
    under 6 differences, where it cannot fall below 0.05, and over 40.

    >>> sign_flip([1.0] * 6), sign_flip([1.0, -1.0] * 3)
    (0.03125, 1.0)
    """
    d = np.asarray(differences, float)
    if not FEWEST_FLIPS <= len(d) <= MOST_FLIPS or not np.isfinite(d).all():
        return None
    limit = abs(d.sum()) - 1e-9 * np.abs(d).sum()  # a pattern that ties with the one seen counts, whatever it rounds to
    first, second = (_signed_sums(part) for part in (d[: len(d) // 2], d[len(d) // 2 :]))
    second.sort()
    above = len(second) - np.searchsorted(second, limit - first, "left")
    below = np.searchsorted(second, -limit - first, "right")
    return float(min(1.0, (above.sum() + below.sum()) / 2.0 ** len(d)))


def _signed_sums(values: np.ndarray) -> np.ndarray:
    out = np.zeros(1)
    for value in values:
        out = np.concatenate([out + value, out - value])
    return out


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction, in the given order; NaN stays NaN and counts for nothing.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    known = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    out, largest = [math.nan] * len(p_values), 0.0
    for rank, (p, i) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(known) - rank)))
        out[i] = largest
    return out


def seeds_to_see(effect: float, sd: float) -> int:
    """Fewest seeds (at least 4) whose paired t test finds a true difference ``effect`` with probability 0.8."""

    def enough(n: int) -> bool:
        critical, shift = stats.t.ppf(0.5 + CONFIDENCE / 2, n - 1), abs(effect) / sd * math.sqrt(n)
        # scipy gives NaN for the far tail on the other side, which is nothing
        return stats.nct.sf(critical, n - 1, shift) + np.nan_to_num(stats.nct.cdf(-critical, n - 1, shift)) >= POWER

    if sd == 0:
        return FEWEST
    most = FEWEST
    while not enough(most) and most <= 1_000_000:
        most *= 2
    return bisect_left(range(most), True, lo=FEWEST, key=enough)


# --- tables -----------------------------------------------------------------------------------------------------------


def check_starts(curves: pd.DataFrame) -> None:
    """Raises UnequalStart where the arms of a seed do not begin with the same validation loss, to 1e-5 relative in
    float32.
    """
    starts = curves[(curves["step"] == 0) & curves["val_loss"].notna()]
    for seed, rows in starts.groupby("seed"):
        low, high = rows["val_loss"].min(), rows["val_loss"].max()
        if high - low > START_TOLERANCE * abs(low):
            a, b = rows.loc[rows["val_loss"].idxmin()], rows.loc[rows["val_loss"].idxmax()]
            raise UnequalStart(
                f"seed {seed}: {a['cell']} begins at {low:.7f} nats and {b['cell']} at {high:.7f}, "
                f"{(high - low) / abs(low):.1e} apart; at most "
                f"{START_TOLERANCE:g} is allowed. They are not the same function, so their difference would say "
                f"nothing and is not reported."
            )


def finals(comparison: Comparison, curves: pd.DataFrame) -> pd.DataFrame:
    """One row a finished cell: cell, arm, rate, seed, start, final (nats), diverged: the final loss is not below that
    of the start, or, where training went on from trained weights, more than a tenth above it. The final loss is that on
    the final windows, where the run was measured on them.
    """
    done = {c.name for c in comparison.cells if c.state == "done"}
    rows = curves[curves["cell"].isin(done) & curves["val_loss"].notna()].sort_values("step")
    grouped = rows.groupby("cell", sort=False)
    out = (
        grouped[["arm", "rate", "seed"]]
        .first()
        .assign(
            start=grouped["val_loss"].first(), final=grouped["final_loss"].last().fillna(grouped["val_loss"].last())
        )
        .reset_index()
    )
    bound = out["start"] * (1.1 if comparison.spec.model.is_trained_before else 1.0)
    return out.assign(diverged=out["final"] >= bound)


def at_rate(curves: pd.DataFrame, rate: float | None) -> pd.DataFrame:
    """The rows at that rate; None, after a pilot, for each arm at its own: all there are."""
    return curves if rate is None else curves[curves["rate"] == rate]


def bands(curves: pd.DataFrame, rate: float | None, column: str = "val_loss") -> pd.DataFrame:
    """Mean, lowest and highest over the seeds that have the step: arm, step, mean, low, high, n."""
    rows = at_rate(curves, rate)
    rows = rows[rows[column].notna()]
    grouped = rows.groupby(["arm", "step"], sort=False)[column]
    return grouped.agg(["mean", "min", "max", "count"]).set_axis(["mean", "low", "high", "n"], axis=1).reset_index()


def gaps(curves: pd.DataFrame, baseline: str, rate: float | None) -> pd.DataFrame:
    """Paired difference to the baseline at every evaluated step: arm, step, mean, low, high (95 % t, NaN under 2
    seeds), n.
    """
    rows = at_rate(curves, rate)
    rows = rows[rows["val_loss"].notna()]
    table = rows.pivot_table(index=["seed", "step"], columns="arm", values="val_loss")
    found = []
    for arm in [a for a in dict.fromkeys(rows["arm"]) if a != baseline and baseline in table]:
        for step, values in (table[arm] - table[baseline]).dropna().groupby("step"):
            i = paired_interval(values.to_list())
            found.append((arm, step, i.mean, i.low, i.high, i.n))
    numbers = {"step": float, "mean": float, "low": float, "high": float, "n": int}
    return pd.DataFrame(found, columns=["arm", *numbers]).astype({"arm": str, **numbers})


def clipped_shares(curves: pd.DataFrame) -> dict[str, float]:
    """Arm -> share of its steps, over all seeds, whose gradient was longer than the limit; arms without the column,
    from before it was logged, are left out.
    """
    rows = curves[curves["clipped"].notna()].sort_values("step")
    steps = (
        rows.groupby("cell")["step"].diff().fillna(rows["step"])
    )  # each row speaks of the steps since the one before
    found = (rows["clipped"] * steps).groupby(rows["arm"]).sum() / steps.groupby(rows["arm"]).sum()
    return {str(arm): float(share) for arm, share in found.items()}


def best_rates(table: pd.DataFrame, arm: str, rates: Sequence[float], seeds: Sequence[int]) -> dict[int, float]:
    """Seed -> the rate with the lowest mean final loss over the *other* seeds; a rate that lacks one of them is not
    chosen.
    """
    losses = (
        table[table["arm"] == arm]
        .pivot_table(index="seed", columns="rate", values="final")
        .reindex(index=seeds, columns=rates)
    )
    out = {}
    for seed in seeds:
        others = losses.drop(index=seed)
        means = others.mean().where(others.notna().all())
        if len(others) and means.notna().any():
            out[seed] = float(means.idxmin())
    return out


# --- one arm ---------------------------------------------------------------------------------------------------------


def effect_of(
    arm: str,
    rate: float | None,
    seeds: Sequence[int],
    final: Mapping,
    base: str,
    curves: Mapping,
    chosen: Mapping | None = None,
) -> Effect:
    rates = {s: (rate, rate) if chosen is None else (chosen[arm].get(s), chosen[base].get(s)) for s in seeds}
    pairs = {s: (final.get((arm, a, s)), final.get((base, b, s))) for s, (a, b) in rates.items()}
    used = [s for s, (a, b) in pairs.items() if a is not None and b is not None]
    differences = [pairs[s][0] - pairs[s][1] for s in used]
    loss = paired_interval(differences)
    # exp of a diverged loss may overflow; the difference of losses still says what happened
    with np.errstate(over="ignore", invalid="ignore"):
        perplexity = paired_interval([float(np.exp(pairs[s][0]) - np.exp(pairs[s][1])) for s in used])
    saved = [_steps_saved(curves.get((arm, rates[s][0], s), []), curves[base, rates[s][1], s]) for s in used]
    reached = [x for x in saved if x is not None]
    return Effect(
        arm=arm,
        rate=rate,
        seeds=tuple(used),
        differences=tuple(differences),
        loss=loss,
        perplexity=perplexity,
        bootstrap=bootstrap(differences),
        n_better=sum(d < 0 for d in differences),
        p_corrected=loss.p,
        steps_saved=float(np.median(reached)) if reached and len(reached) == len(used) else None,
        n_reached=len(reached),
        missing=tuple(s for s in seeds if s not in used),
        mean_final=float(np.mean([pairs[s][0] for s in used])) if used else math.nan,
        rates=tuple(rates[s][0] for s in used) if chosen else (),
        baseline_rates=tuple(rates[s][1] for s in used) if chosen else (),
        p_flip=sign_flip(differences),
    )


def corrected_effects(effects: list[Effect], question: str) -> list[Effect]:
    """The effect of the arm ``question`` is the one that was asked about beforehand and stays as it is; the others are
    corrected for each other.
    """
    p = iter(holm([e.loss.p for e in effects if e.arm != question]))
    return [e if e.arm == question else replace(e, p_corrected=next(p)) for e in effects]


def _steps_saved(curve: Curve, baseline: Curve) -> float | None:
    level = baseline[-1][1]  # of the same windows as the curves
    theirs, own = first_reach(curve, level), first_reach(baseline, level)
    return None if theirs is None or own is None else own - theirs


def first_reach(curve: Curve, level: float) -> float | None:
    """The step, interpolated, at which a curve of (step, loss) first comes down to ``level``; None where it never does.

    >>> first_reach([(0, 5.0), (100, 3.0), (200, 2.0)], 2.5)
    150.0
    """
    before: tuple[float, float] | None = None
    for step, loss in curve:
        if loss <= level:
            if before is None or before[1] == loss:
                return float(step)
            return float(before[0] + (step - before[0]) * (before[1] - level) / (before[1] - loss))
        before = (step, loss)
    return None


def curves_by_cell(curves: pd.DataFrame) -> dict[tuple[str, float, int], Curve]:
    """(arm, rate, seed) -> its validation losses, of ``folder.curves``."""
    cells = curves[curves["val_loss"].notna()].groupby(["arm", "rate", "seed"])
    return {cell: list(zip(rows["step"], rows["val_loss"])) for cell, rows in cells}
