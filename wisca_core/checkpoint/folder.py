"""Finding the weights of a model folder and looking them through: which files, which tensors, what fits together."""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from wisca_core.checkpoint.checkpoint import Checkpoint, TensorInfo
from wisca_core.checkpoint.distributed import read_distributed
from wisca_core.checkpoint.gguf_files import read_gguf
from wisca_core.checkpoint.nearby import below
from wisca_core.checkpoint.quantised import quantised_view
from wisca_core.checkpoint.safetensors_header import read_header
from wisca_core.checkpoint.torch_files import read_torch_file
from wisca_core.errors import UnreadableInput, UnsupportedCheckpoint
from wisca_core.progress import Progress, silent
from wisca_core.untrusted import check_name, locate, printable, read_json_object
from wisca_core.wrappers import unwrapped_names

MAX_CONFIG_BYTES = 10_000_000
MAX_INDEX_BYTES = 50_000_000  # over half a million tensors

_LOOKED_FOR = "model.safetensors, model.safetensors.index.json, one other .safetensors file, pytorch_model.bin"
ADAPTER_CONFIG = "adapter_config.json"
DCP_METADATA = ".metadata"
_ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")
_SHARD = re.compile(r"-(\d+)-of-(\d+)\.(safetensors|bin|gguf)$")

# (test of a name, what it is and what to do): what people point at that holds no plain weights.
_OTHER_KINDS: tuple[tuple[Callable[[str], bool], type[Exception], str], ...] = (
    (
        lambda name: name == "model_index.json",
        UnsupportedCheckpoint,
        "a diffusers pipeline: open one of its sub-folders (transformer, unet, text_encoder)",
    ),
    (
        lambda name: name.endswith((".h5", ".msgpack", ".onnx")),
        UnsupportedCheckpoint,
        "TensorFlow, Flax or ONNX weights: save the model as safetensors first",
    ),
    (
        lambda name: name.startswith("events.out.tfevents"),
        UnreadableInput,
        "TensorBoard logs of a training run, which hold no weights: give the folder of the trained model",
    ),
)


@dataclass(frozen=True)
class WeightFiles:
    """The files to read, or the index that names them."""

    kind: str
    files: tuple[str, ...] = ()
    index: str | None = None
    remarks: tuple[str, ...] = ()
    adapter: bool = False  # the weights of a LoRA adapter, which stand beside an adapter_config.json


def look_through(folder: Path, file: str | None, source: str, progress: Progress = silent) -> Checkpoint:
    """The checkpoint in ``folder`` (a real path), every header checked; only ``file`` of it where that is given."""
    choice = _choose(folder) if file is None else _choose_file(folder, file)
    if choice.kind == "gguf":
        return read_gguf(folder, choice.files[0], source)
    adapter_json = _adapter_config(folder) if choice.adapter else ""
    config_json = ""
    if os.path.lexists(folder / "config.json"):
        config_json, config = read_json_object(folder, "config.json", MAX_CONFIG_BYTES, unique_keys=False)
        if "" in config:  # transformers would set an attribute of no name, which its own look-ups stumble on
            raise UnreadableInput(
                f"{printable(folder / 'config.json')}: has a key without a name. Download the file again."
            )
    if choice.kind == "dcp":
        return read_distributed(folder, choice.files[0], source, config_json, progress)
    expected = _read_index(folder, choice.index) if choice.index else None
    files = tuple(sorted(set(expected.values()))) if expected is not None else choice.files
    tensors: list[TensorInfo] = []
    aliases: list[tuple[str, str]] = []
    torch_remarks: list[str] = []
    stamps = []
    for k, name in enumerate(files, 1):
        if not os.path.lexists(folder / name):
            raise UnreadableInput(
                f"{printable(folder)}: shard {k} of {len(files)} missing: {printable(name)}, named in {choice.index}, "
                "is not "
                f"in the folder. Download it and put it beside the others."
            )
        if choice.kind == "safetensors":
            header = read_header(folder, name)
        else:
            header = read_torch_file(folder, name)
            aliases.extend(header.aliases)
            torch_remarks.extend(header.remarks)
        tensors.extend(header.tensors)
        stamps.append((header.size, header.mtime_ns))
        progress("looking through the weight files", k, len(files))
    differing, twice = (), ""
    if expected is not None:
        tensors, twice = _each_once(tensors, expected)
        file_of = {tensor.name: tensor.file for tensor in tensors}
        found = file_of | {name: file_of[owner] for name, owner in aliases if owner in file_of}
        differing = _index_differences(choice.index, expected, found)
    wrapped = unwrapped_names([tensor.name for tensor in tensors] + [name for name, _ in aliases])
    if wrapped:
        tensors = [replace(tensor, name=wrapped.get(tensor.name, tensor.name)) for tensor in tensors]
        aliases = [(wrapped.get(name, name), wrapped.get(owner, owner)) for name, owner in aliases]
        torch_remarks.append(_without_wrappers(wrapped))
    empty = [tensor.name for tensor in tensors if not tensor.n_elements]
    remarks = [*choice.remarks, *torch_remarks, *differing]
    if empty:
        more = f" and {len(empty) - 5} more" if len(empty) > 5 else ""
        remarks.append(f"Skipped, they hold no values: {', '.join(printable(name) for name in empty[:5])}{more}.")
    if not tensors:
        raise UnreadableInput(
            f"{printable(folder)}: {', '.join(files)} holds no tensors. Give a folder with model weights."
        )
    return quantised_view(
        Checkpoint(
            path=folder,
            source=source,
            kind=choice.kind,
            config_json=config_json,
            tensors=tuple(sorted(tensors, key=lambda tensor: (tensor.file, tensor.offset, tensor.name))),
            weight_files=files,
            index_file=choice.index,
            aliases=tuple(aliases),
            stamps=tuple(stamps),
            remarks=tuple(remarks),
            adapter_json=adapter_json,
            look_only=twice,
            is_unwrapped=bool(wrapped),
        )
    )


