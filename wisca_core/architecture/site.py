"""What a site is: plain numbers and names, no tensors.

A *site* is an internal axis of ``n_channels`` that some tensors write (left) and others read (right), so that scaling
the writers' channel ``i`` by ``s_i > 0`` and the readers' channel ``i`` by ``1 / s_i`` leaves the function unchanged.
Everything that is measured, predicted, applied and verified is derived from the same sites.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

import numpy as np

from wisca_core.pairs import DEFAULT_PAIRS as DEFAULT_PAIRS
from wisca_core.pairs import PAIRS as PAIRS

if TYPE_CHECKING:
    from wisca_core.architecture.families import Family

GRANULARITIES = ("tensor", "group", "channel")  # coarse to fine


def granularity_of(granularity: str, pair: str) -> str:
    """What is asked for that pair: the one word, or of "qk=channel,vo=tensor" its own ("tensor" where it has none)."""
    if "=" not in granularity:
        return granularity
    return dict(part.split("=") for part in granularity.split(",")).get(pair, "tensor")


@dataclass(frozen=True)
class Grid:
    """A strided block of indices: ``start + sum(coordinate * stride)`` over all coordinates below ``sizes``,
    row-major.
    """

    start: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]

    def indices(self) -> np.ndarray:
        """int64, shape (prod(sizes),); shared and read-only."""
        return _expand(self)

    @property
    def last(self) -> int:
        """The largest index."""
        return self.start + sum((n - 1) * s for n, s in zip(self.sizes, self.strides))


@lru_cache(maxsize=4096)
def _expand(grid: Grid) -> np.ndarray:
    out = np.full((), grid.start, dtype=np.int64)
    for n, stride in zip(grid.sizes, grid.strides):
        out = out[..., None] + np.arange(n, dtype=np.int64) * stride
    out = out.reshape(-1)
    out.flags.writeable = False
    return out


@dataclass(frozen=True)
class Leg:
    """One tensor's part in a site: which of its indices along ``axis`` carry which channels.

    ``index`` and ``channel`` are grids over the same coordinates (KV group, query head in the group, channel in the
    head; a layout may need several for the group); a leg with one head a group has size 1 before the last. Applying
    factor ``s`` multiplies the *effective* value ``stored + offset`` by ``s ** exponent`` on the left and
    ``s ** -exponent`` on the right.

    ``measured`` legs enter the norm; biases and other terms that merely have to follow do not.
    ``offset`` is 1.0 where the stored value is gain - 1 (Gemma's norms), else 0.0.
    ``fixed`` is at most one (axis, index) on another axis: the expert of a 3-D tensor, the head of a gain (heads,
    width).
    """

    tensor: str
    axis: int
    index: Grid
    channel: Grid
    side: str  # "left" | "right"
    role: str  # q k v o up down gain a b
    measured: bool = True
    exponent: int = 1
    offset: float = 0.0
    fixed: tuple[tuple[int, int], ...] = ()

    @property
    def signed_exponent(self) -> int:
        return self.exponent if self.side == "left" else -self.exponent

    @property
    def n_heads(self) -> int:
        return math.prod(self.index.sizes[:-1])

    def heads(self) -> np.ndarray:
        """Which head of the tensor each index belongs to; int64, same order as ``index.indices()``."""
        *_, width = self.index.sizes
        return _expand(Grid(0, (self.n_heads, width), (1, 0)))

    def groups(self) -> np.ndarray:
        """Which KV group each index belongs to; int64, same order as ``index.indices()``."""
        *leading, repeats, width = self.index.sizes
        return _expand(Grid(0, (math.prod(leading), repeats, width), (1, 0, 0)))

    @property
    def axes(self) -> tuple[int, ...]:
        """The axes its indices lie on, ascending: ``axis``, and the fixed one where there is one."""
        return tuple(sorted((self.axis, *(axis for axis, _ in self.fixed))))

    def flat(self, shape: tuple[int, ...]) -> np.ndarray:
        """Its indices among all of ``axes``, row-major, in a tensor of that shape; int64, order of
        ``index.indices()``.
        """
        index = self.index.indices()
        if not self.fixed:
            return index
        ((axis, at),) = self.fixed
        return at * shape[self.axis] + index if axis < self.axis else index * shape[axis] + at


@dataclass(frozen=True, order=True)
class SiteKey:
    """Name of a site, written ``decoder.3.self.qk``, with ``.e5`` behind it for expert 5 and ``:part`` where a layer
    holds several of one pair (``decoder.3.self.qk:rope``, ``decoder.3.none.lora:self_attn.q_proj``).
    """

    stack: str
    layer: int
    attention: str  # self | cross | none
    pair: str
    expert: int = -1  # -1: none
    part: str = ""

    def __str__(self) -> str:
        tail = f".e{self.expert}" if self.expert >= 0 else ""
        part = f":{self.part}" if self.part else ""
        return f"{self.stack}.{self.layer}.{self.attention}.{self.pair}{tail}{part}"

    @classmethod
    def parse(cls, text: str) -> "SiteKey":
        """The key written like that. Raises ValueError."""
        match = re.fullmatch(r"(\w+)\.(\d+)\.(\w+)\.(\w+)(?:\.e(\d+))?(?::([\w.-]+))?", text)
        if not match:
            raise ValueError(f"{text!r} is no name of a site")
        return cls(
            match[1], int(match[2]), match[3], match[4], -1 if match[5] is None else int(match[5]), match[6] or ""
        )


@dataclass(frozen=True)
class Site:
    """One pair in one layer.

    ``exact_ties`` and ``group_ties``: grids whose *last* axis lists channels that share one factor. The first are what
    exactness demands (rotary pairs), the second are the KV groups. Channels in no grid are free.
    ``live`` says what carries the scale: "weights", or "gains" where a norm absorbs the scale of the weights.
    """

    key: SiteKey
    n_channels: int
    n_groups: int
    legs: tuple[Leg, ...]
    exact_ties: tuple[Grid, ...] = ()
    group_ties: tuple[Grid, ...] = ()
    live: str = "weights"
    rule: str = ""
    rotary: tuple[str, int, float] = ("none", 0, 0.0)  # layout, rotating channels of a head, base; for axes of figures

    @property
    def name(self) -> str:
        return str(self.key)

    def measured_legs(self, side: str) -> tuple[Leg, ...]:
        return tuple(leg for leg in self.legs if leg.measured and leg.side == side)

    @property
    def block(self) -> str:
        """Where in the model the pair sits, without its layer: "decoder.self", "decoder.cross", "decoder.self:rope"."""
        return f"{self.key.stack}.{self.key.attention}" + (f":{self.key.part}" if self.key.part else "")

    def exponent(self, side: str) -> int:
        """The exponent its measured legs share on that side (method: a = b = 1, ReLU^2 has b = 2)."""
        return self.measured_legs(side)[0].exponent

    def labels(self, granularity: str) -> np.ndarray:
        """Tie group of each channel at that granularity (or its pair's of several), never finer than exactness allows.

        int64 (n_channels,), numbered 0.. in order of first channel; shared and read-only.
        """
        asked = granularity_of(granularity, self.key.pair)
        return _labels(self.n_channels, self.exact_ties, self.group_ties, asked)

    def n_cells(self, granularity: str) -> int:
        return int(self.labels(granularity).max()) + 1

    def used_granularity(self, granularity: str) -> str:
        """The coarsest name for the partition that is really used: "tensor" where "group" was asked of one group."""
        asked = self.labels(granularity)
        return next(name for name in GRANULARITIES if np.array_equal(self.labels(name), asked))


@lru_cache(maxsize=256)
def _labels(n: int, exact: tuple[Grid, ...], group: tuple[Grid, ...], granularity: str) -> np.ndarray:
    if granularity == "tensor":
        out = np.zeros(n, dtype=np.int64)
    else:
        ties = exact + (group if granularity == "group" else ())
        label = np.arange(n, dtype=np.int64)
        changed = True
        while changed:  # overlapping ties merge: repeat until every tie holds one label
            before = label.copy()
            for grid in ties:
                members = grid.indices().reshape(-1, grid.sizes[-1])
                lowest = label[members].min(axis=1)
                for column in members.T:
                    np.minimum.at(label, column, lowest)
            changed = not np.array_equal(before, label)
        out = np.unique(label, return_inverse=True)[1].astype(np.int64)
    out.flags.writeable = False
    return out


@dataclass(frozen=True)
class Refusal:
    """A site (or the whole model, ``what="model"``) that is left alone, and why, in words for the person."""

    what: str
    reason: str


@dataclass(frozen=True)
class Attention:
    """What the figures say of the model's attention, read from config.json and checked against the weights."""

    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    hidden_size: int


@dataclass(frozen=True)
class Sites:
    """All that was found in one checkpoint: sites, refusals, and remarks that belong on the page.

    ``family`` is the row of the family files, "" where none matched; the model itself is then the one refusal.
    """

    family: str
    model_type: str
    attention: Attention | None
    sites: tuple[Site, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    remarks: tuple[str, ...] = ()
    discovered: "Family | None" = None  # the row that was found by trial, where no file has one

    @property
    def architecture(self) -> str:
        """Model type and, where it goes by another name, the rule: "mixtral, rule llama"; "" where neither is known."""
        rule = f"rule {self.family}" if self.family and self.model_type and self.family != self.model_type else ""
        return ", ".join(filter(None, (self.model_type or self.family, rule)))

    def only(self, keep: Callable[[Site], bool]) -> "Sites":
        """The same with the sites that ``keep`` is true of."""
        return replace(self, sites=tuple(site for site in self.sites if keep(site)))

    def __getitem__(self, name: str) -> Site:
        return self._by_name[name]

    def __contains__(self, name: str) -> bool:
        return name in self._by_name

    @cached_property
    def _by_name(self) -> dict[str, Site]:
        return {site.name: site for site in self.sites}
