"""Finding the weights of a model folder and looking them through: which files, which tensors, what fits together."""

import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from wisca_core.checkpoint.checkpoint import Checkpoint, TensorInfo
from wisca_core.checkpoint.safetensors_header import read_header
from wisca_core.checkpoint.torch_files import read_torch_file
from wisca_core.checkpoint.untrusted import check_name, locate, read_json_object, shown
from wisca_core.errors import UnreadableInput, UnsafeInput, UnsupportedCheckpoint

MAX_CONFIG_BYTES = 10_000_000
MAX_INDEX_BYTES = 100_000_000

_LOOKED_FOR = "model.safetensors, model.safetensors.index.json, one other .safetensors file, pytorch_model.bin"
_ADAPTER = "adapter_model.safetensors"
_SHARD = re.compile(r"-(\d+)-of-(\d+)\.(safetensors|bin)$")

# (test of a name, what it is and what to do): what people point at that holds no plain weights.
_OTHER_KINDS: tuple[tuple[Callable[[str], bool], type[Exception], str], ...] = (
    (lambda name: name == "adapter_config.json", UnsupportedCheckpoint,
     "a LoRA adapter (adapter_config.json), not a model: merge it into its base model, or open the base model"),
    (lambda name: name.endswith(".gguf"), UnsupportedCheckpoint,
     "a GGUF model (llama.cpp): get the original Hugging Face folder it was converted from"),
    (lambda name: name.endswith(".distcp") or name == ".metadata", UnsafeInput,
     "a PyTorch distributed checkpoint, whose .metadata contains code: refused; convert to safetensors first "
     "(torch.distributed.checkpoint.format_utils.dcp_to_torch_save, where you trust it)"),
    (lambda name: name == "model_index.json", UnsupportedCheckpoint,
     "a diffusers pipeline: open one of its sub-folders (transformer, unet, text_encoder)"),
    (lambda name: name.endswith((".h5", ".msgpack", ".onnx")), UnsupportedCheckpoint,
     "TensorFlow, Flax or ONNX weights: save the model as safetensors first"),
    (lambda name: name.startswith("events.out.tfevents"), UnreadableInput,
     "TensorBoard logs of a training run, which hold no weights: give the folder of the trained model"),
)  # fmt: skip

Progress = Callable[[int, int, str], None]  # (done, total, what is being done)


@dataclass(frozen=True)
class _Choice:
    kind: str
    files: tuple[str, ...] = ()
    index: str | None = None
    remarks: tuple[str, ...] = ()


def open_checkpoint(model: str | Path, *, progress: Progress | None = None) -> Checkpoint:
    """Looks a checkpoint through without reading its weights.

    ``model``: a folder, one weight file beside its config.json, or ``hub:owner/name[@revision]``; anything that does
    not begin with ``hub:`` is a path. ``progress`` is called as (done, total, words): files while they are looked
    through, bytes during a download.

    Raises UnreadableInput (UnsafeInput, HubError) or UnsupportedCheckpoint; nothing is ever executed or guessed.
    """
    source = os.fspath(model)
    if source.startswith("hub:"):
        from wisca_core.checkpoint.hub import download  # slow to import, and rarely wanted

        return _look_through(download(source, progress=progress), None, source, progress)
    if not source or "\0" in source:
        raise UnreadableInput("the model path is empty or has a zero byte. Give a model folder.")
    path = Path(source).expanduser()
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        hint = f" For a model on the hub write hub:{source}." if re.fullmatch(r"[\w.-]+/[\w.-]+", source) else ""
        raise UnreadableInput(
            f"{shown(source)}: cannot be opened: {error.strerror}. Give a model folder, a .safetensors file beside its "
            f"config.json, or hub:owner/name.{hint}"
        ) from None
    if stat.S_ISDIR(mode):
        return _look_through(Path(os.path.realpath(path)), None, source, progress)
    path = path.absolute()
    return _look_through(Path(os.path.realpath(path.parent)), path.name, source, progress)


def _look_through(folder: Path, file: str | None, source: str, progress: Progress | None) -> Checkpoint:
    choice = _choose(folder) if file is None else _choose_file(folder, file)
    config_json = ""
    if os.path.lexists(folder / "config.json"):
        config_json, _ = read_json_object(folder, "config.json", MAX_CONFIG_BYTES, unique_keys=False)
    expected = _read_index(folder, choice.index) if choice.index else None
    files = tuple(sorted(set(expected.values()))) if expected is not None else choice.files
    tensors: list[TensorInfo] = []
    aliases: list[tuple[str, str]] = []
    stamps = []
    for k, name in enumerate(files, 1):
        if not os.path.lexists(folder / name):
            wanted = f"named in {choice.index}; " if choice.index else ""
            raise UnreadableInput(
                f"{shown(folder)}: shard {k} of {len(files)} missing: {shown(name)} ({wanted}it is not in the folder). "
                f"Download it and put it beside the others."
            )
        path = locate(folder, name)
        if choice.kind == "safetensors":
            header = read_header(path, name)
        else:
            header = read_torch_file(path, name)
            aliases.extend(header.aliases)
        tensors.extend(header.tensors)
        stamps.append((header.size, header.mtime_ns))
        if progress:
            progress(k, len(files), "looking through the weight files")
    if expected is not None:
        file_of = {tensor.name: tensor.file for tensor in tensors}
        found = [(tensor.name, tensor.file) for tensor in tensors] + [(name, file_of[owner]) for name, owner in aliases]
        _compare_with_index(folder, choice.index, expected, found)
    empty = [tensor.name for tensor in tensors if not tensor.n_elements]
    remarks = list(choice.remarks)
    if empty:
        more = f" and {len(empty) - 5} more" if len(empty) > 5 else ""
        remarks.append(f"Skipped, they hold no values: {', '.join(shown(name) for name in empty[:5])}{more}.")
    if not tensors:
        raise UnreadableInput(f"{shown(folder)}: {', '.join(files)} holds no tensors. Give a folder with model weights.")
    return Checkpoint(
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
    )


