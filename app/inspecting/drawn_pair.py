"""What Inspect draws: one pair in one block and one norm, cut out of the tables once a run."""

from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from wisca_app import cached, state
from wisca_app.figures import words
from wisca_app.figures.heatmap import has_size
from wisca_core.architecture.site import Site, SiteKey
from wisca_core.model import Model
from wisca_core.patterns.blocks import block_of, titles, unit_of
from wisca_core.patterns.summary import PairSummary, layer_ratios, summaries
from wisca_core.patterns.verdict import by_imbalance, mostly_size, worst
from wisca_core.planning.decide import Decision
from wisca_core.planning.options import Options
from wisca_core.planning.rates import group_rates

NORMS = ("l1", "l2", "max", "mean")


@dataclass(frozen=True, eq=False)
class DrawnPair:
    """``blocks``: of ``pair``, with their names in words ("" where there is one). ``everything``: all pairs and blocks;
    ``groups``, ``layers``: rows of ``pair`` in ``block`` only. All in ``norm``.
    """

    key: str  # names all of it
    model: Model
    options: Options
    decision: Decision
    pair: str
    block: str
    blocks: dict[str, str]
    norm: str
    sites: tuple[Site, ...]  # of the pair in the block
    everything: pd.DataFrame
    groups: pd.DataFrame
    layers: pd.DataFrame
    found: dict[str, PairSummary]
    lanes: tuple[str, ...] = ()  # LoRA: the adapted parts of a layer, by name; ``group`` is then a number of these

    @property
    def summary(self) -> PairSummary:
        return next(s for s in self.found.values() if (s.pair, s.block) == (self.pair, self.block))

    @property
    def title(self) -> str:
        """The block in words, "" where it is the only one; foreign text in it."""
        return self.blocks[self.block]

    @property
    def gains(self) -> bool:
        return any(site.live == "gains" for site in self.sites)

    @property
    def n_layers(self) -> int:
        """Of the stack: the layers of config.json where it is the only one, else up to the last that is named."""
        keys = [site.key for site in self.model.sites.sites]
        for refusal in self.model.sites.refusals:
            with suppress(ValueError):  # "model", or a whole block
                keys.append(SiteKey.parse(refusal.what))
        last = 1 + max(key.layer for key in keys if key.stack == self.sites[0].key.stack)
        a = self.model.sites.attention
        return max(last, a.n_layers) if a is not None and len({key.stack for key in keys}) == 1 else last

    @property
    def matrices(self) -> tuple[str, str]:
        """What the two sides are made of: "Wq" and "Wk", or "query gains" and "key gains"."""
        left, right = words.PAIR_ROLES[self.pair]
        return tuple(f"{words.ROLES[r]} gains" if self.gains else words.MATRICES[r] for r in (left, right))

    @property
    def unit(self) -> str:
        """What one row of ``groups`` is: a head where every KV group is one, the layer where it has one group."""
        if self.lanes:
            return "adapted part"
        if unit_of(self.pair, self.block) == "expert":
            return "expert"
        if self.groups["group"].max() == 0:
            return "layer"
        return "head" if self.group_size(self.sites[0]) == 1 else "KV group"

    @property
    def head_unit(self) -> str:
        """What one row of ``heads`` is."""
        return (
            "expert" if self.unit == "expert" else "part" if self.lanes else "layer" if self.pair == "mlp" else "head"
        )

    def group_size(self, site: Site) -> int:
        """Query heads on one KV head."""
        return max(leg.index.sizes[-2] for leg in site.legs if leg.measured)

    def place(self, layer: int, group: int) -> str:
        """ "layer 17, KV group 2"."""
        return words.lane(layer, self.lanes[group]) if self.lanes else words.place(layer, self.unit, group)

    def inside(self, group: int) -> int:
        """The group of its own site: adapted parts and experts are sites of one group each."""
        return 0 if self.lanes or self.unit == "expert" else group

    @property
    def after(self) -> str:
        """Heading of what the options make of it, "" where it may only be looked at."""
        if self.model.checkpoint.look_only:
            return ""
        return "After, with powers of two" if self.options.exact else "After"

    @property
    def views(self) -> list[str]:
        """Of the map: "size" only where size explains something, "after" only where there is one."""
        return [
            name
            for name, here in (("size", has_size(self.groups)), ("stored", True), ("after", bool(self.after)))
            if here
        ]

    @property
    def own_view(self) -> str:
        """What the map shows while nothing else is chosen: size divided out where it is most of the imbalance."""
        return "size" if "size" in self.views and mostly_size(self.summary) else "stored"

    def group(self, layer: int, group: int) -> pd.Series:
        """Its row of ``groups``."""
        return self.groups[(self.groups["layer"] == layer) & (self.groups["group"] == group)].iloc[0]

    def beside(self, table: pd.DataFrame) -> pd.DataFrame:
        """The rows of this block, and those of the other attention pair at the same place."""
        places = [(self.pair, self.block)]
        other = {"qk": "vo", "vo": "qk"}.get(self.pair)
        has = {s.block for s in self.found.values() if s.pair == other}
        near = (self.block, self.block.removesuffix("rope").rstrip(".:"), self.block.partition(":")[0])
        places += [(other, block) for block in near if block in has][:1]
        return table[[place in places for place in zip(table["pair"], table["block"])]]

    def heads(self) -> pd.DataFrame:
        """``Decision.heads`` of the norm, of ``beside``; numbered by adapted part for LoRA."""
        heads = self.beside(self.decision.heads(self.norm))
        return heads.assign(head=_lane_numbers(self.lanes, heads["name"])) if self.lanes else heads


