"""One architecture: the open model's, or the one that was looked up."""

import pandas as pd
import streamlit as st

from wisca_app import cached, state
from wisca_app.cached import Census
from wisca_app.figures import words
from wisca_app.messages import plain
from wisca_app.open_model import glance
from wisca_app.parts import pick, quiet
from wisca_core.architecture.families import families
from wisca_core.census import row_file, row_text, rule_lines
from wisca_core.census.entry import LABELS, Entry
from wisca_core.census.table import is_open
from wisca_core.equivalence.proof import Proof
from wisca_core.equivalence.proving import cached_proof


def settle(census: Census) -> Entry | None:
    """The architecture that is shown: the one looked up, else the open model's where it is known. Another open model
    brings its own.
    """
    opened = glance()
    own = opened.sites.model_type if opened and opened.sites.model_type in census.by_name else ""
    is_first, is_another = state.note("own architecture") is None, state.note("own architecture") != own
    state.note("own architecture", own)
    wanted = state.get("architecture")
    if wanted not in census.by_name or (is_another and not is_first):
        wanted = own or None
    state.put("architecture", wanted)
    state.share()  # the address was written before this page was drawn
    return census.by_name.get(wanted)


def title(chosen: Entry, proof: Proof | None) -> str:
    """The census's verdict; where it has none yet, what was proved of the open model itself."""
    if proof is None or not is_open(chosen):
        return chosen.sentence
    if not proof.passed:
        return f"{chosen.model_type}: not every rule passed its proof on the open model."
    return f"{chosen.model_type} has a rule, and it passed its proof on the open model."


def beside(chosen: Entry | None, proof: Proof | None, census: Census) -> str:
    """The line under the title."""
    if chosen is None:
        return "Look one up by the model_type of its config.json."
    about = ""
    if is_open(chosen) and proof is not None:
        about = "The census, which tries default configs, has not tried it here yet. "
    elif chosen.n_trials:
        own = "Rescale proves the open model's own"
        if proof is not None:
            own = f"that of the open model was proved by itself and passed{'' if proof.passed else ' in part'}"
        about = (
            "This speaks of its default "
            f"config{', as it was tried when this version of wisca was made' if chosen.is_released else ''}; {own}. "
        )
    return about + census.coverage.sentence


def own_proof(chosen: Entry | None) -> Proof | None:
    """The kept proof of the open model with the pairs that are chosen on Rescale, where it is of this architecture and
    anything of it passed.
    """
    opened = glance()
    if (
        chosen is None
        or opened is None
        or opened.sites.model_type != chosen.model_type
        or opened.checkpoint.adapter_json
    ):
        return None
    found = cached.with_pairs(opened, state.get("pairs"))
    proof = cached_proof(found.checkpoint, found.sites) if found.sites.sites else None
    return proof if proof is not None and any(map(proof.covers, found.sites.sites)) else None


def draw(census: Census, chosen: Entry | None) -> None:
    with st.container(border=True):
        pick("Look one up", list(census.by_name), "architecture", placeholder="model_type of config.json", width=420)
        if chosen is None:
            return
        if chosen.not_reached:
            plain(chosen.not_reached)
        family = families().get(chosen.model_type)
        plain(
            "\n".join(rule_lines(family))
            if family
            else "No row covers it"
            + (", a rule was found by trial." if chosen.family else "; a rule is looked for by trial.")
        )
        for remark in chosen.remarks:
            plain(remark)
        if chosen.n_trials:
            quiet(
                f"Proved on a miniature{' when this version of wisca was made' if chosen.is_released else ''}: "
                f"{words.plural(chosen.n_trials, 'rescaled copy', 'rescaled copies')}, "
                f"{words.plural(chosen.n_cases, 'input')} each, float64. Largest difference "
                f"{words.digits(chosen.max_rel, 2)} of the largest output; "
                f"a factor on one side alone moves it by at least {words.digits(chosen.liveness, 2)}."
            )
        _places(chosen)
        if family:
            with st.expander(f"Its row in {row_file(family.name)}", key="row"):
                st.code(row_text(family.name), language="toml", wrap_lines=True)


def _places(chosen: Entry) -> None:
    rows = [
        {
            "Pair": LABELS[pair.pair],
            "Where": place.where,
            "Proved at": ", ".join(place.held) or "nothing",
            "Finest": ", ".join(place.finest) if place.held else "",
            "Why not": "no input tried here runs it" if place.is_idle else place.reason,
        }
        for pair in chosen.pairs
        for place in pair.places
    ]
    if rows:
        st.dataframe(
            pd.DataFrame(rows),
            hide_index=True,
            key="places",
            alt=f"The pairs of {chosen.model_type} and what was proved of each",
        )
