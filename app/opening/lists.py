"""What can be opened with one press: what was opened before, what lies near, the samples, the hub's cache, an
upload.
"""

import os
from pathlib import Path

import streamlit as st

from wisca_app import cached, state, tour, uploads
from wisca_app.declaring import kept as declarations
from wisca_app.figures import words
from wisca_app.figures.strip import strip
from wisca_app.figures.template import Theme
from wisca_app.inspecting.facts import heads
from wisca_app.messages import errors_as_messages, plain
from wisca_app.open_model import normal, title
from wisca_app.opening import recent
from wisca_app.opening.ask import go
from wisca_app.parts import quiet
from wisca_core import storage
from wisca_core.checkpoint.nearby import Near, below, downloaded_models
from wisca_core.planning.options import Options, default_pairs

MOST_NEAR, MOST_DOWNLOADED = 30, 12
# What cleaning offers first: all of it can be made again. Exports and comparisons are somebody's work.
REMAKABLE = ("jobs", "measurements", "proofs", "uploads")


def _heading(text: str, how: str = "") -> None:
    with st.container(gap="xxsmall"):
        st.subheader(text, anchor=False)
        if how:
            quiet(how)


def _row(label: str, beside: str, key: str, icon: str = "", image: str = "") -> bool:
    """A line that opens something; ``label`` and ``beside`` are Markdown of ours."""
    with st.container(horizontal=True, horizontal_alignment="distribute", vertical_alignment="center", gap="small"):
        with st.container(horizontal=True, vertical_alignment="center", gap="small", width="content"):
            if image:
                st.image(image, width=96)
            pressed = st.button(label, key=key, type="tertiary", icon=icon or None)
        st.markdown(f":small[{beside}]", width="content")
    return pressed


def sides(pairs: list) -> str:
    """ ":blue[query] 4.3×, :violet[output] 4.1×"; one that is level is grey."""
    out = []
    for pair, octaves in pairs:
        said = words.side(pair, octaves if octaves is not None else float("nan"))
        role = words.PAIR_ROLES[pair][0 if (octaves or 0) > 0 else 1]
        name, _, times = said.partition(" ")
        out.append(f"{words.coloured_word(role, name)} {times}" if times else f":gray[{words.PAIR_LABELS[pair]} level]")
    return ", ".join(out)


def before(theme: Theme) -> None:
    """Models that were opened before."""
    found = recent.every()
    if not found:
        return
    _heading("Recent", "The strip is the model's map: layers across, KV heads down, the heavier side's colour.")
    now = normal(state.get("model"))
    with st.container(border=True, gap="xsmall"):
        for i, one in enumerate(found):
            when = "open now" if one.model == now else recent.ago(recent.now() - one.opened)
            about = f"{words.markdown_text(one.facts)} · {sides(one.pairs)} · {words.size(one.n_bytes)} · :gray[{when}]"
            name = words.markdown_text(title(one.model))
            if _row(f"**{name}**", about, f"recent {i}", image=strip(one.strip, one.pair, theme)):
                go(one.model, one.sites)
                state.rerun()


def samples(theme: Theme) -> None:
    """The bundled decoder at the steps of its training."""
    checkpoints = state.sample_checkpoints()
    if not checkpoints:
        return
    _heading("Bundled samples", f"One small decoder at {words.plural(len(checkpoints), 'step')} of its training.")
    for path in checkpoints:
        step = path.name.split("-")[1]
        with errors_as_messages("A sample cannot be read"):
            one = recent_of(str(path))
            if _row(
                f"step {words.count(int(step))}",
                sides(one.pairs),
                f"sample {step}",
                "",
                strip(one.strip, one.pair, theme),
            ):
                go(str(path))
                state.rerun()
    tour.start()


def recent_of(model: str) -> recent.Recent:
    """What a list says of a model that is measured at once. Raises WiscaError."""
    opened = cached.model(model)
    return cached.once(f"recent\n{opened.key}", lambda: _recent(model, opened))


def remember(opened: cached.Model) -> None:
    """Keep it among those that were opened; samples are always there."""
    model = normal(opened.checkpoint.source)
    if model not in map(str, state.sample_checkpoints()) and state.note("remembered") != opened.key:
        state.note("remembered", opened.key)
        recent.keep(_recent(model, opened))


