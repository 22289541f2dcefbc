"""A page of curves and tables as one HTML file that needs no network and runs nothing but plotly."""

import html
from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go
import plotly.io as pio

from wisca_app.figures.template import CONFIG, Theme

_STYLE = """
body {{ font-family: "Source Sans 3", "Source Sans Pro", "Helvetica Neue", Arial, sans-serif;
       color: {ink}; background: {page}; max-width: 1000px;
       margin: 2rem auto; padding: 0 1rem; line-height: 1.45; }}
h1, h2 {{ font-family: Georgia, serif; font-weight: 500; }}
table {{ border-collapse: collapse; font-size: 0.9rem; display: block; overflow-x: auto; }}
th, td {{ border-bottom: 1px solid {border}; padding: 0.25rem 0.7rem; text-align: left;
          font-variant-numeric: tabular-nums; }}
p.quiet, li {{ color: {text}; }}
"""


def report(
    title: str,
    sentences: Sequence[str],
    figures: Sequence[tuple[str, str, go.Figure]],
    tables: Sequence[tuple[str, pd.DataFrame]],
    remarks: Sequence[str],
    theme: Theme,
) -> bytes:
    """``figures``: (heading, how to read it, figure); ``tables``: (heading, table). All text is escaped. UTF-8."""
    parts = [f"<h1>{html.escape(title)}</h1>", *(f"<p>{html.escape(one)}</p>" for one in sentences)]
    for i, (heading, how, fig) in enumerate(figures):
        drawn = pio.to_html(fig, full_html=False, include_plotlyjs=i == 0, config=CONFIG, default_width="100%")
        parts += [f"<h2>{html.escape(heading)}</h2>", f'<p class="quiet">{html.escape(how)}</p>', drawn]
    for heading, table in tables:
        if len(table):
            parts += [f"<h2>{html.escape(heading)}</h2>", table.to_html(index=False, escape=True, border=0, na_rep="")]
    if remarks:
        listed = "".join(f"<li>{html.escape(one)}</li>" for one in remarks)
        parts += ["<h2>Read and not read</h2>", f"<ul>{listed}</ul>"]
    style = _STYLE.format(ink=theme.ink, page=theme.page, border=theme.border, text=theme.text)
    named = f"<title>{html.escape(title)}</title><style>{style}</style>"
    head = f'<!doctype html><html lang="en"><head><meta charset="utf-8">{named}</head>'
    return f"{head}<body>{''.join(parts)}</body></html>".encode("utf-8", "backslashreplace")
