"""Ratios over layers and KV groups as a map, with each whole layer below it on the same axis."""

import numpy as np
import pandas as pd

from wisca_app.figures import words
from wisca_app.figures.template import (
    OCTAVES,
    Drawing,
    Theme,
    colour_bar,
    drawing,
    layer_ticks,
    level,
    octave_ticks,
    scale,
    see_through,
    unit,
)
from wisca_core.pairs import SIDES

# px: above the map (colour bar), a strip's heading, below, the layers' panel
TOP, BETWEEN, BOTTOM, LINE = 36, 36, 42, 118
BAR = 190  # px, length of the colour bar
ROW, LEAST_ROW, MOST_STRIP = 36.0, 4.0, 240.0
# Ratios that the ends of the colours may stand for: the least that holds every cell is used, since on the widest one a
# model that is nearly level would show nothing.
ENDS = (1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0, 16.0)
MANY = 600  # cells from which the gaps between them are dropped

VIEWS = {"size": "Size divided out", "stored": "As stored", "after": "After"}


def heatmap(
    groups: pd.DataFrame,
    layers: pd.DataFrame,
    *,
    pair: str,
    n_layers: int,
    theme: Theme,
    view: str = "stored",
    after: bool = True,
    unit_name: str = "KV group",
    selected: tuple[int, int] | None = None,
    lanes: tuple[str, ...] = (),
) -> Drawing:
    """Cells of one pair in one ``view`` (a name of VIEWS), and the ratio of each layer as a whole below them.

    ``groups``: rows of one pair, columns layer, group, log2_ratio, log2_size, log2_after (octaves, left over right),
    left_rate and right_rate (factors on Adam's rate). ``layers``: the octaves without group, one row a layer.
    ``after``: whether there is one. ``unit_name``: what a row is. ``selected``: (layer, group). ``lanes``: names of the
    rows, where they have names instead of numbers. A cell without a ratio bears a cross; a (layer, group) without a row
    stays blank. Each cell's overlay point carries customdata [layer, group, ...], since plotly reports no click on a
    heatmap.
    """
    n_groups = int(groups["group"].max()) + 1 if len(groups) else 1
    octaves = in_view(groups, view)
    span = span_of(octaves)
    strip = n_groups * row_height(n_groups, bool(lanes))
    height = TOP + strip + BETWEEN + LINE + BOTTOM
    inner = height - TOP - BOTTOM
    fig = drawing(theme, round(height), hoverdistance=-1, clickmode="event+select")
    fig.update_layout(margin=dict(t=TOP, b=BOTTOM, l=_left(lanes), r=4))
    _strip(
        fig,
        "",
        (1 - strip / inner, 1.0),
        groups,
        octaves,
        n_layers,
        n_groups,
        _hovers(groups, octaves, view, pair, unit_name, bool(lanes)),
        theme,
        span,
        lanes,
        selected,
    )
    _corner(fig, "adapted part" if lanes else "" if unit_name == "layer" else unit_name, 1.0)
    _layers(fig, "2", (0, LINE / inner), layers, pair, theme, after)
    _finish(fig, "2", n_layers, pair, theme, span)
    return fig


def beside_maps(
    strips: list[tuple[str, pd.DataFrame, np.ndarray]],
    *,
    pair: str,
    n_layers: int,
    theme: Theme,
    unit_name: str,
    lanes: tuple[str, ...] = (),
) -> Drawing:
    """Maps of several models (and their difference) on one axis and one scale: (heading, groups, octaves) each.
    Headings are foreign text.
    """
    n_groups = [int(groups["group"].max()) + 1 if len(groups) else 1 for _, groups, _ in strips]
    span = span_of(np.concatenate([octaves for _, _, octaves in strips]))
    heights = [n * min(row_height(n, bool(lanes)), 24.0) for n in n_groups]
    height = TOP + 16 + sum(heights) + BETWEEN * (len(strips) - 1) + BOTTOM
    inner = height - TOP - 16 - BOTTOM
    fig = drawing(theme, round(height), hoverdistance=-1)
    fig.update_layout(margin=dict(t=TOP + 16, b=BOTTOM, l=_left(lanes), r=4))
    top = 1.0
    for number, ((heading, groups, octaves), size, n) in enumerate(zip(strips, heights, n_groups)):
        axis = "" if number == 0 else str(number + 1)
        domain = (max(0.0, top - size / inner), top)
        hovers = _hovers(groups, octaves, "", pair, unit_name, bool(lanes))
        _strip(fig, axis, domain, groups, octaves, n_layers, n, hovers, theme, span, lanes, None)
        _corner(fig, heading, top, theme.ink)
        top -= (size + BETWEEN) / inner
    _finish(fig, "" if len(strips) == 1 else str(len(strips)), n_layers, pair, theme, span, above=20)
    return fig


