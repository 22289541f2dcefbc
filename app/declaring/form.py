"""The declaration of a file of one's own class as a form: proposed from names and shapes, read and corrected by a
person, with what it finds below it, and confirmed. Nothing is used before.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import streamlit as st

from wisca_app import cached, state
from wisca_app.declaring import fields, found, kept
from wisca_app.figures import words
from wisca_app.messages import errors_as_messages, plain, say
from wisca_app.open_model import normal, title
from wisca_app.parts import primary, quiet
from wisca_core.architecture.declaration import Declaration
from wisca_core.architecture.declaration_files import parse_declarations, read_declarations, toml
from wisca_core.architecture.declared_sites import declared_sites
from wisca_core.architecture.guessing import N_HEADS, guess
from wisca_core.architecture.site import PAIRS
from wisca_core.errors import DeclarationError, WiscaError
from wisca_core.model import Model

BESIDE = "sites.toml"  # is read where it lies beside the file


def is_wanted(opened: Model) -> bool:
    """Whether its pairs have to be declared: weights without a config.json."""
    checkpoint = opened.checkpoint
    has_words = checkpoint.config_json or checkpoint.adapter_json or checkpoint.declared
    return bool(opened.refusal) and not has_words and checkpoint.kind != "gguf"


def draw(model: str) -> None:
    """The whole page about the file ``model``, until it is confirmed or left."""
    with errors_as_messages("That could not be opened"):
        opened = cached.model(model)
        _about(opened)
        now = _now(model, opened)
        plain("\n".join(now["said"]))
        _another(model)
        rows = _rows(now)
        declared, wrong = _read_declarations(rows, now["stands_in"])
        st.subheader("What it finds", anchor=False)
        if wrong:
            say("This declaration does not fit yet", wrong)
        elif declared:
            with errors_as_messages("This declaration does not fit yet"):
                found.draw(opened.checkpoint, _sites(opened, declared))
                wrong = None
        reason = _reason(rows, declared, wrong)
        _confirm(model, declared, reason)
        with st.expander("Every kind of tensor in the file", key="kinds of tensor"):
            st.dataframe(found.kinds(opened.checkpoint), hide_index=True, key="kinds", alt="The tensors of the file")
        return
    if st.button("Back", key="leave declaring"):
        _leave()


def _about(opened: Model) -> None:
    about = f"{title(opened.checkpoint.source)}, {words.parameters(opened.checkpoint.n_parameters)}"
    quiet(words.markdown_text(about))
    st.title("Say where its pairs lie.", anchor=False)
    st.markdown(
        "No family row knows this file. Its names and shapes suggest what stands below: read it against your own code, "
        "correct it, confirm it. It is used for looking, and proved only on your code."
    )


# --- what stands in the form ------------------------------------------------------------------------------------------


def _now(model: str, opened: Model) -> dict:
    """What the form was filled with last: rows, where they come from, and which widgets show them."""
    now = state.note("declaring")
    if now is None or now["model"] != model:
        now = _fill(model, *_first(model, opened))
    return now


def _fill(model: str, declarations: Sequence[Declaration], said: Sequence[str], stands_in: bool = False) -> dict:
    before = state.note("declaring") or {"n": 0}
    rows = [one.to_json() for one in declarations]
    for row in rows if stands_in else ():
        row.pop("n_heads", None)
        row.pop("n_kv_heads", None)
    heads = {one.layer: (one["n_heads"], one["n_kv_heads"]) for one in declarations if stands_in}
    now = {"model": model, "n": before["n"] + 1, "rows": rows, "said": list(said), "stands_in": heads}
    state.note("declaring", now)
    return now


def _first(model: str, opened: Model) -> tuple:
    """(declarations, where they come from in words, whether their head counts only stand in)."""
    name = state.get("sites") if normal(state.get("model")) == model else ""
    beside = Path(model) / BESIDE if os.path.isdir(model) else Path(model).parent / BESIDE
    said = []
    for read, where in (
        (lambda: kept.read(name), "the declaration it is open with"),
        (lambda: _beside(beside), str(beside)),
    ):
        try:
            declarations = read()
        except WiscaError as error:
            said.append(f"{where} cannot be used: {error}")
            continue
        if declarations:
            return declarations, [*said, f"Filled from {where}."]
    try:
        proposed = guess(opened.checkpoint)
    except DeclarationError as error:
        return (), [*said, f"Nothing can be proposed: {error}"]
    is_open = any(question.startswith(N_HEADS) for question in proposed.open_questions)
    return proposed.declarations, [*said, "What cannot be seen here:", *proposed.open_questions], is_open


def _beside(path: Path) -> tuple[Declaration, ...]:
    return read_declarations(path) if path.is_file() else ()


def _another(model: str) -> None:
    """A declaration that exists already, from a path, an upload or as text."""
    with st.popover("Take a sites.toml", type="tertiary", icon=":material/upload_file:"):
        path = st.text_input("Path on this machine", key="sites path", placeholder="/models/my-model/sites.toml")
        file = st.file_uploader("Or upload it", type=["toml"], key="sites upload")
        if st.button("Read it", key="read sites", disabled=not (path.strip() or file)):
            state.forget("sites unread")
            try:
                if file:
                    declarations, where = parse_declarations(file.getvalue(), file.name), file.name
                else:
                    where = normal(path)
                    declarations = read_declarations(Path(where))
            except WiscaError as error:
                state.note("sites unread", str(error))
            else:
                _fill(model, declarations, [f"Filled from {where}."])
            state.rerun()
    if state.note("sites unread"):
        say("That declaration cannot be read", state.note("sites unread"))


def _rows(now: Mapping) -> list[dict]:
    """What the widgets say, a dictionary a declaration: kind, layer and its words."""
    rows, removed = [], None
    for i, row in enumerate(now["rows"]):
        with st.container(border=True):
            rows.append(fields.draw(row, f"declared {now['n']} {i}"))
            if st.button("Remove", key=f"remove {now['n']} {i}", type="tertiary", icon=":material/delete:"):
                removed = i
    added = None
    with st.container(horizontal=True, gap="small"):
        if st.button("Add an attention", key="add attention"):
            added = {"kind": "attention", "layer": ""}
        if st.button("Add a feed-forward", key="add feed-forward"):
            added = {"kind": "feed_forward", "layer": ""}
    if removed is not None or added:
        rows = [row for i, row in enumerate(rows) if i != removed] + ([added] if added else [])
        state.note("declaring", now | {"n": now["n"] + 1, "rows": rows})
        state.rerun()
    return rows


# --- what comes of it -------------------------------------------------------------------------------------------------


def _read_declarations(rows: Sequence[Mapping], stands_in: Mapping) -> tuple[tuple[Declaration, ...], str]:
    """The declarations, and what is wrong with the first that is none. Head counts that nobody gave are stood in
    for.
    """
    out = []
    for row in rows:
        try:
            out.append(fields.declaration(row, stands_in.get(row["layer"])))
        except DeclarationError as error:
            return (), str(error)
    return tuple(out), "" if out else "There is nothing in it: add an attention or a feed-forward."


def _sites(opened: Model, declared: tuple[Declaration, ...]):
    key = f"declared\n{opened.key}\n{toml(declared)}"
    return cached.once(key, lambda: declared_sites(opened.checkpoint, declared, PAIRS))


def _reason(rows: Sequence[Mapping], declared: Sequence[Declaration], wrong: str | None) -> str:
    """Why it cannot be confirmed yet."""
    if wrong is not None or not declared:
        return "It does not fit the file yet."
    unsaid = [row["layer"] for row in rows if row["kind"] == "attention" and not row.get("n_heads")]
    return f"Say how many heads {unsaid[0]} has." if unsaid else ""


def _confirm(model: str, declared: tuple[Declaration, ...], reason: str) -> None:
    if reason.startswith("Say"):  # what does not fit stands above
        plain(reason)
    with st.container(horizontal=True, gap="small"):
        if st.button("Open with this declaration", key="confirm", type=primary(), disabled=bool(reason)):
            state.open_model(model, kept.keep(declared))
            state.forget("declaring")
            state.go("inspect")
        st.download_button(
            "sites.toml",
            toml(declared) if not reason else "",
            "sites.toml",
            "application/toml",
            key="download sites",
            icon=":material/download:",
            disabled=bool(reason),
        )
        if st.button("Only its tensors", key="without declaration", help="Open it as it is: names, shapes and dtypes."):
            state.open_model(model)
            state.go("inspect")
        if st.button("Back", key="leave declaring"):
            _leave()


def _leave() -> None:
    state.put("declaring", "")
    state.forget("declaring")
    state.rerun()
