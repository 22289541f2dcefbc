"""How large a miniature is: what the keys of a config count (``sizes.toml``), and the new sizes that follow from the
old.

Sizes are worked out for one tower at a time; a config that only holds towers takes those of its language part.
"""

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from types import MappingProxyType
from typing import Any

from wisca_core.errors import ConfigMismatch

MIN_LAYERS = 2
MAX_LAYERS = 8
DEFAULT_HEADS = 4  # where a config has none: models without attention
ROPE = ("rope_parameters", "rope_scaling")
PER_ROTARY_PAIR = ("short_factor", "long_factor")  # in a rope dictionary: one entry per rotary pair
ONE_SIZE = ("intermediate", "expert_width", "layer_sources")  # by layer or not, they get one new size
ONE_A_LAYER = (  # roles of keys that may hold a list with one entry a layer
    *("by_layer", "layer_sources", "heads", "heads_by_layer", "kv_heads", "head_dim", "intermediate", "expert_width"),
    *("experts", "active_experts", "shared_experts", "window", "padded_window"),
)
BY_LAYER = "per_layer_config"  # layer -> what it has instead of the common values


@dataclass(frozen=True, eq=False)  # holds mappings
class SizeTable:
    """``roles``: key -> role. ``small``, ``at_most``: role -> value. ``rows``: model type -> key -> value.
    ``examples``: model type -> what its default config lacks; ``variants``: model type -> further values to prove."""

    roles: Mapping[str, str]
    small: Mapping[str, int]
    at_most: Mapping[str, int]
    rows: Mapping[str, Mapping[str, Any]]
    examples: Mapping[str, Mapping[str, Any]]
    variants: Mapping[str, list[Mapping[str, Any]]]


def _read() -> SizeTable:
    data: dict[str, Any] = tomllib.loads(
        resources.files(__package__).joinpath("sizes.toml").read_text(encoding="utf-8")
    )
    roles: dict[str, str] = {}
    for role, names in data["roles"].items():
        for name in names.split():
            if name in roles:
                raise ValueError(f"sizes.toml lists {name} under {roles[name]} and {role}")
            roles[name] = role
    return SizeTable(
        MappingProxyType(roles),
        *(MappingProxyType(data[part]) for part in ("small", "at_most", "types", "examples", "variants")),
    )


TABLE = _read()
ROLES = TABLE.roles


@dataclass(frozen=True)
class Sizes:
    """What the values of a shrunk config follow from: a few old sizes, and the new ones."""

    old_hidden: int
    old_positions: int
    old_head_dim: int
    n_layers: int  # old
    layers: tuple[int, ...]  # which old layers are kept
    heads: int
    kv_heads: int
    by_heads: tuple[
        tuple[tuple[int, int], tuple[int, int]], ...
    ]  # old (query heads, KV heads) -> new, the common one first
    heads_by_layer: tuple[tuple[int, int], ...]  # (query heads, KV heads) of the kept layers
    hidden: int
    head_dim: int
    rotary_width: int
    text_hidden: int = 0  # new width of the language part that this tower feeds; 0 where there is none

    def small_heads(self, old: int) -> int:
        """New query heads of a key that counts ``old``."""
        return next((new[0] for pair, new in self.by_heads if pair[0] == old), self.heads)

    def small_kv_heads(self, old: int) -> int:
        return next((new[1] for pair, new in self.by_heads if pair[1] == old), self.kv_heads)


def first(full: Mapping[str, Any], role: str) -> Any:
    """The value of the first key with that role, in nested dictionaries too (mpt's attn_config); None if absent."""
    for key, value in full.items():
        if (
            ROLES.get(key) == role
            and value is not None
            and not (isinstance(value, list) and role in ("layers", "hidden"))
        ):
            return value
    for key, value in full.items():
        if isinstance(value, dict) and key not in (*ROPE, BY_LAYER) and (found := first(value, role)) is not None:
            return found
    return None


def has_sizes(full: Mapping[str, Any]) -> bool:
    """Whether these are the values of a tower of its own: it has layers and a width."""
    return first(full, "layers") is not None and first(full, "hidden") is not None