def in_view(groups: pd.DataFrame, view: str) -> np.ndarray:
    """The octaves that are drawn."""
    if view == "after":
        return groups["log2_after"].to_numpy(dtype=float)
    octaves = groups["log2_ratio"].to_numpy(dtype=float)
    return octaves - groups["log2_size"].to_numpy(dtype=float) if view == "size" else octaves


def row_height(n_groups: int, named: bool) -> float:
    """Pixels of one row."""
    return 22.0 if named else min(ROW, max(LEAST_ROW, MOST_STRIP / n_groups))


def has_size(groups: pd.DataFrame) -> bool:
    """Whether size explains a part of the ratio, so that a map without it says something."""
    octaves = groups["log2_size"].to_numpy(dtype=float)
    return bool(len(octaves) and np.isfinite(octaves).all() and (np.abs(octaves) > 1e-9).any())


def span_of(octaves: np.ndarray) -> float:
    """Half the span of the colours in octaves."""
    finite = np.abs(octaves[np.isfinite(octaves)])
    largest = finite.max() if len(finite) else OCTAVES
    return next((float(np.log2(end)) for end in ENDS if largest <= np.log2(end)), OCTAVES)


def _left(lanes: tuple[str, ...]) -> int:
    return min(150, 16 + 6 * max(map(len, lanes))) if lanes else 26


def _corner(fig: Drawing, text: str, top: float, colour: str = "") -> None:
    """A strip's name above its left end."""
    if text:
        font = dict(font=dict(color=colour, size=13)) if colour else {}
        fig.add_annotation(
            text=words.plain_text(text),
            xref="paper",
            x=0,
            xanchor="left",
            xshift=-22,
            yref="paper",
            y=top,
            yanchor="bottom",
            yshift=4,
            **font,
        )


def _finish(fig: Drawing, last: str, n_layers: int, pair: str, theme: Theme, span: float, above: int = 4) -> None:
    left, right = SIDES[pair]
    # A long headline of ticks would not fit a phone, and the server does not know the width.
    ticks = layer_ticks(list(range(n_layers)))
    # an axis title of stacked panels lands on the ticks or far below them
    fig.add_annotation(text="layer", xref="paper", x=0.5, yref="paper", y=0, yanchor="top", yshift=-22)
    end = f"{2**span:.3g}×"
    # ticks of a colour bar are centred, so the ends would be cut off
    for text, anchor, shift in (
        (f"{right} {end}", "left", -BAR),
        ("equal", "center", -BAR / 2),
        (f"{left} {end}", "right", 0),
    ):
        fig.add_annotation(
            text=text,
            xref="paper",
            x=1,
            xanchor=anchor,
            xshift=shift,
            yref="paper",
            y=1,
            yanchor="bottom",
            yshift=above,
        )
    fig.update_layout(
        xaxis=dict(domain=[0, 1], anchor=f"y{last}", range=[-0.5, n_layers - 0.5], tickvals=ticks),
        coloraxis=dict(
            colorscale=scale(theme, *words.PAIR_ROLES[pair]),
            cmin=-span,
            cmax=span,
            colorbar=colour_bar(BAR, ypad=2, showticklabels=False),
        ),
    )


