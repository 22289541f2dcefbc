"""Tensors that are made when they are read: weights of a quantised checkpoint, or of one that is stored in shards.

Each kind of recipe is one function ``(parts, settings, read, start, stop)`` -> rows ``start`` to ``stop`` of the
tensor; ``read(part, first, last)`` gives rows of a stored part. Nothing here decides whether a recipe applies:
``quantised`` and the readers of other formats do.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch

from wisca_core.checkpoint.checkpoint import Recipe, TensorInfo
from wisca_core.checkpoint.torch_dtypes import TORCH_DTYPES
from wisca_core.errors import UnsupportedCheckpoint

Read = Callable[[TensorInfo, int, int], torch.Tensor]
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # column, within eight, that each 4 bits of an AWQ word hold, lowest first


@dataclass(eq=False)
class DerivedTensor:
    """One tensor with its recipe, read through ``read``; small parts that every block needs are kept."""

    info: TensorInfo
    recipe: Recipe
    read: Read
    _kept: dict[str, torch.Tensor] = field(default_factory=dict)

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Rows ``start`` to ``stop`` of axis 0, in the dtype of ``info``, a tensor of their own."""
        made = KINDS[self.recipe.kind](self, start, stop)
        return made.to(TORCH_DTYPES[self.info.dtype]).reshape(stop - start, *self.info.shape[1:])

    def blocks(self, n_rows: int) -> Iterator[tuple[int, torch.Tensor]]:
        """(first row, rows) over the whole tensor, about ``n_rows`` at a time."""
        step = STEPS.get(self.recipe.kind, 1)
        n_rows = max(step, n_rows // step * step)
        total = self.info.shape[0] if self.info.shape else 1
        for start in range(0, total, n_rows):
            yield start, self.rows(start, min(start + n_rows, total))

    def whole(self, number: int) -> torch.Tensor:
        """All of part ``number``, read once."""
        part = self.recipe.parts[number]
        if part.name not in self._kept:
            self._kept[part.name] = self.read(part, 0, part.shape[0] if part.shape else 1).reshape(part.shape)
        return self._kept[part.name]


@dataclass(eq=False)
class ChangedTensor:
    """One tensor as a change leaves it, made whole whenever it is read. ``read`` gives stored rows, ``made`` those of
    one with a recipe.
    """

    info: TensorInfo
    change: Callable[[torch.Tensor, int], torch.Tensor]
    read: Callable[[int, int], torch.Tensor]
    made: DerivedTensor | None = None

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Rows ``start`` to ``stop`` of axis 0, in the stored dtype."""
        total = self.info.shape[0] if self.info.shape else 1
        before = self.made.rows(0, total) if self.made else self.read(0, total)
        return self.change(before.reshape(self.info.shape), 0)[start:stop]

    def blocks(self, n_rows: int) -> Iterator[tuple[int, torch.Tensor]]:
        """(first row, rows) over the whole tensor, ``n_rows`` at a time."""
        total = self.info.shape[0] if self.info.shape else 1
        whole = self.rows(0, total)
        for start in range(0, total, n_rows):
            yield start, whole[start : start + n_rows]


def _scaled_rows(made: DerivedTensor, start: int, stop: int) -> torch.Tensor:
    """Stored rows times a scale for each block of rows and columns. Settings: rows and columns of a block."""
    weight, (block_rows, block_columns) = made.recipe.parts[0], map(int, made.recipe.settings)
    values = made.read(weight, start, stop).float()
    scale = made.whole(1).float()
    scale = scale.reshape(1, 1) if scale.numel() == 1 else scale.reshape(-1, 1) if scale.dim() == 1 else scale
    rows = scale[torch.arange(start, stop) // block_rows]
    return values * rows[:, torch.arange(values.shape[1]) // block_columns]


def _int8_rows(made: DerivedTensor, start: int, stop: int) -> torch.Tensor:
    """bitsandbytes' 8 bits: row times its largest value (SCB) over 127. A third part says how the rows are laid out."""
    if len(made.recipe.parts) > 2 and int(made.whole(2).reshape(-1)[0]):
        raise UnsupportedCheckpoint(
            f"{made.info.name} is stored in a layout of bitsandbytes that only its kernels read."
        )
    return made.read(made.recipe.parts[0], start, stop).float() * (made.whole(1).float()[start:stop, None] / 127)


def _four_bit_rows(made: DerivedTensor, start: int, stop: int) -> torch.Tensor:
    """bitsandbytes' 4 bits: two values a byte, the first one high, looked up in a table of 16 and multiplied by their
    block's largest value; these may be stored as bytes themselves, looked up and scaled by blocks in turn. Settings:
    values a block, largest values a block of those (0: stored plainly), their mean. Parts: bytes, largest, table, and
    for the latter their scales and table.
    """
    block, outer, mean = made.recipe.settings
    columns = made.info.shape[1]
    first, last = start * columns, stop * columns
    bytes_ = made.read(made.recipe.parts[0], first // 2, -(-last // 2)).reshape(-1)
    values = torch.stack([bytes_ >> 4, bytes_ & 15], 1).reshape(-1)
    of_block = torch.arange(first, last) // int(block)
    largest = made.whole(1).reshape(-1)[of_block]
    if outer:
        largest = made.whole(4)[largest.long()] * made.whole(3).reshape(-1)[of_block // int(outer)] + mean
    return (made.whole(2)[values.long()] * largest.float()).reshape(stop - start, columns)


def _packed_rows(made: DerivedTensor, start: int, stop: int) -> torch.Tensor:
    """compressed-tensors' packed integers: along the rows, lowest bits first, 2^(bits - 1) added. Settings: bits,
    inputs a scale. Parts: words, scales.
    """
    bits, group = map(int, made.recipe.settings)
    words, columns = made.read(made.recipe.parts[0], start, stop), made.info.shape[1]
    shifts = torch.arange(32 // bits, dtype=torch.int32) * bits
    values = ((words[:, :, None] >> shifts) & ((1 << bits) - 1)).reshape(stop - start, -1)[:, :columns] - (
        1 << bits - 1
    )
    return values.float() * made.whole(1)[start:stop].float()[:, torch.arange(columns) // group]


def _gptq_rows(made: DerivedTensor, start: int, stop: int) -> torch.Tensor:
    """(q - zero) * scale, q packed down the input axis, zeros along the output axis. Settings: bits, what is added to a
    stored zero. Parts: qweight, qzeros, scales, g_idx.
    """
    bits, one_more = map(int, made.recipe.settings)
    words, zeros, scales, group = (made.whole(i) for i in range(4))
    per_word, mask = 32 // bits, (1 << bits) - 1
    shifts = torch.arange(per_word, dtype=torch.int32) * bits
    q = ((words[:, None, start:stop] >> shifts[None, :, None]) & mask).reshape(-1, stop - start)
    columns = torch.arange(start, stop)
    zero = (zeros[:, columns // per_word] >> (columns % per_word * bits).to(torch.int32)) & mask
    zero = (zero + one_more) & mask  # zero 0 was stored as all ones
    group = group.long()
    if not (group >= 0).all() or not (group < len(scales)).all():
        raise UnsupportedCheckpoint(
            f"{made.recipe.parts[3].name} names groups that have no scale; the file is damaged."
        )
    return ((q - zero[group]).float() * scales[group, start:stop].float()).T


def _awq_rows(made: DerivedTensor, start: int, stop: int) -> torch.Tensor:
    """(q - zero) * scale, q and zeros packed along the output axis in AWQ_ORDER. Settings: inputs a group. Parts:
    qweight, qzeros, scales.
    """
    group_size = int(made.recipe.settings[0])
    place = {column: number for number, column in enumerate(AWQ_ORDER)}
    columns = torch.arange(start, stop)
    shifts = torch.tensor([4 * place[int(c) % 8] for c in columns], dtype=torch.int32)
    q, zero = ((made.whole(i)[:, columns // 8] >> shifts) & 15 for i in (0, 1))
    group = torch.arange(q.shape[0]) // group_size
    return ((q - zero[group]).float() * made.whole(2)[group, start:stop].float()).T


def _reordered_rows(made: DerivedTensor, start: int, stop: int) -> torch.Tensor:
    """Rows that a converter stored in another order inside each head. Settings: rows a head."""
    order, first, last = _rotary_order(int(made.recipe.settings[0]), start, stop)
    return made.read(made.recipe.parts[0], first, last)[order - first]


def _gguf_rows(made: DerivedTensor, start: int, stop: int) -> torch.Tensor:
    """llama.cpp's block formats, unpacked by the gguf package. Settings: type number, rows a head (0: as they lie)."""
    from gguf import GGMLQuantizationType, quants

    kind, head = map(int, made.recipe.settings)
    order, first, last = _rotary_order(head, start, stop) if head else (torch.arange(start, stop), start, stop)
    stored = made.read(made.recipe.parts[0], first, last)[order - first]
    per_row = made.info.n_elements // made.info.shape[0]
    return torch.from_numpy(quants.dequantize(stored.numpy(), GGMLQuantizationType(kind)).copy()).reshape(
        stop - start, per_row
    )


def _rotary_order(head: int, start: int, stop: int) -> tuple[torch.Tensor, int, int]:
    """(stored row of each row start to stop, first and last + 1 of the heads they lie in): the two halves of a head are
    stored interleaved, row (half t, i) at 2 i + t.
    """
    row = torch.arange(start, stop)
    at, half = row % head, head // 2
    return row - at + at % half * 2 + at // half, start // head * head, -(-stop // head) * head


def _shard_rows(made: DerivedTensor, start: int, stop: int) -> torch.Tensor:
    """Put together from chunks. Settings: the offset of every chunk, one number an axis."""
    shape, n_axes = made.info.shape, len(made.info.shape)
    out = torch.empty((stop - start, *shape[1:]), dtype=TORCH_DTYPES[made.info.dtype])
    if not n_axes:
        return made.read(made.recipe.parts[0], 0, 1)
    for number, part in enumerate(made.recipe.parts):
        first, *others = made.recipe.settings[number * n_axes : (number + 1) * n_axes]
        low, high = max(start, first), min(stop, first + part.shape[0])
        if low < high:
            place = (slice(low - start, high - start), *(slice(o, o + n) for o, n in zip(others, part.shape[1:])))
            out[place] = made.read(part, low - first, high - first)
    return out


KINDS: dict[str, Callable[[DerivedTensor, int, int], torch.Tensor]] = {
    "scaled": _scaled_rows,
    "int8": _int8_rows,
    "gptq": _gptq_rows,
    "awq": _awq_rows,
    "four bits": _four_bit_rows,
    "packed": _packed_rows,
    "reordered": _reordered_rows,
    "gguf": _gguf_rows,
    "shards": _shard_rows,
}
STEPS: dict[str, int] = {"gptq": 64, "awq": 64}  # rows a block: fewer would unpack the same words again and again
