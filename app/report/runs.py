"""Logged runs as a report: what the Runs page shows."""

from collections.abc import Sequence

import pandas as pd

from wisca_app.figures.chart import Chart
from wisca_app.figures.words import markdown_text
from wisca_app.report.document import Section, Table, document


def document_of(
    facts: str,
    title: str,
    said: Sequence[str],
    charts: Sequence[Chart],
    tables: Sequence[tuple[str, pd.DataFrame]],
    remarks: Sequence[str],
) -> bytes:
    """All texts but the charts' are foreign. ``said``: sentences, "" for none."""
    sections = [
        Section("Curves", parts=tuple(charts)),
        Section("Numbers", parts=tuple(Table(markdown_text(name), "", table) for name, table in tables)),
        Section("Read and not read", remarks=tuple(remarks)),
    ]
    return document(
        markdown_text(title),
        [one for one in sections if one.parts or one.remarks],
        facts=markdown_text(facts),
        said=[markdown_text(one) for one in said if one],
    )
