"""What the other pages say of a declaration: that it is one, that nothing has proved it, and where to change it."""

import streamlit as st

from wisca_app import state
from wisca_app.declaring import kept
from wisca_app.messages import plain
from wisca_app.open_model import normal
from wisca_core.architecture.declaration_files import toml
from wisca_core.model import Model


def offer(model: Model) -> None:
    """On the page of a model that is refused: the way to the form."""
    if model.checkpoint.adapter_json or model.checkpoint.kind == "gguf":
        return
    if st.button("Say where its pairs lie", key="declare", icon=":material/edit:"):
        _to_the_form()


def line(model: Model) -> None:
    """Of a model that was opened with one."""
    declared = model.checkpoint.declared
    if declared is None:
        return
    with st.container(horizontal=True, gap="small", vertical_alignment="center"):
        st.markdown(":small[:gray[Its pairs are as you declared them; nothing here has proved them.]]", width="content")
        if st.button("Change the declaration", key="change declaration", type="tertiary"):
            _to_the_form()
        st.download_button(
            "sites.toml",
            toml(declared.sites),
            "sites.toml",
            "application/toml",
            key="declaration",
            type="tertiary",
            icon=":material/download:",
        )


def accepts_unproved(model: Model, command: str) -> bool:
    """On Rescale: that nothing is proved, how it would be, and whether the person takes it all the same. ``command``:
    the line that proves and writes.
    """
    st.markdown("**Not proved** :gray-badge[:material/close: declared]")
    plain(
        "These pairs are as you declared them. A wrong rotary layout, a norm on q and k or another order of the heads "
        "would "
        "change what the model computes. The proof runs the model's own code, which this page never does. In a "
        "terminal, "
        "where FUNCTION makes a small model of the class with the same head counts:"
    )
    st.code(command, language=None, wrap_lines=True)
    return st.toggle(
        "Write it without a proof",
        key=f"unproved {kept.name_of(model)} {model.checkpoint.path}",
        help="As --unproved on the command line: the report and the card say so in their first line.",
    )


def _to_the_form() -> None:
    state.put("declaring", normal(state.get("model")))
    state.forget("declaring")
    state.go("open")
