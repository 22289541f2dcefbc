"""What a model takes in, and random inputs of it: the fixed list of named cases two models are compared on.

Text: lengths 1, 7 and 33, a batch padded on the left and one padded on the right; for decoders a prefill and
single-token steps on its cache. Encoder-decoders: the same with ids for the decoder. Pixels and sound:
:mod:`.inputs_by_kind`. A model that reads text and is fed by another tower (``get_image_features``) runs that tower by
itself.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch

from wisca_core.equivalence.inputs_by_kind import PICTURES, features_of, sense_inputs
from wisca_core.equivalence.miniature import is_masked
from wisca_core.equivalence.small_config import LANGUAGE
from wisca_core.errors import UnknownArchitecture

LENGTHS = (1, 7, 33)
DECODER_LENGTHS = (4, 9, 12)  # unlike the encoder's, so that the two axes of cross attention are told apart
PADDED_LENGTHS = (12, 5, 9)
PREFILL, STEPS = 7, 5
ROW = "row"  # how the names of given token ids begin
TEXT, DECODER, PIXELS, SOUND = "text", "decoder text", "pixels", "sound"

# Their step on the cache takes every id so far and cuts the past off itself.
WHOLE_PROMPT = frozenset({"cpmant"})
# Below these lengths nothing is left after layers that pool positions.
SHORTEST = {"funnel": 8, "canine": 16}
# Text that is not read without pixels, or without them passes by whole layers, though their parameter has a default.
NEEDS_PIXELS = frozenset({"vilt", "idefics", "mllama"})
# Their cache keeps what was seen: pixels given to a later step would be seen again.
SEEN_ONCE = frozenset({"mllama"})
# Hash their ids: any number is a token.
HASHED = {"canine": 61}
# Their decoder reads this many streams of tokens side by side, one row each.
STREAMS = dict.fromkeys(("musicgen", "musicgen_melody", "musicgen_decoder", "musicgen_melody_decoder"), "num_codebooks")
# Run without a cache: the config of the first lacks the number of layers that one is made with, the steps of the others
# need positions that only their generate() works out.
WITHOUT_CACHE = frozenset({"blt", "qwen2_5_omni_thinker", "qwen3_omni_moe_thinker"})
# Towers that are run by themselves, by the method that gives their features.
TOWERS = {"get_image_features": PIXELS, "get_audio_features": SOUND}


@dataclass(frozen=True, eq=False)  # holds tensors
class Case:
    """One call of ``method``. ``shape``: (rows, length) of the positions that the output has values for, None where it
    has none; ``mask``: which of them count (bool, ``shape``), None for all."""

    name: str
    inputs: Mapping[str, Any]
    shape: torch.Size | None = None
    mask: torch.Tensor | None = None
    method: str = "forward"

    @property
    def is_row(self) -> bool:
        """Whether it is given text (``row_cases``)."""
        return self.name.startswith(ROW)


def takes(model) -> tuple[str, ...]:
    """The kinds of input this model is run on: of "text", "decoder text", "pixels", "sound" those that it has."""
    found = {TOWERS.get(case.method) for case in tower_cases(model, 0)} - {None}
    if text_cases(model, 0):
        found.add(TEXT)
    if has_decoder(model):
        found.add(DECODER)
    if needed_pixels(model, 0, 1):
        found.add(PIXELS)
    found |= {kind for kind, _, _ in _senses(model, 0)}
    return tuple(kind for kind in (TEXT, DECODER, PIXELS, SOUND) if kind in found)


def cases(model, seed: int) -> Iterator[Case]:
    """Every call that is no step on a cache."""
    found = False
    for make in (text_cases, sense_cases, tower_cases):
        for case in make(model, seed):
            found = True
            yield case
    if not found:
        raise UnknownArchitecture(
            f"{type(model).__name__} takes {', '.join(list(parameters(model))[:4])} ...: neither text, pixels nor "
            "sound, so it cannot be run."
        )


def parameters(model, method: str = "forward") -> Mapping[str, inspect.Parameter]:
    found = _parameters(getattr(model, method))
    inner = getattr(getattr(model, "model", None), method, None)
    if inner is not None and set(found) <= {"args", "kwargs"}:  # handed on as they come
        return _parameters(inner)
    return found


_KNOWN: WeakKeyDictionary[Callable, Mapping[str, inspect.Parameter]] = WeakKeyDictionary()


def _parameters(method: Callable) -> Mapping[str, inspect.Parameter]:
    """Of a function of a class they are looked up once: they are asked for before every call."""
    if not inspect.ismethod(method):
        return inspect.signature(method).parameters
    if method.__func__ not in _KNOWN:
        _KNOWN[method.__func__] = inspect.signature(method).parameters
    return _KNOWN[method.__func__]


def has_cache(model) -> bool:
    """Whether the model decodes text with a cache of keys and values."""
    names = parameters(model)
    if model.config.model_type in WITHOUT_CACHE:
        return False
    if has_decoder(model):
        return "past_key_values" in names and "encoder_outputs" in names
    config = {key: getattr(model.config, key, None) for key in ("model_type", "is_decoder")}
    return "past_key_values" in names and "input_ids" in names and not is_masked(config)


def is_two_towers(model) -> bool:
    """Whether text and another sense meet only at the end (CLIP): each tower is then run by itself."""
    return hasattr(model, "get_text_features") and any(hasattr(model, name) for name in TOWERS)


def text_cases(model, seed: int) -> list[Case]:
    method = "get_text_features" if is_two_towers(model) else "forward"
    names = parameters(model, method)
    if "input_ids" not in names:
        return []
    draw = Draw(model, seed)
    streams = 1 if has_decoder(model) else draw.streams  # of tokens side by side, one row each
    made = [
        (f"length {length}", {"input_ids": draw.ids(streams, max(length, draw.shortest))}, None) for length in LENGTHS
    ]
    if "attention_mask" in names:
        for side in ("left", "right"):
            mask = draw.mask(side)
            real = mask.repeat_interleave(streams, 0)
            ids = draw.ids(*real.shape).masked_fill(~real, draw.pad)
            made.append((f"padded on the {side}", {"input_ids": ids, "attention_mask": mask.to(torch.int64)}, real))
    made = [
        (name, inputs | (_beside_text(model, draw, inputs["input_ids"].shape) if method == "forward" else {}), mask)
        for name, inputs, mask in made
    ]
    made = [(name, inputs | needed_pixels(model, seed, len(inputs["input_ids"])), mask) for name, inputs, mask in made]
    if has_decoder(model):
        return _with_decoder(made, draw, names)
    fixed = {"use_cache": False} if model.config.model_type in WITHOUT_CACHE else {}
    return [Case(name, inputs | fixed, inputs["input_ids"].shape, mask, method) for name, inputs, mask in made]


def row_cases(model, ids: torch.Tensor, seed: int = 0) -> list[Case]:
    """Given token ids as cases named ROW and a number, with what the model wants beside text; none where it reads no
    text.

    ``ids``: (rows, length), int64. Encoder-decoders get them on both sides, decoders of several streams as many rows a
    case.
    """
    method = "get_text_features" if is_two_towers(model) else "forward"
    if "input_ids" not in parameters(model, method):
        return []
    draw, out = Draw(model, seed), []
    streams = draw.streams if not has_decoder(model) else 1
    for number, first in enumerate(range(0, len(ids) - streams + 1, streams)):
        one = ids[first : first + streams]
        inputs: dict[str, Any] = {"input_ids": one}
        if method == "forward":
            inputs |= _beside_text(model, draw, one.shape) | needed_pixels(model, seed, len(one))
        if has_decoder(model):
            inputs["decoder_input_ids"] = one.repeat_interleave(draw.streams, 0)
        if model.config.model_type in WITHOUT_CACHE:
            inputs["use_cache"] = False
        shape = inputs.get("decoder_input_ids", one).shape
        out.append(Case(f"{ROW} {number}", inputs, shape, method=method))
    return out


def _with_decoder(made: list, draw: "Draw", names: Mapping) -> list[Case]:
    """The same encoder inputs, each with ids for the decoder; padded batches are padded on both halves where it can
    be.
    """
    out = []
    for i, (name, inputs, _) in enumerate(made):
        rows = _rows(inputs) * draw.streams
        if name.startswith("padded on the right") and "decoder_attention_mask" in names and draw.streams == 1:
            mask = draw.mask("right")[:rows]
            ids = draw.ids(*mask.shape).masked_fill(~mask, draw.pad)
            more = {"decoder_input_ids": ids, "decoder_attention_mask": mask.to(torch.int64)}
        else:
            mask, more = None, {"decoder_input_ids": draw.ids(rows, DECODER_LENGTHS[i % len(DECODER_LENGTHS)])}
        out.append(Case(name, inputs | more, more["decoder_input_ids"].shape, mask))
    return out


def _beside_text(model, draw: "Draw", shape: torch.Size) -> dict[str, Any]:
    """What some models want to know of every token: where it stands on a page, which pictures it sees.

    A box is (left, top, right, bottom).
    """
    names, out = parameters(model), {}
    if "bbox" in names:
        near = torch.randint(0, 30, (*shape, 2), generator=draw.generator)
        boxes = torch.cat([near, near + torch.randint(1, 30, (*shape, 2), generator=draw.generator)], -1)
        out["bbox"] = boxes / 70 if draw.fractions else boxes
    if "image_attention_mask" in names and model.config.model_type in NEEDS_PIXELS:
        out["image_attention_mask"] = torch.ones(*shape, PICTURES, dtype=torch.int64)
    if "cross_attention_mask" in names and model.config.model_type in NEEDS_PIXELS:
        out["cross_attention_mask"] = torch.ones(*shape, 1, model.config.vision_config.max_num_tiles, dtype=torch.int64)
    return out


def _rows(inputs: Mapping[str, Any]) -> int:
    return next(len(value) for value in inputs.values() if isinstance(value, torch.Tensor))


def needed_pixels(model, seed: int, rows: int) -> dict[str, Any]:
    """Pixels for text that cannot be read without them; nothing where it can."""
    names = parameters(model)
    if "pixel_values" not in names:
        return {}
    if names["pixel_values"].default is not inspect.Parameter.empty and model.config.model_type not in NEEDS_PIXELS:
        return {}
    config = features_of(model.config, "get_image_features")
    _, _, inputs = sense_inputs(config, {"pixel_values": names["pixel_values"]}, seed, model.config.model_type)[0]
    if "qformer_input_ids" in names:
        inputs = inputs | {"qformer_input_ids": Draw(model, seed).ids(1, 5)}
    return {key: value[:1].expand(rows, *value.shape[1:]) for key, value in inputs.items()}


def does_not_run(model, what: str, inputs: Mapping[str, Any], error: Exception) -> UnknownArchitecture:
    return UnknownArchitecture(
        f"{type(model).__name__} does not run on {what} ({', '.join(inputs)}): "
        f"{type(error).__name__}: {' '.join(str(error).split())[:300]}. Its outputs cannot be compared."
    )


def sense_cases(model, seed: int) -> list[Case]:
    """Pixels or sound where they are what the model itself takes."""
    made = [(name, inputs, None) for _, name, inputs in _senses(model, seed)]
    if has_decoder(model):
        return _with_decoder(made, Draw(model, seed), parameters(model))
    return [Case(name, inputs) for name, inputs, _ in made]


def _senses(model, seed: int) -> list[tuple[str, str, dict[str, Any]]]:
    if "input_ids" in parameters(model):
        return []
    return sense_inputs(model.config, parameters(model), seed)


def has_decoder(model) -> bool:
    """Whether there are two halves, each with ids of its own."""
    return "decoder_input_ids" in parameters(model) and not getattr(
        model.config, "use_decoder_only_language_model", False
    )


def tower_cases(model, seed: int) -> list[Case]:
    """Towers beside the language part, each by itself."""
    out = []
    for method in TOWERS:
        if hasattr(model, method):
            config = features_of(model.config, method)
            out += [
                Case(f"{name} alone", inputs, method=method)
                for _, name, inputs in sense_inputs(config, parameters(model, method), seed, model.config.model_type)
            ]
    return out


class Draw:
    """Random ids of one seed that are not special (a pad id would be masked or shift positions), int64."""

    def __init__(self, model, seed: int):
        self.generator = torch.Generator().manual_seed(seed)
        hashed = HASHED.get(model.config.model_type)
        config = language_config(model) if hashed is None else model.config
        self.allowed = (
            plain_tokens(vocabulary(model), config, model.config) if hashed is None else torch.arange(10, hashed)
        )
        pad = getattr(config, "pad_token_id", None)
        self.shortest = shortest(model.config)
        self.fractions = model.config.model_type == "udop"  # its boxes are shares of the page
        self.streams = getattr(config, STREAMS.get(model.config.model_type, ""), 1)
        self.pad = pad if isinstance(pad, int) and pad >= 0 else int(self.allowed[0])

    def ids(self, rows: int, length: int) -> torch.Tensor:
        return self.allowed[torch.randint(len(self.allowed), (rows, length), generator=self.generator)]

    def mask(self, side: str) -> torch.Tensor:
        """(rows, longest), true at the real positions."""
        lengths = (max(PADDED_LENGTHS[0], self.shortest), *PADDED_LENGTHS[1:])
        mask = torch.stack([torch.arange(lengths[0]) < length for length in lengths])
        return mask.flip(1) if side == "left" else mask


def shortest(config: Any) -> int:
    """The fewest tokens that the model treats as it treats many. BigBird turns from sparse blocks to full attention
    below five and twice the random blocks, once and for all the calls that follow.
    """
    if getattr(config, "attention_type", "") == "block_sparse":
        return (5 + 2 * config.num_random_blocks + 1) * config.block_size
    return SHORTEST.get(config.model_type, 1)


def language_config(model) -> Any:
    """The config that holds the vocabulary; the model's own where only its embedding says how large it is."""
    config = model.config
    if getattr(config, "vocab_size", None) is None:
        inner = [getattr(config, key, None) for key in LANGUAGE]
        config = next((one for one in inner if getattr(one, "vocab_size", None)), None) or config.get_text_config()
    if getattr(config, "vocab_size", None) is None:
        if not _embedding_rows(model):
            raise UnknownArchitecture(
                f"the config of {type(model).__name__} names no vocabulary; no text can be fed to it."
            )
        return model.config
    return config


