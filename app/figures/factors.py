"""The factors of a plan over depth: what would balance fully, what is used, and what stays between them."""

import numpy as np
import pandas as pd

from wisca_app.figures import words
from wisca_app.figures.chart import Chart
from wisca_app.figures.template import Drawing, Theme, blend, drawing, layer_ticks, level, octave_ticks, unit
from wisca_app.figures.words import plain_text
from wisca_core.architecture.site import SiteKey
from wisca_core.patterns.blocks import titles, unit_of
from wisca_core.planning.rows import has_square
from wisca_core.words import times

PANEL, GAP, TOP, BOTTOM = 190, 62, 34, 44
_PLURALS = {"qk": "queries", "vo": "values", "mlp": "up projections", "lora": "A matrices"}
_FINE = (0.6, 0.7, 0.8, 0.9, 1, 1.1, 1.25, 1.5, 1.75)
_SHOWN = ("planned", "balanced already")


def finding(rows: pd.DataFrame) -> str:
    """The chart in one sentence: "Queries come down by 2.1×, values go up by 2.0×, in the median"."""
    parts, typically = [], ""
    for pair, part in rows.groupby("pair", sort=False):
        planned = part[part["status"] == "planned"]
        if planned.empty:
            parts.append(f"{_PLURALS[pair]} stay as they are")
            continue
        middle = _log2_middle(planned, "factor")
        down = int((middle < 0).sum())
        typical = times(2 ** abs(float(np.median(middle))))
        if part["block"].nunique() > 1:  # the medians of several blocks are no median
            many, way = (down, "come down") if 2 * down >= len(middle) else (len(middle) - down, "go up")
            places = (
                f"all {words.count(many)} places"
                if many == len(part)
                else f"{words.count(many)} of {words.count(len(part))} places"
            )
            parts.append(f"{_PLURALS[pair]} {way} in {places}")
        elif down in (0, len(middle)):
            parts.append(f"{_PLURALS[pair]} {'come down' if down else 'go up'} by {typical}")
            typically = ", in the median"
        else:
            many, way = (down, "come down") if 2 * down >= len(middle) else (len(middle) - down, "go up")
            parts.append(f"{_PLURALS[pair]} {way} in {words.count(many)} of {words.count(len(middle))} places")
    text = ", ".join(parts) + typically
    return text[:1].upper() + text[1:] if text else "No factor to show"


def how_to_read(rows: pd.DataFrame) -> str:
    """The sentence under the title."""
    single = rows["n_cells"].gt(1).any()
    units = {
        unit_of(pair, block) if group >= 0 or pair == "lora" else "layer"
        for pair, block, group in zip(rows["pair"], rows["block"], rows["group"])
    }
    noun = {
        "KV group": "a KV group of a layer",
        "expert": "an expert of a layer",
        "adapted layer": "an adapted part of a layer",
        "layer": "a layer",
    }
    place = " or ".join(dict.fromkeys(noun[unit] for unit in sorted(units))) or "a layer"
    square = " (its square behind ReLU squared)" if has_square(rows) else ""
    if single:
        return (
            f"One mark {place}. The bar spans the factors of its single channels; the tick is the middle of those that "
            "would balance them fully."
        )
    return (
        f"One mark {place}; the other matrix of the pair gets the inverse{square}. The tick would balance fully, the "
        "square is what is used, the line between them stays."
    )


def chart(rows: pd.DataFrame) -> Chart:
    """The factors of these rows of ``plan_rows`` as a chart."""
    said, how = finding(rows), how_to_read(rows)
    is_exact = bool((rows["status"] == "planned").any()) and _are_powers_of_two(rows)
    tip = words.tip("pair", *(["exact"] if is_exact else []))
    return Chart(said, how, rows, "factors", lambda theme: factor_chart(rows, theme), f"{said}. {how}", tip)


def _are_powers_of_two(rows: pd.DataFrame) -> bool:
    factors = rows.loc[rows["status"] == "planned", ["factor_low", "factor_high"]].to_numpy(float)
    return bool((np.log2(factors) % 1 == 0).all())


def factor_chart(rows: pd.DataFrame, theme: Theme) -> Drawing:
    """One panel a (pair, block) on a shared layer axis. ``rows``: the pairs asked for, columns of ``plan_rows``."""
    pairs = list(dict.fromkeys(zip(rows["pair"], rows["block"])))
    names = {pair: titles(block for of, block in pairs if of == pair) for pair, _ in pairs}
    height = TOP + BOTTOM + len(pairs) * PANEL + (len(pairs) - 1) * GAP
    inner = height - TOP - BOTTOM
    fig = drawing(theme, height)
    fig.update_layout(margin=dict(l=44, r=12, t=TOP, b=BOTTOM))
    layers = sorted(set(rows["layer"]))
    for number, (pair, block) in enumerate(pairs, 1):
        axis, top = "" if number == 1 else str(number), 1 - (number - 1) * (PANEL + GAP) / inner
        part = rows[(rows["pair"] == pair) & (rows["block"] == block)]
        _panel(fig, part, axis, (max(0.0, top - PANEL / inner), top), theme)
        matrix = words.MATRICES[words.PAIR_ROLES[pair][0]]
        gains = part["changes"].str.contains("gains").any()
        unit(
            fig,
            (f"factor on the {words.ROLES[words.PAIR_ROLES[pair][0]]} gains" if gains else f"factor on {matrix}")
            + (f", {plain_text(names[pair][block])}" if names[pair][block] else ""),
            axis=axis,
            across="",
        )
    last = "" if len(pairs) == 1 else str(len(pairs))
    span, ticks = [layers[0] - 0.6, layers[-1] + 0.6], layer_ticks(layers)
    fig.update_layout(xaxis=dict(range=span, tickvals=ticks, anchor=f"y{last}", title=dict(text="layer", standoff=12)))
    return fig


