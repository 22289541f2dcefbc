"""The measured imbalance in a few numbers and one sentence: how much of it is size, and what is left."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from pandas.api.typing import DataFrameGroupBy

from wisca_core.pairs import SIDES
from wisca_core.patterns.blocks import site_unit, titles
from wisca_core.patterns.table import log2_size
from wisca_core.words import LEVEL, heavier_side, times

NEAR = 1.1  # under this ratio two sides are level to a reader, who would otherwise be told that one is 1.01× heavier


@dataclass(frozen=True)
class PairSummary:
    """One kind of pair in one block, over its sites: its layers, or the experts or adapted layers in them. Ratios are
    >= 1 and go with ``heavier``, a word of SIDES or "" where balanced.

    ``title``: the block in words, "" where it is the only one of the pair. ``ratio``: of the median site, each taken as
    the norm of all its channels. ``size``: the part that only says how many entries each side has, None where the norm
    has no such law. ``rest``: ratio / size, >= 1, and ``rest_heavier`` the side it leans to. ``n_cells``: (layer, KV
    group or expert) cells measured; ``within_2x``, ``within_2x_after``: of these, how many are within a factor 2.
    """

    pair: str
    block: str
    title: str
    heavier: str
    ratio: float
    size: float | None
    size_heavier: str
    rest: float
    rest_heavier: str
    ratio_after: float
    heavier_after: str
    n_layers: int
    n_cells: int
    within_2x: int
    within_2x_after: int
    n_unusable: int  # cells whose ratio is not finite

    @property
    def unit(self) -> str:
        """What its ratio is the median of: "layer", "expert" or "adapted layer"."""
        return site_unit(self.pair, self.block)

    @property
    def is_level(self) -> bool:
        """Whether the median site is near enough to balance to be called so in words."""
        return self.ratio < NEAR

    @property
    def size_is_part(self) -> bool:
        """Whether size is a part of the ratio: where the rest leans the other way, size alone would make more of it."""
        return self.size_heavier in ("", self.heavier) and self.rest_heavier in ("", self.heavier)


def summaries(groups: pd.DataFrame, norm: str) -> dict[str, PairSummary]:
    """One a (pair, block) of a table of groups, under the pair's name; "qk decoder.cross" where the pair has several
    blocks. In a table without a plan, "after" is as before.
    """
    if "left_after" not in groups:
        groups = groups.assign(left_after=groups["left"], right_after=groups["right"], log2_after=groups["log2_ratio"])
    sites = dict(iter(site_ratios(groups, norm).groupby(["pair", "block"], sort=False)))
    out = {}
    for pair, of_pair in groups.groupby("pair", sort=False):
        names = titles(of_pair["block"].unique())
        for block, part in of_pair.groupby("block", sort=False):
            out[f"{pair} {block}" if len(names) > 1 else pair] = _summary(
                pair, block, names[block], part, sites[pair, block]
            )
    return out


def site_ratios(groups: pd.DataFrame, norm: str) -> pd.DataFrame:
    """One row a site: pair, block, name, log2_ratio, log2_size and, of a plan's table, log2_after of that norm over all
    its KV groups together, in octaves.
    """
    return _ratios(groups, norm, ["pair", "block", "name"])


def layer_ratios(groups: pd.DataFrame, norm: str) -> pd.DataFrame:
    """One row a (pair, block, layer): log2_ratio, log2_size and, of a plan's table, log2_after of that norm over all KV
    groups (experts, adapted layers) together, in octaves.
    """
    return _ratios(groups, norm, ["pair", "block", "layer"])


def _ratios(groups: pd.DataFrame, norm: str, names: list[str]) -> pd.DataFrame:
    columns = [name for name in ("left", "right", "left_after", "right_after") if name in groups]
    number = groups.groupby(names, sort=False).ngroup().to_numpy()  # in order; three words a row are compared but once
    if norm in ("l2", "rms"):  # of equally large groups
        sides = (groups[columns] ** 2).groupby(number).sum() ** 0.5
    else:
        how = {"l1": "sum", "mean": "mean", "max": "max"}[norm]
        sides = groups[columns].groupby(number).agg(how)
    # a norm that is not known in one group is not known of the layer: pandas would leave it out and give the rest
    unknown = groups[columns].isna().groupby(number).any()
    sides = sides.mask(unknown)
    keys = groups[names].iloc[np.unique(number, return_index=True)[1]].reset_index(drop=True)
    size = _size(groups.groupby(number), norm)
    with np.errstate(divide="ignore", invalid="ignore"):
        out = keys.assign(log2_ratio=np.log2(sides["left"] / sides["right"]), log2_size=size)
        if "left_after" in sides:
            out["log2_after"] = np.log2(sides["left_after"] / sides["right_after"])
    return out


def _size(of_layer: DataFrameGroupBy, norm: str) -> pd.Series:
    """log2_size of each layer. Adapted layers differ in shape, so entries are added before they are compared."""
    if "n_left" not in of_layer.obj:
        return of_layer["log2_size"].first()
    n = of_layer[["n_left", "n_right"]].sum()
    return log2_size(norm, n["n_left"], n["n_right"]).rename("log2_size")


def furthest(groups: pd.DataFrame, n: int) -> pd.DataFrame:
    """The ``n`` KV groups furthest from the median of their pair and block, furthest first: name, layer, pair, block,
    group, log2_ratio and log2_away (log2_ratio less that median, octaves). Groups within 0.5 % of it, or without a
    ratio, are left out.
    """
    out = groups[["name", "layer", "pair", "block", "group", "log2_ratio"]].copy()
    known = out["log2_ratio"].where(np.isfinite(out["log2_ratio"]))
    out["log2_away"] = known - known.groupby([out["pair"], out["block"]]).transform("median")
    out = out[out["log2_away"].abs() >= LEVEL]
    return out.iloc[np.argsort(-out["log2_away"].abs().to_numpy(), kind="stable")[:n]].reset_index(drop=True)


def _summary(pair: str, block: str, title: str, groups: pd.DataFrame, sites: pd.DataFrame) -> PairSummary:
    ratio = _median(sites["log2_ratio"])
    after = _median(sites["log2_after"])
    size = float(sites["log2_size"].median())
    rest = ratio - (0.0 if np.isnan(size) else size)
    cells, cells_after = groups["log2_ratio"], groups["log2_after"]
    return PairSummary(
        pair=pair,
        block=block,
        title=title,
        heavier=heavier_side(pair, ratio),
        ratio=2 ** abs(ratio),
        size=None if np.isnan(size) else float(2 ** abs(size)),
        size_heavier="" if np.isnan(size) else heavier_side(pair, size),
        rest=float(2 ** abs(rest)),
        rest_heavier=heavier_side(pair, rest),
        ratio_after=2 ** abs(after),
        heavier_after=heavier_side(pair, after),
        n_layers=groups["layer"].nunique(),
        n_cells=len(groups),
        within_2x=int((cells.abs() <= 1 + 1e-9).sum()),
        within_2x_after=int((cells_after.abs() <= 1 + 1e-9).sum()),
        n_unusable=int((~np.isfinite(cells)).sum()),
    )


def _median(octaves: pd.Series) -> float:
    finite = octaves[np.isfinite(octaves)]
    return float(finite.median()) if len(finite) else float("nan")


def sentence(s: PairSummary) -> str:
    """The verdict: which side is heavier by how much, and how much of that is only size; with the block before it where
    the pair has several.
    """
    said = _verdict(s)
    return f"{s.title[:1].upper()}{s.title[1:]}: {said[:1].lower()}{said[1:]}" if s.title else said


def _verdict(s: PairSummary) -> str:
    if not np.isfinite(s.ratio):
        return (
            f"No {SIDES[s.pair][0]} to {SIDES[s.pair][1]} ratio can be stated: every layer holds a zero or "
            "non-finite norm."
        )
    left, right = SIDES[s.pair]
    if s.is_level:
        exactly = f" ({s.heavier} {times(s.ratio)})" if s.heavier else ""
        first = f"{left if left.isupper() else left.capitalize()} and {right} are level in the median {s.unit}{exactly}"
    else:
        first = f"The {s.heavier} side is {times(s.ratio)} heavier in the median {s.unit}"
    if s.size is None or not s.size_heavier:
        return first + "."
    if s.is_level and s.rest_heavier not in ("", s.size_heavier):
        size = f"size alone would make the {s.size_heavier} side {times(s.size)} heavier"
        return f"{first}: {size}, but the entries of the {s.rest_heavier} side are {times(s.rest)} larger."
    if s.heavier != s.size_heavier:
        entries = f"size alone makes the {s.size_heavier} side {times(s.size)} heavier"
    elif s.size_is_part:
        entries = f"{times(s.size)} of that is size"
    else:
        entries = f"size alone would make it {times(s.size)}"  # more than there is: no part of it
    if not s.rest_heavier:
        return f"{first}; {entries}, and nothing else is left."
    if s.rest_heavier == s.heavier:
        return f"{first}; {entries}, {times(s.rest)} is not."
    return f"{first}; {entries}, and the rest leans {times(s.rest)} to the {s.rest_heavier} side."
