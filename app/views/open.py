"""Open a model: a path, what was opened before, what lies near, the samples, an upload, the hub."""

import streamlit as st

from wisca_app import cached, state
from wisca_app.declaring import form
from wisca_app.figures import words
from wisca_app.figures.template import theme_of
from wisca_app.messages import errors_as_messages
from wisca_app.opening import ask, lists
from wisca_app.parts import quiet

if state.get("declaring"):
    form.draw(state.get("declaring"))
    state.stop()
theme = theme_of(st.context.theme.type)
with st.container(gap="xxsmall"):
    st.title("Open a folder, a file, or a name on the hub.", anchor=False)
    st.markdown("Weights are read where they lie and never changed.")
ask.field()
lists.before(theme)
left, right = st.columns(2, gap="medium")
with left:
    lists.folders()
    lists.hub()
with right:
    lists.samples(theme)
    lists.upload()
with errors_as_messages("The folder cannot be cleaned"):
    lists.storage_popover()
quiet(f"Device: {words.markdown_text(cached.device())}")