def options_of(model: Model) -> Options:
    """What Rescale's options make of this model."""
    options = state.options(model.sites, model.pairs)
    if model.checkpoint.look_only:
        options = replace(options, strength=0.0)  # nothing moves, so there is no after
    return options


def drawn_pair(model: Model) -> DrawnPair:
    """Of the pair, block and norm that are chosen; what this model does not have gives way to what it has."""
    options = options_of(model)
    decision = cached.decision(model, options)
    groups = cached.once(f"groups\n{model.key}\n{options!r}", decision.groups)  # the verdict's
    pair = state.follow("pair", _first_pair(groups), set(groups["pair"]))
    if state.get("shown_norm") not in NORMS:
        state.put("shown_norm", NORMS[0])
    norm, of_pair = state.get("shown_norm"), groups[groups["pair"] == pair]
    block = _first_block(of_pair)
    if of_pair["block"].nunique() > 1:  # else what was chosen before is kept for later
        block = state.follow("block", block, set(of_pair["block"]))
    key = f"{model.key}\n{options!r}\n{pair} {block} {norm}"
    return cached.once(f"shown\n{key}", lambda: pair_in_block(key, model, options, decision, pair, norm, block))


def _first_pair(groups: pd.DataFrame) -> str:
    """The pair that the verdict calls the worst. A feed-forward one is measured only while it is looked at, so it is no
    place to begin beside others.
    """
    attention = groups[groups["pair"] != "mlp"]
    groups = attention if len(attention) else groups
    far = worst(groups)
    return far.pair if far is not None else str(groups["pair"].iloc[0])


def _first_block(groups: pd.DataFrame) -> str:
    far = worst(groups)
    return far.block if far is not None else str(groups["block"].iloc[0])


def pair_in_block(
    key: str, model: Model, options: Options, decision: Decision, pair: str, norm: str, block: str
) -> DrawnPair:
    """One pair in one block and norm, out of a decision."""
    everything = group_rates(decision.groups(norm), model.sites)
    of_pair = everything[everything["pair"] == pair]
    blocks = titles(of_pair["block"])
    sites = tuple(site for site in model.sites.sites if site.key.pair == pair and block_of(site.key) == block)
    groups = of_pair[of_pair["block"] == block].reset_index(drop=True)
    lanes = tuple(sorted({site.key.part for site in sites})) if pair == "lora" else ()
    if lanes:
        groups = groups.assign(group=_lane_numbers(lanes, groups["name"]))
    return DrawnPair(
        key,
        model,
        options,
        decision,
        pair,
        block,
        blocks,
        norm,
        sites,
        everything=everything,
        groups=groups,
        layers=layer_ratios(groups, norm),
        found=summaries(everything, norm),
        lanes=lanes,
    )


def _lane_numbers(lanes: tuple[str, ...], names: pd.Series) -> np.ndarray:
    """Number of each site (by name) among the lanes."""
    return np.array([lanes.index(SiteKey.parse(name).part) for name in names], np.int64)


def most_unbalanced_cells(groups: pd.DataFrame, plan_rows: pd.DataFrame, most: int = 8) -> pd.DataFrame:
    """The cells of one pair furthest from balance, with factor_low, factor_high, right_low and right_high of the plan.

    ``plan_rows``: columns name, group (-1: the whole tensor) and those.
    """
    out = by_imbalance(groups, most)
    columns = ["factor_low", "factor_high", "right_low", "right_high"]
    rows = plan_rows[plan_rows["name"].isin(out["name"])]
    factors = dict(zip(zip(rows["name"], rows["group"]), rows[columns].itertuples(index=False, name=None)))
    unknown = (np.nan,) * len(columns)
    found = [
        factors.get((n, g)) or factors.get((n, -1)) or factors.get((n, 0)) or unknown
        for n, g in zip(out["name"], out["group"])
    ]
    return out.assign(**{name: [one[i] for one in found] for i, name in enumerate(columns)})
