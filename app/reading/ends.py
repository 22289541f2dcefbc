"""Where the runs end: the headline, final and best values, groups, the paired difference, and what their settings
differ in.
"""

import math

import numpy as np
import pandas as pd
import streamlit as st

from wisca_app import state
from wisca_app.figures import words
from wisca_app.heading import heading
from wisca_app.messages import plain
from wisca_app.parts import pick, quiet
from wisca_app.reading.drawn_runs import DrawnRuns
from wisca_app.reading.planned import arms, comparison, link, where
from wisca_core.runs.groups import (
    by_configuration,
    differences,
    ends_table,
    first_pair,
    group_statistics,
    lower_is_better,
    paired_difference,
    paired_sentence,
    standing,
)

_MOST_ROWS = 2000
_OF_GROUPS = ["Group", "Runs", "Not finite", "Mean", "SD", "95 % low", "95 % high", "Lowest", "Highest"]
_OF_RUNS = ["Run", "Group", "Seed", "Final", "At step", "Best", "Best at", "Values"]


def headline(shown: DrawnRuns) -> tuple[str, str]:
    """(title, sentence) out of the first metric drawn; names in them are foreign."""
    if not shown.metrics:
        n = sum(len(run.distributions) for run in shown.runs)
        return (
            f"{words.plural(n, 'histogram')} over the steps, and no curve",
            "Nothing in these logs is a single number.",
        )
    metric = shown.metrics[0]
    lower = lower_is_better(metric)
    table = ends_table(shown.groups, metric, lower)
    if not np.isfinite(table["final"]).any():
        return f"No run has a finite final {metric}", "The table below says where each of them stopped."
    stats = group_statistics(table)
    stats = stats[stats["runs"] > 0]
    if len(table) == 1:
        row = table.iloc[0]
        extreme = "lowest" if lower else "highest"
        best = f"Its {extreme} value is {words.digits(row['best'])}, at step {row['best_step']:,g}."
        return f"{row['run']}: {metric} {words.digits(row['final'])} at step {row['final_step']:,g}", best
    if len(stats) == 1:
        spread = f"Single runs end between {_span(stats['min'].min(), stats['max'].max())}."
        return (
            f"{words.plural(len(table), 'run')} end at {metric} {words.digits(stats['mean'].iloc[0])} on average",
            spread,
        )
    found = standing(shown.groups, metric)
    means = stats["mean"]
    if found.first:
        of = stats[stats["group"] == found.first].iloc[0]
        title = (
            f"{found.first} ends {'lowest' if lower else 'highest'}: {metric} {words.digits(of['mean'])}, mean of "
            f"{words.plural(int(of['runs']), 'run')}"
        )
    elif len(stats) == 2:
        both = (f"{words.digits(row['mean'])} ({row['group']})" for _, row in stats.iterrows())
        title = f"{metric} ends at {' and '.join(both)}"
    else:
        kind = "runs" if len(stats) == len(table) else "groups"
        title = f"{metric} of {len(stats)} {kind} ends between {_span(means.min(), means.max())}"
    lost = int(stats["not_finite"].sum())
    planned = comparison(shown.runs)
    parts = [found.why]
    if planned:
        parts.append(where(planned))
    if lost:
        those = "is" if lost == 1 else "are"
        parts.append(f"{words.plural(lost, 'run ends', 'runs end')} in NaN or infinity and {those} in no mean.")
    return title, " ".join(parts)


def _span(low: float, high: float) -> str:
    """ "2.307 and 2.351", with as many decimals on both sides as tell them apart."""
    return f"{words.digits(low)} and {words.digits(high)}"


