"""A miniature: the model's own architecture, small, with every parameter random, saved as a checkpoint.

A rule is proved on it before the real weights are touched. Fresh models will not do: their zero biases and unit gains
hide the worst mistakes.

Not covered: custom code.
"""

import json
import logging as python_logging
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from wisca_core.checkpoint import parse_config
from wisca_core.equivalence.model_config import config_class, config_object
from wisca_core.errors import ConfigMismatch, UnknownArchitecture

MAX_PARAMETERS = (
    5_000_000  # a shrunk config has some 10,000 to 200,000; more means a size this project did not know to shrink
)

GAIN_SPREAD = 0.3  # of norm gains around their stored start (1, or 0 where gain - 1 is stored), and of biases around 0
WEIGHT_GAIN = 1.2  # spread times sqrt(fan in): scores of order 1, attention neither uniform nor saturated


def model_class(config: Mapping[str, Any]):
    """The transformers class of a config.json (parsed).

    The one it names where transformers defines it for this model type, else the masked, causal or sequence-to-sequence
    language model of the type, else the model of several towers or the bare model.

    UnknownArchitecture for an unknown model type, code of the person's own.
    """
    import transformers

    cls = config_class(config)
    named = config.get("architectures")
    name = named[0] if isinstance(named, list) and named and isinstance(named[0], str) else None
    found = getattr(transformers, name, None) if name and name.isidentifier() else None
    if (
        isinstance(found, type)
        and issubclass(found, transformers.PreTrainedModel)
        and isinstance(found.config_class, type)
        and issubclass(cls, found.config_class)
    ):
        return found
    if name and config.get("auto_map"):
        raise UnknownArchitecture(
            f'config.json names "{name}" with code of its own (auto_map), which is never run, and transformers has no '
            f'class of that name for model_type "{config["model_type"]}". The tensors can still be looked at.'
        )
    listed = [mapping[cls] for mapping in _mappings(config, cls) if cls in mapping]
    listed = [found[0] if isinstance(found, tuple) else found for found in listed]
    # a config of several towers is listed with the class of its language part too, which does not take it
    for found in listed:
        if isinstance(found.config_class, type) and issubclass(cls, found.config_class):
            return found
    if listed:
        return listed[0]
    raise UnknownArchitecture(f'transformers has no model class for model_type "{config["model_type"]}".')


def _mappings(config: Mapping[str, Any], cls: type) -> list[Mapping]:
    """Where to look for the class of a type, the first hit counts."""
    from transformers.models.auto import modeling_auto as auto

    both_halves = config.get("is_encoder_decoder", getattr(cls, "is_encoder_decoder", False))
    return [
        *((auto.MODEL_FOR_MASKED_LM_MAPPING,) if is_masked(config) else ()),
        *(
            (auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING, auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING)
            if both_halves
            else ()
        ),
        auto.MODEL_FOR_CAUSAL_LM_MAPPING,
        auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        auto.MODEL_FOR_MULTIMODAL_LM_MAPPING,
        auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING,
        auto.MODEL_FOR_TEXT_TO_WAVEFORM_MAPPING,
        auto.MODEL_MAPPING,
    ]


def is_masked(config: Mapping[str, Any]) -> bool:
    """Whether this is an encoder: its type has a masked language model and the config does not make it a decoder."""
    from transformers.models.auto import modeling_auto as auto

    return config_class(config) in auto.MODEL_FOR_MASKED_LM_MAPPING and not config.get("is_decoder")


def build_miniature(config: Mapping[str, Any], folder: Path, seed: int, as_in_memory: bool = False) -> None:
    """Build the model of a *small* config.json in float64, make every parameter random and save it to ``folder``.

    ``config``: what :func:`small_config.shrink` returned; written to config.json as it stands. The weights are
    safetensors F64 under their on-disk names, or ``as_in_memory``, where some classes have other tensors. The same seed
    gives the same bytes. ConfigMismatch where the model cannot be built, UnknownArchitecture where it is not small.
    """
    cls = model_class(config)
    with quiet(), torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        try:
            with torch.device("meta"):
                size = sum(
                    p.numel() for p in cls._from_config(config_object(config), attn_implementation="eager").parameters()
                )
        except Exception as error:
            raise _cannot_build(config, error) from error
        if size > MAX_PARAMETERS:
            raise UnknownArchitecture(
                f'The miniature of "{config["model_type"]}" would have {size:,} parameters: its config has a size '
                f"that is not known here and stayed large "
                f"(at most {MAX_PARAMETERS:,} are built). No rule can be proved for it."
            )
        try:
            model = (
                cls._from_config(config_object(config), attn_implementation="eager", dtype=torch.float64)
                .double()
                .eval()
            )
            randomise_(model, seed)
            with _plain_module():
                model.save_pretrained(folder, **({"save_original_format": False} if as_in_memory else {}))
        except Exception as error:
            raise _cannot_build(config, error) from error
    written = {**config, "architectures": [cls.__name__], "dtype": "float64"}
    beside = Path(folder) / "config.json.part"
    beside.write_text(json.dumps(written, indent=2) + "\n")
    os.replace(beside, Path(folder) / "config.json")  # in the person's spelling, not transformers'


