"""Looking inside while a model reads the text: what its attention does, head by head, and how large its activations
grow.

One pass, one window at a time, eager attention: the scores of one layer are in memory at once. The attention function
is our own copy of the eager one; before anything is counted, the model's outputs through it are compared with its own.

Not covered: models whose attention does not go through transformers' attention interface, attention with sinks or
position terms beside the scores: refused by name. Layers without softmax attention have no rows.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from wisca_core.errors import UnsupportedCheckpoint
from wisca_core.evaluation.subjects import Subject
from wisca_core.progress import Progress

NAME = "wisca_inside"
AGREES = 1e-3  # of max |logit|: eager and watched differ by the rounding of float32 only, 1e-6 in what was run
CHANGES = ("s_aux", "sinks", "position_bias", "relative_position_bias", "head_mask")


@dataclass
class _Head:
    """Running figures of one layer, arrays over heads, float64."""

    largest: np.ndarray
    entropy: np.ndarray
    first: np.ndarray
    n: int = 0


@dataclass
class _Inside:
    layers: dict[int, _Head] = field(default_factory=dict)
    activations: dict[int, float] = field(default_factory=dict)
    refused: str = ""


def look_inside(
    subject: Subject, windows: Iterator[tuple[np.ndarray, int]], progress: Progress, most: int = 0
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(rows of heads, rows of layers) over at most ``most`` windows (0: all).

    heads: layer, head, largest_logit (of the scores before softmax, after any soft cap), entropy (nats, mean over
    queries but the first of each window), first_token (share of attention that goes to the first token, the same mean).
    layers: layer, largest_activation (max |hidden state| behind the layer). UnsupportedCheckpoint where it cannot be
    watched.
    """
    seen = _Inside()
    model = subject.model
    with _watching(model, seen), torch.inference_mode():
        n = 0
        for ids, _ in windows:
            if most and n >= most:
                break
            progress(f"looking inside {subject.name}", n, most)
            row = torch.from_numpy(ids[None, :-1]).to(subject.device)
            if n == 0:
                _check(model, row, seen)
            model(input_ids=row, use_cache=False)
            n += 1
    heads = [
        {
            "layer": layer,
            "head": head,
            "largest_logit": float(found.largest[head]),
            "entropy": float(found.entropy[head] / found.n),
            "first_token": float(found.first[head] / found.n),
        }
        for layer, found in sorted(seen.layers.items())
        for head in range(len(found.largest))
    ]
    layers = [{"layer": layer, "largest_activation": value} for layer, value in sorted(seen.activations.items())]
    return heads, layers


def _check(model, row: torch.Tensor, seen: _Inside) -> None:
    watched = model(input_ids=row, use_cache=False).logits.float()
    name = type(model).__name__
    if seen.refused or not seen.layers:
        why = seen.refused or "its attention does not go through transformers' attention interface"
        raise UnsupportedCheckpoint(f"{name} cannot be looked into while it runs: {why}.")
    seen.layers.clear()
    seen.activations.clear()
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        plain = model(input_ids=row, use_cache=False).logits.float()
    finally:
        model.set_attn_implementation(before)
    seen.activations.clear()
    gap = float((watched - plain).abs().max() / plain.abs().max())
    if not gap <= AGREES:
        raise UnsupportedCheckpoint(
            f"{name} cannot be looked into while it runs: through the watched attention its outputs differ by "
            f"{gap:.1e} relative."
        )


@contextmanager
def _watching(model, seen: _Inside) -> Iterator[None]:
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    def attention(module, query, key, value, attention_mask, scaling=None, dropout=0.0, softcap=None, **more):
        odd = [name for name in CHANGES if more.get(name) is not None]
        if odd:
            seen.refused = f"its attention takes {', '.join(odd)}"
        groups = query.shape[1] // key.shape[1]
        key, value = (t.repeat_interleave(groups, dim=1) if groups > 1 else t for t in (key, value))
        scores = torch.matmul(query, key.transpose(2, 3)) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        if attention_mask is not None:
            scores = scores + attention_mask[:, :, :, : scores.shape[-1]]
        weights = torch.softmax(scores, dim=-1, dtype=torch.float32)
        _count(seen, getattr(module, "layer_idx", None), scores, weights)
        out = torch.matmul(weights.to(value.dtype), value)
        return out.transpose(1, 2).contiguous(), None

    ALL_ATTENTION_FUNCTIONS.register(NAME, attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, eager_mask)
    before = model.config._attn_implementation
    hooks = [
        layer.register_forward_hook(lambda _, __, out, i=i: _activation(seen, i, out))
        for i, layer in enumerate(_layers(model))
    ]
    try:
        try:
            model.set_attn_implementation(NAME)
        except Exception as error:  # classes without the interface refuse in their own words
            raise UnsupportedCheckpoint(
                f"{type(model).__name__} cannot be looked into while it runs: {' '.join(str(error).split())[:200]}"
            ) from error
        yield
    finally:
        for hook in hooks:
            hook.remove()
        model.set_attn_implementation(before)


def _count(seen: _Inside, layer: int | None, scores: torch.Tensor, weights: torch.Tensor) -> None:
    if layer is None or scores.shape[-2] < 2:
        return
    largest = scores.amax(dim=(0, 2, 3)).double().cpu().numpy()
    rest = weights[:, :, 1:]  # the first query sees only itself: no choice
    entropy = torch.special.entr(rest).sum(-1).double().sum(dim=(0, 2)).cpu().numpy()
    first = rest[..., 0].double().sum(dim=(0, 2)).cpu().numpy()
    n = rest.shape[0] * rest.shape[2]
    found = seen.layers.get(layer)
    if found is None:
        seen.layers[layer] = _Head(largest, entropy, first, n)
    else:
        found.largest = np.maximum(found.largest, largest)
        found.entropy, found.first, found.n = found.entropy + entropy, found.first + first, found.n + n


def _activation(seen: _Inside, layer: int, out: Any) -> None:
    hidden = out[0] if isinstance(out, tuple) else out
    if isinstance(hidden, torch.Tensor):
        value = float(hidden.abs().max())
        seen.activations[layer] = max(seen.activations.get(layer, 0.0), value if math.isfinite(value) else math.inf)


def _layers(model) -> list[torch.nn.Module]:
    """The decoder's layers: the longest list of modules that is as long as the config says."""
    n = getattr(model.config.get_text_config(), "num_hidden_layers", 0)
    lists = [m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == n]
    return list(lists[0]) if lists else []


def change(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> dict[str, float]:
    """Largest relative difference of each figure between two models' rows of heads, in the same order."""
    out = {}
    for name in ("largest_logit", "entropy", "first_token"):
        gaps = [abs(a[name] - b[name]) / max(abs(a[name]), 1e-12) for a, b in zip(before, after)]
        out[name] = max(gaps, default=math.nan)
    return out
