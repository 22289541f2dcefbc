"""A rescale as learning rates: which rates on the matrices as they are train the same way as the balanced ones.

A matrix W kept as cW with its optimiser state transported trains, in W's own coordinates, as W at the rate lr/c under
optimisers whose step has no scale of its own (Adam, AdamW, Muon), and at lr/c^2 under SGD, whose step follows the
gradient. Balancing multiplies the left side by s^a and the right one by s^-b, with s = (|right|/|left|)^(1/(a + b)); so
it is the same training with the left side's rate times s^-a and the right one's times s^b: m = sqrt(|Wq|/|Wk|) and 1/m.
Adafactor with ``scale_parameter`` makes each step as large as the weight, so there it has no effect at all.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from wisca_core.architecture.site import Sites
from wisca_core.pairs import MATRICES
from wisca_core.planning.decide import NOT_CHOSEN, Decision, site_columns

RATE_COLUMNS = {
    "name": "site name",
    "layer": "layer",
    "pair": "qk, vo, mlp or lora",
    "block": "where in the model, without the layer",
    "left_rate_low": "smallest factor on the learning rate of the left side (q, v), for Adam; SGD's is its square",
    "left_rate_high": "largest of these: a row or KV group may have one of its own",
    "right_rate_low": "smallest factor on the learning rate of the right side (k, o)",
    "right_rate_high": "largest of these",
}


@dataclass(frozen=True)
class PairRates:
    """Of one pair in one block: factors on Adam's learning rate of the median site (layer, expert, adapted layer), and
    their span over all of them.

    ``left``, ``right``: medians, one the inverse of the other (behind ReLU squared its square root).
    """

    pair: str
    block: str
    left: float
    right: float
    left_span: tuple[float, float]
    right_span: tuple[float, float]

    @property
    def sides(self) -> list[tuple[str, float]]:
        """Name and rate of both sides, the faster one first."""
        both = list(zip(MATRICES[self.pair], (self.left, self.right)))
        return both if self.left >= self.right else both[::-1]


def equivalent_rates(decision: Decision, *, full: bool = False) -> pd.DataFrame:
    """One row a site, columns RATE_COLUMNS: the rates that train as ``decision`` does, NaN where it moves nothing for a
    reason of its own (a zero or non-finite norm, overflow). ``full``: of full balance at the decision's granularity and
    norm, whatever its strength, exact mode, pairs and layers.
    """
    sites, cells = decision.patterns.sites.sites, decision.cells
    if not sites:
        return pd.DataFrame(columns=list(RATE_COLUMNS))
    a, b = (np.array([s.exponent(side) for s in sites], float) for side in ("left", "right"))
    log2 = np.log2(decision.full if full else decision.factor)
    known = decision.fate <= NOT_CHOSEN
    low = np.minimum.reduceat(np.where(known, log2, np.inf), cells.first[:-1])
    high = np.maximum.reduceat(np.where(known, log2, -np.inf), cells.first[:-1])
    low, high = (np.where(np.isfinite(v), v, np.nan) for v in (low, high))
    columns = decision.patterns.keep(("sites",), lambda: site_columns(decision.patterns))
    return pd.DataFrame(
        {name: columns[name] for name in ("name", "layer", "pair", "block")}
        | {
            "left_rate_low": np.exp2(-high * a),
            "left_rate_high": np.exp2(-low * a),
            "right_rate_low": np.exp2(low * b),
            "right_rate_high": np.exp2(high * b),
        }
    )


def group_rates(groups: pd.DataFrame, sites: Sites) -> pd.DataFrame:
    """``groups`` (as ``Decision.groups`` gives) with left_rate and right_rate: of full balance of each cell by itself,
    in the norm of the table; NaN where it has no ratio.
    """
    a, b = (np.array([s.exponent(side) for s in sites.sites], float)[groups["site"]] for side in ("left", "right"))
    octaves = groups["log2_ratio"].where(np.isfinite(groups["log2_ratio"])).to_numpy(dtype=float)
    return groups.assign(left_rate=np.exp2(octaves * a / (a + b)), right_rate=np.exp2(-octaves * b / (a + b)))


def layer_rates(rates: pd.DataFrame) -> pd.DataFrame:
    """One row a (pair, block, layer): the spans of ``equivalent_rates`` over its sites (experts, adapted parts)."""
    ends = {
        name: name.rpartition("_")[2].replace("low", "min").replace("high", "max") for name in list(RATE_COLUMNS)[4:]
    }
    return rates.groupby(["pair", "block", "layer"], sort=False).agg(ends).reset_index()


def median_rates(rates: pd.DataFrame) -> list[PairRates]:
    """One a (pair, block) of ``equivalent_rates``, in its order; those of which no site has a rate are left out."""
    out = []
    for (pair, block), of_block in rates.groupby(["pair", "block"], sort=False):
        part = of_block.dropna()
        if part.empty:
            continue
        out.append(
            PairRates(
                pair,
                block,
                *(_middle(part, side) for side in ("left", "right")),
                *((float(part[f"{s}_rate_low"].min()), float(part[f"{s}_rate_high"].max())) for s in ("left", "right")),
            )
        )
    return out


def _middle(part: pd.DataFrame, side: str) -> float:
    """Median over the sites of the middle of each span, in octaves."""
    octaves = (np.log2(part[f"{side}_rate_low"]) + np.log2(part[f"{side}_rate_high"])) / 2
    return float(2 ** octaves.median())


def rate(value: float) -> str:
    """A factor on a learning rate, two significant digits: "2.1×", "0.48×", "12×"."""
    if not np.isfinite(value) or value <= 0:
        return "none"
    power = int(np.floor(np.log10(value) + 1e-9))
    rounded = round(value, 1 - power)
    return f"{rounded:,.{max(0, 1 - int(np.floor(np.log10(rounded) + 1e-9)))}f}×"


def span(low: float, high: float) -> str:
    """One factor, or several rows' as "0.31 to 0.52×"."""
    first, last = rate(low), rate(high)
    return last if first == last else f"{first.removesuffix('×')} to {last}"


def sentence(rates: list[PairRates]) -> str:
    """ "With Adam, balancing is training Wq at 2.1× and Wk at 0.48×, Wo at 2.0× and Wv at 0.49× the learning rate." """
    if not rates:
        return ""
    parts = [" and ".join(f"{name} at {rate(value)}" for name, value in r.sides) for r in rates]
    return f"With Adam, balancing is training {', '.join(parts)} the learning rate."
