"""A second model beside the open one: before and after fine-tuning, two runs, two arms of a comparison."""

import numpy as np
import pandas as pd
import streamlit as st

from wisca_app import cached, state
from wisca_app.figures import beside, words
from wisca_app.figures.template import Theme
from wisca_app.heading import heading
from wisca_app.inspecting.charts import chart
from wisca_app.inspecting.shown import Shown
from wisca_app.messages import errors_as_messages, plain
from wisca_app.open_model import normal, title
from wisca_core.patterns.summary import layer_ratios


def draw(shown: Shown, theme: Theme) -> None:
    """The section where a second model is chosen; else the way to choose one."""
    other = normal(state.get("beside"))
    with st.expander("Another model beside it", expanded=False, key="beside_choose"):
        with st.form("beside form", border=False):
            written = st.text_input("Path on this machine", placeholder="/models/the-other-one", key="beside written")
            if st.form_submit_button("Show it beside") and written.strip():
                _choose(normal(written))
        if other and st.button("Take it away", key="beside away"):
            _choose("")
    if other:
        with errors_as_messages("The model beside it cannot be shown"):
            _draw(shown, other, theme)


def _choose(model: str) -> None:
    state.put("beside", model)
    st.rerun()


def _draw(shown: Shown, other: str, theme: Theme) -> None:
    if other.startswith("hub:"):
        plain(
            "A model of the hub can stand beside another one once it is on this machine: open it first, then give its folder."
        )
        return
    opened = cached.with_pairs(cached.opened(other), [shown.pair])
    if opened.refusal:
        plain(opened.refusal)
        return
    if cached.needs_job(opened):
        plain(
            f"{title(other)} has not been measured yet: open it once in the sidebar, then it can stand beside this one."
        )
        return
    found = cached.decision(opened, state.options(opened.sites))
    layers = layer_ratios(found.groups(shown.norm), shown.norm)
    theirs = layers[(layers["pair"] == shown.pair) & (layers["block"] == shown.block)]
    if theirs.empty:
        plain(
            f"{title(other)} has no {words.PAIR_LABELS[shown.pair]} pair{f' at this place ({shown.title})' if shown.title else ''}."
        )
        return
    both = (
        pd.merge(
            shown.layers[["layer", "log2_ratio"]],
            theirs[["layer", "log2_ratio"]].rename(columns={"log2_ratio": "log2_beside"}),
            on="layer",
            how="outer",
        )
        .sort_values("layer")
        .replace([np.inf, -np.inf], np.nan)
    )
    names = (title(shown.model.checkpoint.source), title(other))
    names = names if names[0] != names[1] else (f"{names[0]} (open)", f"{names[1]} (beside)")
    said = beside.finding(both, shown.pair)
    heading(
        said,
        f"Dots: the open model, {words.markdown_text(names[0])}. Rings: {words.markdown_text(names[1])}. Each layer as a whole, "
        f"{words.NORM_SYMBOLS[shown.norm].replace('|', chr(92) + '|')}; above 1× {words.coloured(words.PAIR_ROLES[shown.pair][0])} is heavier, below "
        f"{words.coloured(words.PAIR_ROLES[shown.pair][1])}.",
        both.assign(change=both["log2_ratio"] - both["log2_beside"]),
        "beside",
    )
    chart(
        beside.beside(both, pair=shown.pair, theme=theme, names=names),
        "beside chart",
        f"Ratio over the layers of two models. {said}.",
    )
    a, b = shown.model.sites.attention, opened.sites.attention
    # an adapter alone says nothing of heads
    if a and b and (a.n_layers, a.n_heads, a.n_kv_heads) != (b.n_layers, b.n_heads, b.n_kv_heads):
        st.markdown(
            f":small[:gray[They are of different shapes: {words.plural(a.n_layers, 'layer')} and {words.count(b.n_layers)}, "
            f"{words.plural(a.n_heads, 'query head')} on {words.count(a.n_kv_heads)} and {words.count(b.n_heads)} on {words.count(b.n_kv_heads)}; "
            "layers of one number need not correspond.]]"
        )
