"""What a model computes on a fixed list of named cases, and how far two models are apart on them.

Cases: lengths 1, 7 and 33; a batch padded on the left and one padded on the right (only the real positions are kept); for
decoders, a prefill and single-token steps on its cache. Not covered: generation on a padded batch, sampling, training mode.
"""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from wisca_core.equivalence.float64 import lifted
from wisca_core.equivalence.miniature import is_masked
from wisca_core.errors import UnknownArchitecture

LENGTHS = (1, 7, 33)
PADDED_LENGTHS = (12, 5, 9)
PREFILL, STEPS = 7, 5


@dataclass(frozen=True, eq=False)  # holds tensors: == would be ambiguous
class Outputs:
    """``cases``: name -> (n positions, width), the model's dtype. ``kind``: "logits", or "last hidden state" where the head
    gives none for every position."""

    kind: str
    cases: Mapping[str, torch.Tensor]

    @property
    def scale(self) -> float:
        """max |output| over all cases."""
        return max(values.abs().max().item() for values in self.cases.values())


@dataclass(frozen=True)
class Difference:
    """``max_abs``; ``max_rel``: the largest over cases of max |difference| / max |output of the reference in that case|;
    inf where any value is not finite. ``n_different`` of ``n_values`` values are not bit-equal."""

    max_abs: float
    max_rel: float
    n_values: int
    n_different: int
    worst_case: str


def outputs(model, seed: int) -> Outputs:
    """Run every case on random token ids of that seed; float64 models are run in true float64 (:func:`lifted`).

    UnknownArchitecture where the model does not run on token ids.
    """
    dtype = next(model.parameters()).dtype
    with _one_thread(), torch.no_grad():
        if dtype == torch.float64:
            with lifted():
                return _outputs(model, seed)
        return _outputs(model, seed)


def difference(reference: Outputs, other: Outputs) -> Difference:
    """How far ``other`` is from ``reference``; both from the same seed. ValueError where the cases differ."""
    if reference.kind != other.kind or list(reference.cases) != list(other.cases):
        raise ValueError(f"outputs of different cases: {reference.kind} {list(reference.cases)}, {other.kind} {list(other.cases)}")
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
    config = model.config
    allowed = _plain_tokens(config)

    def tokens(rows: int, length: int) -> torch.Tensor:
        return allowed[torch.randint(len(allowed), (rows, length), generator=generator)]

    kind = ""
    cases: dict[str, torch.Tensor] = {}
    for length in LENGTHS:
        kind, cases[f"length {length}"] = _per_position(model, {"input_ids": tokens(1, length)}, None, kind)
    longest = max(PADDED_LENGTHS)
    for side in ("left", "right"):
        ids, mask = tokens(len(PADDED_LENGTHS), longest), torch.zeros(len(PADDED_LENGTHS), longest, dtype=torch.int64)
        for row, length in enumerate(PADDED_LENGTHS):
            mask[row, longest - length :] = 1
            if side == "right":
                mask[row] = mask[row].flip(0)
        pad = getattr(config, "pad_token_id", None)
        pad = pad if isinstance(pad, int) and pad >= 0 else int(allowed[0])
        ids = torch.where(mask.bool(), ids, torch.full_like(ids, pad))
        kind, cases[f"padded on the {side}"] = _per_position(
            model, {"input_ids": ids, "attention_mask": mask}, mask.bool(), kind
        )
    if has_cache(model):
        prompt, rest = tokens(1, PREFILL), tokens(1, STEPS)
        cache = None
        for step in range(STEPS + 1):
            ids = prompt if step == 0 else rest[:, step - 1 : step]
            name = "cached prefill" if step == 0 else f"cached step {step}"
            inputs = {"input_ids": ids, "use_cache": True} | ({} if cache is None else {"past_key_values": cache})
            result = _forward(model, inputs)
            cache = result.past_key_values
            _, values = _pick(result, ids.shape, kind)
            cases[name] = values.reshape(-1, values.shape[-1]).clone()
    return Outputs(kind, cases)


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
        raise UnknownArchitecture(f"every one of the {config.vocab_size} token ids is special; nothing can be fed to the model.")
    return ids


def _forward(model, inputs: dict[str, Any]):
    try:
        return model(**inputs, output_hidden_states=True, return_dict=True)
    except Exception as error:
        raise UnknownArchitecture(
            f"{type(model).__name__} does not run on token ids ({', '.join(inputs)}): {type(error).__name__}: "
            f"{' '.join(str(error).split())[:300]}. Its outputs cannot be compared."
        ) from error


def _per_position(model, inputs: dict[str, Any], mask: torch.Tensor | None, kind: str) -> tuple[str, torch.Tensor]:
    result = _forward(model, inputs)
    kind, values = _pick(result, inputs["input_ids"].shape, kind)
    return kind, (values.reshape(-1, values.shape[-1]) if mask is None else values[mask]).clone()


def _pick(result: Any, shape: torch.Size, kind: str) -> tuple[str, torch.Tensor]:
    """The output that has a value for every position: (batch, length, width)."""
    if kind != "last hidden state":
        for name in ("logits", "prediction_logits"):
            values = getattr(result, name, None)
            if values is not None and values.shape[:2] == shape:
                return "logits", values if values.ndim == 3 else values.unsqueeze(-1)
    values = getattr(result, "last_hidden_state", None)
    return "last hidden state", result.hidden_states[-1] if values is None else values


@contextmanager
def _one_thread() -> Iterator[None]:
    """One order of summation, so that the same model gives the same bits twice."""
    n = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n)
