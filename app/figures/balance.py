"""Norm against norm, one point a KV group: ring before, dot after, the diagonal is balance."""

import numpy as np
import pandas as pd

from wisca_app.figures import words
from wisca_app.figures.heatmap import has_size
from wisca_app.figures.template import Drawing, Theme, drawing, log_axis, see_through, unit
from wisca_core.pairs import SIDES
from wisca_core.words import LEVEL

MANY = 1000  # points from which they are drawn by WebGL
_NAME = (0.23, 0.035)  # half the width and height of a name, parts of the axes: "layer 5, KV group 0" on a phone


def balance(
    groups: pd.DataFrame,
    *,
    pair: str,
    norm: str,
    matrices: tuple[str, str],
    theme: Theme,
    unit_name: str = "KV group",
    selected: tuple[int, int] | None = None,
    lanes: tuple[str, ...] = (),
) -> Drawing:
    """``groups``: rows of one pair, columns layer, group, left, right, left_after, right_after, log2_size, log2_ratio.

    ``lanes``: names of the groups, where they have names instead of numbers. ``matrices``: what the left and the right
    side are made of. Points carry customdata [layer, group]. Groups with a zero or non-finite norm have no place on log
    axes and are left out.
    """
    left, right = SIDES[pair]
    inside = {"KV group": " in the group", "head": " of the head", "expert": " of the expert"}.get(unit_name, "")
    norms = groups[["left", "right", "left_after", "right_after"]].to_numpy(dtype=float)
    shown = groups[np.isfinite(norms).all(1) & (norms > 0).all(1)]
    fig = drawing(theme, 440)
    fig.update_layout(margin=dict(l=48, t=44, b=52, r=8), clickmode="event+select")
    if not len(shown):
        fig.add_annotation(text="no pair has two finite norms", xref="paper", yref="paper", x=0.5, y=0.5)
        return fig
    x0, y0, x1, y1 = (shown[c].to_numpy(dtype=float) for c in ("right", "left", "right_after", "left_after"))
    low_x, high_x, low_y, high_y = _square(np.log10(np.r_[x0, x1]), np.log10(np.r_[y0, y1]))
    ends = np.array([min(low_x, low_y) - 1, max(high_x, high_y) + 1])

    def diagonal(name: str, octaves: float, dash: str = "solid") -> None:
        # a trace, because the band is one and would hide a shape that lies below the points
        fig.add_scatter(
            x=10**ends,
            y=10 ** (ends + octaves * np.log10(2)),
            mode="lines",
            name=name,
            hoverinfo="skip",
            line=dict(color=theme.quiet, width=1, dash=dash),
        )

    _band(fig, ends, theme)
    diagonal("equal norms", 0)
    size = _size(groups)
    if size is not None:
        diagonal("size alone", size, "dot")

    many = len(shown) > MANY
    add = fig.add_scattergl if many else fig.add_scatter
    places = shown[["layer", "group"]].to_numpy(np.int16)
    ratios = {"before": np.log2(y0 / x0), "after": np.log2(y1 / x1)}
    dots = []
    place = words.place("%{customdata[0]:d}", unit_name, "%{customdata[1]:d}")
    if lanes:
        place = words.lane("%{customdata[0]:d}", "%{text}")
    for name, colour, least, most in (
        (f"{left} heavier", theme.role[words.PAIR_ROLES[pair][0]], LEVEL, np.inf),
        (f"{right} heavier", theme.role[words.PAIR_ROLES[pair][1]], -np.inf, -LEVEL),
        ("level", theme.quiet, -LEVEL, LEVEL),
    ):
        of = {when: (octaves > least) & (octaves <= most) for when, octaves in ratios.items()}
        moved = of["before"] & ((x0 != x1) | (y0 != y1))
        if moved.any() and not many:  # thousands of lines are one smear
            path = [_between(a[moved], b[moved]) for a, b in ((x0, x1), (y0, y1))]
            alpha = 0.45 if len(shown) < 200 else 0.2
            line = dict(color=see_through(colour, alpha), width=1)
            add(x=path[0], y=path[1], mode="lines", hoverinfo="skip", name=f"{name}, path", line=line)
        for when, x, y in (("before", x0, y0), ("after", x1, y1)):
            ring = when == "before"
            here = of[when]
            dots.append(
                dict(
                    x=x[here].astype(np.float32),
                    y=y[here].astype(np.float32),
                    mode="markers",
                    name=f"{name} {when}",
                    customdata=places[here],
                    text=[words.plain_text(lanes[g]) for g in places[here, 1]] if lanes else None,
                    unselected=dict(marker=dict(opacity=1)),
                    selected=dict(marker=dict(opacity=1)),
                    marker=dict(
                        size=7 if len(shown) < 400 else 4,
                        opacity=1,
                        color=theme.page if ring else colour,
                        line=dict(color=colour, width=1.3 if ring else 0),
                    ),
                    hovertemplate=f"{place}, {when}<br>{left} %{{y:,.4~g}}, {right} %{{x:,.4~g}}<extra></extra>",
                )
            )
    for dot in sorted(dots, key=lambda dot: "after" in dot["name"]):
        if len(dot["x"]):
            add(**dot)
    if selected is not None:
        chosen = shown[(shown["layer"] == selected[0]) & (shown["group"] == selected[1])]
        if len(chosen):
            points = np.stack(
                [
                    (np.log10(np.r_[x0, x1]) - low_x) / (high_x - low_x),
                    (np.log10(np.r_[y0, y1]) - low_y) / (high_y - low_y),
                ],
                1,
            )
            _arrow(fig, chosen.iloc[0], unit_name, lanes, (low_x, high_x, low_y, high_y), points, theme)
    _name_line(fig, "equal norms", 0.0, (low_x, high_x, low_y, high_y), theme)
    if size is not None:
        _name_line(fig, f"size alone, {words.ratio(size)}", size * np.log10(2), (low_x, high_x, low_y, high_y), theme)
    fig.update_layout(
        xaxis=dict(
            **log_axis(10**low_x, 10**high_x, most=4),
            constrain="domain",
            showgrid=True,
            title=dict(text=f"{matrices[1]}, {words.NORM_SYMBOLS[norm]}{inside}"),
        ),
        yaxis=dict(**log_axis(10**low_y, 10**high_y, most=5), scaleanchor="x", scaleratio=1, constrain="domain"),
    )
    unit(fig, f"{matrices[0]}, {words.NORM_SYMBOLS[norm]}{inside}", dx=-36, dy=10)
    return fig


