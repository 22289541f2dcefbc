"""Everything kept between runs: one folder, ``WISCA_HOME``, and the two kinds of file that make it safe to share.

``home()`` is the environment variable ``WISCA_HOME``, or the platform's user data folder. Under it lie ``FOLDERS``,
each created for its owner only (mode 0700). JSON files start with their format and version and appear by rename, so a
reader never sees half of one. A lock is a file somebody holds with ``flock``: the kernel lets go of it when its holder
ends, however it ends, so "in use" never rests on a process number.

Not covered: Windows (no ``flock``); power loss (nothing is synced to disk; a file damaged that way is refused by name
when it is read), and network file systems on which two machines do not see each other's locks.
"""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import re
import secrets
import shutil
import stat
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import platformdirs

from wisca_core.errors import BadOption, OutputRefused, UnreadableInput, UnsafeInput, WiscaError
from wisca_core.untrusted import bounded_int, check_json_values, named_path

FOLDERS = {  # name -> what it holds
    "jobs": "work of the dashboard, results included",
    "measurements": "tables of measured checkpoints",
    "proofs": "proofs by miniature",
    "comparisons": "comparisons",
    "exports": "exports under way and finished downloads",
    "uploads": "uploaded files",
    "sites": "declared pairs of files of one's own class",
}

# Lies in jobs/ beside the jobs and is never removed: two that hold two files of one name would not see each other.
START_LOCK = "start.lock"

# The largest plan (one factor a channel, 80 layers) is about 20 MB; beyond this a file is not one of ours.
MAX_JSON_BYTES = 256 * 1024**2

# Files being written beside their final name start with a dot; a younger one may still have its writer.
_BESIDE_SECONDS = 600.0


# --- the folder -------------------------------------------------------------------------------------------------------


def home() -> Path:
    """The absolute path of ``WISCA_HOME``, created (mode 0700) where it is missing.

    Raises BadOption where it is a file, OutputRefused where it cannot be created.
    """
    named = os.environ.get("WISCA_HOME")
    try:
        path = named_path(named) if named else platformdirs.user_data_path("wisca", appauthor=False)
    except UnreadableInput as error:
        raise BadOption(f"WISCA_HOME: {error}") from None
    path = Path(os.path.abspath(path))
    _create(path)
    return path


def folder(name: str) -> Path:
    """The folder ``name`` (one of ``FOLDERS``) under ``home()``, created (mode 0700) where it is missing.

    Raises BadOption for another name, UnsafeInput where the folder is a link.
    """
    if name not in FOLDERS:
        raise BadOption(f"there is no folder {name!r} under WISCA_HOME; it is one of {', '.join(FOLDERS)}.")
    path = home() / name
    if path.is_symlink():
        raise UnsafeInput(
            f"{path} is a link to {os.readlink(path)}; cleaning would reach outside WISCA_HOME. "
            "Remove the link, and set WISCA_HOME itself to a folder on the disk you want."
        )
    _create(path)
    return path


def sizes() -> dict[str, int]:
    """Bytes of the files in each folder (links are not followed), in the order of ``FOLDERS``."""
    return {name: _n_bytes(folder(name)) for name in FOLDERS}


def clean(names: Collection[str]) -> int:
    """Empty the named folders and return the bytes freed.

    What is in use stays: a job folder whose lock is held, and in the other folders whatever the arguments of such a job
    name. Links are removed, never followed. Files being written beside their final name stay for ten minutes.
    """
    tops = [folder(name) for name in dict.fromkeys(names)]
    running = [entry for entry in _entries(folder("jobs")) if is_held(entry / "lock")]
    texts = [text for entry in running for text in _texts(_plain_json(entry / "spec.json"))]
    freed = 0
    for top in tops:
        used = _names_used(top, texts)
        for entry in _entries(top):
            # What is written beside its final name carries that name inside its own: .NAME.partial, NAME.tmp.
            is_used = any(name in entry.name for name in used)
            if not is_used and not _is_young_beside(entry) and entry.name != START_LOCK:
                freed += remove_entry(entry) or 0
    return freed


