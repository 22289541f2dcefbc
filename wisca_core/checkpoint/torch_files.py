"""A torch ``.bin`` file as names, shapes and byte positions; nothing in it is executed and no tensor is read.

``torch.save`` writes a zip of uncompressed records: ``data.pkl`` and one record a storage, ``data/<key>``, whose bytes
lie in the file as they lie in memory. A pickle is a program. ``torch.load(weights_only=True)`` runs it with an
allow-list, but builds real storages and does not say where in the file they came from; so the few instructions that
describe a dict of plain tensors are interpreted here, into inert records, and all others are refused.
"""

import io
import math
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path

from wisca_core.checkpoint.checkpoint import DTYPE_BITS, TORCH_NAMES, TensorInfo
from wisca_core.checkpoint.inert_pickle import NotPlain, Rules, interpret
from wisca_core.checkpoint.safetensors_header import MAX_AXES
from wisca_core.errors import UnreadableInput, UnsafeInput
from wisca_core.untrusted import locate, name_fault, open_regular, printable, read_exactly, refuse_lookalike
from wisca_core.wrappers import unwrapped_names

MAX_PICKLE_BYTES = 100_000_000
MAX_DIRECTORY_BYTES = 20_000_000  # about 80 bytes a storage
_MAX_ELEMENTS = 2**63 - 1

MODEL_KEYS = ("state_dict", "model_state_dict", "model", "module")  # where a training checkpoint keeps its model
# Works on what is refused here: whole models, programs, training checkpoints, the formats before 1.6.
_CONVERT = (
    "If you trust the file, convert it, which runs the code in it: python -c "
    '"import torch; from safetensors.torch import save_file; '
    "d = torch.load('FILE', map_location='cpu', weights_only=False); d = d.state_dict() if hasattr(d, 'state_dict') "
    "else d; "
    f"d = next((d[k] for k in {MODEL_KEYS} if isinstance(d.get(k), dict)), d); "
    "save_file({k: t.detach().clone().contiguous() for k, t in d.items() if torch.is_tensor(t)}, 'model.safetensors')\""
)
# first parts of names inside a transformers model: behind them, "model." is the model's own and no wrapper's
_INNER = ("layers", "embed_tokens", "decoder", "encoder", "norm", "language_model", "visual", "vision_tower", "shared")

_STORAGES = {
    "DoubleStorage": "F64",
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
    "ComplexFloatStorage": "C64",
}


@dataclass(frozen=True)
class TorchFile:
    """``aliases`` are (name, name of the tensor in ``tensors`` that owns the storage)."""

    tensors: tuple[TensorInfo, ...]
    aliases: tuple[tuple[str, str], ...]
    size: int  # of the whole file, bytes
    mtime_ns: int
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Global:
    """A name the pickle looked up, never the thing itself. ``dtype`` is set for storage classes and torch dtypes."""

    what: str  # dict | tensor_v2 | tensor_v3 | parameter | storage | dtype
    dtype: str = ""  # "" of an untyped storage: the tensor says


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: str
    n_elements: int  # bytes of an untyped one


@dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    dtype: str
    start: int  # elements
    shape: tuple[int, ...]
    stride: tuple[int, ...]


_GLOBALS: dict[tuple[str, str], _Global] = {
    ("collections", "OrderedDict"): _Global("dict"),
    ("torch._utils", "_rebuild_tensor_v2"): _Global("tensor_v2"),
    ("torch._utils", "_rebuild_tensor_v3"): _Global("tensor_v3"),  # dtypes that have no storage class (fp8, uint16)
    ("torch._utils", "_rebuild_parameter"): _Global("parameter"),
    ("torch.storage", "UntypedStorage"): _Global("storage"),
    **{("torch", name): _Global("storage", dtype) for name, dtype in _STORAGES.items()},
    **{("torch", of_torch): _Global("dtype", name) for name, of_torch in TORCH_NAMES.items()},
}


def read_torch_file(folder: Path, name: str) -> TorchFile:
    """What the torch file ``name`` in a model folder (a real path) holds.

    UnsafeInput where it would run code or hides data (compressed, overlapping records, the formats before torch 1.6),
    UnreadableInput where it is damaged, is not a flat dict of tensors, or a tensor is not stored in row-major order.
    """
    path, what = locate(folder, name), printable(folder / name)
    with open_regular(path) as file:
        status = os.fstat(file.fileno())
        _refuse_other_formats(read_exactly(file, min(status.st_size, 512), what), what)
        records = _records(path, status.st_size, what)
        storages, program = _storages_and_program(file, records, what)
    entries, remarks = _model_part(_program(program, what))
    tensors, aliases = _tensors(entries, records, storages, name, what)
    return TorchFile(tensors, aliases, status.st_size, status.st_mtime_ns, remarks)