def _square(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float, float]:
    """Ranges of equal length (log10) around both clouds."""
    span = max(np.ptp(x), np.ptp(y), 0.5) * 1.16
    mid_x, mid_y = (x.max() + x.min()) / 2, (y.max() + y.min()) / 2
    return mid_x - span / 2, mid_x + span / 2, mid_y - span / 2, mid_y + span / 2


def _between(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """One polyline with a gap behind each pair of points."""
    return np.stack([start, end, np.full(len(start), np.nan)], axis=1).reshape(-1)


def _band(fig: Drawing, ends: np.ndarray, theme: Theme) -> None:
    """Within 2x of balance. A filled trace: a shape's path takes no log axis."""
    low, high = 10.0**ends
    fig.add_scatter(
        x=[low, high, high, low],
        y=[2 * low, 2 * high, high / 2, low / 2],
        fill="toself",
        mode="lines",
        name="within 2×",
        line=dict(width=0),
        fillcolor=theme.middle,
        hoverinfo="skip",
    )


def _name_line(fig: Drawing, text: str, offset: float, box: tuple[float, float, float, float], theme: Theme) -> None:
    """A name along a diagonal, at the end of it that lies inside: y = x + ``offset`` (log10), equal aspect."""
    low_x, high_x, low_y, high_y = box
    end = min(high_x, high_y - offset) - 0.02 * (high_x - low_x)  # its right end
    start = max(low_x, low_y - offset)
    if end - start < 0.4 * (high_x - low_x):
        return  # too short to bear a name
    fig.add_annotation(
        text=text,
        x=end,
        y=end + offset,
        xref="x",
        yref="y",
        textangle=-45,
        xanchor="right",
        yanchor="top",
        bgcolor=see_through(theme.page, 0.6),
        font=dict(size=11, color=theme.text),
    )


def _size(groups: pd.DataFrame) -> float | None:
    """log2 of the ratio that size alone makes, None where it makes none or not the same of every row."""
    return float(groups["log2_size"].iloc[0]) if has_size(groups) and np.ptp(groups["log2_size"]) < 1e-9 else None


def _arrow(
    fig: Drawing,
    row: pd.Series,
    unit_name: str,
    lanes: tuple[str, ...],
    box: tuple[float, float, float, float],
    points: np.ndarray,
    theme: Theme,
) -> None:
    """From ring to dot of the selected group; a ring in ink where nothing moves. Its name stands beside its ring, in
    ink. ``box``: ends of the axes, log10. ``points``: of all groups, (n, 2), parts of the axes.
    """
    tail, head = (
        (np.log10(row["right"]), np.log10(row["left"])),
        (np.log10(row["right_after"]), np.log10(row["left_after"])),
    )
    if abs(tail[0] - head[0]) > 1e-9 or abs(tail[1] - head[1]) > 1e-9:
        fig.add_annotation(
            x=head[0],
            y=head[1],
            ax=tail[0],
            ay=tail[1],
            xref="x",
            yref="y",
            axref="x",
            ayref="y",
            showarrow=True,
            text="",
            arrowhead=2,
            arrowsize=1.1,
            arrowwidth=1.8,
            arrowcolor=theme.ink,
            standoff=3,
            startstandoff=4,
        )
    fig.add_scatter(
        x=[row["right"]],
        y=[row["left"]],
        mode="markers",
        hoverinfo="skip",
        name="selected",
        marker=dict(size=11, color="rgba(0,0,0,0)", line=dict(color=theme.ink, width=1.8)),
    )
    ring = np.array([(tail[0] - box[0]) / (box[1] - box[0]), (tail[1] - box[2]) / (box[3] - box[2])])
    x, y = _free_place(ring, points)
    if np.abs(y - ring[1]) > 0.09:  # a name that stands apart is led back to its ring
        fig.add_shape(
            type="line",
            xref="x domain",
            yref="y domain",
            x0=ring[0],
            y0=ring[1],
            x1=x,
            y1=y,
            line=dict(color=theme.quiet, width=1),
        )
    fig.add_annotation(
        text=words.plain_text(words.lane(int(row["layer"]), lanes[int(row["group"])]))
        if lanes
        else words.place(int(row["layer"]), unit_name, int(row["group"])),
        x=x,
        y=y,
        xref="x domain",
        yref="y domain",
        xanchor="center",
        yanchor="middle",
        borderpad=1,
        bgcolor=see_through(theme.page, 0.8),
        font=dict(size=12, color=theme.ink),
    )


def _free_place(ring: np.ndarray, points: np.ndarray) -> tuple[float, float]:
    """Middle of a name beside ``ring`` that covers the fewest of ``points`` ((n, 2), parts of the axes), the nearest of
    several.
    """
    wide, high = _NAME
    best = (np.inf, np.inf, 0.5, 0.5)
    for dy in (0.06, -0.06, 0.12, -0.12, 0.2, -0.2, 0.3, -0.3, 0.45, -0.45):
        for dx in (0.0, -0.15, 0.15, -0.3, 0.3):
            x = min(max(ring[0] + dx, wide), 1 - wide)
            y = ring[1] + dy
            if not high <= y <= 1 - high:
                continue
            covered = int((np.abs(points - (x, y)) < (wide, high)).all(1).sum())
            best = min(best, (covered, float(np.hypot(x - ring[0], y - ring[1])), x, y))
    return best[2], best[3]
