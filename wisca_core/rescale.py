"""Factors onto tensors: for each tensor, multiplication along its axes. Decides nothing.

16-bit values are multiplied in float32 and rounded once; F32 and F64 in float64. A value whose factor is 1 keeps its bits.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from wisca_core.architecture.site import Sites

_WORK = {torch.float64: torch.float64, torch.float32: torch.float64, torch.bfloat16: torch.float32, torch.float16: torch.float32}


@dataclass(frozen=True, eq=False)
class Scaling:
    """What one tensor is multiplied by: ``along[axis]`` float64 of that axis' length, and the offset of its stored values."""

    along: Mapping[int, np.ndarray]
    offset: float = 0.0


def scalings(
    sites: Sites,
    cell_factors: Mapping[str, Sequence[float] | np.ndarray],
    granularity: str,
    shapes: Mapping[str, tuple[int, ...]],
    only_side: str | None = None,
) -> dict[str, Scaling]:
    """Tensor name -> Scaling, for the sites named in ``cell_factors`` (site name -> factor of each tie group).

    Legs of several sites on one tensor multiply; tensors whose factors are all 1 are left out. ``only_side`` ("left") scales one
    side alone, which changes the function: the control that a pair is alive.
    """
    along: dict[str, dict[int, np.ndarray]] = {}
    offsets: dict[str, float] = {}
    for site in sites.sites:
        if site.name not in cell_factors:
            continue
        channel_factor = np.asarray(cell_factors[site.name], np.float64)[site.labels(granularity)]
        for leg in site.legs:
            if only_side not in (None, leg.side):
                continue
            axes = along.setdefault(leg.tensor, {})
            vector = axes.setdefault(leg.axis, np.ones(shapes[leg.tensor][leg.axis]))
            vector[leg.index.indices()] *= channel_factor[leg.channel.indices()] ** leg.signed_exponent
            offsets[leg.tensor] = leg.offset
    return {
        name: Scaling(axes, offsets[name])
        for name, axes in along.items()
        if any((vector != 1).any() for vector in axes.values())
    }


def rescaled(block: torch.Tensor, scaling: Scaling, first_row: int = 0) -> torch.Tensor:
    """``block`` (rows from ``first_row`` of axis 0, stored dtype) times its factors: a new tensor of the same shape and dtype."""
    work = block.to(_WORK[block.dtype])
    if scaling.offset:
        work = work + scaling.offset
    kept = torch.ones((), dtype=torch.bool)
    for axis, vector in scaling.along.items():
        part = vector[first_row : first_row + block.shape[0]] if axis == 0 else vector
        shape = [1] * block.dim()
        shape[axis] = -1
        factor = torch.from_numpy(part).reshape(shape)
        work = work * factor.to(work.dtype)
        kept = kept & (factor == 1)
    if scaling.offset:
        work = work - scaling.offset
    out = work.to(block.dtype)
    return torch.where(kept, block, out) if kept.any() else out


def changes(scaling: Mapping[str, Scaling]) -> dict[str, Callable[[torch.Tensor, int], torch.Tensor]]:
    """The same as functions (block, first row) -> block, as the writer of weight files takes them."""
    return {name: partial(_change, one) for name, one in scaling.items()}


def _change(scaling: Scaling, block: torch.Tensor, first_row: int) -> torch.Tensor:
    return rescaled(block, scaling, first_row)
