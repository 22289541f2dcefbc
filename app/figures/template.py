"""Colours, type and axes that every figure shares.

The interface is ink on paper; colour means a matrix role and nothing else. Before is a ring, an outline or dotted;
after is a dot or filled. No streamlit here: a figure is made from a table and a Theme.
"""

import math
from base64 import b64encode
from dataclasses import dataclass
from functools import lru_cache, partialmethod

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.basedatatypes import BaseFigure

from wisca_app.figures import words

FONT = "Source Sans, sans-serif"
OCTAVES = 4.5  # half the widest span of a ratio's colours: with g = 6, less would hide all structure
# Of points that can be clicked: plotly would fade those that are not.
UNFADED = dict(selected=dict(marker=dict(opacity=1)), unselected=dict(marker=dict(opacity=1)))

# Modebar on hover with one button. toImage saves PNG at twice the size.
CONFIG = {"displaylogo": False, "modeBarButtons": [["toImage"]], "toImageButtonOptions": {"format": "png", "scale": 2}}


@dataclass(frozen=True)
class Theme:
    """Colours of one mode, "#RRGGBB". ``role``, ``end`` and ``word`` by role (q k v o up down a b); ``end``: of a
    diverging scale; ``word``: of words in the role's colour, with the contrast that text needs (those of q k v o stand
    in .streamlit/config.toml too).
    """

    name: str  # light | dark
    role: dict[str, str]
    end: dict[str, str]
    word: dict[str, str]
    page: str
    middle: str  # of a diverging scale: balance fades into the page
    sidebar: str
    ink: str
    text: str
    quiet: str
    grid: str
    border: str

    def __hash__(self) -> int:
        return hash(self.name)


def _theme(name: str, roles: dict[str, tuple[str, str, str]], **colours: str) -> Theme:
    """``roles``: role -> its colour, that of the end of a scale, that of words."""
    role, end, word = ({key: of[i] for key, of in roles.items()} for i in range(3))
    return Theme(name, role, end, word, **colours)


LIGHT = _theme(
    "light",
    {
        "q": ("#2158A4", "#12366B", "#2158A4"),
        "k": ("#C57924", "#7E4706", "#96560F"),
        "v": ("#0A9686", "#04584F", "#08766A"),
        "o": ("#79375A", "#4B1D36", "#79375A"),
        "up": ("#4A5BB5", "#27347D", "#4A5BB5"),
        "down": ("#9C7A10", "#5E4800", "#7F630B"),
        "a": ("#17808F", "#0A4A54", "#12707D"),
        "b": ("#A8482F", "#652414", "#A8482F"),
    },
    page="#FCFBF9",
    middle="#EFECE6",
    sidebar="#F4F2EE",
    ink="#1D222B",
    text="#5C6069",
    quiet="#868990",
    grid="#EAE7E1",
    border="#D9D5CC",
)
DARK = _theme(
    "dark",
    {
        "q": ("#6AA3F5", "#A9CBFF", "#8AB6F8"),
        "k": ("#E6902B", "#FFC27A", "#EDA654"),
        "v": ("#45D3B7", "#9BF2DF", "#62DAC2"),
        "o": ("#BC75A3", "#E3A0CC", "#CF95BB"),
        "up": ("#8C9BF0", "#BFC8FF", "#8C9BF0"),
        "down": ("#D9B33C", "#F5DC8A", "#D9B33C"),
        "a": ("#4FC3D2", "#A5E9F2", "#4FC3D2"),
        "b": ("#E58468", "#F8BFAC", "#E58468"),
    },
    page="#14161A",
    middle="#22262C",
    sidebar="#1A1D22",
    ink="#ECEAE5",
    text="#A7A9AE",
    quiet="#6E727A",
    grid="#262A31",
    border="#3A3F48",
)


def theme_of(kind: str | None) -> Theme:
    """Of ``st.context.theme.type``: "dark" or anything else."""
    return DARK if kind == "dark" else LIGHT


def legible(colour: str, theme: Theme) -> str:
    """The colour for words: of a role or the quiet line the one that has the contrast of text."""
    words_of = {theme.role[role]: theme.word[role] for role in theme.role} | {theme.quiet: theme.text}
    return words_of.get(colour, colour)


def blend(one: str, other: str, part: float) -> str:
    """``part`` of ``other`` in ``one``, both "#RRGGBB"; opaque, since some fills drop alpha."""
    mixed = (round(a + (b - a) * part) for a, b in zip(_rgb(one), _rgb(other)))
    return "#" + "".join(f"{value:02X}" for value in mixed)


def _rgb(colour: str) -> tuple[int, int, int]:
    return tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))


def see_through(colour: str, alpha: float) -> str:
    """The colour with an alpha, for line and marker colours."""
    return "rgba({},{},{},{:g})".format(*_rgb(colour), alpha)


def scale(theme: Theme, left: str, right: str) -> list[tuple[float, str]]:
    """Diverging colours over -OCTAVES..OCTAVES: below the middle the right role is heavier, above it the left one."""

    def half(role: str) -> str:
        return blend(theme.middle, theme.role[role], 0.5)

    return [
        (0.0, theme.end[right]),
        (0.14, theme.role[right]),
        (0.28, half(right)),
        (0.5, theme.middle),
        (0.72, half(left)),
        (0.86, theme.role[left]),
        (1.0, theme.end[left]),
    ]


