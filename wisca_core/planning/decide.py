"""Factors from norms, and every "after" from factors: arithmetic on the table of channels, never on the weights."""

from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import pandas as pd

from wisca_core.architecture.site import Refusal
from wisca_core.methods import method
from wisca_core.patterns.groups import group_segments, group_table, segment_norms, site_columns
from wisca_core.patterns.table import LOST_BITS, SMALLEST_NORMAL, Cells, Patterns, Segments, norm
from wisca_core.planning.bases import Bases
from wisca_core.planning.options import Options

# what became of a cell
PLANNED, NOT_CHOSEN, ZERO, NON_FINITE, OVERFLOW = range(5)


@dataclass(frozen=True, eq=False)
class Decision:
    """One factor a cell, with what it was decided from.

    ``full``: the factor that balances the cell fully; ``factor``: what strength and exact mode make of it, 1.0 where
    the cell is left alone; ``fate``: PLANNED, NOT_CHOSEN, ZERO, NON_FINITE or OVERFLOW of each cell. Arrays over
    ``cells``.

    ``bases``: what a method that changes the basis does to its pairs, ``not_changed`` those it was asked for and
    leaves; their "after" is no arithmetic on the table, so ``after`` is the table of the changed weights, measured.
    """

    patterns: Patterns
    options: Options
    cells: Cells
    full: np.ndarray
    factor: np.ndarray
    fate: np.ndarray
    bases: Bases = field(default_factory=Bases)
    not_changed: tuple[Refusal, ...] = ()
    after: Patterns | None = None

    @cached_property
    def row_factor(self) -> np.ndarray:
        """What each row of the table is multiplied by; float64."""
        return self._powers[_powers_of_rows(self.patterns, self.cells)]

    @cached_property
    def _powers(self) -> np.ndarray:
        """What rows may be multiplied by: the factor of each cell to each power that a leg has, lowest power first."""
        low, high = _exponent_span(self.patterns)
        return np.concatenate([self.factor**e for e in range(low, high + 1)])

    def side_norms(self, after: bool) -> np.ndarray:
        """(2, n_cells): the chosen norm of the left and of the right side of each cell."""
        before = norm(self.options.norm, self.cells.sides)
        return before * self._side_factors() if after else before

    def _side_factors(self) -> np.ndarray:
        a, b = _exponents(self.patterns)
        if (a == 1).all() and (b == 1).all():  # but for ReLU squared
            return np.stack([self.factor, 1 / self.factor])
        return np.stack([self.factor ** a[self.cells.site], self.factor ** -b[self.cells.site]])

    @property
    def n_changed(self) -> int:
        """Cells whose factor is not 1."""
        return int((self.factor != 1).sum())

    @cached_property
    def factors_by_site(self) -> dict[str, tuple[float, ...]]:
        """Of the sites with a factor other than 1: one a cell."""
        first = self.cells.first
        return {
            self.patterns.sites.sites[i].name: tuple(self.factor[first[i] : first[i + 1]].tolist())
            for i in np.flatnonzero(self.changed_sites)
        }

    @cached_property
    def changed_sites(self) -> np.ndarray:
        """bool, one a site."""
        out = np.zeros(len(self.patterns.sites.sites), bool)
        out[self.cells.site[self.factor != 1]] = True
        return out

    @cached_property
    def refusals(self) -> tuple[Refusal, ...]:
        """Cells that were asked for and are left alone, by name, with the reason."""
        out = []
        for cell in np.flatnonzero(self.fate >= ZERO):
            out.append(Refusal(self._cell_name(cell), _reason(self, cell)))
        return (*out, *self.not_changed)

    def _cell_name(self, cell: int) -> str:
        site = self.patterns.sites.sites[self.cells.site[cell]]
        used = site.used_granularity(self.cells.granularity)
        if used == "tensor":
            return site.name
        number = cell - self.cells.first[self.cells.site[cell]]
        return f"{site.name} {'KV group' if used == 'group' else 'channel'} {number}"

    @cached_property
    def effects(self) -> dict[str, int]:
        """What the factors will do to the stored values, counted before anything is written.

        ``values``: stored values multiplied by a factor other than 1; ``mixed``: stored values that a change of basis
        mixes over the channels of their group, one rounding each; ``rounded``: of those, 16-bit values whose factor
        is no power of two (one rounding each); ``lost``: values that lose bits below the smallest normal number (F16:
        exact up to 2^-12, else an upper bound); ``gains``: values of norms stored as gain - 1, which round in any case;
        ``overflow``: values in cells that are left alone because they would overflow.
        """
        stored, f = self.cells.stored, self._side_factors()
        touched = f != 1
        power = np.frexp(f)[0] == 0.5
        return {
            "values": int(stored["n"][touched].sum()),
            "mixed": self._n_mixed(),
            "rounded": int(stored["n_short"][touched & ~power].sum()),
            "lost": self._n_lost((stored["low"] < 1 / f) & (f < 1)),
            "gains": int(stored["n_offset"][touched].sum()),
            "overflow": int(stored["n"][:, self.fate == OVERFLOW].sum()),
        }

    def _n_mixed(self) -> int:
        if not self.bases:
            return 0
        legs = self.patterns.legs
        mixed = np.array([site.name in self.bases.sites for site in self.patterns.sites.sites])[legs["site"]]
        return int(self.patterns.rows["n"][mixed[self.patterns.leg_of_row]].sum())

    def _n_lost(self, below: np.ndarray) -> int:
        """Values that lose bits, among the cells whose smallest value falls below the normal numbers: (2, n_cells)
        bool.
        """
        if not below.any():
            return 0
        rows, legs, leg = self.patterns.rows, self.patterns.legs, self.patterns.leg_of_row
        f, n = self.row_factor, rows["n"]
        tiny = np.array([SMALLEST_NORMAL[d] for d in legs["dtype"]])[leg]
        lossy = (f < 1) & (rows["min_abs"] * f < tiny)
        if "lost" not in rows:
            return int(n[lossy].sum())
        half = lossy & (legs["dtype"].to_numpy() == "F16")[leg]
        halvings = np.ceil(-np.log2(f, where=half, out=np.zeros_like(f))).astype(np.int64)
        known = half & (halvings <= LOST_BITS)
        return int(rows["lost"][known, halvings[known] - 1].sum()) + int(n[lossy & ~known].sum())

    @cached_property
    def bit_identical(self) -> bool:
        """Whether powers of two alone promise bit-identical outputs: no rounding, no lost bits, no gain stored as gain
        - 1, no F16 (where activations may turn subnormal, so only the full check can say).
        """
        e = self.effects
        half = self.patterns.legs["dtype"].eq("F16").any() if len(self.patterns.legs) else False
        return bool((np.frexp(self.factor)[0] == 0.5).all()) and not (e["mixed"] or e["lost"] or e["gains"] or half)

    def groups(self, norm_name: str | None = None) -> pd.DataFrame:
        """One row a (site, KV group): columns GROUP_COLUMNS, and left_after, right_after and log2_after:
        that norm (the chosen one) before and after.
        """
        return _group_table(self, norm_name or self.options.norm)

    def heads(self, norm_name: str | None = None) -> pd.DataFrame:
        """One row a (leg, head): name, layer, pair, block, role, head, n, n_zero, n_nonfinite, before, after (that
        norm). ``head`` is the expert in a block of experts.
        """
        return _head_table(self, norm_name or self.options.norm)

    def norms(self, name: str, key: tuple, segments: Segments) -> tuple[np.ndarray, np.ndarray]:
        """That norm of each segment of rows, before and after; ``key`` names the segments."""
        patterns = self.patterns
        before = segment_norms(patterns, name, key, segments)
        if self.after is not None:
            return before, segment_norms(self.after, name, key, segments)
        within = patterns.keep((*key, "in one cell", self.cells.granularity), lambda: segments.constant(self.cells.row))
        if not within:
            of_granularity = (*key, "parts", self.cells.granularity)
            parts = patterns.keep(of_granularity, lambda: Parts.of(patterns, self.cells, segments))
            return before, parts.norm(name, patterns, of_granularity, self._powers)
        rows = segments.order[segments.starts]  # one factor a segment: the norm scales with it
        exponent = patterns.legs["exponent"].to_numpy(np.int64)[patterns.leg_of_row[rows]]
        return before, before * self.factor[self.cells.row[rows]] ** exponent


