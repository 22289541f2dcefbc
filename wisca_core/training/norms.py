"""Norms of the two sides of every tie group of a live model: one reading of the weights, one transfer to the host.

float64 weights are summed in float64; shorter ones in float32 over one row (or one block of rows of a column), then in
float64. On a GPU all sums are in float64. Nothing asks the device for a single number on the way. Shards are summed
locally, then over the ranks.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from wisca_core.architecture.site import Leg, Sites
from wisca_core.training import distributed
from wisca_core.training.live import Live, full_shape

# the column of patterns.table.STATS each norm is made from
STAT_OF = {"l1": "l1", "mean": "l1", "l2": "l2_sq", "rms": "l2_sq", "max": "max"}
_ROWS = 128  # a block of rows stays in a core's cache


@dataclass(frozen=True, eq=False)
class LocalLeg:
    """One leg as this rank holds it. ``cells``: side * n_cells + cell of each local index along the axis, the last
    one (2 * n_cells) for indices of other sites; None where all of the tensor (at the leg's fixed index) belongs to
    ``cell``.
    """

    leg: Leg
    cell: int
    cells: np.ndarray | None
    groups: tuple


@dataclass(frozen=True, eq=False)
class Layout:
    """Cells of all sites at one granularity, numbered on. ``first``: first cell of each site and the total; ``n``:
    (2, n_cells) values.
    """

    first: np.ndarray
    site: np.ndarray
    parts: tuple[LocalLeg, ...]
    others: tuple[LocalLeg, ...]  # legs that only follow, looked at for overflow
    n: np.ndarray

    @property
    def n_cells(self) -> int:
        return int(self.first[-1])


def layout(live: Live, granularity: str) -> Layout:
    sites = live.sites.sites
    first = np.concatenate([[0], np.cumsum([site.n_cells(granularity) for site in sites])]).astype(np.int64)
    total = int(first[-1])
    n = np.zeros((2, total))
    parts: tuple[list[LocalLeg], list[LocalLeg]] = ([], [])
    for i, site in enumerate(sites):
        labels = site.labels(granularity) + first[i]
        for leg in site.legs:
            tensor = live.parameters[leg.tensor]
            shape = full_shape(tensor)
            cells = np.full(shape[leg.axis], 2 * total, np.int64)
            own = labels[leg.channel.indices()]
            cells[leg.index.indices()] = own + (total if leg.side == "right" else 0)
            if leg.measured:
                np.add.at(n[int(leg.side == "right")], own, np.prod(shape) / np.prod([shape[a] for a in leg.axes]))
            here = distributed.local_indices(tensor, leg.axis)
            whole = len(set(cells.tolist())) == 1
            part = LocalLeg(
                leg,
                int(cells[0]),
                None if whole else cells if here is None else cells[here],
                distributed.sum_groups(tensor),
            )
            parts[not leg.measured].append(part)
    return Layout(first, np.repeat(np.arange(len(sites)), np.diff(first)), tuple(parts[0]), tuple(parts[1]), n)


def sides(where: Layout, norm_name: str, read: Callable[[str], torch.Tensor]) -> dict[str, np.ndarray]:
    """The statistics ``patterns.table.norm`` needs, each (2, n_cells) float64: left and right. ``read``: name ->
    local tensor.
    """
    stat = STAT_OF[norm_name]
    return {"n": where.n, stat: _table(where.parts, where.n_cells, stat, read)}


def largest_half(live: Live, where: Layout, read: Callable[[str], torch.Tensor]) -> np.ndarray:
    """(2, n_cells): largest |w| among float16 tensors of each side, biases and followers included; 0 where there are
    none.
    """
    parts = tuple(p for p in where.parts + where.others if live.parameters[p.leg.tensor].dtype == torch.float16)
    return _table(parts, where.n_cells, "max", read)


def _table(parts: tuple[LocalLeg, ...], n_cells: int, stat: str, read: Callable[[str], torch.Tensor]) -> np.ndarray:
    by_key: dict[tuple, list[tuple[LocalLeg, torch.Tensor]]] = {}
    device = None
    for part in parts:
        tensor, axis = read(part.leg.tensor), part.leg.axis
        for fixed, at in part.leg.fixed:
            tensor, axis = tensor.select(fixed, at), axis - (fixed < axis)
        vector = _along(tensor, axis, stat, part.leg.offset)
        if part.cells is None:
            vector = _total(vector, stat)
        device = device or vector.device
        by_key.setdefault(part.groups, []).append((part, vector.to(device)))
    out = np.zeros(2 * n_cells)
    for groups, found in by_key.items():
        values = torch.cat([vector for _, vector in found]).cpu().numpy()
        cells = np.concatenate([part.cells if part.cells is not None else np.array([part.cell]) for part, _ in found])
        if stat == "max":
            table = np.zeros(2 * n_cells + 1)
            np.maximum.at(
                table, cells, np.where(np.isnan(values), np.inf, values)
            )  # a reduction over ranks may drop a NaN
        else:
            table = np.bincount(cells, weights=values, minlength=2 * n_cells + 1)
        table = distributed.all_reduce(table, groups, "max" if stat == "max" else "sum", device)[:-1]
        out = np.maximum(out, table) if stat == "max" else out + table
    return out.reshape(2, n_cells)


def _along(tensor: torch.Tensor, axis: int, stat: str, offset: float) -> torch.Tensor:
    """(n along axis,), float64: that statistic of |tensor + offset|."""
    if not tensor.numel():
        return torch.zeros(tensor.shape[axis], dtype=torch.float64, device=tensor.device)
    over = [d for d in range(tensor.dim()) if d != axis]
    if offset:
        tensor = tensor.double() + offset
    if not over:
        values = tensor.abs().double()
        return values.square() if stat == "l2_sq" else values
    if tensor.device.type != "cpu":
        order = {"l1": 1, "l2_sq": 2, "max": torch.inf}[stat]
        norms = torch.linalg.vector_norm(tensor, order, dim=over, dtype=torch.float64)
        return norms.square() if stat == "l2_sq" else norms
    out = []
    work = torch.float64 if tensor.dtype == torch.float64 else torch.float32
    buffer = torch.empty((min(_ROWS, tensor.shape[0]), *tensor.shape[1:]), dtype=work)
    for first in range(0, tensor.shape[0], _ROWS):
        rows = tensor[first : first + _ROWS]
        block = (
            buffer[: rows.shape[0]].copy_(rows).abs_()
            if rows.dtype != work
            else torch.abs(rows, out=buffer[: rows.shape[0]])
        )
        if stat == "max":
            out.append(block.amax(over).double())
        elif stat == "l1":
            out.append(block.sum(over).double())
        else:
            out.append(block.double().square_().sum(over))  # squares of float32 overflow at 1e19
    if axis == 0:
        return torch.cat(out)
    stacked = torch.stack(out)
    return stacked.amax(0) if stat == "max" else stacked.sum(0)


def _total(vector: torch.Tensor, stat: str) -> torch.Tensor:
    return (
        (vector.amax(0, keepdim=True) if vector.numel() else vector.new_zeros(1))
        if stat == "max"
        else vector.sum(0, keepdim=True)
    )


def ratios(sites: Sites, where: Layout, found: Mapping[str, np.ndarray], norm_name: str) -> dict[str, float]:
    """Site name -> norm of the left side over norm of the right, of whole sites."""
    from wisca_core.patterns.table import norm

    whole = {}
    for name, table in found.items():
        reduce = np.maximum if name == "max" else np.add
        whole[name] = reduce.reduceat(table, where.first[:-1], axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        left, right = norm(norm_name, whole)
        return dict(zip((site.name for site in sites.sites), (left / right).tolist()))
