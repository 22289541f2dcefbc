"""Running the census in the background."""

import streamlit as st

from wisca_app import state
from wisca_app.cached import Census
from wisca_app.figures import words
from wisca_app.job_progress import explain, follow, latest
from wisca_app.messages import errors_as_messages
from wisca_app.parts import quiet
from wisca_core import jobs
from wisca_core.census.entry import NOT_REACHED, OPEN

SECONDS_EACH = 2.0  # of one architecture on one core, three granularities (366 s for 189); two are proved side by side


def draw(census: Census) -> None:
    job = latest("census")
    if job is not None and job.is_active:
        st.markdown(
            ":gray[Every rule is tried on a miniature in float64, two at a time. What is proved stays if you cancel.]"
        )
        follow(job)
        return
    if job is not None and job.state not in ("done", "cancelled"):
        explain(job, "The census did not finish")
    coverage = census.coverage
    n, missing = coverage.n_types, sum(e.is_released or e["qk"].verdict in (OPEN, NOT_REACHED) for e in census.entries)
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        with errors_as_messages("The census cannot be started"):
            is_first = not coverage.slowest or coverage.n_released > n / 2
            rest = (
                f"Prove the {words.count(missing)} that are missing"
                if coverage.n_open or coverage.n_released
                else f"Try the {words.count(missing)} again that were not reached"
            )
            if missing and st.button("Prove them here" if is_first else rest, key="prove_all"):
                _start(False)
            if not is_first and st.button("Prove all again", key="prove_again"):
                _start(True)
        minutes = max(1, round((missing or n) * SECONDS_EACH / 120))
        quiet(
            "Each rule on a miniature of that architecture, at three granularities: about "
            f"{words.plural(minutes, 'minute')} on two free cores."
        )


def _start(again: bool) -> None:
    everything = state.get("kinds") == "all"
    title = "Prove every architecture" if everything else "Prove every causal language model"
    jobs.start("census", {"all": everything, "again": again}, title, exclusive="census")
    state.rerun()
