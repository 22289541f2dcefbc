"""Reading one head's rows as float64 matrices; what several heads need is read once."""

import torch

from wisca_core.checkpoint import Checkpoint, Reader
from wisca_core.circuits.layout import HeadRows

# A tensor whose heads are columns is kept whole up to here, in its stored dtype (Wo of the largest models has 0.5 GB);
# a larger one is read again for each head.
KEPT_BYTES = 2**30
_BLOCK = 1 << 20


class AttentionWeights:
    """The weights of one attention at a time, read through ``reader``; not to be shared between threads."""

    def __init__(self, checkpoint: Checkpoint, reader: Reader):
        self.shapes = {tensor.name: tensor.shape for tensor in checkpoint.tensors}
        self.shapes |= {name: self.shapes[owner] for name, owner in checkpoint.aliases if owner in self.shapes}
        self.sizes = {tensor.name: tensor.n_bytes for tensor in checkpoint.tensors}
        self.reader = reader
        self._whole: dict[str, torch.Tensor] = {}

    def matrix(self, rows: HeadRows) -> torch.Tensor:
        """(width, values a channel), float64, effective values; a diagonal matrix where a channel has one value."""
        index = torch.from_numpy(rows.index.copy())
        found = self._rows(rows, index).double().reshape(len(index), -1) + rows.offset
        is_gain = len(self.shapes[rows.tensor]) == 1 or (found.shape[1] == 1 and bool(rows.fixed))
        return torch.diag(found[:, 0]) if is_gain else found

    def bias(self, rows: HeadRows) -> torch.Tensor:
        """(width,), float64; zeros where there is none."""
        if rows.bias is None:
            return torch.zeros(rows.width, dtype=torch.float64)
        return self._rows(rows.bias, torch.from_numpy(rows.bias.index.copy())).double().reshape(-1)

    def vector(self, name: str) -> torch.Tensor:
        """A whole tensor of one axis, float64."""
        return self.reader.tensor(name).double().reshape(-1)

    def has(self, name: str) -> bool:
        return name in self.shapes

    def forget(self) -> None:
        """Let go of what was kept."""
        self._whole.clear()

    def _rows(self, rows: HeadRows, index: torch.Tensor) -> torch.Tensor:
        name, axis = rows.tensor, rows.axis
        if rows.fixed:
            ((other, at),) = rows.fixed
            if other == 0:
                one = self.reader.rows(name, at, at + 1)[0]
            else:
                one = self._whole_tensor(name).select(other, at)
            return one.movedim(axis - (axis > other), 0)[index]
        if axis == 0:
            low, high = int(rows.index.min()), int(rows.index.max()) + 1
            return self.reader.rows(name, low, high)[index - low]
        if self.sizes.get(name, 0) > KEPT_BYTES:
            return torch.cat([block[:, index].clone() for _, block in self.reader.blocks(name, _BLOCK)]).T
        return self._whole_tensor(name).index_select(axis, index).movedim(axis, 0)

    def _whole_tensor(self, name: str) -> torch.Tensor:
        if name not in self._whole:
            self._whole[name] = self.reader.tensor(name)
        return self._whole[name]
