"""Which field of the form a wrong value of a spec was written in, as a person reads it there."""

import re

from wisca_core.comparison.presets import KNOWN_ARMS
from wisca_core.errors import SpecError, WiscaError

_ARMS, _OWN, _MODEL, _HOW = (
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
    "model.width": ("Width", _MODEL),
    "model.n_layers": ("Layers", _MODEL),
    "model.n_heads": ("Query heads", _MODEL),
    "model.n_kv_heads": ("KV heads", _MODEL),
    "model.mlp_width": ("Width", _MODEL),
    "model.weights": ("Weights", _MODEL),
    "model.path": ("Open another", "the sidebar"),
    "lora.r": ("Rank", _MODEL),
    "lora.alpha": ("Alpha", _MODEL),
    "lora.targets": ("Layers it is put on", _MODEL),
    "data": ("Text", _MODEL),
    "data.path": ("Path on this machine", _MODEL),
    "data.column": ("Column", _MODEL),
    "data.split": ("Split", _MODEL),
    "data.context": ("Context", _MODEL),
    "data.tokens": ("Tokens", _MODEL),
    "data.tokenizer": ("Folder with its tokenizer", _MODEL),
    "batch_size": ("Batch", _MODEL),
    "device": ("Device", _HOW),
    "precision": ("Precision", _HOW),
    "processes_per_cell": ("Processes a run", _HOW),
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
}


def heading(error: WiscaError) -> str:
    """In front of the library's message, which names the spec's field.

    >>> heading(SpecError("model.n_kv_heads", 3, "a divisor of n_heads = 8"))
    'This comparison cannot be started: see KV heads, under Model and text'
    """
    label, under = _place(error)
    return (
        "This comparison cannot be started"
        + (f": see {label}" if label else "")
        + (f", under {under}" if under else "")
    )


def _place(error: WiscaError) -> tuple[str, str]:
    if not isinstance(error, SpecError):
        return _LABELS.get(str(error).partition(":")[0], ("", ""))  # of a file: "data.path: '/x' does not exist"
    if error.field == "data.path" and error.allowed.startswith("hub:"):
        return "hub:owner/name", _MODEL
    arm = re.fullmatch(r"arms\[\d+\](?:\.(\w+))?", error.field)
    if arm:
        return _arm(arm[1], error.value)
    if error.field == "arms" and isinstance(error.value, list) and len(set(error.value)) < len(error.value):
        return "Name", _OWN  # only there can a name be given twice
    return _LABELS.get(error.field.partition("[")[0], ("", ""))


def _arm(field: str | None, value: object) -> tuple[str, str]:
    """The known arms are right by themselves: only what the model makes of them can be wrong."""
    if field in _OWN_LABELS:
        return _OWN_LABELS[field], _OWN
    if field == "pairs" and not value:
        return "Pairs", _OWN
    return (_OWN, "") if field is None and value not in KNOWN_ARMS else (_ARMS, "")
