"""An uncompressed zip as a stream of known length: nothing is held in memory, no copy lies on disk.

Python's zipfile writes a stream too, but puts sizes and checksums behind the data, which some unpackers refuse for
files over 4 GB, and its length is not known beforehand, so a browser can show no progress. Here each file is read
twice: once for its checksum, once to be sent.
"""

import struct
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from wisca_core.errors import CheckpointChanged

# APPNOTE.TXT 6.3.10: a 32-bit field that holds this value says that the true one stands in the zip64 record.
LIMIT_FIELD = 0xFFFFFFFF
# From here on it does. The same number; apart, so that a test can go through zip64 with small files.
LIMIT = LIMIT_FIELD
MOST_ENTRIES = 0xFFFF
PIECE = 4 * 2**20

_UTF8, _STORED, _UNIX, _ZIP64_VERSION, _PLAIN_VERSION = 0x800, 0, 3 << 8, 45, 20


@dataclass(frozen=True)
class Member:
    """``name`` inside the archive, with forward slashes; ``mtime`` in seconds since 1970."""

    name: str
    path: Path
    n_bytes: int
    mtime: float


def archive_bytes(members: Sequence[Member]) -> int:
    """The exact length of ``archive(members)``."""
    at, records = 0, 0
    for member in members:
        records += len(_central(member, 0, at))
        at += len(_local(member, 0)) + member.n_bytes
    return at + records + len(_end(len(members), at, records))


def archive(members: Sequence[Member]) -> Iterator[bytes]:
    """The archive in pieces. Raises CheckpointChanged where a file is no longer as long as ``members`` say."""
    at, central = 0, []
    for member in members:
        checksum = 0
        for piece in _pieces(member):
            checksum = zlib.crc32(piece, checksum)
        local = _local(member, checksum)
        yield local
        yield from _pieces(member)
        central.append(_central(member, checksum, at))
        at += len(local) + member.n_bytes
    records = b"".join(central)
    yield records
    yield _end(len(members), at, len(records))


def _pieces(member: Member) -> Iterator[bytes]:
    left = member.n_bytes
    with member.path.open("rb", buffering=0) as file:
        while left:
            piece = file.read(min(PIECE, left))
            if not piece:
                raise CheckpointChanged(f"{member.path} became shorter while it was sent. Export again.")
            left -= len(piece)
            yield piece


def _local(member: Member, checksum: int) -> bytes:
    name, size = member.name.encode(), member.n_bytes
    big = size >= LIMIT
    extra = struct.pack("<HHQQ", 1, 16, size, size) if big else b""
    shown = LIMIT_FIELD if big else size
    head = struct.pack(
        "<4sHHHHHIIIHH",
        b"PK\x03\x04",
        _version(big),
        _UTF8,
        _STORED,
        *_dos_time(member.mtime),
        checksum,
        shown,
        shown,
        len(name),
        len(extra),
    )
    return head + name + extra


def _central(member: Member, checksum: int, at: int) -> bytes:
    name, size = member.name.encode(), member.n_bytes
    big, far = size >= LIMIT, at >= LIMIT
    values = ([size, size] if big else []) + ([at] if far else [])
    extra = struct.pack(f"<HH{len(values)}Q", 1, 8 * len(values), *values) if values else b""
    shown = LIMIT_FIELD if big else size
    head = struct.pack(
        "<4sHHHHHHIIIHHHHHII",
        b"PK\x01\x02",
        _UNIX | _ZIP64_VERSION,
        _version(big or far),
        _UTF8,
        _STORED,
        *_dos_time(member.mtime),
        checksum,
        shown,
        shown,
        len(name),
        len(extra),
        0,
        0,
        0,
        0o100644 << 16,
        LIMIT_FIELD if far else at,
    )
    return head + name + extra


def _end(n: int, at: int, size: int) -> bytes:
    end = struct.pack(
        "<4sHHHHIIH",
        b"PK\x05\x06",
        0,
        0,
        min(n, 0xFFFF),
        min(n, 0xFFFF),
        min(size, LIMIT_FIELD),
        LIMIT_FIELD if at >= LIMIT else at,
        0,
    )
    if n < MOST_ENTRIES and at < LIMIT and size < LIMIT:
        return end
    zip64 = struct.pack("<4sQHHIIQQQQ", b"PK\x06\x06", 44, _UNIX | _ZIP64_VERSION, _ZIP64_VERSION, 0, 0, n, n, size, at)
    return zip64 + struct.pack("<4sIQI", b"PK\x06\x07", 0, at + size, 1) + end


def _version(big: bool) -> int:
    return _ZIP64_VERSION if big else _PLAIN_VERSION


def _dos_time(mtime: float) -> tuple[int, int]:
    """(time, date) in the two-second steps of 1980, clamped to the years it can hold."""
    t = time.localtime(min(max(mtime, 315619200.0), 4354732800.0))
    return t.tm_hour << 11 | t.tm_min << 5 | t.tm_sec // 2, (t.tm_year - 1980) << 9 | t.tm_mon << 5 | t.tm_mday
