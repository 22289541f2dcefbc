"""Starting, cancelling and removing jobs."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

from wisca_core import storage
from wisca_core.errors import BadOption, OutputRefused, UnreadableInput
from wisca_core.jobs.kinds import KINDS
from wisca_core.jobs.state import SPEC_FORMAT, SPEC_VERSION, Job, every, read
from wisca_core.processes import program
from wisca_core.progress import STATUS_FORMAT, STATUS_VERSION

LOCK_FORMAT, LOCK_VERSION = "wisca-job-lock", 1

# What SIGTERM gives a worker to tidy up before SIGKILL.
TERM_SECONDS = 3.0

# Only so that ended workers are collected (an uncollected one stays in the process table); nothing is read from them.
_children: list[subprocess.Popen] = []


def start(kind: str, arguments: dict[str, Any], title: str, *, exclusive: str | None = None) -> Job:
    """Start a job of ``kind`` (a name in KINDS) with ``arguments`` (plain JSON values) and return at once.

    ``exclusive``: a key, for instance the real path of the output folder, that only one active job may have. Raises
    BadOption for an unknown kind; OutputRefused where the key is taken (naming the other job) or nothing can be
    written.
    """
    if kind not in KINDS:
        raise BadOption(f"there is no kind of job {kind!r}; it is one of {', '.join(sorted(KINDS))}.")
    if exclusive is None:
        return _start(kind, arguments, title, None)
    with storage.hold_lock(storage.folder("jobs") / storage.START_LOCK):
        for other in every():
            if other.is_active and other.exclusive == exclusive:
                raise OutputRefused(
                    f"job {other.id} ({other.title}) is already working on {exclusive}. "
                    "Wait for it or cancel it; nothing was started."
                )
        return _start(kind, arguments, title, exclusive)


def cancel(id: str, *, kill_after: float | None = None) -> Job:
    """Ask a job to stop, and return it as it then is. A job that is not active is left alone.

    The job stops at its next progress call; without ``kill_after`` this returns at once. With it, waits that many
    seconds, then sends SIGTERM and three seconds later SIGKILL to the worker's process group for as long as the lock
    is held. Raises BadOption where there is no such job, or it must be stopped by force and runs on another machine.
    """
    job = read(id)
    lock = job.folder / "lock"
    # The worker of a job that reads as damaged may well be alive; a link is nobody's job folder.
    is_alive = job.is_active or (job.state == "damaged" and not job.folder.is_symlink() and storage.is_held(lock))
    if not is_alive:
        return job
    try:
        (job.folder / "cancel").touch()
    except OSError:
        # Full disk: no marker, so the signal is the only way to ask (a vanished folder stops the job by itself).
        kill_after = 0.0 if kill_after is None else kill_after
    if kill_after is not None and not _is_free(lock, kill_after):
        _signal(job, signal.SIGTERM)
        if not _is_free(lock, TERM_SECONDS):
            _signal(job, signal.SIGKILL)
            _is_free(lock, TERM_SECONDS)
    return read(id)


def remove(id: str) -> int:
    """Remove a job's folder, its result included, and return the bytes freed.

    Raises BadOption where there is no such job, or it is still running.
    """
    job = read(id)
    # A finished worker still needs a moment to leave the process table.
    freed = None if job.is_active else storage.remove_entry(job.folder, patience=0.2 if job.state == "damaged" else 3.0)
    if freed is None:
        raise BadOption(f"job {id} ({job.title}) is still running. Cancel it first; nothing was removed.")
    return freed


def _start(kind: str, arguments: dict[str, Any], title: str, exclusive: str | None) -> Job:
    created = time.time()
    id = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime(created))}-{kind}-{secrets.token_hex(4)}"
    folder = storage.folder("jobs") / id
    # Filled and locked under another name: whoever lists the jobs never meets one that is half there or that nobody
    # holds.
    beside = folder.with_name(f".{id}")
    descriptor = None
    try:
        beside.mkdir(mode=0o700)
        # Patience for whoever is just asking whether it is held.
        descriptor = storage.take_lock(beside / "lock", patience=1.0)
        if descriptor is None:
            raise OutputRefused(f"{beside / 'lock'} is held by another process. Try again; nothing was left behind.")
        spec = {"kind": kind, "title": title, "created": created, "exclusive": exclusive, "arguments": arguments}
        storage.write_json(beside / "spec.json", SPEC_FORMAT, SPEC_VERSION, spec)
        status = {"state": "queued", "step": "waiting to start", "done": 0.0, "total": 0.0}
        status |= {"started": None, "updated": created, "finished": None, "error": None}
        storage.write_json(beside / "status.json", STATUS_FORMAT, STATUS_VERSION, status)
        log = os.open(beside / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            os.rename(beside, folder)
            _spawn(folder, descriptor, log)
        finally:
            os.close(log)
    except OSError as error:
        shutil.rmtree(beside, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)
        raise OutputRefused(
            f"the job cannot be started in {folder}: {error.strerror or error}. Nothing was left behind."
        ) from error
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    finally:
        if descriptor is not None:
            os.close(descriptor)
    return read(id)


def _spawn(folder: Path, descriptor: int, log: int) -> None:
    # The lock goes to the worker as an open descriptor, so there is no moment at which nobody holds it.
    worker = subprocess.Popen(
        program("wisca_core.jobs.worker", folder, descriptor),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        pass_fds=(descriptor,),
        start_new_session=True,
    )
    _children[:] = [child for child in [*_children, worker] if child.poll() is None]


def _is_free(lock: Path, patience: float) -> bool:
    until = time.monotonic() + patience
    while storage.is_held(lock):
        if time.monotonic() >= until:
            return False
        time.sleep(0.02)
    return True


def _signal(job: Job, number: signal.Signals) -> None:
    try:
        holder = storage.read_json(job.folder / "lock", LOCK_FORMAT, LOCK_VERSION)
        pid, host = int(holder["pid"]), holder["host"]
    except (UnreadableInput, KeyError, TypeError, ValueError):
        return  # the worker has not said who it is: there is nobody to signal
    if host != socket.gethostname():
        raise BadOption(f"job {job.id} runs on {str(host)[:80]!r}; only that machine can stop it by force.")
    # The holder wrote this number and still holds the lock, so it is alive and its number has not gone to somebody
    # else.
    if pid > 1 and storage.is_held(job.folder / "lock"):
        try:
            os.killpg(pid, number)
        except ProcessLookupError:
            pass