def sizes_of(
    full: Mapping[str, Any], n_layers: int, model_type: str, own_head_dim: bool, spelled: bool, text_hidden: int
) -> Sizes:
    """``full``: the values of one tower, defaults filled in. ``own_head_dim``: the type lets head_dim be set beside the
    width; ``spelled``: the person's file does.

    ConfigMismatch where the numbers cannot be.
    """
    hidden, heads = first(full, "hidden"), first(full, "heads") or DEFAULT_HEADS
    row = TABLE.rows.get(model_type, {})
    layers = kept_layers(full, n_layers, row.get("of_a_kind", 1))
    kv_heads, by_layer = first(full, "kv_heads") or heads, first(full, "heads_by_layer") or heads
    most, most_kv = (max(value) if isinstance(value, list) else value for value in (heads, kv_heads))
    by_layer_pairs = [(_at(by_layer, layer), _at(kv_heads, layer)) for layer in layers]
    pairs = [(most, most_kv), *by_layer_pairs, *_other_heads(full, most, most_kv)]
    small = _small_heads(pairs)
    new_heads = small[most, most_kv][0]

    explicit = first(full, "head_dim") if own_head_dim else None
    head_dim = explicit or hidden // most
    width = _rotary_width(full, head_dim)
    new_head_dim = 8 if width in (0, head_dim) else _partial_head_dim(width, head_dim, width_share(full, head_dim))
    new_width = (
        0 if width == 0 else new_head_dim if width == head_dim else int(new_head_dim * width_share(full, head_dim))
    )
    beside = (head_dim * most < hidden) - (head_dim * most > hidden)  # where the two differ, keep which is larger
    if explicit is None:
        new_hidden = new_heads * new_head_dim + 2 * (hidden % most > 0)  # some types divide with a remainder
    elif not beside and spelled and not row.get("square"):
        new_hidden = new_heads * (new_head_dim + 2)  # may differ, so does: no axis can be taken for another
    else:
        new_hidden = new_heads * (new_head_dim + 2 * beside)
    return Sizes(
        old_hidden=hidden,
        old_positions=first(full, "positions") or 0,
        old_head_dim=first(full, "head_dim") or head_dim,
        n_layers=n_layers,
        layers=layers,
        heads=new_heads,
        kv_heads=small[most, most_kv][1],
        by_heads=tuple(small.items()),
        heads_by_layer=tuple(small[pair] for pair in by_layer_pairs),
        hidden=new_hidden,
        head_dim=new_head_dim,
        rotary_width=new_width,
        text_hidden=text_hidden,
    )


def _at(value: Any, layer: int) -> Any:
    return value[layer] if isinstance(value, list) else value


def _other_heads(full: Mapping[str, Any], most: int, most_kv: int) -> list[tuple[int, int]]:
    """(query heads, KV heads) that keys beside the common ones name: of window layers, of a decoder, of single
    layers.
    """
    found = []
    for key, value in full.items():
        if ROLES.get(key) == "heads" and isinstance(value, int) and value and value != most:
            stem = [k for k, role in ROLES.items() if role == "kv_heads" and k.split("num")[0] == key.split("num")[0]]
            kv = next((full[k] for k in stem if full.get(k)), None)
            # a key of its own for its KV heads, else the common count where that divides
            found.append((value, kv or (most_kv if most_kv != most and value % most_kv == 0 else value)))
        elif key == "swa_num_key_value_heads" and value != most_kv:
            found.append((full.get("swa_num_attention_heads") or most, value))
    for own in (full.get(BY_LAYER) or {}).values():
        heads, kv = first(own, "heads"), first(own, "kv_heads")
        if heads or kv:
            found.append((heads or most, kv or most_kv))
    return found


