"""The smallest model with a scale to move: two numbers, Q and K, trained so that their product hits C.

Every point of the valley QK = C is the same model. With L = (QK - C)^2 the curvature across the valley is 2 (Q^2 +
K^2): least where |Q| = |K|, so a balanced start bears the largest learning rate, 1 / (Q^2 + K^2) at the valley. At a
small rate steepness helps, and the unbalanced start is the faster one.
"""

from dataclasses import dataclass

import numpy as np

ARRIVED = 1e-3  # loss below which a path has reached the valley
MOST_STEPS = 200
FAR = 1e3  # a path that leaves this square has diverged


@dataclass(frozen=True)
class Descent:
    """``q``, ``k``: the path, start included. ``steps``: to the valley, None where it was not reached in MOST_STEPS."""

    q: np.ndarray
    k: np.ndarray
    steps: int | None
    diverged: bool


def start(ratio: float, target: float = 1.0, part: float = 0.3) -> tuple[float, float]:
    """(Q, K) with |Q| / |K| = ``ratio`` and product ``part`` of the target: every ratio starts at the same loss.

    >>> start(4.0, part=0.25)
    (1.0, 0.25)
    """
    k = float(np.sqrt(part * target / ratio))
    return ratio * k, k


def descend(q: float, k: float, rate: float, target: float = 1.0) -> Descent:
    """Plain gradient descent on (QK - C)^2 from (q, k).

    >>> descend(*start(1.0), rate=0.1).steps is not None
    True
    """
    qs, ks = [q], [k]
    steps, diverged = None, False
    for step in range(MOST_STEPS):
        if (q * k - target) ** 2 < ARRIVED:
            steps = step
            break
        error = 2 * (q * k - target)
        q, k = q - rate * error * k, k - rate * error * q
        if not abs(q) < FAR or not abs(k) < FAR:
            diverged = True
            break
        qs.append(q)
        ks.append(k)
    return Descent(np.array(qs), np.array(ks), steps, diverged)


def largest_rate(q: float, k: float) -> float:
    """The rate beyond which descent at the valley point with this ratio does not settle: 2 over the curvature."""
    return 1 / (q**2 + k**2)
