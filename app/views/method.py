"""Method: why would this work, what is it for a training, and what is exact about it?"""

import streamlit as st

from wisca_app.figures.template import theme_of
from wisca_app.method import exactness, identity, sources, toy

theme = theme_of(st.context.theme.type)
with st.container(gap="xxsmall"):
    st.title("Same function, different slope: why balance might help.", anchor=False)
    st.markdown(
        "Two numbers, Q and K, are trained so that their product hits C. Every point of the valley QK = C is the "
        "*same* "
        "model, yet the ground around it is not the same: where |Q| = |K| the contours are widest apart."
    )
toy.landscape(theme)
st.space("small")
with st.container(gap="xxsmall"):
    st.header("Balancing is the same training at other learning rates.", anchor="rates")
    st.markdown(
        "Keep a matrix as *c*W and carry its Adam state along: its training is Adam on W at the rate lr/*c*. Balancing "
        "chooses *c*, so it chooses rates. No weight needs to be touched."
    )
identity.draw(theme)
identity.optimisers()
st.space("small")
with st.container(gap="xxsmall"):
    st.header("What is exact, and what is tied.", anchor="exact")
    st.markdown(
        "A factor on one side and its inverse on the other leaves the function only where nothing stands between."
    )
exactness.head()
exactness.rules()
st.space("small")
left, right = st.columns(2, gap="medium")
with left:
    toy.draw_group_sizes(theme)
with right:
    sources.paper()
st.space("small")
sources.terms()
sources.sources()
