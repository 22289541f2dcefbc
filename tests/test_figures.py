"""Figures from hand-made tables: what is drawn where, in which colour, and what the titles claim."""

import json
import math
import re

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from dashboard_page import decoded

from wisca_app.figures import balance, depth, findings, head, heatmap, words
from wisca_app.figures.template import (
    DARK,
    LIGHT,
    OCTAVES,
    blend,
    layer_ticks,
    log_ticks,
    octave_ticks,
    scale,
    theme_of,
)
from wisca_app.inspecting.drawn_pair import most_unbalanced_cells
from wisca_core.planning.head import HeadDetail, RoleDetail

NAN = float("nan")


def table(rows, size=0.0, pair="qk"):
    """rows: (layer, group, log2 before, log2 after); the right norm is 1 before."""
    rows = np.array(rows, dtype=float)
    before, after = rows[:, 2], rows[:, 3]
    return pd.DataFrame(
        {
            "name": [f"decoder.{int(layer)}.self.{pair}" for layer in rows[:, 0]],
            "layer": rows[:, 0].astype(int),
            "pair": pair,
            "block": "decoder.self",
            "group": rows[:, 1].astype(int),
            "n_left": 12,
            "n_right": 2,
            "left": 2**before,
            "right": 1.0,
            "left_after": 2 ** ((before + after) / 2),
            "right_after": 2 ** ((before - after) / 2),
            "log2_ratio": before,
            "log2_size": size,
            "log2_after": after,
        }
    )


def layers_of(groups):
    return groups.groupby("layer", as_index=False)[["log2_ratio", "log2_size", "log2_after"]].mean()


def draw(groups, theme=LIGHT, **more):
    n_layers = more.pop("n_layers", int(groups["layer"].max()) + 1)
    pair = more.pop("pair", "qk")
    groups = groups.assign(left_rate=2 ** (groups["log2_ratio"] / 2), right_rate=2 ** (-groups["log2_ratio"] / 2))
    return checked(heatmap.heatmap(groups, layers_of(groups), pair=pair, n_layers=n_layers, theme=theme, **more))


def checked(drawing) -> go.Figure:
    """The drawing as plotly's own figure, which refuses what it does not know."""
    return go.Figure(decoded(drawing.to_dict()))


def named(fig, name):
    return [trace for trace in fig.data if trace.name == name]


def colour_at(colourscale, octaves):
    """The stop at that ratio; only for ratios that are stops."""
    at = (octaves + OCTAVES) / (2 * OCTAVES)
    return next(colour for stop, colour in colourscale if abs(stop - at) < 1e-9)


# --- numbers and names ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("octaves", "text"),
    [
        (math.log2(7.8), "query 7.8×"),
        (-math.log2(1.5), "key 1.50×"),
        (0.0, "equal"),
        (math.log2(1.0049), "equal"),
        (math.log2(1.006), "query 1.01×"),
        (10.0, "query 1,024×"),
        (NAN, "×"),
        (math.inf, "×"),
    ],
)
def test_a_ratio_names_its_heavier_side(octaves, text):
    assert words.side("qk", octaves) == text


def test_vo_ratios_name_value_and_output():
    assert (words.side("vo", 1.0), words.side("vo", -1.0)) == ("value 2.0×", "output 2.0×")


def test_factors_are_powers_of_two_or_three_digits():
    assert [words.factor(f) for f in (0.25, 1.0, 2.0, 0.354, 12.34)] == ["2⁻²", "1", "2¹", "0.354", "12.3"]
    assert words.factors(0.25, 0.25) == "2⁻²" and words.factors(0.25, 0.5) == "2⁻² to 2⁻¹"
    assert words.factor(NAN) == "×"


def test_counts_and_sizes():
    assert words.count(262144) == "262,144"
    assert [words.parameters(n) for n in (3_100_000_000, 22_713_216, 512)] == [
        "3.1 B parameters",
        "22.7 M parameters",
        "512 parameters",
    ]
    assert [words.size(n) for n in (6_200_000_000, 999, 38_600)] == ["6.2 GB", "999 B", "38.6 kB"]
    assert [words.digits(v, 4) for v in (112384.2, 0.0476312, -3.14159, 0.0, 4e-9)] == [
        "112,384",
        "0.04763",
        "−3.142",
        "0",
        "4.000 × 10⁻⁹",
    ]


def test_ticks_are_written_as_on_the_axes():
    assert [words.axis_number(v) for v in (0, 0.3, 300, 10_000, 1e6, 2e-7, 1e-6)] == [
        "0",
        "0.3",
        "300",
        "10 k",
        "1 M",
        "2·10⁻⁷",
        "10⁻⁶",
    ]
    assert [words.octave(p) for p in (4, 0, -1, -2, -5)] == ["16×", "1×", "½×", "¼×", "1/32×"]
    assert (
        words.ranges([12, 13, 14, 17]) == "12 to 14 and 17"
        and words.ranges([3]) == "3"
        and words.ranges([0, 1]) == "0 and 1"
    )


