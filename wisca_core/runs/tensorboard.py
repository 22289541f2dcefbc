"""TensorBoard event files: every scalar of every tag, checked, in the order written; no tensorboard needed.

A file is a sequence of records: length (uint64), masked CRC-32C of the length, that many bytes of an ``Event`` message,
masked CRC of the bytes (tensorflow/core/lib/io/record_writer.h). A record whose bytes fail their check is counted and
skipped; where a length fails, the file is searched for the next place at which one passes.

Of the message (tensorflow/core/util/event.proto, summary.proto) four things count: wall_time 1, step 2, and in summary
5 each value's tag 1 with simple_value 2, or tensor 8 where the plugin in its metadata 9 is "scalars". Most records of a
log have one shape: one of each shape is decoded field by field, and the others are cut at the same places, all at once.
"""

import json
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wisca_core.progress import Progress
from wisca_core.runs.collect import Collected, MemoryBudget
from wisca_core.runs.crc32c import crc32c, masked
from wisca_core.runs.growing import Growing, Replaced
from wisca_core.runs.source import Source
from wisca_core.runs.table import Run
from wisca_core.untrusted import shown

_LENGTH = struct.Struct("<Q")
_HEADER, _FOOTER = 12, 4
# The largest record that is looked into; a summary of scalars is far smaller, images and graphs are not.
MAX_RECORD_BYTES = 8 << 20
# Records of one shape below this number are not worth a template.
_FEW = 8

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
# DataType of a tensor (types.proto) -> how its bytes are read, and the field that holds packed values instead of
# tensor_content
_TENSOR_DTYPES = {1: ("<f4", 5), 2: ("<f8", 6), 3: ("<i4", 0), 9: ("<i8", 0), 19: ("<f2", 0)}
# Tags that hold settings, not measurements.
_HPARAMS, _ARGS = "_hparams_/", "args/text_summary"


class Malformed(Exception):
    """The bytes pass their check but are not this message."""


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise Malformed


def fields(data: bytes, at: int, end: int):
    """(number, wire type, start, end) of each field of a protobuf message in ``data[at:end]``; a varint: its bytes."""
    while at < end:
        key, at = _varint(data, at, end)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            n = _varint(data, at, end)[1] - at
        elif wire == _BYTES:
            n, at = _varint(data, at, end)
        elif wire in (_FIXED32, _FIXED64):
            n = 4 if wire == _FIXED32 else 8
        else:
            raise Malformed
        if n > end - at:
            raise Malformed
        yield number, wire, at, at + n
        at += n


def whole(data: bytes, at: int, end: int) -> int:
    """The varint in those bytes."""
    return _varint(data, at, end)[0]


@dataclass
class _Value:
    """One value of a summary: ``dtype`` "" where it is no scalar, else it lies at ``at``."""

    tag: str
    dtype: str = ""
    at: int = 0
    plugin: str = ""
    tensor: bool = False


@dataclass
class _Event:
    """An event taken apart: where its parts lie in the record. ``step_span`` (0, 0) where it has none, which means step
    0.
    """

    wall_at: int
    step_span: tuple[int, int]
    step: int
    values: list[_Value]


def _event(data: bytes) -> _Event:
    out = _Event(-1, (0, 0), 0, [])
    for number, wire, start, stop in fields(data, 0, len(data)):
        if number == 1 and wire == _FIXED64:
            out.wall_at = start
        elif number == 2 and wire == _VARINT:
            step = whole(data, start, stop)
            out.step, out.step_span = step - (1 << 64) if step >> 63 else step, (start, stop)
        elif number == 5 and wire == _BYTES:
            out.values += [
                _value(data, a, b) for inner, kind, a, b in fields(data, start, stop) if inner == 1 and kind == _BYTES
            ]
    return out


def _value(data: bytes, at: int, end: int) -> _Value:
    out = _Value("")
    tensor = None
    for number, wire, start, stop in fields(data, at, end):
        if number == 1 and wire == _BYTES:
            out.tag = data[start:stop].decode("utf-8", "replace")
        elif number == 2 and wire == _FIXED32:
            out.dtype, out.at = "<f4", start
        elif number == 8 and wire == _BYTES:
            tensor = (start, stop)
        elif number == 9 and wire == _BYTES:
            for inner, kind, a, b in fields(data, start, stop):
                if inner == 1 and kind == _BYTES:
                    for deep, k, x, y in fields(data, a, b):
                        if deep == 1 and k == _BYTES:
                            out.plugin = data[x:y].decode("utf-8", "replace")
    if tensor is not None and not out.dtype:
        out.tensor = True
        out.dtype, out.at = _scalar_tensor(data, *tensor)
    return out


