"""Runs side by side: what differs in their configuration, which belong together, and what their values say.

Not covered: corrections for looking at many metrics or groups. A comparison planned beforehand is the place for a
conclusion.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from wisca_core.intervals import half_width, mean_interval
from wisca_core.runs.table import Run, Series
from wisca_core.untrusted import printable
from wisca_core.words import plural, signed_number

# The last part of a setting's name that says which seed it was.
SEED_NAMES = ("seed", "random_seed", "rng_seed", "data_seed", "torch_seed")
_SEED_IN_NAME = re.compile(r"(?i)(?:^|[-_/., ])(?:seed|s)[-_= ]?(\d{1,9})(?=$|[-_/., )])")
# Settings that differ between any two runs and say nothing of what was tried.
_INCIDENTAL = re.compile(
    r"(?i)(^|[._/])(output_dir|logging_dir|run|cell|run_name|name|id|run_id|time|date|timestamp|hostname|host|pid|"
    r"wandb_id|best_metric|total_flos)$"
)
_HIGHER_IS_BETTER = re.compile(
    r"(?i)(^|[/_. -])(acc|accuracy|f1|auc|auroc|bleu|rouge\w*|"
    r"exact_match|em|precision|recall|reward|score|map|mrr|win_rate|mfu|"
    r"r2|throughput|tokens_per_second|tok/sec)([/_. -]|$)"
)


def seed_of(run: Run) -> str | None:
    """The run's seed as text: a setting named seed, else a part of its name such as seed-3 or s3; None where neither is
    there.
    """
    named = [name for name, value in run.config.items() if value is not None and _last(name) in SEED_NAMES]
    if named:
        return _cell(run.config[min(named, key=lambda name: (name.count("."), SEED_NAMES.index(_last(name))))])
    found = _SEED_IN_NAME.findall(run.name)
    return str(int(found[-1])) if found else None


def _last(setting: str) -> str:
    return setting.rsplit(".", 1)[-1].lower()


def differences(runs: Sequence[Run], *, incidental: bool = False) -> pd.DataFrame:
    """Settings that are not the same in all runs that say any: one row a run (index: its name), one column a setting,
    "" where a run does not say it. First those whose values differ, then those that only some runs say.

    Folders, names and dates are left out unless ``incidental``.
    """
    names = dict.fromkeys(name for run in runs for name in run.config)
    out = {}
    for name in names:
        cells = [_cell(run.config[name]) if name in run.config else "" for run in runs]
        if len({cell for cell, run in zip(cells, runs) if run.config}) > 1 and (
            incidental or not _INCIDENTAL.search(name)
        ):
            out[name] = cells
    out = dict(sorted(out.items(), key=lambda one: len({*one[1]} - {""}) < 2))
    return pd.DataFrame(out, index=pd.Index([run.name for run in runs], name="run"), dtype="str")


def _cell(value: object) -> str:
    if isinstance(value, float):
        return str(int(value)) if abs(value) < 1e15 and value == math.floor(value) else repr(value)
    if isinstance(value, int) and abs(value) >= 10**30:  # Python refuses to write out very long ones
        return f"a whole number of {value.bit_length()} bits"
    return str(value)


def by_configuration(runs: Sequence[Run]) -> dict[str, tuple[Run, ...]]:
    """Runs that differ in nothing but their seed together: title -> runs.

    Nothing known of two runs of a group says otherwise: not their settings, nor their names without the seed where the
    settings name no seed or the names do, nor the learning rates they logged. The title names the fewest settings that
    tell the groups apart, else the name without its seed.
    """
    table = differences(runs)
    kept = [name for name in table.columns if _last(name) not in SEED_NAMES]
    cells = table[kept].to_numpy() if kept else np.zeros((len(runs), 0), dtype=object)
    members: dict[tuple[str, ...], list[int]] = {}
    stems = [_SEED_IN_NAME.sub("", run.name).strip("-_/., ()") or "all runs" for run in runs]
    for k, run in enumerate(runs):
        says_seed = any(_last(name) in SEED_NAMES for name in run.config)
        stem = "" if says_seed and not _SEED_IN_NAME.search(run.name) else stems[k]
        members.setdefault((stem, *cells[k]), []).append(k)
    parts: list[list[int]] = []
    for group in members.values():
        parts += _apart(group, runs, stems)
    keys = [tuple(cells[part[0]]) for part in parts]
    titles = _titles(list(dict.fromkeys(key for key, part in zip(keys, parts) if runs[part[0]].config)), kept)
    out: dict[str, tuple[Run, ...]] = {}
    for key, part in zip(keys, parts):
        told = titles.get(key) if keys.count(key) == 1 else ""
        title, n = told or _stem(part, runs, stems), 1
        while (title if n == 1 else f"{title} ({n})") in out:
            n += 1
        out[title if n == 1 else f"{title} ({n})"] = tuple(runs[k] for k in part)
    return out


def _stem(part: Sequence[int], runs: Sequence[Run], stems: Sequence[str]) -> str:
    """What the names of a group's runs share: "trial" of trial-1 and trial-2, whose settings say the seeds 1 and 2."""
    found = {re.sub(rf"[-_./ ]0*{re.escape(seed_of(runs[k]) or ' ')}$", "", stems[k]) for k in part}
    return found.pop() if len(part) > 1 and len(found) == 1 else stems[part[0]]


