"""What a model computes on a fixed list of named cases (:mod:`.inputs`), and how far two models are apart on them.

Not covered: generation on a padded batch, sampling, training mode.
"""

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from wisca_core.equivalence.float64 import in_float64
from wisca_core.equivalence.inputs import TOWERS, Case, cached_steps, cases, does_not_run, has_cache, has_decoder
from wisca_core.equivalence.undisturbed import seed_torch
from wisca_core.errors import UnknownArchitecture
from wisca_core.threads import one_thread

CACHE = "past_key_values"
LOGITS, HIDDEN, FEATURES = "logits", "last hidden state", "features"


@dataclass(frozen=True, eq=False)  # holds tensors: == would be ambiguous
class Outputs:
    """``cases``: name -> (n positions, width), the model's dtype. ``kind``: "logits", or "last hidden state" where the
    head gives none for every position, or "features" where there are no positions of text. ``causal``: the logits at a
    position are of the next token. ``not_run``: towers beside the language part that do not run on the inputs known
    here, with the reason; what is inside them is not compared."""

    kind: str
    cases: Mapping[str, torch.Tensor]
    causal: bool = False
    not_run: tuple[str, ...] = ()

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
    """Run every case on random token ids of that seed; float64 models are run in true float64 (:func:`in_float64`).

    UnknownArchitecture where the model does not run on token ids.
    """
    lift = in_float64() if next(model.parameters()).dtype == torch.float64 else nullcontext()
    with one_thread(), torch.no_grad(), lift:
        return _outputs(model, seed)


def case_outputs(model, given: Iterable[Case], seed: int = 0) -> Outputs:
    """The outputs on these cases, in order, as many threads as torch has; towers that do not run are named in
    ``not_run``.

    float64 models are run in true float64. UnknownArchitecture where the model does not run.
    """
    lift = in_float64() if next(model.parameters()).dtype == torch.float64 else nullcontext()
    with torch.no_grad(), lift:
        kind, values, not_run = _run(model, given, seed)
    if not values:
        raise UnknownArchitecture(f"{type(model).__name__} takes no input that is known here, so it cannot be run.")
    return Outputs(kind, values, causal=is_causal(model) and kind == LOGITS, not_run=not_run)


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
        size = _size(left)
        finite = bool(torch.isfinite(left).all() and torch.isfinite(right).all())
        rel = (gap / size if size else (0.0 if gap == 0 else float("inf"))) if finite else float("inf")
        max_abs = max(max_abs, gap if finite else float("inf"))
        if rel > max_rel:
            max_rel, worst = rel, case
    return Difference(max_abs, max_rel, n_values, n_different, worst)


def _size(values: torch.Tensor) -> float:
    """The largest absolute value; a forbidden token's logit, the end of the number range, is no measure of size."""
    sizes = values.double().abs()
    return sizes.masked_fill(sizes >= torch.finfo(values.dtype).max, 0.0).max().item()


def first_move(reference: Outputs, model, seed: int, above: float) -> float:
    """Relative difference of the first case in which ``model`` moves away from ``reference`` by more than ``above``;
    the largest seen where none does. Most models move in the first case, so this costs a fraction of ``outputs``.
    """
    lift = in_float64() if next(model.parameters()).dtype == torch.float64 else nullcontext()
    largest = 0.0
    with one_thread(), torch.no_grad(), lift:
        # the longest first: scores do not matter at length 1, nor do experts that are not chosen
        for case in sorted(
            cases(model, seed),
            key=lambda case: -max((t.numel() for t in case.inputs.values() if isinstance(t, torch.Tensor)), default=0),
        ):
            left = reference.cases.get(case.name)
            if left is None:
                continue
            _, right = _per_position(model, case, reference.kind if case.method == "forward" else "", seed)
            size = _size(left)
            gap = (left.double() - right.double()).abs().max().item()
            largest = max(largest, float("inf") if gap != gap else gap / size if size else gap)
            if largest > above:
                break
    return largest


