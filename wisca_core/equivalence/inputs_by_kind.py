"""Random pixels and sound for the models and towers that take them, sized by their configs.

What a function takes is read from its parameters; a few types have a form of their own (:data:`FORMS`). Two images (or
sounds) a batch; a second size where the model can place it. Not covered: videos beside images, point and box prompts.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

PIXELS, SOUND = "pixels", "sound"
GRIDS = ("image_grid_thw", "grid_thw", "image_grid_hw")
FIXED_SIZE = frozenset({"aimv2_vision_model", "hiera"})  # their parameter for a larger picture is not used
FRAMES = 40  # of sound, where the config leaves the length open
MELS_FIRST = frozenset({"glmasr_encoder", "voxtral_realtime_encoder"})
PICTURES = 2  # of a row of text, where it has several
RAW_SAMPLES = 3200  # of sound before its convolutions: nine or ten positions after those of wav2vec2

Inputs = dict[str, Any]


def sense_inputs(config: Any, names: Mapping[str, Any], seed: int, outer: str = "") -> list[tuple[str, str, Inputs]]:
    """(kind, name, inputs) for a function with parameters ``names``; nothing where it takes neither pixels nor sound.

    ``outer``: the type of the model that the tower of ``config`` is in."""
    draw = _Draw(seed)
    form = FORMS.get(outer) or FORMS.get(getattr(config, "model_type", ""))
    if form is not None:
        return form(config, names, draw)
    if any(name in names for name in ("pixel_values", "pixel_values_videos")) or _grid_key(names):
        return [(PIXELS, name, inputs) for name, inputs in _pixels(config, names, draw)]
    if "flattened_patches" in names:
        return [(PIXELS, "placed patches", {"flattened_patches": _with_places(config, draw)})]
    speech = getattr(config, "encoder", config)  # of an encoder and a decoder put together
    if "input_features" in names and not ("input_values" in names and hasattr(speech, "conv_stride")):
        return [(SOUND, name, inputs) for name, inputs in _features(config, names, draw)]
    if "input_values" in names:
        return [(SOUND, name, inputs) for name, inputs in _samples(config, names, draw)]
    return []


def features_of(config: Any, method: str) -> Any:
    """The config of the tower that gives these features."""
    keys = ("audio_config", "encoder_config") if "audio" in method else ("vision_config", "vq_config", "encoder_config")
    return next((getattr(config, key) for key in keys if hasattr(getattr(config, key, None), "to_dict")), config)


class _Draw:
    def __init__(self, seed: int):
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int) -> torch.Tensor:
        """Standard normal float64, rounded to float32: what a processor gives."""
        return torch.randn(shape, generator=self.generator, dtype=torch.float32).double()


def _of(config: Any, *names: str, default: Any = None) -> Any:
    return next((value for name in names if (value := getattr(config, name, None)) is not None), default)


def _side(value: Any, default: int) -> tuple[int, int]:
    """(height, width) of a size that may be one number, two of them or a dictionary."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return (value[0], value[-1]) if value else (default, default)
    return (value or default,) * 2


def _grid_key(names: Mapping[str, Any]) -> str | None:
    return next((key for key in GRIDS if key in names), None)


