"""Evaluate: how well does this model predict, is it the same as another, and what happens inside while it runs?"""

import streamlit as st

from wisca_app import state
from wisca_app.evaluating import asking, result
from wisca_app.figures import evaluation, words
from wisca_app.figures.template import theme_of
from wisca_app.messages import plain
from wisca_app.parts import quiet

model, name = asking.subject()
if not model:
    plain("No model is open. Open one in the sidebar: a path on this machine, a hub id or an upload.")
    state.stop()
job = asking.newest(model)
found = job.result if job is not None and job.state == "done" else None
if found:
    facts = [one["class"] + ", run in " + one["dtype"] + " on " + one["device"] for one in found["models"][:1]]
    quiet(words.markdown_text(", ".join([name, *facts])))
    heading, sentence = evaluation.headline(found)
    st.title(words.markdown_text(heading), anchor=False)
    st.markdown(words.markdown_text(sentence))
else:
    quiet(words.markdown_text(name))
    st.title("How well does this model predict?", anchor=False)
    st.markdown("Perplexity of a text, tasks it was not trained for, and a second model on the same documents.")
if job is not None and found is None:
    asking.watch(job)
st.space("small")
if found:
    result.draw(found, theme_of(st.context.theme.type))
    st.space("small")
asking.draw(model)
