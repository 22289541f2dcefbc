"""The words of one declaration as widgets: the usual ones, and the rest folded away. What a widget cannot show
(followers, where a norm's gains lie) is kept as it came.
"""

from collections.abc import Mapping

import streamlit as st

from wisca_app.messages import plain
from wisca_app.parts import KEPT, number, one_of, pick
from wisca_core.architecture.declaration import Declaration, attention, feed_forward
from wisca_core.architecture.families import layout_names
from wisca_core.architecture.layer import ROPES
from wisca_core.architecture.mlp import HOMOGENEOUS

NAMES = {
    "attention": {
        "apart": ("q", "k", "v"),
        "k, v in one": ("q", "kv"),
        "all in one": ("qkv",),
        "latent": ("q", "kv_a", "kv_b"),
        "q alone": ("q",),
    },
    "feed_forward": {"gate and up": ("gate", "up"), "gate and up in one": ("fused",), "up alone": ("up",)},
}
LABELS = {
    "q": "Query",
    "k": "Key",
    "v": "Value",
    "kv": "Key and value",
    "qkv": "Query, key and value",
    "kv_a": "Into the latent stream",
    "kv_b": "Keys and values out of it",
    "out": "Output",
    "gate": "Gate",
    "up": "Up",
    "fused": "Gate and up",
    "down": "Down",
}
_TEXT = {
    "qkv_bias": ("Bias of all three", "One bias [q; k; v] of matrices that are apart."),
    "sub_norm": ("Norm before the output", "A norm between the heads and the output projection."),
    "layers": ("Only these layers", "Numbers, such as 0-3,7; empty: all."),
    "stack": ("Stack", "How the pairs are named: decoder, encoder, vision."),
    "attention": ("Attention", "self or cross, in the names of the pairs."),
    "part": ("Part", "Where a layer holds several pairs of a kind."),
}
_NUMBERS = {
    "head_dim": ("Channels of a head", "Empty: read off the shapes."),
    "value_dim": ("Channels of a value", "Empty: read off the shapes."),
    "rope_blocks": ("Rotary blocks", "Equal parts that turn by themselves: the axes of a picture."),
}
_WIDTH = 150


def draw(row: Mapping, key: str) -> dict:
    """The widgets of a declaration; returns what they say, in the words of its function."""
    kind = row["kind"]
    st.markdown(f"**{'Attention' if kind == 'attention' else 'Feed-forward'}**")
    said = dict(row)
    said["layer"] = st.text_input(
        "Path of a layer",
        row["layer"],
        key=f"{key} layer",
        **KEPT,
        placeholder="model.layers.{i}.attn",
        help="What stands before the names below, with {i} in place of the layer's number, {e} in place of an "
        "expert's.",
    ).strip()
    _names(said, row, key)
    if kind == "attention":
        _heads(said, row, key)
    said.pop("activation", None)
    said.pop("up_first", None)
    if said["names"] == "up alone":
        said["activation"] = _choice("Activation", HOMOGENEOUS, row.get("activation"), f"{key} activation")
    if said["names"] == "gate and up in one":
        said["up_first"] = st.toggle(
            "Up lies before the gate", bool(row.get("up_first")), key=f"{key} up first", **KEPT
        )
    with st.expander("Further words", key=f"{key} further"):
        _further(said, row, key)
    del said["names"]
    return said


_TOGGLES = {
    "heads_axis": "Heads are an axis of their own: [in, heads, width]",
    "out_extra": "The output reads further channels behind the heads'",
    "by_rows": "Every expert's rows lie one below the other",
}


def _names(said: dict, row: Mapping, key: str) -> None:
    """Which modules write and read the channels."""
    choices = NAMES[row["kind"]]
    every = {name for names in choices.values() for name in names}
    named = {name for name in every if row.get(name)}
    fits = next((one for one, names in choices.items() if set(names) == named), next(iter(choices)))
    chosen = one_of("Projections", list(choices), f"{key} names", default=fits)
    said["names"] = chosen
    for name in every - set(choices[chosen]):
        said.pop(name, None)
    with st.container(horizontal=True, gap="small"):
        for name in (*choices[chosen], "out" if row["kind"] == "attention" else "down"):
            said[name] = st.text_input(
                LABELS[name], row.get(name, ""), key=f"{key} {name}", **KEPT, width=_WIDTH
            ).strip()


