"""Inspect's first screen: what this model is, one sentence with its number, and the few figures behind it."""

import numpy as np
import streamlit as st

from wisca_app import cached
from wisca_app.cached import Opened
from wisca_app.figures import words
from wisca_app.inspecting.shown import NORMS, Shown
from wisca_app.open_model import title
from wisca_core.patterns.blocks import unit_of
from wisca_core.patterns.summary import SIDES, PairSummary, sentence, times
from wisca_core.planning.options import Options

_GRANULARITIES = {"tensor": "one factor a matrix", "group": "one factor a KV group", "channel": "one factor a channel"}


def facts(model: Opened) -> str:
    """The small line above the title: foreign names in it."""
    a, sites, checkpoint = model.sites.attention, model.sites, model.checkpoint
    parts = [title(checkpoint.source), sites.family or sites.model_type, words.parameters(checkpoint.n_parameters)]
    if a is not None:
        heads = f"{words.plural(a.n_heads, 'query head')} on {words.plural(a.n_kv_heads, 'KV head')}"
        parts += [words.plural(a.n_layers, "layer"), f"{heads} (group size {a.n_heads // a.n_kv_heads})"]
    dtypes = sorted({t.dtype for t in checkpoint.stored or checkpoint.tensors} & set(words.DTYPES))
    parts.append(" and ".join(words.DTYPES[d] for d in dtypes))
    refused = sum(r.what != "model" for r in sites.refusals)
    found = f"{words.plural(len(sites.sites), 'pair')} found, {words.count(refused) if refused else 'none'} refused"
    return ", ".join(filter(None, parts)) + (f". {found}." if sites.sites or a is not None else ".")


def draw(shown: Shown) -> None:
    verdict = sentence(shown.summary)
    if shown.gains and not shown.title:
        verdict = f"In the norms' gains, {verdict[0].lower()}{verdict[1:]}"
    st.title(words.markdown_text(verdict) if shown.title else verdict, anchor=False)
    if shown.model.checkpoint.look_only:
        st.markdown(f"**Look only:** {words.markdown_text(shown.model.checkpoint.look_only)}")
    else:
        st.markdown(f"{preview(shown)} Whether it then trains better is not known from here.")
    st.space("small")
    metrics(shown)


def preview(shown: Shown) -> str:
    """What balancing with the options of Rescale would give."""
    s, label = shown.summary, words.PAIR_LABELS[shown.pair]
    if shown.pair not in shown.options.pairs:
        return f"{label} is not among the pairs chosen on Rescale, so nothing of it would change."
    own = {site.name for site in shown.sites}
    changed = [moved for site, moved in zip(shown.model.sites.sites, shown.decision.changed_sites) if site.name in own]
    if not any(changed):
        return "With the options of Rescale nothing of it would change."
    how = " with powers of two" if shown.options.exact else ""
    function = (
        "leave every output bit-identical"
        if shown.decision.bit_identical
        else "leave the outputs the same up to rounding"
    )
    if not np.isfinite(s.ratio_after):
        return f"Balancing{how} would {function}."
    if s.is_level:
        n = f"{words.count(sum(changed))} of {words.plural(len(changed), 'pair')}"
        return f"The median layer is level already. Balancing{how} would still move {n}, and {function}."
    reached = "level" if not s.heavier_after else f"to {s.heavier_after} {times(s.ratio_after)}"
    return f"Balancing{how} would bring the median layer {reached}, and {function}."


def metrics(shown: Shown) -> None:
    s = shown.summary
    with st.container(horizontal=True, gap="medium"):
        near = shown.beside(shown.everything)
        places = dict.fromkeys(zip(near["pair"], near["block"]))
        for one in (
            s,
            *(other for other in shown.found.values() if other.pair != s.pair and (other.pair, other.block) in places),
        ):
            _median(one)
            if one is s and s.size is not None and np.isfinite(s.ratio):
                st.metric(
                    "of that, size"
                    if s.size_is_part
                    else f"Size alone, {s.size_heavier}"
                    if s.size_heavier
                    else "Size alone",
                    times(s.size),
                    width=140,
                    help="What the number of entries on both sides explains.",
                )
                rest_of = "the rest" if s.rest_heavier in ("", s.heavier) else f"The rest, {s.rest_heavier}"
                st.metric(
                    rest_of,
                    times(s.rest),
                    width=140,
                    help="What size does not explain: initialisation or training. One checkpoint cannot tell which.",
                )
        st.metric(
            "Within 2× of balance",
            f"{words.count(s.within_2x)} of {words.count(s.n_cells)}",
            width=140,
            help=f"{words.title(unit_of(s.pair, s.block))}s of {words.PAIR_LABELS[s.pair]}, before.{f' After: {words.count(s.within_2x_after)}.' if shown.after else ''}",
        )


def _median(s: PairSummary) -> None:
    left, right = SIDES[s.pair]
    heavier, lighter = (right, left) if s.heavier == right else (left, right)
    st.metric(
        f"{heavier.capitalize()} over {lighter}",
        times(s.ratio) if np.isfinite(s.ratio) else "none",
        width=140,
        help="Median over the layers.",
    )


def controls(shown: Shown) -> None:
    """Pair, block and norm of every chart below, and where the options of "after" are set."""
    pairs = cached.pairs_of(shown.model)
    with st.container(horizontal=True, gap="medium", vertical_alignment="bottom"):
        st.segmented_control(
            "Pair", pairs, key="pair", required=True, format_func=words.PAIR_LABELS.get, persist_state="session"
        )
        if len(shown.blocks) > 1:
            st.selectbox(
                "Block",
                list(shown.blocks),
                key="block",
                format_func=lambda one: words.title(shown.blocks[one]),
                width=260,
                persist_state="session",
                help="Pairs of one kind sit in several places of this model; each is looked at by itself.",
            )
        st.segmented_control(
            "Norm",
            NORMS,
            key="shown_norm",
            required=True,
            format_func=words.NORM_LABELS.get,
            persist_state="session",
            help="; ".join(f"{words.NORM_LABELS[n]}: {words.NORM_SYMBOLS[n]}" for n in NORMS).replace("|", "\\|"),
        )
        if not shown.after:
            return
        with st.popover("What makes the after", type="tertiary"):
            st.markdown(f"After: {describe(shown.options)}.")
            st.page_link("views/rescale.py", label="Change it on Rescale")


def describe(options: Options) -> str:
    """The options of Rescale in one line."""
    parts = [
        " and ".join(words.PAIR_LABELS[pair] for pair in options.pairs),
        _GRANULARITIES[options.granularity],
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
