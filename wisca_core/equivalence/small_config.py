"""A model's own config.json made small: few layers and small widths, the same structural switches.

The keys keep the spelling the person's config.json has, so that what reads the big model's config reads the small one
the same way. What each key counts is data (``sizes.toml``); the new values follow from the ratios the old ones stand
in. A config inside for another tower (``text_config``, ``vision_config`` ...) is made small by the same rules.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

from wisca_core.architecture.expressions import evaluate
from wisca_core.equivalence.model_config import DROPPED, clean, config_object, one_line, without_dropped
from wisca_core.equivalence.sizes import (
    BY_LAYER,
    MIN_LAYERS,
    PER_ROTARY_PAIR,
    ROLES,
    ROPE,
    TABLE,
    Sizes,
    first,
    has_sizes,
    is_by_layer,
    of_layer,
    sizes_of,
)
from wisca_core.errors import ConfigMismatch, UnknownArchitecture

VOCAB_SIZE, MAX_POSITIONS = TABLE.small["vocab"], TABLE.small["positions"]
ORIGINAL_POSITIONS = 16  # between the lengths tried: rope scalings that change there are met on both sides

# Older spellings that transformers folds into rope_parameters.
ROPE_SPELLINGS = ROPE + ("rope_theta", "partial_rotary_factor", "rotary_pct", "rotary_emb_base", "rope_local_base_freq")

ROTARY_SECTIONS = ("mrope_section", "xdrope_section")  # of the rotary pairs: they add up to all of them

# Values that name a precision or training, never a function.
FIXED: dict[str, Any] = {
    "reorder_and_upcast_attn": False,
    "slow_but_exact": False,
    "pretraining_tp": 1,
    "layerdrop": 0.0,
}
SWITCHES = ("square", "of_a_kind", "stages")  # in a row of the table: no keys of a config
# The part that reads and writes text, where a config holds several; the others feed it.
LANGUAGE = ("text_config", "decoder", "decoder_config", "language_config", "llm_config", "thinker_config", "vlm_config")
# Keys that name tokens: their values must lie in the small vocabulary and stay different.
TOKENS = ("_token_id", "_token_index", "_token_ids")


def shrink(config: Mapping[str, Any]) -> dict[str, Any]:
    """config.json (parsed) -> the same made small, in the same spelling. Shrinking twice changes nothing more.

    Kept: ratios of query heads to KV heads (MHA, MQA, GQA), partial rotary share, explicit head_dim beside hidden_size,
    every kind of layer that per-layer lists name, ties, biases, activation, every tower. ConfigMismatch where the
    numbers cannot be (0 heads, heads that do not divide), UnknownArchitecture where transformers has no class.
    """
    made = config_object(config)
    try:
        full = made.to_dict()
        out = _small(made, full, clean(config))
        _renumber_special_tokens(out, full)
    except (
        TypeError,
        ValueError,
        LookupError,
        AttributeError,
        ArithmeticError,
    ) as error:  # a value of a kind no config has
        raise ConfigMismatch(
            f'config.json of model_type "{config["model_type"]}" cannot be made small: '
            f"{type(error).__name__}: {one_line(error)}."
        ) from error
    return out


def _small(made: Any, full: Mapping[str, Any], cleaned: Mapping[str, Any], text_hidden: int = 0) -> dict[str, Any]:
    """The small config of one tower and of those inside it.

    ``made``: its config object, ``full``: that as a dictionary, ``cleaned``: what the person's file has of it,
    ``text_hidden``: the new width of the language part that it feeds.
    """
    inside = {key: getattr(made, key, None) for key, value in full.items() if isinstance(value, dict)}
    towers = {
        key: tower
        for key, tower in inside.items()
        if hasattr(tower, "attribute_map")
        and (has_sizes(full[key]) or "stages" in TABLE.rows.get(tower.model_type, ()))
    }
    sizes, small_towers = _own_sizes(made, full, cleaned, set(towers), text_hidden), {}
    for key in sorted(towers, key=lambda key: key not in LANGUAGE):
        spelled = cleaned.get(key)
        small = _small(
            towers[key],
            full[key],
            spelled if isinstance(spelled, dict) else {},
            text_hidden or (sizes.hidden if sizes else 0),
        )
        if towers[key].model_type and "model_type" not in small:
            small["model_type"] = towers[key].model_type  # by which the outer config finds its class
        small_towers[key] = small
        if sizes is None and (found := _language_sizes(towers[key], full[key], spelled or {})) is not None:
            sizes = replace(found, hidden=first(small, "hidden") or found.hidden)
    if sizes is None:
        names = ", ".join(name for name, role in ROLES.items() if role in ("hidden", "layers"))
        raise UnknownArchitecture(
            f'the config of "{full.get("model_type")}" has no width and number of layers ({names:.160} ...); it cannot '
            "be made small."
        )

    def small_value(key: str, value: Any) -> Any:
        if key in small_towers:
            return small_towers[key]
        small = _small_value(key, value, sizes)
        if isinstance(small, dict) and hasattr(inside.get(key), "attribute_map"):  # a part without layers of its own
            _apply_row(small, inside[key].model_type, full[key], type(inside[key]).attribute_map)
        return small

    out = {key: small_value(key, value) for key, value in cleaned.items()}
    if BY_LAYER in full:
        out[BY_LAYER] = _by_layer(full, sizes)
    aliases = type(made).attribute_map
    spelled = set(cleaned) | {aliases.get(key, key) for key in cleaned}
    if spelled.intersection(ROPE_SPELLINGS):
        spelled.update(ROPE_SPELLINGS)
    defaults = {
        k: without_dropped(v, type(made)) for k, v in full.items() if k not in DROPPED and not k.startswith("_")
    }
    for key, value in defaults.items():  # what the person's file leaves out, where it is large
        if key == BY_LAYER or (ROLES.get(key) == "head_dim" and key not in spelled and _is_left_open(type(made), key)):
            continue  # worked out above; worked out by the class from the small sizes as from the large ones
        small = small_value(key, value)
        if key not in spelled and small != value and "drop" not in key:
            out[key] = small
    _apply_row(out, made.model_type, defaults, aliases)
    return out


def _own_sizes(
    made: Any, full: Mapping[str, Any], cleaned: Mapping[str, Any], towers: set[str], text_hidden: int
) -> Sizes | None:
    """The sizes of this tower itself; None where it only holds others."""
    own = {key: value for key, value in full.items() if key not in towers}
    n_layers = first(own, "layers") or getattr(made, "num_hidden_layers", None)
    if TABLE.rows.get(made.model_type, {}).get("stages"):
        own, n_layers = {"hidden_size": 32}, MIN_LAYERS  # widths and heads by stage: the type's row names them all
    elif not n_layers or first(own, "hidden") is None:
        return None
    keys = [key for key in own if ROLES.get(key) == "head_dim" and isinstance(own[key], int)]
    own_head_dim = not keys or _is_own(type(made), keys[0], own[keys[0]])
    written = {type(made).attribute_map.get(key, key) for key in cleaned} | {
        key for key in keys if not _is_left_open(type(made), key)
    }
    spelled = any(ROLES.get(key) == "head_dim" for key in written)
    return sizes_of(own, n_layers, made.model_type, own_head_dim, spelled, text_hidden)


def _language_sizes(made: Any, full: Mapping[str, Any], cleaned: Mapping[str, Any]) -> Sizes | None:
    """The sizes of a tower, or of the language part inside it."""
    inner = next((key for key in LANGUAGE if isinstance(full.get(key), dict)), None)
    return _own_sizes(made, full, cleaned, {inner} if inner else set(), 0) or (
        _language_sizes(getattr(made, inner), full[inner], cleaned.get(inner) or {}) if inner else None
    )


def _is_left_open(cls: type, key: str) -> bool:
    """Whether the class has no value for this key until it works one out."""
    field = getattr(cls, "__dataclass_fields__", {}).get(key)
    return field is None or field.default is None


@lru_cache(maxsize=512)
def _is_own(cls: type, key: str, value: int) -> bool:
    """Whether this value can be chosen; some types work it out anew from the others, or refuse all but one."""
    try:
        return cls(**{key: value + 2}).to_dict().get(key) == value + 2
    except Exception:  # whatever the class checks
        return False


def _apply_row(out: dict[str, Any], model_type: str, full: Mapping[str, Any], aliases: Mapping[str, str]) -> None:
    """What the type's row of sizes.toml says, in place."""
    canonical = {aliases.get(key, key): key for key in out}
    names = {**full, **{name: out[key] for name, key in canonical.items()}, "old": full}
    for path, value in TABLE.rows.get(model_type, {}).items():
        if path in SWITCHES:
            continue
        *above, key = path.split(".")
        place = out
        for name in above:
            place = place.get(name)
            if place is None:
                break
        if place is None or (not above and names.get(key) is None):
            continue
        old = full.get(key) if not above else None
        new = _row_value(value, names)
        if isinstance(new, list) and isinstance(old, list):
            new = new[: len(old)]
        if above:
            place[key] = new
        elif names[key] != new:
            out[canonical.get(key, key)] = names[key] = new


