"""A comparison that runs: how far it is, its curves so far, and how to stop it. Looked at anew every two seconds, at
the start every second.
"""

import streamlit as st

from wisca_app import state
from wisca_app.comparing import charts, values
from wisca_app.figures import words
from wisca_app.figures.template import theme_of
from wisca_app.job_progress import latest
from wisca_app.messages import errors_as_messages
from wisca_app.parts import quiet
from wisca_core.comparison import folder
from wisca_core.comparison.estimate import duration
from wisca_core.comparison.folder import Comparison


def is_going(comparison: Comparison) -> bool:
    """Whether it runs, or a job that will run it is starting up."""
    job = latest("compare", comparison=str(comparison.path))
    return comparison.is_active or (job is not None and job.is_active)


def draw(comparison: Comparison) -> None:
    has_curve = _has_curve(comparison)
    st.fragment(_watch, run_every=2.0 if has_curve else 1.0)(str(comparison.path), has_curve)


def _has_curve(comparison: Comparison) -> bool:
    """Whether a validation loss after the one at step 0 is there."""
    return any(cell.step >= comparison.spec.first_evaluation for cell in comparison.tested)


def _watch(path: str, had_curve: bool) -> None:
    with errors_as_messages("This comparison cannot be followed"):
        comparison = folder.read(path)
        if not is_going(comparison) or _has_curve(comparison) != had_curve:
            state.rerun()
        if not comparison.is_active:
            job = latest("compare", comparison=path)
            ends = job is not None and comparison.finished is not None and comparison.finished > job.created
            st.title(
                "Ending: what was done is being kept." if ends else "Starting: the first curves come in a few seconds.",
                anchor=False,
            )
            return
        n = sum(c.state == "done" for c in comparison.cells)
        left = comparison.seconds_left
        total = len(comparison.cells) + comparison.n_coming
        what = "Choosing rates" if comparison.n_coming else "Training"
        st.title(
            f"{what}: {n} of {words.plural(total, 'run')}" + (f", about {duration(left)} left." if left else "."),
            anchor=False,
        )
        fixed = (
            "seeds were added after looking, so what comes out is a hint."
            if comparison.is_extended
            else "the number of seeds was fixed beforehand."
        )
        st.markdown(f"The curves are here to be watched, not to decide when to stop: {fixed}")
        done, total = comparison.steps_done, max(1, comparison.steps_total)
        pace = (
            f", {words.axis_number(round(comparison.tokens_per_second, -2))} tokens per second"
            if comparison.tokens_per_second
            else ""
        )
        st.progress(min(1.0, done / total), f":small[{words.count(done)} of {words.count(total)} steps{pace}]")
        with st.container(horizontal=True, gap="small"):
            if st.button("Pause", key="compare pause"):
                folder.ask(comparison.path, "pause")
            if st.button("Cancel", key="compare cancel"):
                folder.ask(comparison.path, "cancel")
            if folder.stop_request(comparison.path):
                quiet("Stopping at the next step.")
        st.space("small")
        frame = folder.curves(comparison)
        theme = theme_of(st.context.theme.type)
        if comparison.spec.pilot.seeds:
            pilot = folder.curves(comparison, of_pilot=True)
            charts.draw_one(values.sweep(comparison, pilot, None), theme, "rates chart")
        if frame.empty:
            coming = "once the rates are chosen" if comparison.n_coming else "in a few seconds"
            st.markdown(f":gray[The first curves come {coming}.]")
            charts.draw_runs(comparison)
            charts.draw_log(comparison, "live ")
            return
        rate = charts.draw_curves(comparison, frame, None, theme, "live ")
        st.space("small")
        charts.draw_ratios(comparison, frame, rate, theme, "live ")
        st.space("small")
        charts.draw_one(values.gradients(comparison, frame, rate), theme, "live gradient chart")
        charts.draw_runs(comparison)
        charts.draw_log(comparison, "live ")
        state.share()
