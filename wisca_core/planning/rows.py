"""A decision as a table for people: one row a factor down to KV groups; single channels are gathered by group."""

import numpy as np
import pandas as pd

from wisca_core.architecture.site import Site
from wisca_core.patterns.groups import site_columns
from wisca_core.patterns.table import Segments
from wisca_core.planning.decide import NON_FINITE, NOT_CHOSEN, OVERFLOW, PLANNED, ZERO, Decision

ROW_COLUMNS = {
    "site": "index of the site",
    "name": "site name",
    "stack": "decoder, encoder, ...",
    "layer": "layer",
    "pair": "qk, vo, mlp or lora",
    "block": "where in the model, without the layer: decoder.self, decoder.cross, decoder.experts ...",
    "group": "KV group, -1 where one factor (or each) covers all of them; the expert in a block of experts",
    "n_cells": "factors in the row: 1, or the tie groups of single channels",
    "left": "norm of the left side (q, v) before",
    "right": "norm of the right side (k, o) before",
    "log2_ratio": "log2(left / right) before, octaves",
    "log2_after": "log2(left / right) after, octaves",
    "full_low": "smallest factor on the left side that would balance fully",
    "full_high": "largest of these",
    "factor_low": "smallest factor on the left side",
    "factor_high": "largest of these",
    "right_low": "smallest factor on the right side: the inverse of the left side's, or its square (behind ReLU "
    "squared)",
    "right_high": "largest of these",
    "changes": "what is multiplied, in words",
    "status": "planned, balanced already, left out, zero, non-finite or overflow",
}

_STATUS = {PLANNED: "planned", NOT_CHOSEN: "left out", ZERO: "zero", NON_FINITE: "non-finite", OVERFLOW: "overflow"}
_NOUNS = {"q": ("query head", "query heads"), "k": ("key head", "key heads"), "v": ("value head", "value heads")}


def plan_rows(decision: Decision) -> pd.DataFrame:
    """Columns ROW_COLUMNS, in order of sites; all sites are in it, chosen or not."""
    sites = decision.patterns.sites.sites
    if not sites:
        return pd.DataFrame(columns=list(ROW_COLUMNS))
    row_of_cell, first_cell, group = _layout(decision)
    site = decision.cells.site[first_cell]
    before, after = _norms(decision, row_of_cell, len(first_cell))
    n = np.bincount(row_of_cell)
    order = np.argsort(row_of_cell, kind="stable")
    starts = np.concatenate([[0], np.cumsum(n)[:-1]])
    factor, full, fate = decision.factor[order], decision.full[order], decision.fate[order]
    # a row of several cells says planned where any of them is
    planned = np.maximum.reduceat(fate == PLANNED, starts)
    status = [
        _STATUS[PLANNED if any_planned else f] for any_planned, f in zip(planned, np.maximum.reduceat(fate, starts))
    ]
    low, high = np.minimum.reduceat(factor, starts), np.maximum.reduceat(factor, starts)
    columns = site_columns(decision.patterns)
    # a site's factor s is s^a on its left side and s^-b on its right one
    a, b = (np.array([s.exponent(side) for s in sites])[site] for side in ("left", "right"))
    expert = columns["expert"][site]
    unchanged = (low == 1) & (high == 1)
    words = {}
    for i, g in set(zip(site.tolist(), group.tolist())):
        words[i, g] = _changes(sites[i], g)
    with np.errstate(divide="ignore", invalid="ignore"):
        return pd.DataFrame(
            {
                "site": site,
                **{name: columns[name][site] for name in ("name", "stack", "layer", "pair", "block")},
                "group": np.where(expert >= 0, expert, group),
                "n_cells": n,
                "left": before[0],
                "right": before[1],
                "log2_ratio": np.log2(before[0] / before[1]),
                "log2_after": np.log2(after[0] / after[1]),
                "full_low": np.minimum.reduceat(full, starts) ** a,
                "full_high": np.maximum.reduceat(full, starts) ** a,
                "factor_low": low**a,
                "factor_high": high**a,
                "right_low": high ** -b.astype(float),
                "right_high": low ** -b.astype(float),
                "changes": [words[i, g] for i, g in zip(site.tolist(), group.tolist())],
                "status": ["balanced already" if s == "planned" and same else s for s, same in zip(status, unchanged)],
            }
        )


def has_square(rows: pd.DataFrame) -> bool:
    """Whether some right side gets the inverse square of its left side's factor."""
    moved = rows[rows["factor_high"] != 1]
    return bool((np.abs(np.log2(moved["right_low"]) + 2 * np.log2(moved["factor_high"])) < 1e-9).any())


def _layout(decision: Decision) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Table row of each cell; first cell and KV group (-1: all) of each table row."""
    cells, sites = decision.cells, decision.patterns.sites.sites
    coarse = np.array([site.used_granularity(cells.granularity) == "tensor" for site in sites])
    spans = coarse | _spans_groups(decision)
    group = np.where(spans[cells.site], -1, cells.group)
    if "channel" not in cells.granularity:
        row = np.arange(len(group))
        return row, row, group
    key = cells.site * (int(cells.group.max()) + 2) + group + 1
    _, first, row = np.unique(key, return_index=True, return_inverse=True)
    return row, first, group[first]


def _spans_groups(decision: Decision) -> np.ndarray:
    """bool, one a site: some factor covers channels of several KV groups (a norm's gains shared by all heads)."""
    cells, group = decision.cells, decision.patterns.rows["group"]
    out = np.zeros(len(decision.patterns.sites.sites), bool)
    out[cells.site[cells.row[group != cells.group[cells.row]]]] = True
    return out


def _norms(decision: Decision, row_of_cell: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The chosen norm of both sides of each table row, (2, n), before and after."""
    patterns = decision.patterns
    key = ("rows", decision.cells.granularity)

    def segments() -> Segments:
        legs = patterns.legs
        side = legs["side"].to_numpy()[patterns.leg_of_row]
        chosen = legs["measured"].to_numpy()[patterns.leg_of_row]
        return Segments.of(row_of_cell[decision.cells.row].astype(np.int64) * 2 + side, chosen)

    kept = patterns.keep(key, segments)  # they do not depend on the other options
    out = []
    for values in decision.norms(decision.options.norm, key, kept):
        both = np.zeros(2 * n)
        both[kept.ids] = values
        out.append(both.reshape(-1, 2).T)
    return out[0], out[1]


def _changes(site: Site, group: int) -> str:
    """ "6 query heads, 1 key head"; "1 value head, 768 inputs of Wo"; "5,632 rows of up, 5,632 columns of down"."""
    parts = []
    for leg in site.legs:
        groups, repeats, width = leg.index.sizes
        n = repeats * (groups if group < 0 else 1)
        if leg.role in _NOUNS and leg.measured:
            parts.append(f"{n:,} {_NOUNS[leg.role][n != 1]}")
        elif leg.role == "o":
            parts.append(f"{n * width:,} inputs of Wo")
        elif leg.role in ("a", "b"):
            parts.append(f"{n * width:,} {'rows of A' if leg.role == 'a' else 'columns of B'}")
        elif leg.measured and leg.role in ("up", "down"):
            parts.append(f"{n * width:,} {'rows of up' if leg.role == 'up' else 'columns of down'}")
        elif leg.role == "gain":
            parts.append(f"{n * width:,} {'query' if leg.side == 'left' else 'key'} gains")
    n_more = sum(not leg.measured for leg in site.legs if leg.role != "gain")
    return ", ".join(dict.fromkeys(parts)) + (" and their biases" if n_more else "")
