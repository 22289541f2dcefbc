"""What stands above a chart or a table: what it shows, its data as CSV, how to read it."""

import pandas as pd
import streamlit as st

from wisca_app.spreadsheet import csv_bytes


def heading(finding: str, how_to_read: str, table: pd.DataFrame, name: str) -> None:
    """Finding, download and, where it needs a word, how to read it. Both texts are ours, the table's names are not."""
    with st.container(gap="xxsmall"):
        with st.container(horizontal=True, horizontal_alignment="distribute", vertical_alignment="center", wrap=False):
            st.subheader(finding, anchor=False)
            st.download_button(
                "CSV",
                lambda: csv_bytes(table),
                f"{name}.csv",
                "text/csv",
                type="tertiary",
                on_click="ignore",
                key=f"{name} csv",
            )
        if how_to_read:
            st.markdown(f":small[:gray[{how_to_read}]]")
