"""From a series to what is drawn of it: the x axis, smoothing that never looks ahead, and thinning that keeps the
extremes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from wisca_core.errors import BadOption
from wisca_core.runs.table import Run, Series

# Metrics that count tokens, by their names without case, best first.
TOKEN_METRICS = (
    "tokens",
    "train/tokens",
    "tokens_seen",
    "num_tokens",
    "n_tokens",
    "consumed_tokens",
    "num_input_tokens_seen",
    "train/num_input_tokens_seen",
    "total_tokens",
    "consumed tokens",
)


def token_metric(run: Run) -> str | None:
    """The metric of this run that counts tokens, None where there is none."""
    lower = {metric.lower(): metric for metric in run.series}
    return next((lower[name] for name in TOKEN_METRICS if name in lower), None)


def x_values(run: Run, series: Series, x: str) -> np.ndarray | None:
    """Where the points of ``series`` lie on that axis; float64 (n,), None where the run has no such axis.

    "step"; "tokens" (of a metric of TOKEN_METRICS); "time": seconds since the first point of the run; else the name of
    a metric, at each step its value there, or the last one before.
    """
    if x == "step":
        return series.step
    if x == "time":
        wall = series.wall_time
        firsts = [s.chunks[0][2] for s in run.series.values() if s.chunks and s.chunks[0][2] is not None]
        begins = [float(first[0]) for first in firsts if np.isfinite(first[0])]
        return wall - min(begins) if begins and np.isfinite(wall).any() else None
    metric = token_metric(run) if x == "tokens" else x
    if metric is None or metric not in run.series:
        return None
    other = run.series[metric]
    steps, values = other.step, other.value
    if (np.diff(steps) < 0).any():
        order = np.argsort(steps, kind="stable")
        steps, values = steps[order], values[order]
    at = np.searchsorted(steps, series.step, side="right") - 1
    return np.where(at >= 0, values[np.maximum(at, 0)], np.nan) if len(steps) else None


def smooth(values: np.ndarray, strength: float) -> np.ndarray:
    """The mean of each value and those before it, the one k points back weighing strength**k; nothing after it enters.

    ``strength`` in [0, 1): 0 changes nothing; see ``half_life``. NaN and infinities stay where they are and enter no
    mean.

    >>> smooth(np.array([0.0, 3.0]), 0.5)  # (0 * 0.5 + 3) / 1.5
    array([0., 2.])
    """
    if not 0 <= strength < 1:  # NaN too
        raise BadOption(f"smoothing: {strength} was given; it lies from 0 (none) up to, not including, 1.")
    if strength == 0 or not len(values):
        return values
    finite = np.isfinite(values)
    mean = (
        pd.Series(np.where(finite, values, np.nan))
        .ewm(alpha=1 - strength, adjust=True, ignore_na=True)
        .mean()
        .to_numpy()
    )
    return np.where(finite, mean, values)


def half_life(strength: float) -> float:
    """After how many points a value weighs half: what a smoothing of that strength means."""
    return 0.0 if strength == 0 else float(np.log(0.5) / np.log(strength))


def thin(lows: np.ndarray, most: int, highs: np.ndarray | None = None) -> np.ndarray:
    """Positions of at most about ``most`` points whose line looks like the whole one; int64, ascending.

    Neighbours are put into buckets of equal count, and of each the lowest of ``lows``, the highest of ``highs``
    (default the same), the first value that is not finite and, at both ends, the end itself are kept: no extreme and no
    gap is lost.
    """
    highs = lows if highs is None else highs
    n = len(lows)
    if n <= most:
        return np.arange(n)
    size = -(-n // max(1, (most - 2) // 2))
    whole = n - n % size
    kept = [np.array([0, n - 1])]
    rows_at_once = max(1, 1_000_000 // size)
    for start in range(0, whole, rows_at_once * size):
        stop = min(start + rows_at_once * size, whole)
        kept += _extremes(lows[start:stop].reshape(-1, size), highs[start:stop].reshape(-1, size), start)
    if whole < n:
        kept += _extremes(lows[None, whole:], highs[None, whole:], whole)
    return np.unique(np.concatenate(kept))


def _extremes(low: np.ndarray, high: np.ndarray, start: int) -> list[np.ndarray]:
    """Positions of each row's lowest, highest and first value that is not finite; the first value lies at ``start``."""
    begins = start + np.arange(len(low)) * low.shape[1]
    gap = ~np.isfinite(low)
    if not gap.any() and (high is low or np.isfinite(high).all()):
        return [begins + np.argmin(low, axis=1), begins + np.argmax(high, axis=1)]
    has_gap = gap.any(axis=1)
    return [
        begins + np.argmin(np.where(gap, np.inf, low), axis=1),
        begins + np.argmax(np.where(np.isfinite(high), high, -np.inf), axis=1),
        begins[has_gap] + np.argmax(gap[has_gap], axis=1),
    ]


