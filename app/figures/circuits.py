"""Heads as circuits: a map over layers and heads of any column, two columns against each other, spectra, and over
steps.

Neutral ink: a circuit has no role. Ink is the end of a column that a reader looks for.
"""

import math

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from wisca_app.figures import words
from wisca_app.figures.template import (
    UNFADED,
    Theme,
    area,
    blend,
    colour_bar,
    figure,
    layer_ticks,
    log_axis,
    see_through,
    unit,
)
from wisca_core.circuits.columns import Column

FEW = 100  # cells up to which each shows its number
BETWEEN = 0.32  # of a row, between the heads of two key heads
TOP, BOTTOM = 58, 46


def number(column: Column, value: float) -> str:
    """A value of that column: two decimals under 10, "equal" nowhere, "none" where there is none."""
    if not math.isfinite(value):
        return "none"
    if column.name == "ov_copying":
        return words.minus(f"{value:+.2f}")
    if column.unit == "times lr":
        return f"{value:.2f}×"
    if column.unit == "ratio":
        return words.side("qk" if column.name == "qk_ratio" else "vo", math.log2(value)) if value > 0 else "none"
    return f"{value:.2f}" if 0.01 <= abs(value) < 10 else words.digits(value, 3)


def lanes(table: pd.DataFrame) -> pd.DataFrame:
    """Where each head lies in the map: one row a (expert, head) with y, kv_head, head and expert, from the top."""
    rows = table[["expert", "kv_head", "head"]].drop_duplicates(["expert", "head"]).sort_values(["expert", "head"])
    group = rows[["expert", "kv_head"]].ne(rows[["expert", "kv_head"]].shift()).any(axis=1).cumsum() - 1
    grouped = group.nunique() < len(rows) and group.nunique() > 1
    return rows.assign(y=np.arange(len(rows)) + (BETWEEN * group if grouped else 0.0), group=group).reset_index(
        drop=True
    )


def head_map(
    table: pd.DataFrame,
    column: Column,
    *,
    theme: Theme,
    selected: tuple[int, int, int] | None = None,
    changes: bool = False,
) -> go.Figure:
    """``table``: rows of one block. ``changes``: the values are log2 of how a column differs between two models; ink is
    a large change either way. Each point carries customdata [layer, head, expert, words].
    """
    place = lanes(table)
    layers = sorted(table["layer"].unique().tolist())
    n, n_rows = len(layers), len(place)
    row = 26.0 if n_rows <= 16 else max(6.0, 420 / n_rows)
    height = round(TOP + BOTTOM + row * (float(place["y"].max()) + 1))
    fig = figure(theme, height, hoverdistance=-1, clickmode="event+select")
    at = table.merge(place[["expert", "head", "y"]], on=["expert", "head"])
    values = at[column.name].to_numpy(float)
    z, (low, high) = _on_scale(values, column, changes)
    small = n * n_rows <= FEW
    x = at["layer"].map({layer: i for i, layer in enumerate(layers)}).to_numpy()
    shown = [words.minus(f"{2**v:.2f}×") if changes and math.isfinite(v) else number(column, v) for v in values]
    colours = _colours(theme, column.ink if not changes else "high")
    share = np.clip((z - low) / (high - low) if high > low else np.full_like(z, 0.5), 0, 1)
    span = 0.5
    _cells(
        fig,
        place,
        x,
        at["y"].to_numpy(),
        np.where(np.isfinite(z), share, np.nan),
        n,
        row,
        theme,
        colours,
        _ends(column, low, high, changes),
    )
    ink_on = [_contrast(theme, blend(*colours, s)) if math.isfinite(v) else theme.quiet for s, v in zip(share, z)]
    fig.add_scatter(
        x=x,
        y=at["y"],
        mode="text+markers" if small else "markers",
        text=[text if math.isfinite(v) else "×" for text, v in zip(shown, values)] if small else None,
        textfont=dict(size=11, color=ink_on),
        marker=dict(symbol="square", size=max(4, row - 2), color="rgba(0,0,0,0)"),
        customdata=[
            [int(r.layer), int(r.head), int(r.expert), f"{_who(r)}<br>{column.title} {text}"]
            for r, text in zip(at.itertuples(), shown)
        ],
        hovertemplate="%{customdata[3]}<br>click to open<extra></extra>",
        **UNFADED,
    )
    if selected is not None:
        chosen = at[(at["layer"] == selected[0]) & (at["head"] == selected[1]) & (at["expert"] == selected[2])]
        for r in chosen.itertuples():
            xi = layers.index(r.layer)
            for width, colour in ((4.5, theme.page), (2, theme.ink)):
                fig.add_shape(
                    type="rect",
                    x0=xi - 0.485,
                    x1=xi + 0.485,
                    y0=r.y - span,
                    y1=r.y + span,
                    line=dict(color=colour, width=width),
                )
    _brackets(fig, place, theme)
    ticks = layer_ticks(list(range(n)))
    every = max(1, math.ceil(14 / row))
    fig.update_xaxes(
        range=[-0.5, n - 0.5],
        tickvals=ticks,
        ticktext=[str(layers[i]) for i in ticks],
        title=dict(text="layer", standoff=8),
    )
    named = place.iloc[::every]
    fig.update_yaxes(
        range=[float(place["y"].max()) + 0.5, -0.5],
        tickvals=named["y"],
        ticktext=[f"{r.expert}.{r.head}" if r.expert >= 0 else str(r.head) for r in named.itertuples()],
        showgrid=False,
    )
    fig.update_layout(margin=dict(l=46, r=16, t=TOP, b=BOTTOM))
    grouped = float(place["y"].max()) + 1 > n_rows
    unit(fig, "KV head, head" if grouped else "expert.head" if (place["expert"] >= 0).any() else "head", dx=-44, dy=10)
    return fig


