"""Changes of basis onto tensors: (left, right) -> (S^-1 left, right S) over the channels of one KV group, in place."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from wisca_core.architecture.site import Leg, Site
from wisca_core.methods import Method
from wisca_core.pairs import MATRICES

Basis = tuple[torch.Tensor, torch.Tensor]  # (S, S^-1), float64 (head_dim, head_dim)


@dataclass(frozen=True, eq=False)
class LegRows:
    """Indices of one leg of one KV group: (heads that read it, head_dim), each row in the order of the channels."""

    leg: Leg
    indices: torch.Tensor


def groups_of(site: Site) -> list[list[LegRows]]:
    """Per KV group, what each leg holds of it. Every row lists the same channels in the same order."""
    labels = site.labels("group")
    out = []
    for group in range(int(labels.max()) + 1):
        channels = np.flatnonzero(labels == group)
        found = []
        for leg in site.legs:
            of, where = leg.channel.indices(), leg.index.indices()
            each = [where[of == channel] for channel in channels]
            found.append(LegRows(leg, torch.from_numpy(np.stack(each, axis=1))))
        out.append(found)
    return out


def basis_of(method: Method, pair: str, tensors: Mapping[str, torch.Tensor], rows: list[LegRows]) -> Basis | str:
    """What the method changes one KV group of that pair by; a reason in words where there is nothing."""
    grams = {"left": 0.0, "right": 0.0}
    for one in rows:
        if one.leg.measured:
            for index in one.indices:
                block = _rows(tensors[one.leg.tensor], one.leg.axis, index)
                if not block.isfinite().all():
                    return f"{one.leg.tensor} is not finite"
                grams[one.leg.side] = grams[one.leg.side] + block @ block.T
    return method.basis(grams["left"], grams["right"], MATRICES[pair])


def change_(tensor: torch.Tensor, rows: LegRows, basis: Basis, is_gradient: bool = False) -> None:
    """Left rows by S^-1, right ones by S; what is linear in the gradients goes the other way: S^T g_left, g_right S^-T.
    Computed in float64, in place.
    """
    s, inverse = basis
    matrix = (s.T if is_gradient else inverse) if rows.leg.side == "left" else (inverse if is_gradient else s.T)
    axis = rows.leg.axis
    for index in rows.indices:
        block = _rows(tensor, axis, index)
        rest = (n for d, n in enumerate(tensor.shape) if d != axis)
        new = (matrix.to(block) @ block).reshape(len(index), *rest).to(tensor.dtype)
        tensor.index_copy_(axis, index.to(tensor.device), new.movedim(0, axis))


def _rows(tensor: torch.Tensor, axis: int, index: torch.Tensor) -> torch.Tensor:
    """(len(index), rest), float64, a copy."""
    return tensor.detach().index_select(axis, index.to(tensor.device)).movedim(axis, 0).reshape(len(index), -1).double()