def _run(model, given: Iterable[Case], seed: int) -> tuple[str, dict[str, torch.Tensor], tuple[str, ...]]:
    """(kind, values of each case, why towers did not run)."""
    kind, values, not_run = "", {}, {}
    for case in given:
        if case.method in not_run:
            continue
        try:
            kind, values[case.name] = _per_position(model, case, kind, seed)
        except UnknownArchitecture as error:
            if case.method not in TOWERS or not values:
                raise
            not_run[case.method] = str(error)
    return kind, values, tuple(not_run.values())


def _outputs(model, seed: int) -> Outputs:
    kind, values, not_run = _run(model, cases(model, seed), seed)
    if has_cache(model):
        for name, result, shape in cached_steps(
            model, seed, lambda inputs: _forward(model, Case("", inputs), kind, seed)
        ):
            values[name] = _pick(result, shape)[1].flatten(0, 1).clone()
    return Outputs(kind, values, causal=is_causal(model) and kind == LOGITS, not_run=not_run)


def is_causal(model) -> bool:
    """Whether the logits at a position of the input are of the token that follows it."""
    return has_cache(model) and not has_decoder(model)


def _forward(model, case: Case, kind: str, seed: int = 0):
    """One call; hidden states are kept only where they are the output (``kind``), for they are large in real models.

    The global random state is that of ``seed``, for some models draw at inference (hashes, random blocks)."""
    dtype = next(model.parameters()).dtype
    inputs = {
        name: value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        for name, value in case.inputs.items()
    }
    if case.method == "forward":
        inputs |= {"output_hidden_states": kind == HIDDEN, "return_dict": True}
    try:
        with torch.random.fork_rng(devices=[]):
            seed_torch(seed)
            return getattr(model, case.method)(**inputs) if case.method != "forward" else model(**inputs)
    except Exception as error:
        raise does_not_run(model, case.name or "a step on its cache", case.inputs, error) from error


def _per_position(model, case: Case, kind: str, seed: int = 0) -> tuple[str, torch.Tensor]:
    """(kind, (n positions, width)) where the case's mask is true, without one everywhere; a copy."""
    result = _forward(model, case, kind, seed)
    if case.shape is None or case.method != "forward":
        return kind or FEATURES, everything(result)
    found, values = _pick(result, case.shape)
    if values is None:
        found, values = _pick(_forward(model, case, HIDDEN, seed), case.shape)
    if values is None:
        return kind or FEATURES, everything(result)
    if kind and found != kind:
        raise UnknownArchitecture(f"{type(model).__name__} gives {found} for one input and {kind} for another.")
    return found, values[case.mask] if case.mask is not None else values.flatten(0, 1).clone()


def _pick(result: Any, shape: torch.Size) -> tuple[str, torch.Tensor | None]:
    """The output with a value for every position, (rows, length, width); None where hidden states must be asked for."""
    for name in ("logits", "prediction_logits"):
        values = getattr(result, name, None)
        if isinstance(values, torch.Tensor) and values.shape[:2] == shape:
            return LOGITS, values if values.ndim == 3 else values.unsqueeze(-1)
    for name in ("last_hidden_state", "hidden_states", "decoder_hidden_states"):
        values = getattr(result, name, None)
        values = values[-1] if isinstance(values, (tuple, list)) and values else values
        if isinstance(values, torch.Tensor) and values.shape[:2] == shape and values.ndim == 3:
            return HIDDEN, values
    return HIDDEN, None


def everything(result: Any) -> torch.Tensor:
    """Every floating value a call gives, in order, (n, 1), a copy: for outputs without a position per token."""
    found: list[torch.Tensor] = []

    def walk(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            if value.is_floating_point():
                found.append(value.reshape(-1, 1))
        elif isinstance(value, Mapping):
            for name, inner in value.items():
                if name != CACHE:  # keys and values move with their projections
                    walk(inner)
        elif isinstance(value, (tuple, list)):
            for inner in value:
                walk(inner)

    walk(result)
    if not found:
        raise UnknownArchitecture(
            f"a call gives {type(result).__name__} without any floating value; nothing can be compared."
        )
    return torch.cat(found)
