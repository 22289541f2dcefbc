"""Which rows of which tensors make which head, read off the sites.

A site says which channels its legs share; two heads meet where their channels are the same, so grouped queries, fused
matrices, transposed ones, latent attention and layers that share keys need no rule of their own here.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from wisca_core.architecture.site import Leg, Site, SiteKey, Sites
from wisca_core.checkpoint import Checkpoint
from wisca_core.patterns.blocks import block_of


@dataclass(frozen=True, eq=False)
class HeadRows:
    """One head's channels in one tensor. ``index`` along ``axis`` and ``channel`` in the site, int64 (width,);
    ``bias``: the same channels' in the bias, None without one; ``offset`` is added to what is stored. A tensor of one
    number a channel is a diagonal matrix. ``site`` and ``side``: whose factor of a rescale its channels would take.
    """

    tensor: str
    axis: int
    index: np.ndarray
    channel: np.ndarray
    head: int
    expert: int = -1
    fixed: tuple[tuple[int, int], ...] = ()
    offset: float = 0.0
    bias: "HeadRows | None" = None
    site: str = ""
    side: str = "left"

    @property
    def key(self) -> tuple:
        return (self.tensor, self.axis, self.fixed, self.index.tobytes())

    @property
    def width(self) -> int:
        return len(self.index)


@dataclass(frozen=True, eq=False)
class Meeting:
    """Channels in which a query meets a key."""

    q: HeadRows
    k: HeadRows
    site: Site

    def rotary_pairs(self) -> np.ndarray:
        """int64 (n, 2): which of the head's channels turn together, by exactness (a pair shares one factor)."""
        place = {int(channel): i for i, channel in enumerate(self.q.channel)}
        pairs = [grid.indices().reshape(-1, 2) for grid in self.site.exact_ties if grid.sizes[-1] == 2]
        inside = [(place[a], place[b]) for part in pairs for a, b in part.tolist() if a in place and b in place]
        return np.array(inside, np.int64).reshape(-1, 2)


@dataclass(frozen=True, eq=False)
class Head:
    """One query head. ``qk``: its meetings (two under latent attention), none where the pair is refused; ``v`` and
    ``o`` None there. ``notes``: why something is missing, in words.
    """

    block: str
    layer: int
    head: int
    kv_head: int
    expert: int
    qk: tuple[Meeting, ...] = ()
    v: HeadRows | None = None
    o: HeadRows | None = None
    vo_site: Site | None = None
    is_latent: bool = False  # keys and values come from a narrow stream behind a norm of its own
    notes: tuple[str, ...] = ()


def heads_of(sites: Sites, checkpoint: Checkpoint) -> list[Head]:
    """Every query head of every attention that has a pair, in the order of block, layer and head."""
    shapes = {tensor.name: tensor.shape for tensor in checkpoint.tensors}
    attentions: dict[tuple, dict[str, list[Site]]] = {}
    for site in sites.sites:
        if site.key.pair in ("qk", "vo"):
            attentions.setdefault(_place(site.key), {"qk": [], "vo": []})[site.key.pair].append(site)
    reasons = _reasons(sites)
    out: list[Head] = []
    for place, pairs in attentions.items():
        queries = {
            number: [Meeting(q, k, site) for q, k in _met(site, "left", shapes)]
            for number, site in enumerate(pairs["qk"])
        }
        values = [(v, o, site) for site in pairs["vo"] for o, v in _met(site, "right", shapes)]
        out += _join_heads(place, queries, values, reasons, _n_heads(place, sites))
    order = {block: i for i, block in enumerate(dict.fromkeys(head.block for head in out))}
    return sorted(out, key=lambda head: (order[head.block], head.layer, head.expert, head.head))


def _place(key: SiteKey) -> tuple:
    """The attention a site belongs to: the content and the rotary part of a latent one are the same."""
    return (key.stack, key.layer, key.attention, key.part.removesuffix("rope").rstrip("."))


def _n_heads(place: tuple, sites: Sites) -> int:
    """Query heads where the tensors do not say it: gains that all heads share, with Wo refused."""
    first = next((site.key.stack for site in sites.sites), "")
    return sites.attention.n_heads if sites.attention and place[0] == first else 1


def _reasons(sites: Sites) -> dict[tuple, dict[str, str]]:
    out: dict[tuple, dict[str, str]] = {}
    for refusal in sites.refusals:
        try:
            key = SiteKey.parse(refusal.what)
        except ValueError:
            continue
        out.setdefault(_place(key), {})[key.pair] = refusal.reason
    return out


