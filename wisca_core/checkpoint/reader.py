"""Reading stored values in blocks, with memory that does not grow with the model.

The bytes of a tensor are its values, row-major and little-endian, in safetensors files and in uncompressed torch
records alike, so one reader serves both. A big-endian host is refused. torch is loaded where a tensor is made; reading
bytes needs none.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Self

from wisca_core.checkpoint.checkpoint import Checkpoint, TensorInfo
from wisca_core.errors import CheckpointChanged, UnreadableInput, UnsupportedCheckpoint
from wisca_core.untrusted import locate, open_regular, printable

if TYPE_CHECKING:
    import torch

    from wisca_core.checkpoint.derived import ChangedTensor, DerivedTensor

DISK_BYTES = 8 * 2**20  # one read, or what is asked for ahead of smaller ones, which lose the kernel's read-ahead
MOST_THREADS = 4  # that read and compute at once: more wait for memory

if hasattr(os, "preadv"):

    def _read_at(fd: int, into: memoryview, offset: int) -> int:
        return os.preadv(fd, [into], offset)

elif hasattr(os, "pread"):  # macOS before 11

    def _read_at(fd: int, into: memoryview, offset: int) -> int:
        data = os.pread(fd, len(into), offset)
        into[: len(data)] = data
        return len(data)

else:  # Windows: moves the file position, so one thread a Reader

    def _read_at(fd: int, into: memoryview, offset: int) -> int:
        os.lseek(fd, offset, os.SEEK_SET)
        data = os.read(fd, len(into))
        into[: len(data)] = data
        return len(data)


def n_threads() -> int:
    """How many threads may read through one Reader and compute on what they read."""
    if not hasattr(os, "pread"):  # they would share the file position
        return 1
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MOST_THREADS, available)


class Reader:
    """Open weight files of a checkpoint; use as a context manager.

    Names are those of ``checkpoint.tensors`` and of its aliases; another name is a KeyError. Every method raises
    CheckpointChanged where a file is not, in size and mtime, what it was when the checkpoint was opened, and
    UnsupportedCheckpoint where torch has no dtype for the values (``raw`` reads those too).

    Tensors with a recipe are made of their stored parts as they are read, and those with one of the ``changes`` (as
    ``write_weights`` takes them) are what would be written.

    ``blocks`` iterators each have their own buffer, so several may run at once; ``rows`` calls share one.
    """

    def __init__(self, checkpoint: Checkpoint, changes: Mapping[str, Callable] | None = None):
        if sys.byteorder != "little":
            raise UnsupportedCheckpoint(
                "this machine is big-endian; weights are stored little-endian and not converted here"
            )
        self.checkpoint = checkpoint
        self._alias = dict(checkpoint.aliases)
        self.made = _derived_tensors(checkpoint, self._part) if checkpoint.recipes else {}
        self.made |= _changed_tensors(checkpoint, changes, self._part, self.made) if changes else {}
        self._stamp = dict(zip(checkpoint.weight_files, checkpoint.stamps))
        self._fd: dict[str, int] = {}
        self._spare: list[bytearray] = []
        self._row_buffer = bytearray()
        self._open = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as opening:
            for name in self.checkpoint.weight_files:
                file = opening.enter_context(open_regular(locate(self.checkpoint.path, name)))
                self._fd[name] = file.fileno()
                self._check_unchanged(name)
            self._open = opening.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._fd.clear()
        self._spare.clear()
        self._row_buffer = bytearray()
        self._open.close()

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows ``start`` to ``stop`` of axis 0, stored dtype; valid until the next ``rows``. A scalar has one row."""
        info = self._info(name)
        n_rows, row_bytes = _row_layout(info)
        if info.name in self.made and 0 <= start <= stop <= n_rows:
            return self.made[info.name].rows(start, stop)
        if not 0 <= start <= stop <= n_rows:
            raise IndexError(f"{name} has {n_rows} rows, not {start} to {stop}")
        n_bytes = (stop - start) * row_bytes
        if len(self._row_buffer) < n_bytes:
            self._row_buffer = bytearray(n_bytes)
        self._fill(info, start * row_bytes, memoryview(self._row_buffer)[:n_bytes])
        return _as_tensor(self._row_buffer, info, 0, stop - start)

    def tensor(self, name: str) -> torch.Tensor:
        """The whole tensor, stored dtype and shape, in memory of its own."""
        info = self._info(name)
        if info.name in self.made:
            return self.made[info.name].rows(0, _row_layout(info)[0]).reshape(info.shape)
        import torch

        dtype = _torch_dtype(info)
        out = torch.empty(info.n_bytes, dtype=torch.uint8)
        self._fill(info, 0, memoryview(out.numpy()))
        return out.view(dtype).reshape(info.shape)

    def blocks(self, name: str, max_elements: int = 131072) -> Iterator[tuple[int, torch.Tensor]]:
        """(first row, rows) over the whole tensor in order, stored dtype; each block is valid until the next step.

        A block has as many whole rows of axis 0 as fit into ``max_elements``, at least one; the last may have fewer.
        """
        info = self._info(name)
        n_rows, row_bytes = _row_layout(info)
        if not info.n_bytes:
            return
        row_elements = info.n_elements // n_rows
        block = max(1, max_elements // row_elements)
        if info.name in self.made:
            yield from self.made[info.name].blocks(block)
            return
        chunk = max(1, DISK_BYTES // (block * row_bytes)) * block  # rows a disk read, a whole number of blocks
        buffer = self._spare.pop() if self._spare else bytearray()
        n_buffer = min(chunk, n_rows) * row_bytes
        if len(buffer) < n_buffer:
            buffer = bytearray(n_buffer)
        try:
            for first in range(0, n_rows, chunk):
                n = min(chunk, n_rows - first)
                self._fill(info, first * row_bytes, memoryview(buffer)[: n * row_bytes])
                for row in range(0, n, block):
                    yield first + row, _as_tensor(buffer, info, row * row_bytes, min(block, n - row))
        finally:
            if len(buffer) <= 2 * DISK_BYTES:  # one with very long rows is not kept
                self._spare.append(buffer)

    def raw(self, name: str, most: int = 0) -> Iterator[memoryview]:
        """The stored bytes in order, in pieces of ``most`` bytes (8 MB), the last with what is left; each is read-only
        and valid until the next step. Of a tensor that is made, pieces are whole rows of axis 0.
        """
        info = self._info(name)
        if info.name in self.made:
            import torch

            for _, block in self.blocks(name, DISK_BYTES // 4):
                yield memoryview(block.contiguous().view(torch.uint8).reshape(-1).numpy()).toreadonly()
            return
        most = most or DISK_BYTES
        buffer = memoryview(bytearray(min(most, info.n_bytes)))
        ahead = 0
        for start in range(0, info.n_bytes, most):
            piece = buffer[: min(most, info.n_bytes - start)]
            if most < DISK_BYTES and start + most > ahead:
                ahead = start + DISK_BYTES
                self._read_ahead(info, ahead)
            self._fill(info, start, piece)
            yield piece.toreadonly()

    def _read_ahead(self, info: TensorInfo, start: int) -> None:
        """Ask the system for the next bytes of the tensor, where it can be asked."""
        if hasattr(os, "posix_fadvise") and start < info.n_bytes:
            n = min(DISK_BYTES, info.n_bytes - start)
            os.posix_fadvise(self._fd[info.file], info.offset + start, n, os.POSIX_FADV_WILLNEED)

    def _part(self, info: TensorInfo, start: int, stop: int) -> torch.Tensor:
        """Rows of one stored part of a tensor that is made of several, in memory of their own."""
        _, row_bytes = _row_layout(info)
        buffer = bytearray((stop - start) * row_bytes)
        self._fill(info, start * row_bytes, memoryview(buffer))
        return _as_tensor(buffer, info, 0, stop - start)

    def _info(self, name: str) -> TensorInfo:
        return self.checkpoint.by_name[self._alias.get(name, name)]

    def _fill(self, info: TensorInfo, start: int, into: memoryview) -> None:
        fd, done = self._fd[info.file], 0
        try:
            while done < len(into):
                # 1 GiB at a time: macOS refuses reads of 2 GiB and more.
                n = _read_at(fd, into[done : done + 2**30], info.offset + start + done)
                if n == 0:
                    break
                done += n
        except OSError as error:
            raise UnreadableInput(
                f"{printable(info.file)}: reading {printable(info.name)} failed: {error.strerror}."
            ) from None
        self._check_unchanged(info.file)
        if done < len(into):
            raise CheckpointChanged(
                f"{printable(info.file)}: ended while {printable(info.name)} was read, {len(into) - done} bytes short. "
                f"Open the checkpoint again once nothing writes to it."
            )

    def _check_unchanged(self, name: str) -> None:
        status = os.fstat(self._fd[name])
        now = (status.st_size, status.st_mtime_ns)
        if now != self._stamp.setdefault(name, now):
            raise CheckpointChanged(
                f"{printable(self.checkpoint.path / name)}: written to since it was looked through "
                f"({self._stamp[name][0]} bytes then, {now[0]} now). "
                f"Open the checkpoint again once nothing writes to it."
            )


def _derived_tensors(checkpoint: Checkpoint, read) -> dict[str, DerivedTensor]:
    from wisca_core.checkpoint.derived import DerivedTensor

    return {name: DerivedTensor(checkpoint.by_name[name], recipe, read) for name, recipe in checkpoint.recipes}


def _changed_tensors(checkpoint: Checkpoint, changes: Mapping[str, Callable], read, made) -> dict[str, ChangedTensor]:
    from wisca_core.checkpoint.derived import ChangedTensor

    return {
        name: ChangedTensor(checkpoint.by_name[name], change, partial(read, checkpoint.by_name[name]), made.get(name))
        for name, change in changes.items()
    }


def _row_layout(info: TensorInfo) -> tuple[int, int]:
    """(rows of axis 0, bytes a row); a scalar is one row."""
    n_rows = info.shape[0] if info.shape else 1
    return n_rows, info.n_bytes // n_rows if n_rows else 0


def _torch_dtype(info: TensorInfo) -> torch.dtype:
    from wisca_core.checkpoint.torch_dtypes import TORCH_DTYPES

    try:
        return TORCH_DTYPES[info.dtype]
    except KeyError:
        raise UnsupportedCheckpoint(
            f"{printable(info.name)} is stored as {info.dtype}, a packed quantised format that is not read as numbers "
            "here."
        ) from None


def _as_tensor(buffer: bytearray, info: TensorInfo, offset: int, n_rows: int) -> torch.Tensor:
    import torch

    dtype, shape = _torch_dtype(info), (n_rows, *info.shape[1:])
    if not (count := math.prod(shape)):  # frombuffer refuses empty ones
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(buffer, dtype=dtype, count=count, offset=offset).reshape(shape)
