"""Which field of the form a wrong value of a spec was written in, as a person reads it there."""

import re
from collections.abc import Mapping

from streamlit.delta_generator import DeltaGenerator

from wisca_app.figures import compare
from wisca_core.comparison.presets import KNOWN_ARMS
from wisca_core.errors import SpecError, WiscaError

ARMS, OWN, MODEL, HOW = ("Arms beside the baseline", "An arm of your own", "Model and text", "How the runs are trained")

# Field of a spec -> label, and the heading under which it stands where that may be folded.
_LABELS = {
    "optimiser.learning_rates": ("Learning rates", ""),
    "optimiser.name": ("Optimiser", ""),
    "optimiser.warmup_steps": ("Steps", ""),
    "steps": ("Steps", ""),
    "every": ("Rescale every, steps", ""),
    "seeds": ("Seeds", ""),
    "pilot.seeds": ("Pilot seeds", ""),
    "pilot.arms": ("Pilot seeds", ""),
    "detect_nats": ("Effect to see, nats", ""),
    "model.width": ("Width", MODEL),
    "model.n_layers": ("Layers", MODEL),
    "model.n_heads": ("Query heads", MODEL),
    "model.n_kv_heads": ("KV heads", MODEL),
    "model.mlp_width": ("Width", MODEL),
    "model.weights": ("Weights", MODEL),
    "model.path": ("Open another", "the sidebar"),
    "lora.r": ("Rank", MODEL),
    "lora.alpha": ("Alpha", MODEL),
    "lora.targets": ("Layers it is put on", MODEL),
    "data": ("Text", MODEL),
    "data.path": ("Path on this machine", MODEL),
    "data.column": ("Column", MODEL),
    "data.split": ("Split", MODEL),
    "data.context": ("Context", MODEL),
    "data.max_bytes": ("Megabytes of text, at most", MODEL),
    "data.tokens": ("Tokens", MODEL),
    "data.tokenizer": ("Folder with its tokenizer", MODEL),
    "batch_size": ("Batch", MODEL),
    "device": ("Device", HOW),
    "precision": ("Precision", HOW),
    "processes_per_cell": ("Processes a run", HOW),
    "workers": ("Processes", HOW),
    "arms": (ARMS, ""),
}
_OWN_LABELS = {
    "name": "Name",
    "kind": "What it does",
    "pairs": "Pairs",
    "granularity": "Granularity",
    "norm": "Norm",
    "strength": "Strength",
    "exact": "Powers of two only",
    "optimizer_state": "Carry the optimiser's state along",
    "when": "From a ratio of",
    "start": "From step",
    "stop": "Up to step",
}


# What a spec calls other fields where it says what is allowed, and what the form calls them.
_SPOKEN = {
    "n_kv_heads": "KV heads",
    "n_heads": "query heads",
    "batch_size": "the batch",
    "pilot.seeds": "pilot seeds",
    "pilot.source": "another pilot",
    "model.source": "the model",
    "data.source": "the text",
    "optimiser.learning_rates": "learning rates",
    "processes_per_cell": "processes a run",
    "at_start": "at the start",
    "before start": "before From step",
    ", or a fraction of the run below 1": "",
    ", or nothing for once at the start": "",
    "clip_norm": "the norm that clipping looks at",
    "optimizer_state": "the optimiser's state",
}


def place(error: WiscaError, slots: Mapping[str, DeltaGenerator]) -> DeltaGenerator:
    """Of the slots, by label or by heading, the one beside the field; "" is the one of the fields in the open."""
    return next(slots[name] for name in (*_place(error), "") if name in slots)


def pointer(error: WiscaError) -> str:
    """In place of the button: where to look.

    >>> pointer(SpecError("model.n_kv_heads", 3, "a divisor of n_heads = 8"))
    'This comparison cannot be started: see KV heads, under Model and text.'
    """
    label, under = _place(error)
    return (
        "This comparison cannot be started"
        + (f": see {label}" if label else "")
        + (f", under {under}" if under else "")
        + "."
    )


def sentence(error: WiscaError) -> str:
    """Beside the field: what is wrong with it, in the form's own words. What was written there is in it, letter by
    letter.

    >>> sentence(SpecError("model.n_kv_heads", 3, "a divisor of n_heads = 8"))
    'KV heads: 3 cannot be used. Allowed is a divisor of query heads = 8.'
    """
    label = _place(error)[0]
    if isinstance(error, SpecError):
        text = _refusal(error, label)
    else:
        field, _, rest = str(error).partition(": ")
        text = rest if field in _LABELS else str(error)
    for name, spoken in _SPOKEN.items():
        text = re.sub(rf"\b{re.escape(name)}\b", spoken, text)
    return f"{label}: {text}" if label else text


def _refusal(error: SpecError, label: str) -> str:
    value = error.value
    if label == ARMS and value == ["baseline"]:
        return "choose at least one arm beside the baseline."
    if label == "Pairs" and not value:
        return "choose at least one pair."
    if twice := _name_given_twice(error):
        return f"{twice} cannot be used. It is the name of another arm, {compare.title(KNOWN_ARMS[twice])}."
    each = value if isinstance(value, list | tuple) else [value]
    given = ", ".join(f"{one:.15g}" if isinstance(one, float) else str(one) for one in each)
    return (f"{given[:80]} cannot be used. " if given else "nothing is given. ") + f"Allowed is {error.allowed}."


def _name_given_twice(error: SpecError) -> str:
    """That of one's own arm, the last: only there can it be written. "" where it is not that."""
    names = error.value if error.field == "arms" and isinstance(error.value, list) else []
    return names[-1] if len(set(names)) < len(names) else ""


def _place(error: WiscaError) -> tuple[str, str]:
    if not isinstance(error, SpecError):
        return _LABELS.get(str(error).partition(":")[0], ("", ""))  # of a file: "data.path: '/x' does not exist"
    if error.field == "data.path" and error.allowed.startswith("hub:"):
        return "hub:owner/name", MODEL
    arm = re.fullmatch(r"arms\[\d+\](?:\.(\w+))?", error.field)
    if arm:
        return _arm(arm[1], error)
    if _name_given_twice(error):
        return "Name", OWN
    return _LABELS.get(error.field.partition("[")[0], ("", ""))


def _arm(field: str | None, error: SpecError) -> tuple[str, str]:
    """The known arms are right by themselves: only what the model makes of them can be wrong."""
    if field == "pairs" and error.allowed.startswith("a pair this model has"):
        return ARMS, ""
    if field in _OWN_LABELS:
        return _OWN_LABELS[field], OWN
    return (OWN, "") if field is None and error.value not in KNOWN_ARMS else (ARMS, "")
