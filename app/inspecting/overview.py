"""Inspect's first screen above the map: what this model is, one verdict over all pairs, what it means for a training
and where to go next; and the few numbers behind it, which stand below the map: a phone's first screen shows the map
then.
"""

import numpy as np
import pandas as pd
import streamlit as st

from wisca_app import cached, rates_line, state, tour
from wisca_app.figures import words
from wisca_app.heading import number
from wisca_app.inspecting import report
from wisca_app.inspecting.drawn_pair import options_of
from wisca_app.inspecting.facts import facts
from wisca_app.parts import primary, quiet
from wisca_core.model import Model
from wisca_core.pairs import SIDES
from wisca_core.patterns.summary import PairSummary, summaries
from wisca_core.patterns.verdict import n_outlying, verdict, worst
from wisca_core.planning.decide import Decision
from wisca_core.planning.rates import equivalent_rates, median_rates
from wisca_core.words import times

# what the bundled comparison of most runs says; a test holds the words to it
HELPED = f"[small models tried here gained nothing](compare?comparison={tour.COMPARISON})."
MOST_PAIRS = 3  # whose medians stand as numbers in the row


def draw(model: Model) -> None:
    """In the norm of Rescale's options, whatever the charts below show."""
    found, groups, decision = _measurements(model)
    gains = {site.key.pair for site in model.sites.sites if site.live == "gains"}
    with st.container(gap="xsmall"):
        with st.container(gap="xxsmall"):
            quiet(words.markdown_text(facts(model)))
            st.title(verdict(found, groups, gains), anchor=False)
            if model.checkpoint.look_only:
                st.markdown(f"**Look only:** {words.markdown_text(model.checkpoint.look_only)}")
            else:
                _meaning(model, decision)
        _next(model)


def _measurements(model: Model) -> tuple[list[PairSummary], pd.DataFrame, Decision]:
    decision = cached.decision(model, options_of(model))

    def measured() -> tuple[list[PairSummary], pd.DataFrame]:
        groups = decision.groups()
        return list(summaries(groups, decision.options.norm).values()), groups

    return *cached.once(f"summaries\n{model.key}\n{decision.options!r}", measured), decision


def _meaning(model: Model, decision: Decision) -> None:
    """What balancing is for a training, from the weights alone."""
    stays = "Where the declaration is right the outputs stay" if model.checkpoint.declared else "The outputs stay"
    rates = median_rates(equivalent_rates(decision, full=True))
    if rates:
        said = rates_line.line(rates, "balancing")
        st.markdown(f"{said} {stays}; {HELPED}", help=rates_line.tip(rates, decision.options.granularity))


def _next(model: Model) -> None:
    """Where to go from here, in order of need; and all of it as a file."""
    with st.container(horizontal=True, gap="xsmall"):
        if not model.checkpoint.look_only:
            _places()
        report.button(model, options_of(model))
        if str(model.checkpoint.path) in map(str, state.sample_checkpoints()):
            tour.start()


def _places() -> None:
    if st.button("See it balanced", key="go rescale", type=primary()):
        state.go("rescale")
    if st.button("What does it do to a training?", key="go answer", help="What was measured on small models."):
        state.note("comparison to show", tour.COMPARISON)
        state.go("compare")
    if st.button("Compare", key="go compare", help="The same question, asked of this model."):
        state.note("comparison to show", "new")
        state.go("compare")


def numbers(model: Model) -> None:
    """The few numbers behind the verdict, in the norm of Rescale's options."""
    found, groups, _ = _measurements(model)
    with st.container(horizontal=True, gap="xsmall"):
        for i, s in enumerate(found[:MOST_PAIRS]):
            _median(s)
            if i == 0 and s.size is not None and np.isfinite(s.ratio) and s.size_heavier:
                number(
                    "of that, size" if s.size_is_part else f"size, {s.size_heavier}", times(s.size), words.tip("size")
                )
                rest = "the rest" if s.rest_heavier in ("", s.heavier) else f"the rest, {s.rest_heavier}"
                number(rest, times(s.rest), words.tip("rest"))
        far = worst(groups)
        if far is not None and len(groups) > 1:
            number("Largest", words.ratio(far.log2_ratio), words.tip("largest", "KV group", "pair"))
        number("Outlying", f"{words.count(n_outlying(groups))} of {words.count(len(groups))}", words.tip("outlying"))


def _median(s: PairSummary) -> None:
    left, right = SIDES[s.pair]
    heavier, lighter = (right, left) if s.heavier == right else (left, right)
    number(
        f"{words.title(heavier)} / {lighter}" + (f", {words.markdown_text(s.title)}" if s.title else ""),
        times(s.ratio) if np.isfinite(s.ratio) else "none",
        words.tip("ratio", "query side") if s.pair == "qk" else words.tip("ratio"),
        width=110 if not s.title else 190,
    )
