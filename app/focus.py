"""Where the keyboard is: an outline in ink round whatever has its focus, on every page. Streamlit's own is a faint
tint.
"""

import streamlit as st

from wisca_app.figures.template import Theme

# What cannot carry the outline itself: an input, which is cut off by its field or has no size, so its field, its label
# or the thumb of its slider does; a scrolling region, outside which nothing is seen of one. A row whose words stand a
# little over its edge is a scrolling region to the browser, and a stop of the Tab key where nothing can be done.
STYLE = """
:focus-visible,
:has(> :is(input, textarea):focus-visible),
div:has(> div > input[type="range"]:focus-visible),
label:has(input:focus-visible) { outline: 2px solid INK !important; outline-offset: 2px !important; }
:is(input, textarea):focus-visible { outline: none !important; }
[data-testid="stMain"]:focus-visible { outline-offset: -2px !important; }
[data-testid="stLayoutWrapper"] > [data-testid="stHorizontalBlock"] { overflow: visible; }
"""


def draw(theme: Theme) -> None:
    """The style of the whole page; takes no room in it."""
    st.html(f"<style>{STYLE.replace('INK', theme.ink)}</style>")