def _apart(group: Sequence[int], runs: Sequence[Run], stems: Sequence[str]) -> list[list[int]]:
    """Runs that nothing in their settings tells apart, told apart by what they logged: other learning rates at the same
    step, or one seed twice under two names.
    """
    parts: list[list[int]] = []
    for k in group:
        for part in parts:
            same_seed = [j for j in part if seed_of(runs[j]) == seed_of(runs[k])]
            if not any(stems[j] != stems[k] for j in same_seed) and _same_rates(runs[part[0]], runs[k]):
                part.append(k)
                break
        else:
            parts.append([k])
    return parts


_RATE = re.compile(r"(?i)(^|[/_. ])(learning_?rate|lr)([-/_. ]|$)")


def _same_rates(a: Run, b: Run) -> bool:
    """Whether both logged the same learning rates wherever they logged one at the same step."""
    for metric in a.series:
        if metric not in b.series or not _RATE.search(metric):
            continue
        (first, x), (second, y) = ((run.series[metric].step, run.series[metric].value) for run in (a, b))
        _, i, j = np.intersect1d(first, second, return_indices=True)
        if not np.allclose(x[i], y[j], rtol=1e-5, atol=0.0, equal_nan=True):
            return False
    return True


def _titles(keys: Sequence[tuple[str, ...]], names: Sequence[str]) -> dict[tuple[str, ...], str]:
    """A title a key, of as few of its settings as tell all keys apart; "" where none of those is said."""
    if not names or not keys:
        return {}
    chosen: list[int] = []
    while True:
        apart = len({tuple(key[i] for i in chosen) for key in keys})
        if apart == len(keys) and chosen:
            break
        left = [i for i in range(len(names)) if i not in chosen]
        if not left:
            break
        # of settings that tell equally many apart, the one that most groups say, and of those the first
        gain = [
            (len({tuple(key[i] for i in (*chosen, j)) for key in keys}), sum(key[j] != "" for key in keys), -j)
            for j in left
        ]
        best = left[gain.index(max(gain))]
        if chosen and max(gain)[0] == apart:
            break
        chosen.append(best)
    chosen.sort()
    return {
        key: ", ".join(f"{names[i].rsplit('.', 1)[-1]} {printable(key[i], 40)}" for i in chosen if key[i] != "")
        for key in keys
    }


def by_seed(runs: Sequence[Run]) -> dict[str, tuple[Run, ...]]:
    """seed -> runs with it; "no seed" for the rest."""
    out: dict[str, list[Run]] = {}
    for run in runs:
        seed = seed_of(run)
        out.setdefault("no seed" if seed is None else f"seed {seed}", []).append(run)
    return {title: tuple(members) for title, members in out.items()}


_LOWER_IS_BETTER = re.compile(
    r"(?i)(loss|perplexity|(^|[/_. -])(ppl|nll|bpb|bits_per_byte|cer|wer|mse|mae|rmse|error)([/_. -]|$))"
)


