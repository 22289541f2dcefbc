"""A distributed checkpoint (torch.distributed.checkpoint): a folder of ``.metadata`` and ``__0_0.distcp`` files.

``.metadata`` is a pickle, and unpickling it runs whatever it says; here it is read as data, against an exact list of
the names that torch itself writes. It gives, for every tensor, its shape and chunks, and for every chunk a range of
bytes in which torch.save wrote one plain tensor. Nothing of the optimiser is read. A tensor is put together from its
chunks when it is read.

Not covered: compressed chunks, chunks written as safetensors, state that other libraries add as objects of their own.
"""

import math
import os
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from wisca_core.checkpoint.checkpoint import DTYPE_BITS, TORCH_NAMES, Checkpoint, Recipe, TensorInfo
from wisca_core.checkpoint.inert_pickle import NotPlain, Rules, interpret
from wisca_core.checkpoint.safetensors_header import MAX_AXES
from wisca_core.checkpoint.torch_files import read_torch_tensor, without_wrapper
from wisca_core.errors import UnreadableInput, UnsafeInput
from wisca_core.progress import Progress, silent
from wisca_core.untrusted import locate, name_fault, open_regular, printable, read_exactly

MAX_METADATA_BYTES = 200_000_000
MAX_CHUNKS = 4096  # of one tensor
_OPTIMISER = ("optim", "optimizer", "optimizers", "optimiser", "opt")
_METADATA, _FILES = "torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem"
_OF_METADATA = (
    "Metadata",
    "TensorStorageMetadata",
    "TensorProperties",
    "ChunkStorageMetadata",
    "BytesStorageMetadata",
    "MetadataIndex",
    "StorageMeta",
)
_OBJECTS = (*_OF_METADATA, "_StorageInfo")
# (module, name) -> what it is here; whatever else a pickle asks for is refused
_KNOWN = {
    **{(_METADATA, name): name for name in (*_OF_METADATA, "_MEM_FORMAT_ENCODING")},
    (_FILES, "_StorageInfo"): "_StorageInfo",
    ("torch", "Size"): "Size",
    ("torch.serialization", "_get_layout"): "layout",
    ("collections", "OrderedDict"): "dict",
    **{
        (module, name): "path"
        for module in ("pathlib", "pathlib._local")
        for name in ("PosixPath", "WindowsPath", "Path", "PurePosixPath")
    },
    **{("torch", of_torch): f"dtype {name}" for name, of_torch in TORCH_NAMES.items()},
}


@dataclass(frozen=True)
class _KnownName:
    what: str


@dataclass(eq=False)
class _Object:
    """An object of the metadata by the name of its class; ``state`` as the pickle gave it."""

    what: str
    state: object = None

    def get(self, name: str) -> object:
        return self.state.get(name) if type(self.state) is dict else None


