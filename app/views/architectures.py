"""Architectures: is mine covered, by which rule, and what was proved of it here?"""

import streamlit as st

from wisca_app import cached, state
from wisca_app.architectures import many, one, running
from wisca_app.figures import words
from wisca_app.figures.template import theme_of
from wisca_app.parts import quiet

census = cached.census("all")
chosen = one.settle(census)
proof = one.own_proof(chosen)
shown = cached.census(state.get("kinds"))
quiet(words.markdown_text(many.facts(shown)))
st.title(words.markdown_text(one.title(chosen, proof) if chosen else shown.coverage.sentence), anchor=False)
st.markdown(words.markdown_text(one.beside(chosen, proof, shown)))
st.space("small")
many.draw_map(shown, chosen.model_type if chosen else "", theme_of(st.context.theme.type))
st.space("small")
one.draw(census, chosen)
st.space("small")
many.metrics(shown)
st.space("small")
running.draw(shown)
st.space("small")
many.draw_table(shown)
st.space("small")
many.draw_reasons(shown.coverage)
