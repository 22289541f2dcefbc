"""Factors onto tensors: for each tensor, multiplication along its axes. Decides nothing.

16-bit values are multiplied in float32 and rounded once; F32 and F64 in float64. Where an offset is added first, or a
factor has no float32, 16-bit values too go through float64. A value whose factor is 1 keeps its bits.

Twice: on tensors, wherever they are, and on stored bytes for an export, which needs no torch. Both give the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from wisca_core.architecture.site import Sites

if TYPE_CHECKING:
    import torch

_CACHED = 1 << 17  # values that stay in a core's cache in both precisions
# factors in here have a float32 that is neither infinite nor subnormal
_SMALLEST, _LARGEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)


@dataclass(frozen=True, eq=False)
class Scaling:
    """What one tensor is multiplied by: ``along[axis]`` float64 of that axis' length (``along[axes]`` of the shape
    along several, where an expert or a head is fixed), and the offset of its stored values.
    """

    along: Mapping[int | tuple[int, ...], np.ndarray]
    offset: float = 0.0

    def rows(self, first: int, n: int) -> list[tuple[int | tuple[int, ...], np.ndarray]]:
        """(axis, factors) of ``n`` rows of axis 0 from ``first`` on."""
        return [
            (axis, vector[first : first + n] if axis == 0 or (isinstance(axis, tuple) and axis[0] == 0) else vector)
            for axis, vector in self.along.items()
        ]

    @property
    def fits_float32(self) -> bool:
        """Whether 16-bit values may be multiplied in float32."""
        return not self.offset and all(((v >= _SMALLEST) & (v <= _LARGEST)).all() for v in self.along.values())


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


def rescaled_rows(block: torch.Tensor, scaling: Scaling, first_row: int = 0) -> torch.Tensor:
    """``block`` (rows from ``first_row`` of axis 0, stored dtype) times its factors: a new tensor of the same shape and
    dtype.
    """
    import torch

    parts = scaling.rows(first_row, block.shape[0])
    factors = [along_axis(torch.from_numpy(part), axis, block.dim()) for axis, part in parts]
    out = times_(block.clone(), factors, scaling.offset, work_dtype(block.dtype, scaling))
    kept = torch.ones((), dtype=torch.bool)
    for factor in factors:
        kept = kept & (factor == 1)
    # a conversion there and back keeps every number but not the bits of a NaN
    return torch.where(kept, block, out) if kept.any() else out


def work_dtype(stored: torch.dtype, scaling: Scaling) -> torch.dtype:
    """The precision values of dtype ``stored`` are multiplied in."""
    import torch

    return torch.float32 if stored.itemsize == 2 and scaling.fits_float32 else torch.float64


def along_axis(vector: torch.Tensor, axis: int | tuple[int, ...], n_dims: int) -> torch.Tensor:
    """A view of ``vector`` (an array's is an array) that multiplies axis ``axis`` (ascending axes, of its shape) of a
    tensor of ``n_dims`` dimensions.
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
    import torch

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


@dataclass(frozen=True, eq=False)
class Change:
    """A scaling as the writer of weight files takes it, for tensors and for stored bytes."""

    scaling: Scaling

    def __call__(self, block: torch.Tensor, first_row: int) -> torch.Tensor:
        return rescaled_rows(block, self.scaling, first_row)

    def stored(self, block: np.ndarray, dtype: str, first_row: int) -> np.ndarray:
        """``rescaled_rows`` without torch. ``block``: rows of stored values, 16-bit ones as integers."""
        return rescaled_stored_rows(block, dtype, self.scaling, first_row)


def changes(scaling: Mapping[str, Scaling]) -> dict[str, Change]:
    """Of each tensor, for ``write_weights``."""
    return {name: Change(one) for name, one in scaling.items()}


def rescaled_stored_rows(block: np.ndarray, dtype: str, scaling: Scaling, first_row: int = 0) -> np.ndarray:
    """``rescaled_rows`` of stored values: ``block`` has whole rows from ``first_row`` of axis 0, uint16 for BF16 and
    F16, else float32 and float64; so has what is returned, a new array. The bits are those that torch gives, but for
    NaNs.
    """
    parts = [along_axis(part, axis, block.ndim) for axis, part in scaling.rows(first_row, len(block))]
    work = np.float32 if block.itemsize == 2 and scaling.fits_float32 else np.float64
    with np.errstate(all="ignore"):
        wide = _numbers(block, dtype).astype(work)
        if scaling.offset:
            wide += scaling.offset
        for part in parts:
            wide *= part.astype(work)
        if scaling.offset:
            wide -= scaling.offset
        out = _to_stored(wide, dtype)
    kept = np.ones((), bool)
    for part in parts:
        kept = kept & (part == 1)
    return np.where(kept, block, out) if kept.any() else out


def _numbers(stored: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "BF16":
        wide = stored.astype(np.uint32)
        wide <<= np.uint32(16)
        return wide.view(np.float32)
    return stored.view(np.float16) if dtype == "F16" else stored


def _to_stored(wide: np.ndarray, dtype: str) -> np.ndarray:
    """Rounded to the nearest, ties to even. float64 goes to 16 bits by way of float32, as torch has it."""
    if dtype in ("F32", "F64"):
        return wide.astype(np.float32 if dtype == "F32" else np.float64, copy=False)
    narrow = wide.astype(np.float32, copy=False)
    if dtype == "F16":
        return narrow.astype(np.float16).view(np.uint16)
    bits = narrow.view(np.uint32)
    odd = bits >> np.uint32(16)
    odd &= np.uint32(1)
    odd += np.uint32(0x7FFF)
    odd += bits  # a NaN of 16 bits has none below them and cannot carry
    odd >>= np.uint32(16)
    return odd.astype(np.uint16)
