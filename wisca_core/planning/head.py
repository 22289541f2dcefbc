"""One KV group looked at closely: its weights are read again (a few MB), everything else follows from the factors.

Not in the measuring pass: a quarter-octave histogram of every head would cost that pass more than reading one head
here.
"""

import numpy as np
import torch

from wisca_core.architecture.site import Leg, Site
from wisca_core.checkpoint import Checkpoint, Reader
from wisca_core.patterns.table import norm
from wisca_core.planning.decide import Decision
from wisca_core.planning.detail import BINS_PER_OCTAVE, TAIL, HeadDetail, RoleDetail
from wisca_core.planning.feed_forward import feed_forward_detail


def head_detail(
    checkpoint: Checkpoint, decision: Decision, site_name: str, group: int, head_in_group: int = 0
) -> HeadDetail:
    """Raises KeyError for an unknown site, IndexError for a group it does not have. A feed-forward pair is one
    group.
    """
    sites = decision.patterns.sites
    number = next(i for i, s in enumerate(sites.sites) if s.name == site_name)
    site = sites.sites[number]
    if site.key.pair == "mlp":
        return feed_forward_detail(checkpoint, decision, number)
    if not 0 <= group < site.n_groups:
        raise IndexError(f"{site_name} has {site.n_groups} KV groups")
    pairing = _rotary_pairs(site)
    roles, matrices = [], {}
    with Reader(checkpoint) as reader:
        for i, leg in enumerate(site.legs):
            if leg.measured:
                weight = _group_weight(reader, leg, group)
                rows = _rows(decision, number, i, group)
                factor = decision.row_factor[rows]
                roles.append(
                    _role(
                        leg,
                        weight,
                        factor,
                        {c: decision.patterns.rows[c][rows] for c in ("n_zero", "n_nonfinite")},
                        pairing,
                    )
                )
                width = leg.index.sizes[-1]
                chosen = (
                    slice(head_in_group * width, (head_in_group + 1) * width)
                    if leg.index.sizes[-2] > 1
                    else slice(0, width)
                )
                matrices[leg.side] = (weight[chosen], factor[chosen], leg.index.sizes[-2])
    return HeadDetail(
        site_name,
        group,
        tuple(roles),
        _turns(site, pairing),
        _head_number(site, group, head_in_group),
        *_spectrum(site, matrices),
    )


def _head_number(site: Site, group: int, head_in_group: int) -> int:
    repeats = max(leg.index.sizes[-2] for leg in site.legs if leg.measured)
    return group * repeats + head_in_group


def _rows(decision: Decision, site: int, leg: int, group: int) -> np.ndarray:
    legs = decision.patterns.legs
    place = legs[(legs["site"] == site) & (legs["leg"] == leg)].iloc[0]
    span = np.arange(place["first"], place["stop"])
    return span[decision.patterns.rows["group"][span] == group]


def _group_weight(reader: Reader, leg: Leg, group: int) -> torch.Tensor:
    """(heads in the group * channels, values a channel), float64, effective values, in the order of the table's
    rows.
    """
    index = leg.index.indices()[leg.groups() == group]
    if leg.fixed:
        ((axis, at),) = leg.fixed
        whole = reader.rows(leg.tensor, at, at + 1)[0] if axis == 0 else reader.tensor(leg.tensor).select(axis, at)
        weight = whole.double().movedim(leg.axis - (axis < leg.axis), 0)[torch.from_numpy(index.copy())]
    elif leg.axis == 0:
        low, high = int(index.min()), int(index.max()) + 1
        weight = reader.rows(leg.tensor, low, high)[torch.from_numpy(index - low)].double()
    else:
        weight = torch.cat([block[:, torch.from_numpy(index)].double() for _, block in reader.blocks(leg.tensor)]).T
    return weight.reshape(len(index), -1) + leg.offset