def test_a_hostile_name_is_inert_in_markdown():
    hostile = '![x](http://e/x.png) <a href="x">$y$ :red[z] `c` # h\nnext'
    shown = words.markdown_text(hostile)
    assert "\n" not in shown
    assert not re.search(r"(?<!\\)[!\[\]()<>$:`#*_&]", shown)
    assert re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", shown).replace("\u2060", "") == hostile.replace("\n", " ")


# --- colours and axes -------------------------------------------------------------------------------------------------


def test_anything_but_dark_is_light():
    assert theme_of("dark") is DARK and theme_of("light") is LIGHT and theme_of(None) is LIGHT


def test_the_scale_fades_into_the_middle_and_ends_in_the_heavier_sides_colour():
    stops = scale(LIGHT, "q", "k")
    assert stops[0] == (0.0, "#7E4706") and stops[3] == (0.5, "#EFECE6") and stops[-1] == (1.0, "#12366B")
    assert stops[1] == (0.14, LIGHT.role["k"]) and stops[5] == (0.86, LIGHT.role["q"])
    assert blend("#000000", "#FF8040", 0.5) == "#804020"


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0.8, 50_000, ["1", "3", "10", "30", "100", "300", "1 k", "3 k", "10 k", "30 k"]),
        (900, 40_000, ["1 k", "3 k", "10 k", "30 k"]),
        (160, 650, ["200", "300", "400", "500", "600"]),
        (3.2, 3.9, ["3.2", "3.4", "3.6", "3.8"]),
        # losses: the low end, where they are read, has a tick
        (0.98 * 2.226, 1.02 * 5.42, ["2.2", "3", "4", "5"]),
        (0.98 * 1.36, 1.02 * 1.55, ["1.35", "1.4", "1.45", "1.5", "1.55"]),
        (0.98 * 1.29, 1.02 * 1.33, ["1.27", "1.3", "1.32", "1.34"]),
    ],
)
def test_log_ticks(low, high, labels):
    assert log_ticks(low, high, most=10)[1] == labels


def test_log_ticks_thin_out_over_many_decades_and_never_leave_the_axis():
    values, labels = log_ticks(1e-9, 1e9, most=5)
    assert 2 <= len(values) <= 6 and len(labels) == len(values)
    for low, high in ((1e-12, 1.1e-12), (5, 5.5), (99, 1e6), (0.11, 0.19)):
        values, _ = log_ticks(low, high)
        assert len(values) >= 2 and all(low <= v <= high for v in values), (low, high, values)


def test_octave_ticks_hold_balance_and_layer_ticks_hold_the_ends():
    assert octave_ticks(-1.2, 4.1) == ([-1, 0, 1, 2, 3, 4], ["½×", "1×", "2×", "4×", "8×", "16×"])
    assert 0 in octave_ticks(-7, 9)[0]
    assert layer_ticks(list(range(28))) == list(range(0, 28, 3))
    assert layer_ticks(list(range(80)))[-1] == 79 and layer_ticks([0]) == [0]


# --- heat map ---------------------------------------------------------------------------------------------------------

THREE = [(0, 0, 3.24, 0.0), (1, 0, -3.24, 0.5), (2, 0, 0.0, 0.0), (0, 1, 9.0, 1.0), (1, 1, NAN, NAN)]


def test_cells_lie_at_their_layer_and_group_and_are_clipped():
    fig = draw(table(THREE))
    z = np.asarray(named(fig, None)[0].z)
    assert z.shape == (2, 3)
    assert z[0, 0] == pytest.approx(3.24) and z[0, 1] == pytest.approx(-3.24) and z[1, 0] == OCTAVES
    assert np.isnan(z[1, 1]) and np.isnan(z[1, 2])


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_a_cell_takes_the_colour_of_its_heavier_side(theme):
    axis = draw(table(THREE), theme).layout.coloraxis
    assert (axis.cmin, axis.cmax) == (-OCTAVES, OCTAVES)
    assert colour_at(axis.colorscale, 0.72 * OCTAVES) == theme.role["q"]
    assert colour_at(axis.colorscale, -0.72 * OCTAVES) == theme.role["k"]
    assert colour_at(axis.colorscale, 0.0) == theme.middle
    vo = draw(table(THREE, pair="vo"), theme, pair="vo").layout.coloraxis
    assert (
        colour_at(vo.colorscale, 0.72 * OCTAVES) == theme.role["v"]
        and colour_at(vo.colorscale, -0.72 * OCTAVES) == theme.role["o"]
    )


