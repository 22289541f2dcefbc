"""Opening files that may be damaged or hostile: where they lie, what they are, their JSON, TOML and YAML."""

import json
import os
import re
import stat
import tomllib
import unicodedata
from pathlib import Path, PureWindowsPath
from typing import BinaryIO

from wisca_core.errors import UnreadableInput, UnsafeInput, UnsupportedCheckpoint

MAX_JSON_DEPTH = 64
# A parsed value takes up to 100 bytes however short it is written ("[]," is three). A header has about 8 a tensor.
MAX_JSON_VALUES = 3_000_000
MAX_NAME_LENGTH = 512
# Of a YAML file with its aliases written out: a few names more than anybody configures.
MAX_YAML_VALUES = 20_000

# A JSON string, or what there is of one: the closing quote is optional so that the search stays linear on any bytes.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_WHOLE_STRINGS = re.compile(rb'(?:[^"]*+"[^"\\]*+(?:\\.[^"\\]*+)*+")*+', re.DOTALL)
_PIECE_BYTES = 1 << 20
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
# Strong right-to-left letters and the invisible direction marks: they reorder the text around them on a screen.
_RIGHT_TO_LEFT = {"R", "AL", "AN", "RLE", "RLO", "RLI", "LRE", "LRO", "LRI", "PDF", "PDI", "FSI"}


def printable(text: object, limit: int = 120) -> str:
    """``text`` fit for a message: one line, no control or direction characters, at most ``limit`` characters."""
    text = str(text)
    if name_fault(text, max_length=len(text)):
        text = ascii(text)[1:-1]
    return text if len(text) <= limit else f"{text[: limit - 20]}... ({len(text)} characters)"


def name_fault(name: str, max_length: int = MAX_NAME_LENGTH) -> str | None:
    """Why a tensor or file name is refused, in words; None where it is fine."""
    if len(name) > max_length:
        return f"is {len(name)} characters long, at most {max_length} are allowed"
    if name.isascii() and name.isprintable():
        return None
    if not name.isprintable():
        return "has control or invisible characters"
    if any(unicodedata.bidirectional(character) in _RIGHT_TO_LEFT for character in name):
        return "has right-to-left characters"
    return None


def check_name(folder: Path, name: str) -> None:
    """UnsafeInput where ``name`` is not a plain name relative to the model folder (absolute, ``..``, backslashes)."""
    parts = name.split("/")
    if "\0" in name or "\\" in name or PureWindowsPath(name).drive or "" in parts or ".." in parts:
        raise UnsafeInput(
            f"{printable(folder)}: the file name {printable(name)!r} points outside the model folder or is not a plain "
            f"relative name; nothing was read. Expected a file inside the folder: download the model again."
        )


def locate(folder: Path, name: str) -> Path:
    """Real path of the regular file ``name`` of the model folder (a real path itself).

    Links are followed inside the folder, and into the ``blobs`` folder of the same hub-cache repository, which is how
    downloads look (``<repo>/snapshots/<revision>/file`` -> ``<repo>/blobs/<hash>``). Raises UnsafeInput where the name
    or the link leads elsewhere, UnreadableInput where there is no regular file.
    """
    check_name(folder, name)
    try:
        real = Path(os.path.realpath(folder / name))
        if not real.is_relative_to(folder) and real.parent != _blobs(folder):
            raise UnsafeInput(
                f"{printable(folder / name)}: this link points outside the model folder (to {printable(real)}); "
                f"nothing was read. Put a copy of the file in its place, or open the folder it points to."
            )
        mode = os.stat(real).st_mode
    except (OSError, ValueError) as error:
        raise UnreadableInput(f"{printable(folder / name)}: cannot be opened: {_reason(error)}") from None
    if not stat.S_ISREG(mode):
        raise UnreadableInput(
            f"{printable(folder / name)}: not a regular file but {_kind(mode)}; expected a file. It was not opened."
        )
    return real


def _blobs(folder: Path) -> Path | None:
    for parent in folder.parents:
        if parent.name == "snapshots":
            return parent.parent / "blobs"
    return None


def _kind(mode: int) -> str:
    kinds = (
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISFIFO, "a named pipe (FIFO)"),
        (stat.S_ISCHR, "a device"),
        (stat.S_ISBLK, "a device"),
        (stat.S_ISSOCK, "a socket"),
    )
    return next((words for test, words in kinds if test(mode)), "something else")


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file. Check the path, or download the model again."
    if isinstance(error, PermissionError):
        return "no permission to read it. Change its permissions or copy it."
    return f"{getattr(error, 'strerror', None) or printable(error)}."


