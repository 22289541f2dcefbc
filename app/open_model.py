"""The open model, ready to be shown: asked for before a download, measured by a job where that takes long."""

import os
from collections.abc import Mapping
from pathlib import Path

import streamlit as st

from wisca_app import cached, state, uploads
from wisca_app.declaring import kept
from wisca_app.figures import words
from wisca_app.job_progress import explain, follow, latest, measuring
from wisca_app.messages import plain
from wisca_core import jobs, storage
from wisca_core.errors import WiscaError
from wisca_core.model import Model
from wisca_core.untrusted import printable

_MLP = ["mlp"]  # what the arguments of jobs say where feed-forward pairs belong to the work


def with_mlp(opened: Model) -> list[str] | None:
    """The argument ``pairs`` of jobs on these sites, None where they are the default ones."""
    return _MLP if any(site.key.pair == "mlp" for site in opened.sites.sites) else None


def normal(written: str) -> str:
    """What the person wrote, as it is kept: a hub id, or an absolute path."""
    text = written.strip()
    if text.startswith("hub:") or not text or "\0" in text:
        return text
    return os.path.abspath(os.path.expanduser(text))


def title(model: str) -> str:
    """A short name for it, one line, still foreign: the last two parts of a path, the hub id, an upload's weight
    file.
    """
    if model.startswith("hub:"):
        return printable(model.removeprefix("hub:"))
    folder = next((one for one in (Path(model), Path(model).parent) if one.parent == storage.home() / "uploads"), None)
    if folder:
        return printable(uploads.name_of(folder))
    return printable(Path(*Path(model).parts[-2:]).as_posix())


def ready(pairs: list[str]) -> Model:
    """The open model with what ``pairs`` need; where it is not here or not measured, the page says so and ends. Raises
    WiscaError.
    """
    model = normal(state.get("model"))
    if not model:
        plain("No model is open.")
        st.page_link("views/open.py", label="Open one: a path, a hub id or an upload")
        state.stop()
    if model.startswith("hub:"):
        _fetch(model)
    opened = cached.with_pairs(cached.model(model, state.get("sites")), pairs)
    if not opened.refusal and cached.needs_job(opened):
        _measure(model, opened)
    return opened


def glance() -> Model | None:
    """The open model for a page that can do without, None where it is not there or cannot be opened."""
    model = normal(state.get("model"))
    if not model or not is_here(model):
        return None
    try:
        return cached.model(model, state.get("sites"))
    except WiscaError:
        return None


def is_here(model: str) -> bool:
    """Whether opening it downloads nothing: a path, or a model of the hub that a job has fetched."""
    if not model.startswith("hub:"):
        return True
    job = latest("measure", model=model, pairs=None)
    return job is not None and job.state == "done"


def _fetch(model: str) -> None:
    if is_here(model):
        return
    job = latest("measure", model=model, pairs=None)
    if job is not None and job.is_active:
        st.header("Fetching the model from the hub")
        follow(job)
        state.stop()
    st.header("Download this model?")
    if job is not None:
        explain(job, "The last download did not finish")
    job = ask_to_download(model, "page")
    if job is not None:
        follow(job)
    state.stop()


def ask_for_another(choice: str, where: str, button: str) -> None:
    """A field for the path of a second model, which becomes that choice, and a button that takes it away again."""
    with st.form(f"{choice} form", border=False):
        written = st.text_input(where, placeholder="/models/the-other-one", key=f"{choice} written")
        if st.form_submit_button(button) and written.strip():
            choose(choice, normal(written))
    if state.get(choice) and st.button("Take it away", key=f"{choice} away"):
        choose(choice, "")


def choose(choice: str, model: str) -> None:
    state.put(choice, model)
    state.rerun()


def ask_to_download(model: str, place: str) -> jobs.Job | None:
    """Its size on the hub and a button; the download's job once that is pressed. Raises HubError."""
    size = cached.size_on_hub(model)
    plain(
        f"{title(model)}: {words.size(size.n_bytes)} in {words.plural(len(size.files), 'file')}, "
        "into the hub library's cache."
    )
    return start_measuring(model) if st.button("Download and open", key=f"download {place}") else None


def _measure(model: str, opened: Model) -> None:
    declared, is_mlp = kept.arguments(opened), with_mlp(opened) is not None
    job = latest("measure", model=model, pairs=with_mlp(opened), sites=declared.get("sites"))
    if job is not None and job.state == "done":
        return  # it could not be kept (a full disk): measure here, with patience
    job = measuring(job, "Measuring the feed-forward weights" if is_mlp else "Measuring the weights")
    what = "attention and feed-forward weights, most of the model" if is_mlp else "attention weights"
    st.markdown(
        f":gray[One pass over the {what}: {words.size(opened.n_bytes_to_read)} to read. "
        "Every view afterwards is arithmetic on what it finds.]"
    )
    if is_mlp:
        st.button("Go on without MLP", on_click=state.leave_out_mlp, key="without_mlp")
    follow(job or start_measuring(model, is_mlp, declared))
    state.stop()


def start_measuring(model: str, is_mlp: bool = False, declared: Mapping[str, str] | None = None) -> jobs.Job:
    """``declared``: what the job is told of its declaration. Raises OutputRefused where it is being measured
    already.
    """
    arguments = {"model": model} | ({"pairs": _MLP} if is_mlp else {}) | dict(declared or {})
    what = f"{title(model)}, MLP" if is_mlp else title(model)
    return jobs.start("measure", arguments, f"Measure {what}", exclusive=f"measure {model}{' mlp' if is_mlp else ''}")
