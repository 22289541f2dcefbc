"""A person's config.json as a config of transformers: cleaned of what would run code, its counts checked, never
trusted.
"""

from collections.abc import Mapping
from typing import Any

from wisca_core.equivalence.sizes import ROLES
from wisca_core.errors import ConfigMismatch, UnknownArchitecture

# Names that would run code, pick a kernel, change what loading does or say how to generate.
UNSAFE = frozenset(
    """auto_map quantization_config compression_config attn_implementation experts_implementation dtype torch_dtype
    task_specific_params transformers_version output_attentions output_hidden_states return_dict use_return_dict
    torchscript name_or_path suppress_tokens begin_suppress_tokens bad_words_ids tokenizer_class""".split()
)
# Names that size a head or a neck by what it was trained for; a miniature has those of its class instead.
OF_A_HEAD = frozenset("id2label label2id num_labels out_features out_indices stage_names".split())
DROPPED = UNSAFE | OF_A_HEAD
LARGEST = {"layers": 100_000}  # of any count a person's config may claim; the lists by layer are built at that length
LARGEST_COUNT = 1 << 31
COUNTED = ("layers", "hidden", "heads", "kv_heads", "head_dim", "intermediate", "vocab", "positions", "heads_by_layer")


def clean(config: Mapping[str, Any], dropped: frozenset[str] = DROPPED) -> dict[str, Any]:
    """A copy without anything that would run code, pick a kernel or quantise (``dropped``), and with only values a
    config can hold.

    UnknownArchitecture where the model type is unknown to transformers.
    """
    cls = config_class(config)
    own, generation = set(_defaults(cls)) - {"_name_or_path"}, _generation_options()
    return {
        key: without_dropped(value, cls, dropped)
        for key, value in config.items()
        if key not in dropped
        and (
            key in own or not key.startswith("_")
        )  # OPT's own _remove_final_layer_norm stays, _attn_implementation goes
        and (key in own or key not in generation)  # older configs hold max_length, temperature ...; saving refuses them
        and not callable(getattr(cls, key, None))
    }


def _defaults(cls) -> dict[str, Any]:
    try:
        return cls().to_dict()
    except Exception:  # some types refuse their own defaults: the fields they declare must do
        return dict.fromkeys(getattr(cls, "__dataclass_fields__", ()))


def without_dropped(value: Any, cls: type, dropped: frozenset[str] = DROPPED) -> Any:
    """A value of a config without the keys that ``clean`` leaves out."""
    if isinstance(value, dict):  # mpt's attn_config is a config of its own, and so is every tower
        return {
            k: without_dropped(v, cls, dropped)
            for k, v in value.items()
            if k not in dropped and not str(k).startswith("_") and not callable(getattr(cls, str(k), None))
        }
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
    cleaned = clean(config, UNSAFE)
    cls = config_class(config)
    try:
        made = cls(**{key: value for key, value in cleaned.items() if key != "model_type"})
    except Exception as error:  # any key may hold anything; the class raises whatever it meets
        raise ConfigMismatch(
            f'config.json is not a valid "{config["model_type"]}" config: {one_line(error)}'
        ) from error
    made._attn_implementation = "eager"
    made._experts_implementation = "eager"  # the grouped kernels do not take float64
    return made


def _check_counts(config: Mapping[str, Any]) -> None:
    for key, value in config.items():
        role = ROLES.get(key)
        if role not in COUNTED or value is None:
            continue
        for count in value if isinstance(value, list) else [value]:
            if count == 0 and not isinstance(count, bool) and role in ("intermediate", "head_dim"):
                continue  # "none" in some families
            count = int(count) if isinstance(count, float) and count.is_integer() else count  # 1200.0 in some
            limit = LARGEST.get(role, LARGEST_COUNT)
            if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= limit:
                raise ConfigMismatch(
                    f"config.json has {key} = {count!r:.40}; a whole number from 1 to {limit} is expected."
                )


def one_line(error: Exception) -> str:
    """What it says, on one line and cut."""
    return " ".join(str(error).split())[:400]