def _hovers(
    groups: pd.DataFrame, octaves: np.ndarray, view: str, pair: str, unit_name: str, named: bool
) -> list[tuple[np.ndarray, str, np.ndarray]]:
    """(cells, what hovering over them says, customdata) for each kind of cell: the words differ by side."""
    stored = groups["log2_ratio"].to_numpy(dtype=float) if view else octaves
    place = words.place("%{customdata[0]:d}", unit_name, "%{customdata[1]:d}")
    if named:
        place = words.lane("%{customdata[0]:d}", "%{text}")
    known, second = np.isfinite(octaves), {"size": "apart from size ", "after": "after "}.get(view, "")
    data = np.stack(
        [
            groups["layer"],
            groups["group"],
            np.exp2(np.abs(np.where(known, stored, 0.0))).round(2),
            np.exp2(np.abs(np.where(known, octaves, 0.0))).round(2),
            *((groups[f"{side}_rate"].to_numpy(dtype=float).round(3) for side in ("left", "right")) if view else ()),
        ],
        axis=1,
    ).astype(np.float32)
    left, right = SIDES[pair]
    matrices = [words.MATRICES[role] for role in words.PAIR_ROLES[pair]]
    rates = (
        f"<br>with Adam {matrices[0]} at %{{customdata[4]:.2~g}}×, {matrices[1]} at %{{customdata[5]:.2~g}}×"
        "<br><i>click to open</i>"
        if view
        else ""
    )

    def heavier(sign: int, column: int) -> str:
        number = f"%{{customdata[{column}]:.3~g}}×"
        return "equal" if sign == 0 else f"{left if sign > 0 else right} {number}"

    out = []
    for first in (1, -1, 0):
        for then in (1, -1, 0) if second else (first,):
            cells = known & (np.sign(stored) == first) & (np.sign(octaves) == then)
            if cells.any():
                more = f"<br>{second}{heavier(then, 3)}" if second else ""
                out.append((cells, f"{place}<br>{heavier(first, 2)}{more}{rates}", data[cells]))
    if (~known).any():
        out.append((~known, f"{place}<br>no ratio: a norm is zero or not finite", data[~known]))
    return out