def remove_entry(entry: Path, *, patience: float = 0.2) -> int | None:
    """Remove a file, link or folder and return the bytes freed; None where it is in use.

    A folder is in use where its ``lock`` stays held for ``patience`` seconds. The lock is held while the folder goes,
    so two removals, or a removal and a job, cannot meet. A folder first gets another name, so no reader finds half of
    it. Raises OutputRefused where it cannot be removed.
    """
    descriptor = None
    is_folder = entry.is_dir() and not entry.is_symlink()
    if is_folder and _is_regular(entry / "lock"):
        # Somebody else asking whether the lock is held holds it for an instant, hence never a single attempt.
        descriptor = take_lock(entry / "lock", patience=max(patience, 0.2))
        if descriptor is None:
            return None
    try:
        before = _n_bytes(entry)
        if not is_folder:
            entry.unlink()
            return before
        gone = entry.with_name(f".gone-{secrets.token_hex(8)}")
        os.rename(entry, gone)
        shutil.rmtree(gone, ignore_errors=True)
        return before - _n_bytes(gone)
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise OutputRefused(f"{entry} cannot be removed: {_reason(error)}.") from error
    finally:
        if descriptor is not None:
            os.close(descriptor)


@contextmanager
def workplace(words: str, *, prefix: str = "wisca-", within: Path | None = None) -> Iterator[Path]:
    """An empty folder for the block, in the system's temporary folder or ``within``; removed behind it. ``hide_path``
    holds for it: the person reads ``words``.
    """
    with tempfile.TemporaryDirectory(prefix=prefix, dir=within) as place, hide_path(place, words):
        yield Path(place)


@contextmanager
def hide_path(place: str | Path, words: str) -> Iterator[None]:
    """A WiscaError that leaves the block never names ``place``, a folder of ours, or what lies in it: it says
    ``words``, and the name of a file of a checkpoint.
    """
    try:
        yield
    except WiscaError as error:
        named = re.compile(re.escape(str(place)) + r"(?:/[\w.+-]*\w)*")
        error.args = tuple(
            named.sub(lambda found: _instead(found[0], words), text) if isinstance(text, str) else text
            for text in error.args
        )
        raise


def _instead(path: str, words: str) -> str:
    name = path.rpartition("/")[2]
    return f"{name} of {words}" if name.endswith((".json", ".safetensors", ".bin", ".pt")) else words


# --- JSON files -------------------------------------------------------------------------------------------------------


def replace_file(path: Path, content: bytes) -> None:
    """Write ``path`` whole or not at all, in place of the file that was there. Raises OutputRefused."""
    try:
        with atomic_file(path) as file:
            file.write(content)
    except OSError as error:
        raise OutputRefused(f"{path} cannot be written: {_reason(error)}. Nothing was left behind.") from error


def write_json(path: str | Path, format: str, version: int, payload: Mapping[str, Any]) -> None:
    """Write ``payload`` as a JSON object that begins with ``format`` and ``version``, beside ``path``, then rename.

    ``payload`` holds plain JSON values under text keys other than "format" and "version"; NaN and infinity are not
    JSON (ValueError: write None or text). Raises OutputRefused where the file cannot be written; an existing file is
    then as it was.

    >>> write_json("plan.json", "wisca-plan", 1, {"strength": 1.0})  # doctest: +SKIP
    """
    if "format" in payload or "version" in payload:
        raise ValueError('"format" and "version" are written by write_json; the payload may not hold them')
    # One top-level key a line: readable in an editor, and a long list of factors is not one line a number.
    text = "{\n" + ",\n".join(
        f"{json.dumps(str(key))}: {_dumps(value)}"
        for key, value in {"format": format, "version": version, **payload}.items()
    )
    replace_file(Path(path), (text + "\n}\n").encode("utf-8"))