def lower_is_better(metric: str) -> bool:
    """A guess by the name, which decides whether the lowest or the highest value is the best: accuracies rise."""
    return not _HIGHER_IS_BETTER.search(metric)


def is_judged(metric: str) -> bool:
    """Whether less or more of it is better at all, as the name says: a loss or a score, not a rate or a norm."""
    return bool(_HIGHER_IS_BETTER.search(metric) or _LOWER_IS_BETTER.search(metric))


@dataclass(frozen=True)
class Standing:
    """How groups stand to each other in their final values. ``first``: the group that is apart from every other beyond
    what their runs differ by, "" where none is; ``why`` says what that rests on or what is missing.
    """

    first: str
    why: str


def standing(groups: Mapping[str, Sequence[Run]], metric: str) -> Standing:
    """Which group ends lowest (highest, for a score), said only where it can be: runs that end at the same step, at
    least four shared seeds or runs a group, and every 95 % interval against the others, corrected for their number
    (Bonferroni), away from zero.
    """
    lower = lower_is_better(metric)
    table = ends_table(groups, metric, lower)
    table = table[np.isfinite(table["final"])]
    stats = group_statistics(table)
    if len(stats) < 2:
        return Standing("", "")
    if not is_judged(metric):
        return Standing("", f"Nothing says whether less or more of {metric} is better.")
    steps = sorted(table["final_step"].unique())
    if len(steps) > 1:
        return Standing("", f"Not ranked: the runs end at different steps, from {steps[0]:,.9g} to {steps[-1]:,.9g}.")
    means = stats["mean"].to_numpy()
    best = int(np.argmin(means) if lower else np.argmax(means))
    equal = [stats["group"].iloc[k] for k in range(len(means)) if means[k] == means[best]]
    if len(equal) > 1:
        return Standing("", f"{' and '.join(equal[:3])} end equal.")
    title, others = stats["group"].iloc[best], [t for k, t in enumerate(stats["group"]) if k != best]
    least = 0
    for other in others:
        found = _gap(groups, other, title, metric, lower, 1 - 0.05 / len(others))
        if found is None:
            return Standing(
                "",
                f"{title} ends {'lowest' if lower else 'highest'} on average, with too few runs of a kind "
                f"to tell that from chance (4 are the least).",
            )
        n, low, high = found
        if low <= 0 <= high:
            return Standing(
                "", f"{title} ends {'lowest' if lower else 'highest'} on average, but not apart from {other}."
            )
        least = min(least or n, n)
    return Standing(
        title,
        f"Apart from every other group beyond what their {least} runs differ by (95 % intervals, "
        f"corrected for {len(others)}).",
    )


def _gap(
    groups: Mapping[str, Sequence[Run]], a: str, b: str, metric: str, lower: bool, level: float
) -> tuple[int, float, float] | None:
    """(runs, low, high) of the interval of b minus a: over shared seeds, else of two independent means (Welch); None
    for fewer than four.
    """
    pairs = paired_difference(groups, a, b, metric, lower)
    if pairs.n >= 4:
        _, _, low, high = mean_interval(pairs.differences, level)
        return pairs.n, low, high
    sides = [
        np.array([e.final for run in groups[t] if metric in run.series for e in [ends(run.series[metric], lower)]])
        for t in (a, b)
    ]
    x, y = (side[np.isfinite(side)] for side in sides)
    if min(len(x), len(y)) < 4:
        return None
    parts = x.var(ddof=1) / len(x), y.var(ddof=1) / len(y)
    half, middle = 0.0, float(y.mean() - x.mean())
    if any(parts):
        freedom = sum(parts) ** 2 / (parts[0] ** 2 / (len(x) - 1) + parts[1] ** 2 / (len(y) - 1))
        half = half_width(math.sqrt(sum(parts)), freedom, level)
    return min(len(x), len(y)), middle - half, middle + half


LOSS_NAMES = (
    "loss",
    "train_loss",
    "train/loss",
    "lm loss",
    "train loss",
    "eval_loss",
    "val_loss",
    "val/loss",
    "eval/loss",
    "val loss",
    "train_loss_step",
)