@dataclass(frozen=True, eq=False)
class Parts:
    """The rows of each segment that are multiplied by the same: a change of the factors is a pass over these, of which
    there are far fewer. ``order``: rows of the table by part, ``first``: where in it each part begins; ``power``: what
    a part is multiplied by, an index into ``Decision._powers``; ``starts``: first part of each segment.
    """

    order: np.ndarray
    first: np.ndarray
    power: np.ndarray
    starts: np.ndarray
    segments: Segments

    @classmethod
    def of(cls, patterns: Patterns, cells: Cells, segments: Segments) -> "Parts":
        power = _powers_of_rows(patterns, cells)[segments.order]
        segment = np.repeat(np.arange(len(segments.starts)), np.diff(np.r_[segments.starts, len(segments.order)]))
        key = segment * (int(power.max(initial=0)) + 1) + power
        by = np.argsort(key, kind="stable")
        key = key[by]
        first = np.flatnonzero(np.r_[True, key[1:] != key[:-1]])
        starts = np.searchsorted(segment[by[first]], np.arange(len(segments.starts)))
        return cls(segments.order[by].astype(np.int32), first, power[by[first]], starts, segments)

    def norm(self, name: str, patterns: Patterns, key: tuple, powers: np.ndarray) -> np.ndarray:
        """That norm of each segment, its rows multiplied first; ``key`` names these parts."""
        f = powers[self.power]
        if name == "max":
            return np.maximum.reduceat(self._column("max", np.maximum, patterns, key) * f, self.starts)
        if name in ("l2", "rms"):
            f *= f
        total = np.add.reduceat(
            self._column("l2_sq" if name in ("l2", "rms") else "l1", np.add, patterns, key) * f, self.starts
        )
        if name in ("rms", "mean"):
            total /= patterns.keep((*key, "n"), lambda: self.segments.sum(patterns.rows["n"]))
        return np.sqrt(total) if name in ("l2", "rms") else total

    def _column(self, name: str, how: np.ufunc, patterns: Patterns, key: tuple) -> np.ndarray:
        return patterns.keep((*key, name), lambda: how.reduceat(patterns.rows[name][self.order], self.first))


