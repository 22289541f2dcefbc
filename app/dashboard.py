"""The dashboard's frame: address, sidebar, navigation, and the guard around every page."""

from pathlib import Path

import streamlit as st

from wisca_app import cached, focus, sidebar, state, tour
from wisca_app.figures.template import theme_of
from wisca_app.messages import errors_as_messages, say
from wisca_app.parts import is_phone
from wisca_core.errors import WiscaError

# Files: Streamlit fetches named icons and emojis from the network.
HERE = Path(__file__).parent
ICON = str(HERE / "icon.svg")

# The order of the question: a model, what a training makes of it, and what all of this rests on.
GROUPS = {
    "A model": [
        st.Page("views/inspect.py", title="Inspect", default=True),
        st.Page("views/heads.py", title="Heads"),
        st.Page("views/rescale.py", title="Rescale"),
        st.Page("views/evaluate.py", title="Evaluate"),
    ],
    "A training": [st.Page("views/compare.py", title="Compare"), st.Page("views/runs.py", title="Runs")],
    "About": [st.Page("views/method.py", title="Method"), st.Page("views/architectures.py", title="Architectures")],
}

# Not in the navigation: a button of the sidebar leads there; on a phone a link, which closes the sidebar behind it.
OPEN = st.Page("views/open.py", title="Open a model", visibility="visible" if is_phone() else "hidden")

st.set_page_config(page_title="WISCA", page_icon=ICON, layout="wide", initial_sidebar_state=244)
theme = theme_of(st.context.theme.type)
focus.draw(theme)
st.logo(str(HERE / f"wordmark-{theme.name}.svg"), size="large")
state.carry()
page = st.navigation(GROUPS | {"": [OPEN]}, expanded=True)
state.begin(page.url_path)
try:
    tour.take()
    with st.sidebar, errors_as_messages("The sidebar cannot be shown"):
        sidebar.draw()
    tour.draw()
    try:
        page.run()
    except WiscaError as error:
        say("This page cannot be shown", str(error))
        if page is not OPEN:
            st.page_link(OPEN, label="Open another model")
finally:
    state.share()
    cached.set_aside_modules()