def _who(r) -> str:
    expert = f", expert {r.expert}" if r.expert >= 0 else ""
    return f"layer {r.layer}{expert}, head {r.head} (KV head {r.kv_head})"


def _on_scale(values: np.ndarray, column: Column, changes: bool) -> tuple[np.ndarray, tuple[float, float]]:
    """Values on the scale that is drawn, and its ends: those of the data."""
    if changes:
        z = np.abs(values)
        return z, (0.0, max(float(np.nanmax(z, initial=0.0)), 1e-9))
    if column.name == "ov_copying":
        return values, (-1.0, 1.0)
    with np.errstate(all="ignore"):
        z = np.where(values > 0, np.log2(values), np.nan) if column.log else values
    finite = z[np.isfinite(z)]
    return z, (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)


def _colours(theme: Theme, ink: str) -> tuple[str, str]:
    pale, strong = theme.middle, blend(theme.ink, theme.middle, 0.08)
    return (strong, pale) if ink == "low" else (pale, strong)


def _contrast(theme: Theme, fill: str) -> str:
    red, green, blue = (int(fill[i : i + 2], 16) for i in (1, 3, 5))
    is_light = 0.299 * red + 0.587 * green + 0.114 * blue > 140
    dark, light = (theme.ink, theme.page) if theme.name == "light" else (theme.page, theme.ink)
    return dark if is_light else light


def _brackets(fig: go.Figure, place: pd.DataFrame, theme: Theme) -> None:
    """A line at the left of the heads that share a key head, and its number."""
    if float(place["y"].max()) + 1 <= len(place):
        return
    for _, part in place.groupby("group"):
        fig.add_shape(
            type="line",
            xref="paper",
            xsizemode="pixel",
            xanchor=0,
            x0=-25,
            x1=-25,
            y0=part["y"].min() - 0.4,
            y1=part["y"].max() + 0.4,
            line=dict(color=theme.border, width=1.5),
        )
        fig.add_annotation(
            text=str(int(part["kv_head"].iloc[0])),
            xref="paper",
            x=0,
            xanchor="right",
            xshift=-30,
            y=float(part["y"].mean()),
            yanchor="middle",
        )


