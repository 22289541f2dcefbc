"""Damage: bytes in, other bytes out, from a seeded random generator."""

import random
import re

# what parsers stumble on: sizes and numbers at their limits, names that are paths or no text, nests, early ends
NUMBERS = (
    b"-1", b"0", b"NaN", b"Infinity", b"1e999", b"-1e999", b"9" * 401, b"18446744073709551616", b"1.5",
    b"true", b"null",
)  # fmt: skip
TOKENS = (
    b"\0", b"\xff\xfe", b"\r", b"\r\n", b'"', b"'", b"{", b"[" * 500, b"]", b"{}", b'""', b"\\ud800", b"../../x",
    b"/etc/passwd",
    b"\xe2\x80\xae", b"a" * 5000, b"&a [*a, *a]", b"&b [*b]", b"%", b",", b"\n" * 50, b"=", b"<script>", b"\x80\x04.",
    b"PK\x03\x04",
)  # fmt: skip
_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?")
_WORD = re.compile(rb"[A-Za-z_][\w.]{1,40}")


def mutated(data: bytes, random: random.Random) -> bytes:
    """``data`` after one to four changes."""
    for _ in range(random.choice((1, 1, 1, 2, 2, 4))):
        data = random.choice(_CHANGES)(data, random)[: 4 << 20]
    return data


def _flip(data: bytes, random: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(random.choice((1, 1, 4, 32)) if out else 0):
        out[_at(data, random)] ^= 1 << random.randrange(8)
    return bytes(out)


def _set(data: bytes, random: random.Random) -> bytes:
    at, n = _at(data, random), random.choice((1, 2, 4, 8))
    return data[:at] + random.choice((b"\0", b"\xff", b"\x7f", b"\x80")) * n + data[at + n :]


def _cut(data: bytes, random: random.Random) -> bytes:
    return data[: _at(data, random)]


def _drop(data: bytes, random: random.Random) -> bytes:
    at = _at(data, random)
    return data[:at] + data[at + random.choice((1, 3, 17, 200)) :]


def _repeat(data: bytes, random: random.Random) -> bytes:
    at, n = _at(data, random), random.choice((1, 5, 40, 400))
    return data[:at] + data[at : at + n] * random.choice((2, 3, 100)) + data[at + n :]


def _insert(data: bytes, random: random.Random) -> bytes:
    at = _at(data, random)
    return data[:at] + random.choice(TOKENS) + data[at:]


def _number(data: bytes, random: random.Random) -> bytes:
    return _replaced(data, _NUMBER, random.choice(NUMBERS), random)


def _word(data: bytes, random: random.Random) -> bytes:
    words = _WORD.findall(data[:20_000])
    return _replaced(data, _WORD, random.choice([*words[:50], b"", *TOKENS]), random)


def _replaced(data: bytes, pattern: re.Pattern, by: bytes, random: random.Random) -> bytes:
    found = list(pattern.finditer(data[:100_000]))
    if not found:
        return _insert(data, random)
    one = random.choice(found)
    return data[: one.start()] + by + data[one.end() :]


def _at(data: bytes, random: random.Random) -> int:
    """A place, in the first kilobyte half of the time: that is where headers are."""
    return random.randrange(min(len(data), 1024) if random.random() < 0.5 else len(data)) if data else 0


_CHANGES = (_flip, _flip, _set, _cut, _drop, _repeat, _insert, _number, _number, _word)
