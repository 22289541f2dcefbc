"""A chart or a table with what stands above it: what it shows, how to read it, its data and itself to take away; and
numbers in a quiet row.
"""

import re
from dataclasses import replace

import pandas as pd
import streamlit as st
from plotly.basedatatypes import BaseFigure

from wisca_app import state
from wisca_app.figures import words
from wisca_app.figures.chart import Chart
from wisca_app.figures.template import Theme
from wisca_app.open_model import title
from wisca_app.parts import is_phone, quiet, take_away
from wisca_app.report.document import figure_document
from wisca_core.spreadsheet import csv_bytes


def show(chart: Chart, theme: Theme, key: str, fig: BaseFigure | None = None, **clicks) -> None:
    """The chart under its heading. ``key``: of the widget. ``fig``: where it is drawn already. ``clicks``: of
    st.plotly_chart, where a click in it selects something.
    """
    heading(chart.finding, chart.how, chart.table, chart.name, chart.tip, chart.of, chart)
    bare(chart, theme, key, fig, **clicks)


def bare(chart: Chart, theme: Theme, key: str, fig: BaseFigure | None = None, **clicks) -> None:
    """The chart alone."""
    config = chart.config | {"displayModeBar": False} if is_phone() else chart.config  # it would stand over the chart
    saved = chart.config["toImageButtonOptions"] | {"filename": telling_name(chart.name, chart.of)}
    st.plotly_chart(
        fig or chart.draw(theme),
        theme=None,
        config=config | {"toImageButtonOptions": saved},
        key=key,
        alt=chart.alt or f"{chart.finding}.",
        **clicks,
    )


def heading(
    finding: str,
    how_to_read: str,
    table: pd.DataFrame,
    name: str,
    tip: str = "",
    of: str = "",
    chart: Chart | None = None,
) -> None:
    """Finding, downloads and, where it needs a word, how to read it. Both texts are ours, the table's names are not.
    ``tip``: what stands behind a question mark. ``of``: what it is about, "" for the open model. ``chart``: what is
    below, to take away.
    """
    with st.container(gap="xxsmall"):
        with st.container(horizontal=True, horizontal_alignment="distribute", vertical_alignment="center", wrap=False):
            st.subheader(finding, anchor=False, help=tip or None)
            with st.container(horizontal=True, gap="xsmall", wrap=False, width="content"):
                csv(table, name, of)
                if chart is not None:
                    _page(chart)
        if how_to_read:
            quiet(how_to_read)


def csv(table: pd.DataFrame, name: str, of: str = "") -> None:
    """The download of a table, under a name that tells it and what it is about; made when it is asked for."""
    take_away("CSV", lambda: csv_bytes(table), f"{telling_name(name, of)}.csv", f"{name} csv")


def _page(chart: Chart) -> None:
    """The download of a chart as a page of its own, with what it is about."""
    name = telling_name(chart.name, chart.of)
    saved, model = replace(chart, name=name), state.get("model")
    take_away(
        "HTML",
        lambda: figure_document(saved, words.markdown_text(chart.of or title(model))),
        f"{name}.html",
        f"{chart.name} html",
        "This chart as a file that needs no network, light and dark; from there as PNG or SVG, with its title.",
    )


def telling_name(what: str, of: str = "") -> str:
    """ "gqa-docs-checkpoint-3600-ratios": the open model (or ``of``) and what the file holds, fit for a file name."""
    model = of or "-".join(state.get("model").removeprefix("hub:").rstrip("/").split("/")[-2:])
    return re.sub(r"[^\w.-]+", "-", f"{model}-{what}", flags=re.ASCII).strip("-.")[-120:]


def number(label: str, value: str, help: str = "", width: int = 110) -> None:
    """A quiet number; what it means stands behind the question mark, which is called after the label."""
    st.metric(label, value, width=width, help=help or None)