def test_every_click_point_lies_on_the_cell_it_names_and_tells_its_sides_and_rates():
    fig = draw(table(THREE, size=1.0), view="size")
    seen = {}
    for trace in named(fig, "cells"):
        for x, y, data in zip(trace.x, trace.y, trace.customdata):
            assert (x, y) == tuple(data[:2])
            seen[int(x), int(y)] = (trace.hovertemplate, [round(float(v), 2) for v in data[2:]])
    assert set(seen) == {(0, 0), (1, 0), (2, 0), (0, 1), (1, 1)}
    said, numbers = seen[0, 1]
    # 9 octaves to the query, of which one is size; the root of 512 is 22.6
    assert numbers == [512.0, 256.0, 22.63, 0.04] and "query %{customdata[2]" in said and "click to open" in said
    assert "Wq at %{customdata[4]" in said and "apart from size query %{customdata[3]" in said
    said, numbers = seen[1, 0]
    assert numbers[:2] == [9.45, 18.9] and "key %{customdata[2]" in said and "apart from size key" in said
    assert "equal<br>apart from size key %{customdata[3]" in seen[2, 0][0] and seen[2, 0][1][1] == 2.0
    assert "no ratio" in seen[1, 1][0]
    after = next(t for t in named(draw(table(THREE), view="after"), "cells") if (1, 0) in zip(t.x, t.y))
    assert "after query %{customdata[3]" in after.hovertemplate


def test_a_cell_without_a_ratio_bears_a_cross_and_an_uncovered_one_stays_blank():
    fig = draw(table(THREE))
    marks = named(fig, "no ratio, mark")
    assert marks and all((list(m.x), list(m.y), list(m.text)) == ([1], [1], ["×"]) for m in marks)
    assert not any((2, 1) in zip(t.x, t.y) for t in fig.data if t.type == "scattergl")


def test_each_view_draws_its_own_octaves():
    groups = table(THREE, size=2.0)
    drawn = {view: np.asarray(named(draw(groups, view=view), None)[0].z)[0, 0] for view in heatmap.VIEWS}
    assert drawn == {"size": pytest.approx(1.24), "stored": pytest.approx(3.24), "after": pytest.approx(0.0)}
    assert (
        heatmap.has_size(groups) and not heatmap.has_size(table(THREE)) and not heatmap.has_size(table(THREE, size=NAN))
    )


def test_the_selected_cell_is_framed_and_no_other():
    def frames(fig):
        return [(s.x0, s.x1, s.y0, s.y1) for s in fig.layout.shapes if s.line.width == 2.5]

    assert frames(draw(table(THREE, size=1.0), selected=(1, 0))) == [(0.5, 1.5, -0.5, 0.5)]
    assert frames(draw(table(THREE))) == []


def test_two_models_are_two_maps_and_their_change_on_one_scale():
    groups = table([(0, 0, 2.0, 0.0), (1, 0, -1.0, 0.0)])
    strips = [
        ("<a href=x>mine</a>", groups, np.array([2.0, -1.0])),
        ("theirs", groups, np.array([1.0, -1.0])),
        ("Change", groups, np.array([1.0, 0.0])),
    ]
    fig = checked(heatmap.beside_maps(strips, pair="qk", n_layers=2, theme=LIGHT, unit_name="layer"))
    assert [np.asarray(t.z)[0].tolist() for t in fig.data if t.type == "heatmap"] == [[2, -1], [1, -1], [1, 0]]
    assert fig.layout.coloraxis.cmax == 2.0
    assert "&lt;a href" in fig.layout.annotations[0].text  # a name is never read as a link


def test_the_layers_line_is_ring_before_dot_after_with_size_and_band():
    fig = draw(table([(0, 0, 2.0, 0.5), (1, 0, 3.0, 0.25)], size=2.0))
    (before,), (after,) = named(fig, "before"), named(fig, "after")
    assert list(before.y) == [2.0, 3.0] and list(after.y) == [0.5, 0.25]
    assert before.marker.color == LIGHT.page and after.marker.color == after.marker.line.color
    assert list(before.text) == ["query 4.0×", "query 8.0×"]
    assert any(s.type == "line" and s.y0 == s.y1 == 2.0 and s.line.dash == "dot" for s in fig.layout.shapes)
    assert any(s.type == "rect" and (s.y0, s.y1) == (-1, 1) for s in fig.layout.shapes)


@pytest.mark.parametrize("shape", [(1, 1), (80, 64), (6, 12), (80, 8)])
def test_every_size_of_model_is_drawn_within_a_few_hundred_kilobytes(shape):
    n_layers, n_groups = shape
    rng = np.random.default_rng(0)
    cells = [(layer, group, *rng.normal(1, 2, 2)) for layer in range(n_layers) for group in range(n_groups)]
    fig = draw(table(cells, size=0.0))
    assert np.asarray(named(fig, None)[0].z).shape == (n_groups, n_layers)
    assert fig.layout.height < 520  # with what stands above it, on the first screen