def is_cell(run: Run) -> bool:
    """Whether it is a run of one of our comparisons: one arm at one rate with one seed."""
    return run.kind == "own" and {"arm", "learning_rate", "seed"} <= set(run.config)


def first_pair(groups: Mapping[str, Sequence[Run]], titles: Sequence[str], arms: Sequence[str] = ()) -> tuple[str, str]:
    """Which two of ``titles`` (two or more) are compared first: the baseline and the next group; of cells one that
    differs in its arm alone. ``arms``: of a comparison, as they come first, its baseline in front.
    """

    def said(title: str) -> Mapping[str, object]:
        return groups[title][0].config if is_cell(groups[title][0]) else {}

    def place(title: str) -> int:
        return arms.index(said(title).get("arm")) if said(title).get("arm") in arms else len(arms)

    a = min(titles, key=place) if arms else next((t for t in titles if "baseline" in t.lower()), titles[0])
    rate = said(a).get("learning_rate")
    return a, min((t for t in titles if t != a), key=lambda t: (said(t).get("learning_rate") != rate, place(t)))


def loss_metric(run: Run) -> str | None:
    """The metric of a run that is most likely its training loss, None where none is. Of a comparison's cell it is the
    validation loss, which its arms are judged by: the training loss of a single batch is noise of the same size.
    """
    if is_cell(run) and "val_loss" in run.series:
        return "val_loss"
    lower = {metric.lower(): metric for metric in run.series}
    named = next((lower[name] for name in LOSS_NAMES if name in lower), None)
    return named or next((metric for metric in run.series if "loss" in metric.lower()), None)


@dataclass(frozen=True)
class Ends:
    """Where a series ends: ``final`` is the last value logged (it may be NaN), ``best`` the lowest or highest finite
    one, at ``best_step``.
    """

    final: float
    final_step: float
    best: float
    best_step: float
    n: int


def ends(series: Series, lower: bool) -> Ends:
    """Final and best value."""
    value, step = series.value, series.step
    if not len(value):
        return Ends(math.nan, math.nan, math.nan, math.nan, 0)
    finite = np.isfinite(value)
    if not finite.any():
        return Ends(float(value[-1]), float(step[-1]), math.nan, math.nan, len(value))
    filled = np.where(finite, value, np.inf if lower else -np.inf)
    at = int(np.argmin(filled) if lower else np.argmax(filled))
    return Ends(float(value[-1]), float(step[-1]), float(value[at]), float(step[at]), len(value))


ENDS_COLUMNS = {
    "group": "title of the group",
    "run": "name of the run",
    "seed": "its seed, empty where unknown",
    "final": "last value logged",
    "final_step": "its step",
    "best": "lowest or highest finite value",
    "best_step": "its step",
    "points": "values logged",
}


def ends_table(groups: Mapping[str, Sequence[Run]], metric: str, lower: bool) -> pd.DataFrame:
    """One row a run that has ``metric``, columns ENDS_COLUMNS."""
    rows = []
    for title, members in groups.items():
        for run in members:
            if metric in run.series:
                e = ends(run.series[metric], lower)
                rows.append((title, run.name, seed_of(run) or "", e.final, e.final_step, e.best, e.best_step, e.n))
    return pd.DataFrame(rows, columns=list(ENDS_COLUMNS))


STATS_COLUMNS = {
    "group": "title of the group",
    "runs": "runs with a finite value",
    "not_finite": "runs whose value is NaN or infinite",
    "mean": "mean",
    "sd": "standard deviation between runs (n - 1); NaN for one run",
    "low": "95 % t interval of the mean, lower end",
    "high": "upper end",
    "min": "lowest",
    "max": "highest",
}


def group_statistics(table: pd.DataFrame) -> pd.DataFrame:
    """One row a group of ``ends_table``, of its final values; columns STATS_COLUMNS."""
    rows = []
    for title, part in table.groupby("group", sort=False):
        values = part["final"].to_numpy(float)
        finite = values[np.isfinite(values)]
        ends = (finite.min(), finite.max()) if len(finite) else (math.nan, math.nan)
        rows.append((title, len(finite), len(values) - len(finite), *mean_interval(finite), *ends))
    return pd.DataFrame(rows, columns=list(STATS_COLUMNS))


