"""One pass over the weights of every site: the statistics of each channel, and a digest of each tensor read.

Sums are taken in float32 over blocks of about 262,144 values (float64 for F32 and F64 checkpoints) and accumulated in
float64; bfloat16 is never accumulated. Everything shown or planned later is arithmetic on what this pass returns.
"""

import math
from collections.abc import Iterable

import numpy as np
import torch
import xxhash

from wisca_core.architecture.site import Leg, Sites
from wisca_core.checkpoint import Checkpoint, Reader, TensorInfo
from wisca_core.patterns.table import LOST_BITS, STATS, Patterns, header_digest
from wisca_core.progress import Progress, silent

_ACCUMULATE = {"F64": torch.float64, "F32": torch.float64, "BF16": torch.float32, "F16": torch.float32}
# values a block: large enough that Python's share is small, small enough that the passes over it stay in the cache
BLOCK = 1 << 18
# float32 squares neither overflow nor vanish for magnitudes in here; a block outside is measured again in float64
_SAFE_MIN, _SAFE_MAX = 1e-15, 1e15


def measure(checkpoint: Checkpoint, sites: Sites, progress: Progress = silent) -> Patterns:
    """Read every tensor that has a leg once, in file order, and return the table of channels.

    Adds the rows' memory (about 60 bytes a channel and leg) and two disk buffers, whatever the size of the checkpoint.
    Raises CheckpointChanged, UnreadableInput, Cancelled.
    """
    wanted = _axes(leg for site in sites.sites for leg in site.legs)
    tensors = [t for t in checkpoint.tensors if t.name in wanted]
    total = sum(t.n_bytes for t in tensors)
    measured: dict[tuple[str, tuple[int, ...], float], dict[str, np.ndarray]] = {}
    digests: dict[str, str] = {}
    done = 0
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # threads on small blocks cost far more than they bring
    try:
        with Reader(checkpoint) as reader:
            for tensor in tensors:
                progress("measuring", done, total)
                digest = xxhash.xxh3_128()
                stats = [_AxisStats(tensor, axes, offset) for axes, offset in wanted[tensor.name]]
                for start, block in reader.blocks(tensor.name, BLOCK):
                    digest.update(block.contiguous().view(torch.uint8).numpy())
                    for one in stats:
                        one.add(start, block)
                for one in stats:
                    measured[tensor.name, one.axes, one.offset] = one.finish()
                digests[tensor.name] = digest.hexdigest()
                done += tensor.n_bytes
        progress("measuring", total, total)
    finally:
        torch.set_num_threads(threads)
    shapes = {t.name: t.shape for t in tensors}
    return Patterns.gather(
        sites, measured, digests, header_digest(checkpoint), {t.name: t.dtype for t in tensors}, shapes
    )


def _axes(legs: Iterable[Leg]) -> dict[str, list[tuple[tuple[int, ...], float]]]:
    wanted: dict[str, dict[tuple[tuple[int, ...], float], None]] = {}
    for leg in legs:
        wanted.setdefault(leg.tensor, {})[leg.axes, leg.offset] = None
    return {name: list(axes) for name, axes in wanted.items()}


