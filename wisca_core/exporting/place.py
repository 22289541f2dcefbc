"""The place of an export: one writer at a time, written beside under a hidden name, on the disk before it is there.

The lock lies beside the target, ``.NAME.wisca-lock``, so that everybody who would write there meets it, whatever their
WISCA_HOME. Not covered: file systems whose locks other machines do not see.
"""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from wisca_core.checkpoint import Checkpoint
from wisca_core.errors import OutputRefused
from wisca_core.storage import is_held, take_lock


def refuse_place(checkpoint: Checkpoint, out: Path) -> None:
    """Raises OutputRefused where ``out`` exists or is the model or inside it; asked early, it saves a wait for a
    proof.
    """
    out, source = Path(os.path.abspath(out)), checkpoint.path
    if out == source or os.path.realpath(out) == str(source):
        raise OutputRefused(f"{out} is the model itself; it is never overwritten. Choose a new folder.")
    if source in Path(os.path.realpath(out)).parents:
        raise OutputRefused(f"{out} lies inside the model's folder {source}. Choose a folder beside it.")
    if os.path.lexists(out):
        raise OutputRefused(f"{out} exists already; nothing is overwritten. Choose a new folder or remove it first.")


def is_running(out: Path) -> bool:
    """Whether an export to this folder is under way, in any process."""
    return is_held(_lock_path(Path(os.path.abspath(out))))


@contextmanager
def claim_folder(out: Path) -> Iterator[Path]:
    """Holds the name of the output folder and gives an empty folder beside it to write into; ``appear`` puts that into
    place. Whatever happens, no hidden folder, no lock and no parent made for it is left. The kernel lets go of the lock
    where this process is killed, and the next export clears what it left.

    Raises OutputRefused where another export holds the name, or a write fails (disk full, no permission).
    """
    made = [parent for parent in out.parents if not parent.exists()]
    beside, lock = out.with_name(f".{out.name}.wisca-partial"), None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        lock = _take(_lock_path(out))
        if lock is None:
            raise OutputRefused(f"another export to {out} is running; it goes on, and this one wrote nothing.")
        if os.path.lexists(beside):
            shutil.rmtree(beside)  # its writer is gone, the lock says so
        beside.mkdir()
        yield beside
    except OSError as error:
        raise _words(error, out) from error
    finally:
        if lock is not None:
            with suppress(OSError):
                shutil.rmtree(beside)
            with suppress(OSError):
                _lock_path(out).unlink()
            os.close(lock)
        for parent in made:  # only where they are empty again
            with suppress(OSError):
                parent.rmdir()


def appear(beside: Path, out: Path) -> None:
    """Renames the written folder into place once all of it is on the disk: a power cut leaves the whole or nothing."""
    for folder, _, files in os.walk(beside):
        for name in files:
            _flush(os.path.join(folder, name))
        _flush(folder)
    if os.path.lexists(out):
        raise OutputRefused(
            f"{out} appeared while the export ran; it was left alone and nothing was written. Choose another folder."
        )
    beside.rename(out)
    _flush(out.parent)


def _flush(path: str | Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _lock_path(out: Path) -> Path:
    return out.with_name(f".{out.name}.wisca-lock")


def _take(path: Path) -> int | None:
    """The lock, held on the file that bears the name: whoever held it before may have removed theirs meanwhile."""
    while (lock := take_lock(path)) is not None:
        with suppress(FileNotFoundError):
            if os.path.samestat(os.stat(path), os.fstat(lock)):
                return lock
        os.close(lock)
    return None


def _words(error: OSError, out: Path) -> OutputRefused:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputRefused(
            f"the disk of {out.parent} became full during the export; what was written is removed again."
        )
    return OutputRefused(f"{out} could not be written: {error.strerror or error}. Nothing was left behind.")