def decide(patterns: Patterns, options: Options) -> Decision:
    """The factors of ``options`` for what was measured: the method's full ones, to the power of the strength."""
    cells = patterns.cells(options.granularity)
    sites = patterns.sites.sites
    left, right = norm(options.norm, cells.sides) if len(sites) else np.zeros((2, 0))
    mixes = method(options.method).changes_basis_of
    chosen = np.array([options.chooses(s.key) and not mixes(s.key.pair) for s in sites], bool)[cells.site]
    a, b = _exponents(patterns)
    full, factor, fate = balance(left, right, (a + b)[cells.site], chosen, options)
    return _without_overflow(Decision(patterns, options, cells, full, factor, fate))


def balance(
    left: np.ndarray, right: np.ndarray, exponents: np.ndarray, chosen: np.ndarray, options: Options
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(full, factor, fate) of cells with these norms, as Decision has them; ``exponents`` is a + b of each cell. The
    pairs that a method which changes the basis leaves are balanced by the paper's.
    """
    by = method(options.method)
    by = by if by.by_factors else method(Options.method)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        log2_full = by.log2_factors(left, right, exponents)
        log2_s = log2_full * options.strength
    fate = np.full(len(left), PLANNED)
    fate[(left == 0) | (right == 0)] = ZERO
    fate[~(np.isfinite(left) & np.isfinite(right))] = NON_FINITE
    fate[~chosen] = NOT_CHOSEN
    if options.exact:
        log2_s = np.rint(log2_s)
    usable = fate == PLANNED
    full = np.where(fate <= NOT_CHOSEN, np.exp2(np.where(np.isfinite(log2_full), log2_full, 0.0)), 1.0)
    factor = np.exp2(np.where(usable, log2_s, 0.0))
    return full, factor, fate


def replay(patterns: Patterns, options: Options, factor: np.ndarray) -> Decision:
    """A decision whose factors were made elsewhere (a saved plan, an undo): one a cell of ``options.granularity``."""
    fresh = decide(patterns, options)
    fate = np.where((fresh.fate == NOT_CHOSEN) | (fresh.fate == OVERFLOW), PLANNED, fresh.fate)
    factor = np.where(fate == PLANNED, factor, 1.0)
    return _without_overflow(Decision(patterns, options, fresh.cells, fresh.full, factor, fate))


def _without_overflow(decision: Decision) -> Decision:
    """Cells in which a value would leave the range of its dtype are left alone."""
    f = decision._side_factors()
    with np.errstate(over="ignore", invalid="ignore"):
        over = ((decision.cells.stored["top"] * f > 1) & (f != 1)).any(axis=0)
    if not over.any():
        return decision
    fate = np.where(over, OVERFLOW, decision.fate)
    return replace(decision, factor=np.where(over, 1.0, decision.factor), fate=fate)


def _exponent_span(patterns: Patterns) -> tuple[int, int]:
    exponent = patterns.legs["exponent"]
    return (int(exponent.min()), int(exponent.max())) if len(exponent) else (0, 0)


def _powers_of_rows(patterns: Patterns, cells: Cells) -> np.ndarray:
    """Which of ``Decision._powers`` each row is multiplied by; kept once made."""

    def make() -> np.ndarray:
        low, _ = _exponent_span(patterns)
        exponent = patterns.legs["exponent"].to_numpy(np.int64) - low
        return (exponent * len(cells.site))[patterns.leg_of_row] + cells.row

    return patterns.keep(("powers", cells.granularity), make)


def _exponents(patterns: Patterns) -> tuple[np.ndarray, np.ndarray]:
    sites = patterns.sites.sites
    return patterns.keep(
        ("exponents",),
        lambda: tuple(np.array([s.exponent(side) for s in sites], np.int64) for side in ("left", "right")),
    )


def _reason(decision: Decision, cell: int) -> str:
    fate = decision.fate[cell]
    rows = decision.patterns.rows
    legs = decision.patterns.legs
    if fate == NON_FINITE:
        inside = _rows_of(decision, cell)
        bad = inside[rows["n_nonfinite"][inside] > 0]
        if not len(bad):
            return "a norm is not finite although every value is; left as it is"
        leg = legs.iloc[decision.patterns.leg_of_row[bad[0]]]
        of_leg = bad[decision.patterns.leg_of_row[bad] == leg.name]
        count = int(rows["n_nonfinite"][of_leg].sum())
        if leg.role not in ("q", "k", "v", "o"):
            return f"{leg.tensor} has {count:,} non-finite values in it; left as it is"
        heads = np.unique(rows["head"][of_leg])
        where = f"head{'s' if len(heads) > 1 else ''} {', '.join(map(str, heads[:8]))} of layer {leg.layer}"
        return f"{where} ({leg.tensor}) has {count:,} non-finite values; left as it is"
    if fate == ZERO:
        side = "left" if decision.side_norms(after=False)[0, cell] == 0 else "right"
        role = legs[
            (legs["site"] == decision.cells.site[cell]) & (legs["side"] == (side == "right")) & legs["measured"]
        ].iloc[0]
        return f"every value of {role.tensor} in it is zero, so no finite factor balances it; left as it is"
    return "a value would leave the range of its dtype (overflow); left as it is. A smaller strength may fit"


def _rows_of(decision: Decision, cell: int) -> np.ndarray:
    """Rows of one cell, from an order that is sorted once a granularity: there may be thousands of cells to explain."""
    row = decision.cells.row
    order = decision.patterns.keep(("by cell", decision.cells.granularity), lambda: np.argsort(row, kind="stable"))
    first, stop = np.searchsorted(row, [cell, cell + 1], sorter=order)
    return order[first:stop]


def _group_table(decision: Decision, norm_name: str) -> pd.DataFrame:
    """``group_table`` with left_after, right_after and log2_after: the same norm once the factors are applied."""
    patterns = decision.patterns
    table = group_table(patterns, norm_name)
    if not len(table):
        return table.assign(left_after=[], right_after=[], log2_after=[])
    _, after = decision.norms(norm_name, ("groups",), group_segments(patterns))
    left, right = after[::2], after[1::2]
    with np.errstate(divide="ignore", invalid="ignore"):
        return table.assign(left_after=left, right_after=right, log2_after=np.log2(left / right))


def _head_table(decision: Decision, norm_name: str) -> pd.DataFrame:
    """One row a (measured leg, head): site, name, layer, pair, block, role, head, n, n_zero, n_nonfinite, before,
    after.
    """
    patterns = decision.patterns
    segments = patterns.heads
    before, after = decision.norms(norm_name, ("heads",), segments)
    place = patterns.keep(("heads", "place"), lambda: _head_places(patterns, segments))
    return place.assign(before=before, after=after)


def _head_places(patterns: Patterns, segments: Segments) -> pd.DataFrame:
    legs = patterns.legs
    base = np.concatenate([[0], np.cumsum(legs["n_heads"])])
    leg = np.searchsorted(base, segments.ids, side="right") - 1
    site = legs["site"].to_numpy(np.int64)[leg]
    of_sites = site_columns(patterns)
    columns = {"site": site} | {name: of_sites[name][site] for name in ("name", "layer", "pair", "block")}
    columns["role"] = legs["role"].to_numpy()[leg]
    columns["head"] = np.where(of_sites["expert"][site] >= 0, of_sites["expert"][site], segments.ids - base[leg])
    columns |= {name: segments.sum(patterns.rows[name]) for name in ("n", "n_zero", "n_nonfinite")}
    return pd.DataFrame(columns)
