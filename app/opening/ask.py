"""The field for a path or a hub id, what became of it, and the one way by which this page opens a model."""

import os
from pathlib import Path

import streamlit as st

from wisca_app import cached, state
from wisca_app.declaring import form
from wisca_app.figures import words
from wisca_app.messages import plain
from wisca_app.open_model import ask_to_download, is_here, normal, title
from wisca_app.parts import primary, quiet
from wisca_core.errors import WiscaError


def field() -> None:
    with st.form("open", border=False):
        with st.container(horizontal=True, vertical_alignment="bottom", gap="small", wrap=False):
            written = st.text_input(
                "Path on this machine, or hub:owner/name",
                key="written",
                placeholder="/models/my-model",
                help="A folder with config.json and weights, sharded or not; a weight file, of a class of your own "
                "too; a "
                "LoRA adapter; a GGUF file.",
            )
            asked = st.form_submit_button("Open", type=primary())
    if asked and written.strip():
        go(normal(written))
    _offer_download()
    _say_failure()


def go(model: str, sites: str = "") -> None:
    """Open it and show it on Inspect, a file of one's own class once its pairs are declared (``sites``: the name of
    that); where it cannot be opened the old one stays, and the page says why.
    """
    state.forget("could not open")
    state.forget("wanted from hub")
    try:
        if not is_here(model):
            cached.size_on_hub(model)
        elif form.is_wanted(cached.model(model, sites)):
            state.put("declaring", model)
            state.rerun()
    except WiscaError as error:
        state.note("could not open", (model, str(error)))
        return
    if not is_here(model):
        state.note("wanted from hub", model)
        return
    _show(model, sites)


def _show(model: str, sites: str = "") -> None:
    state.open_model(model, sites)
    state.go("inspect")


def _offer_download() -> None:
    """Of a model of the hub that is not here: its size, and the button that fetches it."""
    model = state.note("wanted from hub")
    if model:
        with st.container(border=True):
            if ask_to_download(model, "open") is not None:
                state.forget("wanted from hub")
                _show(model)


def _say_failure() -> None:
    failed = state.note("could not open")
    if not failed:
        return
    model, message = failed
    with st.container(border=True, gap="xsmall"):
        st.markdown(":material/error: **That could not be opened**")
        plain(message if model in message else f"{model}\n{message}")
        quiet(_next_step(model))
        now_open = normal(state.get("model"))
        if now_open:
            plain(f"{title(now_open)} stays open.")
        if st.button("Try again", key="try again"):
            go(model)
            state.rerun()


def _next_step(model: str) -> str:
    if model.startswith("hub:"):
        return (
            "Check the network and the name, or give the folder if the model is on this machine already. A model that "
            "asks for a licence needs it accepted on its page and HF\\_TOKEN set."
        )
    if not os.path.exists(model):
        near = next(filter(os.path.isdir, Path(model).parents), None)
        return "There is nothing at this path." + (
            f" The nearest folder above it is {words.markdown_text(str(near))}." if near else ""
        )
    if os.path.isdir(model):
        return "Give the folder that holds config.json and the weights themselves."
    return "Give the whole folder: config.json says how the weights are meant."
