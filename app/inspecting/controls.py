"""The controls over the map: pair, block, view, and in popovers what is rarely changed."""

import streamlit as st

from wisca_app import state
from wisca_app.figures import words
from wisca_app.figures.heatmap import VIEWS
from wisca_app.inspecting.drawn_pair import NORMS, DrawnPair
from wisca_app.parts import one_of, pick
from wisca_core.planning.options import Options
from wisca_core.words import join_names

_GRANULARITIES = {"tensor": "one factor a matrix", "group": "one factor a KV group", "channel": "one factor a channel"}


def draw(shown: DrawnPair) -> None:
    pairs = shown.model.pairs
    with st.container(horizontal=True, gap="small", vertical_alignment="bottom"):
        if len(pairs) > 1:
            one_of("Pair", pairs, "pair", said=words.PAIR_LABELS, label_visibility="collapsed", help=words.tip("pair"))
        if len(shown.blocks) > 1:
            pick(
                "Block",
                list(shown.blocks),
                "block",
                format_func=lambda one: words.title(shown.blocks[one]),
                width=240,
                label_visibility="collapsed",
                help="Pairs of one kind sit in several places of this model; each is looked at by itself.",
            )
        _view(shown)
        with st.popover(f"{words.NORM_LABELS[shown.norm]} norm", type="tertiary"):
            _norm(shown)


def _view(shown: DrawnPair) -> None:
    state.follow("shown_view", shown.own_view, shown.views)
    if len(shown.views) > 1:
        one_of("View", shown.views, "shown_view", said=VIEWS, label_visibility="collapsed", help=words.tip("size"))


def _norm(shown: DrawnPair) -> None:
    one_of(
        "Norm of the charts",
        NORMS,
        "shown_norm",
        said=words.NORM_LABELS,
        help="; ".join(f"{words.NORM_LABELS[n]}: {words.NORM_SYMBOLS[n]}" for n in NORMS).replace("|", "\\|"),
    )
    if shown.after:
        st.markdown(f"After: {describe(shown.options)}.")
        st.page_link("views/rescale.py", label="Change it on Rescale")


def describe(options: Options) -> str:
    """The options of Rescale in one line."""
    parts = [
        join_names([words.PAIR_LABELS[pair] for pair in options.pairs]),
        _GRANULARITIES.get(options.granularity, f"granularity {options.granularity}"),
        f"{words.NORM_LABELS[options.norm]} norm",
        "full strength" if options.strength == 1 else f"strength {options.strength:g}",
    ]
    if options.layers:
        parts.append("layers " + ", ".join(str(span) for span in options.layers))
    if options.exact:
        parts.append("powers of two only")
    if options.exclude:
        parts.append(f"{words.plural(len(options.exclude), 'pair')} left out")
    return ", ".join(parts)