def read_distributed(
    folder: Path, metadata: str, source: str, config_json: str, progress: Progress = silent
) -> Checkpoint:
    """The checkpoint whose ``.metadata`` file is ``metadata`` (a name relative to the real path ``folder``).

    Raises UnsafeInput where the metadata is more than data or leads out of the folder, UnreadableInput where it is
    damaged, or a chunk is missing, overlaps another or is not what it says.
    """
    what = printable(folder / metadata)
    path = locate(folder, metadata)
    with open_regular(path) as file:
        status = os.fstat(file.fileno())
        if status.st_size > MAX_METADATA_BYTES:
            raise UnreadableInput(f"{what}: is {status.st_size} bytes, at most {MAX_METADATA_BYTES} are read.")
        raw = read_exactly(file, status.st_size, what)
    try:
        tensors, places = _tensors_and_places(interpret(raw, _RULES))
    except NotPlain as error:
        raise UnsafeInput(
            f"{what}: contains code: refused ({error}). Convert it to safetensors on a machine where you trust it."
        ) from None
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise UnreadableInput(f"{what}: damaged ({printable(repr(error))}). Copy the folder again.") from None
    model = _of_the_model(tensors)
    if not model:
        raise UnreadableInput(
            f"{what}: describes no tensor of a model. Give the folder with the model's part of the checkpoint."
        )
    below = metadata.rpartition("/")[0]
    bare = {name: name.removeprefix("app.") for name in model}
    new = without_wrapper(list(bare.values()))
    new = {name: new.get(short, short) for name, short in bare.items()}
    view, recipes, files = [], [], {metadata: (status.st_size, status.st_mtime_ns)}
    for number, (name, (dtype, shape, chunks)) in enumerate(sorted(model.items())):
        progress("looking through the chunks", number, len(model))
        if fault := name_fault(name):
            raise UnreadableInput(f"{what}: the tensor name {printable(name, 80)!r} {fault}.")
        parts = [_part(folder, below, name, dtype, chunk, places, files, what) for chunk in chunks]
        _check_tiling(name, shape, chunks, what)
        n_bytes = sum(part.n_bytes for part in parts)
        view.append(TensorInfo(new[name], dtype, shape, metadata, number, n_bytes))
        recipes.append((new[name], Recipe("shards", tuple(parts), tuple(n for offset, _ in chunks for n in offset))))
    if len({tensor.name for tensor in view}) != len(view):
        raise UnreadableInput(f"{what}: two tensors have one name.")
    others = sorted({name.removeprefix("app.").split(".")[0] for name in tensors if name not in model})
    remarks = [f"A distributed checkpoint: {len(view):,} tensors in {len(files) - 1:,} files; exported as safetensors."]
    if others:
        remarks.append(f"Not read, they are not of the model: {', '.join(printable(o, 40) for o in others)}.")
    return Checkpoint(
        path=folder,
        source=source,
        kind="dcp",
        config_json=config_json,
        tensors=tuple(view),
        weight_files=tuple(files),
        stamps=tuple(files.values()),
        remarks=tuple(remarks),
        recipes=tuple(recipes),
        stored=tuple(part for _, recipe in recipes for part in recipe.parts),
    )


def _of_the_model(tensors: dict) -> dict:
    """Without the optimiser, and without what a trainer keeps beside its "model" entry."""
    short = {name: name.removeprefix("app.") for name in tensors}
    kept = [name for name in tensors if short[name].split(".")[0] not in _OPTIMISER]
    nested = any(short[name].startswith(("model.model.", "model.lm_head.", "model.transformer.")) for name in kept)
    return {name: tensors[name] for name in kept if not nested or short[name].startswith("model.")}


def _look_up(module: object, name: object) -> _KnownName:
    if type(module) is not str or type(name) is not str or (module, name) not in _KNOWN:
        raise NotPlain(f"it asks for {printable(module, 60)}.{printable(name, 60)}")
    return _KnownName(_KNOWN[module, name])


def _call(function: object, arguments: object) -> object:
    if type(function) is not _KnownName or type(arguments) is not tuple:
        raise NotPlain("it calls something unknown")
    match function.what:
        case "Size" if len(arguments) == 1 and type(arguments[0]) in (tuple, list):
            if len(arguments[0]) > MAX_AXES:  # each call is a copy: a list of thousands, named thousands of times
                raise ValueError(f"a shape of {len(arguments[0])} axes, at most {MAX_AXES} are allowed")
            return tuple(arguments[0])
        case "dict" if not arguments:
            return {}
        case "layout" | "_MEM_FORMAT_ENCODING" | "path":
            return _Object(function.what, arguments)
        case kind if kind in _OBJECTS and not arguments:
            return _Object(kind)
    raise NotPlain(f"it calls {function.what} with {len(arguments)} arguments")


def _new(kind: object, arguments: object) -> object:
    if type(kind) is _KnownName and kind.what in ("Size", *_OBJECTS):
        return _call(kind, arguments)
    raise NotPlain("it makes an object of an unknown class")


def _build(target: object, state: object) -> None:
    if type(target) is not _Object or target.what not in _OBJECTS:
        raise NotPlain("it gives a state to something that has none")
    target.state = (
        state[1] if type(state) is tuple and len(state) == 2 and state[0] is None and type(state[1]) is dict else state
    )


def _key(key: object) -> object:
    if type(key) in (str, int) or type(key) is _Object and key.what == "MetadataIndex":
        return key
    raise ValueError(f"a dict key that is a {type(key).__name__}")


def _inside(record: object) -> tuple:
    return (record.state,) if type(record) is _Object else ()


_RULES = Rules(_look_up, _call, _key, _build, new=_new, inside=_inside)


