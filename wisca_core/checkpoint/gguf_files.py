"""A GGUF file (llama.cpp) to be looked at: its header checked before anything is believed, its names as transformers
spells them, its blocks unpacked by the gguf package when they are read.

Header: "GGUF", version, number of tensors, number of keys; keys with typed values; tensors with name, dimensions
(innermost first), type and offset into the data. Numbers are little-endian.

Not covered: big-endian files, version 1, files in several parts, architectures without a row in FAMILIES (their tensors
are listed under their own names).
"""

import json
import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from wisca_core.checkpoint.checkpoint import Checkpoint, Recipe, TensorInfo
from wisca_core.errors import UnreadableInput, UnsupportedCheckpoint
from wisca_core.untrusted import locate, name_fault, open_regular, printable, read_exactly, refuse_lookalike

MAX_TENSORS, MAX_KEYS, MAX_AXES = 200_000, 100_000, 8
MAX_TEXTS = 4_000_000  # of one array, each walked over; the largest vocabularies and merges hold under a million
MAX_KEPT_TEXT = 4096  # bytes of a text value that is kept; longer ones (chat templates) are passed over
_AGAIN = "Download the file again."

# type number of a value -> (bytes, struct letter); text and arrays are read on their own
_SCALARS = {
    0: (1, "B"),
    1: (1, "b"),
    2: (2, "H"),
    3: (2, "h"),
    4: (4, "I"),
    5: (4, "i"),
    6: (4, "f"),
    7: (1, "?"),
    10: (8, "Q"),
    11: (8, "q"),
    12: (8, "d"),
}
_TEXT, _ARRAY = 8, 9
_PLAIN = {
    0: "F32",
    1: "F16",
    24: "I8",
    25: "I16",
    26: "I32",
    27: "I64",
    28: "F64",
    30: "BF16",
}  # ggml types stored as numbers


@dataclass(frozen=True)
class GgufFamily:
    """``model_type`` of transformers; ``reordered``: the converter interleaves the two halves of every head of q and
    k.
    """

    model_type: str
    reordered: bool = False


# general.architecture -> what it is in transformers. gemma3 is left out: its gains are stored plus one.
FAMILIES = {
    "llama": GgufFamily("llama", reordered=True),
    "qwen2": GgufFamily("qwen2"),
    "qwen3": GgufFamily("qwen3"),
    "gemma": GgufFamily("gemma"),
    "gemma2": GgufFamily("gemma2"),
}
_LAYER = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
# key of config.json -> key of the file below its architecture
_CONFIG = {
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "intermediate_size": "feed_forward_length",
    "max_position_embeddings": "context_length",
    "rope_theta": "rope.freq_base",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
}


def read_gguf(folder: Path, name: str, source: str) -> Checkpoint:
    """The GGUF file ``name`` in a folder (a real path), to be looked at.

    Raises UnreadableInput naming what is wrong with the file, UnsupportedCheckpoint where it is one of several parts or
    the gguf package is missing.
    """
    sizes = _block_sizes()
    path, what = locate(folder, name), printable(folder / name)
    with open_regular(path) as file:
        status = os.fstat(file.fileno())
        start = read_exactly(file, min(status.st_size, 512), what)
    _refuse_other_files(start, status.st_size, what)
    with path.open("rb") as buffered:
        header = _Header(buffered, status.st_size, what)
        keys, entries, data = header.read()
    if keys.get("split.count", 1) != 1:
        raise UnsupportedCheckpoint(
            f"{what}: one of {printable(keys['split.count'], 20)} parts of a GGUF model, which are not joined here. "
            "Join them with llama-gguf-split first."
        )
    stored = tuple(_tensor_info(entry, name, data, status.st_size, sizes, what) for entry in entries)
    _check_layout(stored, what)
    arch = str(keys.get("general.architecture", ""))
    family = FAMILIES.get(arch)
    config = _config(keys, arch, family)
    tensors, recipes = _view(stored, entries, config if family else {}, family)
    kinds = sorted({_type_name(kind) for _, _, kind, _ in entries})
    return Checkpoint(
        path=folder,
        source=source,
        kind="gguf",
        config_json=json.dumps(config, indent=2),
        tensors=tuple(sorted(tensors, key=lambda t: (t.file, t.offset, t.name))),
        weight_files=(name,),
        stamps=((status.st_size, status.st_mtime_ns),),
        remarks=tuple(_remarks(arch, family)),
        recipes=tuple(recipes),
        stored=stored,
        look_only=f"a GGUF file (llama.cpp; {', '.join(kinds)}): its values are measured as they unpack, and are never "
        "rescaled. Rescale the original "
        "model and convert it again.",
    )


def _remarks(arch: str, family: GgufFamily | None) -> list[str]:
    if family is None:
        return [
            f"general.architecture is {printable(arch, 60)!r}; its tensors have no names of transformers here and are "
            "listed as they are."
        ]
    return (
        ["llama.cpp's converter interleaves the halves of each query and key head; that is undone here."]
        if family.reordered
        else []
    )


