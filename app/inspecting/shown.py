"""What Inspect draws: one pair in one norm, cut out of the tables once a run."""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from app import cached, state
from app.cached import Opened
from app.figures import words
from wisca_core.architecture.site import SiteKey, Sites
from wisca_core.patterns import summary
from wisca_core.patterns.summary import PairSummary, layer_ratios, summaries
from wisca_core.plan.decide import Decision
from wisca_core.plan.options import Options

NORMS = ("l1", "l2", "max", "mean")


@dataclass(frozen=True, eq=False)
class Shown:
    """``everything``: both pairs; ``groups``, ``layers``, ``heads``: rows of ``pair`` only. All in ``norm``."""

    model: Opened
    options: Options
    decision: Decision
    pair: str
    norm: str
    gains: bool
    everything: pd.DataFrame
    groups: pd.DataFrame
    layers: pd.DataFrame
    found: dict[str, PairSummary]
    lanes: tuple[str, ...] = ()  # LoRA: the adapted parts of a layer, by name; ``group`` is then a number of these

    @property
    def summary(self) -> PairSummary:
        return self.found[self.pair]

    @property
    def n_layers(self) -> int:
        a = self.model.sites.attention
        return a.n_layers if a is not None else 1 + max(site.key.layer for site in self.model.sites.sites)

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
        a = self.model.sites.attention
        if self.groups["group"].max() == 0:
            return "layer"
        return "head" if a.n_heads == a.n_kv_heads else "KV group"

    def place(self, layer: int, group: int) -> str:
        """ "layer 17, KV group 2"."""
        return words.lane(layer, self.lanes[group]) if self.lanes else words.place(layer, self.unit, group)

    @property
    def after(self) -> str:
        """Heading of what the options make of it, "" where it may only be looked at."""
        if self.model.checkpoint.look_only:
            return ""
        return "After, with powers of two" if self.options.exact else "After"

    def group(self, layer: int, group: int) -> pd.Series:
        """Its row of ``groups``."""
        return self.groups[(self.groups["layer"] == layer) & (self.groups["group"] == group)].iloc[0]


def shown(model: Opened) -> Shown:
    """Of the pair and norm that are chosen; a pair this model does not have gives way to one it has."""
    options = state.options(model.sites)
    if model.checkpoint.look_only:
        options = replace(options, strength=0.0)  # nothing moves, so there is no after
    decision = cached.decision(model, options)
    pairs = list(dict.fromkeys(site.key.pair for site in model.sites.sites))
    if state.get("pair") not in pairs:
        state.put("pair", pairs[0])
    if state.get("shown_norm") not in NORMS:
        state.put("shown_norm", NORMS[0])
    pair, norm = state.get("pair"), state.get("shown_norm")
    everything = decision.groups(norm)
    layers = layer_ratios(everything, norm)
    groups = everything[everything["pair"] == pair].reset_index(drop=True)
    lanes = adapted_parts(model.sites) if pair == "lora" else ()
    if lanes:
        groups = groups.assign(group=lane_numbers(model.sites, groups["name"]))
    return Shown(
        model,
        options,
        decision,
        pair,
        norm,
        gains=any(site.live == "gains" for site in model.sites.sites if site.key.pair == pair),
        everything=everything,
        groups=groups,
        layers=layers[layers["pair"] == pair].reset_index(drop=True),
        found=summaries(everything, norm),
        lanes=lanes,
    )


def adapted_parts(sites: Sites) -> tuple[str, ...]:
    """Names of the adapted parts of a layer, in order; the stack is in them where there are several."""
    return tuple(sorted({_part(site.key, sites) for site in sites.sites if site.key.pair == "lora"}))


def lane_numbers(sites: Sites, names: pd.Series) -> np.ndarray:
    """Number of each site (by name) among ``adapted_parts``."""
    number = {part: i for i, part in enumerate(adapted_parts(sites))}
    of = {site.name: number.get(_part(site.key, sites), 0) for site in sites.sites}
    return names.map(of).to_numpy(np.int64)


def _part(key: SiteKey, sites: Sites) -> str:
    stacks = {site.key.stack for site in sites.sites} - {"outside"}
    return key.part if len(stacks) <= 1 or key.stack == "outside" else f"{key.stack} {key.part}"


def furthest(groups: pd.DataFrame, plan_rows: pd.DataFrame, most: int = 8) -> pd.DataFrame:
    """``summary.furthest`` of one pair, with factor_low, factor_high (on the left side) and log2_after of the plan.

    ``plan_rows``: columns name, group (-1: the whole tensor), factor_low, factor_high.
    """
    far = summary.furthest(groups, most)
    out = far.merge(groups[["name", "group", "log2_after"]], on=["name", "group"], how="left")
    rows = plan_rows[plan_rows["name"].isin(out["name"])]
    factors = dict(zip(zip(rows["name"], rows["group"]), zip(rows["factor_low"], rows["factor_high"])))
    found = [factors.get((n, g)) or factors.get((n, -1)) or factors.get((n, 0)) or (np.nan, np.nan) for n, g in zip(out["name"], out["group"])]
    return out.assign(factor_low=[low for low, _ in found], factor_high=[high for _, high in found])
