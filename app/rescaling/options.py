"""The block of options; every widget's key is a name of ``state.CHOICES``."""

import streamlit as st

from wisca_app import state
from wisca_app.figures import words
from wisca_app.parts import KEPT, one_of
from wisca_core.architecture.site import GRANULARITIES
from wisca_core.model import Model
from wisca_core.planning.options import PLAN_NORMS, default_pairs

_GRANULARITIES = {"tensor": "Tensor", "group": "KV group", "channel": "Channel"}
_ADAPTED = {"tensor": "Module", "channel": "Rank channel"}


def draw(model: Model) -> None:
    sites = model.sites
    pairs = list(model.pairs)
    adapter = pairs == ["lora"]
    if adapter and state.get("granularity") == "group":  # one factor a module either way
        state.put("granularity", "tensor")
    low, high = state.layer_span(sites)
    state.put("pairs", [pair for pair in state.get("pairs") if pair in pairs] or list(default_pairs(sites)))
    state.put("layers", state.clamped_layers(sites))
    state.note("layer span", (low, high))
    names = [site.name for site in sites.sites]
    state.put("exclude", [name for name in state.get("exclude") if name in names])
    with st.container(border=True):
        with st.container(horizontal=True, gap="medium"):
            st.segmented_control(
                "Pairs",
                pairs,
                selection_mode="multi",
                key="pairs",
                format_func=words.PAIR_LABELS.get,
                **KEPT,
                help="MLP pairs are found and measured only when they are chosen: that reads most of the model."
                if "mlp" in pairs
                else None,
            )
            one_of(
                "Granularity",
                [g for g in GRANULARITIES if not (adapter and g == "group")],
                "granularity",
                said=(_ADAPTED if adapter else _GRANULARITIES),
                help="How many channels share one factor: all of a matrix, those of one KV group, or as few as "
                "exactness allows (rotary pairs share one).",
            )
            one_of(
                "Norm",
                PLAN_NORMS,
                "norm",
                said=words.NORM_LABELS,
                help="What is made equal on both sides. "
                + "; ".join(f"{words.NORM_LABELS[n]}: {words.NORM_SYMBOLS[n]}" for n in PLAN_NORMS).replace("|", "\\|"),
            )
        with st.container(horizontal=True, gap="medium", vertical_alignment="bottom"):
            st.slider(
                "Strength",
                0.0,
                1.0,
                step=0.05,
                key="strength",
                width=190,
                **KEPT,
                help="1 balances fully, 0 changes nothing.",
            )
            if low < high:
                st.slider("Layers", low, high, key="layers", width=190, **KEPT)
            st.toggle(
                "Exact: powers of two only",
                key="exact",
                **KEPT,
                help="Multiplying by a power of two changes no digit of a bf16 or float32 weight.",
            )
        st.multiselect("Leave out", names, key="exclude", placeholder="no pair is left out", **KEPT)