@dataclass(frozen=True)
class PairedDifference:
    """Group b minus group a in the final value, seed by seed. ``seeds`` both have (one run each); ``left_out`` (seed or
    run, reason).
    """

    a: str
    b: str
    metric: str
    seeds: tuple[str, ...]
    differences: tuple[float, ...]
    mean: float
    low: float
    high: float
    left_out: tuple[tuple[str, str], ...]

    @property
    def n(self) -> int:
        return len(self.seeds)


def paired_difference(
    groups: Mapping[str, Sequence[Run]], a: str, b: str, metric: str, lower: bool
) -> PairedDifference:
    """The difference between the final values of two groups over the seeds they share, 95 % t interval.

    Final values at different steps are no pair.
    """
    left_out: list[tuple[str, str]] = []
    sides = []
    for title in (a, b):
        found: dict[str, list[Ends]] = {}
        for run in groups[title]:
            seed = seed_of(run)
            if metric not in run.series:
                left_out.append((run.name, f"has no {metric}"))
            elif seed is None:
                left_out.append((run.name, "has no seed"))
            else:
                found.setdefault(seed, []).append(ends(run.series[metric], lower))
        sides.append(found)
    seeds, diffs = [], []
    for seed in dict.fromkeys([*sides[0], *sides[1]]):
        values = [side.get(seed, []) for side in sides]
        if not all(values):
            left_out.append((f"seed {seed}", f"only in {a if values[0] else b}"))
        elif any(len(v) > 1 for v in values):
            left_out.append((f"seed {seed}", "more than one run has it"))
        elif values[0][0].final_step != values[1][0].final_step:
            steps = f"{values[0][0].final_step:,.9g} and {values[1][0].final_step:,.9g}"
            left_out.append((f"seed {seed}", f"the runs end at different steps, {steps}"))
        elif not all(math.isfinite(v[0].final) for v in values):
            left_out.append((f"seed {seed}", "a value is not finite"))
        else:
            seeds.append(seed)
            diffs.append(values[1][0].final - values[0][0].final)
    mean, _, low, high = mean_interval(diffs)
    return PairedDifference(a, b, metric, tuple(seeds), tuple(diffs), mean, low, high, tuple(left_out))


def paired_sentence(p: PairedDifference, n_pairs: int = 1) -> str:
    """What the paired difference says, and no more: the mean with its interval, or that too few seeds are shared.
    ``n_pairs``: how many groups could have been set against ``p.a``, since looking at several finds something by
    chance.
    """
    if p.n == 0:
        shared = [
            f"{who}, {why}" for who, why in p.left_out if who.startswith("seed ") and not why.startswith("only in")
        ]
        if shared:
            return f"{p.metric} cannot be compared in pairs: {shared[0]}."
        if any(why == "has no seed" for _, why in p.left_out):
            return f"{p.metric} cannot be compared in pairs: not all of these runs say their seed."
        return f"No seed is in both groups, so {p.metric} cannot be compared in pairs."
    number = signed_number(p.mean)
    seeds = plural(p.n, "shared seed")
    if p.n < 4:
        least = "too few to conclude anything (4 are the least)"
        return f"{p.b} minus {p.a}: {number} in final {p.metric}, {seeds}; {least}."
    span = f"95 % {signed_number(p.low)} to {signed_number(p.high)}"
    caution = " Preliminary: fewer than 8 seeds." if p.n < 8 else ""
    if n_pairs > 1:
        caution += f" The interval is uncorrected: this is one of {n_pairs} pairs with {p.a}."
    if p.low <= 0 <= p.high:
        found = f"{p.b} minus {p.a} is {number} in final {p.metric} ({span})"
        return f"Not distinguishable: {found}, {seeds}.{caution}"
    return f"{p.b} minus {p.a}: {number} in final {p.metric} ({span}), {seeds}.{caution}"
