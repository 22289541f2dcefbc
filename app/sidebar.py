"""The sidebar: the open model, how to open another, what is running, what is kept on this machine."""

import streamlit as st

from wisca_app import cached, state, uploads
from wisca_app.cached import Opened
from wisca_app.figures import words
from wisca_app.job_progress import bar
from wisca_app.messages import errors_as_messages, plain
from wisca_app.open_model import ask_to_download, glance, normal, title
from wisca_core import jobs, storage

# What cleaning offers first: all of it can be made again. Exports and comparisons are somebody's work.
REMAKABLE = ("jobs", "measurements", "proofs", "uploads")


def draw() -> None:
    place = st.container()  # filled last: what is below may open another model
    with st.expander("Open another", key="open_another"):
        with errors_as_messages("That cannot be opened"):
            _open_another()
    st.space("small")
    _running()
    with errors_as_messages("The folder cannot be cleaned"):
        _kept()
    st.markdown(f":small[:gray[Device: {words.markdown_text(cached.device())}]]")
    with place:
        _open_model()


def _open_model() -> None:
    st.markdown(":small[:gray[Open model]]")
    model = normal(state.get("model"))
    st.markdown(f"**{words.markdown_text(title(model))}**" if model else "none")
    opened = glance()
    if opened is not None:
        st.markdown(f":small[:gray[{words.markdown_text(facts(opened))}]]")


def facts(opened: Opened) -> str:
    """One line: layers, heads, dtype, parameters, files."""
    a, checkpoint = opened.sites.attention, opened.checkpoint
    dtypes = {t.dtype for t in checkpoint.stored or checkpoint.tensors if t.dtype in words.DTYPES}
    parts = (
        [
            words.plural(a.n_layers, "layer"),
            f"{words.plural(a.n_heads, 'query head')} on {words.plural(a.n_kv_heads, 'KV head')}",
        ]
        if a
        else []
    )
    parts += [
        " and ".join(d for d in dict.fromkeys(words.DTYPES[d] for d in sorted(dtypes))),
        words.parameters(checkpoint.n_parameters),
    ]
    if len(checkpoint.weight_files) > 1:
        parts.append(f"{len(checkpoint.weight_files)} shards")
    return ", ".join(filter(None, parts))


def _open_another() -> None:
    with st.form("open", border=False):
        written = st.text_input(
            "Path on this machine, or hub:owner/name", key="written", placeholder="/models/my-model"
        )
        if st.form_submit_button("Open") and written.strip():
            _open(normal(written))
    asked = state.note("asked")
    if asked and ask_to_download(asked, "sidebar"):
        state.forget("asked")
        state.open_model(asked)
    checkpoints = state.sample_checkpoints()
    if checkpoints:
        st.markdown(":small[Bundled sample, at training step]")
        with st.container(horizontal=True, gap="xsmall"):
            for path in checkpoints:
                step = path.name.split("-")[1]
                if st.button(step, key=f"sample {step}"):
                    _open(str(path))
    with st.form("upload", border=False, clear_on_submit=True):
        files = st.file_uploader(
            "Small files: .safetensors and config.json", type=list(uploads.ENDINGS), accept_multiple_files=True
        )
        if st.form_submit_button("Open the files") and files:
            _open(str(uploads.keep([(file.name, file.getvalue()) for file in files])))


def _open(model: str) -> None:
    """Switch to it if it can be opened; a model of the hub is first asked for. Raises WiscaError."""
    if model.startswith("hub:"):
        cached.size_on_hub(model)
        state.note("asked", model)
        return
    cached.opened(model)
    state.forget("asked")
    state.open_model(model)


def _running() -> None:
    active = [job.id for job in jobs.every() if job.is_active]
    if active:
        st.markdown(":small[:gray[Jobs]]")
        st.fragment(_watch_all, run_every=1.0)(active)


def _watch_all(known: list[str]) -> None:
    with errors_as_messages("The jobs cannot be read"):
        active = [job for job in jobs.every() if job.is_active]
        if [job.id for job in active] != known:
            st.rerun()
        for job in active:
            plain(job.title)
            bar(job)
            if st.button("Cancel", key=f"sidebar cancel {job.id}"):
                jobs.cancel(job.id)


def _kept() -> None:
    sizes = storage.sizes()
    with st.popover(f"Kept here: {words.size(sum(sizes.values()))}", type="tertiary"):
        plain(str(storage.home()))
        names = [name for name, n_bytes in sizes.items() if n_bytes]
        if not names:
            st.markdown(":gray[Nothing is kept.]")
            return
        chosen = st.pills(
            "Remove",
            names,
            selection_mode="multi",
            default=[name for name in names if name in REMAKABLE],
            format_func=lambda name: f"{name}, {words.size(sizes[name])}",
            key="to_clean",
        )
        st.markdown(":small[:gray[What a running job uses stays. Exported models are in exports.]]")
        if st.button("Remove these", key="clean", disabled=not chosen):
            freed = storage.clean(chosen)
            st.toast(f"{words.size(freed)} removed.")
            st.rerun()