@lru_cache(maxsize=2)
def dress(theme: Theme) -> dict:
    """This project's dress as a plotly template; not to be changed."""
    axis = dict(
        fixedrange=True,
        zeroline=False,
        showline=False,
        ticks="",
        ticklen=4,
        gridcolor=theme.grid,
        gridwidth=1,
        automargin=False,
        tickfont=dict(size=12, color=theme.text),
        title=dict(font=dict(size=12, color=theme.text), standoff=12),
    )
    return dict(
        layout=dict(
            font=dict(family=FONT, size=13, color=theme.ink),
            paper_bgcolor="rgba(0,0,0,0)",
            plot_bgcolor="rgba(0,0,0,0)",
            xaxis=axis | dict(showgrid=False, ticklabelstandoff=4),
            yaxis=axis,
            dragmode=False,
            showlegend=False,
            hovermode="closest",
            hoverlabel=dict(
                bgcolor=theme.sidebar,
                bordercolor=theme.border,
                align="left",
                namelength=-1,
                font=dict(family=FONT, size=13, color=theme.ink),
            ),
            annotationdefaults=dict(showarrow=False, font=dict(size=12, color=theme.text)),
        )
    )


def _layout(theme: Theme, height: int) -> dict:
    return dict(template=dress(theme), height=height, margin=dict(l=44, r=12, t=30, b=40))


def figure(theme: Theme, height: int, **layout) -> go.Figure:
    """An empty plotly figure in this project's dress; ``layout`` are further keys of plotly's layout."""
    return go.Figure(layout=_layout(theme, height) | layout)


def drawing(theme: Theme, height: int, **layout) -> "Drawing":
    """The same as plain dictionaries, see ``Drawing``."""
    fig = Drawing()
    fig.update_layout(**_layout(theme, height), **layout)
    return fig


class Drawing(BaseFigure):
    """A figure as the plain dictionaries that go to the browser.

    plotly checks each of the thousands of values it is given: 140 ms for a chart of ours, which tests do once for all.
    Streamlit checks a dictionary in the same way, but takes a BaseFigure at its word. Keys may be joined by an
    underscore, as in plotly (``line_width``); numpy arrays go as typed arrays.
    """

    def __init__(self) -> None:  # deliberately not the parent's, which sets the checking up
        self._plain = {"data": [], "layout": {}}

    @property
    def data(self) -> list[dict]:
        return self._plain["data"]

    @property
    def layout(self) -> dict:
        return self._plain["layout"]

    def to_dict(self) -> dict:
        return self._plain

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = object.__hash__

    def _add(self, kind: str, /, **values) -> None:
        self.data.append({"type": kind, **_plain(values)})

    add_scatter = partialmethod(_add, "scatter")
    add_scattergl = partialmethod(_add, "scattergl")
    add_bar = partialmethod(_add, "bar")
    add_heatmap = partialmethod(_add, "heatmap")
    add_contour = partialmethod(_add, "contour")

    def add_annotation(self, **values) -> None:
        self.layout.setdefault("annotations", []).append(_plain(values))

    def add_shape(self, **values) -> None:
        self.layout.setdefault("shapes", []).append(_plain(values))

    def update_layout(self, **values) -> None:
        _merge(self.layout, {k: v if k == "template" else _plain({k: v})[_stem(k)] for k, v in values.items()})


_WHOLE = {"paper_bgcolor", "plot_bgcolor"}  # the only names in plotly with an underscore of their own


def _stem(key: str) -> str:
    return key if key in _WHOLE else key.split("_")[0]


def _plain(values: object) -> object:
    """Dictionaries with joined keys taken apart, arrays as plotly.js reads them."""
    if isinstance(values, dict):
        out: dict = {}
        for key, value in values.items():
            if value is None:
                continue
            stem = _stem(key)
            part = _plain(value) if stem == key else _plain({key[len(stem) + 1 :]: value})
            if isinstance(part, dict) and isinstance(out.get(stem), dict):
                _merge(out[stem], part)
            else:
                out[stem] = part
        return out
    if isinstance(values, np.ndarray | pd.Series):
        return _typed_array(np.asarray(values))
    if isinstance(values, list | tuple):
        return [_plain(value) for value in values]
    return values.item() if isinstance(values, np.generic) else values


def _typed_array(values: np.ndarray) -> object:
    """A typed array (its bytes in base64), a list where it holds no numbers."""
    if values.dtype.kind not in "iuf":
        return values.tolist()
    if values.dtype.kind in "iu" and values.dtype.itemsize == 8:
        values = values.astype(np.int32)
    values = np.ascontiguousarray(values)
    out = {"dtype": values.dtype.str[1:], "bdata": b64encode(values).decode()}
    return out if values.ndim == 1 else out | {"shape": ", ".join(map(str, values.shape))}


def _merge(into: dict, values: dict) -> None:
    for key, value in values.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