def _block_sizes() -> Mapping[int, tuple[int, int]]:
    try:
        from gguf.constants import GGML_QUANT_SIZES
    except ImportError as error:
        raise UnsupportedCheckpoint(
            "a GGUF file is read with the gguf package, which is not installed: pip install 'wisca[gguf]'."
        ) from error
    return {int(kind): size for kind, size in GGML_QUANT_SIZES.items()}


def _type_name(kind: int) -> str:
    from gguf.constants import GGMLQuantizationType

    return GGMLQuantizationType(kind).name


def _refuse_other_files(start: bytes, size: int, what: str) -> None:
    refuse_lookalike(start if not start.startswith(b"GGUF") else b"", what)
    if not start.startswith(b"GGUF"):
        raise UnreadableInput(
            f"{what}: not a GGUF file: {'it is empty' if not size else 'it does not begin with GGUF'}. {_AGAIN}"
        )
    if len(start) < 8:
        raise UnreadableInput(f"{what}: ends early: a GGUF file of {size} bytes. {_AGAIN}")
    version = int.from_bytes(start[4:8], "little")
    if version not in (2, 3):
        wrong = "big-endian" if int.from_bytes(start[4:8], "big") in (2, 3) else f"version {version}"
        raise UnsupportedCheckpoint(f"{what}: a GGUF file that is {wrong}; version 2 or 3, little-endian, is read.")


