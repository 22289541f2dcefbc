"""Sections of words, charts and tables as one HTML file that asks no network for anything.

plotly.js lies in it once, compressed; the figures follow the reader's light or dark theme, and print in light. Text is
the Markdown of the pages: ours, with foreign names escaped by ``words.markdown_text``.
"""

import gzip
import html
import json
import re
from base64 import b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
from plotly.basedatatypes import BaseFigure
from plotly.io.json import to_json_plotly
from plotly.offline import get_plotlyjs

from wisca_app.figures import words
from wisca_app.figures.chart import Chart
from wisca_app.figures.template import DARK, LIGHT, Theme

BEGINS = "<!doctype html><!-- wisca-report 1 -->"  # a file that is replaced begins so
MOST_ROWS = 300  # of a table
MOST_LETTERS = 240  # of a cell of text: a setting may be a whole dictionary

HERE = Path(__file__).parent
# Streamlit brings the fonts of the pages; without them the reader's own stand in.
FONTS = {"Source Sans": "SourceSansVF-Upright", "Source Serif": "SourceSerifVariable-Roman"}


@dataclass(frozen=True, eq=False)
class Table:
    heading: str
    how: str
    frame: pd.DataFrame


@dataclass(frozen=True, eq=False)
class Section:
    """``said``: paragraphs; ``remarks``: lines of a list whose text need not be ours, so it is shown letter by
    letter.
    """

    heading: str
    said: tuple[str, ...] = ()
    parts: tuple[Chart | Table, ...] = ()
    remarks: tuple[str, ...] = ()


def document(
    title: str,
    sections: Sequence[Section],
    *,
    facts: str = "",
    said: Sequence[str] = (),
    fonts: Sequence[str] = tuple(FONTS),
) -> bytes:
    """``facts``: the small line above the title; ``said``: what stands under it. UTF-8, beginning with BEGINS."""
    figures: list[dict] = []
    subject = html.unescape(_plain_words(facts)).split(", ")[0]
    body = [f'<p class="quiet">{inline(facts)}</p>' if facts else "", f"<h1>{inline(title)}</h1>"]
    body += [f"<p>{inline(one)}</p>" for one in said]
    for section in sections:
        body.append(f"<section><h2>{inline(section.heading)}</h2>" if section.heading else "<section>")
        body += [f"<p>{inline(one)}</p>" for one in section.said]
        for part in section.parts:
            body.append(_chart(part, figures, subject, title) if isinstance(part, Chart) else _table(part))
        if section.remarks:
            body.append(f"<ul>{''.join(f'<li>{html.escape(one)}</li>' for one in section.remarks)}</ul>")
        body.append("</section>")
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        # nothing is fetched, whatever a name in it may say
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; script-src 'unsafe-inline'; "
        "style-src 'unsafe-inline'; img-src data: blob:; font-src data:\">"
        '<meta name="color-scheme" content="light dark">'
        f"<title>{_plain_words(title)}</title>"
        f"<style>{''.join(map(_font, fonts))}{_colours()}{_file('report.css')}</style>"
    )
    script = ""
    if figures:
        script = (
            "<noscript><p>The charts need JavaScript; their numbers are in the tables.</p></noscript>"
            f'<script type="application/json" id="figures">{_json(figures)}</script>'
            f'<script type="text/plain" id="plotly">{_plotly()}</script><script>{_file("report.js")}</script>'
        )
    page = f'{BEGINS}<html lang="en"><head>{head}</head><body><main>{"".join(body)}</main>{script}</body></html>'
    return page.encode("utf-8", "backslashreplace")


def figure_document(chart: Chart, facts: str) -> bytes:
    """One chart to take away, with its title and the model it is of."""
    return document(chart.finding, [Section("", parts=(chart,))], facts=facts, fonts=("Source Sans",))


_COLOUR = re.compile(r":(\w+)\[([^\[\]]*)\]")


def inline(text: str) -> str:
    """The Markdown of our captions as HTML: colours, bold, italics, code; nothing else of it is read."""
    # escaped signs become private ones for as long as the patterns are looked for
    text = re.sub(r"\\([!-/:-@\[-`{-~])", lambda m: chr(0xE000 + ord(m[1])), text)
    text = html.escape(text, quote=False)
    while _COLOUR.search(text):
        text = _COLOUR.sub(r'<span class="\1">\2</span>', text)
    text = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", text)
    text = re.sub(r"\*(.+?)\*", r"<i>\1</i>", text)
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", text)
    text = text.replace("\u2060", "")  # keeps Streamlit from making links of addresses; nothing does so here
    return re.sub("[\ue000-\ue07f]", lambda m: html.escape(chr(ord(m[0]) - 0xE000)), text)


def _plain_words(text: str) -> str:
    """The words of a caption alone, as HTML."""
    return re.sub("<[^>]*>", "", inline(text))


