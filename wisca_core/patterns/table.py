"""The table of channels: what was measured, in columns, and the sums over heads, groups and tensors made from it.

Rows are in the order of ``sites``, their legs, and each leg's indices; numpy arrays underneath, pandas frames outside.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import TypeVar

import numpy as np
import pandas as pd
import xxhash

from wisca_core.architecture.site import Sites
from wisca_core.checkpoint import Checkpoint

T = TypeVar("T")

LOST_BITS = 12  # F16: factors down to 2^-12 are counted exactly

# What the pass measures of each channel of each leg: column -> dtype. All of |stored + offset|.
STATS = {
    "n": np.int64,  # values in the channel
    "l1": np.float64,  # sum
    "l2_sq": np.float64,  # sum of squares
    "max": np.float64,  # largest
    "min_abs": np.float64,  # smallest that is not zero; inf where all are
    "n_zero": np.int64,
    "n_nonfinite": np.int64,
}

LARGEST = {"F16": 65504.0, "BF16": 3.3895313892515355e38, "F32": 3.4028234663852886e38, "F64": 1.7976931348623157e308}
SMALLEST_NORMAL = {"F16": 2.0**-14, "BF16": 2.0**-126, "F32": 2.0**-126, "F64": 2.0**-1022}

# Where a row belongs: column -> dtype
PLACE = {
    "site": np.int32,  # index into sites.sites
    "leg": np.int32,  # index into the site's legs
    "channel": np.int32,  # of the site
    "group": np.int32,  # KV group
    "head": np.int32,  # head of the tensor: query head for q and o, KV head for k and v
    "index": np.int64,  # along the leg's axes of the tensor, row-major
}

NORMS = MappingProxyType(
    {
        "l1": "sum of |w|",
        "l2": "root of the sum of w squared",
        "max": "largest |w|",
        "rms": "root of the mean of w squared",
        "mean": "mean |w|",
    }
)
# how each grows with the number of entries, as a power of it; the largest value has no such law
_SIZE_POWER = MappingProxyType({"l1": 1.0, "l2": 0.5, "rms": 0.0, "mean": 0.0, "max": np.nan})


def norm(name: str, stats: "pd.DataFrame | dict", factor: np.ndarray | float = 1.0) -> np.ndarray:
    """That norm from columns n, l1, l2_sq, max, of weights multiplied by ``factor``; float64.

    ``mean`` and ``rms`` do not grow with the number of entries; "l1" is the paper's.
    """
    n = np.asarray(stats["n"], dtype=np.float64)
    values = {
        "l1": lambda: np.asarray(stats["l1"]),
        "l2": lambda: np.sqrt(stats["l2_sq"]),
        "max": lambda: np.asarray(stats["max"]),
        "rms": lambda: np.sqrt(np.asarray(stats["l2_sq"]) / n),
        "mean": lambda: np.asarray(stats["l1"]) / n,
    }
    return values[name]() * factor


def log2_size(name: str, n_left: np.ndarray, n_right: np.ndarray) -> np.ndarray:
    """The part of log2(left / right) of that norm which only says how many entries each side has, octaves; NaN for
    max.
    """
    return _SIZE_POWER[name] * np.log2(n_left / n_right) + 0.0  # no -0


def header_digest(checkpoint: Checkpoint) -> str:
    """xxh3 over name, dtype and shape of every stored tensor, sorted by name."""
    digest = xxhash.xxh3_128()
    for tensor in sorted(checkpoint.tensors, key=lambda t: t.name):
        digest.update(f"{tensor.name}\0{tensor.dtype}\0{tensor.shape}\n".encode())
    return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Patterns:
    """What one pass over a checkpoint found.

    ``rows``: the columns of PLACE and STATS as arrays of equal length, and ``lost`` (rows, LOST_BITS) for F16.
    ``digests``: tensor name -> xxh3 of its stored bytes; ``header``: digest over names, dtypes and shapes of all
    tensors.
    """

    sites: Sites
    rows: MappingProxyType
    digests: MappingProxyType
    header: str
    dtypes: MappingProxyType  # tensor name -> stored dtype
    _kept: dict = field(default_factory=dict, repr=False)

    @classmethod
    def gather(
        cls,
        sites: Sites,
        measured: dict,
        digests: dict,
        header: str,
        dtypes: dict,
        shapes: Mapping[str, tuple[int, ...]] = MappingProxyType({}),
    ) -> "Patterns":
        """From statistics along tensor axes, ``{(tensor, axes, offset): {column: array}}``, to one row a channel and
        leg. ``shapes``: of the tensors whose legs have a fixed index.
        """
        columns: dict[str, list] = {name: [] for name in (*PLACE, *STATS)}
        lost: list[np.ndarray] = []
        any_half = any("lost" in stats for stats in measured.values())
        for s, site in enumerate(sites.sites):
            for i, leg in enumerate(site.legs):
                stats = measured[leg.tensor, leg.axes, leg.offset]
                index = leg.flat(shapes.get(leg.tensor, ()))
                place = {
                    "site": np.full(len(index), s),
                    "leg": np.full(len(index), i),
                    "channel": leg.channel.indices(),
                    "group": leg.groups(),
                    "head": leg.heads(),
                    "index": index,
                }
                for name, dtype in PLACE.items():
                    columns[name].append(place[name].astype(dtype))
                for name in STATS:
                    columns[name].append(stats[name][index])
                if any_half:
                    lost.append(
                        stats["lost"][index] if "lost" in stats else np.zeros((len(index), LOST_BITS), np.int64)
                    )
        dtype = PLACE | STATS
        rows = {name: np.concatenate(parts) if parts else np.zeros(0, dtype[name]) for name, parts in columns.items()}
        if lost:
            rows["lost"] = np.concatenate(lost)
        return cls(
            sites, MappingProxyType(rows), MappingProxyType(dict(digests)), header, MappingProxyType(dict(dtypes))
        )

    @cached_property
    def legs(self) -> pd.DataFrame:
        """One row a leg: site, leg, name, layer, pair, role, side (0 left, 1 right), measured, exponent (signed),
        n_heads, first (its first row in ``rows``), stop, tensor, dtype.
        """
        out, first = [], 0
        for s, site in enumerate(self.sites.sites):
            for i, leg in enumerate(site.legs):
                stop = first + len(leg.index.indices())
                out.append(
                    (
                        s,
                        i,
                        site.name,
                        site.key.layer,
                        site.key.pair,
                        leg.role,
                        int(leg.side == "right"),
                        leg.measured,
                        leg.signed_exponent,
                        leg.n_heads,
                        first,
                        stop,
                        leg.tensor,
                        self.dtypes[leg.tensor],
                    )
                )
                first = stop
        names = "site leg name layer pair role side measured exponent n_heads first stop tensor dtype".split()
        return pd.DataFrame(out, columns=names)

    @cached_property
    def leg_of_row(self) -> np.ndarray:
        """int32, position in ``legs`` of each row."""
        return np.repeat(np.arange(len(self.legs), dtype=np.int32), self.legs["stop"] - self.legs["first"])

    @cached_property
    def heads(self) -> "Segments":
        """Rows of measured legs in segments, one a (leg, head)."""
        legs = self.legs
        base = np.concatenate([[0], np.cumsum(legs["n_heads"])])[:-1]
        segment = base[self.leg_of_row] + self.rows["head"]
        return Segments.of(segment, legs["measured"].to_numpy()[self.leg_of_row])

    def cells(self, granularity: str) -> "Cells":
        """Rows labelled by tie group at that granularity; kept once made."""
        return self.keep(("cells", granularity), lambda: Cells.of(self, granularity))

    def keep(self, key: tuple, make: Callable[[], T]) -> T:
        """What ``make`` gave the first time it was asked for under ``key``: parts that no option changes are worked out
        once.
        """
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    def of(self, sites: Sites) -> "Patterns":
        """The same table with those of its sites that are in ``sites`` too (by name)."""
        kept = {site.name for site in sites.sites}
        chosen = np.array([site.name in kept for site in self.sites.sites], bool)
        if chosen.all():
            return replace(self, sites=replace(self.sites, refusals=sites.refusals), _kept=self._kept)
        number = np.cumsum(chosen) - 1
        inside = chosen[self.rows["site"]]
        rows = {name: column[inside] for name, column in self.rows.items()}
        rows["site"] = number[rows["site"]].astype(PLACE["site"])
        part = replace(
            self.sites, sites=tuple(site for site in self.sites.sites if site.name in kept), refusals=sites.refusals
        )
        return Patterns(part, MappingProxyType(rows), self.digests, self.header, self.dtypes)

    def fingerprint(self, tensors: "list[str] | tuple[str, ...]") -> str:
        """Hash over every tensor's name, dtype and shape and the bytes of ``tensors``."""
        digest = xxhash.xxh3_128(self.header.encode())
        for name in sorted(tensors):
            digest.update(f"{name}\0{self.digests[name]}\n".encode())
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Segments:
    """Rows in disjoint segments, for fast sums: ``order`` sorts the chosen rows by segment, ``starts`` begins each."""

    order: np.ndarray
    starts: np.ndarray
    ids: np.ndarray  # segment number of each start, ascending

    @classmethod
    def of(cls, segment: np.ndarray, chosen: np.ndarray) -> "Segments":
        rows = np.flatnonzero(chosen)
        kept = segment[rows]
        if not (kept[:-1] <= kept[1:]).all():
            by = np.argsort(kept, kind="stable")
            rows, kept = rows[by], kept[by]
        starts = np.flatnonzero(np.r_[True, kept[1:] != kept[:-1]]) if len(kept) else np.zeros(0, np.int64)
        return cls(rows, starts, kept[starts])

    def constant(self, values: np.ndarray) -> bool:
        """Whether ``values`` (one a row) is one value within every segment."""
        inside = values[self.order]
        changes = np.flatnonzero(inside[1:] != inside[:-1]) + 1
        return bool(np.isin(changes, self.starts, assume_unique=True).all())

    def sum(self, values: np.ndarray) -> np.ndarray:
        return np.add.reduceat(values[self.order], self.starts) if len(self.starts) else np.zeros(0)

    def max(self, values: np.ndarray) -> np.ndarray:
        return np.maximum.reduceat(values[self.order], self.starts) if len(self.starts) else np.zeros(0)

    def reduce(self, stats: dict, factor: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """n, l1, l2_sq, max, n_zero, n_nonfinite of each segment (in the order of ``ids``), rows multiplied by
        ``factor`` first.
        """
        f = 1.0 if factor is None else factor
        return {
            "n": self.sum(stats["n"]),
            "l1": self.sum(stats["l1"] * f),
            "l2_sq": self.sum(stats["l2_sq"] * (f * f)),
            "max": self.max(stats["max"] * f),
            "n_zero": self.sum(stats["n_zero"]),
            "n_nonfinite": self.sum(stats["n_nonfinite"]),
        }


@dataclass(frozen=True, eq=False)
class Cells:
    """Tie groups of all sites at one granularity, numbered on: cell of each row, and the sums of both sides.

    ``first``: first cell of each site, with the total behind the last. ``site``: site of each cell. ``group``: KV group
    of the cell's first channel. ``sides``: statistics (n, l1, ...) as arrays (2, n_cells), left then right, of measured
    legs. ``stored``: of all legs, the same shape: n, n_short (16-bit values), n_offset (gains stored as gain - 1), top
    (largest value as a share of its dtype's largest), low (smallest nonzero value over its dtype's smallest normal
    number).
    """

    granularity: str
    row: np.ndarray
    first: np.ndarray
    site: np.ndarray
    group: np.ndarray
    sides: dict
    stored: dict

    @classmethod
    def of(cls, patterns: Patterns, granularity: str) -> "Cells":
        sites, rows = patterns.sites.sites, patterns.rows
        first = np.concatenate([[0], np.cumsum([site.n_cells(granularity) for site in sites])]).astype(np.int64)
        site_first_channel = np.concatenate([[0], np.cumsum([site.n_channels for site in sites])]).astype(np.int64)
        labels = (
            np.concatenate([site.labels(granularity) + first[i] for i, site in enumerate(sites)])
            if sites
            else np.zeros(0, np.int64)
        )
        cell = labels[site_first_channel[rows["site"]] + rows["channel"]]
        legs = patterns.legs
        side = legs["side"].to_numpy()[patterns.leg_of_row] if len(legs) else np.zeros(0, np.int64)
        measured = legs["measured"].to_numpy()[patterns.leg_of_row] if len(legs) else np.zeros(0, bool)
        of_measured = Segments.of(cell * 2 + side, measured)
        of_all = of_measured if measured.all() else Segments.of(cell * 2 + side, np.ones(len(cell), bool))

        def by_side(segments: Segments, values: np.ndarray) -> np.ndarray:
            both = np.zeros(2 * first[-1], values.dtype)
            both[segments.ids] = values
            return both.reshape(-1, 2).T

        sides = {name: by_side(of_measured, values) for name, values in of_measured.reduce(rows).items()}
        stored = {name: by_side(of_all, values) for name, values in _stored_columns(patterns, of_all).items()}
        group = np.zeros(first[-1], np.int64)
        group[cell[::-1]] = rows["group"][::-1]  # the first row of a cell is written last
        return cls(granularity, cell, first, np.repeat(np.arange(len(sites)), np.diff(first)), group, sides, stored)


def _stored_columns(patterns: Patterns, segments: Segments) -> dict[str, np.ndarray]:
    legs, rows, leg = patterns.legs, patterns.rows, patterns.leg_of_row

    def of_leg(values: list) -> np.ndarray:
        return np.array(values)[leg] if values else np.zeros(0)

    def some(chosen: list[bool]) -> np.ndarray:
        """Sum of n over the rows of these legs; without a pass where there are none or all."""
        if all(chosen):
            return n
        return segments.sum(rows["n"] * of_leg(chosen)) if any(chosen) else np.zeros_like(n)

    n = segments.sum(rows["n"])
    dtypes = legs["dtype"].tolist()
    largest, smallest = {LARGEST[d] for d in dtypes}, {SMALLEST_NORMAL[d] for d in dtypes}
    # one dtype is the rule: then the division waits until after the sums
    with np.errstate(over="ignore"):  # a ratio beyond float64 is as far away as infinity
        top = (
            segments.max(rows["max"]) / largest.pop()
            if len(largest) == 1
            else segments.max(rows["max"] / of_leg([LARGEST[d] for d in dtypes]))
        )
        low = -(
            segments.max(-rows["min_abs"]) / smallest.pop()
            if len(smallest) == 1
            else segments.max(-rows["min_abs"] / of_leg([SMALLEST_NORMAL[d] for d in dtypes]))
        )
    offsets = [patterns.sites.sites[s].legs[i].offset != 0 for s, i in zip(legs["site"], legs["leg"])]
    return {
        "n": n,
        "n_short": some([d in ("F16", "BF16") for d in dtypes]),
        "n_offset": some(offsets),
        "top": top,
        "low": low,
    }