def _model_part(entries: object) -> tuple[object, tuple[str, ...]]:
    """The state dict of the model inside a training checkpoint (Lightning and the like), and what is said about it."""
    if type(entries) is not dict:
        return entries, ()
    # tensors may lie beside it: the best loss so far, a mask
    found = [
        key
        for key in MODEL_KEYS
        if type(entries.get(key)) is dict and any(type(value) is _Tensor for value in entries[key].values())
    ]
    if len(found) != 1:
        return entries, ()
    inner = entries[found[0]]
    names = without_wrapper([name for name in inner if type(name) is str])
    others = ", ".join(printable(key, 40) for key in list(entries)[:8] if key != found[0])
    remark = f"Of a training checkpoint, {found[0]!r} was read" + (f"; not looked at: {others}." if others else ".")
    return {names.get(name, name): tensor for name, tensor in inner.items()}, (remark,)


def read_torch_tensor(folder: Path, name: str, start: int, n_bytes: int, key: str) -> TensorInfo:
    """The one tensor that torch.save wrote into ``n_bytes`` from byte ``start`` of the file ``name``; it is called
    ``key``. Raises as ``read_torch_file``.
    """
    path, what = locate(folder, name), f"{printable(folder / name)}, {printable(key)}"
    with open_regular(path) as file:
        if start < 0 or n_bytes < 22 or start + n_bytes > os.fstat(file.fileno()).st_size:
            raise UnreadableInput(
                f"{what}: should lie at bytes {start} to {start + n_bytes}, which the file does not have. Copy it "
                "again."
            )
        records = _records(path, n_bytes, what, start)
        storages, program = _storages_and_program(file, records, what)
    (tensor,) = _tensors({key: _program(program, what)}, records, storages, name, what)[0]
    return tensor


def _program(program: bytes, what: str) -> object:
    try:
        return interpret(program, _RULES)
    except NotPlain as error:
        raise UnsafeInput(f"{what}: contains code: refused ({error}). {_CONVERT}") from None
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise UnreadableInput(
            f"{what}: data.pkl is damaged ({printable(repr(error))}). Download the file again."
        ) from None


def without_wrapper(names: list[str]) -> dict[str, str]:
    """Name -> name as transformers spells it, of those that change: without what wrappers put into it, and without the
    "model." that a trainer's own class put before every one, wrapped in turn.
    """
    bare = unwrapped_names(names)
    out = {name: bare.get(name, name) for name in names}
    own = any(name.split(".")[1:2] and name.split(".")[1] in _INNER for name in out.values())
    if out and not own and all(name.startswith("model.") for name in out.values()):
        out = {name: new.removeprefix("model.") for name, new in out.items()}
        bare = unwrapped_names(out.values())
        out = {name: bare.get(new, new) for name, new in out.items()}
    return {name: new for name, new in out.items() if new != name}


def _refuse_other_formats(start: bytes, what: str) -> None:
    if not start:
        raise UnreadableInput(f"{what}: not a torch file: it is empty. Download the file again.")
    refuse_lookalike(start, what)
    if start.startswith(b"\x80") or start[257:262] == b"ustar":
        raise UnsafeInput(
            f"{what}: the pickle or tar format torch wrote before 1.6, which contains code: refused. {_CONVERT}"
        )
    if start[8:9] == b"{":
        raise UnreadableInput(f"{what}: this looks like a safetensors file. Rename it to .safetensors.")
    if not start.startswith(b"PK\x03\x04"):
        raise UnreadableInput(f"{what}: not a torch file: expected the zip that torch.save writes. Download it again.")


class _BoundedFile(io.FileIO):
    """The bytes ``start`` to ``start + size`` of a file. zipfile reads the directory of a zip in one piece, of the size
    the zip itself claims.
    """

    def __init__(self, path: Path, start: int, size: int):
        super().__init__(path)
        self.start, self.size = start, size
        self.seek(0)

    def read(self, n: int | None = -1, /) -> bytes:
        if n is not None and n > MAX_DIRECTORY_BYTES:
            raise zipfile.BadZipFile(f"its directory claims {n} bytes")
        left = max(0, self.size - self.tell())
        return super().read(left if n is None or n < 0 else min(n, left))

    def seek(self, offset: int, whence: int = 0, /) -> int:
        place = offset + (0, self.tell() if whence == 1 else 0, self.size)[whence]
        if place < 0:
            raise zipfile.BadZipFile("it points before its beginning")
        return super().seek(self.start + place) - self.start

    def tell(self) -> int:
        return super().tell() - self.start


