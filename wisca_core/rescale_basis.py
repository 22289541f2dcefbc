"""Changes of basis onto tensors: (left, right) -> (S^-1 left, right S) over the channels of one KV group; decided for a
checkpoint, and applied to live tensors and to those of an export. torch is loaded where one is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from wisca_core.architecture.site import Leg, Refusal, Site, Sites
from wisca_core.checkpoint import Checkpoint, Reader
from wisca_core.checkpoint.writer import Change
from wisca_core.methods import Method, method
from wisca_core.pairs import MATRICES
from wisca_core.patterns.measure import measure
from wisca_core.planning.bases import Bases, inverse, is_invertible
from wisca_core.planning.decide import Decision
from wisca_core.planning.factors import Factors
from wisca_core.progress import Progress, silent
from wisca_core.rescale import changes, scalings
from wisca_core.threads import one_thread

if TYPE_CHECKING:
    import torch

    Basis = tuple[torch.Tensor, torch.Tensor]  # (S, S^-1), float64 (head_dim, head_dim)


@dataclass(frozen=True, eq=False)
class LegRows:
    """Indices of one leg of one KV group: (heads that read it, head_dim), each row in the order of the channels."""

    leg: Leg
    indices: torch.Tensor


def groups_of(site: Site) -> list[list[LegRows]]:
    """Per KV group, what each leg holds of it. Every row lists the same channels in the same order."""
    import torch

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
                grams[one.leg.side] = grams[one.leg.side] + block @ block.T
            if not grams[one.leg.side].isfinite().all():
                return f"{one.leg.tensor} is not finite"
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


@dataclass(frozen=True, eq=False)
class BasisChange:
    """The changes of basis of one tensor, and the factors on the rest of it, as the writer of weight files takes them:
    of the whole tensor at once, since they mix its rows.
    """

    parts: tuple[tuple[LegRows, Basis], ...]
    factors: Change | None = None
    is_whole = True

    def __call__(self, tensor: torch.Tensor, first_row: int = 0) -> torch.Tensor:
        out = self.factors(tensor, 0) if self.factors else tensor.clone()
        for rows, basis in self.parts:
            change_(out, rows, basis)
        return out


def all_changes(
    checkpoint: Checkpoint, sites: Sites, factors: Factors, bases: Bases, only_side: str | None = None
) -> dict[str, Change]:
    """What a plan's factors and bases do to each tensor of the checkpoint, for ``write_weights`` and ``Reader``.
    ``only_side`` as in ``scalings``.
    """
    shapes = {tensor.name: tensor.shape for tensor in checkpoint.tensors}
    out: dict[str, Change] = changes(scalings(sites, factors.by_site, factors.granularity, shapes, only_side))
    if not bases:
        return out
    import torch

    parts: dict[str, list[tuple[LegRows, Basis]]] = {}
    for name, matrices in bases.sites.items():
        inverses = inverse(matrices)
        for number, group in enumerate(groups_of(sites[name])):
            basis = torch.from_numpy(matrices[number]), torch.from_numpy(inverses[number])
            for rows in (rows for rows in group if only_side in (None, rows.leg.side)):
                parts.setdefault(rows.leg.tensor, []).append((rows, basis))
    return out | {name: BasisChange(tuple(of), out.get(name)) for name, of in parts.items()}


def with_bases(decision: Decision, checkpoint: Checkpoint, progress: Progress = silent) -> Decision:
    """The decision with the changes of basis that its options ask for, where it has none yet, and the table of what the
    weights will then be. Reads the weights of those pairs, and once more all that change. The same decision where the
    method is one of factors. Raises CheckpointChanged, UnreadableInput, Cancelled.
    """
    sites, chosen = decision.patterns.sites, method(decision.options.method)
    if chosen.by_factors:
        return decision
    if not decision.bases:
        found, left = {}, []
        asked = [s for s in sites.sites if chosen.changes_basis_of(s.key.pair) and decision.options.chooses(s.key)]
        with Reader(checkpoint) as reader, one_thread():  # more only wait for one another on matrices this small
            for number, site in enumerate(asked):
                progress("finding the changes of basis", number, len(asked))
                basis = _basis_of_site(chosen, site, reader)
                if isinstance(basis, str):
                    left.append(Refusal(site.name, f"{basis}; left as it is"))
                else:
                    found[site.name] = basis
        decision = replace(decision, bases=Bases(found), not_changed=tuple(left))
    factors = Factors(decision.cells.granularity, tuple(decision.factors_by_site.items()))
    with Reader(checkpoint, all_changes(checkpoint, sites, factors, decision.bases)) as changed:
        return replace(decision, after=measure(checkpoint, sites, progress, changed))


def _basis_of_site(chosen: Method, site: Site, reader: Reader) -> np.ndarray | str:
    """S of each KV group, or why there is none."""
    import torch

    if reason := chosen.why_not(site):
        return reason
    tensors = {leg.tensor: reader.tensor(leg.tensor) for leg in site.legs}
    found = []
    for rows in groups_of(site):
        basis = basis_of(chosen, site.key.pair, tensors, rows)
        if isinstance(basis, str):
            return basis
        found.append(basis[0])
        for one in rows:
            change_(tensors[one.leg.tensor], one, basis)
    bad = next((name for name, tensor in tensors.items() if not tensor.isfinite().all()), "")
    if bad:
        return f"{bad} is not finite, or a value would leave the range of its dtype"
    out = torch.stack(found).numpy()
    return (
        out if is_invertible(out) else "some directions are so much weaker than others that it could not be taken back"
    )
