"""The dashboard's frame: address, sidebar, navigation, and the guard around every page."""

from pathlib import Path

import streamlit as st

from wisca_app import sidebar, state
from wisca_app.messages import errors_as_messages

# A file: Streamlit fetches named icons and emojis from the network.
ICON = str(Path(__file__).with_name("icon.svg"))

st.set_page_config(page_title="WISCA", page_icon=ICON, layout="wide", initial_sidebar_state=244)
state.begin()
page = st.navigation(
    [
        st.Page("views/inspect.py", title="Inspect", default=True),
        st.Page("views/rescale.py", title="Rescale"),
        st.Page("views/compare.py", title="Compare"),
        st.Page("views/runs.py", title="Runs"),
        st.Page("views/architectures.py", title="Architectures"),
    ]
)
with st.sidebar, errors_as_messages("The sidebar cannot be shown"):
    sidebar.draw()
state.share()
with errors_as_messages("This page cannot be shown"):
    page.run()
