"""Files of records in the framing of a LevelDB log, which W&B and SwanLab write: seven bytes of header, then blocks of
32,768 bytes with chunks of CRC-32 of type and bytes, length (uint16), type (1 whole, 2 first, 3 middle, 4 last); the
chunks of a record make one protobuf message. A chunk that fails its check is counted and its record skipped.
"""

import struct
import zlib
from typing import ClassVar

from wisca_core.errors import UnreadableInput
from wisca_core.runs.file_reader import FileReader
from wisca_core.runs.messages import DecodeError, message
from wisca_core.runs.table import Run
from wisca_core.untrusted import printable

_BLOCK, _CHUNK = 32768, struct.Struct("<IHB")
_WHOLE, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4
MAX_RECORD_BYTES = 64 << 20


class RecordLog(FileReader):
    """One such file, one run. ``header``: its first bytes; ``expected``: what begins so, in words; ``record``: name of
    the message in it (messages.py).
    """

    header: ClassVar[bytes]
    expected: ClassVar[str]
    record: ClassVar[str]

    def _begin(self) -> None:
        super()._begin()
        self._parts: list[bytes] | None = None
        self._cut = False

    def _take(self, found) -> None:
        """A message, whole."""
        raise NotImplementedError

    def runs(self) -> tuple[Run, ...]:
        self._out.counts["cut"] = int(self._cut or self._parts is not None)  # a record at the end lacks its rest
        return super().runs()

    def _consume(self, data: bytes, at_end: bool) -> int:
        base = self._file.offset
        at = 0
        if base == 0:
            if len(data) < len(self.header):
                return 0
            if not data.startswith(self.header):
                raise UnreadableInput(f"{printable(self.source.path)}: does not begin as {self.expected} does.")
            at = len(self.header)
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
            found = message(self.record).FromString(record)
        except DecodeError:
            self._damaged(len(record))
            return
        self._take(found)


def text(raw: bytes) -> str:
    """What a name or a text in a message says; damaged letters are replaced."""
    return raw.decode("utf-8", "replace")
