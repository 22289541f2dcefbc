"""The page's sentence, what it rests on, and its few numbers."""

import numpy as np
import pandas as pd
import streamlit as st

from wisca_app import cached
from wisca_app.figures import words
from wisca_app.heading import number
from wisca_app.open_model import title
from wisca_core.model import Model
from wisca_core.pairs import SIDES
from wisca_core.patterns.summary import NEAR, PairSummary, summaries
from wisca_core.planning.decide import Decision
from wisca_core.planning.rates import RATE_COLUMNS, equivalent_rates
from wisca_core.words import times

ENDS = (("low", "high"), ("high", "low"))  # one side is slowest where the other is fastest
MOST_METRICS = 3  # medians that stand as numbers in a row
TIPS = {
    "Within 2× after": "Cells (KV groups, experts, adapted parts, feed-forward blocks) of the chosen pairs whose two "
    "norms "
    "are within a factor 2 of each other afterwards.",
    "Weights overflow": "Weights that would leave the range of their dtype: their pairs are left alone.",
    "16-bit rounded": "16-bit weights that a factor rounds once, as it is no power of two.",
    "Weights lose bits": "Weights that would fall below the smallest normal number of their dtype.",
}


def facts(model: Model) -> str:
    """The small line above the title."""
    if model.refusal:
        return f"{title(model.checkpoint.source)}, refused"
    refused = [r for r in (*model.sites.refusals, *cached.feed_forward_refusals(model)) if r.what != "model"]
    n_refused = words.count(len(refused)) if refused else "none"
    found = f"{words.plural(len(model.sites.sites), 'pair')} found, {n_refused} refused"
    return f"{title(model.checkpoint.source)}, {found}"


def largest(decision: Decision) -> float:
    """How far the chosen part furthest from balance is from it, octaves; NaN where none has a ratio. A part is what
    these options give one factor: how its heads differ among themselves is beyond them.
    """
    rates = equivalent_rates(decision, full=True)
    names = {s.name for s in decision.patterns.sites.sites if decision.options.chooses(s.key)}
    rates = np.log2(rates.loc[rates["name"].isin(names), list(RATE_COLUMNS)[4:]]).abs()
    ends = [rates[f"left_rate_{end}"] + rates[f"right_rate_{other}"] for end, other in ENDS]
    return float(np.nanmax(ends)) if np.isfinite(ends).any() else np.nan


def is_worth_it(decision: Decision) -> bool:
    """Whether anything that was chosen is out of balance by more than a reader would call level."""
    return not largest(decision) < np.log2(NEAR)


def sentence(decision: Decision, is_declared: bool = False) -> str:
    """ "219 of 224 pairs would change, by powers of two; every output stays bit-identical." ``is_declared``: nothing
    has proved its pairs.
    """
    changed, found = int(decision.changed_sites.sum()), len(decision.patterns.sites.sites)
    if not changed:
        return f"None of {words.plural(found, 'pair')} would change with these options."
    if not is_worth_it(decision):
        return f"Not worth it: every pair lies within {times(2 ** largest(decision))} of balance already."
    first = f"{words.count(changed)} of {words.plural(found, 'pair')} would change"
    if is_declared:
        return f"{first}; that the outputs stay the same is not proved."
    if decision.bit_identical:
        return f"{first}, by powers of two; every output stays bit-identical."
    if decision.options.exact:
        return f"{first}, by powers of two."
    return f"{first}; the outputs stay the same up to rounding."


def what_applies(decision: Decision) -> str:
    """What "the same" means here, in one or two sentences."""
    effects, dtypes = decision.effects, set(decision.patterns.dtypes.values())
    if not decision.changed_sites.any() or decision.bit_identical:
        return ""
    out = []
    if effects["rounded"]:
        out.append("Factors that are no power of two round each 16-bit weight they touch once.")
    elif not decision.options.exact:
        out.append("Factors that are no power of two round each weight they touch once, in the last of its digits.")
    if effects["gains"]:
        out.append(f"{words.count(effects['gains'])} gains are stored as gain − 1 and round in any case.")
    if effects["lost"]:
        out.append(f"{words.count(effects['lost'])} weights lose bits below the smallest normal number.")
    if "F16" in dtypes and decision.options.exact:
        out.append("In fp16 activations may lose bits too, so the full check decides.")
    return " ".join(out)


def metrics(decision: Decision) -> None:
    effects = decision.effects
    found = summaries(decision.groups(), decision.options.norm)
    chosen = [s for s in found.values() if s.pair in decision.options.pairs]
    shown = [(_label(s), f"{_ratio(s.ratio)} → {_after(s)}") for s in chosen] if len(chosen) <= MOST_METRICS else []
    within, n = sum(s.within_2x_after for s in chosen), sum(s.n_cells for s in chosen)
    shown += [
        ("Within 2× after", f"{words.count(within)} of {words.count(n)}"),
        ("Weights overflow", words.count(effects["overflow"])),
        ("16-bit rounded", words.count(effects["rounded"] + effects["gains"])),
        ("Weights lose bits", words.count(effects["lost"])),
    ]
    with st.container(horizontal=True, gap="xsmall"):
        for label, value in shown:
            number(label, value, TIPS.get(label, ""), width=max(124, 10 * len(value) + 24))
    if len(chosen) > MOST_METRICS:
        _medians(chosen)


def _medians(chosen: list[PairSummary]) -> None:
    """A line a block, where there are too many for a row of numbers."""
    table = pd.DataFrame(
        {
            "Pair": [words.PAIR_LABELS[s.pair] for s in chosen],
            "Block": [words.title(s.title) for s in chosen],
            "Median before": [_side(s.ratio, s.heavier) for s in chosen],
            "after": [_side(s.ratio_after, s.heavier_after) for s in chosen],
            "Within 2× before": [f"{words.count(s.within_2x)} of {words.count(s.n_cells)}" for s in chosen],
            "Within 2× after": [f"{words.count(s.within_2x_after)} of {words.count(s.n_cells)}" for s in chosen],
        }
    )
    st.dataframe(table, hide_index=True, key="medians", alt="Median ratio of each block before and after")


def _side(ratio: float, heavier: str) -> str:
    return f"{heavier} {times(ratio)}" if heavier else "level" if ratio == ratio else "none"


def _after(s: PairSummary) -> str:
    """The ratio afterwards, with its side where that is another one."""
    side = f"{s.heavier_after} " if s.heavier_after not in ("", s.heavier) else ""
    return f"{side}{_ratio(s.ratio_after)}"


def _label(s: PairSummary) -> str:
    left, right = SIDES[s.pair]
    heavier, lighter = (right, left) if s.heavier == right else (left, right)
    return f"Median {heavier}/{lighter}"


def _ratio(value: float) -> str:
    return times(value) if value == value else "none"
