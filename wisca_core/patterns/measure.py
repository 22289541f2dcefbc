"""One pass over the weights of every site: the statistics of each channel, and a digest of each tensor read.

numpy and threads, no torch: a pass over a block that lies in the cache releases the interpreter's lock. 16-bit values
are compared and counted as the integers they are stored as, whose order is that of their magnitudes; their sums are
float32 over at most 256 values of a row or 64 of a column, float64 from there: of equal values, whose roundings all go
one way, more would miss a norm by over 1e-6. F32, F64 and gains stored as gain - 1 are float64 throughout. Everything
shown or planned later is arithmetic on what this pass returns.
"""

import math
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from itertools import groupby
from queue import SimpleQueue

import numpy as np
import xxhash

from wisca_core.architecture.site import Leg, Sites
from wisca_core.checkpoint import Checkpoint, Reader, TensorInfo
from wisca_core.checkpoint.reader import n_threads
from wisca_core.patterns.table import LOST_BITS, STATS, Patterns, header_digest
from wisca_core.progress import Progress, silent
from wisca_core.threads import one_thread

# values a block: large enough that Python's share is small, small enough that the passes over it stay in the cache
BLOCK = 1 << 17
_BYTES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}
_LANE, _COLUMN = 256, 64  # values of a row and of a column that are summed in float32 at most
_ROWS = 255  # rows of a block whose columns are summed: their counts fit into a byte
_MAGNITUDE = np.uint16(0x7FFF)
# Arithmetic on numbers below float32's smallest normal one is a hundred times as slow. BF16 values below 2^-63, whose
# squares are such numbers, are therefore summed as 2^-63 = 1e-19: beside a largest value of 1e-7 that is 1e-12 a value.
# Lines whose largest is smaller, or so large that its square overflows, are measured in float64.
_LEAST = np.uint16((127 - 63) << 7)  # 2^-63
# smallest and largest magnitude of a line's largest value whose square is a normal number of float32
_SAFE = {"BF16": (np.uint16(0x33D7), np.uint16(0x5863)), "F16": (np.uint16(0), np.uint16(0x7BFF))}  # 1e-7 to 1e15; all


def measure(
    checkpoint: Checkpoint, sites: Sites, progress: Progress = silent, opened: Reader | None = None
) -> Patterns:
    """Read every tensor that has a leg once, in file order, and return the table of channels. ``opened``: a Reader to
    read by, whose ``changes`` are then measured; else the stored weights are.

    Adds the rows' memory (about 60 bytes a channel and leg) and a few buffers of a block, whatever the size of the
    checkpoint. Raises CheckpointChanged, UnreadableInput, Cancelled.
    """
    wanted = _axes(leg for site in sites.sites for leg in site.legs)
    tensors = [t for t in checkpoint.tensors if t.name in wanted]
    total = sum(t.n_bytes for t in tensors)
    measured: dict[tuple[str, tuple[int, ...], float], dict[str, np.ndarray]] = {}
    digests: dict[str, str] = {}
    done = 0
    progress("measuring", 0, total)
    spare: SimpleQueue[_Buffers] = SimpleQueue()
    # tensors made as they are read: torch's own threads cost far more on small blocks than they bring
    with (
        nullcontext(opened) if opened else Reader(checkpoint) as reader,
        one_thread() if reader.made else nullcontext(),
    ):
        n = 1 if reader.made else n_threads()
        for _ in range(n):
            spare.put(_Buffers())

        def one(tensor: TensorInfo) -> tuple[str, list[_AxisStats]]:
            buffers = spare.get()
            try:
                stats = [_AxisStats(tensor, axes, offset, buffers) for axes, offset in wanted[tensor.name]]
                return _read(reader, tensor, stats), stats
            finally:
                spare.put(buffers)

        pool = ThreadPoolExecutor(n)
        try:
            for tensor, (digest, stats) in zip(tensors, pool.map(one, tensors)):
                for of_axes in stats:
                    measured[tensor.name, of_axes.axes, of_axes.offset] = of_axes.finish()
                digests[tensor.name] = digest
                done += tensor.n_bytes
                progress("measuring", done, total)
        finally:
            pool.shutdown(cancel_futures=True)
    shapes = {t.name: t.shape for t in tensors}
    return Patterns.gather(
        sites, measured, digests, header_digest(checkpoint), {t.name: t.dtype for t in tensors}, shapes
    )


def _axes(legs: Iterable[Leg]) -> dict[str, list[tuple[tuple[int, ...], float]]]:
    wanted: dict[str, dict[tuple[tuple[int, ...], float], None]] = {}
    for leg in legs:
        wanted.setdefault(leg.tensor, {})[leg.axes, leg.offset] = None
    return {name: list(axes) for name, axes in wanted.items()}