def _join_heads(
    place: tuple,
    queries: dict[int, list[Meeting]],
    values: list[tuple[HeadRows, HeadRows, Site]],
    reasons: dict,
    n_heads: int,
) -> Iterator[Head]:
    stack, layer, attention, part = place
    block = block_of(SiteKey(stack, layer, attention, "qk", -1, part))
    why = reasons.get(place, {})
    home = next((o.tensor for _, o, _ in values), None) or next((m.q.tensor for m in queries.get(0, ())), "")
    by_place: dict[tuple[int, int, int], dict] = {}

    def at(rows: HeadRows, number: int) -> dict:
        return by_place.setdefault((_layer_of(rows.tensor, home, layer), rows.expert, number), {"qk": []})

    for v, o, site in values:
        at(o, o.head)["vo"] = (v, o, site)
    for meetings in queries.values():
        for meeting in meetings:
            for number in _heads_it_serves(meeting, values, n_heads, layer, home):
                at(meeting.q, number)["qk"].append(meeting)
    for (of_layer, expert, number), found in by_place.items():
        v, o, site = found.get("vo", (None, None, None))
        qk = tuple(found["qk"])
        kv = v.head if v is not None and site.live == "weights" else qk[0].k.head if qk else 0
        notes = tuple(
            f"{name}: {why[pair]}" for pair, name, has in (("qk", "QK", qk), ("vo", "OV", o)) if not has and pair in why
        )
        latent = any(meeting.site.key.part.endswith("rope") for meeting in qk)
        yield Head(block, of_layer, number, kv, expert, qk, v, o, site, latent, notes)


def _heads_it_serves(meeting: Meeting, values: list, n_heads: int, layer: int, home: str) -> Iterable[int]:
    """One head, or all of its layer where a gain is shared by all heads."""
    if meeting.site.live == "gains" and _one_for_all(meeting.site):
        here = _layer_of(meeting.q.tensor, home, layer)
        heads = [o.head for _, o, _ in values if _layer_of(o.tensor, home, layer) == here]
        return heads or range(n_heads)
    return (meeting.q.head,)


def _one_for_all(site: Site) -> bool:
    """Whether one gain a channel serves every head: one tensor a layer that reads these keys, each of one head."""
    left, right = site.measured_legs("left"), site.measured_legs("right")
    layers = {_layer_of(leg.tensor, left[0].tensor, site.key.layer) for leg in left}
    return len(layers) == len(left) and len(right) == 1 and all(leg.n_heads == 1 for leg in (*left, *right))


def _layer_of(tensor: str, home: str, layer: int) -> int:
    """The layer a tensor lies in: that of ``home``, a tensor of layer ``layer``, but where the first numbers of their
    names differ (a later layer that reads this one's keys).
    """
    own, other = re.search(r"\d+", tensor), re.search(r"\d+", home)
    return int(own[0]) if own and other and own[0] != other[0] and int(other[0]) == layer else layer


def _met(site: Site, side: str, shapes: dict) -> Iterator[tuple[HeadRows, HeadRows]]:
    """Each head of that side with the rows (or columns) of the other side that have its channels: queries with keys,
    columns of Wo with values.
    """
    others = {carried: rows for rows, carried in _rows(site, "right" if side == "left" else "left", shapes)}
    for one, channels in _rows(site, side, shapes):
        other = others.get(channels)
        if other is not None:
            yield one, other


def _rows(site: Site, side: str, shapes: dict) -> Iterator[tuple[HeadRows, bytes]]:
    """(rows, which channels they carry) of every head of the measured legs of that side."""
    legs = site.measured_legs(side)
    # a tensor of its own for each head (StableLM's norms): the heads are numbered on
    numbered_on = (
        site.live == "gains" and len(legs) > 1 and not _one_for_all(site) and not any(leg.fixed for leg in legs)
    )
    count: dict[str, int] = {}
    biases = [leg for leg in site.legs if not leg.measured and leg.side == side]
    for leg in legs:
        width = leg.index.sizes[-1]
        index = leg.index.indices().reshape(-1, width)
        channel = leg.channel.indices().reshape(-1, width)
        by_expert = len(shapes.get(leg.tensor, ())) == 3 and bool(leg.fixed) and leg.fixed[0][0] == 0
        expert = leg.fixed[0][1] if by_expert else -1
        bias = next((other for other in biases if _is_bias_of(other, leg)), None)
        in_bias = bias.index.indices().reshape(-1, width) if bias else index
        counted = "" if numbered_on else f"{leg.tensor}.{expert}"
        for one, carried, beside in zip(index, channel, in_bias):
            number = count.get(counted, 0)
            count[counted] = number + 1
            place = {"site": site.name, "side": side}
            own = (
                HeadRows(bias.tensor, bias.axis, beside, carried, number, expert, bias.fixed, **place) if bias else None
            )
            yield (
                HeadRows(leg.tensor, leg.axis, one, carried, number, expert, leg.fixed, leg.offset, own, **place),
                carried.tobytes(),
            )


def _is_bias_of(other: Leg, leg: Leg) -> bool:
    """Whether a leg is the bias of another one's module: q_proj.bias, in_proj_bias beside in_proj_weight."""
    if not leg.tensor.endswith("weight") or other.tensor != leg.tensor.removesuffix("weight") + "bias":
        return False
    return (other.role, other.channel, other.fixed) == (leg.role, leg.channel, leg.fixed)


def attentions(heads: list[Head]) -> list[list[Head]]:
    """The heads in runs of one attention each, which read the same tensors."""
    out: dict[tuple, list[Head]] = {}
    for head in heads:
        out.setdefault((head.block, head.layer), []).append(head)
    return list(out.values())