def open_regular(path: Path) -> BinaryIO:
    """Opens the regular file at a real path, unbuffered; never waits on a pipe, never follows a last link."""
    try:
        if not stat.S_ISREG(mode := os.lstat(path).st_mode):  # opening some devices already has an effect
            raise UnreadableInput(f"{printable(path)}: not a regular file but {_kind(mode)}; expected a file.")
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        file = os.fdopen(os.open(path, flags), "rb", buffering=0)
    except (OSError, ValueError) as error:
        raise UnreadableInput(f"{printable(path)}: cannot be opened: {_reason(error)}") from None
    if not stat.S_ISREG(mode := os.fstat(file.fileno()).st_mode):
        file.close()
        raise UnreadableInput(f"{printable(path)}: not a regular file but {_kind(mode)}; expected a file.")
    return file


def read_exactly(file: BinaryIO, n_bytes: int, what: str) -> bytes:
    """The next ``n_bytes`` of ``file``; UnreadableInput (its message begins with ``what``) where it ends before."""
    out = bytearray(n_bytes)
    view, done = memoryview(out), 0
    try:
        while done < n_bytes:
            n = file.readinto(view[done:])
            if not n:
                raise UnreadableInput(f"{what}: ended while it was read, {n_bytes - done} bytes short.")
            done += n
    except OSError as error:
        raise UnreadableInput(f"{what}: cannot be read: {_reason(error)}") from None
    return bytes(out)


def refuse_lookalike(start: bytes, what: str) -> None:
    """Raises where the first bytes of a weight file show that it is something else, saying what and what to do."""
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        raise UnreadableInput(
            f"{what}: this is a web page, not weights (an error or log-in page was saved under this name). "
            f"Download the file itself, with huggingface_hub or from its download link."
        )
    if text.startswith(b"version https://git-lfs"):
        raise UnreadableInput(f"{what}: this is a git-lfs pointer, not weights. Run `git lfs pull` in the folder.")
    if start.startswith(b"GGUF"):
        raise UnsupportedCheckpoint(
            f"{what}: this is a GGUF file (llama.cpp), not safetensors. Get the original Hugging Face folder."
        )


def named_path(text: str | os.PathLike) -> Path:
    """The path that a person, a link or a spec names, ``~`` expanded; nothing is looked up but the home folder.

    UnreadableInput where it can be no path: empty, a zero byte, a name over 255 bytes, the home of nobody.
    """
    text = os.fspath(text)
    try:
        if not text or "\0" in text:
            raise ValueError("it is empty" if not text else "it has a zero byte")
        path = Path(text).expanduser()
        if any(len(os.fsencode(part)) > 255 for part in path.parts) or len(os.fsencode(path)) > 4095:
            raise ValueError("it is longer than a path may be")
    except (ValueError, RuntimeError) as error:  # RuntimeError: no such home folder
        raise UnreadableInput(f"{printable(text)!r} is no path: {str(error).rstrip('.')}. Check it.") from None
    return path


def open_named(path: Path) -> BinaryIO:
    """Opens the regular file that ``path`` leads to, links followed, unbuffered."""
    return open_regular(Path(os.path.realpath(path)))