def vocabulary(model) -> int:
    """How many token ids the model has vectors for."""
    stated = getattr(language_config(model), "vocab_size", None)
    return min(n for n in (stated, _embedding_rows(model)) if n)


def _embedding_rows(model) -> int:
    """Rows of the input embedding, 0 where it has none or does not say."""
    try:
        found = model.get_input_embeddings()
    except (NotImplementedError, AttributeError):
        return 0
    return found.num_embeddings if isinstance(found, torch.nn.Embedding) else 0


def plain_tokens(n_ids: int, *configs: Any) -> torch.Tensor:
    """The ids below ``n_ids`` that none of the configs gives a meaning of its own, ascending int64."""
    special = set()
    for one in {id(one): one for one in configs}.values():
        for name, value in one.to_dict().items():
            if name.endswith(("_token_id", "_token_index")):
                special.update(value if isinstance(value, list) else [value])
    ids = torch.tensor([i for i in range(n_ids) if i not in special], dtype=torch.int64)
    if not len(ids):
        raise UnknownArchitecture(f"every one of the {n_ids} token ids is special; nothing can be fed to the model.")
    return ids


def cached_steps(model, seed: int, call: Callable[[dict[str, Any]], Any]) -> Iterator[tuple[str, Any, torch.Size]]:
    """(name, result, shape of its positions) of a prefill and single-token steps on its cache, by ``call(inputs)``.

    Nothing where the model gives no cache back.
    """
    draw, rows = Draw(model, seed + 1), 1
    key, fixed = "input_ids", {}
    if has_decoder(model):  # the encoder runs once
        key, first = "decoder_input_ids", (*text_cases(model, seed)[1:2], *sense_cases(model, seed)[:1])[0]
        inputs = {name: value for name, value in first.inputs.items() if not name.startswith("decoder_")}
        rows = _rows(inputs)
        try:
            fixed = {"encoder_outputs": model.get_encoder()(**inputs, return_dict=True)}
        except Exception as error:
            raise does_not_run(model, "its encoder alone", inputs, error) from error
    else:
        fixed = needed_pixels(model, seed, 1)
    prompt, rest = draw.ids(rows * draw.streams, PREFILL), draw.ids(rows * draw.streams, STEPS)
    cache = None
    for step in range(STEPS + 1):
        ids = prompt if step == 0 else rest[:, step - 1 : step]
        given = torch.cat([prompt, rest[:, :step]], 1) if model.config.model_type in WHOLE_PROMPT else ids
        if step == 1 and model.config.model_type in SEEN_ONCE:
            fixed = {}
        beside = _beside_text(model, draw, given.shape) if key == "input_ids" else {}
        result = call(
            fixed | beside | {key: given, "use_cache": True} | ({} if cache is None else {"past_key_values": cache})
        )
        cache = getattr(result, "past_key_values", None)
        if cache is None:
            return
        yield "cached prefill" if step == 0 else f"cached step {step}", result, ids.shape
