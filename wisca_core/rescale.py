"""Factors onto tensors: for each tensor, multiplication along its axes. Decides nothing.

16-bit values are multiplied in float32 and rounded once; F32 and F64 in float64. Where an offset is added first, or a
factor has no float32, 16-bit values too go through float64. A value whose factor is 1 keeps its bits.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from wisca_core.architecture.site import Sites

_WORK = {
    torch.float64: torch.float64,
    torch.float32: torch.float64,
    torch.bfloat16: torch.float32,
    torch.float16: torch.float32,
}
_CACHED = 1 << 17  # values that stay in a core's cache in both precisions
# factors in here have a float32 that is neither infinite nor subnormal
_SMALLEST, _LARGEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)


@dataclass(frozen=True, eq=False)
class Scaling:
    """What one tensor is multiplied by: ``along[axis]`` float64 of that axis' length (``along[axes]`` of the shape along
    several, where an expert or a head is fixed), and the offset of its stored values.
    """

    along: Mapping[int | tuple[int, ...], np.ndarray]
    offset: float = 0.0


def scalings(
    sites: Sites,
    cell_factors: Mapping[str, Sequence[float] | np.ndarray],
    granularity: str,
    shapes: Mapping[str, tuple[int, ...]],
    only_side: str | None = None,
) -> dict[str, Scaling]:
    """Tensor name -> Scaling, for the sites named in ``cell_factors`` (site name -> factor of each tie group).

    Legs of several sites on one tensor multiply; tensors whose factors are all 1 are left out. ``only_side`` ("left")
    scales one side alone, which changes the function: the control that a pair is alive.
    """
    along: dict[str, dict[int | tuple[int, ...], np.ndarray]] = {}
    offsets: dict[str, float] = {}
    for site in sites.sites:
        if site.name not in cell_factors:
            continue
        channel_factor = np.asarray(cell_factors[site.name], np.float64)[site.labels(granularity)]
        for leg in site.legs:
            if only_side not in (None, leg.side):
                continue
            axes = along.setdefault(leg.tensor, {})
            shape = shapes[leg.tensor]
            key = leg.axes if leg.fixed else leg.axis
            vector = axes.setdefault(key, np.ones([shape[axis] for axis in leg.axes]))
            vector.reshape(-1)[leg.flat(shape)] *= channel_factor[leg.channel.indices()] ** leg.signed_exponent
            offsets[leg.tensor] = leg.offset
    return {
        name: Scaling(axes, offsets[name])
        for name, axes in along.items()
        if any((vector != 1).any() for vector in axes.values())
    }


def rescaled(block: torch.Tensor, scaling: Scaling, first_row: int = 0) -> torch.Tensor:
    """``block`` (rows from ``first_row`` of axis 0, stored dtype) times its factors: a new tensor of the same shape and
    dtype.
    """
    factors = []
    for axis, vector in scaling.along.items():
        part = (
            vector[first_row : first_row + block.shape[0]]
            if axis == 0 or (isinstance(axis, tuple) and axis[0] == 0)
            else vector
        )
        factors.append(along_axis(torch.from_numpy(part), axis, block.dim()))
    out = times_(block.clone(), factors, scaling.offset, work_dtype(block.dtype, scaling))
    kept = torch.ones((), dtype=torch.bool)
    for factor in factors:
        kept = kept & (factor == 1)
    # a conversion there and back keeps every number but not the bits of a NaN
    return torch.where(kept, block, out) if kept.any() else out


def work_dtype(stored: torch.dtype, scaling: Scaling) -> torch.dtype:
    """The precision values of dtype ``stored`` are multiplied in."""
    if scaling.offset or not all(((v >= _SMALLEST) & (v <= _LARGEST)).all() for v in scaling.along.values()):
        return torch.float64
    return _WORK[stored]


def along_axis(vector: torch.Tensor, axis: int | tuple[int, ...], n_dims: int) -> torch.Tensor:
    """A view of ``vector`` that multiplies axis ``axis`` (ascending axes, of its shape) of a tensor of ``n_dims``
    dimensions.
    """
    shape = [1] * n_dims
    for one, n in zip((axis,) if isinstance(axis, int) else axis, vector.shape):
        shape[one] = n
    return vector.reshape(shape)


def times_(block: torch.Tensor, factors: Sequence[torch.Tensor], offset: float, work: torch.dtype) -> torch.Tensor:
    """Multiply the effective values ``block + offset`` in place, on the block's device, without asking the device
    anything.

    ``factors``: float64, as many dimensions as ``block``, broadcasting against it; ``work``: what ``work_dtype`` says.
    One rounding to the stored dtype a value, whatever the number of factors.
    """
    if not block.dim() or not block.numel():
        return block
    # off the CPU one kernel converts, multiplies and rounds; on it the conversion is fast only inside the cache
    if block.device.type != "cpu":
        if len(factors) == 1 and not offset:
            return block.mul_(factors[0].to(work))
        n_rows = block.shape[0]
    else:
        n_rows = max(1, _CACHED * block.shape[0] // block.numel())
    buffer = torch.empty((min(n_rows, block.shape[0]), *block.shape[1:]), dtype=work, device=block.device)
    for first in range(0, block.shape[0], n_rows):
        rows = block[first : first + n_rows]
        parts = [f if f.shape[0] == 1 else f[first : first + n_rows] for f in factors]
        wide = buffer[: rows.shape[0]].copy_(rows)
        if offset:
            wide += offset
        for part in parts:
            wide *= part.to(work)
        if offset:
            wide -= offset
            kept = torch.ones((), dtype=torch.bool, device=block.device)
            for part in parts:
                kept = kept & (part == 1)
            wide = torch.where(kept, rows, wide.to(block.dtype))
        rows.copy_(wide)
    return block


def changes(scaling: Mapping[str, Scaling]) -> dict[str, Callable[[torch.Tensor, int], torch.Tensor]]:
    """The same as functions (block, first row) -> block, as the writer of weight files takes them."""
    return {name: partial(_change, one) for name, one in scaling.items()}


def _change(scaling: Scaling, block: torch.Tensor, first_row: int) -> torch.Tensor:
    return rescaled(block, scaling, first_row)