def _heads(said: dict, row: Mapping, key: str) -> None:
    said["kv_layer"] = None
    if said["names"] == "q alone":
        tip = "The layer whose keys and values these read; say which they are under Further words."
        said["kv_layer"] = _number("Reads layer", row.get("kv_layer"), f"{key} kv_layer", "needed", tip)
    with st.container(horizontal=True, gap="small"):
        said["n_heads"] = _number("Query heads", row.get("n_heads"), f"{key} n_heads", "needed")
        said["n_kv_heads"] = _number("Key/value heads", row.get("n_kv_heads"), f"{key} n_kv_heads", "as many")
        said["rope"] = _choice("Rotary layout", ROPES, row.get("rope", "none"), f"{key} rope")
        said["rope_channels"] = None
        if said["rope"] != "none":
            said["rope_channels"] = _number("Channels that rotate", row.get("rope_channels"), f"{key} turning", "all")
        if said["names"] in ("all in one", "k, v in one"):
            layouts = ["", *layout_names()]
            usual = "concat" if said["names"] == "all in one" else "kv_concat"
            said["layout"] = _choice(
                "Layout", layouts, row.get("layout", ""), f"{key} layout", lambda one: one or f"{usual} (usual)"
            )
    norms = row.get("qk_norm") or {}
    norms = norms if isinstance(norms, Mapping) else dict(zip("qk", norms))
    with st.container(horizontal=True, gap="small"):
        named = {
            side: st.text_input(
                f"Norm on {side}", norms.get(side, ""), key=f"{key} norm {side}", **KEPT, width=_WIDTH
            ).strip()
            for side in "qk"
        }
    said["qk_norm"] = {**norms, **named} if any(named.values()) else {}
    said["conv1d"] = st.toggle(
        "Matrices are stored [in, out]",
        bool(row.get("conv1d")),
        key=f"{key} conv1d",
        **KEPT,
        help="As GPT-2's Conv1D does.",
    )


def _further(said: dict, row: Mapping, key: str) -> None:
    words = attention.__kwdefaults__ if row["kind"] == "attention" else feed_forward.__kwdefaults__
    with st.container(horizontal=True, gap="small"):
        for name, (label, tip) in _TEXT.items():
            if name in words:
                value = row.get(name, "")
                text = value if isinstance(value, str) else ",".join(map(str, value))
                said[name] = st.text_input(label, text, key=f"{key} {name}", **KEPT, help=tip, width=_WIDTH).strip()
        for name, (label, tip) in _NUMBERS.items():
            if name in words:
                said[name] = _number(label, row.get(name), f"{key} {name}", "", tip)
    for name, label in _TOGGLES.items():
        if name in words:
            said[name] = st.toggle(label, bool(row.get(name)), key=f"{key} {name}", **KEPT)
    if row["kind"] == "feed_forward":
        said["conv1d"] = st.toggle(
            "Matrices are stored [in, out]", bool(row.get("conv1d")), key=f"{key} conv1d", **KEPT
        )
    if row.get("follow"):
        plain(f"follow, kept as it was written: {row['follow']}")


def _number(label: str, value: int | None, key: str, placeholder: str, tip: str | None = None) -> int | None:
    given = number(label, value, key, _WIDTH, step=1, placeholder=placeholder, help=tip)
    return int(given) if given is not None else None


def _choice(label: str, options, value: str | None, key: str, shown=str) -> str:
    options = list(options)
    at = options.index(value) if value in options else 0
    return pick(label, options, key, format_func=shown, index=at, width=_WIDTH)


def declaration(row: Mapping, stands_in: tuple | None = None) -> Declaration:
    """What the widgets say as a value. Raises DeclarationError."""
    make = {"attention": attention, "feed_forward": feed_forward}[row["kind"]]
    words = {
        name: value for name, value in row.items() if name not in ("kind", "layer") and value not in (None, "", {})
    }
    if make is attention and "n_heads" not in words:
        heads, kv_heads = stands_in or (1, None)
        words |= {"n_heads": heads} | ({"n_kv_heads": kv_heads} if kv_heads else {})
    words.setdefault("out" if make is attention else "down", "")
    return make(row["layer"], **words)
