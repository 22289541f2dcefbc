"""The questions behind a comparison's spec: which model, which text, an arm of one's own. Each returns plain values as
a spec has them.
"""

from collections.abc import Iterable
from importlib.util import find_spec
from typing import Any

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from wisca_app import cached, state
from wisca_app.comparing import fields
from wisca_app.figures import words
from wisca_app.open_model import glance, normal
from wisca_app.open_model import title as model_title
from wisca_app.parts import KEPT, number, one_of, pick, quiet
from wisca_core.architecture.site import DEFAULT_PAIRS, GRANULARITIES
from wisca_core.comparison.paper import SETUPS
from wisca_core.comparison.prepare import shares_a_rate as shares_a_rate_of
from wisca_core.comparison.spec import MOST_BYTES, PRECISIONS, Spec
from wisca_core.comparison.spec_rules import whole
from wisca_core.errors import SpecError
from wisca_core.pairs import MODEL_PAIRS, PAIRS
from wisca_core.planning.options import PLAN_NORMS

MEGABYTE = 1_000_000
_MODELS = {
    "decoder": "A small decoder",
    "shrunk": "The open model, smaller",
    "whole": "The open model, whole",
    "lora": "LoRA on the open model",
    "paper": "The paper's set-ups",
}
_TEXTS = {
    "bundled": "Bundled: Python's own library",
    "text": "A text file",
    "jsonl": "A column of a JSONL file",
    "hub": "A data set of the hub",
}
_TOKENS = {"bytes": "Bytes", "tokenizer": "The model's tokenizer"}
_DEVICES = {"auto": "Every GPU", "cpu": "CPU", "cuda:0": "The first GPU"}
_EXECUTORS = {
    "auto": "As suits this machine",
    "processes": "One by one in each process",
    "replicas": "Several at once in each process",
    "ray": "On a Ray cluster",
}
_KINDS = {"balance": "Balance", "rates": "Rates alone", "inverse": "Inverse", "placebo": "Placebo"}


def source() -> str:
    """What kind of model is trained: at first the open one, made smaller, where it is somebody's own language model."""
    own, found = _own_source(), glance()
    chosen = pick("Model", _MODELS, f"compare model, at first {own}", index=list(_MODELS).index(own), width=280)
    if chosen == own == "decoder" and found is not None and state.get("model") != state.default_model():
        what = "is refused" if found.refusal else "was not made to predict the next token"
        what = "is an adapter" if found.checkpoint.adapter_json else what
        quiet(
            f"{words.markdown_text(model_title(normal(state.get('model'))))} {what}; a small decoder stands in for it."
        )
    return chosen


def _own_source() -> str:
    found = glance()
    if found is None or found.refusal or state.get("model") == state.default_model():
        return "decoder"
    named = found.checkpoint.config.get("architectures")
    first = str(named[0]) if isinstance(named, list) and named else ""
    predicts = first.endswith(("ForCausalLM", "LMHeadModel"))
    return "shrunk" if predicts and not found.checkpoint.adapter_json else "decoder"


def shares_a_rate(source: str) -> str:
    """Why the model of this kind cannot be trained at rates of its own, "" where it can."""
    found = glance() if source in ("shrunk", "whole") else None
    return shares_a_rate_of([s for s in found.sites.sites if s.key.pair in DEFAULT_PAIRS]) if found else ""


def paper_setup() -> str:
    return one_of(
        "Set-up", list(SETUPS), "compare setup", format_func=lambda name: SETUPS[name].title, default=next(iter(SETUPS))
    )


def title(model: dict) -> str:
    """A short name for a comparison of this model."""
    match model["source"]:
        case "decoder":
            return f"Decoder of width {model['width']}"
        case "paper":
            return SETUPS[model["setup"]].title
        case "shrunk":
            return f"{model_title(model['path'])}, {model['width']} wide"
        case "whole":
            return f"{model_title(model['path'])}, {'from scratch' if model['weights'] == 'fresh' else 'continued'}"
    return f"LoRA on {model_title(model['path'])}"


def model_and_text(kind: str, preset: Spec) -> dict[str, Any]:
    """The tables model, data and lora of a spec, and batch_size."""
    model: dict[str, Any] = {"source": kind}
    out: dict[str, Any] = {}
    longest = preset.data.context
    if kind in ("shrunk", "whole", "lora"):
        model["path"] = _open_place()
        longest = min(longest, _positions())
        quiet(
            f"The open model: {words.markdown_text(model_title(model['path']))}. Another one is opened in the sidebar."
        )
    if kind == "paper":
        model["setup"] = preset.model.setup
    with st.container(horizontal=True, gap="medium"):
        if kind == "decoder":
            model |= _decoder(preset)
        elif kind == "shrunk":
            model["width"] = number("Width", 64, "compare shrunk width", 120, step=8)
            model["n_layers"] = number("Layers", 4, "compare shrunk layers", 110)
        elif kind == "whole":
            said = {"fresh": "From scratch", "continued": "Continued"}
            model["weights"] = one_of("Weights", said, "compare weights from", default="fresh")
        elif kind == "lora":
            out["lora"] = _lora(preset)
        context = number("Context", longest, f"compare context {kind}", 120, step=32)
        batch_size = number("Batch", preset.batch_size, f"compare batch {kind}", 110)
    return {**out, "model": model, "data": _text(kind, preset, model) | {"context": context}, "batch_size": batch_size}


