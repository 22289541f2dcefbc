"""A comparison that has stopped: what may be said, the charts behind it, and what can be done next."""

import json

import pandas as pd
import streamlit as st

from wisca_app import state
from wisca_app.comparing import advice, charts, choosing, setup, values, weights
from wisca_app.comparing.facts import facts
from wisca_app.figures import words
from wisca_app.figures.template import theme_of
from wisca_app.heading import show
from wisca_app.job_progress import explain, latest
from wisca_app.messages import errors_as_messages, plain
from wisca_app.parts import primary, quiet, take_away
from wisca_app.report.comparison import document_of
from wisca_core.comparison import folder
from wisca_core.comparison.folder import Comparison
from wisca_core.comparison.paper import for_scale
from wisca_core.comparison.report import Report, remarks, report
from wisca_core.words import join_names

_STOPPED = {
    "new": "Not started yet.",
    "paused": "Paused.",
    "cancelled": "Cancelled.",
    "failed": "Stopped by an error.",
    "interrupted": "Interrupted: its process ended without a word.",
}


def draw(comparison: Comparison, is_sample: bool) -> None:
    finished = sum(c.state == "done" for c in comparison.tested)
    frame = folder.curves(comparison)
    found = report(comparison, frame) if finished else None
    if found and comparison.state != "done" and all(e.loss.n < 2 for e in found.main):
        found = None  # no interval yet: curves and runs say all there is
    _say(comparison, found, finished)
    _actions(comparison, frame, found, is_sample)
    theme = theme_of(st.context.theme.type)
    if not found:
        pilot = folder.curves(comparison, of_pilot=True) if comparison.spec.pilot.seeds else frame.iloc[:0]
        if len(pilot):
            st.space("small")
            charts.draw_one(values.sweep(comparison, pilot, None), theme, "rates chart")
        if len(frame):
            st.space("small")
            charts.draw_curves(comparison, frame, None, theme)
        charts.draw_runs(comparison)
        charts.draw_log(comparison)
        return
    advice.draw(comparison, found, _start(frame, comparison.spec.baseline.name))
    _metrics(comparison, found)
    st.markdown(words.markdown_text(" ".join([found.reading, *found.beside])))
    st.space("small")
    _answer_charts(comparison, frame, found, theme)
    st.space("small")
    if comparison.spec.note:
        with st.container(border=True, gap="xsmall"):
            st.markdown(":small[**How this comparison came about**]")
            plain(comparison.spec.note)
    for remark in (for_scale(comparison.spec), *remarks(found)):
        quiet(words.markdown_text(remark))
    st.space("small")
    rate = charts.draw_curves(comparison, frame, found, theme)
    st.space("small")
    charts.draw_ratios(comparison, frame, rate, theme)
    st.space("small")
    charts.draw_one(values.gradients(comparison, frame, rate), theme, "gradient chart")
    st.space("small")
    charts.draw_table(comparison, found)
    weights.draw(comparison)
    charts.draw_runs(comparison)
    charts.draw_log(comparison)


def _say(comparison: Comparison, found: Report | None, finished: int) -> None:
    """The answer and what decides more, or where it stopped."""
    if comparison.state == "done":
        st.title(
            words.markdown_text(found.sentence) if found else "No run finished, so nothing can be said.", anchor=False
        )
    else:
        n = len(comparison.tested) + comparison.n_coming
        st.title(f"{_STOPPED[comparison.state]} {finished} of {words.plural(n, 'run')} finished.", anchor=False)
        job = latest("compare", comparison=str(comparison.path))
        if job is not None and job.state == "failed":
            explain(job, "What stopped it")
        elif comparison.message:
            plain(comparison.message)
        if found:
            st.markdown(f":gray[So far, not to be quoted:] {words.markdown_text(found.sentence)}")
    if found:
        said = filter(None, [f"{words.title(found.subject)}.", found.decides_more, found.identical])
        st.markdown(words.markdown_text(" ".join(said)))


