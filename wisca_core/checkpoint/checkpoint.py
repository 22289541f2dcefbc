"""What a checkpoint is once opened: names, shapes and byte positions, no tensors."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from wisca_core.errors import UnsupportedCheckpoint

# Bits a value, spelled as safetensors spells them; torch files are described in the same words.
DTYPE_BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "U16": 16,
    "I16": 16,
    "U32": 32,
    "I32": 32,
    "U64": 64,
    "I64": 64,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "F16": 16,
    "BF16": 16,
    "F32": 32,
    "F64": 64,
    "C64": 64,
}

# What torch calls the dtypes it holds one value an element of; F4 and F6 are packed and have no such view.
TORCH_NAMES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "U64": "uint64",
    "I64": "int64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
}

RESCALABLE = ("F64", "F32", "BF16", "F16")


@dataclass(frozen=True)
class TensorInfo:
    """One stored tensor: ``n_bytes`` from byte ``offset`` of ``file`` (relative to the folder), row-major."""

    name: str
    dtype: str  # a key of DTYPE_BITS
    shape: tuple[int, ...]
    file: str
    offset: int
    n_bytes: int

    @property
    def n_elements(self) -> int:
        return math.prod(self.shape)


def parse_config(config_json: str) -> dict:
    """A config's text as plain values. JSON has no infinity: transformers writes it as {"__float__": "Infinity"}
    (``PreTrainedConfig.to_json_string``), older files as the bare word.
    """
    return json.loads(config_json, object_hook=_plain)


def _plain(found: dict) -> object:
    if found.keys() == {"__float__"} and found["__float__"] in ("Infinity", "-Infinity", "NaN"):
        return float(found["__float__"])
    return found


@dataclass(frozen=True)
class Recipe:
    """How a tensor is made that is not stored as one run of its own values: ``kind`` names the arithmetic in
    ``checkpoint.derived``, ``parts`` are the stored tensors it takes, ``settings`` the numbers it needs.
    """

    kind: str
    parts: tuple[TensorInfo, ...]
    settings: tuple[int | float, ...] = ()


@dataclass(frozen=True)
class Declared:
    """What a person says of a file that no family row knows: ``sites`` (``architecture.declaration``), and what proves
    them: ``build()`` makes a small model of their own code, ``forward(model, ids)`` calls it. ``is_unproved``: that
    they take the sites as they are.
    """

    sites: tuple
    build: Callable | None = None
    forward: Callable | None = None
    is_unproved: bool = False


@dataclass(frozen=True)
class Checkpoint:
    """A model folder that was looked through and found sound; nothing but headers has been read.

    ``tensors`` are sorted by (file, offset). ``aliases`` are (name, name of the tensor that owns the storage), torch
    files only; an alias is not in ``tensors``. ``stamps`` are (size in bytes, mtime_ns) of each of ``weight_files``
    when it was looked at. ``remarks`` are sentences for the person: what was skipped or passed over.

    ``recipes``: of the tensors that are made of others when they are read (dequantised, put together from shards); what
    lies in the files is then ``stored``. ``look_only``: why the values may be looked at but never rescaled, "" where
    they may be.

    ``declared``: in the place of a config.json, None where nothing was.

    ``is_unwrapped``: names are without what wrappers (``wrappers``) put into those of the files.

    A LoRA adapter is a checkpoint of its own: ``adapter_json`` is then the raw text of its adapter_config.json.
    """

    path: Path  # real path of the folder
    source: str  # what the person wrote
    kind: str  # "safetensors" | "torch" | "live": a module in memory
    config_json: str  # raw text, "" where there is no config.json
    tensors: tuple[TensorInfo, ...]
    weight_files: tuple[str, ...]
    index_file: str | None = None
    aliases: tuple[tuple[str, str], ...] = ()
    stamps: tuple[tuple[int, int], ...] = ()
    remarks: tuple[str, ...] = ()
    adapter_json: str = ""
    recipes: tuple[tuple[str, Recipe], ...] = ()
    stored: tuple[TensorInfo, ...] = ()
    look_only: str = ""
    declared: Declared | None = None
    is_unwrapped: bool = False

    def check_rescalable(self) -> None:
        """Raises UnsupportedCheckpoint where its values may only be looked at."""
        if self.look_only:
            raise UnsupportedCheckpoint(
                f"{self.path} can be looked at, not rescaled: {self.look_only} Nothing was written."
            )

    @property
    def place(self) -> Path:
        """What ``open_checkpoint`` opens as this very checkpoint on this machine: its folder, or the one file of it
        that was named.
        """
        name = Path(self.source).name
        return self.path / name if name in self.weight_files and self.index_file is None else self.path

    @property
    def config(self) -> dict:
        """config.json parsed, a fresh dict each time; empty where there is none."""
        return parse_config(self.config_json) if self.config_json else {}

    @property
    def adapter(self) -> dict:
        """adapter_config.json parsed, a fresh dict each time; empty where this is no adapter."""
        return parse_config(self.adapter_json) if self.adapter_json else {}

    @cached_property
    def by_name(self) -> Mapping[str, TensorInfo]:
        """Stored tensors by name, aliases not among them; shared, not to be changed."""
        return {tensor.name: tensor for tensor in self.tensors}

    @property
    def n_parameters(self) -> int:
        """Stored floating-point values; integer tensors (buffers, packed quantised weights) are not counted."""
        return sum(tensor.n_elements for tensor in self.tensors if tensor.dtype[0] in "FBC" and tensor.dtype != "BOOL")