def how(kind: str) -> tuple[dict[str, Any], str, int | None]:
    """precision, device, processes_per_cell and save_weights of a spec; the executor; the number of processes, None for
    as many as fit the machine.
    """
    out: dict[str, Any] = {}
    with st.container(horizontal=True, gap="medium"):
        executor = pick(
            "Runs go",
            executors(),
            "compare executor",
            said=_EXECUTORS,
            width=260,
            help="All runs of a comparison go the same way: their differences would hold a change of it too.",
        )
        workers = number(
            "Processes",
            None,
            "compare workers",
            150,
            step=1,
            placeholder="auto",
            disabled=executor == "ray",
            help="Side by side; by default one a core, or one a GPU.",
        )
        out["precision"] = pick(
            "Precision",
            PRECISIONS,
            "compare precision",
            width=140,
            help="Of a training step. Validation is always computed without rounding to bfloat16.",
        )
        if cached.has_gpu():
            out["device"] = pick("Device", _DEVICES, "compare device", width=130)
        if kind in ("whole", "paper"):
            out["processes_per_cell"] = number(
                "Processes a run",
                1,
                "compare ranks",
                150,
                help="A model too large for one GPU is spread over several (FSDP2).",
            )
    out["save_weights"] = st.toggle(
        "Keep the final weights",
        Spec.save_weights,
        key="compare keep",
        **KEPT,
        help="Of every run, as a model folder: to be looked at on Inspect and to be taken away. Otherwise the "
        "curves alone stay.",
    )
    return out, executor, None if executor == "ray" else workers


def executors() -> list[str]:
    """Those that can be chosen here; Ray where it is installed."""
    return [name for name in _EXECUTORS if name != "ray" or find_spec("ray") is not None]


def _open_place() -> str:
    """The folder or file of the open model on this machine. Raises SpecError where none is open, WiscaError where it
    cannot be.
    """
    model = normal(state.get("model"))
    if not model:
        raise SpecError("model.path", "", "an open model: open one in the sidebar")
    return str(cached.model(model).checkpoint.place)


def _positions() -> int:
    """How many the open model has; a large number where its config does not say."""
    config = cached.model(normal(state.get("model"))).checkpoint.config
    found = (config.get(name) for name in ("max_position_embeddings", "n_positions"))
    return next((n for n in found if isinstance(n, int) and n > 0), 1 << 30)


def _decoder(preset: Spec) -> dict[str, int]:
    m = preset.model
    width = number("Width", m.width, "compare width", 120, step=8)
    return {
        "width": width,
        "n_layers": number("Layers", m.n_layers, "compare layers", 110),
        "n_heads": number("Query heads", m.n_heads, "compare heads", 120),
        "n_kv_heads": number("KV heads", m.n_kv_heads, "compare kv", 110),
        "mlp_width": 3 * width,
    }


def _lora(preset: Spec) -> dict[str, Any]:
    known = preset.lora
    r = number("Rank", known.r, "compare rank", 100)
    alpha = number("Alpha", known.alpha, "compare alpha", 110)
    targets = st.text_input(
        "Layers it is put on",
        "",
        key="compare targets",
        width=240,
        placeholder="all projections of the attention",
        **KEPT,
    )
    rslora = st.checkbox("rsLoRA", known.rslora, key="compare rslora", **KEPT)
    return {
        "r": r,
        "alpha": float(alpha),
        "targets": [t for t in targets.replace(",", " ").split() if t],
        "rslora": rslora,
    }


def _text(kind: str, preset: Spec, model: dict) -> dict[str, Any]:
    d = preset.data
    before = kind == "lora" or model.get("weights") == "continued"
    data: dict[str, Any] = {}
    with st.container(horizontal=True, gap="medium"):
        data["source"] = pick("Text", _TEXTS, f"compare source {kind}", index=list(_TEXTS).index(d.source), width=260)
        if data["source"] in ("text", "jsonl"):
            data["path"] = st.text_input("Path on this machine", key="compare path", width=320, **KEPT).strip()
        if data["source"] == "hub":
            data["path"] = st.text_input("hub:owner/name", d.path, key=f"compare hub {kind}", width=260, **KEPT).strip()
        if data["source"] in ("jsonl", "hub"):
            data["column"] = st.text_input("Column", d.column, key="compare column", width=110, **KEPT)
        if data["source"] == "hub":
            data["split"] = st.text_input("Split", d.split, key="compare split", width=100, **KEPT)
        if kind != "decoder":
            default = "tokenizer" if before or d.tokens == "tokenizer" else "bytes"
            data["tokens"] = one_of("Tokens", _TOKENS, f"compare tokens {kind} {before}", default=default)
        if kind == "paper":
            data["tokenizer"] = st.text_input(
                "Folder with its tokenizer", key="compare tokenizer", width=320, **KEPT
            ).strip()
    if data["source"] == "hub":
        mb = number("Megabytes of text, at most", 200, "compare megabytes", 200)
        data["max_bytes"] = mb * MEGABYTE
    return data


