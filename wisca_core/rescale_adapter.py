"""An adapter that belongs to a base model which is rescaled: its factors follow the base's, decided here, applied by
the same arithmetic.

A linear layer with LoRA computes (W + scaling B A) x. Where the base's rescale multiplies W's output channels by s and
its input channels by f, B's rows (and the bias of B) are multiplied by s and A's columns by f. DoRA's magnitude m of
each output row becomes m s |(W + scaling B A) f| / |W + scaling B A|, rows at a time. Tensors of the base that the
adapter brings along (modules_to_save, biases) are multiplied like the base's own. Left alone, the adapter would no
longer fit.

peft names layers as they are in memory, the base's file may name them otherwise: ``equivalence.memory_names`` says
which is which. What of the adapter meets no tensor of the base is refused, but for heads that the base does not have.
"""

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wisca_core.architecture.adapter import ROOT, AdaptedLayer, adapted_layers
from wisca_core.architecture.site import Sites
from wisca_core.checkpoint import RESCALABLE, Checkpoint, Reader
from wisca_core.checkpoint.folder import ADAPTER_CONFIG, MAX_CONFIG_BYTES
from wisca_core.equivalence.memory_names import MemoryNames, memory_names
from wisca_core.errors import ConfigMismatch, UnsupportedCheckpoint, WiscaError
from wisca_core.rescale import Scaling
from wisca_core.untrusted import printable, read_json_object

# legs whose axis is their matrix's output, and those whose axis is its input
_OUTPUTS, _INPUTS = ("q", "k", "v", "up"), ("o", "down")
# init_lora_weights that leave the base's weights as they are, when the adapter is begun and when it is loaded
_PLAIN_START = ("true", "false", "none", "gaussian", "orthogonal", "eva", "mica")
# a pattern of alpha_pattern that is tried as the regular expression peft takes it for: no nested repetition
_PLAIN_PATTERN = re.compile(r"[\w.\-\\^$|]*(?:\*[\w.\-\\^$|]*){0,3}")
MOST_NEAR = 500  # folders looked at for adapters
MOST_LAYERS = 20_000
_TOKENS = re.compile(r"(?:\.token_adapter)?\.trainable_tokens_(?:delta|original)$")  # rows of an embedding


@dataclass(frozen=True)
class FittedLayer:
    """One adapted layer and the base's matrix it adapts. ``out_axis``: the stored axis of its outputs."""

    adapted: AdaptedLayer
    weight: str
    out_axis: int


def follow(base: Checkpoint, sites: Sites, scaling: Mapping[str, Scaling], adapter: Checkpoint) -> dict[str, Scaling]:
    """What the adapter's tensors are multiplied by so that it fits the base rescaled by ``scaling`` (base tensor ->
    Scaling, of ``sites``). Reads the base's weights only for DoRA on rescaled columns.

    Raises ConfigMismatch where the adapter is not one of this base, UnsupportedCheckpoint where a layer that is
    rescaled carries something no rule covers.
    """
    if not adapter.adapter_json:
        raise ConfigMismatch(f"{adapter.path} is a model, not a LoRA adapter. Give an adapter's folder.")
    _refuse_kind(adapter)
    out: dict[str, Scaling] = {}
    with Reader(base) as of_base, Reader(adapter) as of_adapter:
        for one in fitted_layers(base, sites, scaling, adapter):
            factors, parts = scaling[one.weight], one.adapted
            rows, columns = factors.along.get(one.out_axis), factors.along.get(1 - one.out_axis)
            if rows is not None:
                out[parts.b] = Scaling({0: rows})
                if parts.bias:
                    out[parts.bias] = Scaling({0: rows})
            if columns is not None:
                out[parts.a] = Scaling({1: columns})
            if parts.magnitude:
                growth = np.ones(adapter.by_name[parts.b].shape[0]) if rows is None else rows.copy()
                if columns is not None:
                    growth *= _growth(of_base, of_adapter, one, columns)
                out[parts.magnitude] = Scaling({_long_axis(adapter, parts.magnitude): growth})
    return out | _copies(base, scaling, adapter)


def fitted_layers(
    base: Checkpoint, sites: Sites, changed: Mapping[str, Scaling], adapter: Checkpoint
) -> tuple[FittedLayer, ...]:
    """Every adapted layer with its matrix of the base, checked by name and shape; only those in ``changed`` need a
    rule.
    """
    out_axis, names = _output_axes(sites), memory_names(base)
    found = []
    for one in adapted_layers(adapter):
        module = path_in_base(one.module, adapter)
        if one.unknown:
            if any(name in changed for name in names.below(module)):
                raise UnsupportedCheckpoint(
                    f"{one.module} of the adapter {adapter.path} cannot follow its base: {one.unknown}."
                )
            continue
        name = _base_matrix(base, names, module, one.module, changed)
        if name not in changed:
            continue
        axis = out_axis.get(name)
        if axis is None or any(isinstance(key, tuple) for key in changed[name].along):
            raise UnsupportedCheckpoint(
                f"{name} is rescaled in a way that an adapter on it has no rule for; leave its pair out (--exclude)."
            )
        weight, a, b = base.by_name[name].shape, adapter.by_name[one.a].shape, adapter.by_name[one.b].shape
        if len(weight) != 2 or (weight[axis], weight[1 - axis]) != (b[0], a[1]):
            raise ConfigMismatch(
                f"{one.module}: the adapter maps {a[1]} inputs to {b[0]} outputs, {name} of the base is {weight}. "
                "This adapter belongs to another base."
            )
        for part in (one.bias, one.magnitude):
            if part and adapter.by_name[part].n_elements != b[0]:
                raise ConfigMismatch(
                    f"{part} has {adapter.by_name[part].n_elements} values, its layer has {b[0]} outputs."
                )
        found.append(FittedLayer(one, name, axis))
    return tuple(found)