def _metrics(comparison: Comparison, found: Report) -> None:
    first = next(e for e in found.main if e.arm == found.arm)
    with st.container(horizontal=True, gap="small"):
        st.metric("Seeds better", f"{first.n_better} of {first.loss.n}", width=130)
        if first.p_flip is not None:
            text = f"{first.p_flip:.4f}" if first.p_flip >= 0.0001 else "< 0.0001"
            st.metric(
                "p, sign flip",
                text,
                width=130,
                help="Exact: the share of all patterns of signs of these differences whose mean is as far from zero.",
            )
        rates = sorted(set(first.baseline_rates))
        if len(rates) == 1:
            st.metric("Best rate", f"{rates[0]:g}", width=130, help="Of the baseline, among those tried.")
        share = dict(found.clipped).get(comparison.spec.baseline.name)
        if share is not None:
            st.metric(
                "Clipped steps",
                f"{share:.0%}",
                width=130,
                help="Of the baseline: steps whose gradient was longer than the limit. A rescale changes the norm that "
                "is looked at.",
            )
        st.metric("Windows", words.count(found.windows), width=130, help="That the final loss is the mean of.")


def _answer_charts(comparison: Comparison, frame: pd.DataFrame, found: Report, theme) -> None:
    """Dose or differences, and beside it the rates, where several were tried."""
    pilot = folder.curves(comparison, of_pilot=True) if comparison.spec.pilot.seeds else frame
    has_rates = bool(found.sweeps)
    left, right = st.columns(2, gap="large") if has_rates else (st.container(), None)
    with left:
        show(values.differences(comparison, found), theme, "dose chart")
    if right is not None:
        with right:
            charts.draw_one(values.sweep(comparison, pilot, found), theme, "rates chart")


def _start(frame: pd.DataFrame, baseline: str) -> dict[str, float]:
    """Pair -> log2 of the ratio of its norms before the first step, mean of the seeds."""
    rows = frame[(frame["arm"] == baseline) & (frame["step"] == 0)]
    return {pair: float(rows[pair].mean()) for pair in ("qk", "vo", "lora") if rows[pair].notna().any()}


def _actions(comparison: Comparison, frame: pd.DataFrame, found: Report | None, is_sample: bool) -> None:
    with st.container(horizontal=True, gap="small", vertical_alignment="bottom"):
        unfinished = any(c.state != "done" and (c.state != "failed" or not c.is_final) for c in comparison.cells)
        goes_on = (unfinished or comparison.n_coming) and not is_sample
        if goes_on and st.button(
            "Start" if comparison.state == "new" else "Resume", type=primary(), key="compare resume"
        ):
            with errors_as_messages("It cannot be resumed"):
                setup.go_on(comparison.path)
                state.rerun()
        choosing.draw_new("secondary" if goes_on else primary())
        if comparison.state == "done" and not is_sample:
            with st.popover("Add seeds", key="compare more seeds"):
                n = st.number_input("Seeds to add", value=4, key="compare more", width=120)
                if st.button(
                    "Add seeds", key="compare add", help="The result is then marked as extended after looking."
                ):
                    with errors_as_messages("Seeds cannot be added"):
                        folder.add_seeds(comparison.path, int(n))
                        setup.go_on(comparison.path)
                        state.rerun()
        if found and comparison.state == "done":
            with st.popover("Quote"):
                st.code(_quote(comparison, found), language=None, wrap_lines=True)
        with st.popover("Export"):
            _exports(comparison, frame)


def _quote(comparison: Comparison, found: Report) -> str:
    """The sentence with what it is about, so that it can stand alone."""
    note = f"Note: {comparison.spec.note}" if comparison.spec.note else ""
    answer = [found.sentence, found.decides_more, found.identical, f"{found.subject}.", found.reading, *found.beside]
    return " ".join(filter(None, [*answer, "Validation loss.", facts(comparison), note]))


def _exports(comparison: Comparison, frame: pd.DataFrame) -> None:
    name = comparison.path.name
    said = "The answer, its charts and arms in one file that needs no network."
    take_away("Report as HTML", lambda: document_of(comparison), f"{name}.html", "compare report", said)
    document, missing = folder.spec_to_go(comparison.path)
    spec = json.dumps(document, indent=1).encode()
    take_away("Spec, to run it again", lambda: spec, f"{name}-spec.json", "compare spec")
    if missing:
        them = "it" if len(missing) == 1 else "them"
        st.markdown(
            f":small[Not on this machine: {words.markdown_text(join_names(missing))}. Put {them} beside the spec "
            "before it is run.]"
        )
    take_away("All curves as CSV", lambda: frame.to_csv(index=False).encode(), f"{name}-curves.csv", "compare metrics")
    st.code(f"wisca compare {name}-spec.json --out {name}-again", language="bash", wrap_lines=True)
    quiet("Final weights are further down, where the comparison kept them.")