def check(asked: dict[str, Any], workers: int | None) -> None:
    """What the form asks in a unit of its own, or beside the spec. Raises SpecError."""
    if "max_bytes" in asked["data"]:
        whole(1, MOST_BYTES // MEGABYTE).read(asked["data"]["max_bytes"] // MEGABYTE, "data.max_bytes")
    if workers is not None:
        whole(1, 1024).read(workers, "workers")


def own_arm(kind: str, every: int) -> list[dict[str, Any]]:
    """One arm with options of one's own, or none."""
    with st.expander(fields.OWN, key="compare_own_arm"):
        if not st.checkbox("Add it to the comparison", key="compare own", **KEPT):
            return []
        with _row():
            name = st.text_input("Name", "mine", key="compare own name", max_chars=32, width=150, **KEPT)
            does = _one("What it does", _KINDS, "kind", format_func=_KINDS.get)
            pairs = list(PAIRS if kind == "lora" else MODEL_PAIRS)
            chosen = st.segmented_control(
                "Pairs",
                pairs,
                default=pairs[:2],
                selection_mode="multi",
                key=f"compare own pairs {kind}",
                format_func=words.PAIR_LABELS.get,
                **KEPT,
            )
        with _row():
            norm = _one("Norm", PLAN_NORMS, "norm", format_func=words.NORM_LABELS.get)
            strength = st.slider(
                "Strength",
                -1.5,
                1.5,
                0.5,
                0.05,
                key="compare own strength",
                width=200,
                **KEPT,
                help="1 balances, 0 does nothing, -1 is the same the other way.",
            )
            granularity = _granularity(chosen) if does != "rates" else "tensor"  # a matrix has one rate
        with _row():
            whens = {"every": f"Every {every:,} steps", "start": "At the start only"}
            when = _one("When", whens, "when", format_func=whens.get)
            repeats, waits = when == "every" and does != "inverse", does == "balance" and strength == 1
            part = _part_of_the_run(repeats, waits)
        greyed = ("" if repeats else "From step, Up to step: only of an arm that acts during the run.") + (
            "" if waits else " From a ratio of: only of Balance at strength 1."
        )
        if greyed:
            quiet(greyed.strip())
        with _row():
            exact = st.checkbox("Powers of two only", key="compare own exact", **KEPT)
            kept = st.checkbox("Carry the optimiser's state along", True, key="compare own state", **KEPT)
    return [
        {
            "name": name,
            "kind": does,
            "every": every if when == "every" else None,
            "pairs": list(chosen),
            "granularity": granularity,
            "norm": norm,
            "strength": float(strength),
            "exact": exact,
            "optimizer_state": "transport" if kept or does == "rates" else "leave",
            **part,
            **({"clip_norm": "plain"} if does == "rates" else {}),
        }
    ]


def _row() -> DeltaGenerator:
    return st.container(horizontal=True, gap="medium")


def _one(label: str, options: Iterable[str], key: str, **more: Any) -> str:
    """Of an arm of one's own; at first the first."""
    options = list(options)
    return one_of(label, options, f"compare own {key}", default=options[0], **more)


def _granularity(pairs: list[str]) -> str:
    """One word for all, or "qk=channel,vo=tensor"."""
    if len(pairs) < 2:
        return _one("Granularity", GRANULARITIES, "granularity of one")
    chosen = _one("Granularity", [*GRANULARITIES, "by pair"], "granularity")
    if chosen != "by pair":
        return chosen
    each = {
        pair: pick(words.PAIR_LABELS[pair], GRANULARITIES, f"compare own granularity {pair}", width=120)
        for pair in pairs
    }
    return ",".join(f"{pair}={word}" for pair, word in each.items())


def _part_of_the_run(repeats: bool, has_trigger: bool) -> dict[str, Any]:
    """when, start and stop of an arm. ``repeats``: whether it acts during the run; ``has_trigger``: whether it may wait
    for a ratio.
    """
    asked = [
        number(label, None, f"compare own {label}", 150, step=step, placeholder=none, disabled=not applies, help=said)
        for label, step, none, applies, said in (
            ("From step", 100, "the first", repeats, "Of an arm that acts during the run."),
            ("Up to step", 100, "the last", repeats, "Of an arm that acts during the run."),
            (
                "From a ratio of",
                0.1,
                "any",
                has_trigger,
                "A pair is left as it is until one side is so many times heavier. Of Balance at strength 1.",
            ),
        )
    ]
    first, last, ratio = (value if applies else None for value, applies in zip(asked, (repeats, repeats, has_trigger)))
    return {"when": ratio, "start": first or 0, "stop": last}