def _by_layer(full: Mapping[str, Any], sizes: Sizes) -> dict[str, dict[str, Any]]:
    """What single layers have instead of the common values; sizes that differ from the common ones still do."""

    def small(key: str, value: Any) -> Any:
        new, common = _small_value(key, value, sizes), _small_value(key, full.get(key), sizes)
        return new + 4 if _is_int(new) and new == common and value != full.get(key) else new

    own = {str(new): of_layer(full[BY_LAYER], old) for new, old in enumerate(sizes.layers)}
    return {new: {key: small(key, value) for key, value in one.items()} for new, one in own.items() if one is not None}


def _row_value(value: Any, names: Mapping[str, Any]) -> Any:
    if isinstance(value, list):
        return [_row_value(v, names) for v in value]
    return evaluate(value, names) if isinstance(value, str) else value


def _small_value(key: str, value: Any, sizes: Sizes) -> Any:
    """The small value of one key."""
    role = ROLES.get(key)
    if value is None:
        return None
    if key in FIXED:
        return FIXED[key]
    if key == "attention_types":  # gpt_neo: [[[kinds...], repeats], ...]
        kinds = [kind for names, repeats in value for kind in names * repeats]
        return [[[kinds[layer] for layer in sizes.layers], 1]]
    if role == "layer_indices" and isinstance(value, list):
        return [new for new, old in enumerate(sizes.layers) if old in value]
    if role == "layer_sources" and isinstance(value, list):
        return [sizes.layers.index(value[layer]) for layer in sizes.layers]
    if role in ("first_layers", "last_layers") and isinstance(value, int):
        start = value if role == "first_layers" else sizes.n_layers - value
        before = sum(layer < start for layer in sizes.layers)
        return before if role == "first_layers" else len(sizes.layers) - before
    if is_by_layer(key, value, sizes.n_layers):
        if role in ("heads", "heads_by_layer"):
            return [heads for heads, _ in sizes.heads_by_layer]
        if role == "kv_heads":
            return [kv_heads for _, kv_heads in sizes.heads_by_layer]
        return [_small_value(key, value[layer], sizes) for layer in sizes.layers]
    if key == "vocabulary_map" and isinstance(value, dict):
        return {
            name: i for i, name in enumerate(sorted(value, key=lambda name: (len(name), name))[: VOCAB_SIZE // 4], 3)
        }
    if isinstance(value, dict):
        return {inner: _small_value(str(inner), v, sizes) for inner, v in value.items()}
    if key in ROTARY_SECTIONS and isinstance(value, list):
        pairs, n = (sizes.rotary_width + 1) // 2, len(value)
        return [pairs // n + (i < pairs % n) for i in range(n)]
    if key in PER_ROTARY_PAIR and isinstance(value, list) and value:
        return [value[i % len(value)] for i in range(sizes.rotary_width // 2)]
    if role in ("image", "patch", "widths") and isinstance(value, list):
        return [_small_value(key, v, sizes) for v in value]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return value
    if "drop" in key:
        return type(value)(0)  # some fields are typed int
    return _small_number(role, value, sizes) if value > 0 else value  # 0 and -1 mean none


def _small_number(role: str | None, value: Any, sizes: Sizes) -> Any:
    match role:
        case "layers":
            return len(sizes.layers) if value == sizes.n_layers else min(value, 2)
        case "hidden":
            return sizes.hidden if value == sizes.old_hidden else sizes.hidden + 4
        case "heads":
            return sizes.small_heads(value)
        case "kv_heads":
            return sizes.small_kv_heads(value)
        case "head_dim":
            ratio = (value > sizes.old_head_dim) - (value < sizes.old_head_dim)
            return sizes.head_dim * 2 if ratio > 0 else sizes.head_dim // 2 if ratio < 0 else sizes.head_dim
        case "rotary_width":
            return sizes.rotary_width
        case "score_width":
            return sizes.head_dim
        case "score_factor":
            return sizes.head_dim**-0.5
        case "beside_hidden":
            return sizes.hidden + 4 * ((value > sizes.old_hidden) - (value < sizes.old_hidden))
        case "text_hidden":
            return sizes.text_hidden or sizes.hidden + 6
        case "intermediate":
            return sizes.hidden + 12
        case "expert_width":
            return sizes.hidden + 20
        case "original_positions":
            return ORIGINAL_POSITIONS if value < sizes.old_positions else MAX_POSITIONS
        case "relative_positions" | "window":
            return value if value < 1 else TABLE.small[role]
        case "clip":
            return 0.5  # low enough to be reached
        case _ if role in TABLE.small:
            return TABLE.small[role]
        case _ if role in TABLE.at_most:
            return min(value, TABLE.at_most[role])
    return value


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _renumber_special_tokens(out: dict[str, Any], full: Mapping[str, Any]) -> None:
    """Ids beyond the small vocabulary become the smallest free ones, in place, the same in every tower.

    The smallest, because some position tables start behind the pad id.
    """

    def ids(value: Any) -> Iterable[int]:
        return [v for v in (value if isinstance(value, list) else [value]) if _is_int(v)]

    found = list(_token_ids(out, full))
    taken = {i for _, _, value in found for i in ids(value) if 0 <= i < VOCAB_SIZE}
    new: dict[int, int] = {}
    for _, _, value in found:
        for i in ids(value):
            if not 0 <= i < VOCAB_SIZE and i not in new:
                new[i] = next(free for free in range(3, VOCAB_SIZE) if free not in taken)
                taken.add(new[i])
    for place, key, value in found:
        if any(i in new for i in ids(value)):
            place[key] = [new.get(i, i) for i in value] if isinstance(value, list) else new[value]


def _token_ids(out: dict[str, Any], full: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], str, Any]]:
    """(the dictionary to write to, key, value) of every key that names tokens, outermost first."""
    for key in dict.fromkeys([*full, *out]):
        if str(key).endswith(TOKENS):
            yield out, key, out.get(key, full.get(key))
    for key, value in out.items():
        if isinstance(value, dict) and key not in ROPE:
            inner = full.get(key)
            yield from _token_ids(value, inner if isinstance(inner, Mapping) else {})
