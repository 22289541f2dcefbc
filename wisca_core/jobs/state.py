"""Reading jobs: folders in, values out. Nothing in this file writes, except that the folder of jobs is created."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wisca_core import storage
from wisca_core.errors import BadOption, UnreadableInput
from wisca_core.progress import STATUS_FORMAT, STATUS_VERSION

SPEC_FORMAT, SPEC_VERSION = "wisca-job", 1
RESULT_FORMAT, RESULT_VERSION = "wisca-job-result", 1

ACTIVE = ("queued", "running")
FINAL = ("done", "failed", "cancelled")


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a job's folder says at one moment.

    ``state`` is queued, running, done, failed, cancelled, lost or damaged. ``done`` of ``total`` are in the unit the
    step names, total 0 is unknown. Times are seconds since 1970; None where that has not happened. ``error`` is
    {"class": ..., "message": ...} where the state is failed, cancelled, lost or damaged. ``result`` is there once
    done.
    """

    id: str
    kind: str = ""
    title: str
    state: str
    step: str = ""
    done: float = 0.0
    total: float = 0.0
    created: float
    started: float | None = None
    updated: float | None = None
    finished: float | None = None
    error: dict[str, str] | None = field(hash=False)
    folder: Path
    arguments: dict[str, Any] = field(default_factory=dict, hash=False)
    result: dict[str, Any] | None = field(default=None, hash=False)
    exclusive: str | None = None

    @property
    def is_active(self) -> bool:
        """Queued or running: a worker is alive for it."""
        return self.state in ACTIVE


def read(id: str) -> Job:
    """The job ``id``. Raises BadOption where there is none; a folder that makes no sense is a job in state damaged."""
    path = _folder(id)
    job = _read(path)
    if job is None:
        raise BadOption(f"there is no job {id!r} in {path.parent}; it may have been removed.")
    return job


def every() -> list[Job]:
    """All jobs, newest first, damaged ones among them."""
    found = []
    for path in storage.folder("jobs").iterdir():
        if path.name.startswith(".") or not (path.is_dir() or path.is_symlink()):
            continue
        job = _read(path)
        if job is not None:
            found.append(job)
    return sorted(found, key=lambda job: (job.created, job.id), reverse=True)


def wait(id: str, timeout: float | None = None) -> Job:
    """The job once it is no longer active, or as it is after ``timeout`` seconds (None: wait for ever)."""
    until = None if timeout is None else time.monotonic() + timeout
    while True:
        job = read(id)
        left = 0.05 if until is None else until - time.monotonic()
        if not job.is_active or left <= 0:
            return job
        time.sleep(min(0.05, left))


def _folder(id: str) -> Path:
    if not isinstance(id, str) or not id or id.startswith(".") or "/" in id or os.sep in id or "\0" in id:
        raise BadOption(f"{str(id)[:80]!r} is not the name of a job.")
    return storage.folder("jobs") / id


def _read(path: Path) -> Job | None:
    """The job in ``path``, None where no such folder exists (any more)."""
    try:
        created = path.lstat().st_mtime
    except OSError:
        return None
    try:
        return _job_in(path)
    except UnreadableInput as error:
        if not os.path.lexists(path):
            return None
        message = f"{error} Remove the job; nothing else depends on it."
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        message = f"{path} holds a value that does not belong there ({type(error).__name__}: {error}). Remove the job."
    error = {"class": "UnreadableInput", "message": message}
    return Job(id=path.name, title=path.name, state="damaged", created=created, error=error, folder=path)


def _job_in(path: Path) -> Job:
    if path.is_symlink():
        raise UnreadableInput(f"{path} is a link, not a job's folder.")
    spec = storage.read_json(path / "spec.json", SPEC_FORMAT, SPEC_VERSION)
    status, is_lost = storage.last_status(lambda: _status(path), ACTIVE, path / "lock")
    if is_lost:
        status |= _silent_end(path, status)
    result = None
    if status["state"] == "done":
        result = storage.read_json(path / "result.json", RESULT_FORMAT, RESULT_VERSION)["result"]
        if not isinstance(result, dict):
            raise TypeError("the result is not an object")
    arguments, exclusive, error = spec["arguments"], spec["exclusive"], status["error"]
    if not isinstance(arguments, dict) or not isinstance(exclusive, str | None) or not isinstance(error, dict | None):
        raise TypeError("arguments, exclusive or error")
    return Job(
        id=path.name,
        kind=str(spec["kind"]),
        title=str(spec["title"]),
        state=status["state"],
        step=str(status["step"]),
        done=float(status["done"]),
        total=float(status["total"]),
        created=float(spec["created"]),
        started=_time(status["started"]),
        updated=_time(status["updated"]),
        finished=_time(status["finished"]),
        error=error if error is None else {"class": str(error["class"]), "message": str(error["message"])},
        folder=path,
        arguments=arguments,
        result=result,
        exclusive=exclusive,
    )


def _status(path: Path) -> dict[str, Any]:
    status = storage.read_json(path / "status.json", STATUS_FORMAT, STATUS_VERSION)
    if status["state"] not in ACTIVE + FINAL:
        raise ValueError(f"state {str(status['state'])[:40]!r}")
    return status


def _silent_end(path: Path, status: dict[str, Any]) -> dict[str, Any]:
    if os.path.lexists(path / "cancel"):
        message = (
            f"cancelled during: {status['step']}. "
            "Its process ended without a last word (by force, or the disk was full)."
        )
        error = {"class": "Cancelled", "message": message}
        return {"state": "cancelled", "finished": status["updated"], "error": error}
    message = (
        f"the process ended without a word during: {status['step']}. It was killed, ran out of memory, or the machine "
        f"restarted. Nothing half written has a final name. Start it again; what it printed is in {path / 'log.txt'}."
    )
    return {"state": "lost", "finished": status["updated"], "error": {"class": "Lost", "message": message}}


def _time(value: Any) -> float | None:
    return None if value is None else float(value)
