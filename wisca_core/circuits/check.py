"""A rescale tried on a model's own heads, in memory: what is said to stay stays, what is said to move moves."""

from dataclasses import dataclass

import numpy as np
import torch

from wisca_core.architecture.site import Sites
from wisca_core.checkpoint import Checkpoint, Reader
from wisca_core.circuits.columns import MOVED, UNMOVED
from wisca_core.circuits.inputs import Inputs
from wisca_core.circuits.layout import HeadRows, attentions, heads_of
from wisca_core.circuits.measure import attention_heads
from wisca_core.circuits.weights import AttentionWeights
from wisca_core.threads import one_thread

OCTAVES = 3.0


@dataclass(frozen=True)
class FactorCheck:
    """``stays``: the largest relative change of a column that is said to stay; ``moves``: the smallest of one that is
    said to move; over ``n_heads`` heads, factors up to 2^3 both ways on every cell.
    """

    n_heads: int
    stays: float
    moves: float


class _RescaledWeights(AttentionWeights):
    """The same weights with factors on the channels of their sites: left times the factor, right divided by it."""

    def __init__(self, checkpoint: Checkpoint, reader: Reader, factors: dict[str, np.ndarray]):
        super().__init__(checkpoint, reader)
        self._factors = factors

    def matrix(self, rows: HeadRows) -> torch.Tensor:
        return super().matrix(rows) * self._factor(rows)[:, None]

    def bias(self, rows: HeadRows) -> torch.Tensor:
        return super().bias(rows) * self._factor(rows)

    def _factor(self, rows: HeadRows) -> torch.Tensor:
        factor = torch.from_numpy(self._factors[rows.site][rows.channel])
        return factor if rows.side == "left" else 1 / factor


def factor_check(checkpoint: Checkpoint, sites: Sites, block: str, layer: int) -> FactorCheck | None:
    """One attention rescaled at random, cell by cell at the finest granularity; None where it has no heads."""
    heads = next(
        (h for h in attentions(heads_of(sites, checkpoint)) if (h[0].block, h[0].layer) == (block, layer)), None
    )
    if heads is None:
        return None
    rng, inputs = np.random.default_rng(0), Inputs(sites, checkpoint)
    factors = {}
    for site in sites.sites:
        labels = site.labels("channel")
        factors[site.name] = np.exp2(rng.uniform(-OCTAVES, OCTAVES, labels.max() + 1))[labels]
    with one_thread(), Reader(checkpoint) as reader:
        before = attention_heads(heads, AttentionWeights(checkpoint, reader), inputs).rows
        after = attention_heads(heads, _RescaledWeights(checkpoint, reader, factors), inputs).rows
    change = {
        column.name: [abs(b[column.name] / a[column.name] - 1) for a, b in zip(before, after) if a[column.name]]
        for column in (*UNMOVED, *MOVED)
    }
    largest = [np.nanmax(change[c.name]) for c in UNMOVED if np.isfinite(change[c.name]).any()]
    least = [np.nanmin(change[c.name]) for c in MOVED if np.isfinite(change[c.name]).any()]
    return FactorCheck(len(heads), max(largest, default=0.0), min(least, default=0.0))
