"""Compare: would rescaling help a training? Set up, watch, and read what the differences allow one to say."""

import streamlit as st

from wisca_app import state
from wisca_app.comparing import choosing, live, managing, result, setup
from wisca_app.comparing.facts import facts
from wisca_app.figures import words
from wisca_app.parts import quiet

wanted = state.note("comparison to show")
if wanted:
    state.put("comparison", wanted)
    state.forget("comparison to show")
    state.share()  # a reload right after the start must find it

row = st.container(horizontal=True, vertical_alignment="bottom", gap="small")
with row:
    chosen = choosing.draw()
if chosen == "new":
    st.title("Would rescaling help a training like yours?", anchor=False)
    setup.draw()
    state.stop()
if not choosing.is_here(chosen):
    choosing.say_missing(chosen)
    state.stop()

comparison = choosing.open_comparison(chosen)
with row:
    managing.draw(chosen, comparison)
if comparison is None:
    state.stop()
quiet(words.markdown_text(f"{comparison.path.name}: {comparison.spec.name}. {facts(comparison)}"))
managing.say_never_began(comparison)
if live.is_going(comparison):
    live.draw(comparison)
else:
    result.draw(comparison, choosing.is_sample(chosen))