def _choose(folder: Path) -> _Choice:
    """Which files of the folder are the weights; safetensors before torch, a whole file before shards."""
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise UnreadableInput(f"{shown(folder)}: cannot be listed: {error.strerror}. Check its permissions.") from None
    present = set(names)
    safe = [name for name in names if name.endswith(".safetensors") and name != _ADAPTER]
    safe_index = [name for name in names if name.endswith(".safetensors.index.json")]
    choice = None
    if "model.safetensors" in present:
        choice = _Choice("safetensors", ("model.safetensors",))
    elif "model.safetensors.index.json" in present:
        choice = _Choice("safetensors", index="model.safetensors.index.json")
    elif len(safe_index) == 1:
        choice = _Choice("safetensors", index=safe_index[0])
    elif len(safe) == 1 and not _is_shard(safe[0]):
        choice = _Choice("safetensors", (safe[0],))
    elif safe:
        raise UnreadableInput(
            f"{shown(folder)}: {len(safe)} .safetensors files ({_listed(safe)}) and no single index that says how they belong "
            f"together. Add model.safetensors.index.json, or give the path of one file."
        )
    elif "pytorch_model.bin" in present:
        choice = _Choice("torch", ("pytorch_model.bin",))
    elif "pytorch_model.bin.index.json" in present:
        choice = _Choice("torch", index="pytorch_model.bin.index.json")
    if choice is None:
        raise _no_weights(folder, names)
    passed_over = [
        name
        for name in names
        if name != choice.index and name not in choice.files
        and (name.endswith(".safetensors") and not choice.index or name.startswith("pytorch_model.bin"))
    ]  # fmt: skip
    if passed_over:
        read = choice.index or choice.files[0]
        return _Choice(choice.kind, choice.files, choice.index, (f"Read from {read}; not looked at: {_listed(passed_over)}.",))
    return choice


def _choose_file(folder: Path, name: str) -> _Choice:
    for test, error, words in _OTHER_KINDS:
        if test(name) or name == _ADAPTER and test("adapter_config.json"):
            raise error(f"{shown(folder / name)}: this is {words}.")
    if _is_shard(name):
        raise UnreadableInput(
            f"{shown(folder / name)}: this is one shard of several, not the whole model. Give the folder instead: {shown(folder)}"
        )
    if name.endswith(".safetensors"):
        return _Choice("safetensors", (name,))
    if name.endswith((".bin", ".pt", ".pth")):
        return _Choice("torch", (name,))
    locate(folder, name)
    raise UnreadableInput(
        f"{shown(folder / name)}: not a weight file. Expected a .safetensors (or torch .bin) file, or the model's folder."
    )


def _is_shard(name: str) -> bool:
    match = _SHARD.search(name)
    return bool(match) and int(match[2]) > 1


def _no_weights(folder: Path, names: list[str]) -> Exception:
    for test, error, words in _OTHER_KINDS:
        if any(test(name) for name in names):
            return error(f"{shown(folder)}: no model weights; this is {words}.")
    there = f"it has {_listed(names)}" if names else "it is empty"
    return UnreadableInput(f"{shown(folder)}: no model weights: looked for {_LOOKED_FOR}; {there}. Give the model's folder.")


def _listed(names: list[str], limit: int = 6) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(shown(name, 60) for name in names[:limit]) + more


def _read_index(folder: Path, index: str) -> dict[str, str]:
    """{tensor: file} of an index file; the file names are checked by ``locate`` before anything is opened."""
    _, content = read_json_object(folder, index, MAX_INDEX_BYTES)
    what = shown(folder / index)
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UnreadableInput(f"{what}: has no weight_map with tensor names and files. Download it again.")
    for tensor, file in weight_map.items():
        if not isinstance(file, str):
            raise UnreadableInput(f"{what}: tensor {shown(tensor)} has no file name but {shown(file, 40)}. Download it again.")
    for file in sorted(set(weight_map.values())):
        check_name(folder, file)
    return weight_map


def _compare_with_index(folder: Path, index: str, expected: dict[str, str], found: list[tuple[str, str]]) -> None:
    """``found``: (tensor, file) of every tensor in the shards. Neither side may have one the other does not."""
    what = shown(folder / index)
    for tensor, file in expected.items() - set(found):
        raise UnreadableInput(
            f"{what}: tensor {shown(tensor)} is in the index but not in its shard {shown(file)}. "
            f"The index and the shards do not belong together: download the folder again."
        )
    for tensor, file in set(found) - expected.items():
        raise UnreadableInput(
            f"{what}: tensor {shown(tensor)} is in the shard {shown(file)} but not under it in the index. "
            f"The index and the shards do not belong together: download the folder again."
        )