def _cells(
    fig: go.Figure,
    place: pd.DataFrame,
    x: np.ndarray,
    y: np.ndarray,
    share: np.ndarray,
    n: int,
    row: float,
    theme: Theme,
    colours: tuple[str, str],
    ends: list[str],
) -> None:
    """The filled cells, an empty band between the heads of two key heads, and the colour bar at the top right."""
    edges, lines = [-0.5], []
    for lane in place["y"]:
        if lane - 0.5 > edges[-1] + 1e-9:
            edges.append(lane - 0.5)
            lines.append(np.full(n, np.nan))
        line = np.full(n, np.nan)
        of_lane = np.isclose(y, lane)
        line[x[of_lane]] = share[of_lane]
        edges.append(lane + 0.5)
        lines.append(line)
    gap = 2 if row >= 10 else 0
    fig.add_heatmap(
        z=np.array(lines),
        x=np.arange(n + 1) - 0.5,
        y=edges,
        zmin=0,
        zmax=1,
        colorscale=[[0, colours[0]], [1, colours[1]]],
        xgap=gap,
        ygap=gap,
        hoverinfo="skip",
        hoverongaps=False,
        colorbar=colour_bar(
            190,
            ypad=4,
            tickvals=[0, 1] if len(ends) > 1 else [0.5],
            ticktext=ends,
            tickangle=0,
            ticklabeloverflow="allow",
            tickfont=dict(size=12, color=theme.text),
        ),
    )


def _ends(column: Column, low: float, high: float, changes: bool) -> list[str]:
    """What is written at the two ends of the colour bar."""

    def end(z: float) -> str:
        if changes:
            return "no change" if z <= 1e-9 else f"{2**z:.2f}×"
        return number(column, 2**z if column.log else z)

    return [end(low), end(high)] if high > low and end(low) != end(high) else [end(low)]


def scatter(
    table: pd.DataFrame,
    across: Column,
    up: Column,
    *,
    theme: Theme,
    marked: set[tuple[int, int, int]],
    selected: tuple[int, int, int] | None,
) -> go.Figure:
    """Two columns against each other, one point a head. ``marked``: (layer, head, expert) in ink; the others are
    grey.
    """
    fig = figure(theme, 400, clickmode="event+select")
    kept = table[np.isfinite(table[across.name]) & np.isfinite(table[up.name])]
    for column in (across, up):
        if column.log:
            kept = kept[kept[column.name] > 0]
    keys = list(zip(kept["layer"].tolist(), kept["head"].tolist(), kept["expert"].tolist()))
    in_ink = np.array([key in marked for key in keys], bool)
    for chosen, colour in ((~in_ink, see_through(theme.quiet, 0.75)), (in_ink, theme.ink)):
        part = kept[chosen]
        fig.add_scatter(
            x=part[across.name],
            y=part[up.name],
            mode="markers",
            marker=dict(size=8, color=colour, line=dict(width=1, color=theme.page)),
            customdata=[
                [
                    int(r.layer),
                    int(r.head),
                    int(r.expert),
                    f"{_who(r)}<br>{across.title} {number(across, getattr(r, across.name))}<br>{up.title} "
                    f"{number(up, getattr(r, up.name))}",
                ]
                for r in part.itertuples()
            ],
            hovertemplate="%{customdata[3]}<br>click to open<extra></extra>",
            **UNFADED,
        )
    if selected in keys:
        row = kept.iloc[keys.index(selected)]
        fig.add_scatter(
            x=[row[across.name]],
            y=[row[up.name]],
            mode="markers",
            marker=dict(symbol="square-open", size=16, color=theme.ink, line=dict(width=1.6)),
            hoverinfo="skip",
        )
    for column, update in ((across, fig.update_xaxes), (up, fig.update_yaxes)):
        values = kept[column.name].to_numpy()
        if column.log and len(values):
            update(**log_axis(values.min() / 1.08, values.max() * 1.08))
    fig.update_xaxes(title=dict(text=f"{across.title}, {across.unit}", standoff=10))
    fig.update_layout(margin=dict(l=48, r=12, t=34, b=52))
    unit(fig, f"{up.title}, {up.unit}", dx=-44)
    return fig


