"""The dashboard's frame: address, sidebar, navigation, and the guard around every page."""

import streamlit as st

from app import sidebar, state
from app.messages import errors_as_messages

st.set_page_config(page_title="WISCA", page_icon=":material/balance:", layout="wide", initial_sidebar_state=244)
state.begin()
page = st.navigation(
    [
        st.Page("views/inspect.py", title="Inspect", default=True),
        st.Page("views/rescale.py", title="Rescale"),
    ]
)
with st.sidebar:
    sidebar.draw()
with errors_as_messages("That did not work"):
    page.run()