def read_regular(path: Path, most_bytes: int) -> bytes:
    """All bytes of the regular file that ``path`` leads to; UnreadableInput for a pipe, a device, or a larger file."""
    with open_named(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most_bytes:
            raise UnreadableInput(f"{printable(path)}: is {size} bytes, at most {most_bytes} are read.")
        return read_exactly(file, size, printable(path))


def read_json_object(folder: Path, name: str, max_bytes: int, unique_keys: bool = True) -> tuple[str, dict]:
    """(text, parsed object) of the JSON file ``name`` in a model folder, at most ``max_bytes`` long."""
    path, what = locate(folder, name), printable(folder / name)
    raw = read_regular(path, max_bytes)
    if raw.startswith(b"version https://git-lfs"):
        raise UnreadableInput(f"{what}: a git-lfs pointer, not the file itself. Run `git lfs pull` in the folder.")
    return raw.decode("utf-8", "replace"), parse_json_object(raw, what, unique_keys)


def parse_json_object(raw: bytes, what: str, unique_keys: bool = True) -> dict:
    """The JSON object in ``raw``; UnreadableInput (its message begins with ``what``) for anything else.

    Depth is checked on the bytes first: a parser that recurses could end the process. Integers have at most 20 digits.
    Memory stays a small multiple of ``len(raw)`` and 100 bytes a value, of which there are at most MAX_JSON_VALUES.
    """
    again = "Download the file again."
    brackets = check_json_values(raw, what)
    for _ in range(MAX_JSON_DEPTH):
        fewer = brackets.replace(b"[]", b"").replace(b"{}", b"")
        if len(fewer) == len(brackets):
            break
        brackets = fewer
    if brackets:
        raise UnreadableInput(
            f"{what}: not valid JSON: its brackets nest deeper than {MAX_JSON_DEPTH} or do not match. {again}"
        )
    try:
        value = json.loads(
            raw.decode("utf-8"), parse_int=bounded_int, object_pairs_hook=_unique if unique_keys else None
        )
    except UnicodeDecodeError as error:
        raise UnreadableInput(f"{what}: not valid UTF-8 at byte {error.start}. {again}") from None
    except (ValueError, RecursionError) as error:
        raise UnreadableInput(f"{what}: not valid JSON: {printable(error)}. {again}") from None
    if not isinstance(value, dict):
        raise UnreadableInput(f"{what}: holds a JSON {type(value).__name__}, expected an object {{...}}. {again}")
    return value


def check_json_values(raw: bytes, what: str) -> bytes:
    """The brackets outside of strings; UnreadableInput where the JSON holds more than MAX_JSON_VALUES."""
    brackets, n_commas, at, size = bytearray(), 0, 0, _PIECE_BYTES
    while at < len(raw):  # in pieces: what is left of millions of strings takes many times their room
        piece = raw[at : at + size]
        opened = piece.find(b'"', _WHOLE_STRINGS.match(piece).end())
        if opened == 0 and at + size < len(raw):
            size *= 2  # one string that is longer
            continue
        taken = len(piece) if opened < 0 or at + size >= len(raw) else opened
        bare = _STRING.sub(b"", piece[:taken])
        brackets += bare.translate(None, _NOT_BRACKETS)
        n_commas += bare.count(b",")
        at, size = at + taken, _PIECE_BYTES
    if (n_values := n_commas + len(brackets) // 2) > MAX_JSON_VALUES:
        raise UnreadableInput(f"{what}: holds about {n_values:,} values, at most {MAX_JSON_VALUES:,} are read.")
    return bytes(brackets)


def parse_toml(raw: bytes, what: str) -> dict:
    """The table in a TOML file; UnreadableInput also where it nests deeper than MAX_JSON_DEPTH: dotted names nest
    without a bracket, and whoever prints or compares a deeper value ends the process.
    """
    try:
        document = tomllib.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UnreadableInput(f"{what}: not text in UTF-8 (byte {error.start}).") from None
    except (ValueError, RecursionError) as error:
        raise UnreadableInput(f"{what}: not valid TOML: {printable(error)}.") from None
    inside: list = [document]
    for _ in range(MAX_JSON_DEPTH):
        if any(isinstance(value, int) and value.bit_length() > 64 for value in inside):
            raise UnreadableInput(f"{what}: not valid TOML: a whole number of more than 64 bits.")
        inside = [
            value
            for one in inside
            if isinstance(one, (dict, list))
            for value in (one.values() if isinstance(one, dict) else one)
        ]
    if inside:
        raise UnreadableInput(f"{what}: not valid TOML: it nests deeper than {MAX_JSON_DEPTH}.")
    return document


def parse_yaml(raw: bytes, what: str) -> object:
    """The plain value in a YAML file; UnreadableInput for Python objects and other tags, and where it nests deeper than
    MAX_JSON_DEPTH or holds more than MAX_YAML_VALUES, each alias ("*name") counted as all it stands for.
    """
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    sizes: dict[str, int] = {}
    inside: list[list] = [["", 0]]  # [anchor, values] of what is open
    try:
        text = raw.decode("utf-8", "replace")
        opened = 0
        for bracket in re.findall(r"[\[\]{}]", text):  # the time of the parser is quadratic in how many are open
            opened += 1 if bracket in "[{" else -1
            if opened > MAX_JSON_DEPTH:
                raise ValueError(f"over {MAX_JSON_DEPTH} brackets are open at once")
        for event in yaml.parse(text, loader):
            if isinstance(event, yaml.CollectionStartEvent):
                inside.append([event.anchor, 1])
                continue
            anchor, n = "", 0
            if isinstance(event, yaml.CollectionEndEvent):
                anchor, n = inside.pop()
            elif isinstance(event, yaml.ScalarEvent):
                anchor, n = event.anchor, 1
            elif isinstance(event, yaml.AliasEvent):
                if event.anchor not in sizes:
                    raise ValueError(f"*{printable(event.anchor)} stands for itself or for nothing")
                n = sizes[event.anchor]
            inside[-1][1] += n
            if anchor:
                sizes[anchor] = n
            if len(inside) > MAX_JSON_DEPTH or inside[-1][1] > MAX_YAML_VALUES:
                raise ValueError(f"it nests deeper than {MAX_JSON_DEPTH} or holds more than {MAX_YAML_VALUES:,} values")
        return yaml.load(text, loader)
    except (ValueError, RecursionError, ArithmeticError, AttributeError, TypeError, yaml.YAMLError) as error:
        raise UnreadableInput(f"{what}: no plain YAML: {printable(error)}.") from None


def bounded_int(digits: str) -> int:
    """For json's ``parse_int``: what is longer than any number of ours overflows wherever it is used."""
    if len(digits) > 20:
        raise ValueError(f"an integer of {len(digits)} digits, at most 20 are allowed")
    return int(digits)


def _unique(pairs: list[tuple[str, object]]) -> dict:
    out = dict(pairs)
    if len(out) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {printable(twice)!r} is there twice")
    return out
