"""One sentence over all pairs of a model: which sides are heavier, whether that is size, and where it is worst."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from wisca_core.pairs import LABELS, PLURALS, SIDES
from wisca_core.patterns.blocks import site_unit, titles, unit_of
from wisca_core.patterns.summary import PairSummary
from wisca_core.words import times

SURELY_NOT_LEVEL = 1.5  # a worst place beyond it would contradict a "level" that does not say of what


@dataclass(frozen=True)
class GroupCell:
    """A cell of the table of groups: ``log2_ratio`` in octaves, left over right."""

    pair: str
    block: str
    layer: int
    group: int
    log2_ratio: float


def worst(groups: pd.DataFrame) -> GroupCell | None:
    """The cell furthest from balance, None where none has a ratio. ``groups``: as ``Decision.groups`` gives."""
    octaves = groups["log2_ratio"].abs().to_numpy(dtype=float)
    if not np.isfinite(octaves).any():
        return None
    row = groups.iloc[int(np.nanargmax(np.where(np.isfinite(octaves), octaves, np.nan)))]
    return GroupCell(row["pair"], row["block"], int(row["layer"]), int(row["group"]), float(row["log2_ratio"]))


def by_imbalance(groups: pd.DataFrame, n: int) -> pd.DataFrame:
    """The ``n`` cells furthest from balance, furthest first; those without a ratio are left out."""
    octaves = groups["log2_ratio"].abs().to_numpy(dtype=float)
    order = np.argsort(-np.where(np.isfinite(octaves), octaves, -1.0), kind="stable")
    return groups.iloc[order[: min(n, int(np.isfinite(octaves).sum()))]].reset_index(drop=True)


def n_outlying(groups: pd.DataFrame) -> int:
    """Cells more than 2x from the median of their pair and block, either way."""
    known = groups["log2_ratio"].where(np.isfinite(groups["log2_ratio"]))
    away = known - known.groupby([groups["pair"], groups["block"]]).transform("median")
    return int((away.abs() > 1).sum())


def verdict(found: Iterable[PairSummary], groups: pd.DataFrame, gains: Iterable[str] = ()) -> str:
    """ "Queries weigh 7.8× their keys, outputs 7.5× their values, mostly by size; worst pair: QK in layer 17, 29.8×."

    ``found``: summaries of ``groups``. ``gains``: pairs whose live scale are the gains of norms. Of a pair that sits in
    several blocks the one furthest from balance speaks.
    """
    by_pair: dict[str, list[PairSummary]] = {}
    for one in found:
        by_pair.setdefault(one.pair, []).append(one)
    gains = set(gains)
    level, clauses, by_size = [], [], []
    for pair, several in by_pair.items():
        known = [s for s in several if np.isfinite(s.ratio)]
        if not known:
            clauses.append(f"no ratio of {PLURALS[SIDES[pair][0]]} to {PLURALS[SIDES[pair][1]]} is known")
            by_size.append(False)
            continue
        most = max(known, key=lambda s: s.ratio)
        if most.is_level:
            level.append(pair)
            continue
        clauses.append(_clause(most, len(several) > 1, pair in gains, "weigh" if not clauses else ""))
        by_size.append(mostly_size(most))
    if clauses and all(by_size):
        clauses[-1] += ", mostly by size"
    elif any(by_size):
        clauses = [f"{text} (mostly size)" if is_size else text for text, is_size in zip(clauses, by_size)]
    far = worst(groups)
    if level:
        clauses.append(_level(level, gains, bool(clauses)))
        if far is not None and far.pair in level and abs(far.log2_ratio) > np.log2(SURELY_NOT_LEVEL):
            clauses[-1] += f" in the median {site_unit(far.pair, far.block)}"
    text = ", ".join(clauses) or "nothing was measured"
    where = ""
    if far is not None and len(groups) > 1 and times(2 ** abs(far.log2_ratio)) != "1.00×":
        inside = titles(groups.loc[groups["pair"] == far.pair, "block"])[far.block]
        inside = f"expert {far.group}" if unit_of(far.pair, far.block) == "expert" else inside
        where = (
            f"; worst pair: {LABELS[far.pair]} in layer {far.layer}{inside and ', '}{inside}, "
            f"{times(2 ** abs(far.log2_ratio))}"
        )
    return f"{text[:1].upper()}{text[1:]}{where}."


def mostly_size(s: PairSummary) -> bool:
    """Whether the number of entries explains more than half of the imbalance, in octaves."""
    return bool(s.size is not None and s.size_heavier and s.size_heavier == s.heavier and s.size**2 >= s.ratio)


def _clause(s: PairSummary, several: bool, gains: bool, verb: str) -> str:
    left, right = SIDES[s.pair]
    heavy = s.heavier
    light = right if heavy == left else left
    size = f"up to {times(s.ratio)}" if several else times(s.ratio)
    if gains:
        return " ".join(filter(None, [f"{heavy} gains", verb, size, f"the {light} gains"]))
    if s.pair == "lora":
        return f"{heavy} weighs {size} {light}"
    return " ".join(filter(None, [PLURALS[heavy], verb, size, "their", PLURALS[light]]))


def _level(pairs: list[str], gains: set[str], others: bool) -> str:
    names = []
    for pair in pairs:
        left, right = SIDES[pair]
        what = (f"{left} gains", f"{right} gains") if pair in gains else (PLURALS[left], PLURALS[right])
        names.append(" and ".join(what))
    return f"{', '.join(names)} {'are level' if others or len(names) == 1 else 'are each level'}"