def _panel(fig: Drawing, rows: pd.DataFrame, axis: str, domain: tuple[float, float], theme: Theme) -> None:
    place = dict(xaxis="x", yaxis=f"y{axis}")
    role = words.PAIR_ROLES[rows["pair"].iloc[0]][0]
    colour = theme.role[role]
    x = _places(rows)
    low, high = np.log2(rows["factor_low"].to_numpy()), np.log2(rows["factor_high"].to_numpy())
    full = _log2_middle(rows, "full")
    used = rows["status"].isin(_SHOWN).to_numpy()
    span = rows["n_cells"].gt(1).to_numpy()
    near = np.where(span, low, np.where(full < low, full, low))
    far = np.where(span, high, np.where(full < low, low, full))
    faint = blend(theme.page, colour, 0.45)
    width = 5 if span.any() else 1.5
    fig.add_scatter(
        x=np.repeat(x, 3),
        y=np.column_stack([near, far, np.full(len(x), np.nan)]).ravel(),
        mode="lines",
        line=dict(color=faint, width=width),
        hoverinfo="skip",
        **place,
    )
    size = 8 if len(x) <= 200 else 5
    fig.add_scatter(
        x=x,
        y=full,
        mode="markers",
        marker=dict(symbol="line-ew", size=size + 4, color=colour, line=dict(color=colour, width=2)),
        hoverinfo="skip",
        **place,
    )
    hover = [_hover(row) for row in rows.itertuples()]
    for chosen, symbol in ((used, "square"), (~used, "square-open")):
        middle = (low + high) / 2
        if chosen.any():
            fig.add_scatter(
                x=x[chosen],
                y=middle[chosen],
                mode="markers",
                hovertext=np.array(hover, object)[chosen],
                hoverinfo="text",
                marker=dict(
                    symbol=symbol,
                    size=np.where(span[chosen] & used[chosen], 1, size),
                    color=colour,
                    opacity=1,
                    line=dict(width=0 if symbol == "square" else 1.5, color=colour),
                ),
                **place,
            )
    values = np.concatenate([low, high, full[np.isfinite(full)], [0.0]])
    bottom, top = values.min() - 0.35, values.max() + 0.35
    ticks, text = octave_ticks(bottom, top)
    if len(ticks) < 2:  # all within an octave
        ticks = [np.log2(v) for v in _FINE if bottom <= np.log2(v) <= top]
        text = [f"{v:g}×" for v in _FINE if bottom <= np.log2(v) <= top]
    fig.update_layout(
        **{f"yaxis{axis}": dict(range=[bottom, top], tickvals=ticks, ticktext=text, domain=list(domain), anchor="x")}
    )
    level(fig, 0, axis, color=theme.quiet, width=1, dash="dot")


def _places(rows: pd.DataFrame) -> np.ndarray:
    """Layer, groups of a layer side by side around it."""
    n_groups = int(rows["group"].max()) + 1
    if n_groups <= 1:  # several parts of a layer, or one
        number, most = rows.groupby("layer").cumcount().to_numpy(), int(rows.groupby("layer").size().max())
        return (
            rows["layer"].to_numpy() + (number - (most - 1) / 2) * 0.8 / most
            if most > 1
            else rows["layer"].to_numpy(float)
        )
    return rows["layer"].to_numpy() + (rows["group"].to_numpy() - (n_groups - 1) / 2) * 0.8 / n_groups


def _log2_middle(rows: pd.DataFrame, name: str) -> np.ndarray:
    return (np.log2(rows[f"{name}_low"].to_numpy()) + np.log2(rows[f"{name}_high"].to_numpy())) / 2


def _hover(row) -> str:
    part = SiteKey.parse(row.name).part if row.pair == "lora" else ""
    place = f"layer {row.layer}" + (
        f", {plain_text(part)}" if part else f", {unit_of(row.pair, row.block)} {row.group}" if row.group >= 0 else ""
    )
    lines = [
        f"{words.PAIR_LABELS[row.pair]}, {place}",
        f"factor {words.factors(row.factor_low, row.factor_high)}",
        f"before {words.side(row.pair, row.log2_ratio)}, after {words.side(row.pair, row.log2_after)}",
    ]
    if row.status not in _SHOWN:
        lines.append(row.status)
    return "<br>".join(lines)  # no foreign name among them
