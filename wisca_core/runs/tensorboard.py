"""TensorBoard event files: every scalar and histogram of every tag, checked, in the order written; no tensorboard
needed.

A file is a sequence of records: length (uint64), masked CRC-32C of the length, that many bytes of an ``Event`` message,
masked CRC of the bytes (tensorflow/core/lib/io/record_writer.h). A record whose bytes fail their check is counted and
skipped; where a length fails, the file is searched for the next place at which one passes.
"""

import json
import re
import struct
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from google_crc32c import value as crc32c

from wisca_core.runs.distributions import figures_of
from wisca_core.runs.file_reader import FileReader
from wisca_core.runs.growing import Growing
from wisca_core.runs.messages import DecodeError, message
from wisca_core.runs.table import Run

_LENGTH, _CHECKED = struct.Struct("<Q"), struct.Struct("<QI")
_CHECK = struct.Struct("<I")
_HEADER, _FOOTER = 12, 4
# The largest record that is looked into; a summary of scalars is far smaller, images and graphs are not.
MAX_RECORD_BYTES = 8 << 20
# Behind a damaged length so many places are tried a file: about a second.
MOST_SEARCHED = 2_000_000
_NOT_ZERO = re.compile(rb"[^\0]")
# DataType of a tensor (types.proto) -> how its bytes are read, and the field that may hold its values instead
_TENSOR_DTYPES = {1: ("<f4", "float_val"), 2: ("<f8", "double_val"), 3: ("<i4", "int_val"), 9: ("<i8", "int64_val")}
_HALF = 19
# Tags that hold settings, not measurements.
HPARAMS = "_hparams_/"
_ARGS = "args/text_summary"