def _recent(model: str, opened: cached.Model) -> recent.Recent:
    from wisca_core.patterns.summary import site_ratios

    groups = cached.decision(opened, Options(default_pairs(opened.sites))).groups("l1")
    a = opened.sites.attention
    facts = (
        f"{words.plural(a.n_layers, 'layer')}, {heads(a.n_heads, a.n_kv_heads)}"
        if a
        else words.plural(len(opened.sites.sites), "pair")
    )
    median = site_ratios(groups, "l1").groupby("pair", sort=False)["log2_ratio"].median()
    return recent.Recent(
        model,
        facts,
        [[pair, round(float(v), 3) if v == v and abs(v) < 1e9 else None] for pair, v in median.items()],
        sum(size for size, _ in opened.checkpoint.stamps),
        recent.now(),
        recent.strip_of(groups),
        str(groups["pair"].iloc[0]),
        declarations.name_of(opened),
    )


def folders() -> None:
    """The folders below the one that was looked at last, first the one the open model lies in."""
    here = _folder()
    with st.container(horizontal=True, horizontal_alignment="distribute", vertical_alignment="center"):
        st.subheader("Folders", anchor=False, width="content")
        if here.parent != here and st.button("One up", key="one up", type="tertiary", icon=":material/arrow_upward:"):
            state.put("folder", str(here.parent))
            state.rerun()
    st.code(str(here), language=None, wrap_lines=True)
    with errors_as_messages("This folder cannot be listed"):
        found = below(here)
        if not found:
            quiet("Neither a model nor a folder is in it.")
        for i, near in enumerate(found[:MOST_NEAR]):
            icon = ":material/draft:" if near.kind == "file" else ":material/folder:"
            if _row(words.markdown_text(near.path.name), f":gray[{_about(near)}]", f"near {i} {near.path}", icon):
                if near.kind == "folder":
                    state.put("folder", str(near.path))
                else:
                    go(str(near.path))
                state.rerun()
        if len(found) > MOST_NEAR:
            quiet(f"and {words.count(len(found) - MOST_NEAR)} more: write the path above")


def _folder() -> Path:
    chosen = state.get("folder")
    if chosen and os.path.isdir(chosen):
        return Path(chosen)
    model = normal(state.get("model"))
    lies_in = Path(model).parent if model and not model.startswith("hub:") else Path.home()
    return lies_in if os.path.isdir(lies_in) else Path.home()


def _about(near: Near) -> str:
    if near.kind == "folder":
        return f"{words.plural(near.n_files, 'folder')}, no model in it" if near.n_files else "no model in it"
    what = {"adapter": "LoRA adapter, ", "file": ""}.get(near.kind, f"{words.plural(near.n_files, 'file')}, ")
    return f"{what}{words.size(near.n_bytes)}"


def hub() -> None:
    """Models of the hub that are on this machine already; others are named in the field."""
    _heading("Hub", "Write hub:owner/name above; its size is shown before anything is fetched.")
    for name in downloaded_models()[:MOST_DOWNLOADED]:
        if _row(words.markdown_text(name), ":gray[here]", f"hub {name}", ":material/check:"):
            go(f"hub:{name}")
            state.rerun()


def upload() -> None:
    _heading(
        "Upload", "A weight file with its config.json, or of a class of your own with its sites.toml, up to 200 MB."
    )
    with st.form("upload", border=False, clear_on_submit=True):
        files = st.file_uploader(
            "Small files", type=list(uploads.ENDINGS), accept_multiple_files=True, label_visibility="collapsed"
        )
        if st.form_submit_button("Open the files") and files:
            with errors_as_messages("The files cannot be opened"):
                go(str(uploads.model_in(uploads.keep([(file.name, file.getvalue()) for file in files]))))
                state.rerun()


def storage_popover() -> None:
    """What lies on this machine, and the way to clean it."""
    sizes = storage.sizes()
    with st.popover(f"Kept on this machine: {words.size(sum(sizes.values()))}", type="tertiary"):
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
        quiet("What a running job uses stays. Exported models are in exports.")
        if st.button("Remove these", key="clean", disabled=not chosen):
            freed = storage.clean(chosen)
            st.toast(f"{words.size(freed)} removed.")
            state.rerun()