def plain(value: Any) -> Any:
    """Plain JSON values; numbers that JSON cannot hold become None."""
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    if hasattr(value, "item"):  # numpy's numbers
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write into that appears as ``path`` when the block ends, whole or not at all, whoever else writes
    it.
    """
    beside = path.parent / f".{secrets.token_hex(8)}.tmp"
    try:
        with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb") as file:
            yield file
        os.replace(beside, path)
    finally:
        with suppress(OSError):
            beside.unlink()


def read_json(path: str | Path, format: str, version: int) -> dict[str, Any]:
    """The payload of a file written by ``write_json`` with this format and version.

    Raises UnreadableInput, naming the file, for anything else: missing, not a regular file, not JSON, another format,
    and any other version (a newer one by its number).
    """
    path = Path(path)
    content = _content(path)
    try:
        check_json_values(content, str(path))
        document = json.loads(
            content.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_int=bounded_int
        )
    except UnicodeDecodeError as error:
        raise UnreadableInput(f"{path} is not text in UTF-8 (byte {error.start}); expected a {format} file.") from error
    except RecursionError as error:
        raise UnreadableInput(f"{path} is nested too deeply to be a {format} file.") from error
    except ValueError as error:
        found = "it is empty" if not content.strip() else str(error)
        raise UnreadableInput(f"{path} is not a {format} file: {found}. It is damaged or was cut short.") from error
    return _payload(document, path, format, version)


def read_rows(path: str | Path, format: str, version: int) -> list[dict[str, Any]]:
    """The rows of a file that is only appended to, a JSON object a line behind a first one with this format and
    version; a last line cut short by a kill is left out. Raises UnreadableInput as ``read_json`` does.
    """
    path = Path(path)
    lines = [line for line in _content(path).splitlines() if line.strip()]
    found = []
    for i, line in enumerate(lines):
        try:
            found.append(json.loads(line))
        except (ValueError, RecursionError):
            if i < len(lines) - 1:
                raise UnreadableInput(f"{path}, line {i + 1}, is not JSON. It is damaged.") from None
    _payload(found[0] if found else None, path, format, version)
    if not all(isinstance(row, dict) for row in found):
        raise UnreadableInput(f"{path} has a line that is no JSON object. It is damaged.")
    return found[1:]


def _payload(document: object, path: Path, format: str, version: int) -> dict[str, Any]:
    if not isinstance(document, dict) or document.get("format") != format:
        found = document.get("format") if isinstance(document, dict) else None
        shown = f"format {str(found)[:60]!r}" if found is not None else 'no "format"'
        raise UnreadableInput(f"{path} has {shown}; expected {format!r}. Is it the right file?")
    found = document.get("version")
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise UnreadableInput(f'{path} has no usable "version" ({str(found)[:60]}); expected {version}. It is damaged.')
    if found != version:
        advice = "Update wisca to read it." if found > version else "It is too old; make it again."
        age = "newer" if found > version else "older"
        raise UnreadableInput(
            f"{path} is {format} version {str(found)[:20]}, {age} than version {version}, which is read here. {advice}"
        )
    return {key: value for key, value in document.items() if key not in ("format", "version")}


# --- locks ------------------------------------------------------------------------------------------------------------


def take_lock(path: Path, *, patience: float = 0.0) -> int | None:
    """Hold ``path``, created where missing, and return its descriptor: closing it, or ending, lets go.

    None where somebody else holds it for longer than ``patience`` seconds. OutputRefused where the file system has no
    locks.

    The lock belongs to the open file, so a child process that inherits the descriptor holds it too.
    """
    descriptor = None
    until = time.monotonic() + patience
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        while not _flock(descriptor):
            if time.monotonic() >= until:
                os.close(descriptor)
                return None
            time.sleep(0.01)
        return descriptor
    except OSError as error:
        if descriptor is not None:
            os.close(descriptor)
        raise OutputRefused(
            f"{path} cannot be locked: {_reason(error)}. Set WISCA_HOME to a folder on a file system with locks."
        ) from error


def is_held(path: Path) -> bool:
    """Whether somebody holds the lock ``path``; False where there is no such file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except PermissionError:
        return True  # another user's lock: whoever cannot look may not remove either
    except OSError:
        return False
    try:
        # Shared: two that ask at once do not take each other for the holder.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)


