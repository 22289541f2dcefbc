"""Student's t interval of a mean, once: its half width for comparisons, evaluations and groups of runs."""

import math

CONFIDENCE = 0.95


def half_width(error: float, freedom: float, level: float = CONFIDENCE) -> float:
    """Half of the interval that covers the mean with probability ``level``: the t quantile times ``error``, the standard
    error, in its unit. NaN under one degree of freedom. scipy is imported when it is first used.

    >>> round(half_width(1.0, 3), 3), half_width(1.0, 0)
    (3.182, nan)
    """
    if freedom <= 0:
        return math.nan
    from scipy.stats import t

    return float(t.ppf(0.5 + level / 2, freedom)) * error
