"""A model's own config.json at another width and depth, for training: what counts keeps the proportions it has.

Unlike a miniature (``wisca_core.equivalence.small_config``), which only has to be quick, this keeps the number of query
heads a KV head, the share of rotary channels, the width of the MLP against that of the model, experts, windows and
positions. KV heads stay as many as leave a head 8 channels or more.

Not covered: models whose layers differ in their heads, several towers in one config.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wisca_core.equivalence.model_config import clean, config_object
from wisca_core.equivalence.sizes import PER_ROTARY_PAIR, ROLES, ROPE, is_by_layer, width_share
from wisca_core.errors import ConfigMismatch, SpecError

LEAST_HEAD_DIM = 8


@dataclass(frozen=True)
class _Proportions:
    """``width``: new over old; ``head``: new head_dim over the old one; ``layers``: which of the old layers are
    kept.
    """

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    old_head_dim: int
    old_hidden: int
    old_layers: int
    layers: tuple[int, ...]
    vocab: int | None

    @property
    def width(self) -> float:
        return self.hidden / self.old_hidden

    @property
    def head(self) -> float:
        return self.head_dim / self.old_head_dim


def shrunk_config(
    config: Mapping[str, Any], width: int, n_layers: int, vocab_size: int | None = None
) -> dict[str, Any]:
    """config.json (parsed) -> the same, ``width`` wide and ``n_layers`` deep, without dropout. ``vocab_size``: of the
    tokens that are trained on, None for the config's own.

    Raises SpecError where no whole number of heads fits the width or layers would be lost by kind, ConfigMismatch,
    UnknownArchitecture.
    """
    full = config_object(config).to_dict()
    hidden, heads, n_old = (_count(full, role) for role in ("hidden", "heads", "layers"))
    kv_heads = _count(full, "kv_heads", heads)
    head_dim = _count(full, "head_dim", hidden // heads)
    if heads % kv_heads:
        raise ConfigMismatch(f"config.json has {heads} query heads on {kv_heads} key/value heads, which do not divide.")
    share = width_share(full, head_dim) if full.get("rope_parameters") or _first(full, "rotary_width") else 1.0
    new = _heads(width * heads * head_dim / hidden, heads // kv_heads, kv_heads, share)
    if new is None:
        fitting = [
            w for w in range(8, 4 * hidden) if _heads(w * heads * head_dim / hidden, heads // kv_heads, kv_heads, share)
        ]
        near = sorted(sorted(fitting, key=lambda w: abs(w - width))[:3])
        raise SpecError(
            "model.width",
            width,
            f"a width that whole heads of this model divide ({heads // kv_heads} query heads a KV head, "
            f"{head_dim} of {hidden} channels a head, even): near are {', '.join(map(str, near)) or 'none'}",
        )
    layers = _layers(full, n_old, n_layers)
    p = _Proportions(width, new[0] * heads // kv_heads, new[0], new[1], head_dim, hidden, n_old, layers, vocab_size)
    cleaned = clean(config)
    out = {key: _scaled_value(key, value, p) for key, value in cleaned.items()}
    for key, value in clean(full).items():  # what the file leaves to the class's defaults
        if key not in out and key not in ROPE and ROLES.get(key) and _scaled_value(key, value, p) != value:
            out[key] = _scaled_value(key, value, p)
    if vocab_size is not None:
        names = {key for key in {**full, **out} if key.endswith("_token_id")}
        out.update({key: _inside(out.get(key, full.get(key)), vocab_size) for key in names})
    return out


def without_dropout(config: Mapping[str, Any]) -> dict[str, Any]:
    """A comparison draws no random numbers while it trains: a resumed run could not draw the same ones."""
    return {key: type(value)(0) if "drop" in key and _is_number(value) else value for key, value in config.items()}


def _heads(width: float, per_kv: int, kv_heads: int, share: float) -> tuple[int, int] | None:
    """(KV heads, head_dim) that make up ``width`` channels of queries exactly; as many KV heads as there were, or
    fewer.
    """
    for kv in range(kv_heads, 0, -1):
        head_dim = width / (per_kv * kv)
        if head_dim >= LEAST_HEAD_DIM and head_dim % 2 == 0 and int(head_dim * share) % 2 == 0:
            return kv, int(head_dim)
    return None


def _layers(full: Mapping[str, Any], n_old: int, n_new: int) -> tuple[int, ...]:
    """The first layer of every kind the per-layer lists name, then the first ones; index n_old and up repeat."""
    lists = [value for key, value in full.items() if is_by_layer(key, value, n_old)]
    kinds: dict[str, int] = {}
    for layer in range(n_old):
        kinds.setdefault(repr([values[layer] for values in lists]), layer)
    if len(kinds) > n_new:
        raise SpecError("model.n_layers", n_new, f"{len(kinds)} or more: its layers are of {len(kinds)} kinds")
    kept = set(kinds.values())
    kept.update([layer for layer in range(max(n_old, n_new)) if layer not in kept][: n_new - len(kept)])
    return tuple(sorted(kept))


def _scaled_value(key: str, value: Any, p: _Proportions) -> Any:
    role = ROLES.get(key)
    if value is None:
        return None
    if is_by_layer(key, value, p.old_layers):
        if role in ("heads", "heads_by_layer", "kv_heads", "intermediate"):
            raise ConfigMismatch(
                f"config.json gives {key} layer by layer; such a model cannot be made smaller in proportion. Train it "
                "whole."
            )
        return [value[layer % p.old_layers] for layer in p.layers]
    if key == "attention_types":  # gpt_neo: [[[kinds...], repeats], ...]
        kinds = [kind for names, repeats in value for kind in names * repeats]
        return [[[kinds[layer % len(kinds)] for layer in p.layers], 1]]
    if role == "layer_indices" and isinstance(value, list):
        return [new for new, old in enumerate(p.layers) if old in value]
    if key in PER_ROTARY_PAIR and isinstance(value, list) and value:
        n = max(1, round(len(value) * p.head))
        return [value[i * len(value) // n] for i in range(n)]
    if isinstance(value, dict):
        return {inner: _scaled_value(inner, v, p) for inner, v in value.items()}
    if not _is_number(value):
        return value
    if "drop" in key:
        return type(value)(0)
    match role:
        case "layers":
            return len(p.layers)
        case "hidden":
            return p.hidden
        case "heads":
            return p.heads
        case "kv_heads":
            return p.kv_heads
        case "head_dim":
            return p.head_dim
        case "vocab":
            return value if p.vocab is None else p.vocab
        case "beside_hidden" | "intermediate" | "low_rank":
            return _even(value * p.width)
        case "rotary_width" | "nope_width" | "rope_width" | "value_width":
            return _even(value * p.head)
        case "score_width":
            return type(value)(value * p.head)
        case "score_factor":
            return value / math.sqrt(p.head)
    return value


def _even(value: float) -> int:
    return max(2, 2 * round(value / 2))


def _inside(value: Any, vocab_size: int) -> Any:
    """Special tokens beyond a smaller vocabulary mean nothing any more."""
    if isinstance(value, list):
        return [_inside(v, vocab_size) for v in value]
    return None if isinstance(value, int) and value >= vocab_size else value


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _first(full: Mapping[str, Any], role: str) -> Any:
    for key, value in full.items():
        if ROLES.get(key) == role and value is not None:
            return value
        if isinstance(value, dict) and key not in ROPE and (found := _first(value, role)) is not None:
            return found
    return None


def _count(full: Mapping[str, Any], role: str, default: int | None = None) -> int:
    value = _first(full, role)
    if isinstance(value, list) and len(set(map(repr, value))) == 1:
        value = value[0]
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        names = ", ".join(name for name, r in ROLES.items() if r == role)
        raise ConfigMismatch(
            f"config.json has {str(value)[:60]} for {names}; one whole number is needed to make it smaller in "
            "proportion."
        )
    return value