def last_status(read: Callable[[], dict[str, Any]], active: Collection[str], lock: Path) -> tuple[dict[str, Any], bool]:
    """(what ``read`` gives, whether its process ended without a word): a "state" of ``active`` while nobody holds the
    lock.
    """
    status = read()
    if status["state"] not in active or is_held(lock):
        return status, False
    # It may have ended between the two looks. A last status is written before the lock is let go of, so with the lock
    # free a second reading is final.
    status = read()
    return status, status["state"] in active


@contextmanager
def hold_lock(path: Path, *, patience: float = 10.0) -> Iterator[None]:
    """Hold ``path`` inside the block; OutputRefused where somebody else holds it for over ``patience`` seconds."""
    descriptor = take_lock(path, patience=patience)
    if descriptor is None:
        raise OutputRefused(f"{path} has been held by another process for {patience:g} s. Try again.")
    try:
        yield
    finally:
        os.close(descriptor)


# --- inside -----------------------------------------------------------------------------------------------------------


def _flock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _create(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise BadOption(f"{path} cannot be a folder: a file is in its place. Set WISCA_HOME to a folder.") from error
    except OSError as error:
        raise OutputRefused(
            f"{path} cannot be created: {_reason(error)}. Set WISCA_HOME to a folder you can write."
        ) from error


def _reason(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full"
    return (error.strerror or str(error)).lower()


def _dumps(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # a file name that is not UTF-8 arrives as lone surrogates
        text = json.dumps(value, allow_nan=False)
    return text


def _content(path: Path) -> bytes:
    try:
        # A FIFO would otherwise wait for a writer for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise UnreadableInput(f"{path} does not exist.") from error
    except OSError as error:
        raise UnreadableInput(f"{path} cannot be read: {_reason(error)}.") from error
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise UnreadableInput(f"{path} is not a regular file.")
        if found.st_size > MAX_JSON_BYTES:
            raise UnreadableInput(f"{path} has {found.st_size} bytes; no file of this kind has over {MAX_JSON_BYTES}.")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(MAX_JSON_BYTES)
    except OSError as error:
        raise UnreadableInput(f"{path} cannot be read: {_reason(error)}.") from error
    finally:
        os.close(descriptor)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        counts = Counter(key for key, _ in pairs)
        raise ValueError(f"the key {counts.most_common(1)[0][0][:60]!r} is there more than once")
    return found


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _entries(path: Path) -> list[Path]:
    try:
        return sorted(path.iterdir())
    except OSError:
        return []


def _is_regular(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def _is_young_beside(entry: Path) -> bool:
    try:
        return entry.name.startswith(".") and time.time() - entry.lstat().st_mtime < _BESIDE_SECONDS
    except OSError:
        return False


def _names_used(top: Path, texts: list[str]) -> set[str]:
    """Names of the entries of ``top`` that a path among ``texts`` leads to or into."""
    found = set()
    for start in (f"{top}{os.sep}", f"{os.path.realpath(top)}{os.sep}"):
        found |= {text.removeprefix(start).split(os.sep)[0] for text in texts if text.startswith(start)}
    return found - {"", ".", ".."}


def _n_bytes(path: Path) -> int:
    """Bytes of a file, or of the files below a folder; links, and what vanishes meanwhile, count as nothing."""
    try:
        found = path.lstat()
    except OSError:
        return 0
    if stat.S_ISREG(found.st_mode):
        return found.st_size
    total = 0
    if stat.S_ISDIR(found.st_mode):
        for root, _, files in os.walk(path):
            for name in files:
                try:
                    found = os.lstat(os.path.join(root, name))
                except OSError:
                    continue
                total += found.st_size if stat.S_ISREG(found.st_mode) else 0
    return total


def _plain_json(path: Path) -> Any:
    try:
        return json.loads(_content(path))
    except (UnreadableInput, ValueError, RecursionError):
        return None


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from _texts(list(value.values()))
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