class _AxisStats:
    """Statistics of one tensor along some of its axes, gathered block by block."""

    def __init__(self, tensor: TensorInfo, axes: tuple[int, ...], offset: float):
        self.axes, self.offset = axes, offset
        shape = tuple(tensor.shape[axis] for axis in axes)
        # the dimensions that are summed away; a tensor all of whose axes are kept gets one more
        self.over = tuple(d for d in range(len(tensor.shape)) if d not in axes) or (len(tensor.shape),)
        self.dtype = _ACCUMULATE[tensor.dtype]
        self.half = tensor.dtype == "F16"
        self.out = {name: np.zeros(shape, dtype=dtype) for name, dtype in STATS.items()}
        self.out["min_abs"][...] = np.inf
        self.out["n"][...] = tensor.n_elements // math.prod(shape)
        self.lost = np.zeros((*shape, LOST_BITS), dtype=np.int64) if self.half else None
        self.buffer = self.square = torch.empty(0, dtype=self.dtype)

    def add(self, start: int, block: torch.Tensor) -> None:
        if self.over[0] == block.dim():
            block = block.unsqueeze(-1)
        if self.buffer.numel() < block.numel():
            self.buffer, self.square = torch.empty(2, block.numel(), dtype=self.dtype)
        work = self.buffer[: block.numel()].view(block.shape)
        work.copy_(block)
        if self.offset:
            work.add_(self.offset)
        work.abs_()
        over = self.over
        at = slice(start, start + block.shape[0]) if self.axes[0] == 0 else slice(None)
        biggest, smallest = work.amax(over), work.amin(over)
        low, high = smallest.min().item(), biggest.max().item()
        if low > 0 and high < _SAFE_MAX and (low > _SAFE_MIN or self.dtype == torch.float64):
            square = torch.mul(work, work, out=self.square[: block.numel()].view(block.shape))
            self._merge(at, work.sum(over), square.sum(over), biggest, smallest)
        else:
            self._add_rare(at, work, over)
        if self.lost is not None:
            self._add_lost(at, block, over)

    def _merge(
        self, at: slice, l1: torch.Tensor, l2_sq: torch.Tensor, biggest: torch.Tensor, smallest: torch.Tensor
    ) -> None:
        out = self.out
        out["l1"][at] += l1.numpy()  # numpy adds in float64
        out["l2_sq"][at] += l2_sq.numpy()
        out["max"][at] = np.maximum(out["max"][at], biggest.numpy())
        out["min_abs"][at] = np.minimum(out["min_abs"][at], smallest.numpy())

    def _add_rare(self, at: slice, work: torch.Tensor, over: tuple[int, ...]) -> None:
        """A block with zeros, non-finite or extreme values: count them, and sum in float64."""
        wide = work.double()
        finite = wide.isfinite()
        zero = wide == 0
        self.out["n_nonfinite"][at] += (~finite).sum(over).numpy()
        self.out["n_zero"][at] += zero.sum(over).numpy()
        smallest = wide.masked_fill(zero | ~finite, np.inf).amin(over)
        # a NaN or infinity stays in the sums: a norm that is not finite is refused, never repaired
        self._merge(at, wide.sum(over), (wide * wide).sum(over), wide.amax(over), smallest)

    def _add_lost(self, at: slice, block: torch.Tensor, over: tuple[int, ...]) -> None:
        """For k = 1..LOST_BITS, how many values of F16 lose bits when multiplied by 2^-k: those whose lowest set bit
        lies below 2^(k - 24). Halving shifts only the exponent until the result is subnormal, where the lowest bits go.
        """
        bit = _LOWEST_BIT[block.contiguous().view(torch.uint16).numpy().reshape(block.shape)]
        kept = self.lost[at].shape[:-1]
        line = np.arange(math.prod(kept)).reshape([1 if d in over else n for d, n in enumerate(block.shape)])
        index = line * (LOST_BITS + 1) + np.minimum(bit, LOST_BITS)
        counts = np.bincount(index.reshape(-1), minlength=line.size * (LOST_BITS + 1)).reshape(*kept, LOST_BITS + 1)
        self.lost[at] += counts[..., :LOST_BITS].cumsum(-1)

    def finish(self) -> dict[str, np.ndarray]:
        """Each column flat over ``axes``, row-major."""
        out = {name: column.reshape(-1) for name, column in self.out.items()}
        return out | ({"lost": self.lost.reshape(-1, LOST_BITS)} if self.lost is not None else {})


def _lowest_bits() -> np.ndarray:
    """For each F16 bit pattern: exponent of its lowest set bit above 2^-24; 255 for zero and the non-finite."""
    pattern = np.arange(65536)
    exponent, mantissa = pattern >> 10 & 31, pattern & 1023
    significand = np.where(exponent > 0, mantissa + 1024, mantissa)
    trailing = np.log2((significand & -significand).clip(1)).astype(np.int64)
    lowest = trailing + np.maximum(exponent, 1) - 1
    return np.where((significand == 0) | (exponent == 31), 255, lowest).astype(np.uint8)


_LOWEST_BIT = _lowest_bits()