def draw(shown: DrawnRuns) -> list[tuple[str, pd.DataFrame]]:
    """Final and best values of the first metric, by group and by run; returns (heading, table) of what was shown."""
    metric = shown.metrics[0]
    lower = lower_is_better(metric)
    table = ends_table(shown.groups, metric, lower)
    out: list[tuple[str, pd.DataFrame]] = []
    grouped = len(shown.groups) < len(table)
    if grouped:
        stats = group_statistics(table)
        view = stats.set_axis(_OF_GROUPS, axis=1)
        heading(
            f"Final {words.markdown_text(metric)} by group",
            "Mean over the runs with a finite value, with its 95 % t interval.",
            stats,
            "groups",
        )
        _frame(view, "Final values by group")
        out.append((f"Final {metric} by group", view))
    view = table[["run", "group", *table.columns[2:]]].set_axis(_OF_RUNS, axis=1)
    view = view if grouped else view.drop(columns="Group")
    heading(
        f"Final and best {words.markdown_text(metric)}",
        f"Final is the last value logged, best the {'lowest' if lower else 'highest'} finite one.",
        table,
        "ends",
    )
    _frame(view.head(_MOST_ROWS), "Final and best value of every run")
    out.append((f"Final and best {metric}", view))
    return out


def pairs(shown: DrawnRuns) -> str:
    """Two groups compared over the seeds they share; returns the sentence, "" where there is nothing to compare."""
    groups = shown.groups if state.get("together") == "configuration" else by_configuration(shown.runs)
    titles = [title for title, members in groups.items() if any(shown.metrics[0] in run.series for run in members)]
    if len(titles) < 2:
        return ""
    planned = comparison(shown.runs)
    a, b = first_pair(groups, titles, arms(planned))
    if state.get("from_group") not in titles:
        state.put("from_group", a)
    if state.get("to_group") not in titles:
        state.put(
            "to_group",
            b if b != state.get("from_group") else next(title for title in titles if title != state.get("from_group")),
        )
    st.subheader("Paired difference", anchor=False)
    quiet("Runs of one seed are compared with each other, so that what the seed does falls out. 95 % t interval.")
    with st.container(horizontal=True, gap="medium"):
        pick("From", titles, "from_group", width=300)
        pick("To", titles, "to_group", width=300)
    a, b = state.get("from_group"), state.get("to_group")
    if a == b:
        st.markdown(":gray[Choose two different groups.]")
        return ""
    metric = shown.metrics[0]
    result = paired_difference(groups, a, b, metric, lower_is_better(metric))
    sentence = paired_sentence(result, n_pairs=len(titles) - 1)
    if planned:
        sentence += f" {where(planned)}"
    st.markdown(words.markdown_text(sentence))
    if planned:
        link(planned)
    if result.left_out:
        with st.expander(f"Left out: {words.count(len(result.left_out))}"):
            for who, why in result.left_out:
                plain(f"{who}: {why}")
    return sentence


def settings(shown: DrawnRuns) -> pd.DataFrame | None:
    """What the configurations differ in."""
    if len(shown.runs) < 2:
        return None
    table = differences(shown.runs)
    if table.empty:
        said = sum(bool(run.config) for run in shown.runs)
        if said > 1:
            quiet(f"The settings of the {words.count(said)} runs that say them do not differ.")
        return None
    out = table.reset_index(drop=True)
    out.insert(0, next(name for name in ("Run", "Name of the run", "") if name not in out), table.index)
    heading(
        "Settings that differ",
        "Those that are the same everywhere, names, folders and dates are left out.",
        out,
        "settings",
    )
    _frame(out.head(_MOST_ROWS), "Settings in which the runs differ")
    return out


def _decimals(values: pd.Series) -> int:
    """Decimals for all of a column: those that give its largest value five digits."""
    sizes = values.abs()[np.isfinite(values)]
    top = float(sizes.max()) if len(sizes) else 0.0
    return int(min(8, max(0, 4 - math.floor(math.log10(top))))) if top > 0 else 2


def _frame(view: pd.DataFrame, alt: str) -> None:
    counted = [name for name in view.columns if view[name].dtype.kind == "i" or name in ("At step", "Best at")]
    floats = [name for name in view.columns if view[name].dtype.kind == "f" and name not in counted]
    # values of one metric have one number of decimals through all columns, as their spread has its own
    places = max((_decimals(view[name]) for name in floats if name != "SD"), default=0)
    columns = {name: st.column_config.NumberColumn(format=f"%.{places}f") for name in floats}
    columns |= {name: st.column_config.NumberColumn(format="localized") for name in counted}
    st.dataframe(
        view, hide_index=True, height=min(36 * (len(view) + 1) + 2, 400), column_config=columns, alt=alt, placeholder=""
    )
