"""The page's sentence, what it rests on, and its few numbers."""

import streamlit as st

from app.cached import Opened
from app.current import title
from app.figures import words
from wisca_core.patterns.summary import SIDES, PairSummary, summaries, times
from wisca_core.plan.decide import Decision


def facts(model: Opened) -> str:
    """The small line above the title."""
    if model.refusal:
        return f"{title(model.checkpoint.source)}, refused"
    refused = [r for r in model.sites.refusals if r.what != "model"]
    n_refused = words.count(len(refused)) if refused else "none"
    found = f"{words.plural(len(model.sites.sites), 'pair')} found, {n_refused} refused"
    return f"{title(model.checkpoint.source)}, {found}"


def sentence(decision: Decision) -> str:
    """ "219 of 224 pairs would change, by powers of two; every output stays bit-identical."""
    changed, found = int(decision.changed_sites.sum()), len(decision.patterns.sites.sites)
    if not changed:
        return f"None of {words.plural(found, 'pair')} would change with these options."
    first = f"{changed} of {words.plural(found, 'pair')} would change"
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
    shown = [
        (_label(s), f"{_ratio(s.ratio)} → {_ratio(s.ratio_after)}")
        for s in found.values()
        if s.pair in decision.options.pairs
    ]
    within, n = sum(s.within_2x_after for s in found.values()), sum(s.n_cells for s in found.values())
    shown += [
        ("Within 2× after", f"{words.count(within)} of {words.count(n)}"),
        ("Weights overflow", words.count(effects["overflow"])),
        ("Weights round", words.count(effects["rounded"] + effects["gains"])),
        ("Weights lose bits", words.count(effects["lost"])),
    ]
    with st.container(horizontal=True, gap="xsmall"):
        for label, value in shown:
            st.metric(label, value, width=max(118, 11 * len(value) + 20))
    st.markdown(
        f":small[:gray[Medians are over the layers, within 2× counts {'adapted parts' if list(found) == ['lora'] else 'KV groups'}. Weights that would overflow are left "
        "alone; bits are lost below the smallest normal number.]]"
    )


def _label(s: PairSummary) -> str:
    left, right = SIDES[s.pair]
    heavier, lighter = (right, left) if s.heavier == right else (left, right)
    return f"Median {heavier}/{lighter}"


def _ratio(value: float) -> str:
    return times(value) if value == value else "none"
