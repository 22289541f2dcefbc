"""Inspect: is this model out of balance, and where?"""

import streamlit as st

from wisca_app import state
from wisca_app.figures import words
from wisca_app.figures.template import theme_of
from wisca_app.inspecting import beside, charts, coverage, head_detail, overview, selection
from wisca_app.inspecting.shown import shown
from wisca_app.open_model import ready

model = ready([state.get("pair")])
st.markdown(f":small[:gray[{words.markdown_text(overview.facts(model))}]]")
if model.refusal or not model.sites.sites:
    coverage.draw_refused(model)
    st.stop()

theme = theme_of(st.context.theme.type)
view = shown(model)
selected = selection.settle(view)
overview.draw(view)
st.space("small")
overview.controls(view)
beside.draw(view, theme)
st.space("small")
charts.draw_map(view, theme, selected)
st.space("small")
left, right = st.columns([1.1, 1], gap="large")
with left:
    charts.draw_balance(view, theme, selected)
with right:
    charts.draw_furthest(view)
    coverage.draw(view)
st.space("small")
charts.draw_depth(view, theme)
st.divider()
head_detail.draw(view, theme, selected)