def _role(leg: Leg, weight: torch.Tensor, factor: np.ndarray, counts: dict, pairing: np.ndarray) -> RoleDetail:
    size = weight.abs()
    after = size * torch.from_numpy(factor)[:, None]
    edges, percent, percent_after = _histograms(size, after)
    stats = [
        {"n": w.numel(), "l1": w.sum().item(), "l2_sq": (w * w).sum().item(), "max": w.max().item()}
        for w in (size, after)
    ]
    both = {name: tuple(float(norm(name, s)) for s in stats) for name in ("l1", "l2", "max", "mean")}
    width = leg.index.sizes[-1]
    channel = [np.bincount(pairing, w.sum(1).reshape(-1, width).sum(0).numpy()) for w in (size, after)]
    return RoleDetail(
        leg.role,
        leg.tensor,
        tuple(weight.shape),
        leg.index.sizes[-2],
        both["l1"],
        both["l2"],
        both["max"],
        both["mean"],
        (float(factor.min()), float(factor.max())),
        int(counts["n_zero"].sum()),
        int(counts["n_nonfinite"].sum()),
        edges,
        percent,
        percent_after,
        *channel,
    )


def _histograms(size: torch.Tensor, after: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Quarter-octave histograms over both, in percent; the least 0.05 % of either tail is folded into the end bins."""
    logs = [torch.log2(w[(w > 0) & w.isfinite()]) * BINS_PER_OCTAVE for w in (size, after)]
    if not len(logs[0]):
        return np.zeros(1), np.zeros(0), np.zeros(0)
    ends = [np.quantile(log.numpy(), (TAIL, 1.0)) for log in logs]
    low, high = int(np.floor(min(e[0] for e in ends))), int(np.floor(max(e[1] for e in ends))) + 1
    bins = [np.bincount((log.floor().clamp(low, high - 1) - low).long().numpy(), minlength=high - low) for log in logs]
    return (np.arange(low, high + 1) / BINS_PER_OCTAVE, *(100 * b / max(b.sum(), 1) for b in bins))


def _rotary_pairs(site: Site) -> np.ndarray:
    """(head_dim,) rotary pair of each channel of a head, fastest first; channels that do not rotate follow, one
    each.
    """
    layout, width, _ = site.rotary
    dim = next(leg for leg in site.legs if leg.measured).index.sizes[-1]
    out = np.arange(dim)
    if site.key.pair != "qk" or not width:
        return out
    if layout == "half":
        out[:width] = np.arange(width) % (width // 2)
    else:
        out[:width] = np.arange(width) // 2
    out[width:] = width // 2 + np.arange(dim - width)
    return out


def _turns(site: Site, pairing: np.ndarray) -> np.ndarray | None:
    """Tokens per turn of each rotary pair, 2 pi theta^(2 i / width); NaN for channels that do not rotate."""
    _, width, theta = site.rotary
    if site.key.pair != "qk" or not width or not theta:
        return None
    out = np.full(pairing.max() + 1, np.nan)
    i = np.arange(width // 2)
    out[: width // 2] = 2 * np.pi * theta ** (2 * i / width)
    return out


def _spectrum(site: Site, matrices: dict) -> tuple[dict[str, np.ndarray], str]:
    if site.live == "gains" or len(matrices) < 2:
        return {}, "The live pair are the norm's gains, one number a channel; they have no spectrum."
    (left, left_factor, _), (right, right_factor, _) = matrices["left"], matrices["right"]
    if not (left.isfinite().all() and right.isfinite().all()):
        return {}, "A value is not finite, so there are no singular values."

    def values(weight: torch.Tensor, factor: np.ndarray | None = None) -> np.ndarray:
        scaled = weight if factor is None else weight * torch.from_numpy(factor)[:, None]
        return torch.linalg.svdvals(scaled).numpy()

    # left^T right has rank head_dim: its singular values are those of R_left R_right^T of the two QR factors
    r_left, r_right = torch.linalg.qr(left.T, mode="r")[1], torch.linalg.qr(right.T, mode="r")[1]
    spectrum = {
        "left": values(left),
        "right": values(right),
        "left_after": values(left, left_factor),
        "right_after": values(right, right_factor),
        "product": torch.linalg.svdvals(r_left @ r_right.T).numpy(),
    }
    if site.key.pair == "lora":
        return spectrum, "Of the whole product B A, without its scaling."
    note = "Of the first query head, without biases" + (
        "; Q K^T at distance 0, before any rotation." if site.rotary[1] else "."
    )
    return spectrum, note
