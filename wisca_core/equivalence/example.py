"""A typical config of each model type: the defaults of its class, and what those lack to be a model
(``sizes.toml``).
"""

from typing import Any

from wisca_core.equivalence.sizes import TABLE
from wisca_core.errors import ConfigMismatch, UnknownArchitecture


def example_config(model_type: str, **changes: Any) -> dict[str, Any]:
    """config.json as a plain dict, with the class of the causal language model where transformers has one for the whole
    model.

    >>> example_config("llama", num_key_value_heads=8)["architectures"]
    ['LlamaForCausalLM']

    Raises UnknownArchitecture for a model type that the installed transformers does not know, ConfigMismatch where it
    refuses its own defaults.
    """
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if model_type not in CONFIG_MAPPING:
        raise UnknownArchitecture(f'the installed transformers has no model type "{model_type}".')
    given = TABLE.examples.get(model_type, {}) | changes
    try:
        config = CONFIG_MAPPING[model_type](**given).to_dict() | given
    except Exception as error:  # whatever the class checks
        raise ConfigMismatch(
            f'transformers refuses its own defaults of "{model_type}": {" ".join(str(error).split())[:300]}'
        ) from error
    named = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type)
    # of an encoder-decoder that class is the decoder alone, without what its cross attention reads
    if named and not config.get("architectures") and not config.get("is_encoder_decoder"):
        config["architectures"] = [named if isinstance(named, str) else named[0]]
    return config | {"model_type": model_type}
