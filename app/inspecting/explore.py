"""Everything on Inspect that a control changes: the map with its cell, and the charts behind it."""

import streamlit as st

from wisca_app import state
from wisca_app.figures.template import theme_of
from wisca_app.inspecting import beside, charts, controls, coverage, head_detail, overview, panel, selection
from wisca_app.inspecting.drawn_pair import drawn_pair
from wisca_app.parts import part
from wisca_core.model import Model


@part
def draw(model: Model) -> None:
    if state.get("pair") == "mlp" and not any(site.key.pair == "mlp" for site in model.sites.sites):
        state.rerun()  # its weights have to be measured first, which the whole page waits for
    theme = theme_of(st.context.theme.type)
    view = drawn_pair(model)
    selected = selection.settle(view)
    controls.draw(view)
    left, right = st.columns([2.13, 1], gap="medium")
    with left:
        charts.draw_map(view, theme, selected)
    with right:
        panel.draw(view, theme, selected)
    overview.numbers(model)
    beside.control()
    beside.draw(view, theme)
    st.space("small")
    left, right = st.columns([1.1, 1], gap="medium")
    with left:
        charts.draw_balance(view, theme, selected)
    with right:
        charts.draw_most_unbalanced(view)
        coverage.draw(view)
    st.space("small")
    charts.draw_depth(view, theme)
    st.divider()
    head_detail.draw(view, theme, selected)
