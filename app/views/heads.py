"""Heads: what does each head compute, and which of its numbers would a rescale move?"""

import streamlit as st

from wisca_app.figures import words
from wisca_app.figures.template import theme_of
from wisca_app.heads import beside, charts, matrices, opening, table
from wisca_app.heads.drawn_heads import drawn_heads
from wisca_app.parts import quiet

model = opening.ready_heads()
view = drawn_heads(model)
theme = theme_of(st.context.theme.type)
quiet(words.markdown_text(charts.facts(view)))
charts.draw_title(view)
with st.container(horizontal=True, horizontal_alignment="distribute", vertical_alignment="center"):
    charts.controls(view)
    beside.control(view)
left, right = st.columns([2.13, 1], gap="medium")
with left:
    charts.draw_map(view, theme)
with right:
    charts.draw_panel(view, theme)
beside.draw(view, theme)
st.space("small")
left, right = st.columns(2, gap="medium")
with left:
    charts.draw_scatter(view, theme)
with right:
    charts.draw_patterns(view)
st.space("small")
table.draw(view)
st.space("small")
beside.draw_steps(view, theme)
matrices.draw(view)
opening.draw_left(view)
