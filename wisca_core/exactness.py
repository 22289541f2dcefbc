"""A head small enough to try: which channels of Wq and Wk may be scaled apart without changing a score."""

import numpy as np

POSITIONS = {"none": "Learned or none", "rotary": "Rotary"}
SCALED = {"one": "One channel", "pair": "A rotary pair", "left": "Wq alone"}
_FACTOR, _DIM, _TOKENS = 4.0, 8, 16


def score_change(position: str, scaled: str) -> float:
    """Largest change of the scores of a random head of 8 channels over 16 tokens, relative to the largest score, when
    what ``scaled`` names is multiplied by 4 in Wq and (but for "left") divided by 4 in Wk; float64.

    >>> score_change("rotary", "pair") < 1e-14 < score_change("rotary", "one")
    True
    """
    rng = np.random.default_rng(0)
    wq, wk, x = rng.normal(size=(_DIM, 24)), rng.normal(size=(_DIM, 24)), rng.normal(size=(_TOKENS, 24))
    channels = {"one": [0], "pair": [0, _DIM // 2], "left": list(range(_DIM))}[scaled]
    s = np.ones(_DIM)
    s[channels] = _FACTOR
    before = _scores(x @ wq.T, x @ wk.T, position)
    inverse = np.ones(_DIM) if scaled == "left" else 1 / s
    after = _scores(x @ (wq * s[:, None]).T, x @ (wk * inverse[:, None]).T, position)
    return float(np.abs(after - before).max() / np.abs(before).max())


def _scores(q: np.ndarray, k: np.ndarray, position: str) -> np.ndarray:
    """(tokens, tokens); with rotary positions in the half-split layout."""
    if position == "rotary":
        q, k = _rotate(q), _rotate(k)
    return q @ k.T


def _rotate(x: np.ndarray) -> np.ndarray:
    half = x.shape[1] // 2
    angle = np.arange(len(x))[:, None] * 10.0 ** -np.arange(half)
    a, b = x[:, :half], x[:, half:]
    return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], axis=1)
