"""The curves and what decides how they are drawn."""

from dataclasses import replace

import numpy as np
import pandas as pd
import streamlit as st

from wisca_app import cached, state
from wisca_app.figures import compare, words
from wisca_app.figures.chart import Chart
from wisca_app.figures.runs import CONFIG, MOST_NAMED, Curve, curves, styles
from wisca_app.figures.template import DARK, LIGHT, Theme
from wisca_app.heading import show
from wisca_app.parts import KEPT, one_of, pick
from wisca_app.reading.drawn_runs import MOST_CURVES, X_LABELS, DrawnRuns, axes
from wisca_app.reading.planned import comparison
from wisca_core.runs.drawing import half_life
from wisca_core.runs.groups import ends_table, group_statistics, lower_is_better

_TOGETHER = {"configuration": "Configuration", "seed": "Seed", "none": "Single runs"}


def controls(shown: DrawnRuns) -> None:
    with st.container(border=True):
        st.multiselect("Metrics", shown.everything, key="curves", max_selections=MOST_CURVES, **KEPT)
        with st.container(horizontal=True, gap="medium", vertical_alignment="bottom"):
            pick(
                "Against", axes(shown.runs, shown.everything), "x", format_func=lambda x: X_LABELS.get(x, x), width=190
            )
            if len(shown.runs) > 1:
                one_of(
                    "Together",
                    _TOGETHER,
                    "together",
                    help="By configuration: runs that differ in nothing but their seed are one group.",
                )
                if state.get("together") != "none":
                    one_of("As", {"band": "Mean and band", "lines": "Lines"}, "shape")
            st.segmented_control("Log axes", ["x", "y"], selection_mode="multi", key="log_axes", **KEPT)
        with st.container(horizontal=True, gap="medium", vertical_alignment="bottom"):
            st.slider(
                "Smoothing",
                0.0,
                0.995,
                step=0.005,
                key="smoothing",
                width=230,
                **KEPT,
                help="A mean over the past, in which a value k points back weighs strength to the k. "
                "Nothing later enters.",
            )
            _window(shown)
            if shown.n_lines > MOST_NAMED:
                names = list(shown.groups) if shown.as_band else [run.name for run in shown.runs]
                if state.get("highlight") not in names:
                    state.put("highlight", None)
                pick("Bring out", names, "highlight", placeholder="none", width=230)


def _window(shown: DrawnRuns) -> None:
    """Where the chart begins and ends; points in between are drawn anew, in all their detail."""
    spans = []
    for run in shown.runs:
        for metric in shown.metrics:
            one = cached.line(shown.logs, run, metric, shown.x, 0.0, None, shown.most)
            if one is not None and np.isfinite(one.x).any():
                spans.append((float(np.nanmin(one.x)), float(np.nanmax(one.x))))
    if not spans:
        return
    span = (min(a for a, _ in spans), max(b for _, b in spans))
    whole = all(v == np.floor(v) and abs(v) < 2**53 for v in span)
    if not span[1] > span[0]:
        state.put("window", None)
        return
    before, chosen = state.note("window span"), state.get("window")
    if chosen is None or chosen == before or not (span[0] <= chosen[0] <= chosen[1] <= span[1]):
        chosen = span
    state.note("window span", span)
    kind = int if whole else float
    state.put("window", tuple(kind(v) for v in chosen))
    state.note("window span", tuple(kind(v) for v in span))
    st.slider(
        "From and to",
        kind(span[0]),
        kind(span[1]),
        key="window",
        width=300,
        help="Drawn anew with every point that fits.",
        **KEPT,
    )


def _chosen_window() -> tuple[float, float] | None:
    window = state.get("window")
    return None if window is None or window == state.note("window span") else (float(window[0]), float(window[1]))


def looks(shown: DrawnRuns, theme: Theme) -> dict[str, dict]:
    """Run -> its line style, the same whatever is shown or hidden: of its group, or, in one of our comparisons, of its
    arm as the Compare page draws it.
    """
    planned = comparison(shown.logs.runs)
    if planned:
        arms = compare.styles(planned.spec.arms, theme)
        return {
            run.name: dict(color=colour, dash=dash, width=1.8)
            for run in shown.logs.runs
            for colour, dash in [arms.get(run.config["arm"], (theme.quiet, "dot"))]
        }
    drawn = styles(theme, list(shown.all_groups))
    return {run.name: look for look, members in zip(drawn, shown.all_groups.values()) for run in members}


def draw(shown: DrawnRuns, theme: Theme) -> list[Chart]:
    """All charts, one a metric, two beside each other; returns them."""
    if len(shown.metrics) < 2:
        return [one for metric in shown.metrics if (one := _chart(shown, metric, theme, 344))]
    out = []
    for at in range(0, len(shown.metrics), 2):
        for place, metric in zip(st.columns(2, gap="medium"), shown.metrics[at : at + 2]):
            with place:
                out.append(_chart(shown, metric, theme, 280))
    return [one for one in out if one]


