"""Jobs on a page: the newest one for a purpose, its progress with a way to cancel, and what became of it."""

import streamlit as st

from wisca_app import state
from wisca_app.figures import words
from wisca_app.messages import errors_as_messages, say
from wisca_app.parts import primary
from wisca_core import jobs
from wisca_core.jobs import Job


def latest(kind: str, **arguments: str | bool | list[str] | None) -> Job | None:
    """The newest job of that kind with these arguments (None: without it; others may be there too), None where there is
    none.
    """
    for job in jobs.every():
        if job.kind == kind and all(job.arguments.get(name) == value for name, value in arguments.items()):
            return job
    return None


def measuring(job: Job | None, heading: str) -> Job | None:
    """That job while it is under way, None where one is to be started: there is none, or it did not finish and the
    person asks for another. Else ends the page here.
    """
    st.header(heading)
    if job is None or job.is_active:
        return job
    explain(job, "Measuring did not finish")
    if not st.button("Measure again", type=primary()):
        state.stop()
    return None


def follow(job: Job) -> None:
    """Its progress, looked at once a second; the whole page is drawn again when it ends."""
    st.fragment(_watch, run_every=1.0)(job.id, job.kind)


def _watch(id: str, kind: str) -> None:
    with errors_as_messages("The job cannot be read"):
        job = jobs.read(id)
        if not job.is_active:
            state.rerun()
        bar(job)
        if st.button("Cancel", key=f"cancel {kind} {id}"):
            jobs.cancel(id)


def bar(job: Job) -> None:
    """Its step and how far it has come."""
    share = min(max(job.done / job.total, 0.0), 1.0) if job.total > 0 else 0.0
    step = words.markdown_text(job.step.capitalize())
    st.progress(share, f":small[{step}, {share:.0%}]" if job.total > 0 else f":small[{step}]")


def explain(job: Job, heading: str) -> None:
    """Why a job that is over has no result."""
    error = job.error or {}
    say(heading, error.get("message") or f"The job ended in state {job.state}. Its log is {job.folder / 'log.txt'}.")