def unit(
    fig: "go.Figure | Drawing", text: str, axis: str = "", dx: int = -40, dy: int = 8, across: str | None = None, **more
) -> None:
    """The y axis' unit, level above the axis (``axis``: "" or "2", "3", ...), instead of a turned title. ``across``:
    its x axis, where that is another number's. ``more``: of plotly's annotation.
    """
    fig.add_annotation(
        text=text,
        xref=f"x{axis if across is None else across} domain",
        yref=f"y{axis} domain",
        x=0,
        y=1,
        xanchor="left",
        yanchor="bottom",
        xshift=dx,
        yshift=dy,
        **more,
    )


def level(fig: "go.Figure | Drawing", y: float, axis: str = "", **line) -> None:
    """A line across the whole plot at ``y``; ``line``: of plotly's."""
    fig.add_shape(type="line", xref="x domain", yref=f"y{axis}", x0=0, x1=1, y0=y, y1=y, line=line)


def area(x: np.ndarray | pd.Series, low: np.ndarray | pd.Series, high: np.ndarray | pd.Series, colour: str) -> dict:
    """The area between two curves as plotly's words for a scatter: it has no edge, no name and no hover text."""
    return dict(
        x=np.concatenate([x, x[::-1]]),
        y=np.concatenate([high, low[::-1]]),
        mode="lines",
        line=dict(width=0),
        fill="toself",
        fillcolor=colour,
        hoverinfo="skip",
        showlegend=False,
    )


def colour_bar(length: int, **more) -> dict:
    """Plotly's words for a level colour bar at the top right, ``length`` px long; ``more``: of its ticks."""
    return dict(
        orientation="h",
        x=1,
        xanchor="right",
        yref="container",
        y=1,
        yanchor="top",
        xpad=0,
        lenmode="pixels",
        len=length,
        thickness=8,
        outlinewidth=0,
        ticks="",
        **more,
    )


def log_axis(low: float, high: float, most: int = 6) -> dict:
    """Plotly's words for a log axis from ``low`` to ``high``, both positive, with the ticks of ``log_ticks``."""
    ticks, labels = log_ticks(low, high, most)
    return dict(type="log", range=[math.log10(low), math.log10(high)], tickvals=ticks, ticktext=labels)


def log_ticks(low: float, high: float, most: int = 6) -> tuple[list[float], list[str]]:
    """Ticks between two positive values: 1, 3, 10, 30, ..., closer where that gives fewer than three, and further apart
    where it gives more than ``most``. Within a decade the low end has one too: a loss ends there."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for steps in ((1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8)):
        values = [m * 10.0**p for p in range(first, last + 1) for m in steps if low <= m * 10.0**p <= high]
        if len(values) >= 3:
            break
    else:  # a small part of a decade: even steps of 1, 2 or 5
        rough = (high - low) / 5
        unit_step = 10.0 ** math.floor(math.log10(rough))
        step = next(m * unit_step for m in (1, 2, 5, 10) if m * unit_step >= rough)
        values = [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
    if len(values) > most:
        step = math.ceil((last - first) / most)
        decades = [10.0**p for p in range(first, last + 1, step) if low <= 10.0**p <= high]
        values = decades if len(decades) > 1 else values[:: math.ceil(len(values) / most)]
    if high < 10 * low:
        values = _with_low_end(values, low, math.log10(high / low))
    return values, [words.axis_number(round(v, 12 - math.floor(math.log10(v)))) for v in values]


def _with_low_end(values: list[float], low: float, span: float) -> list[float]:
    """``values``, where they leave a sixth of the axis free above ``low`` with a round one near it; others that would
    then crowd give way. ``span``: of the axis, log10.
    """
    if values and math.log10(values[0] / low) <= span / 6:
        return values
    decade, highest = 10.0 ** math.floor(math.log10(low)), low * 10 ** (span / 12)
    # the roundest first: a multiple of 1, 0.5, 0.2, 0.1, 0.05 ... of the decade
    steps = (m * decade * 10.0**-p for p in range(12) for m in (1, 0.5, 0.2))
    first = next((tick for step in steps if (tick := math.ceil(low / step) * step) <= highest), low)
    return [first, *(v for v in values if math.log10(v / first) > span / 8)]


def octave_ticks(low: float, high: float, most: int = 6) -> tuple[list[int], list[str]]:
    """Ticks of a log2 ratio axis between two octaves: whole powers, balance (0) among them where it is inside."""
    first, last = math.ceil(low - 1e-9), math.floor(high + 1e-9)
    step = max(1, math.ceil((last - first + 1) / most))
    values = [power for power in range(first, last + 1) if power % step == 0]
    return values, [words.octave(power) for power in values]


def layer_ticks(layers: list[int], most: int = 10) -> list[int]:
    """Layer numbers worth a tick: at even steps from the first, and the last where it does not crowd."""
    if len(layers) <= most:
        return list(layers)
    step = next(
        s for s in (2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 25, 50, 100, 200, 500, 1000, 10**9) if len(layers) / s <= most
    )
    ticks = list(layers[::step])
    return ticks if len(layers) - 1 - (len(ticks) - 1) * step < step * 0.6 else [*ticks, layers[-1]]