def _refuse_kind(adapter: Checkpoint) -> None:
    config = adapter.adapter
    if config.get("peft_type") != "LORA":
        raise UnsupportedCheckpoint(
            f"{adapter.path} is no LoRA (peft_type {printable(config.get('peft_type'), 40)!r}); it cannot follow its "
            "base."
        )
    start = config.get("init_lora_weights", True)
    if str(start).lower() not in _PLAIN_START:
        raise UnsupportedCheckpoint(
            f"{adapter.path} was begun from its base's weights (init_lora_weights {printable(start, 40)!r}), which "
            "peft takes off the base again when "
            "it is loaded. Convert it to a plain LoRA first (save_pretrained with "
            "path_initial_model_for_weight_conversion)."
        )


def _output_axes(sites: Sites) -> dict[str, int]:
    """Matrix -> the stored axis of its outputs, from the roles of its legs; left out where they do not say or
    disagree.
    """
    out: dict[str, set[int | None]] = {}
    for site in sites.sites:
        for leg in site.legs:
            axis = leg.axis if leg.role in _OUTPUTS else 1 - leg.axis if leg.role in _INPUTS else None
            out.setdefault(leg.tensor, set()).add(axis)
    return {name: axes.pop() for name, axes in out.items() if len(axes) == 1 and axes <= {0, 1}}


def path_in_base(module: str, adapter: Checkpoint) -> str:
    """The path that an adapted module, or a tensor kept beside one, has in the base: without peft's wrappers, and where
    the adapter repeats layers (layer_replication) in the layer that it repeats.
    """
    bare = module.replace(".base_layer", "").replace(".modules_to_save", "")
    ranges = adapter.adapter.get("layer_replication")
    if not ranges:
        return bare
    try:
        layers = [
            layer for start, end in ranges for layer in range(int(start), min(int(end), int(start) + MOST_LAYERS))
        ]
        return re.sub(r"(?<=\.)\d{1,6}(?=\.)", lambda found: str(layers[int(found[0])]), bare, count=1)
    except (TypeError, ValueError, IndexError) as error:
        raise ConfigMismatch(
            f"layer_replication in adapter_config.json of {adapter.path} is {printable(ranges, 80)}, which gives no "
            "layer "
            f"for {printable(module, 120)}; pairs of first and last layer are expected."
        ) from error


def _base_matrix(base: Checkpoint, names: MemoryNames, module: str, said: str, changed: Mapping[str, Scaling]) -> str:
    """The base's matrix of that module, "" where it is computed from several that are not in ``changed``."""
    found = names.find(f"{module}.weight")
    if len(found) == 1:
        return found[0]
    if not found:
        raise ConfigMismatch(
            f"the adapter is on {printable(said)}; the base {base.path} has no tensor of that name. This adapter "
            "belongs to "
            "another base."
        )
    if not any(name in changed for name in found):
        return ""
    raise UnsupportedCheckpoint(
        f"the adapter is on {printable(said)}, which is made of {len(found)} tensors of the base "
        f"({printable(found[0])} ...), and "
        "they are rescaled: an adapter on it has no rule; leave their pairs out (--exclude)."
    )


def _long_axis(adapter: Checkpoint, name: str) -> int:
    shape = adapter.by_name[name].shape
    return max(range(len(shape)), key=lambda i: shape[i]) if shape else 0


def _growth(of_base: Reader, of_adapter: Reader, one: FittedLayer, columns: np.ndarray) -> np.ndarray:
    """(out,), float64: |(W + scaling B A) f| / |W + scaling B A| of each output row, f along its inputs."""
    parts = one.adapted
    a, b = (of_adapter.tensor(name).double() for name in (parts.a, parts.b))
    product = _scaling(of_adapter.checkpoint, parts.module, a.shape[0]) * (b @ a)
    weight = of_base.tensor(one.weight).double()
    both = (weight if one.out_axis == 0 else weight.T) + product
    import torch

    before, after = (torch.linalg.vector_norm(m, dim=1) for m in (both, both * torch.from_numpy(columns)))
    growth = (after / before).numpy()
    if not (np.isfinite(growth) & (growth > 0)).all():
        raise UnsupportedCheckpoint(
            f"{parts.magnitude}: a row of the weights below it is zero or not finite, so its magnitude cannot follow."
        )
    return growth


