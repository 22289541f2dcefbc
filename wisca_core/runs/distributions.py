"""What is kept of a logged histogram: a row of figures a step, so that thousands of them stay small.

Quantiles are read off the histogram, linear inside a bin, so they are as exact as its bins are narrow. ``l2`` is exact
where the tool logged the sum of squares (TensorBoard's own histograms), else it and ``l1`` take every value at the
middle of its bin.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
# The columns of ``Distribution.figures``: column -> meaning.
FIGURES = {
    "count": "values counted",
    "lowest": "lowest value, or lower end of the lowest bin",
    "q05": "5 % lie below",
    "q25": "25 % lie below",
    "median": "half lie below",
    "q75": "75 % lie below",
    "q95": "95 % lie below",
    "highest": "highest value, or upper end of the highest bin",
    "l1": "sum of absolute values",
    "l2": "root of the sum of squares",
}
MAX_BINS = 10_000
MOST_KEPT = 200_000


@dataclass(frozen=True, eq=False)
class Distribution:
    """The histograms of one name: ``step`` float64 (n,), ``figures`` float64 (n, len(FIGURES)), in the order logged."""

    metric: str
    step: np.ndarray
    figures: np.ndarray

    def __len__(self) -> int:
        return len(self.step)

    def column(self, name: str) -> np.ndarray:
        """One of FIGURES, float64 (n,)."""
        return self.figures[:, list(FIGURES).index(name)]


def figures_of(
    edges: Sequence[float],
    counts: Sequence[float],
    lowest: float = math.nan,
    highest: float = math.nan,
    sum_of_squares: float = math.nan,
) -> np.ndarray | None:
    """One row of FIGURES. ``edges`` (n + 1,) rising, ``counts`` (n,) of the bins between them; ``lowest``, ``highest``
    where the tool kept them. None where these are no counts of anything.

    >>> dict(zip(FIGURES, figures_of([0.0, 1.0, 2.0], [1, 3]).round(3).tolist()))["median"]
    1.333
    """
    edges, counts = np.asarray(edges, dtype=np.float64), np.asarray(counts, dtype=np.float64)
    if len(counts) != len(edges) - 1 or not 0 < len(counts) <= MAX_BINS or not np.isfinite(counts).all():
        return None
    total = float(counts.sum())
    if not total > 0 or (counts < 0).any():
        return None
    held = np.flatnonzero(counts)
    counts, left, right = counts[held], edges[:-1][held].copy(), edges[1:][held].copy()
    if math.isfinite(lowest):
        left[0] = max(left[0], lowest)
        right[0] = max(right[0], left[0])
    if math.isfinite(highest):
        right[-1] = min(right[-1], highest)
        left[-1] = min(left[-1], right[-1])
    if not (np.isfinite(left).all() and np.isfinite(right).all() and (right >= left).all()):
        return None
    below = np.concatenate([[0.0], np.cumsum(counts)])
    out = [total, left[0]]
    for q in QUANTILES:
        k = min(int(np.searchsorted(below, q * total, side="right")) - 1, len(counts) - 1)
        out.append(left[k] + (right[k] - left[k]) * (q * total - below[k]) / counts[k])
    middle = (left + right) / 2
    squares = sum_of_squares if math.isfinite(sum_of_squares) else float((counts * middle * middle).sum())
    return np.array([*out, right[-1], float((counts * np.abs(middle)).sum()), math.sqrt(max(squares, 0.0))])


def of_tool(cell: Mapping) -> np.ndarray | None:
    """A histogram as W&B and trackio write it into a row: values (counts) and bins (edges), or packed bins."""
    counts, edges = cell.get("values"), cell.get("bins")
    packed = cell.get("packedBins")
    if isinstance(packed, Mapping) and isinstance(counts, list):
        try:
            first, width, n = float(packed["min"]), float(packed["size"]), int(packed["count"])
        except (KeyError, TypeError, ValueError, OverflowError):
            return None
        edges = [first + width * i for i in range(n + 1)] if 0 < n <= MAX_BINS else None
    if not isinstance(counts, list) or not isinstance(edges, list):
        return None
    try:
        return figures_of(edges, counts)
    except (TypeError, ValueError, OverflowError):
        return None


# --- layers -----------------------------------------------------------------------------------------------------------

_LAYER = re.compile(r"(?<![A-Za-z0-9])(?:layers?|blocks?|h|encoder|decoder|resblocks|stages?)[._/](\d{1,5})(?=$|[._/])")
_NUMBER = re.compile(r"(?<![A-Za-z0-9])(\d{1,5})(?=$|[._/])")


def layer_of(name: str) -> tuple[str, int] | None:
    """(the name with * for its layer, layer) of a tensor's or site's name; None where it names no layer.

    >>> layer_of("parameters/model.layers.3.self_attn.q_proj.weight")
    ('parameters/model.layers.*.self_attn.q_proj.weight', 3)
    """
    found = _LAYER.search(name) or _NUMBER.search(name)
    if found is None:
        return None
    return f"{name[: found.start(1)]}*{name[found.end(1) :]}", int(found[1])


def families(names: Iterable[str]) -> dict[str, dict[int, str]]:
    """Names that differ in their layer alone together: family -> layer -> name, layers rising; a name without a layer
    is a family of its own, at layer -1.
    """
    out: dict[str, dict[int, str]] = {}
    for name in names:
        family, layer = layer_of(name) or (name, -1)
        out.setdefault(family, {})[layer] = name
    return {family: dict(sorted(members.items())) for family, members in out.items()}
