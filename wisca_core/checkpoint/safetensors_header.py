"""The header of a safetensors file, checked completely before a byte of weights is trusted.

Format: 8 bytes little-endian header length n, n bytes of JSON ``{name: {dtype, shape, data_offsets}}``, then the data.
The tensors must cover the data exactly: no overlap, no hole, nothing behind.
"""

import gc
import math
import os
from dataclasses import dataclass
from pathlib import Path

from wisca_core.checkpoint.checkpoint import DTYPE_BITS, TensorInfo
from wisca_core.errors import UnreadableInput
from wisca_core.untrusted import (
    locate,
    name_fault,
    open_regular,
    parse_json_object,
    printable,
    read_exactly,
    refuse_lookalike,
)

MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit
MAX_AXES = 64
_MAX_ELEMENTS = 2**63 - 1
_KEYS = {"dtype", "shape", "data_offsets"}
_INT = {int}  # not bool
_AGAIN = "Download the file again."


@dataclass(frozen=True)
class Header:
    """``tensors`` in order of offset; the data begins at byte ``data_start``; ``metadata`` is the file's own."""

    tensors: tuple[TensorInfo, ...]
    metadata: tuple[tuple[str, str], ...]
    data_start: int
    size: int  # of the whole file, bytes
    mtime_ns: int


def read_header(folder: Path, name: str) -> Header:
    """Header of the safetensors file ``name`` in a model folder (a real path).

    Raises UnreadableInput with file, tensor, what was found and what was expected; UnsafeInput where ``name`` leads out
    of the folder; UnsupportedCheckpoint for GGUF.
    """
    path, what = locate(folder, name), printable(folder / name)
    with open_regular(path) as file:
        status = os.fstat(file.fileno())
        start = read_exactly(file, min(status.st_size, 512), what)
        length = _header_length(start, status.st_size, what)
        file.seek(8)
        raw = read_exactly(file, length, what)
    # 100,000 tensors are 300,000 small objects that all stay: collecting garbage between them doubles the time.
    collecting = gc.isenabled()
    gc.disable()
    try:
        return _header(raw, name, what, status)
    finally:
        if collecting:
            gc.enable()


def _header(raw: bytes, file: str, what: str, status: os.stat_result) -> Header:
    entries = parse_json_object(raw, f"{what}: the safetensors header")
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise UnreadableInput(f"{what}: header invalid: __metadata__ is not an object of strings. {_AGAIN}")
    data_start = 8 + len(raw)
    tensors = _tensors(entries, file, what, data_start, status.st_size)
    return Header(tensors, tuple(metadata.items()), data_start, status.st_size, status.st_mtime_ns)


def _header_length(start: bytes, size: int, what: str) -> int:
    if size == 0:
        raise UnreadableInput(f"{what}: not a safetensors file: it is empty. {_AGAIN}")
    if start.startswith(b"PK\x03\x04"):
        raise UnreadableInput(
            f"{what}: not a safetensors file but a zip archive, as torch.save writes. Rename it to .bin."
        )
    refuse_lookalike(start, what)
    if size < 8:
        raise UnreadableInput(f"{what}: not a safetensors file: it has {size} bytes, fewer than 8. {_AGAIN}")
    length = int.from_bytes(start[:8], "little")
    if length > 2**40 or length < 2:
        raise UnreadableInput(f"{what}: not a safetensors file: header length impossible ({length} bytes). {_AGAIN}")
    if length > MAX_HEADER_BYTES:
        raise UnreadableInput(
            f"{what}: header of {length} bytes is too large; safetensors allows {MAX_HEADER_BYTES}. {_AGAIN}"
        )
    if 8 + length > size:
        raise UnreadableInput(
            f"{what}: ends early: its header alone needs {8 + length} bytes, the file has {size}. {_AGAIN}"
        )
    if start[8:9] != b"{":
        raise UnreadableInput(f"{what}: not a safetensors file: the header does not begin with '{{'. {_AGAIN}")
    return length


def _tensors(entries: dict, file: str, what: str, data_start: int, size: int) -> tuple[TensorInfo, ...]:
    found = []
    for name, entry in entries.items():
        if fault := name_fault(name):
            raise UnreadableInput(
                f"{what}: the tensor name {printable(name, 80)!r} {fault}. Rename it and save the file again."
            )
        if fault := _entry_fault(entry):
            raise UnreadableInput(f"{what}: layout invalid: tensor {printable(name)} {fault}. {_AGAIN}")
        begin, end = entry["data_offsets"]
        found.append((begin, end, name))
    found.sort()
    if found:
        _, end, name = max(found, key=lambda item: item[1])
        if data_start + end > size:
            raise UnreadableInput(
                f"{what}: ends early: tensor {printable(name)} needs the file to have {data_start + end} bytes, "
                f"it has {size}. {_AGAIN}"
            )
    position, previous, out = 0, "the header", []
    for begin, end, name in found:
        if begin != position:
            relation = (
                f"overlaps {printable(previous)}" if begin < position else f"leaves a hole of {begin - position} bytes"
            )
            raise UnreadableInput(
                f"{what}: layout invalid: tensor {printable(name)} {relation}: it begins at data byte {begin}, "
                f"expected {position}. {_AGAIN}"
            )
        entry = entries[name]
        out.append(TensorInfo(name, entry["dtype"], tuple(entry["shape"]), file, data_start + begin, end - begin))
        position, previous = end, name
    if data_start + position != size:
        raise UnreadableInput(
            f"{what}: layout invalid: {size - data_start - position} trailing bytes behind the last tensor "
            f"({printable(previous)}); expected {data_start + position} bytes in all, found {size}. {_AGAIN}"
        )
    return tuple(out)


def _entry_fault(entry: object) -> str | None:
    """What is wrong with one ``{dtype, shape, data_offsets}`` by itself, in words; None where nothing is."""
    if type(entry) is not dict or entry.keys() != _KEYS:
        return "does not have exactly dtype, shape and data_offsets"
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if type(dtype) is not str or dtype not in DTYPE_BITS:
        return f"has the unknown dtype {printable(dtype, 40)!r}; known are {', '.join(DTYPE_BITS)}"
    if type(shape) is not list or not _INT.issuperset(map(type, shape)):
        return "has a shape that is not a list of integers"
    if len(shape) > MAX_AXES:
        return f"has {len(shape)} axes, at most {MAX_AXES} are allowed"
    if shape and min(shape) < 0:
        return f"has a negative dimension: {printable(shape)}"
    if type(offsets) is not list or len(offsets) != 2 or not _INT.issuperset(map(type, offsets)):
        return "has data_offsets that are not two integers"
    if not 0 <= offsets[0] <= offsets[1]:
        return f"has impossible data_offsets {printable(offsets)}"
    n_elements = math.prod(shape)
    # A zero hides an overflow of the others, which then returns in any reader that multiplies in another order.
    if (n_elements or math.prod(n for n in shape if n)) > _MAX_ELEMENTS:
        return f"has the shape {printable(shape)}, whose product overflows"
    n_bits, n_bytes = n_elements * DTYPE_BITS[dtype], offsets[1] - offsets[0]
    if n_bits != 8 * n_bytes:
        return f"is {dtype} {printable(shape)}, which needs {-(-n_bits // 8)} bytes; its data_offsets give {n_bytes}"
    return None