def test_the_download_of_the_map_has_one_row_a_cell():
    assert len(heatmap.columns(table(THREE).assign(left_rate=1.0, right_rate=1.0))) == 5


# --- balance ----------------------------------------------------------------------------------------------------------


def plot(groups, theme=LIGHT, **more):
    pair = more.pop("pair", "qk")
    return checked(balance.balance(groups, pair=pair, norm="l1", matrices=("Wq", "Wk"), theme=theme, **more))


def test_rings_and_dots_lie_at_the_norms_in_the_heavier_sides_colour():
    fig = plot(table([(0, 0, 2.0, 1.0), (5, 3, -2.0, -1.0)]), DARK)
    (query,), (key,) = named(fig, "query heavier before"), named(fig, "key heavier before")
    assert (list(query.x), list(query.y)) == ([1.0], [4.0]) and (list(key.x), list(key.y)) == ([1.0], [0.25])
    assert query.marker.line.color == DARK.role["q"] and key.marker.line.color == DARK.role["k"]
    assert query.marker.color == DARK.page  # a ring
    (dot,) = named(fig, "query heavier after")
    assert [*dot.x, *dot.y] == pytest.approx([2**0.5, 2**1.5]) and dot.marker.color == DARK.role["q"]
    assert np.asarray(key.customdata).tolist() == [[5, 3]]


def test_a_pair_that_tips_over_changes_its_colour():
    fig = plot(table([(0, 0, 2.0, -0.5)]))
    assert (
        named(fig, "query heavier before") and named(fig, "key heavier after") and not named(fig, "query heavier after")
    )


def test_a_level_pair_has_no_colour():
    fig = plot(table([(0, 0, 2.0, 1e-16), (1, 0, 2.0, -1e-16)]))
    (level,) = named(fig, "level after")
    assert len(level.x) == 2 and level.marker.color == LIGHT.quiet


def test_axes_are_logarithmic_of_equal_scale_and_length():
    layout = plot(table(THREE)).layout
    assert (
        layout.xaxis.type == layout.yaxis.type == "log"
        and layout.yaxis.scaleanchor == "x"
        and layout.yaxis.scaleratio == 1
    )
    assert layout.xaxis.range[1] - layout.xaxis.range[0] == pytest.approx(layout.yaxis.range[1] - layout.yaxis.range[0])


def test_diagonal_size_line_and_band_are_where_they_belong():
    fig = plot(table(THREE, size=2.0))
    lines = {
        t.name: ([y / x for x, y in zip(t.x, t.y)], t.line.dash)
        for t in fig.data
        if t.name in ("equal norms", "size alone")
    }
    assert lines == {"equal norms": (pytest.approx([1, 1]), "solid"), "size alone": (pytest.approx([4, 4]), "dot")}
    order = [t.name for t in fig.data]
    assert (
        order.index("within 2×") < order.index("equal norms") < order.index("query heavier before")
    )  # the band hides no line, a line no point
    (band,) = named(fig, "within 2×")
    assert sorted(round(y / x, 6) for x, y in zip(band.x, band.y)) == [0.5, 0.5, 2.0, 2.0]
    assert "size alone" not in [t.name for t in plot(table(THREE, size=NAN)).data]
    written = [a.text for a in fig.layout.annotations if a.textangle]
    assert written == ["equal norms", "size alone, 4.0×"]


@pytest.mark.parametrize("lean", [4.0, -4.0, 0.3])
def test_the_name_of_the_selected_point_stands_near_it_and_covers_none(lean):
    rng = np.random.default_rng(1)
    groups = table(
        [(layer, group, lean + rng.normal(0, 0.3), 0.02) for layer in range(8) for group in range(2)], size=2.0
    )
    fig = plot(groups, selected=(5, 0))
    (name,) = [a for a in fig.layout.annotations if a.text == "layer 5, KV group 0"]
    (low_x, high_x), (low_y, high_y) = fig.layout.xaxis.range, fig.layout.yaxis.range
    row = groups[(groups["layer"] == 5) & (groups["group"] == 0)].iloc[0]
    ring = (np.log10(row["right"]) - low_x) / (high_x - low_x), (np.log10(row["left"]) - low_y) / (high_y - low_y)
    assert np.hypot(name.x - ring[0], name.y - ring[1]) < 0.45
    for t in fig.data:
        if t.mode == "markers":
            x, y = (np.log10(t.x) - low_x) / (high_x - low_x), (np.log10(t.y) - low_y) / (high_y - low_y)
            assert not ((np.abs(x - name.x) < 0.22) & (np.abs(y - name.y) < 0.03)).any()