def _without_wrappers(wrapped: dict[str, str]) -> str:
    name, plain = next(iter(wrapped.items()))
    return (
        f"The names are read without what wrappers (DDP, torch.compile, FSDP) put into them: {printable(name)} as "
        f"{printable(plain)}. transformers itself does not load the file."
    )


def _adapter_config(folder: Path) -> str:
    if not os.path.lexists(folder / ADAPTER_CONFIG):
        raise UnreadableInput(
            f"{printable(folder)}: the weights of an adapter without {ADAPTER_CONFIG}, which says what they adapt. "
            f"Put the adapter's own {ADAPTER_CONFIG} beside them."
        )
    return read_json_object(folder, ADAPTER_CONFIG, MAX_CONFIG_BYTES, unique_keys=False)[0]


def _choose(folder: Path) -> WeightFiles:
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise UnreadableInput(
            f"{printable(folder)}: cannot be listed: {error.strerror}. Check its permissions."
        ) from None
    try:
        return choose(names, printable(folder))
    except UnreadableInput as error:
        parts = [
            name
            for name in names[:1000]
            if os.path.lexists(folder / name / DCP_METADATA) and not name.startswith("optim")
        ]
        if len(parts) == 1:  # as accelerate leaves them: pytorch_model_fsdp_0 beside optimizer_0
            return WeightFiles("dcp", (f"{parts[0]}/{DCP_METADATA}",))
        for kind in ("model", "adapter"):
            inside = [near.path.name for near in below(folder) if near.kind == kind]
            if inside:
                more = " How the checkpoints of one training moved, wisca trajectory says." if kind == "model" else ""
                raise UnreadableInput(
                    f"{printable(folder)}: no weights of its own; there are {kind}s in {_name_list(inside)}. Open one "
                    "of "
                    f"them.{more}"
                ) from error
        raise


def choose(names: Sequence[str], what: str) -> WeightFiles:
    """Which of the file names of a folder are the weights: safetensors before torch, a whole file before shards.

    Raises where none are, or where it cannot be told; the message begins with ``what``.
    """
    names = [name for name in names if not name.startswith("._")]  # macOS leaves these beside every copied file
    safe = [name for name in names if name.endswith(".safetensors") and name not in _ADAPTERS]
    safe_index = [name for name in names if name.endswith(".safetensors.index.json")]
    if "model.safetensors" in safe:
        choice = WeightFiles("safetensors", ("model.safetensors",))
    elif "model.safetensors.index.json" in safe_index:
        choice = WeightFiles("safetensors", index="model.safetensors.index.json")
    elif len(safe_index) == 1:
        choice = WeightFiles("safetensors", index=safe_index[0])
    elif len(safe) == 1 and not _is_shard(safe[0]):
        choice = WeightFiles("safetensors", (safe[0],))
    elif safe:
        raise UnreadableInput(
            f"{what}: {len(safe)} .safetensors files ({_name_list(safe)}) and no single index that says how they "
            "belong "
            f"together. Add model.safetensors.index.json, or give the path of one file."
        )
    elif "pytorch_model.bin" in names:
        choice = WeightFiles("torch", ("pytorch_model.bin",))
    elif "pytorch_model.bin.index.json" in names:
        choice = WeightFiles("torch", index="pytorch_model.bin.index.json")
    elif DCP_METADATA in names:
        choice = WeightFiles("dcp", (DCP_METADATA,))
    elif gguf := [name for name in names if name.endswith(".gguf")]:
        if len(gguf) > 1 or _is_shard(gguf[0]):
            raise UnsupportedCheckpoint(
                f"{what}: {len(gguf)} GGUF files ({_name_list(gguf)}), copies or parts of a model. Give the path of "
                "one whole file."
            )
        choice = WeightFiles("gguf", tuple(gguf))
    elif adapter := next((name for name in _ADAPTERS if name in names), None):
        choice = _adapter_choice(adapter)
    elif ADAPTER_CONFIG in names:
        raise UnreadableInput(
            f"{what}: {ADAPTER_CONFIG} without the adapter's weights ({' or '.join(_ADAPTERS)}). Download them too."
        )
    else:
        raise _no_weights(what, names)
    stem = choice.index.partition(".")[0] if choice.index else None
    passed_over = [
        name
        for name in names
        if (name.endswith(".safetensors") or name.startswith("pytorch_model") and name.endswith(".bin"))
        and name not in choice.files
        and not (stem and name.startswith(f"{stem}-"))
    ]
    remarks = []
    if passed_over:
        remarks.append(f"Read from {choice.index or choice.files[0]}; not looked at: {_name_list(passed_over)}.")
    if ADAPTER_CONFIG in names and not choice.adapter:
        remarks.append(
            f"A LoRA adapter lies in this folder ({ADAPTER_CONFIG}). It fits these weights only as they are: rescale "
            "both "
            f"together (--adapter), or the pair breaks."
        )
    return replace(choice, remarks=tuple(remarks))


