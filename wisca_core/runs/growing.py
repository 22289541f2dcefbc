"""Reading a file that may still be growing: each look gives the bytes that are new, and notices when the file is
another one.
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path

from wisca_core.errors import UnreadableInput
from wisca_core.untrusted import open_regular, printable

PIECE_BYTES = 2 << 20
MAX_LINE_BYTES = 16 << 20
# An unfinished last line of a file touched less long ago may be half of a number; it is taken once the file has rested.
REST_SECONDS = 3.0
_TAIL = 64


class Replaced(Exception):
    """Inside this package: the file is shorter, another one, or was rewritten; read it from its start."""


class Growing:
    """A regular file read piece by piece. ``offset``: bytes consumed so far.

    A file that shrank, became another file or no longer has the bytes before ``offset`` raises Replaced.
    """

    def __init__(self, path: Path, piece_bytes: int = PIECE_BYTES) -> None:
        self.path = path
        self.piece_bytes = piece_bytes
        self.offset = 0
        self._identity: tuple[int, int] | None = None
        self._tail = b""
        self._seen: tuple[int, int] | None = None

    def has_changed(self) -> bool:
        """Whether there is something new since the last look, without opening it."""
        try:
            found = os.stat(self.path)
        except OSError:
            return False
        return self._seen != (found.st_size, found.st_mtime_ns) or found.st_size > self.offset

    def rests(self) -> bool:
        """Whether nobody wrote to it for some seconds."""
        try:
            return time.time() - os.stat(self.path).st_mtime > REST_SECONDS
        except OSError:
            return True

    def all_taken(self) -> None:
        """The whole file, as it is now, was read by somebody who opens it himself."""
        found = os.stat(self.path)
        self._seen, self.offset = (found.st_size, found.st_mtime_ns), found.st_size

    def pieces(self, consume) -> Iterator[tuple[int, int]]:
        """Read on from ``offset``; ``consume(data: bytes, at_end: bool) -> int`` says how many of the bytes it used up.

        What it leaves is put in front of the next piece. Yields (bytes consumed so far, size of the file) after each
        piece.
        """
        with open_regular(Path(os.path.realpath(self.path))) as file:
            found = os.fstat(file.fileno())
            identity = (found.st_dev, found.st_ino)
            if found.st_size < self.offset or (self._identity not in (None, identity) and self.offset):
                raise Replaced
            self._identity = identity
            try:
                if self._tail and os.pread(file.fileno(), len(self._tail), self.offset - len(self._tail)) != self._tail:
                    raise Replaced
                kept, at, goal = b"", self.offset, self.piece_bytes
                while True:
                    data = os.pread(file.fileno(), goal, at)
                    at += len(data)
                    at_end = not data or at >= os.fstat(file.fileno()).st_size
                    whole = kept + data if kept else data
                    used = consume(whole, at_end) if whole else 0
                    self.offset += used
                    if used:
                        self._tail = (self._tail + whole[max(0, used - _TAIL) : used])[-_TAIL:]
                    kept = whole[used:]
                    # a record longer than a piece: ask for more at once instead of joining it again and again
                    goal = max(self.piece_bytes, len(kept))
                    yield self.offset, max(found.st_size, self.offset)
                    if at_end:
                        break
            except OSError as error:
                raise UnreadableInput(f"{printable(self.path)}: cannot be read: {error.strerror}.") from None
            now = os.fstat(file.fileno())
            self._seen = (now.st_size, now.st_mtime_ns)


class Lines:
    """Whole lines out of the pieces of a Growing file; ends of line are \\n, \\r\\n or the \\r of a progress bar."""

    def __init__(self, file: Growing, patient: bool) -> None:
        self.file = file
        self.patient = patient  # wait for the end of an unfinished last line while the file is being written
        self.n_too_long = 0
        self.ended_open = False  # the last line was taken without its end
        self._in_long = False

    def read(self, take) -> Iterator[tuple[int, int]]:
        """Hand the new lines to ``take(list of bytes)``; yields as Growing.pieces does."""

        def consume(data: bytes, at_end: bool) -> int:
            if self.ended_open:
                if data[:1] not in (b"\n", b"\r"):
                    raise Replaced  # the line that was taken was only a part of it
                self.ended_open = False
            end = max(data.rfind(b"\n"), data.rfind(b"\r", 0, len(data) - 1)) + 1
            if self._in_long and end:
                start = data.find(b"\n") + 1 or end
                self._in_long = False
            else:
                start = 0
            lines = data[start:end].replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n") if end > start else []
            rest = len(data) - end
            if rest > MAX_LINE_BYTES:
                self.n_too_long += not self._in_long
                self._in_long = True
                take([line for line in lines if line])
                return len(data)
            if at_end and rest and not self._in_long and (not self.patient or self.file.rests()):
                last = data[end:]
                self.ended_open = not last.endswith(b"\r")
                lines.append(last.rstrip(b"\r"))
                end = len(data)
            take([line for line in lines if line])
            return end

        yield from self.file.pieces(consume)