def masked_crc(data: bytes) -> int:
    """The CRC-32C of ``data`` as record files store it: rotated right by 15 bits, plus a constant."""
    crc = crc32c(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


class TensorBoard(FileReader):
    """The event files of one folder as one run, in the order of their names, which begin with their start times."""

    def _begin(self) -> None:
        super()._begin()
        self._files: dict[Path, Growing] = {}
        self._cut: dict[Path, int] = {}
        self._searched: dict[Path, int] = {}
        self._plugins: dict[bytes, bytes] = {}
        self._points: dict[bytes, tuple[array, array, array]] = {}

    def _growing(self) -> list[Growing]:
        paths = sorted(self.source.path.glob("*tfevents*")) if self.source.path.is_dir() else [self.source.path]
        for path in paths:
            self._files.setdefault(path, Growing(path))
        return [self._files[path] for path in paths]

    def _read(self, file: Growing) -> Iterator[tuple[int, int]]:
        self._cut[file.path] = 0
        yield from file.pieces(lambda data, at_end: self._take_records(file.path, data, at_end))

    def runs(self) -> tuple[Run, ...]:
        self._out.counts["cut"] = sum(map(bool, self._cut.values()))
        return super().runs()

    def _take_records(self, path: Path, data: bytes, at_end: bool) -> int:
        """Take the whole records of ``data``; how many bytes are done with."""
        at, end = 0, len(data)
        while at + _HEADER <= end:
            length, check = _CHECKED.unpack_from(data, at)
            if masked_crc(data[at : at + 8]) != check:
                at, found = self._search(path, data, at, at_end)
                if found:
                    continue
                break
            start, stop = at + _HEADER, at + _HEADER + length
            if stop + _FOOTER > end:  # a sound header whose record goes on behind the data
                break
            record = data[start:stop]
            if masked_crc(record) != _CHECK.unpack_from(data, stop)[0]:
                self._out.damaged(length + _HEADER + _FOOTER)
            elif length > MAX_RECORD_BYTES:
                self._out.counts["not_scalar"] += 1
            else:
                self._record(record)
            at = stop + _FOOTER
        if at_end:
            self._cut[path] = end - at
        self._hand_over()
        return at

    def _search(self, path: Path, data: bytes, at: int, at_end: bool) -> tuple[int, bool]:
        """(where to go on, whether a sound length lies there): the header at ``at`` is damaged."""
        tried, place, found = self._searched.get(path, 0), at + 1, False
        while tried < MOST_SEARCHED and not found:
            # a length has zero bytes on top: nothing else needs a check
            place = data.find(b"\0\0\0", place + 5) - 5
            if place < 0 or place + _HEADER > len(data):
                break
            if not any(data[place : place + _HEADER]):  # in a run of zeros there is no sound length
                behind = _NOT_ZERO.search(data, place)
                place = (behind.start() if behind else len(data)) - _HEADER + 1
                continue
            tried += 1
            length, check = _CHECKED.unpack_from(data, place)
            found = masked_crc(data[place : place + 8]) == check
            place += not found
        self._searched[path] = tried
        if found:
            self._out.damaged(place - at)
            return place, True
        skip = len(data) if at_end or tried >= MOST_SEARCHED else max(at, len(data) - _HEADER)
        self._out.damaged(skip - at, n=int(at_end))
        return skip, False

    def _record(self, record: bytes) -> None:
        try:
            event = message("Event").FromString(record)
        except DecodeError:
            self._out.damaged(len(record) + _HEADER + _FOOTER)
            return
        step, wall = event.step, event.wall_time
        for value in event.summary.value:
            if value.HasField("simple_value"):
                self._point(value.tag, step, value.simple_value, wall)
            else:
                self._other(value, step, wall)

    def _point(self, tag: bytes, step: int, value: float, wall: float) -> None:
        columns = self._points.get(tag)
        if columns is None:
            columns = self._points[tag] = (array("d"), array("d"), array("d"))
        columns[0].append(step)
        columns[1].append(value)
        columns[2].append(wall)

    def _other(self, value, step: int, wall: float) -> None:
        """A value that is no plain scalar: a histogram, a tensor, a setting, or something that is passed over."""
        tag, plugin = value.tag, value.metadata.plugin
        name = tag.decode("utf-8", "replace")
        if name.startswith(HPARAMS):
            if name == HPARAMS + "session_start_info":
                self._out.config(self.source.run, _hparams(plugin.content))
            return
        if name == _ARGS:
            self._args(value.tensor)
            return
        # writers name the plugin with the first value of a tag only
        kind = self._plugins.setdefault(tag, plugin.name) if plugin.name else self._plugins.get(tag, b"")
        if value.HasField("histo"):
            figures = _histogram(value.histo)
        elif value.HasField("tensor") and kind == b"scalars":
            number = _numbers(value.tensor)
            if number is not None and number.size == 1:
                self._point(tag, step, float(number.reshape(-1)[0]), wall)
                return
            figures = None
        elif value.HasField("tensor") and kind == b"histograms":
            figures = _histogram_of_tensor(value.tensor)
        else:
            figures = None
        if figures is None:
            self._out.counts["not_scalar"] += 1
        else:
            self._out.distribution(self.source.run, name, float(step), figures)

    def _hand_over(self) -> None:
        points, self._points = self._points, {}
        for tag, columns in points.items():
            step, value, wall = (self._out.keep(np.frombuffer(column, dtype=np.float64)) for column in columns)
            self._out.add(self.source.run, tag.decode("utf-8", "replace"), step, value, wall)

    def _args(self, tensor) -> None:
        """The settings that transformers' Trainer writes as text."""
        text = b"".join(tensor.string_val)
        start = text.find(b"{")
        try:
            parsed, _ = json.JSONDecoder().raw_decode(text[max(start, 0) :].decode("utf-8", "replace"))
            if isinstance(parsed, dict):
                self._out.config(self.source.run, parsed)
        except (ValueError, RecursionError):
            pass


def _numbers(tensor) -> np.ndarray | None:
    """The numbers of a tensor, float64 in its shape; None where it holds something else or not as many as it says."""
    shape = [dim.size for dim in tensor.shape.dim]
    if any(n < 0 for n in shape):
        return None
    size = int(np.prod(shape, dtype=object)) if shape else 1
    if tensor.dtype == _HALF:
        kind, listed = "<f2", ()
    elif tensor.dtype in _TENSOR_DTYPES:
        kind, field = _TENSOR_DTYPES[tensor.dtype]
        listed = getattr(tensor, field)
    else:
        return None
    if tensor.content:
        if len(tensor.content) != size * np.dtype(kind).itemsize:
            return None
        return np.frombuffer(tensor.content, kind).astype(np.float64).reshape(shape)
    return np.array(listed, dtype=np.float64).reshape(shape) if 0 < len(listed) == size else None


def _histogram(histogram) -> np.ndarray | None:
    """A row of figures. Bucket i holds what lies above limit i - 1 and up to limit i; nothing lies below ``min``."""
    limits, counts = list(histogram.bucket_limit), list(histogram.bucket)
    if not limits or len(limits) != len(counts):
        return None
    edges = [min(histogram.min, limits[0]), *limits]
    squares = histogram.sum_squares or float("nan")
    return figures_of(edges, counts, histogram.min, histogram.max, squares)


def _histogram_of_tensor(tensor) -> np.ndarray | None:
    """The newer form: rows of left edge, right edge, count."""
    rows = _numbers(tensor)
    if rows is None or rows.ndim != 2 or rows.shape[1] != 3 or not len(rows):
        return None
    return figures_of(np.append(rows[:, 0], rows[-1, 1]), rows[:, 2])


def _hparams(content: bytes) -> dict[str, object]:
    """Settings out of SummaryWriter.add_hparams."""
    try:
        start = message("HparamsData").FromString(content).session_start
    except DecodeError:
        return {}
    out: dict[str, object] = {}
    for one in start.hparams:
        value = one.value
        out[one.key.decode("utf-8", "replace")] = (
            value.text.decode("utf-8", "replace")
            if value.HasField("text")
            else bool(value.boolean)
            if value.HasField("boolean")
            else value.number
            if value.HasField("number")
            else None
        )
    return out