def _scaling(adapter: Checkpoint, module: str, rank: int) -> float:
    """What peft multiplies B A by: alpha over the rank or its root, alpha by the first pattern that fits the module."""
    config = adapter.adapter
    alpha, patterns = config.get("lora_alpha"), config.get("alpha_pattern")
    for pattern, own in patterns.items() if isinstance(patterns, dict) else ():
        if len(pattern) > 200 or not _PLAIN_PATTERN.fullmatch(pattern):
            raise UnsupportedCheckpoint(
                f"{adapter.path}: alpha_pattern {printable(pattern, 60)!r} is no plain name, so DoRA on rescaled "
                "columns has no "
                "alpha. Leave VO and MLP out."
            )
        try:
            fits = re.match(rf"(.*\.)?({pattern})$", module)
        except re.error:
            fits = None
        if fits:
            alpha = own
            break
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not math.isfinite(alpha):
        raise UnsupportedCheckpoint(
            f"{adapter.path}: DoRA on rescaled columns needs a number as lora_alpha of {printable(module)}; found "
            f"{printable(alpha, 40)}. Leave VO and MLP out."
        )
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)


def copies(base: Checkpoint, adapter: Checkpoint) -> dict[str, tuple[str, ...]]:
    """The adapter's own copies of base tensors (modules_to_save, biases): name -> the base's tensor it stands for;
    several where it stands for a tensor computed from them, () where it is a head that the base does not have.

    ConfigMismatch where a copy is of no tensor of the base and no such head.
    """
    lora = {name for one in adapted_layers(adapter) for name in (one.a, one.b, one.bias, one.magnitude)}
    names = memory_names(base)
    heads = {name.split(".")[0] for pair in names.stored.items() for name in pair} - {""}
    parts = {part for name in names.stored.values() for part in name.split(".")} | heads
    out = {}
    for tensor in adapter.tensors:
        if tensor.name in lora or ".lora_" in tensor.name:
            continue
        bare = path_in_base(tensor.name.removeprefix(ROOT), adapter)
        name = _TOKENS.sub(".weight", bare)
        found = names.find(name)
        is_head = bare.split(".")[0] not in parts and not re.search(r"\.\d+\.", bare)
        if not found and not is_head:
            raise ConfigMismatch(
                f"{printable(tensor.name)} of the adapter {adapter.path} stands for no tensor of the base {base.path}: "
                "none has "
                "that name, in the file or in memory. This adapter belongs to another base."
            )
        out[tensor.name] = found
    return out


def _copies(base: Checkpoint, scaling: Mapping[str, Scaling], adapter: Checkpoint) -> dict[str, Scaling]:
    out = {}
    for copy, names in copies(base, adapter).items():
        tensor, rescaled = adapter.by_name[copy], [name for name in names if name in scaling]
        if not rescaled:
            continue
        if len(names) > 1:
            raise UnsupportedCheckpoint(
                f"{printable(copy)} of the adapter stands for {len(names)} tensors of the base ({printable(names[0])} "
                "...), which "
                "are rescaled: it has no rule; leave their pairs out (--exclude)."
            )
        if base.by_name[names[0]].shape != tensor.shape or tensor.dtype not in RESCALABLE:
            raise ConfigMismatch(
                f"{copy} of the adapter stands for {names[0]} of the base, but is {tensor.dtype} {tensor.shape}."
            )
        out[copy] = scaling[names[0]]
    return out


def config_on(adapter: Checkpoint, base: Path) -> str:
    """adapter_config.json of the adapter that fits the rescaled base in ``base``: it names that folder, so that nobody
    loads it on the old one.
    """
    return json.dumps(adapter.adapter | {"base_model_name_or_path": str(base), "revision": None}, indent=2) + "\n"


def adapters_near(base: Checkpoint) -> tuple[Path, ...]:
    """Adapters that belong to this base as far as can be seen: in its folder, in folders below it, and in the folders
    beside it that name it as their base.
    """
    here, found = base.path, []
    for place, must_name in (
        (here, False),
        *((p, False) for p in _folders(here)),
        *((p, True) for p in _folders(here.parent) if p != here),
    ):
        try:
            if not os.path.lexists(place / ADAPTER_CONFIG):
                continue
            _, config = read_json_object(place, ADAPTER_CONFIG, MAX_CONFIG_BYTES, unique_keys=False)
        except (WiscaError, OSError):
            continue
        if not must_name or _names(config.get("base_model_name_or_path"), base):
            found.append(place)
    return tuple(found)


def _folders(place: Path) -> list[Path]:
    try:
        with os.scandir(place) as entries:
            names = sorted(e.name for _, e in zip(range(20 * MOST_NEAR), entries) if e.is_dir(follow_symlinks=False))
    except OSError:
        return []
    return [place / name for name in names[:MOST_NEAR] if not name.startswith(".")]


def _names(stated: object, base: Checkpoint) -> bool:
    if not isinstance(stated, str) or not stated or "\0" in stated:
        return False
    if base.source.startswith("hub:"):
        return base.source.removeprefix("hub:").partition("@")[0] == stated
    try:
        return os.path.realpath(stated) == str(base.path)
    except (OSError, ValueError):
        return False