def _scalar_tensor(data: bytes, at: int, end: int) -> tuple[str, int]:
    """(dtype, where) of the single number in a TensorProto, ("", 0) where it holds something else."""
    dtype, size, content, packed = 0, 1, None, {}
    for number, wire, start, stop in fields(data, at, end):
        if number == 1 and wire == _VARINT:
            dtype = whole(data, start, stop)
        elif number == 2 and wire == _BYTES:
            for inner, kind, a, b in fields(data, start, stop):
                if inner == 2 and kind == _BYTES:
                    size *= next((whole(data, x, y) for n, w, x, y in fields(data, a, b) if n == 1 and w == _VARINT), 0)
        elif number == 4 and wire == _BYTES:
            content = (start, stop)
        elif wire in (_BYTES, _FIXED32, _FIXED64):
            packed[number] = (start, stop)
    kind, number = _TENSOR_DTYPES.get(dtype, ("", 0))
    if not kind or size != 1:
        return "", 0
    where = content or packed.get(number)
    return (kind, where[0]) if where and where[1] - where[0] == np.dtype(kind).itemsize else ("", 0)


class TensorBoard:
    """The event files of one folder as one run, in the order of their names, which begin with their start times."""

    def __init__(self, source: Source, room: MemoryBudget, ask=None) -> None:
        self.source = source
        self._room = room
        self._begin()

    def _begin(self) -> None:
        self._out = Collected(self._room, self.source.run)
        self._files: dict[Path, Growing] = {}
        self._cut: dict[Path, int] = {}
        self._plugins: dict[str, str] = {}
        self._versions: set[str] = set()

    def advance(self, progress: Progress) -> bool:
        files = sorted(self.source.path.glob("*tfevents*")) if self.source.path.is_dir() else [self.source.path]
        for path in files:
            self._files.setdefault(path, Growing(path))
        changed = False
        try:
            for path in files:
                file = self._files[path]
                if not file.changed():
                    continue
                changed = True
                self._cut[path] = 0
                for done, size in file.pieces(lambda data, at_end, path=path: self._consume(path, data, at_end)):
                    progress(f"reading {shown(path.name, 60)}", done, size)
        except Replaced:
            self._out.release()
            self._begin()
            return self.advance(progress)
        return changed

    def runs(self) -> tuple[Run, ...]:
        self._out.counts["cut"] = sum(map(bool, self._cut.values()))
        return self._out.runs("tensorboard", str(self.source.path))

    # --- records ------------------------------------------------------------------------------------------------------

    def _consume(self, path: Path, data: bytes, at_end: bool) -> int:
        """Take the whole records of ``data``; how many bytes are done with."""
        at, used = 0, 0
        view = np.frombuffer(data, np.uint8)
        while True:
            starts, lengths, at, unfinished = _framed(data, view, at)
            good = masked(crc32c(view, starts, lengths)) == _stored(view, starts + lengths)
            bad = ~good
            if bad.any():
                self._out.damaged(int((lengths[bad] + _HEADER + _FOOTER).sum()), int(bad.sum()))
            self._records(view, starts[good], lengths[good])
            used = at
            if unfinished:  # a sound header whose record goes on behind the data
                if at_end:
                    self._cut[path] = len(data) - at
                break
            if at + _HEADER > len(data):
                if at_end and at < len(data):
                    self._cut[path] = len(data) - at
                break
            # the header at ``at`` is damaged
            found = _next_header(view, at + 1)
            if found is None:
                skip = len(data) - at if at_end else max(0, len(data) - at - _HEADER)
                if at_end:
                    self._out.counts["damaged"] += 1
                self._out.counts["damaged_bytes"] += skip
                used = at + skip
                break
            self._out.damaged(found - at)
            at = found
        return used

    def _records(self, view: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> None:
        """Sound records: decode, and hand over tag by tag in file order."""
        found: dict[tuple[str, bool], list] = {}
        number = np.arange(len(starts))
        for length in np.unique(lengths):
            if length > MAX_RECORD_BYTES:
                self._out.counts["not_scalar"] += int((lengths == length).sum())
                continue
            chosen = np.flatnonzero(lengths == length)
            self._of_length(view, starts[chosen], number[chosen], int(length), found)
        for (tag, is_tensor), parts in found.items():
            # a tensor is a scalar where its plugin says so; writers name the plugin with the first value of a tag only
            if is_tensor and self._plugins.get(tag) != "scalars":
                self._out.counts["not_scalar"] += sum(len(part[0]) for part in parts)
                continue
            order = np.concatenate([p[0] for p in parts])
            columns = [np.concatenate([p[i] for p in parts]) for i in (1, 2, 3)]
            if len(parts) > 1:
                by = np.argsort(order, kind="stable")
                columns = [column[by] for column in columns]
            step, value, wall = map(self._out.keep, columns)
            self._out.add(self.source.run, tag, step, value, wall)

    def _of_length(self, view: np.ndarray, starts: np.ndarray, number: np.ndarray, length: int, found: dict) -> None:
        """Records of one length, template by template; what is left over is decoded one by one."""
        left = np.arange(len(starts))
        width = -(-length // 8) * 8
        rows = np.zeros((len(starts), width), np.uint8)
        rows[:, :length] = np.lib.stride_tricks.sliding_window_view(view, length)[starts] if length else 0
        for _ in range(16):
            if len(left) < _FEW:
                break
            here = rows[left] if len(left) < len(rows) else rows
            try:
                shape = _event(here[0, :length].tobytes())
            except Malformed:
                break
            if not shape.values or shape.wall_at < 0 or not all(v.dtype for v in shape.values):
                break
            mask = np.full(width, 0xFF, np.uint8)
            mask[shape.wall_at : shape.wall_at + 8] = 0
            mask[shape.step_span[0] : shape.step_span[1]] = 0x80
            for value in shape.values:
                mask[value.at : value.at + np.dtype(value.dtype).itemsize] = 0
            label = _labels(here, mask)
            groups, first, inverse = np.unique(label, return_index=True, return_inverse=True)
            taken = np.zeros(len(here), bool)
            order = np.argsort(inverse, kind="stable")
            bounds = np.searchsorted(inverse[order], np.arange(len(groups) + 1))
            for g in range(len(groups)):
                members = order[bounds[g] : bounds[g + 1]]
                try:
                    event = _event(here[first[g], :length].tobytes())
                except Malformed:
                    continue
                same = (
                    event.wall_at == shape.wall_at
                    and event.step_span == shape.step_span
                    and ([(v.dtype, v.at) for v in event.values] == [(v.dtype, v.at) for v in shape.values])
                )
                # labels are sums of 64 bits: equal bytes are still compared before a record is cut by another one's
                # shape
                if not same or not ((here[members] & mask) == (here[first[g]] & mask)).all():
                    continue
                taken[members] = True
                self._cut_all(here[members], number[left[members]], event, found)
            if not taken.any():
                break
            left = left[~taken]
        for i in left:
            self._single(rows[i, :length].tobytes(), number[i : i + 1], found)

    def _cut_all(self, rows: np.ndarray, number: np.ndarray, event: _Event, found: dict) -> None:
        wall = _cut(rows, event.wall_at, "<f8")
        step = np.zeros(len(rows), np.uint64)
        for k, at in enumerate(range(*event.step_span)):
            step |= (rows[:, at] & 0x7F).astype(np.uint64) << np.uint64(7 * k)
        step = step.view(np.int64).astype(np.float64)
        for value in event.values:
            if value.plugin:
                self._plugins.setdefault(value.tag, value.plugin)
            part = (number, step, _cut(rows, value.at, value.dtype).astype(np.float64), wall)
            found.setdefault((value.tag, value.tensor), []).append(part)

    def _single(self, record: bytes, number: np.ndarray, found: dict) -> None:
        try:
            event = _event(record)
            self._settings(record, event)
        except Malformed:
            self._out.damaged(len(record) + _HEADER + _FOOTER)
            return
        wall = np.frombuffer(record, "<f8", 1, event.wall_at) if event.wall_at >= 0 else np.full(1, np.nan)
        for value in event.values:
            if value.tag.startswith(_HPARAMS) or value.tag == _ARGS:
                continue
            if value.plugin:
                self._plugins.setdefault(value.tag, value.plugin)
            if value.dtype:
                one = np.frombuffer(record, value.dtype, 1, value.at).astype(np.float64)
                found.setdefault((value.tag, value.tensor), []).append(
                    (number, np.array([float(event.step)]), one, wall)
                )
            else:
                self._out.counts["not_scalar"] += 1

    def _settings(self, record: bytes, event: _Event) -> None:
        """Hyperparameters of SummaryWriter.add_hparams, and the arguments that transformers' Trainer writes as text."""
        for value in event.values:
            if value.tag == _HPARAMS + "session_start_info":
                self._out.config(self.source.run, _hparams(record))
            elif value.tag == _ARGS:
                start = record.find(b"{")
                try:
                    parsed, _ = json.JSONDecoder().raw_decode(record[start:].decode("utf-8", "replace"))
                    self._out.config(self.source.run, parsed)
                except (ValueError, RecursionError):
                    pass


def _framed(data: bytes, view: np.ndarray, at: int) -> tuple[np.ndarray, np.ndarray, int, bool]:
    """(starts of the records' bytes, lengths, where framing stopped, whether a sound record begins there and is not
    complete).
    """
    starts, lengths, end, read = [], [], len(data), _LENGTH.unpack_from
    begin, add_start, add_length = at, starts.append, lengths.append
    last = end - _HEADER
    while at <= last:
        n = read(data, at)[0]
        following = at + n + 16
        if following > end:
            break
        add_start(at + 12)
        add_length(n)
        at = following
    starts, lengths = np.array(starts, np.int64), np.array(lengths, np.int64)
    headers = starts - _HEADER
    sound = masked(crc32c(view, headers, np.full(len(headers), 8))) == _stored(view, headers + 8)
    if not sound.all():
        stop = int(np.argmin(sound))
        return starts[:stop], lengths[:stop], int(headers[stop]) if stop else begin, False
    if at <= last:  # its length leads out of the data: not complete, or damaged
        here = np.array([at])
        return starts, lengths, at, bool((masked(crc32c(view, here, np.array([8]))) == _stored(view, here + 8))[0])
    return starts, lengths, at, False


def _stored(view: np.ndarray, at: np.ndarray) -> np.ndarray:
    """uint32 at each place, little-endian."""
    out = np.zeros(len(at), np.uint32)
    for k in range(4):
        out |= view[at + k].astype(np.uint32) << np.uint32(8 * k)
    return out


def _next_header(view: np.ndarray, at: int) -> int | None:
    """The next place from ``at`` at which a length passes its check."""
    for begin in range(at, len(view) - _HEADER + 1, 1 << 20):
        places = np.arange(begin, min(begin + (1 << 20), len(view) - _HEADER + 1))
        # a length has zero bytes on top: no need to check the others
        places = places[(view[places + 7] == 0) & (view[places + 6] == 0) & (view[places + 5] == 0)]
        sound = masked(crc32c(view, places, np.full(len(places), 8))) == _stored(view, places + 8)
        if sound.any():
            return int(places[np.argmax(sound)])
    return None


def _labels(rows: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """uint64, equal where the masked bytes are."""
    words, of_mask = rows.view(np.uint64), mask.view(np.uint64)
    label = np.zeros(len(rows), np.uint64)
    for k in range(words.shape[1]):
        if of_mask[k]:
            label = (label ^ (words[:, k] & of_mask[k])) * np.uint64(0x9E3779B97F4A7C15)
            label ^= label >> np.uint64(29)
    return label


def _cut(rows: np.ndarray, at: int, dtype: str) -> np.ndarray:
    return np.ascontiguousarray(rows[:, at : at + np.dtype(dtype).itemsize]).view(dtype)[:, 0]


def _hparams(record: bytes) -> dict[str, object]:
    """Settings out of the metadata of an hparams value (tensorboard/plugins/hparams: plugin_data.proto,
    google.protobuf.Value).
    """
    out: dict[str, object] = {}

    def inside(at: int, end: int, *path: int):
        for number, wire, start, stop in fields(record, at, end):
            if number == path[0] and wire == _BYTES:
                if len(path) == 1:
                    yield start, stop
                else:
                    yield from inside(start, stop, *path[1:])

    # Event.summary 5, value 1, metadata 9, plugin_data 1, content 2, session_start_info 3, hparams 1 (a map)
    for at, end in inside(0, len(record), 5, 1, 9, 1, 2, 3, 1):
        name, value = "", None
        for number, wire, start, stop in fields(record, at, end):
            if number == 1 and wire == _BYTES:
                name = record[start:stop].decode("utf-8", "replace")
            elif number == 2 and wire == _BYTES:
                for kind, w, a, b in fields(record, start, stop):
                    if kind == 2 and w == _FIXED64:
                        value = struct.unpack_from("<d", record, a)[0]
                    elif kind == 3 and w == _BYTES:
                        value = record[a:b].decode("utf-8", "replace")
                    elif kind == 4 and w == _VARINT:
                        value = bool(whole(record, a, b))
        if name:
            out[name] = value
    return out
