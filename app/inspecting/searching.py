"""A rule for a model type that no file has, looked for by trial in a job."""

import streamlit as st

from wisca_app import cached, state
from wisca_app.job_progress import explain, follow, latest
from wisca_app.messages import errors_as_messages
from wisca_app.parts import quiet
from wisca_core import jobs
from wisca_core.model import Model


def draw(model: Model) -> None:
    """The offer, the search under way, or nothing where a rule cannot be looked for or was."""
    if not cached.may_be_discovered(model):
        return
    job = latest("discover", model=model.checkpoint.source)
    if job is not None and job.is_active:
        follow(job)
        return
    if job is not None and job.state not in ("done", "cancelled"):
        explain(job, "The search for a rule failed")
    quiet(
        "No row of the family files is about this model type. Rows can be made from its tensor names and shapes and "
        "tried "
        "under the proof, on a miniature of its own config; only one that keeps the function is used. Some seconds to "
        "a minute."
    )
    if st.button("Look for a rule by trial", key="discover"):
        with errors_as_messages("The search could not be started"):
            jobs.start("discover", {"model": model.checkpoint.source})
        state.rerun()