def _pixels(config: Any, names: Mapping[str, Any], draw: _Draw) -> list[tuple[str, Inputs]]:
    channels = _of(config, "num_channels", "in_channels", "in_chans", default=3)
    channels = channels if isinstance(channels, int) else 3
    patch = _side(_of(config, "patch_size", "spatial_patch_size"), 4)[0]
    grid = _grid_key(names)
    if grid is not None:  # patches in a row, and how many a picture has of them
        key = next((key for key in ("pixel_values", "hidden_states") if key in names), "pixel_values")
        width = channels * _side(_of(config, "temporal_patch_size"), 1)[0] * patch**2
        return [
            (name, {key: draw(sum(math.prod(one) for one in grids), width), grid: torch.tensor(grids)})
            for name, grids in (
                ("a picture", [(1, 4, 4)]),
                ("a wide picture", [(1, 2, 6)]),
                ("two pictures", [(1, 4, 4), (1, 2, 6)]),
            )
        ]
    height, width = _side(_of(config, "image_size", "input_size"), 16)
    if "spatial_shapes" in names:
        n = (height // patch) * (width // patch)
        mask = torch.ones(2, n, dtype=torch.int64)
        mask[1, 8:] = 0
        return [
            (
                "two pictures",
                {
                    "pixel_values": draw(2, n, channels * patch**2),
                    "pixel_attention_mask": mask,
                    "spatial_shapes": torch.tensor([[height // patch, width // patch], [2, 4]]),
                },
            )
        ]
    frames = _of(config, "num_frames", "frames_per_clip") if "input_ids" not in names else None
    key = "pixel_values" if "pixel_values" in names else "pixel_values_videos"
    before = (1, frames) if frames else (2,)
    made = [
        ("pictures", {key: draw(*before, channels, height, width)}),
        ("a picture", {key: draw(1, *before[1:], channels, height, width)}),
    ]
    if "interpolate_pos_encoding" in names and not frames and config.model_type not in FIXED_SIZE:
        made.append(
            (
                "larger pictures",
                {key: draw(1, channels, height + patch, width + 2 * patch), "interpolate_pos_encoding": True},
            )
        )
    if "image_sizes" in names:
        made = [
            (name, inputs | {"image_sizes": torch.tensor([[height, width]] * len(inputs[key]))})
            for name, inputs in made
        ]
    return made


def _features(config: Any, names: Mapping[str, Any], draw: _Draw) -> list[tuple[str, Inputs]]:
    """Spectrograms: (rows, mels, frames) where positions are fixed, else (rows, frames, features)."""
    mels = _of(config, "num_mel_bins", "feature_size", "n_mel_bins", default=8)
    fixed = _of(config, "max_source_positions")
    own_width = _of(config, "input_feat_per_channel", "feature_projection_input_dim")
    windows = _of(config, "n_window")  # the length is a multiple of two of them
    if windows is not None or (fixed is not None and own_width is None) or config.model_type in MELS_FIRST:
        length = 4 * windows if windows else FRAMES if fixed is None else 2 * fixed
        made = [
            ("sound", {"input_features": draw(2, mels, length)}),
            ("a sound", {"input_features": draw(1, mels, length)}),
        ]
        return [(name, inputs | _sound_mask(names, len(inputs["input_features"]), length)) for name, inputs in made]
    width = _of(config, "feature_projection_input_dim", "input_feat_per_channel", "input_dim", default=mels)
    made = [
        ("sound", {"input_features": draw(2, FRAMES, width)}),
        ("a sound", {"input_features": draw(1, FRAMES, width)}),
    ]
    made = [(name, inputs | _sound_mask(names, len(inputs["input_features"]), FRAMES)) for name, inputs in made]
    if "attention_mask" in names:
        mask = torch.ones(2, FRAMES, dtype=torch.int64)
        mask[1, FRAMES // 2 :] = 0
        made.append(("padded sound", {"input_features": draw(2, FRAMES, width), "attention_mask": mask}))
    return made


def _sound_mask(names: Mapping[str, Any], rows: int, length: int) -> Inputs:
    """The mask of a sound without padding, for functions that have a parameter for it."""
    keys = [key for key in ("input_features_mask", "feature_attention_mask") if key in names]
    return {key: torch.ones(rows, length, dtype=torch.int64) for key in keys}


def _samples(config: Any, names: Mapping[str, Any], draw: _Draw) -> list[tuple[str, Inputs]]:
    made = [("sound", {"input_values": draw(2, RAW_SAMPLES)}), ("a sound", {"input_values": draw(1, RAW_SAMPLES)})]
    if "attention_mask" in names:
        mask = torch.ones(2, RAW_SAMPLES, dtype=torch.int64)
        mask[1, RAW_SAMPLES // 2 :] = 0
        made.append(("padded sound", {"input_values": draw(2, RAW_SAMPLES), "attention_mask": mask}))
    return made


def _with_places(config: Any, draw: _Draw) -> torch.Tensor:
    """(2, 16, 2 + values of a patch): row and column, counted from 1, before each patch."""
    patch = draw(2, 16, _of(config, "vision_config", default=config).patch_embed_hidden_size)
    place = torch.tensor([[row, column] for row in range(1, 5) for column in range(1, 5)], dtype=patch.dtype)
    return torch.cat([place.expand(2, -1, -1), patch], -1)


def _spectrogram(config: Any, names: Mapping[str, Any], draw: _Draw) -> list[tuple[str, str, Inputs]]:
    return [(SOUND, "sound", {"input_values": draw(2, config.max_length, config.num_mel_bins)})]


def _clap(config: Any, names: Mapping[str, Any], draw: _Draw) -> list[tuple[str, str, Inputs]]:
    """A spectrogram that folds into a square picture."""
    length = config.spec_size**2 // config.num_mel_bins
    return [
        (
            SOUND,
            "sound",
            {
                "input_features": draw(2, 1, length, config.num_mel_bins),
                "is_longer": torch.zeros(2, 1, dtype=torch.bool),
            },
        )
    ]


def _pictures_by_row(config: Any, names: Mapping[str, Any], draw: _Draw) -> list[tuple[str, str, Inputs]]:
    """Every row of text has several pictures."""
    channels, (height, width) = _of(config, "num_channels", default=3), _side(_of(config, "image_size"), 16)
    return [(PIXELS, "two pictures", {"pixel_values": draw(1, PICTURES, channels, height, width)})]


def _tiles(config: Any, names: Mapping[str, Any], draw: _Draw) -> list[tuple[str, str, Inputs]]:
    """A picture whole and its two halves; the row of sizes.toml for the type lists such pictures."""
    channels, (height, width) = _of(config, "num_channels", default=3), _side(_of(config, "image_size"), 16)
    sizes = torch.tensor([[height, 2 * width], [2 * height, width]])
    return [(PIXELS, "pictures in tiles", {"pixel_values": draw(2, 3, channels, height, width), "image_sizes": sizes})]


def _tiles_of_one(config: Any, names: Mapping[str, Any], draw: _Draw) -> list[tuple[str, str, Inputs]]:
    """A picture cut into as many tiles as there may be."""
    n, (height, width) = config.max_num_tiles, _side(config.image_size, 16)
    pixels = draw(1, 1, n, config.num_channels, height, width)
    return [
        (
            PIXELS,
            "tiles of one picture",
            {
                "pixel_values": pixels,
                "aspect_ratio_ids": torch.full((1, 1), 4),
                "aspect_ratio_mask": torch.ones(1, 1, n, dtype=torch.int64),
            },
        )
    ]


def _placed_patches(config: Any, names: Mapping[str, Any], draw: _Draw) -> list[tuple[str, str, Inputs]]:
    """Patches in a row, each with its place (x, y); -1 where a smaller picture has none."""
    side = 2 * _of(config, "pooling_kernel_size", "model_patch_size", default=2)
    places = torch.tensor([[x, y] for y in range(side) for x in range(side)]).expand(2, -1, -1).clone()
    patch = _side(_of(config, "patch_size"), 4)[0]
    key = next((key for key in ("image_position_ids", "pixel_position_ids") if key in names), "image_position_ids")
    return [(PIXELS, "placed patches", {"pixel_values": draw(2, side**2, 3 * patch**2), key: places})]


FORMS: dict[str, Callable[[Any, Mapping[str, Any], _Draw], list[tuple[str, str, Inputs]]]] = {
    "audio-spectrogram-transformer": _spectrogram,
    "clap_audio_model": _clap,
    "mllama": _tiles_of_one,
    "gemma4_vision": _placed_patches,
    **dict.fromkeys(("idefics", "idefics2", "idefics3", "smolvlm"), _pictures_by_row),
    **dict.fromkeys(("llava_next", "llava_next_video", "llava_onevision"), _tiles),
}