def _small_heads(pairs: Iterable[tuple[int, int]]) -> dict[tuple[int, int], tuple[int, int]]:
    """Old (query heads, KV heads) of every layer -> new ones: equal stays equal, one stays one, unlike stays unlike."""
    pairs = list(dict.fromkeys(pairs))
    for heads, kv_heads in pairs:
        if heads % kv_heads:
            raise ConfigMismatch(
                f"config.json has {heads} query heads on {kv_heads} key/value heads, which do not divide."
            )
    if len(pairs) > 1 and len({heads for heads, _ in pairs}) == 1:  # one count of query heads for all layers
        between = sorted({kv for heads, kv in pairs if 1 < kv < heads})
        most = 2 ** (1 + max(1, len(between)))
        new = {1: 1, pairs[0][0]: most} | {kv: min(2 ** (1 + rank), most // 2) for rank, kv in enumerate(between)}
        return {(q, kv): (most, new[kv]) for q, kv in pairs}
    if len(pairs) > 1:
        ratio, kv = _ranks(heads // kv for heads, kv in pairs), _ranks(kv for _, kv in pairs)
        return {(q, k): (ratio[q // k] * kv[k], kv[k]) for q, k in pairs}
    ((heads, kv_heads),) = pairs
    if heads == kv_heads:
        return {(heads, kv_heads): (4, 4) if heads > 1 else (1, 1)}
    # 3 heads a group on 2 groups: the two cannot be taken for each other
    return {(heads, kv_heads): (4, 1) if kv_heads == 1 else (6, 2)}


def _ranks(values: Iterable[int]) -> dict[int, int]:
    """1 -> 1, the others -> 2, 3, ... in order."""
    ordered = sorted(set(values))
    return {value: rank + (2 if ordered[0] > 1 else 1) for rank, value in enumerate(ordered)}


def width_share(full: Mapping[str, Any], head_dim: int) -> float:
    """Rotary width over head_dim as the config states it: a share, or a number of channels."""
    channels = first(full, "rotary_width")
    if channels:
        return channels / head_dim
    rope = full.get("rope_parameters") or {}
    inner = [rope, *(value for value in rope.values() if isinstance(value, dict))]
    shares = [r["partial_rotary_factor"] for r in inner if r.get("partial_rotary_factor") is not None]
    return float(min(shares, default=1.0))


def _rotary_width(full: Mapping[str, Any], head_dim: int) -> int:
    if not full.get("rope_parameters") and not first(full, "rotary_width"):
        return 0
    share = width_share(full, head_dim)
    if not 0.0 < share <= 1.0:
        raise ConfigMismatch(f"config.json rotates {share:g} of each head; a share above 0 and at most 1 is expected.")
    return int(head_dim * share)


def _partial_head_dim(width: int, head_dim: int, share: float) -> int:
    """Smallest even head_dim of which the same share leaves two or more rotary pairs and free channels, parity kept."""
    for small in range(8, 257, 2):
        if 4 <= int(small * share) < small and int(small * share) % 2 == width % 2:
            return small
    raise ConfigMismatch(
        f"config.json rotates {width} of {head_dim} channels of a head, too few to keep in a miniature."
    )


def is_by_layer(key: str, value: Any, n_layers: int) -> bool:
    """Whether a list has one entry a layer: its key says so. Any list may be as long as there are layers by chance: the
    rotary sections of a model of three, the convolutions before one of seven.
    """
    return isinstance(value, list) and len(value) == n_layers and ROLES.get(key) in ONE_A_LAYER


def of_layer(own: Mapping[Any, Any] | None, layer: int) -> Any:
    """What a per-layer dictionary says of one layer; its keys are numbers, or text ("05") where it went through
    JSON.
    """
    return next((value for key, value in (own or {}).items() if int(key) == layer), None)


def _beside(value: Any, common: Any) -> Any:
    """How a layer's own value stands to the common one: all that is kept of it."""
    numbers = all(isinstance(v, (int, float)) for v in (value, common))
    return (value > common) - (value < common) if numbers else value


def kept_layers(full: Mapping[str, Any], n_layers: int, of_a_kind: int = 1) -> tuple[int, ...]:
    """The first ``of_a_kind`` layers of every kind (what the config says of each); then the first ones to fill up."""
    lists = [
        value
        for key, value in full.items()
        if is_by_layer(key, value, n_layers) and ROLES.get(key) not in (*TABLE.small, *TABLE.at_most, *ONE_SIZE)
    ]
    named = [set(value) for key, value in full.items() if ROLES.get(key) == "layer_indices" and isinstance(value, list)]
    sources = first(full, "layer_sources")
    starts = [value for key, value in full.items() if ROLES.get(key) == "first_layers" and isinstance(value, int)]
    starts += [
        n_layers - value for key, value in full.items() if ROLES.get(key) == "last_layers" and isinstance(value, int)
    ]
    kinds: dict[str, list[int]] = {}
    by_layer = {
        int(key): sorted((k, _beside(v, full.get(k))) for k, v in own.items())
        for key, own in (full.get(BY_LAYER) or {}).items()
    }
    for layer in range(n_layers):
        says = (
            [values[layer] for values in lists],
            [layer in layers for layers in named],
            [layer < start for start in starts],
            by_layer.get(layer),
            bool(sources) and sources[layer] == layer,
        )
        kinds.setdefault(repr(says), []).append(layer)
    kept = {layer for layers in list(kinds.values())[: MAX_LAYERS // of_a_kind] for layer in layers[:of_a_kind]}
    if sources:
        kept |= {sources[layer] for layer in kept}
    for layer in range(min(n_layers, MIN_LAYERS + MAX_LAYERS)):
        if len(kept) < MIN_LAYERS:
            kept.add(layer)
    return tuple(sorted(kept))
