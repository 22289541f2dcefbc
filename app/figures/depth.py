"""Norms of every head over the depth, one panel a role, on one log axis."""

from collections.abc import Collection

import numpy as np
import pandas as pd

from wisca_app.figures import words
from wisca_app.figures.template import Drawing, Theme, drawing, layer_ticks, log_ticks, unit

FEW = 8  # heads a layer up to which each is a dot; above, a bar says more
THIN = 0.02  # of the axis: a bar under it is not seen
ORDER = ("q", "k", "v", "o", "up", "down", "a", "b")


def depth(
    heads: pd.DataFrame, *, n_layers: int, theme: Theme, gains: Collection[str] = (), unit_name: str = "head"
) -> Drawing:
    """``heads``: columns layer, role, head, before, after (one row a head). ``gains``: roles that are norms' gains.
    ``unit_name``: what a row is: "head", "expert", "adapted part", or "layer" where there is one a layer.

    Outline before, filled after; a bar spans 10-90 % of a layer's heads with the median as a notch, and heads further
    from it than its own length are dots. Heads with a zero or non-finite norm have no place on a log axis and are left
    out.
    """
    roles = [role for role in ORDER if (heads["role"] == role).any()]
    fig = drawing(theme, 250 * max(1, -(-len(roles) // 2)) + 40)
    fig.update_layout(margin=dict(l=44, r=8, t=34, b=48), barmode="overlay", hoverdistance=8)
    usable = heads[(heads[["before", "after"]] > 0).all(axis=1) & np.isfinite(heads[["before", "after"]]).all(axis=1)]
    values = usable[["before", "after"]].to_numpy(dtype=float)
    low, high = (np.log10(values.min()) - 0.06, np.log10(values.max()) + 0.06) if len(values) else (0.0, 1.0)
    if high - low < 0.4:
        low, high = (low + high) / 2 - 0.2, (low + high) / 2 + 0.2
    ticks, labels = log_ticks(10**low, 10**high, most=5)
    rows = max(1, -(-len(roles) // 2))
    panel = (1 - 0.2 * (rows - 1)) / rows
    for number, role in enumerate(roles):
        axis = "" if number == 0 else str(number + 1)
        column, line = number % 2, number // 2
        top = 1 - line * (panel + 0.2)
        fig.update_layout(
            **{
                f"xaxis{axis}": dict(
                    domain=[0, 0.46] if column == 0 else [0.54, 1],
                    anchor=f"y{axis}",
                    range=[-0.7, n_layers - 0.3],
                    tickvals=layer_ticks(list(range(n_layers)), most=6),
                    title=dict(text="layer" if line == rows - 1 else "", standoff=24),
                ),
                f"yaxis{axis}": dict(
                    domain=[max(0.0, top - panel), top],
                    anchor=f"x{axis}",
                    type="log",
                    range=[low, high],
                    tickvals=ticks,
                    ticktext=labels if column == 0 else [""] * len(labels),
                ),
            }
        )
        part = usable[usable["role"] == role]
        per_layer = int(heads[heads["role"] == role].groupby("layer").size().max())
        if per_layer <= FEW:
            for when in ("before", "after"):
                _points(fig, part, when, role, axis, theme, 6 if n_layers <= 40 else 4, unit_name)
        else:
            _bars(fig, part, role, axis, theme, n_layers, unit_name, high - low)
        what = words.ROLES[role].capitalize() + (" gains" if role in gains else "")
        name = (
            f"{what}, one set a layer"
            if role in gains and per_layer == 1
            else what
            if unit_name == "layer"
            else f"{what}, {words.plural(per_layer, unit_name)} a layer"
        )
        unit(fig, name, axis, dx=0, font=dict(size=13, color=theme.word[role]))
    return fig


def _marker(theme: Theme, role: str, column: str, size: float) -> dict:
    ring = column == "before"
    return dict(
        size=size,
        opacity=1,
        color=theme.page if ring else theme.role[role],
        line=dict(color=theme.role[role], width=1.2 if ring else 0),
    )


def _points(
    fig: Drawing, part: pd.DataFrame, column: str, role: str, axis: str, theme: Theme, size: float, unit_name: str
) -> None:
    number = f" {unit_name} %{{customdata:d}}" if unit_name in ("head", "expert") else ""
    add = fig.add_scattergl if len(part) > 1500 else fig.add_scatter
    add(
        x=part["layer"].to_numpy(np.int32),
        y=part[column].to_numpy(np.float32),
        mode="markers",
        name=column,
        xaxis=f"x{axis}",
        yaxis=f"y{axis}",
        marker=_marker(theme, role, column, size),
        customdata=part["head"].to_numpy(np.int32),
        hovertemplate=f"{words.ROLES[role]}{number}, layer %{{x}}, {column}<br>%{{y:,.4~g}}<extra></extra>",
    )


def _bars(
    fig: Drawing, part: pd.DataFrame, role: str, axis: str, theme: Theme, n_layers: int, unit_name: str, span: float
) -> None:
    place = dict(xaxis=f"x{axis}", yaxis=f"y{axis}")
    for column in ("before", "after"):
        ring = column == "before"
        table = part.pivot(index="layer", columns="head", values=column)
        x, (low, middle, high) = (
            table.index.to_numpy(),
            np.nanquantile(table.to_numpy(dtype=float), (0.1, 0.5, 0.9), axis=1),
        )
        text = [
            f"{words.digits(m, 3)} ({words.digits(a, 3)} to {words.digits(b, 3)})" for a, m, b in zip(low, middle, high)
        ]
        fig.add_bar(
            x=x,
            y=high - low,
            base=low,
            width=0.62 if n_layers > 12 else 0.36,
            name=column,
            text=text,
            textposition="none",
            **place,
            marker=dict(
                color="rgba(0,0,0,0)" if ring else theme.role[role],
                line=dict(color=theme.role[role], width=1.2 if ring else 0),
            ),
            hovertemplate=f"{words.ROLES[role]}, layer %{{x}}, {column}<br>median %{{text}}<extra></extra>",
        )
        # heads that are alike make a bar of no height: there the median is a mark that is seen without one
        thin = np.log10(high / low) < THIN * span
        for flat in (False, True):
            here = thin == flat
            if not here.any():
                continue
            mark = (
                _marker(theme, role, column, 6 if n_layers <= 40 else 4)
                if flat
                else dict(
                    symbol="line-ew-open",
                    size=6 if n_layers <= 40 else 3,
                    color=theme.role[role] if ring else theme.page,
                    line=dict(width=1.6),
                )
            )
            fig.add_scatter(
                x=x[here],
                y=middle[here],
                mode="markers",
                hoverinfo="skip",
                name=f"median {column}",
                **place,
                marker=mark,
            )
        place_of = np.searchsorted(x, part["layer"].to_numpy())
        length, values = (high / low)[place_of], part[column].to_numpy(dtype=float)
        outside = (values > high[place_of] * length) | (values < low[place_of] / length)
        if outside.any():
            _points(fig, part[outside], column, role, axis, theme, 5 if n_layers <= 40 else 3.5, unit_name)


def columns(heads: pd.DataFrame) -> pd.DataFrame:
    """What the download holds: one row a head."""
    return heads[["name", "layer", "pair", "block", "role", "head", "n", "n_zero", "n_nonfinite", "before", "after"]]
