"""W&B's local run files (run-*.wandb, offline or synced): history and configuration; no wandb needed.

The file is a LevelDB log: seven bytes of header (":W&B", 0xBEE1, version 0), then blocks of 32,768 bytes with chunks of
CRC-32 of type and bytes, length (uint16), type (1 whole, 2 first, 3 middle, 4 last); the chunks of a record make one
``Record`` message (wandb/proto/wandb_internal.proto: history 2, config 5, run 17). A chunk that fails its check is
counted and its record skipped.
"""

import json
import struct
import zlib

from wisca_core.errors import UnreadableInput
from wisca_core.runs.file_reader import FileReader
from wisca_core.runs.table import Run
from wisca_core.runs.tensorboard import Malformed, fields, whole
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
        self._name = ""
        self._cut = False

    def runs(self) -> tuple[Run, ...]:
        self._out.counts["cut"] = int(self._cut or self._parts is not None)
        return self._out.runs("wandb", str(self.source.path))

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
            for number, wire, start, end in fields(record, 0, len(record)):
                if wire != 2:
                    continue
                if number == 2:
                    self._history(record, start, end)
                elif number == 5:
                    self._config(record, start, end)
                elif number == 17:
                    self._run(record, start, end)
        except Malformed:
            self._damaged(len(record))

    def _run(self, record: bytes, at: int, end: int) -> None:
        parts = [(number, start, stop) for number, wire, start, stop in fields(record, at, end) if wire == 2]
        name = next((record[start:stop].decode("utf-8", "replace") for number, start, stop in parts if number == 8), "")
        self._name = name or self.source.run
        for number, start, stop in parts:
            if number == 4:
                self._config(record, start, stop)

    def _config(self, record: bytes, at: int, end: int) -> None:
        settings = {}
        for number, wire, start, stop in fields(record, at, end):
            if number == 1 and wire == 2:
                name, value = _item(record, start, stop)
                if name and not name.startswith("_wandb"):
                    settings[name] = value
        self._out.config(self._name or self.source.run, settings)

    def _history(self, record: bytes, at: int, end: int) -> None:
        row, step = {}, None
        for number, wire, start, stop in fields(record, at, end):
            if number == 1 and wire == 2:
                name, value = _item(record, start, stop)
                row[name] = value
            elif number == 2 and wire == 2:
                step = next((whole(record, a, b) for n, w, a, b in fields(record, start, stop) if n == 1 and w == 0), 0)
        stated = row.pop("_step", None)
        step = stated if isinstance(stated, (int, float)) else step
        wall = row.pop("_timestamp", None)
        row.pop("_runtime", None)
        if step is None:
            self._out.counts["no_step"] += 1
            return
        for media in [
            name.removesuffix("_type") for name in row if name.endswith("._type")
        ]:  # an image or histogram, in parts
            self._out.counts["not_scalar"] += 1
            row = {name: value for name, value in row.items() if not name.startswith(media)}
        self._out.values(
            self._name or self.source.run,
            row,
            float(step),
            float(wall) if isinstance(wall, (int, float)) else float("nan"),
        )


def _item(record: bytes, at: int, end: int) -> tuple[str, object]:
    """(dotted name, value) of a HistoryItem or ConfigItem; what is no JSON stays text."""
    key, nested, value = "", [], None
    for number, wire, start, stop in fields(record, at, end):
        if wire == 2 and number == 1:
            key = record[start:stop].decode("utf-8", "replace")
        elif wire == 2 and number == 2:
            nested.append(record[start:stop].decode("utf-8", "replace"))
        elif wire == 2 and number in (8, 16):
            text = record[start:stop].decode("utf-8", "replace")
            try:
                value = json.loads(text)
            except (ValueError, RecursionError):
                value = text
        elif wire == 2 and number == 7:
            value = record[start:stop].decode("utf-8", "replace")
        elif wire == 0 and number == 4:
            value = bool(whole(record, start, stop))
        elif wire == 0 and number == 5:
            value = whole(record, start, stop)
            value -= (1 << 64) if value >> 63 else 0
        elif wire == 1 and number == 6:
            value = struct.unpack_from("<d", record, start)[0]
    return key or ".".join(nested), value
