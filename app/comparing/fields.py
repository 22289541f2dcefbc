"""Which field of the form a wrong value of a spec was written in, as a person reads it there."""

import re

from wisca_core.comparison.presets import KNOWN_ARMS
from wisca_core.errors import SpecError, WiscaError

_ARMS, OWN, MODEL, HOW = (
    "Arms beside the baseline",
    "An arm of your own",
    "Model and text",
    "How the runs are trained",
)

# Field of a spec -> label, and the heading under which it stands where that may be folded.
_LABELS = {
    "optimiser.learning_rates": ("Learning rates", ""),
    "optimiser.name": ("Optimiser", ""),
    "optimiser.warmup_steps": ("Steps", ""),
    "steps": ("Steps", ""),
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
    "data.tokens": ("Tokens", MODEL),
    "data.tokenizer": ("Folder with its tokenizer", MODEL),
    "batch_size": ("Batch", MODEL),
    "device": ("Device", HOW),
    "precision": ("Precision", HOW),
    "processes_per_cell": ("Processes a run", HOW),
    "arms": (_ARMS, ""),
}
_OWN_LABELS = {
    "name": "Name",
    "kind": "What it does",
    "every": "When",
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
    "before start": "before its first step",
    "clip_norm": "the norm that clipping looks at",
    "optimizer_state": "the optimiser's state",
}


def place(error: WiscaError) -> str:
    """The heading under which the field stands, "" where it is in the open."""
    return _place(error)[1]


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
    """Beside the field: what is wrong with it, in the form's own words. What was written there is in it, letter by letter.

    >>> sentence(SpecError("model.n_kv_heads", 3, "a divisor of n_heads = 8"))
    'KV heads: 3 cannot be used. Allowed is a divisor of query heads = 8.'
    """
    label = _place(error)[0]
    if isinstance(error, SpecError):
        given = ", ".join(map(str, error.value)) if isinstance(error.value, list | tuple) else str(error.value)
        text = f"{given[:80]} cannot be used. " if given else "nothing is given. "
        text += f"Allowed is {error.allowed}."
    else:
        field, _, rest = str(error).partition(": ")
        text = rest if field in _LABELS else str(error)
    for name, spoken in _SPOKEN.items():
        text = re.sub(rf"\b{re.escape(name)}\b", spoken, text)
    return f"{label}: {text}" if label else text


def _place(error: WiscaError) -> tuple[str, str]:
    if not isinstance(error, SpecError):
        return _LABELS.get(str(error).partition(":")[0], ("", ""))  # of a file: "data.path: '/x' does not exist"
    if error.field == "data.path" and error.allowed.startswith("hub:"):
        return "hub:owner/name", MODEL
    arm = re.fullmatch(r"arms\[\d+\](?:\.(\w+))?", error.field)
    if arm:
        return _arm(arm[1], error.value)
    if error.field == "arms" and isinstance(error.value, list) and len(set(error.value)) < len(error.value):
        return "Name", OWN  # only there can a name be given twice
    return _LABELS.get(error.field.partition("[")[0], ("", ""))


def _arm(field: str | None, value: object) -> tuple[str, str]:
    """The known arms are right by themselves: only what the model makes of them can be wrong."""
    if field in _OWN_LABELS:
        return _OWN_LABELS[field], OWN
    if field == "pairs" and not value:
        return "Pairs", OWN
    return (OWN, "") if field is None and value not in KNOWN_ARMS else (_ARMS, "")