def spectrum(own: np.ndarray, middle: np.ndarray, *, pair: str, theme: Theme) -> go.Figure:
    """Singular values of one head, ink with dots, and the median head's, dotted; log axis."""
    fig = figure(theme, 170)
    top = max(float(np.nanmax(own, initial=0)), float(np.nanmax(middle, initial=0)))
    floor = top * 1e-4
    for values, line, mode in (
        (middle, dict(color=theme.quiet, width=1.4, dash="dot"), "lines"),
        (own, dict(color=theme.ink, width=1.6), "lines+markers"),
    ):
        kept = values[np.isfinite(values) & (values > floor)]
        fig.add_scatter(
            x=np.arange(1, len(kept) + 1),
            y=kept,
            mode=mode,
            line=line,
            marker=dict(size=4, color=theme.ink),
            hovertemplate="number %{x}: %{y:.3g}<extra></extra>",
        )
    shown = np.concatenate([v[np.isfinite(v) & (v > floor)] for v in (own, middle)])
    if len(shown):
        fig.update_yaxes(**log_axis(shown.min() / 1.15, shown.max() * 1.3, 4))
    fig.update_xaxes(nticks=4)
    fig.update_layout(margin=dict(l=46, r=6, t=30, b=24))
    unit(fig, f"singular value of {pair}, by number", dx=-44)
    return fig


def over_steps(steps: list[int], table: pd.DataFrame, column: Column, *, theme: Theme) -> go.Figure:
    """``table``: columns step, own (the chosen head), middle, low, high (10 to 90 % of all heads)."""
    fig = figure(theme, 260)
    x = table["step"]
    fig.add_scatter(**area(x, table["low"], table["high"], see_through(theme.quiet, 0.18)))
    for name, line in (
        ("middle", dict(color=theme.quiet, width=1.4, dash="dot")),
        ("own", dict(color=theme.ink, width=1.8)),
    ):
        fig.add_scatter(
            x=x,
            y=table[name],
            mode="lines+markers" if name == "own" else "lines",
            line=line,
            marker=dict(size=6, color=theme.ink),
            customdata=[number(column, v) for v in table[name]],
            hovertemplate=f"step %{{x:,}}: {'this head' if name == 'own' else 'median head'} "
            f"%{{customdata}}<extra></extra>",
        )
    values = table[["own", "low", "high"]].to_numpy().ravel()
    values = values[np.isfinite(values)]
    if column.log and len(values) and values.min() > 0:
        fig.update_yaxes(**log_axis(values.min() / 1.1, values.max() * 1.1, 5))
    fig.update_xaxes(
        title=dict(text="step", standoff=8), tickvals=steps, ticktext=[words.axis_number(s) for s in steps]
    )
    fig.update_layout(margin=dict(l=48, r=14, t=30, b=46))
    unit(fig, f"{column.title}, {column.unit}", dx=-44)
    return fig


def map_title(table: pd.DataFrame, column: Column) -> str:
    """The finding of the map: the span, and where its end of interest lies."""
    values = table[column.name]
    if not values.notna().any():
        return f"{column.title}: no head has one"
    at = values.idxmin() if column.ink == "low" else values.idxmax()
    row, word = table.loc[at], "lowest" if column.ink == "low" else "highest"
    expert = f", expert {row['expert']}" if row["expert"] >= 0 else ""
    return (
        f"{column.title} is {word} in layer {row['layer']}{expert}, head {row['head']}: "
        f"{number(column, row[column.name])}"
    )


def change_title(table: pd.DataFrame, column: Column) -> str:
    """The finding of two models side by side; ``table`` holds log2 of the other over this one."""
    values = table[column.name].abs()
    if not values.notna().any():
        return f"{column.title}: no head can be compared"
    if values.max() < 1e-4:
        return f"{column.title} is the same in every head"
    row = table.loc[values.idxmax()]
    return (
        f"{column.title} differs {2 ** values.median():.2f}× in the median head, most in layer {row['layer']}, head "
        f"{row['head']}: "
        f"{2 ** values.max():.2f}×"
    )
