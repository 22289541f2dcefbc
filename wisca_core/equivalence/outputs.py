"""What a model computes on a fixed list of named cases, and how far two models are apart on them.

Cases: lengths 1, 7 and 33; a batch padded on the left and one padded on the right (only the real positions are kept);
for decoders, a prefill and single-token steps on its cache. Not covered: generation on a padded batch, sampling,
training mode.
"""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from wisca_core.equivalence.float64 import lifted
from wisca_core.equivalence.miniature import is_masked
from wisca_core.errors import UnknownArchitecture

LENGTHS = (1, 7, 33)
PADDED_LENGTHS = (12, 5, 9)
PREFILL, STEPS = 7, 5
LOGITS, HIDDEN = "logits", "last hidden state"


@dataclass(frozen=True, eq=False)  # holds tensors: == would be ambiguous
class Outputs:
    """``cases``: name -> (n positions, width), the model's dtype. ``kind``: "logits", or "last hidden state" where the
    head gives none for every position. ``causal``: the logits at a position are of the next token."""

    kind: str
    cases: Mapping[str, torch.Tensor]
    causal: bool = False

    @property
    def scale(self) -> float:
        """max |output| over all cases."""
        return max(values.abs().max().item() for values in self.cases.values())


@dataclass(frozen=True)
class Difference:
    """``max_rel``: the largest over cases of max |difference| / max |output of the reference in that case|; inf, like
    ``max_abs``, where any value is not finite. ``n_different`` of ``n_values`` values are not equal."""

    max_abs: float
    max_rel: float
    n_values: int
    n_different: int
    worst_case: str


def outputs(model, seed: int) -> Outputs:
    """Run every case on random token ids of that seed; float64 models are run in true float64 (:func:`lifted`).

    UnknownArchitecture where the model does not run on token ids.
    """
    lift = lifted() if next(model.parameters()).dtype == torch.float64 else nullcontext()
    with _one_thread(), torch.no_grad(), lift:
        return _outputs(model, seed)


def text_outputs(model, ids: torch.Tensor) -> Outputs:
    """The outputs on given token ids, one case a row; ``ids``: (rows, length), int64.

    float64 models are run in true float64. UnknownArchitecture where the model does not run on token ids.
    """
    lift = lifted() if next(model.parameters()).dtype == torch.float64 else nullcontext()
    kind, cases = "", {}
    with torch.no_grad(), lift:
        for row in range(len(ids)):
            kind, cases[f"row {row}"] = _per_position(model, {"input_ids": ids[row : row + 1]}, kind)
    return Outputs(kind, cases, causal=has_cache(model) and kind == "logits")


def difference(reference: Outputs, other: Outputs) -> Difference:
    """How far ``other`` is from ``reference``; both from the same seed. ValueError where the cases differ."""
    if reference.kind != other.kind or list(reference.cases) != list(other.cases):
        raise ValueError(
            f"outputs of different cases: {reference.kind} {list(reference.cases)}, {other.kind} {list(other.cases)}"
        )
    max_abs, max_rel, worst, n_values, n_different = 0.0, -1.0, "", 0, 0
    for case, left in reference.cases.items():
        right = other.cases[case]
        n_values += left.numel()
        n_different += int((left != right).sum())
        gap = (left.double() - right.double()).abs().max().item()
        size = left.double().abs().max().item()
        finite = bool(torch.isfinite(left).all() and torch.isfinite(right).all())
        rel = (gap / size if size else (0.0 if gap == 0 else float("inf"))) if finite else float("inf")
        max_abs = max(max_abs, gap if finite else float("inf"))
        if rel > max_rel:
            max_rel, worst = rel, case
    return Difference(max_abs, max_rel, n_values, n_different, worst)


