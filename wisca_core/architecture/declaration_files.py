"""Declarations as a TOML of the same words, and the files that are opened with one."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from wisca_core.architecture.declaration import ATTENTION, FEED_FORWARD, MAKERS, Declaration, plain
from wisca_core.checkpoint import Checkpoint, Declared, open_checkpoint
from wisca_core.errors import DeclarationError, UnreadableInput
from wisca_core.progress import Progress, silent
from wisca_core.untrusted import named_path, parse_toml, read_regular

FORMAT, VERSION = "wisca-sites", 1
MAX_BYTES = 1 << 20


def read_declarations(path: Path) -> tuple[Declaration, ...]:
    """From a TOML file, as ``parse_declarations`` reads it. Raises UnreadableInput, DeclarationError."""
    return parse_declarations(read_regular(named_path(path), MAX_BYTES), str(path))


def parse_declarations(text: bytes, path: str) -> tuple[Declaration, ...]:
    """``format = "wisca-sites"``, ``version = 1``, then tables [[attention]] and [[feed_forward]] with the arguments of
    these functions. ``path``: what errors call it. Raises UnreadableInput, DeclarationError.
    """
    data = parse_toml(text, path)
    found = (data.pop("format", None), data.pop("version", None))
    if found != (FORMAT, VERSION):
        raise UnreadableInput(
            f'{path} begins with format {found[0]!r}, version {found[1]!r}; format = "{FORMAT}" and version = '
            f"{VERSION} are "
            "read here."
        )
    unknown = data.keys() - MAKERS.keys()
    if unknown or not any(data.values()):
        raise DeclarationError(
            f"{path}: {', '.join(sorted(unknown)) or 'no table'} was found; [[attention]] and [[feed_forward]] are "
            "known."
        )
    out = []
    for kind, make in MAKERS.items():
        rows = data.get(kind, [])
        for one in rows if isinstance(rows, list) else [rows]:
            allowed = ("layer", *(ATTENTION if kind == "attention" else FEED_FORWARD))
            if not isinstance(one, dict) or one.keys() - set(allowed) or not isinstance(one.get("layer"), str):
                wrong = ", ".join(sorted(one.keys() - set(allowed))) if isinstance(one, dict) else ""
                raise DeclarationError(
                    f"{path}: [[{kind}]] has {wrong or 'no layer'}; its words are {', '.join(allowed)}."
                )
            try:
                out.append(make(one["layer"], **{name: value for name, value in one.items() if name != "layer"}))
            except TypeError as error:
                raise DeclarationError(f"{path}: [[{kind}]] {one['layer']}: {error}.") from error
    return tuple(out)


def open_declared(arguments: Mapping, progress: Progress = silent) -> Checkpoint:
    """The model that the arguments of a job name: {model, sites: path of a declaration, unproved: bool}, the last two
    only where one was made. Raises UnreadableInput, UnsupportedCheckpoint, DeclarationError.
    """
    declared = None
    if arguments.get("sites"):
        declared = Declared(
            read_declarations(Path(arguments["sites"])), is_unproved=arguments.get("unproved", False) is True
        )
    return open_checkpoint(arguments["model"], progress=progress, declared=declared)


def toml(declarations: Iterable[Declaration]) -> str:
    """The text of a file that ``read_declarations`` reads."""
    lines = [f'format = "{FORMAT}"', f"version = {VERSION}"]
    for one in declarations:
        lines += ["", f"[[{one.kind}]]", f"layer = {_toml(one.layer)}"]
        lines += [f"{name} = {_toml(plain(value))}" for name, value in one.words]
    return "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{name} = {_toml(inner)}" for name, inner in value.items()) + " }"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"' if isinstance(value, str) else repr(value)
