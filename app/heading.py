"""What stands above a chart or a table: what it shows, its data as CSV, how to read it; and numbers in a quiet row."""

import re

import pandas as pd
import streamlit as st

from wisca_app import state
from wisca_core.spreadsheet import csv_bytes


def heading(finding: str, how_to_read: str, table: pd.DataFrame, name: str, tip: str = "") -> None:
    """Finding, download and, where it needs a word, how to read it. Both texts are ours, the table's names are not.
    ``tip``: what stands behind a question mark.
    """
    with st.container(gap="xxsmall"):
        with st.container(horizontal=True, horizontal_alignment="distribute", vertical_alignment="center", wrap=False):
            st.subheader(finding, anchor=False, help=tip or None)
            csv(table, name)
        if how_to_read:
            st.markdown(f":small[:gray[{how_to_read}]]")


def csv(table: pd.DataFrame, name: str) -> None:
    """The download of a table, under a name that tells it and the model; made when it is asked for."""
    st.download_button(
        "CSV",
        lambda: csv_bytes(table),
        f"{telling_name(name)}.csv",
        "text/csv",
        type="tertiary",
        on_click="ignore",
        key=f"{name} csv",
    )


def telling_name(what: str) -> str:
    """ "gqa-docs-checkpoint-3600-ratios": the open model and what the file holds, fit for a file name."""
    model = "-".join(state.get("model").removeprefix("hub:").rstrip("/").split("/")[-2:])
    return re.sub(r"[^\w.-]+", "-", f"{model}-{what}", flags=re.ASCII).strip("-.")[-120:]


def number(label: str, value: str, help: str = "", width: int = 110) -> None:
    """A quiet number: its label in the second text colour, what it means behind the question mark."""
    st.metric(f":gray[{label}]", value, width=width, help=help or None)
