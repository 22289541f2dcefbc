"""The charts of a comparison, each under its finding, with one line how to read it and its data to take away."""

import pandas as pd
import streamlit as st

from wisca_app import state
from wisca_app.comparing import values
from wisca_app.figures import compare, words
from wisca_app.figures.chart import Chart
from wisca_app.figures.template import Theme
from wisca_app.heading import show
from wisca_app.parts import one_of, quiet
from wisca_core.comparison import folder
from wisca_core.comparison.folder import Comparison
from wisca_core.comparison.report import Report

_STATES = {"waiting": "waiting", "running": "running", "done": "finished", "failed": "failed"}


def draw_curves(
    comparison: Comparison, frame: pd.DataFrame, report: Report | None, theme: Theme, prefix: str = ""
) -> float | None:
    """Returns the learning rate that is shown, None where each arm has one of its own. ``frame``: of folder.curves,
    read once a page. ``prefix``: of the keys, so that a live page and a finished one are not the same widgets.
    """
    rate = _choose_rate(comparison, report)
    one = values.curves(comparison, frame, report, rate)
    if one is None:
        st.markdown(f":gray[No run{f' at {rate:g}' if rate else ''} has a row yet.]")
    else:
        show(one, theme, f"{prefix}curves chart")
    return rate


def draw_ratios(
    comparison: Comparison, frame: pd.DataFrame, rate: float | None, theme: Theme, prefix: str = ""
) -> None:
    pairs = values.pairs(comparison)
    state.follow("compare_pair", pairs[-1] if len(pairs) > 2 else "qk", pairs)
    pair = one_of("Pair", pairs, "compare_pair", said=words.PAIR_LABELS, label_visibility="collapsed")
    draw_one(values.ratios(comparison, frame, rate, pair), theme, f"{prefix}ratio chart")


def draw_one(chart: Chart | None, theme: Theme, key: str) -> None:
    """The chart, nothing where nothing of it is there yet."""
    if chart is not None:
        show(chart, theme, key)


def draw_table(comparison: Comparison, report: Report) -> None:
    st.subheader("All arms", anchor=False)
    quiet(values.how_to_read(report))
    st.dataframe(values.shown_table(report, comparison), hide_index=True, alt="Every arm against the baseline")


def draw_runs(comparison: Comparison) -> None:
    """Every run with its state; failures with their reason."""
    failed = [c for c in comparison.cells if c.state == "failed"]
    with st.expander(
        f"Runs: {len(comparison.cells)}" + (f", {len(failed)} failed" if failed else ""), key="compare_runs"
    ):
        names = compare.labels(comparison.spec.arms)
        st.dataframe(
            pd.DataFrame(
                [
                    {
                        "Arm": names[c.arm],
                        "Rate": f"{c.rate:g}",
                        "Seed": f"{c.seed}, pilot" if c.is_pilot else str(c.seed),
                        "State": _STATES[c.state],
                        "Step": c.step,
                        "Seconds": round(c.seconds, 1),
                        "Reason": c.reason,
                    }
                    for c in comparison.cells
                ]
            ),
            hide_index=True,
            alt="All runs of this comparison",
        )


def _choose_rate(comparison: Comparison, report: Report | None) -> float | None:
    """At first the one that the verdict speaks of; None after a pilot."""
    own, rates = values.shown_rate(comparison, report), comparison.spec.optimiser.learning_rates
    if own is None or len(rates) == 1:
        return own
    state.follow("compare_rate", own, rates)
    return one_of("Learning rate", rates, "compare_rate", format_func="{:g}".format)


def draw_log(comparison: Comparison, prefix: str = "") -> None:
    """The end of what the training processes printed."""
    lines = folder.log_lines(comparison)
    with st.expander("Log", key=f"{prefix}compare_log"):
        if lines:
            st.code("\n".join(lines), language=None, wrap_lines=True)
        else:
            st.markdown(":gray[Nothing was printed.]")
