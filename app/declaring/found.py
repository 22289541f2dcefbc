"""What a declaration finds in a file, before anybody confirms it: its pairs with their shapes, and the tensors there
are.
"""

import re
from collections import Counter, defaultdict

import pandas as pd
import streamlit as st

from wisca_app.figures import words
from wisca_app.messages import plain
from wisca_core.architecture.refusals import lines
from wisca_core.architecture.site import PAIRS, Site, Sites
from wisca_core.checkpoint import Checkpoint
from wisca_core.words import ranges


def draw(checkpoint: Checkpoint, sites: Sites) -> None:
    """One line a kind of pair: where it lies, what writes and what reads its channels, how its heads are cut."""
    st.markdown(f"**{sentence(sites)}**")
    if sites.sites:
        table = pairs(checkpoint, sites)
        st.dataframe(
            table,
            hide_index=True,
            key="declared pairs",
            alt="Every kind of pair that the declaration finds, with its layers, tensors, shapes and heads",
        )
    for line in (*lines(sites.refusals), *sites.remarks):
        plain(line)


def sentence(sites: Sites) -> str:
    """ "12 pairs in 6 layers: 6 QK, 6 VO." """
    if not sites.sites:
        return "It finds no pair."
    counts = Counter(site.key.pair for site in sites.sites)
    n_layers = len({(site.key.stack, site.key.layer) for site in sites.sites})
    kinds = ", ".join(f"{words.count(counts[pair])} {words.PAIR_LABELS[pair]}" for pair in PAIRS if counts[pair])
    return f"{words.plural(len(sites.sites), 'pair')} in {words.plural(n_layers, 'layer')}: {kinds}."


def pairs(checkpoint: Checkpoint, sites: Sites) -> pd.DataFrame:
    """Layers that look alike are one row."""
    rows: dict[tuple, list[int]] = defaultdict(list)
    for site in sites.sites:
        sides = tuple(_side(checkpoint, site, side) for side in ("left", "right"))
        rows[(words.PAIR_LABELS[site.key.pair], site.block, _cut(site), *sides)].append(site.key.layer)
    table = pd.DataFrame(
        [(pair, block, ranges(layers).replace("-", "–"), *rest) for (pair, block, *rest), layers in rows.items()],
        columns=["Pair", "Block", "Layers", "Channels", "Left", "Right"],
    )
    is_telling = bool((table.groupby("Pair")["Block"].nunique() > 1).any())
    return table if is_telling else table.drop(columns="Block")


def _side(checkpoint: Checkpoint, site: Site, side: str) -> str:
    """ "q of h.#.attn.c_attn.weight, 288 × 96": matrices that enter the norm, without their numbers."""
    said = []
    for leg in site.measured_legs(side):
        shape = " × ".join(map(str, checkpoint.by_name[leg.tensor].shape))
        said.append(f"{leg.role} of {numberless(leg.tensor)}, {shape}")
    return "; ".join(dict.fromkeys(said))


def _cut(site: Site) -> str:
    """ "6 heads of 16, 2 of keys and values, half-split rotary in 8 channels"."""
    if site.key.pair == "mlp":
        return f"{words.count(site.n_channels)} channels"
    role = {"qk": "q", "vo": "o"}[site.key.pair]
    leg = next((leg for leg in site.legs if leg.role == role and leg.measured), site.legs[0])
    heads = f"{words.plural(leg.n_heads, 'head')} of {leg.index.sizes[-1]}"
    shared = "" if leg.n_heads == site.n_groups else f", {site.n_groups} of keys and values"
    layout, turning, _ = site.rotary
    turns = "" if site.key.pair != "qk" or layout == "none" else f", rotary {layout} in {turning} channels"
    gains = ", carried by the gains of its norms" if site.live == "gains" else ""
    return heads + shared + turns + gains


def kinds(checkpoint: Checkpoint) -> pd.DataFrame:
    """The tensors of the file, those that differ by numbers alone as one row."""
    stored = checkpoint.stored or checkpoint.tensors
    counts = Counter((numberless(t.name), " × ".join(map(str, t.shape)) or "1", t.dtype) for t in stored)
    return pd.DataFrame(
        [(name, n, shape, dtype) for (name, shape, dtype), n in counts.items()],
        columns=["Tensor", "How many", "Shape", "dtype"],
    )


def numberless(name: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=\.)|^\d+(?=\.)", "#", name)