@dataclass(frozen=True, eq=False)
class Line:
    """One line to draw: x, y (smoothed where asked) and raw, float64 of equal length; ``n`` points before thinning,
    ``n_window`` of them in the window.
    """

    x: np.ndarray
    y: np.ndarray
    raw: np.ndarray
    n: int
    n_window: int


def line(
    run: Run,
    metric: str,
    *,
    x: str = "step",
    smoothing: float = 0.0,
    window: tuple[float, float] | None = None,
    most: int = 2000,
) -> Line | None:
    """What is drawn of a metric: smoothed over all points, cut to ``window`` (in x, with one point more on each side),
    thinned to about ``most``. None where the run has no such metric or axis.
    """
    series = run.series.get(metric)
    at = None if series is None else x_values(run, series, x)
    if at is None or not len(at):
        return None
    raw = series.value
    y = smooth(raw, smoothing)
    n = len(at)
    if window is not None:
        inside = np.flatnonzero((at >= window[0]) & (at <= window[1]))
        if not len(inside):
            return Line(np.zeros(0), np.zeros(0), np.zeros(0), n, 0)
        chosen = np.unique(np.concatenate([[max(inside[0] - 1, 0)], inside, [min(inside[-1] + 1, n - 1)]]))
        at, y, raw = at[chosen], y[chosen], raw[chosen]
    kept = thin(y, most)
    return Line(at[kept], y[kept], raw[kept], n, len(at))


@dataclass(frozen=True, eq=False)
class Band:
    """A group of runs as one line: at each x the mean, lowest and highest of all ``n_runs``. ``grid``: "steps" where x
    are logged places that all runs have, "bins" where the runs log at different places and x are middles of equal
    intervals.
    """

    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    n_runs: int
    grid: str


def band(lines: Sequence[tuple[np.ndarray, np.ndarray]], most: int = 2000, n_bins: int = 400) -> Band | None:
    """Mean, lowest and highest over (x, y) of several runs, only where all of them have a value; None where that is
    nowhere.

    Runs that log at the same places are compared there. Otherwise each is averaged in ``n_bins`` equal intervals of the
    span they share. A place that a run logged twice counts with its last value.
    """
    lines = [_rising(x, y) for x, y in lines]
    if not lines or any(not len(x) for x, _ in lines):
        return None
    common = lines[0][0]
    for x, _ in lines[1:]:
        common = (
            common if len(common) == len(x) and (common == x).all() else np.intersect1d(common, x, assume_unique=True)
        )
    shortest = min(len(x) for x, _ in lines)
    if len(common) >= max(2, shortest // 2) or (len(common) and shortest <= 2):
        values = np.stack([y[np.searchsorted(x, common)] for x, y in lines])
        x, grid = common, "steps"
    else:
        first, last = max(x[0] for x, _ in lines), min(x[-1] for x, _ in lines)
        if not last > first:
            return None
        edges = np.linspace(first, last, n_bins + 1)
        rows = []
        for x, y in lines:
            inside = (x >= first) & (x <= last) & np.isfinite(y)
            bins = np.clip(np.searchsorted(edges, x[inside], side="right") - 1, 0, n_bins - 1)
            count = np.bincount(bins, minlength=n_bins)
            with np.errstate(invalid="ignore"):
                rows.append(np.bincount(bins, y[inside], n_bins) / count)
        values, x, grid = np.stack(rows), (edges[1:] + edges[:-1]) / 2, "bins"
        whole = np.isfinite(values).all(axis=0)
        values, x = values[:, whole], x[whole]
        if not len(x):
            return None
    mean, low, high = values.mean(axis=0), values.min(axis=0), values.max(axis=0)
    kept = thin(low, most, high)
    return Band(x[kept], mean[kept], low[kept], high[kept], len(lines), grid)


def _rising(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sorted by x, of equal x the one logged last."""
    known = np.isfinite(x)
    if not known.all():
        x, y = x[known], y[known]
    if (np.diff(x) > 0).all():
        return x, y
    order = np.argsort(x, kind="stable")
    x, y = x[order], y[order]
    last = np.append(x[1:] != x[:-1], True)
    return x[last], y[last]
