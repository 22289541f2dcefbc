"""Norms over heads and KV groups, as tables: what was measured, no plan needed."""

import numpy as np
import pandas as pd

from wisca_core.patterns.blocks import block_of
from wisca_core.patterns.table import Patterns, Segments, log2_size

GROUP_COLUMNS = {
    "site": "index of the site",
    "name": "site name",
    "layer": "layer",
    "pair": "qk, vo, mlp or lora",
    "block": "where in the model, without the layer: decoder.self, decoder.cross, decoder.experts ...",
    "group": "KV group; the expert in a block of experts",
    "n_left": "values on the left side",
    "n_right": "values on the right side",
    "left": "norm of the left side (q, v)",
    "right": "norm of the right side (k, o)",
    "log2_ratio": "log2(left / right), octaves",
    "log2_size": "part of log2_ratio that is only the number of entries; NaN for max",
}


def group_table(patterns: Patterns, norm: str) -> pd.DataFrame:
    """One row a (site, KV group), columns GROUP_COLUMNS; float64 norms of the weights as they are."""
    if not len(patterns.legs):
        return pd.DataFrame(columns=list(GROUP_COLUMNS))
    segments = group_segments(patterns)
    before = segment_norms(patterns, norm, ("groups",), segments)
    n = patterns.keep(("groups", "n"), lambda: segments.sum(patterns.rows["n"]))
    most = int(patterns.rows["group"].max()) + 1
    left, right = slice(0, None, 2), slice(1, None, 2)  # every group has both sides, left first
    place = segments.ids[left] // 2
    site = place // most
    columns = site_columns(patterns)
    with np.errstate(divide="ignore", invalid="ignore"):
        return pd.DataFrame(
            {
                "site": site,
                **{name: columns[name][site] for name in ("name", "layer", "pair", "block")},
                "group": np.where(columns["expert"][site] >= 0, columns["expert"][site], place % most),
                "n_left": n[left],
                "n_right": n[right],
                "left": before[left],
                "right": before[right],
                "log2_ratio": np.log2(before[left] / before[right]),
                "log2_size": log2_size(norm, n[left], n[right]),
            }
        )


def group_segments(patterns: Patterns) -> Segments:
    """Rows of measured legs, one segment a (site, KV group, side), left before right; kept once made."""

    def make() -> Segments:
        legs = patterns.legs
        most = int(patterns.rows["group"].max()) + 1 if len(legs) else 1
        side = legs["side"].to_numpy()[patterns.leg_of_row]
        key = (patterns.rows["site"].astype(np.int64) * most + patterns.rows["group"]) * 2 + side
        return Segments.of(key, legs["measured"].to_numpy()[patterns.leg_of_row])

    return patterns.keep(("groups",), make)


def segment_norms(patterns: Patterns, norm: str, key: tuple, segments: Segments) -> np.ndarray:
    """That norm of each segment of rows; ``key`` names the segments, and the norms are kept under it."""
    return patterns.keep((*key, norm), lambda: _norm_of(segments, norm, patterns.rows))


def _norm_of(segments: Segments, name: str, rows: dict) -> np.ndarray:
    """That norm of each segment, summing only the columns it needs."""
    if name == "max":
        return segments.max(rows["max"])
    if name in ("l2", "rms"):
        total = segments.sum(rows["l2_sq"])
        return np.sqrt(total / segments.sum(rows["n"]) if name == "rms" else total)
    total = segments.sum(rows["l1"])
    return total / segments.sum(rows["n"]) if name == "mean" else total


def site_columns(patterns: Patterns) -> dict[str, np.ndarray]:
    """name, stack, layer, pair, block and expert (-1: none) of each site, as tables name them; kept once made."""

    def make() -> dict[str, np.ndarray]:
        keys = [site.key for site in patterns.sites.sites]
        words = {
            "name": [str(key) for key in keys],
            "stack": [key.stack for key in keys],
            "pair": [key.pair for key in keys],
            "block": [block_of(key) for key in keys],
        }
        numbers = {"layer": [key.layer for key in keys], "expert": [key.expert for key in keys]}
        return {n: np.array(v, object) for n, v in words.items()} | {
            n: np.array(v, np.int64) for n, v in numbers.items()
        }

    return patterns.keep(("sites",), make)