def _tensors_and_places(found: object) -> tuple[dict, dict]:
    """({tensor: (dtype, shape, ((offset, size), ...))}, {(tensor, offset): (file, first byte, bytes)})."""
    if type(found) is not _Object or found.what != "Metadata":
        raise ValueError("it is no metadata of a checkpoint")
    tensors = {}
    for name, one in found.get("state_dict_metadata").items():
        if one.what != "TensorStorageMetadata":
            continue
        properties = one.get("properties").state
        dtype = properties[0] if type(properties) is tuple else properties["dtype"]
        dtype = (
            dtype.what.removeprefix("dtype ") if type(dtype) is _KnownName and dtype.what.startswith("dtype ") else ""
        )
        shape = _numbers(one.get("size"))
        chunks = tuple((_numbers(chunk.get("offsets")), _numbers(chunk.get("sizes"))) for chunk in one.get("chunks"))
        if type(name) is not str or dtype not in DTYPE_BITS or not 1 <= len(chunks) <= MAX_CHUNKS:
            raise ValueError(f"tensor {printable(name, 80)} has no known dtype, or {len(chunks)} chunks")
        tensors[name] = (dtype, shape, chunks)
    places = {}
    for index, info in (found.get("storage_data") or {}).items():
        if type(index) is not _Object or info.what != "_StorageInfo":
            raise ValueError("a chunk without a place")
        if info.get("transform_descriptors"):
            raise NotPlain("its chunks are compressed or encrypted")
        offset = index.get("offset")
        place = (info.get("relative_path"), info.get("offset"), info.get("length"))
        if type(place[0]) is not str or type(place[1]) is not int or type(place[2]) is not int:
            raise ValueError("a place that is no file with a range of bytes")
        name = index.get("fqn")
        if type(name) is not str:
            raise ValueError("a chunk whose tensor has no name")
        places[name, None if offset is None else _numbers(offset)] = place
    return tensors, places


def _numbers(value: object) -> tuple[int, ...]:
    if (
        type(value) is not tuple
        or len(value) > MAX_AXES
        or any(type(n) is not int or not 0 <= n < 2**48 for n in value)
    ):
        raise ValueError("a size or offset that is no tuple of numbers")
    return value


def _part(
    folder: Path, below: str, name: str, dtype: str, chunk: tuple, places: dict, files: dict, what: str
) -> TensorInfo:
    """One chunk as it lies in its file, checked against what the metadata says of it; its file is noted in
    ``files``.
    """
    offset, size = chunk
    if (name, offset) not in places:
        raise UnreadableInput(
            f"{what}: the chunk of {printable(name)} at {printable(offset)} has no place. Copy the folder again."
        )
    file, first, length = places[name, offset]
    file = f"{below}/{file}" if below else file
    if file not in files:
        path = locate(folder, file)
        status = path.stat()
        files[file] = (status.st_size, status.st_mtime_ns)
    part = read_torch_tensor(folder, file, first, length, name)
    if (part.dtype, part.shape) != (dtype, size):
        raise UnreadableInput(
            f"{what}: the chunk of {printable(name)} at {printable(offset)} is {part.dtype} {part.shape}, expected "
            f"{dtype} {size}."
        )
    return part


def _check_tiling(name: str, shape: tuple[int, ...], chunks: tuple, what: str) -> None:
    """The chunks lie inside the tensor, do not overlap, and together are all of it."""
    covered = 0
    for offset, size in chunks:
        if (
            len(offset) != len(shape)
            or len(size) != len(shape)
            or any(o + n > whole for o, n, whole in zip(offset, size, shape))
        ):
            raise UnreadableInput(
                f"{what}: a chunk of {printable(name)} at {printable(offset)} lies outside its shape "
                f"{printable(shape)}."
            )
        covered += math.prod(size)
    boxes = sorted(chunks)
    along_first = all(a[0][:1] != b[0][:1] for a, b in pairwise(boxes))
    pairs = pairwise(boxes) if along_first else ((a, b) for i, a in enumerate(boxes) for b in boxes[i + 1 :])
    overlap = (
        any(all(o < p + m and p < o + n for (o, n), (p, m) in zip(zip(*a), zip(*b))) for a, b in pairs)
        if shape
        else len(boxes) > 1
    )
    if overlap or covered != math.prod(shape):
        raise UnreadableInput(
            f"{what}: the chunks of {printable(name)} "
            f"{'overlap' if overlap else f'hold {covered:,} of {math.prod(shape):,} values'}. Copy the folder again."
        )