def test_only_the_selected_pair_bears_an_arrow_from_before_to_after():
    groups = table([(0, 0, 2.0, 1.0), (1, 0, 4.0, 0.0)])
    arrows = [a for a in plot(groups, selected=(1, 0)).layout.annotations if a.showarrow]
    assert len(arrows) == 1
    (arrow,) = arrows
    assert (arrow.ax, arrow.ay) == pytest.approx((0.0, 4 * math.log10(2)))
    assert (arrow.x, arrow.y) == pytest.approx((2 * math.log10(2), 2 * math.log10(2)))
    assert not [a for a in plot(groups).layout.annotations if a.showarrow]
    assert not [a for a in plot(table([(0, 0, 2.0, 2.0)]), selected=(0, 0)).layout.annotations if a.showarrow]


def test_pairs_without_two_positive_norms_are_left_out_and_none_at_all_is_said():
    groups = table([(0, 0, 2.0, 1.0), (1, 0, NAN, NAN)])
    assert [len(t.x) for t in plot(groups).data if t.name.endswith(("before", "after"))] == [1, 1]
    empty = plot(groups[groups["layer"] == 1])
    assert not empty.data and "no pair" in empty.layout.annotations[0].text


def test_thousands_of_pairs_are_drawn_by_webgl_without_lines():
    rng = np.random.default_rng(0)
    groups = table([(i // 64, i % 64, *rng.normal(0, 2, 2)) for i in range(5120)])
    fig = plot(groups)
    assert {t.type for t in fig.data if t.name.endswith(("before", "after"))} == {"scattergl"} and not [
        t for t in fig.data if t.name.endswith("path")
    ]
    drawn = balance.balance(groups, pair="qk", norm="l1", matrices=("Wq", "Wk"), theme=LIGHT)
    assert len(json.dumps(drawn.to_dict())) < 300_000  # as it goes to the browser


# --- heads over depth -------------------------------------------------------------------------------------------------


def heads_table(n_layers, counts, before=lambda role, layer, i: 10.0 + i, after=lambda role, layer, i: 5.0 + i):
    return pd.DataFrame(
        [
            {
                "name": f"decoder.{layer}.self.{'qk' if role in 'qk' else 'vo'}",
                "layer": layer,
                "pair": "qk" if role in "qk" else "vo",
                "role": role,
                "head": i,
                "n": 8,
                "n_zero": 0,
                "n_nonfinite": 0,
                "before": before(role, layer, i),
                "after": after(role, layer, i),
            }
            for role, n in counts.items()
            for layer in range(n_layers)
            for i in range(n)
        ]
    )


def test_few_heads_are_dots_and_many_are_bars_from_tenth_to_ninetieth_percentile():
    fig = checked(depth.depth(heads_table(2, {"q": 11, "k": 4}), n_layers=2, theme=LIGHT))
    bars = [t for t in fig.data if t.type == "bar"]
    assert [(t.name, list(t.base), list(t.y)) for t in bars] == [
        ("before", [11.0, 11.0], [8.0, 8.0]),
        ("after", [6.0, 6.0], [8.0, 8.0]),
    ]
    assert bars[0].marker.color == "rgba(0,0,0,0)" and bars[1].marker.color == LIGHT.role["q"]
    assert list(named(fig, "median before")[0].y) == [15.0, 15.0]
    dots = [t for t in fig.data if t.xaxis == "x2" and t.mode == "markers"]
    assert [(t.name, len(t.x)) for t in dots] == [("before", 8), ("after", 8)]
    assert dots[0].marker.color == LIGHT.page and dots[1].marker.color == LIGHT.role["k"]


def test_a_head_far_beyond_its_bar_is_a_dot():
    heads = heads_table(1, {"q": 30}, before=lambda r, layer, i: 1e4 if i == 29 else 100.0 + i)
    fig = checked(depth.depth(heads, n_layers=1, theme=LIGHT))
    (outlier,) = [t for t in fig.data if t.type != "bar" and t.name == "before"]
    assert list(outlier.y) == [1e4] and list(outlier.customdata) == [29]


def test_heads_that_are_alike_keep_their_marks_before_and_after():
    """Their bar has no height: a ring and a dot stand for it."""
    heads = heads_table(2, {"q": 12}, before=lambda r, layer, i: 10.0, after=lambda r, layer, i: 5.0)
    fig = checked(depth.depth(heads, n_layers=2, theme=LIGHT))
    (ring,), (dot,) = named(fig, "median before"), named(fig, "median after")
    assert (
        list(ring.y) == [10.0, 10.0] and ring.marker.color == LIGHT.page and ring.marker.line.color == LIGHT.role["q"]
    )
    assert list(dot.y) == [5.0, 5.0] and dot.marker.color == LIGHT.role["q"] and dot.marker.symbol is None


def test_all_panels_share_one_log_axis_in_the_order_q_k_v_o():
    fig = checked(depth.depth(heads_table(3, {"o": 2, "v": 2, "q": 2, "k": 2}), n_layers=3, theme=DARK))
    axes = [fig.layout[f"yaxis{n}"] for n in ("", 2, 3, 4)]
    assert {a.type for a in axes} == {"log"} and len({tuple(a.range) for a in axes}) == 1
    assert axes[0].range[0] <= math.log10(5) and axes[0].range[1] >= math.log10(11)
    assert [a.text.split(",")[0] for a in fig.layout.annotations] == ["Query", "Key", "Value", "Output"]
    assert [a.font.color for a in fig.layout.annotations] == [DARK.word[r] for r in "qkvo"]


def test_gains_are_called_gains_and_nan_heads_do_not_break_the_axis():
    heads = heads_table(2, {"q": 1, "k": 1, "v": 2}, before=lambda r, layer, i: NAN if r == "v" and layer else 1.0)
    fig = checked(depth.depth(heads, n_layers=2, theme=LIGHT, gains={"q", "k"}))
    assert [a.text for a in fig.layout.annotations] == [
        "Query gains, one set a layer",
        "Key gains, one set a layer",
        "Value, 2 heads a layer",
    ]
    assert all(np.isfinite(fig.layout.yaxis.range))


# --- one head ---------------------------------------------------------------------------------------------------------


def role(name, factor=(0.5, 0.5), channels=(1.0, 2.0, 4.0, 8.0)):
    channels = np.array(channels)
    return RoleDetail(
        name,
        f"{name}.weight",
        (8, 4),
        2 if name == "q" else 1,
        (2.0, 1.0),
        (1.0, 0.5),
        (0.5, 0.25),
        (0.1, 0.05),
        factor,
        0,
        0,
        np.array([-2.0, -1.75, -1.5, -1.25]),
        np.array([0.0, 25.0, 75.0]),
        np.array([25.0, 75.0, 0.0]),
        channels,
        channels * factor[0],
    )


def detail(turns=None, spectrum=True, **more):
    values = {
        "left": [8.0, 2.0],
        "right": [1.0, 0.5],
        "left_after": [4.0, 1.0],
        "right_after": [2.0, 1.0],
        "product": [6.0, 0.5],
    }
    return HeadDetail(
        "decoder.0.self.qk",
        0,
        (role("q", **more), role("k", (2.0, 2.0))),
        turns,
        0,
        {k: np.array(v) for k, v in values.items()} if spectrum else {},
        "note",
    )


def test_histogram_is_an_outline_before_and_filled_after_on_quarter_octaves():
    fig = checked(head.histogram(detail(), theme=LIGHT))
    (bar,), (line,) = named(fig, "q after"), named(fig, "q before")
    assert (
        list(bar.x) == [-1.875, -1.625, -1.375]
        and list(bar.y) == [25.0, 75.0, 0.0]
        and bar.marker.color == LIGHT.role["q"]
    )
    assert list(line.x[:3]) == [-2.0, -1.75, -1.5] and list(line.y[:3]) == [0.0, 25.0, 75.0] and line.line.shape == "hv"
    assert line.line.color == LIGHT.ink
    assert [a.text for a in fig.layout.annotations][:2] == ["Query, 2 heads", "Key, 1 head"]


def test_channels_lie_over_tokens_per_turn_and_only_rotating_ones_are_drawn():
    fig = checked(head.channels(detail(turns=np.array([6.28, 62.8, 628.0, NAN])), theme=LIGHT))
    (before,), (after,) = named(fig, "query before"), named(fig, "query after")
    assert (
        list(before.x) == [6.28, 62.8, 628.0] and list(before.y) == [1.0, 2.0, 4.0] and list(after.y) == [0.5, 1.0, 2.0]
    )
    assert before.line.dash == "dot" and after.line.dash == "solid" and fig.layout.xaxis.type == "log"
    plain = checked(head.channels(detail(), theme=LIGHT))
    assert list(named(plain, "query before")[0].x) == [0, 1, 2, 3] and plain.layout.xaxis.type is None


def test_the_product_is_one_curve_and_its_factors_are_two_each():
    fig = checked(head.spectrum(detail(), theme=LIGHT))
    assert [t.name for t in fig.data] == [
        "query before",
        "key before",
        "query after",
        "key after",
        "product, before = after",
    ]
    assert [t.line.dash for t in fig.data] == ["dot", "dot", "solid", "solid", "solid"]
    assert list(fig.data[-1].y) == [6.0, 0.5] and fig.data[-1].line.color == LIGHT.ink
    assert not head.spectrum(detail(spectrum=False), theme=LIGHT).data


def test_a_head_of_nan_or_zero_is_drawn_without_a_crash():
    empty = RoleDetail(
        "q",
        "q.weight",
        (8, 4),
        1,
        (NAN, NAN),
        (NAN, NAN),
        (NAN, NAN),
        (NAN, NAN),
        (1.0, 1.0),
        0,
        32,
        np.zeros(1),
        np.zeros(0),
        np.zeros(0),
        np.full(4, NAN),
        np.full(4, NAN),
    )
    one = HeadDetail("x", 0, (empty, empty), None, 0, {}, "A value is not finite.")
    for draw_one in (head.histogram, head.channels, head.spectrum):
        assert not draw_one(one, theme=LIGHT).data or draw_one is head.channels
    assert len(head.histogram_table(one)) == 0 and len(head.spectrum_table(one)) == 0


def test_head_tables_have_a_row_a_bin_a_channel_and_a_singular_value():
    one = detail(turns=np.array([6.28, 62.8, 628.0, NAN]))
    assert (
        len(head.histogram_table(one)) == 6 and len(head.channel_table(one)) == 8 and len(head.spectrum_table(one)) == 2
    )
    assert head.spectrum_table(one)["product"].tolist() == [6.0, 0.5]


# --- titles -----------------------------------------------------------------------------------------------------------


def title(*octaves, unit="KV group", pair="qk"):
    return findings.map_title(pd.DataFrame({"layer": range(len(octaves)), "log2_ratio": octaves}), pair, unit)


def test_the_maps_title_says_what_the_cells_show():
    assert title(2, 2, 2, -2) == "1 of 4 KV groups leans to the key; the others lean to the query"
    assert title(2, 3, 2) == "All 3 KV groups lean to the query"
    assert title(-2, -2, 2) == "1 of 3 KV groups leans to the query, 2 to the key"
    assert title(0.5, -1, 0.2) == "All 3 KV groups are within 2× of balance"
    assert title(3, unit="layer") == "The only layer leans to the query, 8.0×"
    assert title(0.1, unit="layer") == "The only layer is within 2× of balance"


def test_a_and_b_have_no_article():
    assert title(2, 3, unit="adapted part", pair="lora") == "All 2 adapted parts lean to A"
    assert title(-2, 3, 2, 2, unit="adapted part", pair="lora").startswith(
        "1 of 4 adapted parts leans to B; the others lean to A"
    )


def test_the_maps_title_follows_the_view():
    groups = table([(0, 0, 3.0, 0.2), (1, 0, 2.0, 1.5), (2, 0, 4.5, 0.0)], size=2.0)
    assert findings.map_title(groups, "qk", "KV group", "size") == "Apart from size, 1 of 3 KV groups stands out"
    assert (
        findings.map_title(groups, "qk", "KV group", "after")
        == "After balancing, 1 of 3 KV groups stays more than 2× apart"
    )
    assert (
        findings.map_title(groups[:2], "qk", "head", "size") == "Apart from size, all 2 heads are within 2× of balance"
    )
    lost = table([(0, 0, 2.0, 0.0), (1, 0, NAN, NAN)], size=2.0)
    assert (
        findings.map_title(lost, "qk", "layer", "after")
        == "After balancing, the only layer is within 2× of balance; 1 without a ratio"
    )


def test_the_title_of_two_models_says_how_far_they_differ():
    assert findings.beside_title(np.array([0.0, 1e-4])) == "Both are alike in every cell"
    assert findings.beside_title(np.array([0.5, -0.2, NAN])) == "No cell differs by more than 1.41×"
    assert findings.beside_title(np.array([3.0, -1.2, 0.1])) == "2 of 3 cells differ by more than 2×"
    assert findings.beside_title(np.array([NAN])) == "No cell has a ratio in both"


def test_the_maps_title_says_where_and_stays_silent_where_that_is_nowhere():
    assert title(4, 2, 2, 2, 2, 2, 2, 4) == "All 8 KV groups lean to the query, most of all at both ends of the depth"
    assert title(4, 4, 2, 2, 2, 2, 2, 2).endswith("most of all in the first layers")
    assert title(2, 2, 2, 2, 2, 2, 4, 4).endswith("most of all in the last layers")
    assert title(2, 2, 4, 4, 4, 4, 2, 2).endswith("most of all in the middle layers")
    assert title(2, 2, 2, 2, 2, 2, 2.1, 2.1) == "All 8 KV groups lean to the query"


def test_the_maps_title_counts_what_has_no_ratio_and_claims_nothing_without_one():
    assert title(2, 2, NAN) == "All 2 KV groups lean to the query; 1 without a ratio"
    assert title(NAN, math.inf) == "Query against key: no ratio is known"


def test_the_balance_title_follows_the_options():
    assert findings.balance_title(table([(0, 0, 3, 0), (1, 0, -2, 0)])) == "Rescaling puts every pair on the diagonal"
    assert (
        findings.balance_title(table([(0, 0, 3, 1), (1, 0, -2, 0)]))
        == "Rescaling brings every pair nearer the diagonal"
    )
    assert (
        findings.balance_title(table([(0, 0, 3, 1), (1, 0, 0.5, 1), (2, 0, 2, 0)]))
        == "Rescaling brings 2 of 3 pairs nearer the diagonal"
    )
    assert (
        findings.balance_title(table([(0, 0, 1, 2), (1, 0, 3, 2), (2, 0, 1, 2)]))
        == "Only 1 of 3 pairs comes nearer the diagonal"
    )
    assert findings.balance_title(table([(0, 0, 3, 3)])) == "Norm against norm: nothing moves with these options"
    assert findings.balance_title(table([(0, 0, NAN, NAN)])) == "Norm against norm: nothing moves with these options"


def test_the_depth_title_says_which_way_each_role_moves():
    factor = {"q": 0.5, "k": 2.0, "v": 1.0, "o": 0.5}
    heads = heads_table(2, dict.fromkeys("qkvo", 2), after=lambda r, layer, i: (10.0 + i) * factor[r])
    assert findings.depth_title(heads) == "Every head over depth: queries and outputs come down, keys go up"
    still = heads_table(2, {"q": 2}, after=lambda r, layer, i: 10.0 + i)
    assert findings.depth_title(still) == "Every head over depth: nothing moves with these options"


def test_the_head_titles_are_findings_with_a_neutral_fallback():
    turns = 2 * np.pi * 10.0 ** np.arange(6)
    assert findings.channel_title(np.array([1, 1, 1, 1, 4, 4.0]), turns) == "Slow rotary pairs weigh most"
    assert findings.channel_title(np.array([4, 4, 1, 1, 1, 1.0]), turns) == "Fast rotary pairs weigh most"
    assert findings.channel_title(np.ones(6), turns) == "Fast and slow rotary pairs weigh about the same"
    assert findings.channel_title(np.array([1, 1, 1, 1, 1, 8.0]), None) == "The heaviest channel is 8.0× the median"
    assert findings.channel_title(np.array([1, NAN, 1, 1]), None) == "Channels along the head"
    assert findings.spectrum_title(detail().spectrum) == "The product stays put"
    still = detail().spectrum | {"left_after": np.array([8.0, 2.0]), "right_after": np.array([1.0, 0.5])}
    assert (
        findings.spectrum_title(still) == "Singular values of the head"
        and findings.spectrum_title({}) == "No singular values"
    )


# --- the most unbalanced ----------------------------------------------------------------------------------------------


def plan_of(groups, factors, number=-1):
    low, high = np.array(factors, float).T
    return pd.DataFrame(
        {
            "name": groups["name"],
            "group": number,
            "factor_low": low,
            "factor_high": high,
            "right_low": 1 / high,
            "right_high": 1 / low,
        }
    )


def test_the_most_unbalanced_come_first_whatever_the_median_is():
    groups = table([(0, 0, 3, 0), (1, 0, 3.2, 0), (2, 0, -3.5, 0), (3, 0, 0, 0), (4, 0, NAN, NAN)])
    plan = plan_of(groups, [(0.5, 0.5), (0.4, 0.4), (4, 4), (1, 1), (1, 1)])
    out = most_unbalanced_cells(groups, plan, most=2)
    assert out["layer"].tolist() == [2, 1] and out["factor_low"].tolist() == [4.0, 0.4]
    assert out["right_low"].tolist() == [0.25, 2.5] and len(most_unbalanced_cells(groups, plan)) == 4


def test_a_factor_of_the_group_wins_over_that_of_the_tensor():
    groups = table([(0, 0, 3, 0), (0, 1, 1, 0)])
    out = most_unbalanced_cells(groups, plan_of(groups, [(0.25, 0.25), (0.5, 0.6)], [0, 1]))
    assert dict(zip(out["group"], zip(out["factor_low"], out["factor_high"]))) == {0: (0.25, 0.25), 1: (0.5, 0.6)}


@pytest.mark.parametrize(("largest", "end"), [(0.4, "1.5×"), (1.9, "4×"), (2.3, "6×"), (2.6, "8×"), (9.0, "22.6×")])
def test_colours_span_no_more_than_the_ratios_need(largest, end):
    fig = draw(table([(0, 0, largest, 0.0), (1, 0, -0.1, 0.0)]))
    axis = fig.layout.coloraxis
    assert axis.cmax == -axis.cmin and 2**axis.cmax == pytest.approx(float(end[:-1]), rel=1e-2)
    assert {f"query {end}", f"key {end}", "equal"} <= {a.text for a in fig.layout.annotations}
