"""The sidebar below the navigation: the open model, the way to another one, what is running."""

import streamlit as st

from wisca_app import state
from wisca_app.figures import words
from wisca_app.job_progress import bar
from wisca_app.messages import errors_as_messages, plain
from wisca_app.open_model import normal, title
from wisca_app.parts import is_phone, quiet
from wisca_core import jobs


def draw() -> None:
    with st.container(gap="xxsmall"):
        quiet("Open model")
        model = normal(state.get("model"))
        st.markdown(f"**{words.markdown_text(title(model))}**" if model else "none")
    if not is_phone() and st.button("Open another", key="open_another", width="stretch"):
        state.put("declaring", "")
        state.go("open")
    _running()


def _running() -> None:
    active = [job.id for job in jobs.every() if job.is_active]
    if active:
        st.space("small")
        quiet("Jobs")
        st.fragment(_watch_all, run_every=1.0)(active)


def _watch_all(known: list[str]) -> None:
    with errors_as_messages("The jobs cannot be read"):
        active = [job for job in jobs.every() if job.is_active]
        if [job.id for job in active] != known:
            state.rerun()
        for job in active:
            plain(job.title)
            bar(job)
            if st.button("Cancel", key=f"sidebar cancel {job.id}"):
                jobs.cancel(job.id)