def randomise_(model: torch.nn.Module, seed: int) -> None:
    """Random values in every parameter and learned buffer of a freshly built model, in place, float64.

    What starts constant (gains, biases) keeps its start and takes on ``0.3 n``; matrices are normal with spread
    ``1.2 / sqrt(fan in)``; embeddings are standard normal.
    """
    generator = torch.Generator().manual_seed(seed)
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    convolutions = {
        id(m.weight)
        for m in model.modules()
        if isinstance(m, torch.nn.modules.conv._ConvNd) and isinstance(getattr(m, "weight", None), torch.nn.Parameter)
    }
    conv1d = {id(m.weight) for m in model.modules() if type(m).__name__ == "Conv1D"}  # stores [in, out]

    def normal(like: torch.Tensor) -> torch.Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like.device)

    for parameter in model.parameters():
        if parameter.ndim < 2:
            constant = bool((parameter == parameter.reshape(-1)[0]).all())
            noise = GAIN_SPREAD * normal(parameter)
            parameter.copy_(parameter + noise if constant else parameter * (1 + noise))
        elif id(parameter) in embeddings:
            parameter.copy_(normal(parameter))
        else:
            fan_in = parameter.shape[0] if id(parameter) in conv1d else parameter.shape[-1]
            fan_in = parameter[0].numel() if id(parameter) in convolutions else fan_in
            parameter.copy_(WEIGHT_GAIN * fan_in**-0.5 * normal(parameter))
    saved = model.state_dict()
    for name, buffer in model.named_buffers():
        learned = name in saved and buffer.is_floating_point() and buffer.numel() > 1
        if learned and bool((buffer == buffer.reshape(-1)[0]).all()):  # a computed one (sine tables) is not constant
            buffer.add_((GAIN_SPREAD * normal(buffer)).clamp(-0.8, 0.8))  # variances stay positive


def load(folder: Path, *, dtype: torch.dtype = torch.float64, allow_extra: bool = False):
    """The model of a checkpoint folder, every parameter and buffer of ``dtype``, eager attention, eval mode, on CPU.

    ConfigMismatch naming the tensors where one is missing (transformers would fill it with random numbers), has another
    shape, or is there without a place in the model (unless ``allow_extra``: real files hold heads their class drops).
    """
    config = parse_config((Path(folder) / "config.json").read_text())
    cls = model_class(config)
    with quiet(), torch.random.fork_rng(devices=[]):
        try:
            model, info = cls.from_pretrained(
                folder,
                config=config_object(config),
                dtype=dtype,
                attn_implementation="eager",
                local_files_only=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,  # to have them listed; they are refused below
                output_loading_info=True,
            )
        except Exception as error:
            raise ConfigMismatch(
                f"{folder} does not load as {cls.__name__}: {' '.join(str(error).split())[:400]}"
            ) from error
    wrong = {
        "missing": sorted(info.get("missing_keys", ())),
        "of another shape": sorted(
            f"{name} is {tuple(found)}, the model needs {tuple(needed)}"
            for name, found, needed in info.get("mismatched_keys", ())
        ),
        "without a place in the model": [] if allow_extra else sorted(info.get("unexpected_keys", ())),
    }
    problems = [f"{len(names)} {what}: {', '.join(names[:4])}" for what, names in wrong.items() if names]
    problems += [" ".join(str(message).split())[:200] for message in info.get("error_msgs", ())]
    if problems:
        raise ConfigMismatch(
            f"{folder} does not hold the weights of a {cls.__name__} as its config.json describes it; "
            f"{'; '.join(problems)}."
        )
    _unround_(model, folder, dtype)
    return model.eval()


def _unround_(model, folder: Path, dtype: torch.dtype) -> None:
    """The whole model in ``dtype``; parameters that its class makes in a dtype of its own were rounded to that when
    they were loaded, and are read again.
    """
    rounded = {name: p for name, p in model.named_parameters() if p.dtype != dtype}
    model.to(dtype)
    prefix = f"{model.base_model_prefix}."
    for file in sorted(Path(folder).glob("*.safetensors")) if rounded else ():
        with safe_open(file, "pt") as weights, torch.no_grad():
            for name in weights.keys():
                place = rounded.get(name, rounded.get(prefix + name, rounded.get(name.removeprefix(prefix))))
                if place is not None and tuple(weights.get_slice(name).get_shape()) == tuple(place.shape):
                    place.copy_(weights.get_tensor(name))


def _cannot_build(config: Mapping[str, Any], error: Exception) -> ConfigMismatch:
    return ConfigMismatch(
        f'A miniature of "{config.get("model_type")}" cannot be built: {type(error).__name__}: '
        f"{' '.join(str(error).split())[:400]}. No rule can be proved for it."
    )


@contextmanager
def _plain_module() -> Iterator[None]:
    """A miniature is in no wrapper. Before it is saved transformers looks for one of DeepSpeed's and imports DeepSpeed
    for that, where it is installed: seconds.
    """
    from transformers import modeling_utils

    unwrap = getattr(modeling_utils, "unwrap_model", None)
    if unwrap is None:  # a transformers that does not look for one
        yield
        return
    modeling_utils.unwrap_model = lambda model, *_, **__: model
    try:
        yield
    finally:
        modeling_utils.unwrap_model = unwrap


# Building or loading a model, transformers changes the default dtype, initialisation and its verbosity for the whole
# process, and its lazy imports fail half way in a second thread: a server with two sessions would mix two models up.
_ONE_AT_A_TIME = threading.RLock()


@contextmanager
def quiet() -> Iterator[None]:
    """One thread at a time builds models, and without transformers' remarks and progress bars: on a random miniature
    they say nothing about the person's model.
    """
    with _ONE_AT_A_TIME:
        yield from _quiet_logging()


def _is_no_news(record: python_logging.LogRecord) -> bool:
    """DeepSpeed says on its import which accelerator it would use; nobody asked."""
    return "accelerator" not in record.getMessage()


def _quiet_logging() -> Iterator[None]:
    from transformers.utils import logging

    deepspeed = python_logging.getLogger("DeepSpeed")  # transformers imports it where it is installed
    deepspeed.addFilter(_is_no_news)
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        deepspeed.removeFilter(_is_no_news)
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