def _read(reader: Reader, tensor: TensorInfo, stats: "list[_AxisStats]") -> str:
    """Give every block of the tensor to each of ``stats``; the digest of its stored bytes."""
    digest = xxhash.xxh3_128()
    width, n_bytes = max(one.width for one in stats), _BYTES[tensor.dtype]  # the others divide the widest
    most = max(1, BLOCK // max(width, 1)) * width * n_bytes
    start = 0
    for piece in reader.raw(tensor.name, most):
        digest.update(piece)
        for one in stats:
            one.add(start, piece)
        start += len(piece) // n_bytes
    return digest.hexdigest()


class _Buffers:
    """Memory that is used again for every block, by name."""

    def __init__(self):
        self._kept: dict[tuple[str, np.dtype], np.ndarray] = {}

    def __call__(self, name: str, dtype: object, shape: tuple[int, ...]) -> np.ndarray:
        key, n = (name, np.dtype(dtype)), math.prod(shape)
        if key not in self._kept or self._kept[key].size < n:
            self._kept[key] = np.empty(n, dtype)
        return self._kept[key][:n].reshape(shape)


class _AxisStats:
    """Statistics of one tensor along some of its axes, gathered block by block.

    The tensor is seen as matrices, one behind the other, whose rows are its lines (``along`` 1: the columns are summed
    away) or whose columns are (``along`` 0). Neighbouring axes that are both kept, or both summed away, are one.
    """

    def __init__(self, tensor: TensorInfo, axes: tuple[int, ...], offset: float, buffers: _Buffers):
        self.axes, self.offset, self.dtype, self.buffers = axes, offset, tensor.dtype, buffers
        runs = [
            (kept, math.prod(n for _, n in group))
            for kept, group in groupby(((axis in axes, n) for axis, n in enumerate(tensor.shape)), lambda one: one[0])
        ]
        if len(runs) == 1:  # all are kept: a row for each matrix
            runs = [(True, math.prod(tensor.shape[:-1])), (False, 1), (True, tensor.shape[-1])]
        *outer, (_, self.n_rows), (are_columns, self.width) = runs
        self.along = 0 if are_columns else 1
        n_lines = self.width if are_columns else self.n_rows
        # where in the table the lines of each matrix begin: a matrix of its own for what is kept, the same for what is
        # not
        first = np.zeros(1, np.int64)
        stride = n_lines * math.prod(n for kept, n in outer if kept)
        for kept, n in outer:
            stride = stride // n if kept and n else stride
            first = (first[:, None] + (np.arange(n) * stride if kept else np.zeros(n, np.int64))).reshape(-1)
        self.first, self.n_lines = first, n_lines
        n_all = math.prod(tensor.shape[axis] for axis in axes)
        self.out = {name: np.zeros(n_all, dtype=dtype) for name, dtype in STATS.items()}
        self.out["min_abs"][:] = np.inf
        self.out["n"][:] = tensor.n_elements // n_all if n_all else 0
        self.lost = np.zeros((n_all, LOST_BITS), dtype=np.int64) if tensor.dtype == "F16" else None
        self.lane = (
            0 if self.along == 0 else max((n for n in range(1, _LANE + 1) if self.width // 2 % n == 0), default=1)
        )
        fits = self.width % 2 == 0 and (self.along == 0 or self.lane >= 64)
        self.short = tensor.dtype in _SAFE and not offset and fits
        # of 16-bit values: the largest magnitude, and the smallest that is not zero less one
        self.biggest = np.zeros(n_all if self.short else 0, np.uint16)
        self.smallest = np.full(n_all if self.short else 0, 0xFFFF, np.uint16)
        self.had_zeros = False  # of the block before: the next one is then likely to have some

    def add(self, start: int, piece: memoryview) -> None:
        """The values from element ``start`` on, in bytes; whole rows of its matrices."""
        stored = np.frombuffer(piece, {2: np.uint16, 4: np.float32, 8: np.float64}[_BYTES[self.dtype]])
        rows = stored.reshape(-1, self.width)
        at = start // self.width
        most = len(rows) if self.along else min(_ROWS, len(rows))
        while len(rows):
            matrix, row = divmod(at, self.n_rows)
            block = rows[: min(most, self.n_rows - row)]
            begin = int(self.first[matrix]) + (row if self.along else 0)
            lines = slice(begin, begin + (len(block) if self.along else self.width))
            self._add(lines, block)
            rows, at = rows[len(block) :], at + len(block)

    def _add(self, lines: slice, block: np.ndarray) -> None:
        if self.short:
            self._add_short(lines, block)
        else:
            found = self._wide(block)
            self._merge(lines, *found)
            if self.lost is not None:
                self._add_lost(lines, np.bitwise_and(block, _MAGNITUDE), found[4])

    def _merge(self, lines: slice, l1, l2_sq, biggest, smallest, n_zero, n_nonfinite) -> None:
        out = self.out
        out["l1"][lines] += l1
        out["l2_sq"][lines] += l2_sq
        np.maximum(out["max"][lines], biggest, out=out["max"][lines])
        np.minimum(out["min_abs"][lines], smallest, out=out["min_abs"][lines])
        out["n_zero"][lines] += n_zero
        out["n_nonfinite"][lines] += n_nonfinite

    def _wide(self, block: np.ndarray) -> tuple:
        """The statistics of each line in float64."""
        with np.errstate(all="ignore"):  # a NaN or infinity stays in the sums: it is refused later, never repaired
            work = np.abs(_values(block, self.dtype).astype(np.float64) + self.offset)
            l1, l2_sq = work.sum(self.along), np.square(work).sum(self.along)
            biggest, smallest = work.max(self.along), work.min(self.along)
            n_zero = n_nonfinite = 0
            if not (smallest > 0).all() or not np.isfinite(biggest).all():
                finite, zero = np.isfinite(work), work == 0
                n_zero, n_nonfinite = zero.sum(self.along), (~finite).sum(self.along)
                work[zero | ~finite] = np.inf
                smallest = work.min(self.along)
        return l1, l2_sq, biggest, smallest, n_zero, n_nonfinite

    def _add_short(self, lines: slice, block: np.ndarray) -> None:
        """16-bit values that need no offset. Zeros are counted on the way; a line with a value that is not finite, or
        whose largest is so small or large that its square leaves float32, is measured again in float64.
        """
        along, out = self.along, self.out
        magnitude = np.bitwise_and(block, _MAGNITUDE, out=self.buffers("magnitude", np.uint16, block.shape))
        biggest = magnitude.max(along)
        n_zero: np.ndarray | int = 0
        smallest = None if self.had_zeros else magnitude.min(along)
        if smallest is None or not smallest.all():
            n_zero = self._count(np.equal(magnitude, 0, out=self.buffers("is", bool, block.shape)))
            out["n_zero"][lines] += n_zero
            less = np.subtract(magnitude, 1, out=self.buffers("less", np.uint16, block.shape))
            smallest = less.min(along)
            self.had_zeros = bool(n_zero.any())
        else:
            smallest -= np.uint16(1)  # zero less one is the largest of all
        np.maximum(self.biggest[lines], biggest, out=self.biggest[lines])
        np.minimum(self.smallest[lines], smallest, out=self.smallest[lines])
        some_are_tiny = self.dtype == "BF16" and bool(smallest.min() < _LEAST - 1)
        l1, l2_sq = self._sums(magnitude, some_are_tiny)
        if some_are_tiny:
            l1[biggest == 0] = l2_sq[biggest == 0] = 0
        low, high = _SAFE[self.dtype]
        odd = biggest - low > high - low  # what is lower is beyond all once low is taken away
        if odd.any():
            odd &= biggest > 0
            l1[odd], l2_sq[odd], *_, n_nonfinite = self._wide(block[odd] if along else block[:, odd])
            out["n_nonfinite"][lines][odd] += n_nonfinite
        out["l1"][lines] += l1
        out["l2_sq"][lines] += l2_sq
        if self.lost is not None:
            self._add_lost(lines, magnitude, n_zero)

    def _sums(self, magnitude: np.ndarray, some_are_tiny: bool) -> tuple[np.ndarray, np.ndarray]:
        """Sum and sum of squares of each line, float64, from sums of a few values in float32."""
        halves = self._halves(magnitude, some_are_tiny)
        if self.along == 0:
            sums = np.zeros((2, 2, self.width // 2))
            for first in range(0, len(magnitude), _COLUMN):
                for half, part in enumerate(halves[:, first : first + _COLUMN]):
                    sums[0, half] += part.sum(0)
                    sums[1, half] += np.einsum("ij,ij->j", part, part)
            l1, l2_sq = sums.transpose(0, 2, 1).reshape(2, -1)
            return l1, l2_sq
        lanes = halves.reshape(-1, self.lane)
        shape = 2, len(magnitude), -1
        l1, l2_sq = np.einsum("ij->i", lanes), np.einsum("ij,ij->i", lanes, lanes)
        return l1.reshape(shape).sum((0, 2), dtype=np.float64), l2_sq.reshape(shape).sum((0, 2), dtype=np.float64)

    def _halves(self, magnitude: np.ndarray, some_are_tiny: bool) -> np.ndarray:
        """float32 (2, rows, width / 2): the values in even columns, then those in odd ones. A 32-bit word holds one of
        each, so that no value has to be moved.
        """
        if self.dtype == "BF16":
            if some_are_tiny:
                magnitude = np.maximum(magnitude, _LEAST, out=self.buffers("less", np.uint16, magnitude.shape))
            pairs = magnitude.view(np.uint32)
            out = self.buffers("halves", np.uint32, (2, *pairs.shape))
            np.left_shift(pairs, np.uint32(16), out=out[0])
            np.bitwise_and(pairs, np.uint32(0x7FFF0000), out=out[1])
            return out.view(np.float32)
        pairs = magnitude.view(np.uint32)
        out, twice = self.buffers("halves", np.uint32, (2, *pairs.shape)), self.buffers("twice", np.uint32, pairs.shape)
        np.left_shift(pairs, np.uint32(13), out=out[0])  # exponent and mantissa at their places in float32
        np.right_shift(pairs, np.uint32(3), out=out[1])
        for half in out:
            half &= np.uint32(0x0FFFE000)
            # exponents count from 112 lower there. A number without a leading bit, m 2^-24, now reads f = 2^-15 + m
            # 2^-25: it is 2 f - 2^-14, which of every other number is the larger. Positive floats compare as integers.
            np.add(half, np.uint32(113 << 23), out=twice)
            half += np.uint32(112 << 23)
            np.subtract(twice.view(np.float32), np.float32(2.0**-14), out=twice.view(np.float32))
            np.minimum(half, twice, out=half)
        return out.view(np.float32)

    def _count(self, which: np.ndarray) -> np.ndarray:
        """How many of a block are true in each line; int64. Bytes are added eight at a time where the width allows."""
        if self.along == 0:
            return which.view(np.uint8).sum(0, dtype=np.uint8).astype(np.int64)
        if self.width % 8:
            return np.count_nonzero(which, axis=1)
        words = which.view(np.uint64).reshape(len(which), -1)
        total = np.zeros(len(which), np.int64)
        for first in range(0, words.shape[1], _ROWS):
            total += words[:, first : first + _ROWS].sum(1).view(np.uint8).reshape(-1, 8).sum(1, dtype=np.int64)
        return total

    def _add_lost(self, lines: slice, magnitude: np.ndarray, n_zero: np.ndarray | int) -> None:
        """For k = 1..LOST_BITS, how many values of F16 lose bits when multiplied by 2^-k: those whose lowest set bit
        lies below 2^(k - 24). Halving shifts only the exponent until the result is subnormal, where the lowest bits go.
        """
        below = _below_lowest_bit(magnitude, self.buffers)
        which = self.buffers("is", bool, magnitude.shape)
        for k in range(1, LOST_BITS + 1):
            n = self._count(np.less(below, np.uint16(2 ** (k + 1) - 1), out=which))
            self.lost[lines, k - 1] += n - n_zero if k > 10 else n  # zeros read as 2^-14

    def finish(self) -> dict[str, np.ndarray]:
        """Each column flat over ``axes``, row-major."""
        if self.short:
            with np.errstate(invalid="ignore"):  # a NaN is kept
                self.out["max"][:] = _values(self.biggest, self.dtype)
                smallest = _values(self.smallest + np.uint16(1), self.dtype)
                np.copyto(self.out["min_abs"], smallest, where=(smallest > 0) & np.isfinite(smallest))
        return self.out | ({"lost": self.lost} if self.lost is not None else {})


def _values(stored: np.ndarray, dtype: str) -> np.ndarray:
    """The numbers that are stored, in a dtype that holds each exactly."""
    if dtype == "BF16":
        return (stored.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return stored.view(np.float16) if dtype == "F16" else stored


def _below_lowest_bit(magnitude: np.ndarray, buffers: _Buffers) -> np.ndarray:
    """2^(t + 1) - 1 for magnitudes of F16 whose lowest set bit is 2^(t - 24), t < 15, zeros taken for 2^-14; 65535 for
    a higher one and for what is not finite, which lose nothing.
    """
    bit, exponent = (buffers(name, np.uint16, magnitude.shape) for name in ("bit", "exponent"))
    np.bitwise_or(magnitude, np.uint16(1024), out=bit)  # the leading bit, of a number that has one
    np.negative(bit, out=exponent)
    np.bitwise_and(bit, exponent, out=bit)
    np.maximum(magnitude, np.uint16(1024), out=exponent)
    np.right_shift(exponent, np.uint16(10), out=exponent)
    np.left_shift(bit, exponent, out=bit)  # the lowest bit over 2^-25; nothing is left of one beyond 16 bits
    return np.subtract(bit, np.uint16(1), out=bit)
