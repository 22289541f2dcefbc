"""Student's t interval of a mean, once, for comparisons, evaluations and groups of runs; and the error of a ratio of
sums.
"""

import math
from collections.abc import Sequence

import numpy as np

CONFIDENCE = 0.95


def mean_interval(values: Sequence[float], level: float = CONFIDENCE) -> tuple[float, float, float, float]:
    """(mean, standard deviation (n - 1), low, high) with the t interval of the mean at ``level``; NaN where the values
    are too few.

    >>> mean_interval([2.0])
    (2.0, nan, nan, nan)
    """
    values = np.asarray(values, dtype=float)
    n = len(values)
    if n < 2:
        return (float(values.mean()) if n else math.nan), math.nan, math.nan, math.nan
    mean, sd = float(values.mean()), float(values.std(ddof=1))
    half = half_width(sd / math.sqrt(n), n - 1, level)
    return mean, sd, mean - half, mean + half


def ratio_error(sums: np.ndarray, counts: np.ndarray) -> float:
    """Standard error of ``sums.sum() / counts.sum()`` from the spread of its parts (windows, say); NaN under two."""
    n = len(sums)
    if n < 2:
        return math.nan
    left = sums - sums.sum() / counts.sum() * counts
    return float(math.sqrt(n / (n - 1) * (left**2).sum()) / counts.sum())


def half_width(error: float, freedom: float, level: float = CONFIDENCE) -> float:
    """Half of the interval that covers the mean with probability ``level``: the t quantile times ``error``, the
    standard error, in its unit. NaN under one degree of freedom. scipy is imported when it is first used.

    >>> round(half_width(1.0, 3), 3), half_width(1.0, 0)
    (3.182, nan)
    """
    if freedom <= 0:
        return math.nan
    from scipy.stats import t

    return float(t.ppf(0.5 + level / 2, freedom)) * error
