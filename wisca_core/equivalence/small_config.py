"""A model's own config.json made small: few layers and small widths, the same structural switches.

The keys keep the spelling the person's config.json has, so that what reads the big model's config reads the small one
the same way. What each key counts is data (:data:`ROLES`); the new values follow from the ratios the old ones stand in.

Not covered: configs with a config inside for another tower (``text_config``), encoder-decoders.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from wisca_core.errors import ConfigMismatch, UnknownArchitecture

VOCAB_SIZE = 61
MAX_POSITIONS = 70
ORIGINAL_POSITIONS = 16  # between the lengths tried: rope scalings that change there are met on both sides
WINDOW = 6  # even (some models halve it) and below the shorter lengths tried: pairs inside and beyond it occur
MIN_LAYERS = 2
MAX_LAYERS = 8

# What a key counts. Keys of every family side by side: no two families use one name for two things.
ROLES: dict[str, str] = {
    name: role
    for role, names in {
        "layers": "num_hidden_layers n_layer n_layers num_layers",
        "hidden": "hidden_size n_embd d_model dim",
        "heads": "num_attention_heads n_head n_heads num_heads",
        "kv_heads": "num_key_value_heads num_kv_heads n_head_kv kv_n_heads",
        "heads_by_layer": "num_attention_heads_per_layer",
        "head_dim": "head_dim",
        # scales of the scores that stand for head_dim ** -0.5 at the big width
        "score_width": "query_pre_attn_scalar",
        "score_factor": "attention_multiplier",
        "rotary_width": "rotary_dim",
        "beside_hidden": "embedding_size word_embed_proj_dim pooler_hidden_size",
        "intermediate": "intermediate_size n_inner ffn_dim ffn_hidden_size d_ff hidden_dim d_inner "
        "moe_intermediate_size shared_expert_intermediate_size",
        "vocab": "vocab_size",
        "positions": "max_position_embeddings n_positions n_ctx max_seq_len max_seq_length",
        "original_positions": "original_max_position_embeddings",
        "relative_positions": "max_relative_positions position_buckets",
        "window": "sliding_window window_size local_attention",
        "types": "type_vocab_size",
        "clip": "clip_qkv",
        "layer_indices": "mlp_only_layers",
        "interval": "decoder_sparse_step",
        "experts": "num_experts num_local_experts n_routed_experts",
        "active_experts": "num_experts_per_tok",
        "expert_groups": "n_group",
        "one": "topk_group first_k_dense_replace",
        "low_rank": "q_lora_rank kv_lora_rank",
        "nope_width": "qk_nope_head_dim",
        "rope_width": "qk_rope_head_dim",
        "value_width": "v_head_dim",
    }.items()
    for name in names.split()
}

# New values that follow from nothing else; all sizes differ, so that no axis can be taken for another.
SMALL = {
    "vocab": VOCAB_SIZE,
    "positions": MAX_POSITIONS,
    "relative_positions": MAX_POSITIONS,
    "window": WINDOW,
    "low_rank": 12,
    "nope_width": 6,
    "rope_width": 8,
    "value_width": 10,
}
AT_MOST = {"types": 4, "interval": 2, "experts": 4, "active_experts": 2, "expert_groups": 2, "one": 1}

# Roles of values inside a rope dictionary that have one entry per rotary pair.
PER_ROTARY_PAIR = ("short_factor", "long_factor")
ROPE = ("rope_parameters", "rope_scaling")
# Older spellings that transformers folds into rope_parameters.
ROPE_SPELLINGS = ROPE + ("rope_theta", "partial_rotary_factor", "rotary_pct", "rotary_emb_base", "rope_local_base_freq")

# Values that name a precision or training, never a function.
FIXED: dict[str, Any] = {
    "reorder_and_upcast_attn": False,
    "slow_but_exact": False,
    "pretraining_tp": 1,
    "layerdrop": 0.0,
}
# Names that would run code, pick a kernel, change what loading does or size a head by its labels.
DROPPED = frozenset(
    """auto_map quantization_config compression_config attn_implementation experts_implementation dtype torch_dtype
    id2label label2id num_labels task_specific_params transformers_version output_attentions output_hidden_states
    return_dict use_return_dict torchscript name_or_path suppress_tokens begin_suppress_tokens bad_words_ids
    tokenizer_class""".split()
)
TOWERS = ("text_config", "vision_config", "audio_config", "encoder", "decoder")

LARGEST = {"layers": 100_000}  # of any count a person's config may claim; the lists by layer are built at that length
LARGEST_COUNT = 1 << 31


@dataclass(frozen=True)
class _Sizes:
    """What the values of a shrunk config follow from: a few old sizes, and the new ones."""

    old_hidden: int
    old_positions: int
    n_layers: int  # old
    layers: tuple[int, ...]  # which old layers are kept
    heads: int
    kv_heads: int
    heads_by_layer: tuple[tuple[int, int], ...]  # (query heads, KV heads) of the kept layers
    hidden: int
    head_dim: int
    rotary_width: int


def clean(config: Mapping[str, Any]) -> dict[str, Any]:
    """A copy without anything that would run code, pick a kernel or quantise, and with only values a config can hold.

    UnknownArchitecture where the model type is unknown to transformers or the config describes several towers.
    """
    cls = config_class(config)
    for name in TOWERS:
        if isinstance(config.get(name), Mapping):
            raise UnknownArchitecture(
                f'config.json of model_type "{config["model_type"]}" has a {name} inside: '
                "models of several towers cannot be made as a miniature, so no rule can be proved for them."
            )
    own, generation = set(cls().to_dict()) - {"_name_or_path"}, _generation_options()
    return {
        key: _without_dropped(value)
        for key, value in config.items()
        if key not in DROPPED
        and (
            key in own or not key.startswith("_")
        )  # OPT's own _remove_final_layer_norm stays, _attn_implementation goes
        and (key in own or key not in generation)  # older configs hold max_length, temperature ...; saving refuses them
        and not callable(getattr(cls, key, None))
    }


def _without_dropped(value: Any) -> Any:
    if isinstance(value, dict):  # mpt's attn_config is a config of its own
        return {k: _without_dropped(v) for k, v in value.items() if k not in DROPPED and not str(k).startswith("_")}
    return value


def _generation_options() -> set[str]:
    from transformers import GenerationConfig

    return {name for name in GenerationConfig().to_dict() if name != "use_cache" and not name.endswith("_token_id")}


def config_class(config: Mapping[str, Any]):
    """The class transformers has for this ``model_type``; UnknownArchitecture where it has none."""
    from transformers import CONFIG_MAPPING

    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        found = f'model_type "{model_type}"' if model_type else "no model_type"
        code = " and names code of its own (auto_map), which is never run" if config.get("auto_map") else ""
        raise UnknownArchitecture(
            f"config.json has {found}, which the installed transformers does not know{code}. "
            "Without a class no rule can be proved; the tensors can still be looked at."
        )
    return CONFIG_MAPPING[model_type]


def config_object(config: Mapping[str, Any]):
    """The transformers config of a config.json, cleaned, eager attention; ConfigMismatch where transformers refuses."""
    _check_counts(config)
    cleaned = clean(config)
    cls = config_class(config)
    try:
        made = cls(**{key: value for key, value in cleaned.items() if key != "model_type"})
    except Exception as error:  # any key may hold anything; the class raises whatever it meets
        raise ConfigMismatch(
            f'config.json is not a valid "{config["model_type"]}" config: {_one_line(error)}'
        ) from error
    made._attn_implementation = "eager"
    made._experts_implementation = "eager"  # the grouped kernels do not take float64
    return made


def shrink(config: Mapping[str, Any]) -> dict[str, Any]:
    """config.json (parsed) -> the same made small, in the same spelling. Shrinking twice changes nothing more.

    Kept: ratios of query heads to KV heads (MHA, MQA, GQA), partial rotary share, explicit head_dim beside hidden_size,
    every kind of layer that per-layer lists name, ties, biases, activation. ConfigMismatch where the numbers cannot be
    (0 heads, heads that do not divide), UnknownArchitecture where transformers has no class.
    """
    made = config_object(config)
    full = made.to_dict()
    cleaned = clean(config)
    try:
        sizes = _sizes(full)
        out = {key: _shrunk(key, value, sizes) for key, value in cleaned.items()}
        spelled = set(cleaned) | {type(made).attribute_map.get(key, key) for key in cleaned}
        if spelled.intersection(ROPE_SPELLINGS):
            spelled.update(ROPE_SPELLINGS)
        for key, value in clean(full).items():  # defaults the person's file leaves out, where they are large
            small = _shrunk(key, value, sizes)
            if key not in spelled and small != value and "drop" not in key:
                out[key] = small
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
            f"{type(error).__name__}: {_one_line(error)}."
        ) from error
    return out


def _check_counts(config: Mapping[str, Any]) -> None:
    for key, value in config.items():
        role = ROLES.get(key)
        if role is None or value is None or role in ("clip", "score_factor", "score_width", "layer_indices"):
            continue
        for count in value if isinstance(value, list) else [value]:
            if role in (
                "window",
                "relative_positions",
                "types",
                "rotary_width",
                "experts",
                "interval",
                "one",
            ) and count in (0, -1):
                continue  # "off" in some families
            limit = LARGEST.get(role, LARGEST_COUNT)
            if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= limit:
                raise ConfigMismatch(
                    f"config.json has {key} = {count!r:.40}; a whole number from 1 to {limit} is expected."
                )


def _first(full: Mapping[str, Any], role: str) -> Any:
    """The value of the first key with that role, in nested dictionaries too (mpt's attn_config); None if absent."""
    for key, value in full.items():
        if ROLES.get(key) == role and value is not None:
            return value
    for key, value in full.items():
        if isinstance(value, dict) and key not in ROPE and (found := _first(value, role)) is not None:
            return found
    return None


def _need(full: Mapping[str, Any], role: str) -> Any:
    value = _first(full, role)
    if value is None:
        names = ", ".join(name for name, r in ROLES.items() if r == role)
        raise UnknownArchitecture(
            f'the config of "{full.get("model_type")}" has none of {names}; it cannot be made small.'
        )
    return value


def _small_heads(pairs: Iterable[tuple[int, int]]) -> dict[tuple[int, int], tuple[int, int]]:
    """Old (query heads, KV heads) of every layer -> new ones: equal stays equal, one stays one, unlike stays unlike."""
    pairs = set(pairs)
    for heads, kv_heads in pairs:
        if heads % kv_heads:
            raise ConfigMismatch(
                f"config.json has {heads} query heads on {kv_heads} key/value heads, which do not divide."
            )
    if len(pairs) > 1:
        ratio, kv = _ranked(heads // kv for heads, kv in pairs), _ranked(kv for _, kv in pairs)
        return {(q, k): (ratio[q // k] * kv[k], kv[k]) for q, k in pairs}
    ((heads, kv_heads),) = pairs
    if heads == kv_heads:
        return {(heads, kv_heads): (4, 4) if heads > 1 else (1, 1)}
    # 3 heads a group on 2 groups: the two cannot be taken for each other
    return {(heads, kv_heads): (4, 1) if kv_heads == 1 else (6, 2)}


def _ranked(values: Iterable[int]) -> dict[int, int]:
    """1 -> 1, the others -> 2, 3, ... in order."""
    ordered = sorted(set(values))
    return {value: rank + (2 if ordered[0] > 1 else 1) for rank, value in enumerate(ordered)}


def _sizes(full: Mapping[str, Any]) -> _Sizes:
    hidden, heads, n_layers = _need(full, "hidden"), _need(full, "heads"), _need(full, "layers")
    layers = _kept_layers(full, n_layers)
    kv_heads, by_layer = _first(full, "kv_heads") or heads, _first(full, "heads_by_layer") or heads
    most, most_kv = (max(value) if isinstance(value, list) else value for value in (heads, kv_heads))
    pairs = [(_at(by_layer, layer), _at(kv_heads, layer)) for layer in layers]
    small = _small_heads([*pairs, (most, most_kv)])
    new_heads = small[most, most_kv][0]

    explicit = _first(full, "head_dim")
    if explicit is None and hidden % most:
        raise ConfigMismatch(f"config.json has hidden_size {hidden}, which {most} heads do not divide.")
    head_dim = explicit or hidden // most
    width = _rotary_width(full, head_dim)
    new_head_dim = 8 if width in (0, head_dim) else _partial_head_dim(width, head_dim)
    new_width = (
        0 if width == 0 else new_head_dim if width == head_dim else int(new_head_dim * width_share(full, head_dim))
    )
    beside = (head_dim * most < hidden) - (head_dim * most > hidden)  # where the two differ, keep which is larger
    return _Sizes(
        old_hidden=hidden,
        old_positions=_first(full, "positions") or 0,
        n_layers=n_layers,
        layers=layers,
        heads=new_heads,
        kv_heads=small[most, most_kv][1],
        heads_by_layer=tuple(small[pair] for pair in pairs),
        hidden=new_heads * (new_head_dim + 2 * beside),
        head_dim=new_head_dim,
        rotary_width=new_width,
    )


def _at(value: Any, layer: int) -> Any:
    return value[layer] if isinstance(value, list) else value


def width_share(full: Mapping[str, Any], head_dim: int) -> float:
    """Rotary width over head_dim as the config states it: a share, or a number of channels."""
    channels = _first(full, "rotary_width")
    if channels:
        return channels / head_dim
    rope = full.get("rope_parameters") or {}
    inner = [rope, *(value for value in rope.values() if isinstance(value, dict))]
    shares = [r["partial_rotary_factor"] for r in inner if r.get("partial_rotary_factor") is not None]
    return float(min(shares, default=1.0))


def _rotary_width(full: Mapping[str, Any], head_dim: int) -> int:
    if not full.get("rope_parameters") and not _first(full, "rotary_width"):
        return 0
    share = width_share(full, head_dim)
    if not 0.0 < share <= 1.0:
        raise ConfigMismatch(f"config.json rotates {share:g} of each head; a share above 0 and at most 1 is expected.")
    return int(head_dim * share)


def _partial_head_dim(width: int, head_dim: int) -> int:
    """Smallest even head_dim of which the same share leaves two or more rotary pairs and free channels, parity kept."""
    share = width / head_dim
    for small in range(8, 257, 2):
        if 4 <= int(small * share) < small and int(small * share) % 2 == width % 2:
            return small
    raise ConfigMismatch(
        f"config.json rotates {width} of {head_dim} channels of a head, too few to keep in a miniature."
    )


def _is_by_layer(key: str, value: Any, n_layers: int) -> bool:
    return (
        isinstance(value, list)
        and len(value) == n_layers
        and key not in ROPE + PER_ROTARY_PAIR
        and ROLES.get(key) != "layer_indices"
        and not key.endswith(("_token_id", "architectures"))
    )


def _kept_layers(full: Mapping[str, Any], n_layers: int) -> tuple[int, ...]:
    """The first layer of every kind (what the per-layer lists say of it); then the first ones to fill up."""
    lists = [value for key, value in full.items() if _is_by_layer(key, value, n_layers)]
    named = [set(value) for key, value in full.items() if ROLES.get(key) == "layer_indices" and isinstance(value, list)]
    kinds: dict[str, int] = {}
    for layer in range(n_layers):
        kinds.setdefault(repr(([values[layer] for values in lists], [layer in layers for layers in named])), layer)
    kept = set(list(kinds.values())[:MAX_LAYERS])
    for layer in range(min(n_layers, MIN_LAYERS + MAX_LAYERS)):
        if len(kept) < MIN_LAYERS:
            kept.add(layer)
    return tuple(sorted(kept))


def _shrunk(key: str, value: Any, sizes: _Sizes) -> Any:
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
    if _is_by_layer(key, value, sizes.n_layers):
        if role in ("heads", "heads_by_layer"):
            return [heads for heads, _ in sizes.heads_by_layer]
        if role == "kv_heads":
            return [kv_heads for _, kv_heads in sizes.heads_by_layer]
        return [_shrunk(key, value[layer], sizes) for layer in sizes.layers]
    if isinstance(value, dict):
        return {inner: _shrunk(inner, v, sizes) for inner, v in value.items()}
    if key in PER_ROTARY_PAIR and isinstance(value, list) and value:
        return [value[i % len(value)] for i in range(sizes.rotary_width // 2)]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return value
    if "drop" in key:
        return type(value)(0)  # some fields are typed int
    return _small_number(role, value, sizes)


def _small_number(role: str | None, value: Any, sizes: _Sizes) -> Any:
    match role:
        case "layers":
            return len(sizes.layers)
        case "hidden" | "heads" | "kv_heads" | "head_dim" | "rotary_width":
            return getattr(sizes, role)
        case "score_width":
            return sizes.head_dim
        case "score_factor":
            return sizes.head_dim**-0.5
        case "beside_hidden":
            return sizes.hidden + 4 * ((value > sizes.old_hidden) - (value < sizes.old_hidden))
        case "intermediate":
            return sizes.hidden + 12
        case "original_positions":
            return ORIGINAL_POSITIONS if value < sizes.old_positions else MAX_POSITIONS
        case "relative_positions" | "window":
            return value if value < 1 else SMALL[role]
        case "clip":
            return 0.5  # low enough to be reached
        case _ if role in SMALL:
            return SMALL[role]
        case _ if role in AT_MOST:
            return min(value, AT_MOST[role])
    return value


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _renumber_special_tokens(out: dict[str, Any], full: Mapping[str, Any]) -> None:
    """Ids beyond the small vocabulary become the smallest free ones, in place.

    The smallest, because some position tables start behind the pad id.
    """

    def ids(value: Any) -> Iterable[int]:
        return [v for v in (value if isinstance(value, list) else [value]) if _is_int(v)]

    names = [key for key in {**full, **out} if key.endswith("_token_id")]
    values = {key: out.get(key, full.get(key)) for key in names}
    taken = {i for value in values.values() for i in ids(value) if 0 <= i < VOCAB_SIZE}
    new: dict[int, int] = {}
    for value in values.values():
        for i in ids(value):
            if not 0 <= i < VOCAB_SIZE and i not in new:
                new[i] = next(free for free in range(3, VOCAB_SIZE) if free not in taken)
                taken.add(new[i])
    for key, value in values.items():
        if any(i in new for i in ids(value)):
            out[key] = [new.get(i, i) for i in value] if isinstance(value, list) else new[value]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:400]