def _records(path: Path, size: int, what: str, start: int = 0) -> dict[str, tuple[int, int]]:
    """{record: (first byte in the file, bytes)} of the zip that lies at ``start`` and is ``size`` bytes long; every one
    uncompressed, inside the zip, overlapping no other.
    """
    out: dict[str, tuple[int, int]] = {}
    end, before = 0, "the beginning"
    try:
        with _BoundedFile(path, start, size) as file, zipfile.ZipFile(file) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                raise UnsafeInput(
                    f"{what}: a TorchScript program, which contains code: refused. Expected weights saved by "
                    f"torch.save. {_CONVERT}"
                )
            for record in sorted(archive.infolist(), key=lambda record: record.header_offset):
                name = record.filename
                if record.compress_type != zipfile.ZIP_STORED or record.flag_bits & 1:
                    raise UnsafeInput(
                        f"{what}: record {printable(name)} is compressed or encrypted; torch never writes that: "
                        "refused. "
                        f"Expected uncompressed records, as torch.save writes them. Download the file again."
                    )
                file.seek(record.header_offset)
                local = file.read(30)
                first = record.header_offset + 30 + int.from_bytes(local[26:28], "little")
                first += int.from_bytes(local[28:30], "little")
                if local[:4] != b"PK\x03\x04" or record.header_offset < end or name in out:
                    raise UnsafeInput(
                        f"{what}: record {printable(name)} overlaps or repeats {printable(before)}: refused. "
                        f"Download the file again."
                    )
                if record.file_size != record.compress_size or first + record.file_size > size:
                    raise UnreadableInput(
                        f"{what}: record {printable(name)} claims {record.file_size} bytes from byte {first}; "
                        f"the file has {size}. Download the file again."
                    )
                out[name] = (start + first, record.file_size)
                end, before = first + record.file_size, name
    except (zipfile.BadZipFile, OSError, ValueError, OverflowError, EOFError, NotImplementedError) as error:
        raise UnreadableInput(
            f"{what}: the zip that torch.save writes ends early or is damaged ({printable(error)}). "
            f"Download the file again."
        ) from None
    return out


def _storages_and_program(file: io.FileIO, records: dict[str, tuple[int, int]], what: str) -> tuple[str, bytes]:
    """(what the names of storages begin with, the pickle that describes the tensors)."""
    folders = [name.removesuffix("/data.pkl") for name in records if name.endswith("/data.pkl")]
    if len(folders) != 1:
        raise UnreadableInput(
            f"{what}: a zip with {len(folders)} data.pkl records, expected one: not weights saved by torch.save. "
            f"Give the model's pytorch_model.bin."
        )
    (top,) = folders
    program = _record(file, records, f"{top}/data.pkl", what)
    order = _record(file, records, f"{top}/byteorder", what) if f"{top}/byteorder" in records else b"little"
    if order != b"little":
        raise UnreadableInput(
            f"{what}: byte order {printable(order.decode('ascii', 'replace'))}, expected little. "
            f"Save it again on an ordinary machine."
        )
    return f"{top}/data/", program


def _record(file: io.FileIO, records: dict[str, tuple[int, int]], name: str, what: str) -> bytes:
    first, n_bytes = records[name]
    if n_bytes > MAX_PICKLE_BYTES:
        raise UnreadableInput(
            f"{what}: record {printable(name)} is {n_bytes} bytes, at most {MAX_PICKLE_BYTES} are read."
        )
    file.seek(first)
    return read_exactly(file, n_bytes, what)


def _look_up(module: object, name: object) -> _Global:
    if type(module) is not str or type(name) is not str:
        raise ValueError("a name that is no text")
    if (module, name) not in _GLOBALS:
        raise NotPlain(f"it asks for {printable(module, 60)}.{printable(name, 60)}")
    return _GLOBALS[module, name]


def _key(key: object) -> str | int:
    if type(key) not in (str, int):  # the hash of tuples nested 200 deep may never end
        raise ValueError(f"a dict key that is a {type(key).__name__}")
    return key


def _storage(identity: object) -> _Storage:
    kind, storage, key, _, n_elements = identity
    if kind != "storage" or type(storage) is not _Global or storage.what != "storage":
        raise NotPlain("a reference to something other than a storage")
    if type(key) is not str or type(n_elements) is not int:
        raise ValueError("a storage without key and size")
    return _Storage(key, storage.dtype, n_elements)