def _adapter_choice(name: str) -> WeightFiles:
    return WeightFiles("safetensors" if name.endswith(".safetensors") else "torch", (name,), adapter=True)


def _choose_file(folder: Path, name: str) -> WeightFiles:
    if name == ADAPTER_CONFIG:
        name = next((one for one in _ADAPTERS if os.path.lexists(folder / one)), _ADAPTERS[0])
    if name in _ADAPTERS:
        return _adapter_choice(name)
    for test, error, words in _OTHER_KINDS:
        if test(name):
            raise error(f"{printable(folder / name)}: this is {words}.")
    if _is_shard(name):
        raise UnreadableInput(
            f"{printable(folder / name)}: this is one shard of several, not the whole model. "
            f"Give the folder instead: {printable(folder)}."
        )
    if name.endswith(".safetensors"):
        return WeightFiles("safetensors", (name,))
    if name.endswith(".gguf"):
        return WeightFiles("gguf", (name,))
    if name == DCP_METADATA or name.endswith(".distcp"):
        return WeightFiles("dcp", (DCP_METADATA,))
    if name.endswith((".bin", ".pt", ".pth", ".ckpt")):
        return WeightFiles("torch", (name,))
    locate(folder, name)
    raise UnreadableInput(
        f"{printable(folder / name)}: not a weight file. Expected a .safetensors (or torch .bin) file, "
        f"or the model's folder."
    )


def _is_shard(name: str) -> bool:
    match = _SHARD.search(name)
    return bool(match) and int(match[2]) > 1


def _no_weights(what: str, names: Sequence[str]) -> Exception:
    for test, error, words in _OTHER_KINDS:
        if any(test(name) for name in names):
            return error(f"{what}: no model weights; this is {words}.")
    there = f"it has {_name_list(names)}" if names else "it is empty"
    return UnreadableInput(f"{what}: no model weights: looked for {_LOOKED_FOR}; {there}. Give the model's folder.")


def _name_list(names: Sequence[str], limit: int = 6) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(printable(name, 60) for name in names[:limit]) + more


def _read_index(folder: Path, index: str) -> dict[str, str]:
    """{tensor: file} of an index file; the file names are plain and relative."""
    _, content = read_json_object(folder, index, MAX_INDEX_BYTES)
    what = printable(folder / index)
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UnreadableInput(f"{what}: has no weight_map with tensor names and files. Download it again.")
    for tensor, file in weight_map.items():
        if not isinstance(file, str):
            raise UnreadableInput(
                f"{what}: tensor {printable(tensor)} has no file name but {printable(file, 40)}. Download it again."
            )
    for file in sorted(set(weight_map.values())):
        check_name(folder, file)
    return weight_map


def _each_once(tensors: list[TensorInfo], expected: dict[str, str]) -> tuple[list[TensorInfo], str]:
    """(tensors, every name once; why they may only be looked at). Of a name in several shards, the one the index
    means.
    """
    by_name: dict[str, TensorInfo] = {}
    twice = []
    for tensor in tensors:
        if tensor.name in by_name:
            twice.append(tensor.name)
        if tensor.name not in by_name or tensor.file == expected.get(tensor.name):
            by_name[tensor.name] = tensor
    if not twice:
        return tensors, ""
    return list(by_name.values()), (
        f"{_name_list(sorted(set(twice)))} {'is' if len(twice) == 1 else 'are'} in more than one shard, and which of "
        "them a "
        "program reads is not said."
    )


def _index_differences(index: str, expected: dict[str, str], found: dict[str, str]) -> list[str]:
    """Where the index and the shards say different things, in words; what is in the shards is what there is (as
    transformers reads them). ``found``: tensor -> shard.
    """
    absent = sorted(expected.keys() - found.keys())
    unnamed = sorted(found.keys() - expected.keys())
    elsewhere = sorted(name for name in expected.keys() & found.keys() if expected[name] != found[name])
    out = []
    if absent:
        out.append(f"Named in {index} and in no shard: {_name_list(absent)}. What needs them is refused.")
    if unnamed:
        out.append(f"In the shards and not named in {index}: {_name_list(unnamed)}. They are read all the same.")
    if elsewhere:
        out.append(f"In another shard than {index} says: {_name_list(elsewhere)}.")
    return out
