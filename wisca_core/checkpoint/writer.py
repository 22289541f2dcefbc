"""Weight files written again with some tensors changed: same names, shapes, dtypes, order, shards and metadata.

A changed tensor has the size of the old one, so in a safetensors file no offset moves: the header and every untouched
byte are copied (by the kernel where it can), and only the changed tensors are computed, on several cores. Torch files
become safetensors with the same split.
"""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xxhash

from wisca_core.checkpoint import RESCALABLE, Checkpoint, Reader, TensorInfo
from wisca_core.checkpoint.reader import n_threads
from wisca_core.errors import CheckpointChanged
from wisca_core.progress import Progress, silent
from wisca_core.threads import one_thread
from wisca_core.untrusted import locate, open_regular

if TYPE_CHECKING:
    import torch

# (block in stored dtype, its first row) -> block of the same shape and dtype. One that has ``stored`` too, (rows as an
# array, 16-bit values as integers; name of the dtype; first row) -> the same, may be asked by several threads at once,
# without torch. One with ``is_whole`` is given the whole tensor as its block
Change = Callable[["torch.Tensor", int], "torch.Tensor"]
_STORED = {"F64": np.float64, "F32": np.float32, "BF16": np.uint16, "F16": np.uint16}
_BLOCK = 1 << 17  # values that stay in a core's cache

_COPY_BYTES = 64 * 2**20


def write_weights(
    checkpoint: Checkpoint,
    changes: Mapping[str, Change],
    out: Path,
    progress: Progress = silent,
    *,
    as_read: bool = False,
) -> dict[str, str]:
    """Write every weight file of ``checkpoint`` into the folder ``out`` with ``changes`` applied. ``as_read``: under
    the names that the tensors were read by, where a safetensors file has others, which wrappers left.

    Returns tensor name -> xxh3 of the written bytes for the changed tensors. Raises CheckpointChanged, Cancelled,
    OSError (disk full); what was written until then stays in ``out``, which the caller throws away.
    """
    checkpoint = without_aliases(checkpoint)
    total = sum(t.n_bytes for t in checkpoint.tensors)
    done = 0
    digests: dict[str, str] = {}
    is_parallel = not checkpoint.recipes and all(hasattr(change, "stored") for change in changes.values())
    with Reader(checkpoint) as reader, _pool(is_parallel) as pool:
        for file in rewritten_files(checkpoint):
            tensors = [t for t in checkpoint.tensors if t.file == file]
            target = out / written_name(checkpoint, file)
            target.parent.mkdir(parents=True, exist_ok=True)
            with _open_copy(checkpoint, file, tensors, target, as_read) as copy:
                progress(f"writing {target.name}", done, total)
                for tensor, digest in copy.all(pool, tensors, reader, changes):
                    if digest:
                        digests[tensor.name] = digest
                    done += tensor.n_bytes
                    progress(f"writing {target.name}", done, total)
    if checkpoint.kind == "torch" or as_read:
        _write_index(checkpoint, out)
    progress("writing", total, total)
    return digests


@contextmanager
def _pool(is_parallel: bool) -> Iterator[ThreadPoolExecutor | None]:
    """Threads for arithmetic on stored bytes. Where torch is to multiply there are none, nor any of its own: on small
    blocks they cost far more than they bring.
    """
    if is_parallel:
        pool = ThreadPoolExecutor(n_threads())
        try:
            yield pool
        finally:
            pool.shutdown(cancel_futures=True)
        return
    with one_thread():
        yield None


def without_aliases(checkpoint: Checkpoint) -> Checkpoint:
    """The same with every alias as a tensor of its own, as it is written: safetensors files share no bytes, and where
    config.json does not tie the two names a model would otherwise miss one. transformers ties equal tensors again where
    config.json says so.
    """
    owners = checkpoint.by_name
    tensors = checkpoint.tensors + tuple(replace(owners[owner], name=alias) for alias, owner in checkpoint.aliases)
    return replace(checkpoint, tensors=tuple(sorted(tensors, key=lambda t: (t.file, t.offset, t.name))), aliases=())


def written_name(checkpoint: Checkpoint, file: str) -> str:
    """The name a weight file is written under: its own, or for what becomes safetensors the one transformers looks for,
    in the same split.
    """
    if checkpoint.kind == "safetensors":
        return file
    if not checkpoint.index_file:
        return "adapter_model.safetensors" if checkpoint.adapter_json else "model.safetensors"
    stem = re.sub(r"\.(bin|pt|pth|ckpt)$", "", file)
    return re.sub(r"(^|/)pytorch_model", r"\1model", stem) + ".safetensors"


def rewritten_files(checkpoint: Checkpoint) -> tuple[str, ...]:
    """The weight files that are written again, each under ``written_name``; a distributed checkpoint becomes one
    file.
    """
    return checkpoint.weight_files[:1] if checkpoint.kind == "dcp" else checkpoint.weight_files