def _rebuild(function: object, arguments: object) -> object:
    if type(function) is not _Global or type(arguments) is not tuple:
        raise NotPlain("it calls something unknown")
    match function.what:
        case "dict" if not arguments:
            return {}
        case "parameter" if arguments and type(arguments[0]) is _Tensor:
            return arguments[0]
        case "tensor_v2" | "tensor_v3" as version:
            storage, start, shape, stride = arguments[:4]
            dtype = storage.dtype if version == "tensor_v2" else arguments[6].dtype
            if (
                type(storage) is not _Storage
                or dtype not in DTYPE_BITS
                or type(shape) is not tuple
                or type(stride) is not tuple
            ):
                raise ValueError("a tensor without storage, dtype, shape and stride")
            if max(len(shape), len(stride)) > MAX_AXES:
                raise ValueError(f"a tensor of more than {MAX_AXES} axes")
            if any(type(n) is not int for n in (start, *shape, *stride)):
                raise ValueError("a tensor whose shape or stride is no integer")
            return _Tensor(storage, dtype, start, shape, stride)
    raise NotPlain(f"it calls {function.what} with {len(arguments)} arguments")


def _build(target: object, state: object) -> None:
    """Attributes of the state dict (its _metadata of version numbers) are not needed."""
    if type(target) is not dict:
        raise NotPlain("it changes an object that is no dict")


_RULES = Rules(_look_up, _rebuild, _key, _build, _storage)


def _tensors(
    entries: object, records: dict[str, tuple[int, int]], prefix: str, file: str, what: str
) -> tuple[tuple[TensorInfo, ...], tuple[tuple[str, str], ...]]:
    if type(entries) is not dict:
        raise UnreadableInput(
            f"{what}: holds a {printable(type(entries).__name__.strip('_'))}, expected a dict of tensors. "
            f"Save the model's state_dict() with torch.save."
        )
    tensors: list[TensorInfo] = []
    aliases: list[tuple[str, str]] = []
    owners: dict[str, tuple[str, _Tensor]] = {}
    for name, tensor in entries.items():
        written = printable(name)
        if type(name) is not str or name_fault(name):
            raise UnreadableInput(
                f"{what}: the tensor name {written!r} {name_fault(str(name)) or 'is no text'}. Rename it."
            )
        if type(tensor) is not _Tensor:
            raise UnreadableInput(
                f"{what}: the entry {written} is a {type(tensor).__name__}, expected tensors only. "
                f"If this is a training checkpoint, save its model state dict alone."
            )
        record = records.get(prefix + tensor.storage.key)
        if record is None:
            raise UnreadableInput(f"{what}: the storage of tensor {written} is missing. Download the file again.")
        first, n_stored = record
        if fault := _layout_fault(tensor, n_stored):
            raise UnreadableInput(f"{what}: layout invalid: tensor {written} {fault}.")
        n_elements, item = math.prod(tensor.shape), DTYPE_BITS[tensor.dtype] // 8
        if n_elements:
            owner, owned = owners.setdefault(tensor.storage.key, (name, tensor))
            if owner != name:
                if tensor != owned:
                    raise UnreadableInput(
                        f"{what}: tensors {printable(owner)} and {written} are different views of one storage: "
                        "refused. "
                        f"Save contiguous copies ({{name: t.clone() for name, t in state_dict.items()}})."
                    )
                aliases.append((name, owner))
                continue
        tensors.append(
            TensorInfo(name, tensor.dtype, tensor.shape, file, first + tensor.start * item, n_elements * item)
        )
    return tuple(tensors), tuple(aliases)


def _layout_fault(tensor: _Tensor, n_stored: int) -> str | None:
    """Why the tensor cannot be read as a run of bytes of its storage (``n_stored`` bytes), in words."""
    shape, stride, item = tensor.shape, tensor.stride, DTYPE_BITS[tensor.dtype] // 8
    if len(shape) != len(stride) or tensor.start < 0 or any(n < 0 for n in (*shape, *stride)):
        return f"has the impossible shape {printable(shape)} and stride {printable(stride)}"
    if (n_elements := math.prod(n for n in shape if n)) > _MAX_ELEMENTS:
        return f"has the shape {printable(shape)}, whose product overflows"
    n_declared = tensor.storage.n_elements * (DTYPE_BITS[tensor.storage.dtype] // 8 if tensor.storage.dtype else 1)
    if not 0 <= n_declared <= n_stored:
        return f"has a storage of {n_declared} bytes, the file holds {n_stored}"
    if 0 in shape:
        return None
    expected = 1
    for n, step in zip(reversed(shape), reversed(stride)):
        if n > 1 and step != expected:
            if step == 0:
                return f"has stride 0: it claims {n_elements} values, larger than its storage of {n_declared // item}"
            return (
                f"is not contiguous (shape {printable(shape)}, stride {printable(stride)}). Save t.contiguous() instead"
            )
        expected *= n
    if (tensor.start + n_elements) * item > n_declared:
        return f"needs {(tensor.start + n_elements) * item} bytes of a storage that has {n_declared}"
    return None