def _outputs(model, seed: int) -> Outputs:
    generator = torch.Generator().manual_seed(seed)
    allowed = _plain_tokens(model.config)

    def tokens(rows: int, length: int) -> torch.Tensor:
        return allowed[torch.randint(len(allowed), (rows, length), generator=generator)]

    kind = ""
    cases: dict[str, torch.Tensor] = {}
    for length in LENGTHS:
        kind, cases[f"length {length}"] = _per_position(model, {"input_ids": tokens(1, length)}, kind)
    pad = getattr(model.config, "pad_token_id", None)
    pad = pad if isinstance(pad, int) and pad >= 0 else int(allowed[0])
    for side in ("left", "right"):
        place = torch.arange(max(PADDED_LENGTHS))
        mask = torch.stack([place < length for length in PADDED_LENGTHS])
        mask = mask.flip(1) if side == "left" else mask
        ids = tokens(*mask.shape).masked_fill(~mask, pad)
        inputs = {"input_ids": ids, "attention_mask": mask.to(torch.int64)}
        kind, cases[f"padded on the {side}"] = _per_position(model, inputs, kind, mask)
    if has_cache(model):
        prompt, rest = tokens(1, PREFILL), tokens(1, STEPS)
        cache = None
        for step in range(STEPS + 1):
            inputs = {"input_ids": prompt if step == 0 else rest[:, step - 1 : step], "use_cache": True}
            result = _forward(model, inputs | ({} if cache is None else {"past_key_values": cache}), kind)
            cache = result.past_key_values
            _, values = _pick(result, inputs["input_ids"].shape)
            cases["cached prefill" if step == 0 else f"cached step {step}"] = values.flatten(0, 1).clone()
    return Outputs(kind, cases, causal=has_cache(model) and kind == "logits")


def has_cache(model) -> bool:
    """Whether the model decodes with a cache of keys and values."""
    return "past_key_values" in inspect.signature(model.forward).parameters and not is_masked(model.config.to_dict())


def _plain_tokens(config: Any) -> torch.Tensor:
    """Ids that are not special (a pad id would be masked or shift positions), int64."""
    special = set()
    for name, value in config.to_dict().items():
        if name.endswith("_token_id"):
            special.update(value if isinstance(value, list) else [value])
    ids = torch.tensor([i for i in range(config.vocab_size) if i not in special], dtype=torch.int64)
    if not len(ids):
        raise UnknownArchitecture(
            f"every one of the {config.vocab_size} token ids is special; nothing can be fed to the model."
        )
    return ids


def _forward(model, inputs: dict[str, Any], kind: str):
    """One call; hidden states are kept only where they are the output (``kind``), for they are large in real models."""
    try:
        return model(**inputs, output_hidden_states=kind == HIDDEN, return_dict=True)
    except Exception as error:
        raise UnknownArchitecture(
            f"{type(model).__name__} does not run on token ids ({', '.join(inputs)}): {type(error).__name__}: "
            f"{' '.join(str(error).split())[:300]}. Its outputs cannot be compared."
        ) from error


def _per_position(
    model, inputs: dict[str, Any], kind: str, mask: torch.Tensor | None = None
) -> tuple[str, torch.Tensor]:
    """(kind, (n positions, width)) where ``mask`` (bool, (rows, length)) is true, without one everywhere; a copy."""
    shape = inputs["input_ids"].shape
    found, values = _pick(_forward(model, inputs, kind), shape)
    if values is None:
        found, values = _pick(_forward(model, inputs, HIDDEN), shape)
    if kind and found != kind:
        raise UnknownArchitecture(f"{type(model).__name__} gives {found} for one input and {kind} for another.")
    return found, values[mask] if mask is not None else values.flatten(0, 1).clone()


def _pick(result: Any, shape: torch.Size) -> tuple[str, torch.Tensor | None]:
    """The output with a value for every position, (rows, length, width); None where hidden states must be asked for."""
    for name in ("logits", "prediction_logits"):
        values = getattr(result, name, None)
        if values is not None and values.shape[:2] == shape:
            return LOGITS, values if values.ndim == 3 else values.unsqueeze(-1)
    values = getattr(result, "last_hidden_state", None)
    if values is None and getattr(result, "hidden_states", None):
        values = result.hidden_states[-1]
    return HIDDEN, values


@contextmanager
def _one_thread() -> Iterator[None]:
    """One order of summation, so that the same model gives the same bits twice."""
    n = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n)
