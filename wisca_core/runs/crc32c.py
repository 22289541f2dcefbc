"""CRC-32C (Castagnoli) of many byte strings at once, as TensorBoard's record files need it.

A loop over the bytes of one record in Python would cost more than reading the whole log; here the loop runs over byte
positions, and numpy takes all records at each position together. Records longer than a block are cut, and the parts
joined by advancing a state over a block of zero bytes, which is linear.
"""

from functools import lru_cache

import numpy as np

_POLYNOMIAL = 0x82F63B78
BLOCK = 64


def _table() -> np.ndarray:
    state = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        state = np.where(state & 1, (state >> 1) ^ np.uint32(_POLYNOMIAL), state >> 1).astype(np.uint32)
    return state


_TABLE = _table()
# Two bytes at a time: the state after two zero bytes, for every value of its lower half.
_TABLE_OF_TWO = (lambda x: _TABLE[x & 0xFF] ^ (x >> np.uint32(8)))(
    _TABLE[np.arange(1 << 16) & 0xFF] ^ (np.arange(1 << 16, dtype=np.uint32) >> 8)
)


@lru_cache(maxsize=4096)
def _advance_tables(n_zeros: int) -> np.ndarray:
    """uint32 (4, 256): the state after ``n_zeros`` zero bytes is the xor of the four lookups of its bytes."""
    state = (np.arange(256, dtype=np.uint32)[None, :] << (8 * np.arange(4, dtype=np.uint32))[:, None]).astype(np.uint32)
    for _ in range(n_zeros):
        state = _TABLE[state & 0xFF] ^ (state >> np.uint32(8))
    return state


def _advance(state: np.ndarray, tables: np.ndarray) -> np.ndarray:
    return (
        tables[0][state & 0xFF]
        ^ tables[1][(state >> 8) & 0xFF]
        ^ tables[2][(state >> 16) & 0xFF]
        ^ tables[3][state >> 24]
    )


def crc32c(data: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """CRC-32C of ``data[start : start + length]`` for each pair.

    ``data``: uint8. ``starts``, ``lengths``: int64 (n,), inside ``data``. Returns uint32 (n,).

    >>> hex(crc32c(np.frombuffer(b"123456789", np.uint8), np.array([0]), np.array([9]))[0])
    '0xe3069283'
    """
    if not len(starts):
        return np.zeros(0, np.uint32)
    width = int(min(BLOCK, max(2, lengths.max() + lengths.max() % 2)))
    # A record is right-aligned in its blocks: zero bytes in front leave a state of 0 as it is.
    first = lengths % width
    n_blocks = lengths // width + (first > 0)
    first = np.where(first == 0, np.minimum(lengths, width), first)
    padded = np.concatenate([np.zeros(width, np.uint8), data])
    windows = np.lib.stride_tricks.sliding_window_view(padded, width)
    state = _block(windows, starts + first, first, width)
    longest = int(n_blocks.max())
    if longest > 1:
        tables = _advance_tables(width)
        order = np.argsort(-n_blocks, kind="stable")
        sorted_blocks = n_blocks[order]
        for k in range(1, longest):
            live = order[: np.searchsorted(-sorted_blocks, -k, side="left")]
            end = starts[live] + first[live] + k * width
            state[live] = _advance(state[live], tables) ^ _block(windows, end, None, width)
    # The state begins at all ones, not at zero: what that adds depends on the length alone.
    return state ^ _start(lengths) ^ np.uint32(0xFFFFFFFF)


def _block(windows: np.ndarray, ends: np.ndarray, lengths: np.ndarray | None, width: int) -> np.ndarray:
    """State after the ``width`` bytes that end at ``ends`` (of the unpadded data), from state 0; bytes before
    ``lengths`` count as zero.
    """
    rows = windows[ends]
    if lengths is not None and (lengths < width).any():
        rows[np.arange(width)[None, :] < (width - lengths)[:, None]] = 0
    columns = np.ascontiguousarray(rows.view("<u2").T)
    state = _TABLE_OF_TWO[columns[0]]
    for column in columns[1:]:
        low = (state & np.uint32(0xFFFF)) ^ column
        state >>= np.uint32(16)
        state ^= _TABLE_OF_TWO[low]
    return state


def _start(lengths: np.ndarray) -> np.ndarray:
    distinct, where = np.unique(lengths, return_inverse=True)
    return np.array([_all_ones_after(int(n)) for n in distinct], dtype=np.uint32)[where]


@lru_cache(maxsize=65536)
def _all_ones_after(n_zeros: int) -> int:
    """The state 0xFFFFFFFF advanced over ``n_zeros`` zero bytes, by squaring the matrix of one byte."""
    state, power = np.array([0xFFFFFFFF], np.uint32), 0
    while n_zeros >> power:
        if (n_zeros >> power) & 1:
            state = _advance(state, _power_tables(power))
        power += 1
    return int(state[0])


@lru_cache(maxsize=64)
def _power_tables(power: int) -> np.ndarray:
    """Tables that advance over 2**power zero bytes."""
    if power == 0:
        return _advance_tables(1)
    half = _power_tables(power - 1)
    return np.stack([_advance(half[i], half) for i in range(4)])


def masked(crc: np.ndarray) -> np.ndarray:
    """The form in which TensorFlow's record files store it: rotated right by 15 bits, plus a constant."""
    return ((crc >> np.uint32(15)) | (crc << np.uint32(17))) + np.uint32(0xA282EAD8)