def _chart(chart: Chart, figures: list[dict], subject: str, title: str) -> str:
    light, dark = (_plain(chart.draw(theme)) for theme in (LIGHT, DARK))
    figures.append(
        {
            **light,
            "dark": list(_differences(light, dark)),
            "title": _plain_words(chart.finding),
            "subject": html.escape(subject, quote=False),
            "name": chart.name,
            "drag": light["layout"].get("dragmode", False),
        }
    )
    alt = html.escape(html.unescape(_plain_words(chart.alt or chart.finding)), quote=True)
    height = light["layout"].get("height") or 400
    drawn = f'<div class="chart" role="img" aria-label="{alt}" style="height:{height}px"></div>'
    below = ""
    if len(chart.table):
        below = f"<details><summary>Its numbers</summary>{_rows(chart.table)}</details>"
    return f"<figure>{_heading('' if chart.finding == title else chart.finding, chart.how)}{drawn}{below}</figure>"


def _table(table: Table) -> str:
    return f"<figure>{_heading(table.heading, table.how)}{_rows(table.frame)}</figure>" if len(table.frame) else ""


def _heading(heading: str, how: str) -> str:
    return (f"<h3>{inline(heading)}</h3>" if heading else "") + (f'<p class="quiet">{inline(how)}</p>' if how else "")


def _rows(frame: pd.DataFrame) -> str:
    columns = [frame.iloc[:, i] for i in range(frame.shape[1])]  # two may bear one name
    numeric = [pd.api.types.is_numeric_dtype(column) for column in columns]
    # steps are whole numbers, also where a run that has none made their column one of floats
    columns = [column.astype("Int64") if _is_whole(column) else column for column in columns]

    def cell(value: object, is_number: bool) -> str:
        if value is None or value is pd.NA or value != value:
            text = ""
        else:
            text = words.digits(value) if isinstance(value, float) else str(value)
        if is_number:
            return f'<td class="n">{text}</td>'
        return f"<td>{html.escape(text if len(text) <= MOST_LETTERS else text[: MOST_LETTERS - 1] + '…')}</td>"

    rows = list(zip(*(column.head(MOST_ROWS) for column in columns)))
    lines = ("<tr>" + "".join(cell(value, n) for value, n in zip(row, numeric)) + "</tr>" for row in rows)
    names = "".join(f'<th scope="col">{html.escape(str(name))}</th>' for name in frame)
    more = f'<p class="quiet">and {len(frame) - len(rows):,} more rows</p>' if len(frame) > len(rows) else ""
    return (
        f'<div class="wide"><table><thead><tr>{names}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>{more}'
    )


def _is_whole(column: pd.Series) -> bool:
    """Whether a column of floats holds whole numbers."""
    found = column.dropna() if column.dtype.kind == "f" else column[:0]
    return len(found) > 0 and bool((found.abs() < 1e9).all()) and bool((found == found.round()).all())


def _plain(fig: BaseFigure) -> dict:
    """Data and layout as JSON's own values."""
    found = json.loads(to_json_plotly(fig.to_dict()))
    for trace in found["data"]:  # a browser draws about a dozen charts with WebGL, and no more
        trace["type"] = trace.get("type", "scatter").replace("scattergl", "scatter")
    return {"data": found["data"], "layout": found["layout"]}


def _differences(one: object, other: object, path: tuple = ()) -> Iterator[list]:
    """[path, value] wherever ``other`` is not as ``one``: the two themes differ in their colours alone."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        for name in one:
            yield from _differences(one[name], other[name], (*path, name))
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for i, (a, b) in enumerate(zip(one, other)):
            yield from _differences(a, b, (*path, i))
    elif one != other:
        yield [list(path), other]


def _json(value: object) -> str:
    """For a script element: a "<" in a name must not end it."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")


@lru_cache(maxsize=1)
def _plotly() -> str:
    return b64encode(gzip.compress(get_plotlyjs().encode(), 9, mtime=0)).decode()


@lru_cache
def _file(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


@lru_cache
def _font(family: str) -> str:
    spec = find_spec("streamlit")
    media = Path(spec.origin).parent / "static" / "static" / "media" if spec else HERE
    found = sorted(media.glob(f"{FONTS[family]}.*.woff2"))
    if not found:
        return ""
    data = b64encode(found[0].read_bytes()).decode()
    return (
        f'@font-face{{font-family:"{family}";font-weight:200 900;src:url(data:font/woff2;base64,{data}) '
        f'format("woff2")}}'
    )


def _colours() -> str:
    def of(theme: Theme) -> str:
        names = ("page", "sidebar", "ink", "text", "border")
        roles = {colour: theme.word[role] for role, colour in words.MARKDOWN_COLOURS.items()}
        values = {name: getattr(theme, name) for name in names} | roles
        return ":root{" + ";".join(f"--{name}:{value}" for name, value in values.items()) + "}"

    return f"{of(LIGHT)}@media screen and (prefers-color-scheme: dark){{{of(DARK)}}}"
