"""What stands out among the heads, in words: each with its number, its mark, and what it is known to go with.

None is called a fault. The marks are round numbers chosen for reading, not limits anybody has proved.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from wisca_core.circuits.columns import BY_NAME
from wisca_core.circuits.measure import Circuits
from wisca_core.words import plural

RANK_ONE = 1.5
DEAD = 0.1
FAR_OUT = 3.0
LOUD = 6.0
APART = 2.0
# compared between neighbouring layers; the norms of a trained model rise and fall with depth by themselves, so ranks
# only
_APART_COLUMNS = ("qk_stable_rank", "ov_stable_rank")


@dataclass(frozen=True)
class Finding:
    """``count``: "3 heads", "layer 0" or "none"; ``sentence``: where, with number and mark; ``heads``: (block, layer,
    head, expert) of those meant; ``known``: what it is known to go with, ``source`` where that is said.
    """

    name: str
    title: str
    count: str
    sentence: str
    heads: tuple[tuple[str, int, int, int], ...]
    known: str
    source: str


def findings(circuits: Circuits) -> tuple[Finding, ...]:
    """Every pattern that is looked for, those that are not there too."""
    table = circuits.table
    return (_rank_one(table), _dead(table), _far_out(table), _apart(table), _loud(circuits))


def _rank_one(table: pd.DataFrame) -> Finding:
    found = table[table["qk_stable_rank"] < RANK_ONE]
    lowest = table["qk_stable_rank"].min()
    words = (
        f"Stable rank of the QK circuit below {RANK_ONE:g}: {_where(found)}."
        if len(found)
        else (
            f"The lowest QK stable rank is {lowest:.2f}; the mark is {RANK_ONE:g}."
            if np.isfinite(lowest)
            else "No QK circuit."
        )
    )
    return Finding(
        "rank_one",
        "Nearly rank one in QK",
        _heads(len(found)),
        words,
        _places(found),
        "Such a head scores tokens along one direction. Attention to one fixed token behaves so: an attention sink "
        "acts like a "
        "bias of the keys.",
        "Gu et al. 2024, arXiv:2410.10781",
    )


def _dead(table: pd.DataFrame) -> Finding:
    layer = table.groupby(["block", "layer"], sort=False)[["qk_norm", "ov_norm"]].transform("median")
    norms = table[["qk_norm", "ov_norm"]]
    share = (norms / layer).mask(norms.eq(0), 0.0)  # a layer that is all zero has no median to be measured against
    both = share.max(axis=1, skipna=False)
    found = table[both < DEAD]
    least = both.min()
    words = (
        f"Both circuits below {DEAD:g} of their layer's median norm: {_where(found)}."
        if len(found)
        else (
            f"The weakest head keeps {least:.2f} of its layer's median in one of its circuits; the mark is {DEAD:g} in "
            "both."
            if np.isfinite(least)
            else "No head has both circuits."
        )
    )
    return Finding(
        "dead",
        "Nearly dead heads",
        _heads(len(found)),
        words,
        _places(found),
        "Many heads can be taken out of a trained model with little loss; weak circuits are candidates, no proof.",
        "Michel et al. 2019, arXiv:1905.10650; Voita et al. 2019, arXiv:1905.09418",
    )


def _far_out(table: pd.DataFrame) -> Finding:
    middle = table.groupby(["block", "qk_of"], sort=False)["logit_bound"].transform("median")
    times = table["logit_bound"] / middle
    found = table[times > FAR_OUT]
    if len(found):
        worst = table.loc[times.idxmax()]
        words = (
            f"Above {FAR_OUT:g} times the median: {_where(found)}; the largest, {worst['logit_bound']:.3g}, in layer "
            f"{worst['layer']}, head {worst['head']}."
        )
    elif table["logit_bound"].notna().any():
        worst = table.loc[table["logit_bound"].idxmax()]
        words = (
            f"The largest, {worst['logit_bound']:.3g}, in layer {worst['layer']}, head {worst['head']}, is "
            f"{times.max():.1f} times the median; the mark is {FAR_OUT:g}."
        )
    else:
        words = "No head has a logit bound."
    return Finding(
        "far_out",
        "A far-out logit bound",
        _heads(len(found)),
        words,
        _places(found),
        "It bounds what inputs could do, not what they do. Logits that really grow go before trainings that diverge.",
        "Dehghani et al. 2023, arXiv:2302.05442; Wortsman et al. 2023, arXiv:2309.14322",
    )


def _apart(table: pd.DataFrame) -> Finding:
    lines, places = [], []
    for block, part in table.groupby("block", sort=False):
        for column in _APART_COLUMNS:
            medians = part.groupby("layer")[column].median().dropna()
            for layer, own, other in _outlying_layers(medians):
                lines.append(f"{BY_NAME[column].title} {own:.1f} in layer {layer} against {other:.1f} beside it")
                places.append((block, layer))
    layers = list(dict.fromkeys(layer for _, layer in places))
    meant = table[[(b, n) in set(places) for b, n in zip(table["block"], table["layer"])]]
    count = "none" if not layers else f"layer {layers[0]}" if len(layers) == 1 else f"{len(layers)} layers"
    words = (
        f"{'; '.join(lines[:3])}{f'; and {len(lines) - 3} more' if len(lines) > 3 else ''}: more than {APART:g} times "
        "apart."
        if lines
        else f"No layer's median rank is more than {APART:g} times apart from both its neighbours'."
    )
    return Finding(
        "apart",
        "A layer unlike its neighbours",
        count,
        words,
        _places(meant),
        "First and last layers often are: the first reads tokens before any context. No harm is known to come of it.",
        "Elhage et al. 2021, transformer-circuits.pub/2021/framework",
    )


def _outlying_layers(medians: pd.Series) -> Iterator[tuple[int, float, float]]:
    """(layer, its median, the nearest neighbour's) of layers that are far from every neighbour."""
    layers = medians.index.tolist()
    for i, layer in enumerate(layers):
        beside = [medians[layers[j]] for j in (i - 1, i + 1) if 0 <= j < len(layers)]
        times = [
            max(medians[layer], other) / min(medians[layer], other)
            for other in beside
            if min(medians[layer], other) > 0
        ]
        if times and len(layers) > 2 and min(times) > APART:
            yield layer, medians[layer], min(beside, key=lambda other: abs(np.log(other / medians[layer])))


def _loud(circuits: Circuits) -> Finding:
    channels = circuits.channels[circuits.channels["times"] >= LOUD]
    by_channel = channels.groupby("channel").agg(layers=("layer", "nunique"), times=("times", "max"))
    by_channel = by_channel.sort_values(["layers", "times"], ascending=False)
    n = len(by_channel)
    if n:
        shown = [
            f"{channel} (up to {row.times:.0f} times, {plural(row.layers, 'layer')})"
            for channel, row in by_channel.head(3).iterrows()
        ]
        words = (
            f"Channels of the stream that the circuits of a layer read or write {LOUD:g} times as strongly as the "
            "median one: "
            f"{', '.join(shown)}{f' and {n - 3} more' if n > 3 else ''}."
        )
    else:
        most = circuits.channels["times"].max() if len(circuits.channels) else np.nan
        words = f"No channel is read or written {LOUD:g} times as strongly as the median one" + (
            f"; the most is {most:.1f} times." if np.isfinite(most) else "."
        )
    return Finding(
        "loud",
        "Outlier channels",
        plural(n, "channel") if n else "none",
        words,
        (),
        "A few channels of the stream with large gains and activations are known in trained models; they cost "
        "precision when a model is quantised.",
        "Kovaleva et al. 2021, arXiv:2105.06990; Dettmers et al. 2022, arXiv:2208.07339",
    )


def headline(circuits: Circuits) -> str:
    """One sentence with numbers on what the heads compute, none of which a rescale moves."""
    table = circuits.table
    found = {one.name: one for one in findings(circuits) if one.count != "none"}
    if "apart" in found:
        layer = min(layer for _, layer, _, _ in found["apart"].heads)
        part = table[table["layer"] == layer]
        qk, ov = part["qk_stable_rank"], part["ov_stable_rank"]
        if qk.notna().any() and ov.notna().any():
            return f"Layer {layer} stands apart: stable rank {_span(qk)} in QK, {_span(ov)} in OV."
    if "rank_one" in found:
        return (
            f"{found['rank_one'].count} of {len(table):,} score along nearly one direction: QK stable rank below "
            f"{RANK_ONE:g}."
        )
    if "dead" in found:
        return (
            f"{found['dead'].count} of {len(table):,} do nearly nothing: both circuits below {DEAD:g} of their "
            "layer's median."
        )
    if "far_out" in found:
        return f"The logit bound of {found['far_out'].count} lies {FAR_OUT:g} times above the median."
    qk, ov = table["qk_stable_rank"].median(), table["ov_stable_rank"].median()
    parts = [f"{value:.1f} in {name}" for value, name in ((qk, "QK"), (ov, "OV")) if np.isfinite(value)]
    return (
        f"No head stands out; the median stable rank is {' and '.join(parts)}."
        if parts
        else "No circuit could be measured."
    )


def _span(values: pd.Series) -> str:
    low, high = values.min(), values.max()
    return f"{low:.1f}" if f"{low:.1f}" == f"{high:.1f}" else f"{low:.1f} to {high:.1f}"


def _heads(n: int) -> str:
    return plural(n, "head") if n else "none"


def _places(found: pd.DataFrame) -> tuple[tuple[str, int, int, int], ...]:
    return tuple(zip(found["block"], found["layer"].tolist(), found["head"].tolist(), found["expert"].tolist()))


def _where(found: pd.DataFrame, most: int = 4) -> str:
    """ "layer 0, heads 0 to 2; layer 5, head 3", the first few layers."""
    several = found["block"].nunique() > 1
    out = []
    for (block, layer), part in found.groupby(["block", "layer"], sort=False):
        out.append(f"{block + ' ' if several else ''}layer {layer}, {_numbers(sorted(set(part['head'].tolist())))}")
    more = f"; and {len(out) - most} more layers" if len(out) > most else ""
    return "; ".join(out[:most]) + more


def _numbers(heads: list[int]) -> str:
    if len(heads) == 1:
        return f"head {heads[0]}"
    if heads == list(range(heads[0], heads[-1] + 1)):
        return f"heads {heads[0]} to {heads[-1]}"
    return "heads " + ", ".join(map(str, heads[:6])) + (" ..." if len(heads) > 6 else "")
