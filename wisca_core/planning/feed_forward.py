"""One feed-forward pair looked at closely: channel norms from the table, histograms from a part of the weights.

The matrices are most of a layer, so at most 4 million values of each are read, in blocks spread evenly over it.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch

from wisca_core.architecture.site import Leg, Site
from wisca_core.checkpoint import Checkpoint, Reader
from wisca_core.patterns.table import norm
from wisca_core.planning.decide import Decision
from wisca_core.planning.detail import BINS_PER_OCTAVE, TAIL, HeadDetail, RoleDetail

MOST_VALUES = 1 << 22
BLOCK = 1 << 18
_LOW, _HIGH = -1080 * BINS_PER_OCTAVE, 1030 * BINS_PER_OCTAVE  # whatever a float64 holds
NOTE = "An activation stands between up and down, so they have no product with a spectrum of its own."


def feed_forward_detail(checkpoint: Checkpoint, decision: Decision, number: int) -> HeadDetail:
    """Of the site with that number. ``channel_l1`` has a value a channel; there are no singular values."""
    patterns = decision.patterns
    site = patterns.sites.sites[number]
    legs = patterns.legs
    own = legs[(legs["site"] == number) & legs["measured"]]
    with Reader(checkpoint) as reader:
        roles = [
            _role(reader, site.legs[row.leg], site, np.arange(row.first, row.stop), decision)
            for row in own.itertuples()
        ]
    return HeadDetail(site.name, 0, tuple(roles), None, 0, {}, NOTE)


def _role(reader: Reader, leg: Leg, site: Site, rows: np.ndarray, decision: Decision) -> RoleDetail:
    table, factor = decision.patterns.rows, decision.row_factor[rows]
    both = {}
    for name in ("l1", "l2", "max", "mean"):
        both[name] = tuple(
            float(
                norm(
                    name,
                    {
                        "n": table["n"][rows].sum(),
                        "l1": (table["l1"][rows] * f).sum(),
                        "l2_sq": (table["l2_sq"][rows] * f * f).sum(),
                        "max": (table["max"][rows] * f).max(),
                    },
                )
            )
            for f in (1.0, factor)
        )
    counts, read = _counts(reader, leg, factor)
    n_values = int(table["n"][rows].sum())
    l1 = table["l1"][rows]
    return RoleDetail(
        leg.role,
        leg.tensor,
        (site.n_channels, n_values // site.n_channels),
        1,
        both["l1"],
        both["l2"],
        both["max"],
        both["mean"],
        (float(factor.min()), float(factor.max())),
        int(table["n_zero"][rows].sum()),
        int(table["n_nonfinite"][rows].sum()),
        *_histogram(counts),
        l1,
        l1 * factor,
        read / n_values,
    )


def _counts(reader: Reader, leg: Leg, factor: np.ndarray) -> tuple[np.ndarray, int]:
    """((2, bins) of nonzero finite values in quarter octaves, before and after; values looked at)."""
    counts, read = np.zeros((2, _HIGH - _LOW), np.int64), 0
    shift = torch.from_numpy(np.log2(factor))
    for block, channels, axis in _pieces(reader, leg):
        read += block.numel()
        size = block.double().abs()
        usable = (size > 0) & size.isfinite()
        logs = torch.log2(size)
        moved = logs + (shift[channels, None] if axis == 0 else shift[channels])
        for number, values in enumerate((logs, moved)):
            bins = (values[usable] * BINS_PER_OCTAVE).floor().clamp(_LOW, _HIGH - 1).long() - _LOW
            counts[number] += np.bincount(bins.numpy(), minlength=_HIGH - _LOW)
    return counts, read


def _pieces(reader: Reader, leg: Leg) -> Iterator[tuple[torch.Tensor, slice, int]]:
    """(values, which channels, the axis they lie along), blocks of the leg's channels spread over the matrix."""
    first, n, axis = leg.index.start, leg.index.sizes[-1], leg.axis
    if leg.fixed:
        ((fixed, at),) = leg.fixed
        matrix = reader.rows(leg.tensor, at, at + 1)[0] if fixed == 0 else reader.tensor(leg.tensor).select(fixed, at)
        axis -= fixed < axis
        shape, rows = tuple(matrix.shape), lambda low, high: matrix[low:high]
    else:
        shape, rows = reader.checkpoint.by_name[leg.tensor].shape, lambda low, high: reader.rows(leg.tensor, low, high)
    low, high = (first, first + n) if axis == 0 else (0, shape[0])
    step = max(1, BLOCK // shape[1])
    starts = range(low, high, step)
    every = max(1, math.ceil((high - low) * (shape[1] if axis == 0 else n) / MOST_VALUES))
    for start in starts[::every]:
        stop = min(start + step, high)
        block = rows(start, stop)
        yield (
            (block, slice(start - first, stop - first), 0)
            if axis == 0
            else (block[:, first : first + n], slice(0, n), 1)
        )


def _histogram(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Edges (log2) and percent before and after; the least 0.05 % at the lower end are folded into the first bin."""
    if not counts[0].any():
        return np.zeros(1), np.zeros(0), np.zeros(0)
    sums = counts.cumsum(axis=1)
    low = min(int(np.searchsorted(row, TAIL * row[-1], side="right")) for row in sums)
    high = max(int(np.flatnonzero(row)[-1]) + 1 for row in counts)
    percent = []
    for row in counts:
        kept = row[low:high].astype(float)
        kept[0] += row[:low].sum()
        percent.append(100 * kept / row.sum())
    return (np.arange(low, high + 1) + _LOW) / BINS_PER_OCTAVE, percent[0], percent[1]