class _Copy:
    """One weight file being written. ``at``: tensor name -> byte offset in the target."""

    def __init__(self, source, target: Path, at: Mapping[str, int], head: bytes):
        self.source, self.at = source, at
        self.fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        _write_all(self.fd, head, 0)

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)
        self.source.close()

    def copy_unchanged(self, tensor: TensorInfo, reader: Reader) -> None:
        if tensor.name in reader.made:
            position = self.at[tensor.name]
            for piece in reader.raw(tensor.name):
                _write_all(self.fd, piece, position)
                position += piece.nbytes
            return
        _copy_range(self.source.fileno(), tensor.offset, self.fd, self.at[tensor.name], tensor.n_bytes)

    def all(
        self, pool: ThreadPoolExecutor | None, tensors: list[TensorInfo], reader: Reader, changes: Mapping[str, Change]
    ) -> Iterator[tuple[TensorInfo, str]]:
        """Write every tensor; (tensor, digest of what was written, "" where it was not changed), in order."""

        def one(tensor: TensorInfo) -> str:
            if tensor.name in changes:
                return self.write_changed(tensor, reader, changes[tensor.name])
            self.copy_unchanged(tensor, reader)
            return ""

        if pool is None:
            for tensor in tensors:
                yield tensor, one(tensor)
            return
        waiting: list[Future] = []
        try:
            waiting = [pool.submit(one, tensor) for tensor in tensors]
            for tensor, future in zip(tensors, waiting):
                yield tensor, future.result()
        finally:  # nothing may still write when the file is closed
            for future in waiting:
                future.cancel()
            wait(waiting)

    def write_changed(self, tensor: TensorInfo, reader: Reader, change: Change) -> str:
        digest = xxhash.xxh3_128()
        position = self.at[tensor.name]
        for data in _changed_blocks(tensor, reader, change):
            digest.update(data)
            _write_all(self.fd, data, position)
            position += data.nbytes
        return digest.hexdigest()


def _changed_blocks(tensor: TensorInfo, reader: Reader, change: Change) -> Iterator[np.ndarray]:
    """Its new bytes, in order, some rows at a time."""
    if hasattr(change, "stored") and tensor.dtype in RESCALABLE and tensor.shape and tensor.name not in reader.made:
        dtype, row = _STORED[tensor.dtype], tensor.n_elements // max(tensor.shape[0], 1)
        most = max(1, _BLOCK // max(row, 1))
        first = 0
        for piece in reader.raw(tensor.name, most * row * np.dtype(dtype).itemsize):
            block = np.frombuffer(piece, dtype).reshape(-1, *tensor.shape[1:])
            yield np.ascontiguousarray(change.stored(block, tensor.dtype, first)).reshape(-1).view(np.uint8)
            first += len(block)
        return
    import torch

    is_whole = getattr(change, "is_whole", False)
    blocks = [(0, reader.tensor(tensor.name))] if is_whole else reader.blocks(tensor.name, max_elements=1 << 20)
    for first, block in blocks:
        yield change(block, first).contiguous().view(torch.uint8).numpy()


def _open_copy(checkpoint: Checkpoint, file: str, tensors: list[TensorInfo], target: Path, as_read: bool) -> _Copy:
    source = open_regular(locate(checkpoint.path, file))
    if checkpoint.kind == "safetensors" and not as_read:
        start = 8 + struct.unpack("<Q", os.pread(source.fileno(), 8, 0))[0]
        return _Copy(source, target, {t.name: t.offset for t in tensors}, os.pread(source.fileno(), start, 0))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at, position = {}, 0
    for tensor in tensors:
        at[tensor.name] = position
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [position, position + tensor.n_bytes],
        }
        position += tensor.n_bytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    head = struct.pack("<Q", len(text)) + text
    return _Copy(source, target, {name: len(head) + offset for name, offset in at.items()}, head)


def _write_index(checkpoint: Checkpoint, out: Path) -> None:
    if checkpoint.index_file is None:
        return
    index = {
        "metadata": {"total_size": sum(t.n_bytes for t in checkpoint.tensors)},
        "weight_map": {t.name: written_name(checkpoint, t.file) for t in checkpoint.tensors},
    }
    (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")


def _write_all(fd: int, data, position: int) -> None:
    view = memoryview(data).cast("B")
    while len(view):
        n = os.pwrite(fd, view, position)
        view, position = view[n:], position + n


def _copy_range(source: int, start: int, target: int, at: int, count: int) -> None:
    """Kernel copy where the platform has it, else through a buffer of 64 MB."""
    while count:
        n = 0
        if hasattr(os, "copy_file_range"):
            try:
                n = os.copy_file_range(source, target, min(count, 2**30), start, at)
            except OSError as error:
                if error.errno not in (18, 22, 38, 95):  # EXDEV, EINVAL, ENOSYS, EOPNOTSUPP: this pair of files cannot
                    raise
        if n == 0:
            data = os.pread(source, min(count, _COPY_BYTES), start)
            if not data:
                raise CheckpointChanged(
                    f"a weight file ended {count:,} bytes early while it was copied. Open the checkpoint again once "
                    "nothing writes to it."
                )
            _write_all(target, data, at)
            n = len(data)
        count, start, at = count - n, start + n, at + n