def _strip(
    fig: Drawing,
    axis: str,
    domain: tuple[float, float],
    groups: pd.DataFrame,
    octaves: np.ndarray,
    n_layers: int,
    n_groups: int,
    hovers: list[tuple[np.ndarray, str, np.ndarray]],
    theme: Theme,
    span: float,
    lanes: tuple[str, ...],
    selected: tuple[int, int] | None,
) -> None:
    layer, group = groups["layer"].to_numpy(), groups["group"].to_numpy()
    known = np.isfinite(octaves)
    z = np.full((n_groups, n_layers), np.nan, np.float32)
    z[group[known], layer[known]] = np.clip(octaves[known], -span, span)
    gap = 0 if n_groups * n_layers > MANY else 2
    place = dict(xaxis="x", yaxis=f"y{axis}")
    fig.add_heatmap(z=z, coloraxis="coloraxis", hoverinfo="skip", xgap=gap, ygap=gap, hoverongaps=False, **place)
    for cells, said, data in hovers:
        fig.add_scattergl(
            x=layer[cells].astype(np.int16),
            y=group[cells].astype(np.int16),
            customdata=data,
            text=[words.plain_text(lanes[g]) for g in group[cells]] if lanes else None,
            mode="markers",
            name="cells",
            marker=dict(size=12, opacity=0, color=theme.ink),
            unselected=dict(marker=dict(opacity=0)),
            selected=dict(marker=dict(opacity=0)),
            hovertemplate=f"{said}<extra></extra>",
            **place,
        )
    if (~known).any():
        fig.add_scatter(
            x=layer[~known],
            y=group[~known],
            mode="text",
            text=["×"] * int((~known).sum()),
            textfont=dict(size=12, color=theme.text),
            hoverinfo="skip",
            name="no ratio, mark",
            **place,
        )
    if selected is not None:
        at, row = selected
        fig.add_shape(
            type="rect",
            xref="x",
            yref=f"y{axis}",
            x0=at - 0.5,
            x1=at + 0.5,
            y0=row - 0.5,
            y1=row + 0.5,
            line=dict(color=theme.ink, width=2.5),
        )
    step = 1 if lanes and n_groups <= 24 else max(1, -(-n_groups // 8))
    ticks = list(range(0, n_groups, step))
    fig.update_layout(
        **{
            f"yaxis{axis}": dict(
                domain=list(domain),
                range=[n_groups - 0.5, -0.5],
                showgrid=False,
                tickvals=ticks if n_groups > 1 or lanes else [],
                ticktext=[words.plain_text(_short(lanes[i])) for i in ticks] if lanes else None,
                tickfont=dict(size=11),
                anchor="x",
            )
        }
    )


def _short(name: str) -> str:
    return name if len(name) <= 22 else f"…{name[-21:]}"


def _layers(
    fig: Drawing, axis: str, domain: tuple[float, float], layers: pd.DataFrame, pair: str, theme: Theme, has_after: bool
) -> None:
    """Ratio of each whole layer: ring before, small dot after, dotted line at size alone, band within 2x."""
    left, right = SIDES[pair]
    x = layers["layer"].to_numpy()
    size = float(layers["log2_size"].iloc[0]) if len(layers) and np.ptp(layers["log2_size"]) < 1e-9 else np.nan
    sized = np.isfinite(size) and abs(size) > 1e-9
    before, after = (layers[name].to_numpy(dtype=float) for name in ("log2_ratio", "log2_after"))
    shown = [before, after] if has_after else [before]
    known = np.concatenate([v[np.isfinite(v)] for v in shown])
    reach = np.concatenate([known, [-1.0, 1.0], [size] if sized else []])
    low, high = float(reach.min()) - 0.3, float(reach.max()) + 0.5
    ticks, _ = octave_ticks(low, high, most=4)
    fig.add_shape(
        type="rect",
        layer="below",
        xref="x domain",
        yref=f"y{axis}",
        x0=0,
        x1=1,
        y0=-1,
        y1=1,
        line=dict(width=0),
        fillcolor=theme.middle,
    )
    if sized:
        level(fig, size, axis, color=theme.quiet, width=1, dash="dot")
        fig.add_annotation(
            text=f"size alone, {words.ratio(size)}",
            xref="x domain",
            x=1,
            xanchor="right",
            yref=f"y{axis}",
            y=size,
            yanchor="bottom" if _room_above(known, size) else "top",
            bgcolor=see_through(theme.page, 0.7),
        )
    for y, name, colour in ((after, "after", theme.quiet), (before, "before", theme.ink))[0 if has_after else 1 :]:
        ring = name == "before"
        least = 4 if len(x) > 40 else 6
        fig.add_scatter(
            x=x,
            y=np.where(np.isfinite(y), y, np.nan),
            mode="lines+markers",
            xaxis="x",
            yaxis=f"y{axis}",
            name=name,
            line=dict(color=colour, width=1.2),
            marker=dict(
                size=least if ring else least - 1.5,
                color=theme.page if ring else colour,
                line=dict(color=colour, width=1.2),
            ),
            text=[words.side(pair, v) for v in y],
            hovertemplate=f"layer %{{x}}, {name}<br>%{{text}}<extra></extra>",
        )
    in_band = np.isfinite(after) & (np.abs(after) <= 1)
    said = "after balancing, within 2×" if has_after and in_band.all() else "within 2×"
    fig.add_annotation(
        text=said,
        xref="x domain",
        x=0.5,
        yref=f"y{axis}",
        y=-1,
        yanchor="bottom",
        bgcolor=see_through(theme.middle, 0.7),
    )
    fig.update_layout(
        **{
            f"yaxis{axis}": dict(
                domain=list(domain),
                range=[low, high],
                tickvals=ticks,
                ticktext=[words.octave(abs(power)) for power in ticks],  # either way, as the verdict says them
                tickfont=dict(size=11),
                anchor="x",
            )
        }
    )
    unit(fig, f"whole layer: {left} heavier above, {right} below", axis, dx=-22, dy=5, across="")


def _room_above(values: np.ndarray, size: float) -> bool:
    """Whether the name of the size line has more room above it than below."""
    above, below = values[values >= size] - size, size - values[values < size]
    return above.min(initial=9.0) > below.min(initial=9.0)


def columns(groups: pd.DataFrame) -> pd.DataFrame:
    """What the download holds: one row a cell."""
    return groups[
        [
            "name",
            "layer",
            "block",
            "group",
            "n_left",
            "n_right",
            "left",
            "right",
            "log2_ratio",
            "log2_size",
            "log2_after",
            "left_rate",
            "right_rate",
        ]
    ]
