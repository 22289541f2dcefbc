"""Runs: what do my logs say, and what happened in the weights meanwhile?"""

import streamlit as st

from wisca_app import state
from wisca_app.figures import words
from wisca_app.figures.template import theme_of
from wisca_app.heading import telling_name
from wisca_app.messages import errors_as_messages
from wisca_app.parts import quiet, take_away
from wisca_app.reading import checkpoint_ratios, curves, ends, histograms, opening, run_list
from wisca_app.reading.drawn_runs import drawn_runs
from wisca_app.report import runs

theme = theme_of(st.context.theme.type)
opening.take_asked()
view, above = None, st.container()
with errors_as_messages("These logs cannot be read"):
    view = drawn_runs()
if view is None:
    above.title("Open the logs of a training.", anchor=False)
    opening.ask(is_open=True)
    state.stop()
quiet(words.markdown_text(opening.facts(view)))
title, sentence = ends.headline(view)
st.title(words.markdown_text(title), anchor=False)
st.markdown(words.markdown_text(sentence))
opening.ask()
opening.follow(view)
st.space("small")
run_list.draw(view, theme)
charts, tables, compared, settings = [], [], "", None
if view.metrics:
    curves.controls(view)
    st.space("small")
    charts = curves.draw(view, theme)
    st.space("small")
    tables = ends.draw(view)
    compared = ends.pairs(view)
    settings = ends.settings(view)
st.space("small")
charts += histograms.draw(view, theme)
lines = opening.remarks(view)
opening.say_remarks(lines)
st.divider()
charts += checkpoint_ratios.draw(view, theme)
st.divider()
if settings is not None:
    tables.append(("Settings that differ", settings))
with st.container(horizontal=True, gap="small"):
    opening.download(view)
    take_away(
        "This page as HTML",
        lambda: runs.document_of(opening.facts(view), title, [sentence, compared], charts, tables, lines),
        f"{telling_name('runs', view.short)}.html",
        "runs html",
        "Curves and tables as they are now, in one file that needs no network, light and dark.",
        type="secondary",
    )