class _Header:
    """The header, read forwards; every length is held against what is left of the file before it is used."""

    def __init__(self, file, size: int, what: str):
        self.file, self.size, self.what, self.at = file, size, what, 8
        file.seek(8)

    def read(self) -> tuple[dict[str, object], list[tuple[str, tuple[int, ...], int, int]], int]:
        """(keys with single values, (name, shape, type, offset) of each tensor, first byte of the data)."""
        n_tensors, n_keys = self.number("Q"), self.number("Q")
        for n, most, of in ((n_tensors, MAX_TENSORS, "tensors"), (n_keys, MAX_KEYS, "keys")):
            if n > most:
                self.fail(f"it claims {n:,} {of}, at most {most:,} are read")
        keys: dict[str, object] = {}
        for _ in range(n_keys):
            key = self.name("key")
            value = self.value(self.number("I"), key)
            if value is not None:
                keys[key] = value
        entries, seen = [], set()
        for _ in range(n_tensors):
            name = self.name("tensor")
            n_axes = self.number("I")
            if name in seen or not 1 <= n_axes <= MAX_AXES:
                self.fail(
                    f"tensor {printable(name)} is there twice"
                    if name in seen
                    else f"tensor {printable(name)} has {n_axes} axes"
                )
            seen.add(name)
            shape = tuple(self.number("Q") for _ in range(n_axes))[::-1]
            entries.append((name, shape, self.number("I"), self.number("Q")))
        aligned = keys.get("general.alignment", 32)
        if not isinstance(aligned, int) or not 1 <= aligned <= 1 << 20 or aligned & (aligned - 1):
            self.fail(f"general.alignment is {printable(aligned, 20)}, a power of two is needed")
        return keys, entries, -(-self.at // aligned) * aligned

    def fail(self, found: str) -> None:
        raise UnreadableInput(f"{self.what}: the GGUF header is damaged at byte {self.at:,}: {found}. {_AGAIN}")

    def take(self, n: int) -> bytes:
        if n > self.size - self.at:
            self.fail(f"{n:,} bytes are needed, {self.size - self.at:,} are left of the file")
        data = self.file.read(n)
        if len(data) < n:
            self.fail("the file ended while it was read")
        self.at += n
        return data

    def skip(self, n: int) -> None:
        if n > self.size - self.at:
            self.fail(f"{n:,} bytes are needed, {self.size - self.at:,} are left of the file")
        self.file.seek(n, 1)
        self.at += n

    def number(self, letter: str) -> int:
        return struct.unpack(f"<{letter}", self.take(struct.calcsize(letter)))[0]

    def name(self, of: str) -> str:
        n = self.number("Q")
        if n > 65_535:
            self.fail(f"the name of a {of} claims {n:,} bytes")
        text = self.take(n).decode("utf-8", "replace")
        if fault := name_fault(text):
            self.fail(f"the name of a {of}, {printable(text, 60)!r}, {fault}")
        return text

    def value(self, kind: int, key: str) -> object:
        """A number, truth value or short text; None for arrays and long texts, which are passed over."""
        if kind in _SCALARS:
            return self.number(_SCALARS[kind][1])
        if kind == _TEXT:
            return self.text()
        if kind != _ARRAY:
            self.fail(f"the key {printable(key, 60)} has a value of the unknown type {kind}")
        inner, n = self.number("I"), self.number("Q")
        if inner in _SCALARS:
            self.skip(n * _SCALARS[inner][0])
        elif inner == _TEXT:
            if n > MAX_TEXTS or n * 8 > self.size - self.at:
                self.fail(f"the key {printable(key, 60)} claims {n:,} texts")
            for _ in range(n):
                self.skip(self.number("Q"))
        else:
            self.fail(f"the key {printable(key, 60)} is an array of the type {inner}, which is not read")
        return None

    def text(self) -> str | None:
        n = self.number("Q")
        if n > MAX_KEPT_TEXT:
            self.skip(n)
            return None
        return self.take(n).decode("utf-8", "replace")


def _tensor_info(
    entry: tuple, file: str, data: int, size: int, sizes: Mapping[int, tuple[int, int]], what: str
) -> TensorInfo:
    """The tensor as it lies in the file: numbers, or the bytes of each slice along axis 0."""
    name, shape, kind, offset = entry
    if kind not in sizes:
        raise UnreadableInput(f"{what}: tensor {printable(name)} has the unknown type {kind}. {_AGAIN}")
    values, n_bytes = sizes[kind]
    if min(shape) < 1 or math.prod(shape) > 2**48 or shape[-1] % values:
        raise UnreadableInput(
            f"{what}: tensor {printable(name)} has the impossible shape {printable(shape)} for {_type_name(kind)}. "
            f"{_AGAIN}"
        )
    total = math.prod(shape) // values * n_bytes
    if data + offset + total > size:
        raise UnreadableInput(
            f"{what}: ends early: tensor {printable(name)} needs the file to have {data + offset + total:,} bytes, it "
            f"has {size:,}. {_AGAIN}"
        )
    if kind in _PLAIN:
        return TensorInfo(name, _PLAIN[kind], shape, file, data + offset, total)
    first = shape[0] if len(shape) > 1 else 1
    return TensorInfo(name, "U8", (first, total // first), file, data + offset, total)


def _check_layout(stored: tuple[TensorInfo, ...], what: str) -> None:
    position, before = 0, ""
    for tensor in sorted(stored, key=lambda t: t.offset):
        if tensor.offset < position:
            raise UnreadableInput(
                f"{what}: layout invalid: tensor {printable(tensor.name)} overlaps {printable(before)}. {_AGAIN}"
            )
        position, before = tensor.offset + tensor.n_bytes, tensor.name


def _config(keys: Mapping[str, object], arch: str, family: GgufFamily | None) -> dict:
    """config.json as far as the rules need it; one that no rule knows where the architecture has no row."""
    if family is None:
        return {"model_type": f"gguf {arch[:60]}"}
    config: dict = {"model_type": family.model_type}
    for name, key in _CONFIG.items():
        value = keys.get(f"{arch}.{key}")
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            config[name] = value
    return config


def _view(
    stored: tuple[TensorInfo, ...], entries: list[tuple], config: dict, family: GgufFamily | None
) -> tuple[list[TensorInfo], list[tuple[str, Recipe]]]:
    """The tensors under transformers' names and as numbers, and how those are made that do not lie so in the file."""
    tensors, recipes = [], []
    heads = {
        "attn_q": config.get("num_attention_heads"),
        "attn_k": config.get("num_key_value_heads", config.get("num_attention_heads")),
    }
    for tensor, (name, shape, kind, _) in zip(stored, entries):
        new = _transformers_name(name) if family else name
        rows = _rows_of_a_head(name, shape, heads) if family and family.reordered else 0
        if kind not in _PLAIN:
            recipes.append((new, Recipe("gguf", (tensor,), (kind, rows))))
            tensors.append(TensorInfo(new, "F32", shape, tensor.file, tensor.offset, 4 * math.prod(shape)))
            continue
        if rows:
            recipes.append((new, Recipe("reordered", (tensor,), (rows,))))
        tensors.append(TensorInfo(new, tensor.dtype, shape, tensor.file, tensor.offset, tensor.n_bytes))
    return tensors, recipes


def _transformers_name(name: str) -> str:
    """blk.3.attn_q.weight -> model.layers.3.self_attn.q_proj.weight; a name without a counterpart stays."""
    part = name.split(".")
    if len(part) == 4 and part[0] == "blk" and part[2] in _LAYER:
        return f"model.layers.{part[1]}.{_LAYER[part[2]]}.{part[3]}"
    return f"{_OUTSIDE[part[0]]}.{part[1]}" if len(part) == 2 and part[0] in _OUTSIDE else name


def _rows_of_a_head(name: str, shape: tuple[int, ...], heads: Mapping[str, object]) -> int:
    """Rows of one head of q or k, 0 for every other tensor and where the heads do not divide them."""
    part = name.split(".")
    n = heads.get(part[2]) if len(part) == 4 else None
    fits = isinstance(n, int) and n > 0 and shape[0] % n == 0 and shape[0] // n % 2 == 0
    return shape[0] // n if fits else 0
