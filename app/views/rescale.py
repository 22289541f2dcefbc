"""Rescale: what would WISCA do to this model, is it the same function, and how to take it away."""

from contextlib import nullcontext
from dataclasses import replace

import streamlit as st

from wisca_app import cached, rates_line, state
from wisca_app.figures import factors, words
from wisca_app.figures.template import theme_of
from wisca_app.heading import show
from wisca_app.messages import plain
from wisca_app.open_model import ready
from wisca_app.parts import quiet
from wisca_app.rescaling import export, options, proof, table, training
from wisca_app.rescaling.verdict import facts, is_worth_it, metrics, sentence, what_applies
from wisca_core.architecture.refusals import lines
from wisca_core.planning.rates import equivalent_rates, median_rates
from wisca_core.words import without_site_name

found = ready(state.get("pairs"))
model = found.proved(proof.proof_so_far(found))  # where a rule was refused, the others go on
quiet(words.markdown_text(facts(model)))
if model.checkpoint.look_only or model.refusal or not model.sites.sites:
    st.title("This model cannot be rescaled.", anchor=False)
    plain(
        f"Look only: {model.checkpoint.look_only}"
        if model.checkpoint.look_only
        else model.refusal or "No pair was found in it whose scale can be moved."
    )
    for line in lines(r for r in model.sites.refusals if r.what != "model"):
        plain(line)
    st.markdown(":gray[Nothing is guessed, so there is nothing to press here. Inspect shows what can be looked at.]")
    state.stop()

head = st.container()  # filled when the options are known
options.draw(found)
chosen = state.options(model.sites, found.pairs)
decision = cached.decision(model, chosen)
rows = cached.rows(model, chosen)
asked = rows[rows["pair"].isin(chosen.pairs) & rows["layer"].between(*state.clamped_layers(model.sites))]

with head:
    st.title(sentence(decision, model.checkpoint.declared is not None), anchor=False)
    rates = median_rates(equivalent_rates(decision))
    if rates and decision.changed_sites.any():
        st.markdown(rates_line.line(rates, "this plan"), help=rates_line.tip(rates, chosen.granularity))
    quiet(f"{what_applies(decision)} Nothing is written until you export.")
metrics(decision)
st.space("small")

# where nothing is out of balance one sentence is the answer, and the charts are for the curious
with nullcontext() if is_worth_it(decision) else st.expander("Factors and plan all the same", key="not worth it"):
    theme = theme_of(st.context.theme.type)
    one = factors.chart(asked)
    key = f"factors\n{model.key}\n{chosen!r}\n{state.get('layers')}\n{theme.name}"
    show(one, theme, "factor_chart", cached.once(key, lambda: one.draw(theme)))
    table.draw(asked)

refusals = (*model.sites.refusals, *cached.feed_forward_refusals(model), *decision.refusals)
if refusals:
    with st.expander(f"Left alone, with the reason: {words.plural(len(refusals), 'place')}", key="refusals"):
        plain("\n".join(lines(replace(one, reason=without_site_name(one.reason)) for one in refusals)[:200]))
st.space("small")
left, right = st.columns(2, gap="medium")
with left.container(border=True):
    passed = proof.draw(found, model, chosen, decision)
with right.container(border=True):
    export.draw(model, chosen, decision, passed)
    training.draw(model, chosen)
