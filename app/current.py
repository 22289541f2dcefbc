"""The open model, ready to be shown: asked for before a download, measured by a job where that takes long."""

import os
from pathlib import Path

import streamlit as st

from app import cached, state
from app.cached import Opened
from app.figures import words
from app.following import explain, follow, latest
from app.messages import plain
from wisca_core import jobs
from wisca_core.checkpoint.untrusted import shown
from wisca_core.errors import WiscaError


def normal(written: str) -> str:
    """What the person wrote, as it is kept: a hub id, or an absolute path."""
    text = written.strip()
    if text.startswith("hub:") or not text or "\0" in text:
        return text
    return os.path.abspath(os.path.expanduser(text))


def title(model: str) -> str:
    """A short name for it, one line, still foreign: the last two parts of a path, or the hub id."""
    if model.startswith("hub:"):
        return shown(model.removeprefix("hub:"))
    return shown(Path(*Path(model).parts[-2:]).as_posix())


def ready() -> Opened:
    """The open model; where it is not here or not measured, the page says so and ends. Raises WiscaError."""
    model = normal(state.get("model"))
    if not model:
        plain("No model is open. Open one in the sidebar: a path on this machine, a hub id or an upload.")
        st.stop()
    if model.startswith("hub:"):
        _fetch(model)
    opened = cached.opened(model)
    if not opened.refusal and cached.needs_job(opened):
        _measure(model)
    return opened


def glance() -> Opened | None:
    """The open model for the sidebar, None where it is not there or cannot be opened: the page says why."""
    model = normal(state.get("model"))
    job = latest("measure", model=model) if model.startswith("hub:") else None
    if not model or (model.startswith("hub:") and (job is None or job.state != "done")):
        return None
    try:
        return cached.opened(model)
    except WiscaError:
        return None


def _fetch(model: str) -> None:
    job = latest("measure", model=model)
    if job is not None and job.state == "done":
        return
    if job is not None and job.is_active:
        st.header("Fetching the model from the hub")
        follow(job)
        st.stop()
    st.header("Download this model?")
    if job is not None:
        explain(job, "The last download did not finish")
    job = ask_to_download(model, "page")
    if job is not None:
        follow(job)
    st.stop()


def ask_to_download(model: str, place: str) -> jobs.Job | None:
    """Its size on the hub and a button; the download's job once that is pressed. Raises HubError."""
    size = cached.size_on_hub(model)
    plain(
        f"{title(model)}: {words.size(size.n_bytes)} in {words.plural(len(size.files), 'file')}, "
        "into the hub library's cache."
    )
    return start_measuring(model) if st.button("Download and open", key=f"download {place}") else None


def _measure(model: str) -> None:
    job = latest("measure", model=model)
    if job is not None and job.state == "done":
        return  # it could not be kept (a full disk): measure here, with patience
    st.header("Measuring the weights")
    if job is not None and not job.is_active:
        explain(job, "Measuring did not finish")
        if not st.button("Measure again", type="primary"):
            st.stop()
        job = None
    st.markdown(":gray[One pass over the attention weights. Every view afterwards is arithmetic on what it finds.]")
    follow(job or start_measuring(model))
    st.stop()


def start_measuring(model: str) -> jobs.Job:
    """Raises OutputRefused where it is being measured already."""
    return jobs.start("measure", {"model": model}, f"Measure {title(model)}", exclusive=f"measure {model}")
