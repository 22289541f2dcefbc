"""W&B's local run files (run-*.wandb, offline or synced): history and configuration; no wandb needed.

The file is a LevelDB log: seven bytes of header (":W&B", 0xBEE1, version 0), then blocks of 32,768 bytes with chunks of
CRC-32 of type and bytes, length (uint16), type (1 whole, 2 first, 3 middle, 4 last); the chunks of a record make one
``Record`` message. A chunk that fails its check is counted and its record skipped.

The step is what ``define_metric`` says, else a step that the rows name (``train/global_step``), else W&B's own counter.
"""

import struct
import zlib
from collections.abc import Iterator

from wisca_core.errors import UnreadableInput
from wisca_core.runs.file_reader import FileReader
from wisca_core.runs.json_rows import json_value
from wisca_core.runs.messages import DecodeError, message
from wisca_core.runs.table import Run
from wisca_core.runs.tabular import RowBuffer, Tabular
from wisca_core.untrusted import shown

HEADER = b":W&B\xe1\xbe\x00"
_BLOCK, _CHUNK = 32768, struct.Struct("<IHB")
_WHOLE, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4
MAX_RECORD_BYTES = 64 << 20


class Wandb(FileReader):
    """One .wandb file, one run."""

    def _begin(self) -> None:
        super()._begin()
        self._parts: list[bytes] | None = None
        self._cut = False
        self._table = Tabular(
            self._out, self.source.run, self._ask.step_column, shown(self.source.path), key=False, own="_step"
        )
        self._rows = RowBuffer(self._table)

    def _read(self) -> Iterator[tuple[int, int]]:
        yield from super()._read()
        self._rows.settle()

    def runs(self) -> tuple[Run, ...]:
        self._out.counts["cut"] = int(self._cut or self._parts is not None)
        return self._out.runs(
            "wandb", str(self.source.path), self._table.usable, self._table.step_column, self._table.remarks()
        )

    def _consume(self, data: bytes, at_end: bool) -> int:
        base = self._file.offset
        at = 0
        if base == 0:
            if len(data) < len(HEADER):
                return 0
            if not data.startswith(HEADER):
                raise UnreadableInput(
                    f"{shown(self.source.path)}: does not begin as a .wandb file of version 0 does. Expected a "
                    f"run-*.wandb file."
                )
            at = len(HEADER)
        while True:
            left = _BLOCK - (base + at) % _BLOCK
            if left < _CHUNK.size:  # the rest of a block is padding
                if at + left > len(data):
                    break
                at += left
                continue
            if at + _CHUNK.size > len(data):
                break
            check, n, kind = _CHUNK.unpack_from(data, at)
            end = at + _CHUNK.size + n
            if kind not in (_WHOLE, _FIRST, _MIDDLE, _LAST) or n + _CHUNK.size > left:
                if at + left > len(data) and not at_end:
                    break
                if (
                    kind == 0 and check == 0 and n == 0 and not any(data[at : at + left])
                ):  # preallocated, not written yet
                    break
                self._damaged(min(left, len(data) - at))
                at += min(left, len(data) - at)
                continue
            if end > len(data):
                break
            body = data[at + _CHUNK.size : end]
            at = end
            if zlib.crc32(body, zlib.crc32(bytes([kind]))) != check:
                self._damaged(n + _CHUNK.size)
                continue
            self._chunk(kind, body)
        self._cut = at_end and any(data[at:])
        return at

    def _damaged(self, n_bytes: int) -> None:
        self._out.damaged(n_bytes)
        self._parts = None

    def _chunk(self, kind: int, body: bytes) -> None:
        if kind == _WHOLE:
            self._parts = None
            self._record(body)
        elif kind == _FIRST:
            self._parts = [body]
        elif self._parts is not None and sum(map(len, self._parts)) < MAX_RECORD_BYTES:
            self._parts.append(body)
            if kind == _LAST:
                record, self._parts = b"".join(self._parts), None
                self._record(record)

    def _record(self, record: bytes) -> None:
        try:
            found = message("Record").FromString(record)
        except DecodeError:
            self._damaged(len(record))
            return
        if found.HasField("history"):
            self._history(found.history)
        elif found.HasField("metric"):
            metric = found.metric
            pattern, column = _text(metric.name or metric.glob_name), _text(metric.step_metric)
            if pattern and column:
                self._table.define(pattern, column)
        elif found.HasField("config"):
            self._config(found.config)
        elif found.HasField("run"):
            if found.run.display_name and self._table.run == self.source.run:
                self._table.run = _text(found.run.display_name)
            self._config(found.run.config)

    def _config(self, config) -> None:
        settings = {}
        for item in config.update:
            path = _path(item)
            if path and not path[0].startswith("_wandb"):
                settings[".".join(path)] = _value(item)
        self._out.config(self._table.run, settings)

    def _history(self, history) -> None:
        row: dict[str, object] = {}
        for item in history.item:
            path = _path(item)
            if path:
                inner = row
                for part in path[:-1]:
                    below = inner.get(part)
                    if not isinstance(below, dict):
                        below = inner[part] = {}
                    inner = below
                inner[path[-1]] = _value(item)
        if not isinstance(row.get("_step"), (int, float)):
            if not history.HasField("step"):
                self._out.counts["no_step"] += 1
                return
            row["_step"] = history.step.num
        self._rows.add(row)


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")


def _path(item) -> list[str]:
    return [_text(item.key)] if item.key else [_text(part) for part in item.nested_key]


def _value(item) -> object:
    """The value of an item; what is no JSON stays text."""
    raw = item.value_json or item.json
    if raw:
        return json_value(_text(raw))
    for field in ("boolean", "integer", "number"):
        if item.HasField(field):
            return getattr(item, field)
    return _text(item.text) if item.HasField("text") else None