def _chart(shown: DrawnRuns, metric: str, theme: Theme, height: int) -> Chart | None:
    lines, of, n = _lines(shown, metric)
    finding = _finding(shown, metric)
    if not lines:
        st.subheader(words.markdown_text(metric), anchor=False)
        st.markdown(
            f":gray[No run has {words.markdown_text(metric)} against "
            f"{words.markdown_text(X_LABELS.get(shown.x, shown.x).lower())}.]"
        )
        return None
    look = {one.name: looks(shown, one) for one in (LIGHT, DARK)}
    log, x_title, highlight = state.get("log_axes"), _x_title(shown), state.get("highlight")
    one = Chart(
        words.markdown_text(finding),
        words.markdown_text(_how(shown, metric, lines, n)),
        _table(lines),
        f"curve {metric}"[:60],
        lambda theme: curves(
            [replace(line, look=look[theme.name][run]) for line, run in zip(lines, of)],
            x_title=x_title,
            y_title=metric,
            theme=theme,
            log_x="x" in log,
            log_y="y" in log,
            highlight=highlight,
            height=height,
        ),
        alt=f"{metric} of {words.plural(len(lines), 'line')}. {finding}.",
        of=shown.short,
        config=CONFIG,
    )
    show(one, theme, f"curve of {metric}")
    return one


def _lines(shown: DrawnRuns, metric: str) -> tuple[list[Curve], list[str], int]:
    """The lines of a chart, a run that each is of, and how many points were logged behind them."""
    window, n, out, of = _chosen_window(), 0, [], []
    scale = _time_unit()[0] if shown.x == "time" else 1.0
    for title, members in shown.groups.items():
        having = tuple(run for run in members if metric in run.series)
        if shown.as_band and len(having) > 1:
            found = cached.band(shown.logs, having, metric, shown.x, shown.smoothing, window, shown.most)
            if found is not None:
                n += sum(len(run.series[metric]) for run in having)
                out.append(Curve(title, found.x / scale, found.mean, found.low, found.high))
                of.append(having[0].name)
                continue
        for run in having:
            one = cached.line(shown.logs, run, metric, shown.x, shown.smoothing, window, shown.most)
            if one is not None and len(one.x):
                n += one.n_window
                name = title if shown.as_band and len(having) == 1 else run.name
                raw = one.raw if shown.smoothing and shown.n_lines <= 6 else None
                out.append(Curve(name, one.x / scale, one.y, raw=raw))
                of.append(run.name)
    return out, of, n


def _time_unit() -> tuple[float, str]:
    span = state.note("window span") or (0.0, 0.0)
    return (3600.0, "hours") if span[1] > 3 * 3600 else (60.0, "minutes") if span[1] > 300 else (1.0, "seconds")


def _x_title(shown: DrawnRuns) -> str:
    if shown.x == "time":
        return f"{_time_unit()[1]} since the start"
    return X_LABELS.get(shown.x, shown.x).lower() if shown.x in X_LABELS else shown.x


def _finding(shown: DrawnRuns, metric: str) -> str:
    """The chart's title: where the curves end."""
    table = ends_table(shown.groups, metric, lower_is_better(metric))
    last, whose = table["final"], ""
    if shown.as_band and len(shown.groups) < len(shown.runs):  # a line is the mean of a group
        last, whose = group_statistics(table)["mean"], " on average"
    finite = last[np.isfinite(last)]
    if not len(finite):
        return f"{metric} ends without a finite value"
    if len(finite) == 1:
        return f"{metric} ends at {words.digits(finite.iloc[0])}{whose}"
    return f"{metric} ends between {words.digits(finite.min())} and {words.digits(finite.max())}{whose}"


def _how(shown: DrawnRuns, metric: str, lines: list[Curve], n: int) -> str:
    parts = []
    if any(one.low is not None for one in lines):
        parts.append("Line: mean of a group's runs, where all of them have a value; band: lowest to highest.")
    if shown.smoothing:
        parts.append(
            f"Smoothed with strength {shown.smoothing:g}: a value weighs half after {half_life(shown.smoothing):.1f} "
            f"points; later points never enter."
            + (" Faint: as logged." if any(one.raw is not None for one in lines) else "")
        )
    drawn = sum(len(one.x) for one in lines)
    if drawn < n and not any(one.low is not None for one in lines):
        parts.append(
            f"{words.count(drawn)} of {words.count(n)} points drawn, every extreme among them; a smaller window shows "
            f"the rest."
        )
    gaps = sum(run.series[metric].n_nan + run.series[metric].n_infinite for run in shown.runs if metric in run.series)
    if gaps:
        parts.append(f"{words.plural(gaps, 'value is', 'values are')} NaN or infinite: the line is broken there.")
    missing = len(shown.runs) - sum(metric in run.series for run in shown.runs)
    if missing:
        parts.append(f"{words.plural(missing, 'run has', 'runs have')} no {metric}.")
    return " ".join([*(parts or ["Every point as it was logged."]), "Drag to zoom, double-click to go back."])


def _table(lines: list[Curve]) -> pd.DataFrame:
    """What is drawn, one row a point."""
    frames = [
        pd.DataFrame(
            {"line": one.name, "x": one.x, "y": one.y, "lowest": one.low, "highest": one.high, "as_logged": one.raw}
        )
        for one in lines
    ]
    return pd.concat(frames, ignore_index=True).dropna(axis=1, how="all") if frames else pd.DataFrame()
