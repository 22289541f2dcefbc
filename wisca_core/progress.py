"""Telling how far long work has come, and being told to stop: one callable, whoever listens.

Work that takes long accepts ``progress: Progress`` and calls it now and then. The command line passes one that draws a
bar, a job passes ``FolderProgress``, a notebook passes nothing and gets ``silent``. Any call may raise Cancelled; the
work then removes what it has half written and lets the error pass.
"""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import Any, Protocol

from wisca_core.errors import Cancelled, OutputRefused
from wisca_core.storage import write_json

STATUS_FORMAT = "wisca-job-status"
STATUS_VERSION = 1

# A reader looks every half second or so; more writes than this only wear the disk.
WRITE_EVERY_SECONDS = 0.2
# A new step is the news people look for, and the call after it may be a minute away: it waits only this long.
NEW_STEP_SECONDS = 0.02
LOOK_EVERY_SECONDS = 0.1


class Progress(Protocol):
    """``progress(step, done, total)``: ``step`` says in words what is being done, ``done`` of ``total`` in one unit.

    ``total`` 0 means unknown. Raises Cancelled where the person has cancelled.
    """

    def __call__(self, step: str, done: float, total: float) -> None: ...


def silent(step: str, done: float, total: float) -> None:
    """A Progress that nobody listens to and nobody cancels."""


class FolderProgress:
    """A Progress that keeps ``status.json`` of a job folder, and obeys the folder's ``cancel`` marker.

    Cheap enough for an inner loop: at most one write in 0.2 s (a new step text: 0.02 s) and one look at the marker in
    0.1 s. A status that cannot be written (disk full) does not stop the work; a folder that somebody removed does, as
    Cancelled.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._status: dict[str, Any] = {"state": "running", "step": "starting", "done": 0.0, "total": 0.0}
        self._status |= {"started": time.time(), "updated": None, "finished": None, "error": None}
        self._written = self._looked = -math.inf
        self._write()

    def __call__(self, step: str, done: float, total: float) -> None:
        now = time.monotonic()
        if now - self._looked >= LOOK_EVERY_SECONDS:
            self._looked = now
            self._obey(step)
        is_new = step != self._status["step"]
        self._status |= {"step": step, "done": _number(done), "total": _number(total)}
        if now - self._written >= (NEW_STEP_SECONDS if is_new else WRITE_EVERY_SECONDS):
            self._written = now
            self._write()

    def finish(self, state: str, error: dict[str, str] | None = None) -> bool:
        """Write the final state: done, failed or cancelled. On a full disk tries for five seconds; False if in vain."""
        self._status |= {"state": state, "error": error, "finished": time.time()}
        until = time.monotonic() + 5.0
        while not self._write():
            if time.monotonic() >= until or not self._folder.is_dir():
                return False
            time.sleep(0.2)
        return True

    def _write(self) -> bool:
        self._status["updated"] = time.time()
        try:
            write_json(self._folder / "status.json", STATUS_FORMAT, STATUS_VERSION, self._status)
        except OutputRefused:
            return False
        return True

    def _obey(self, step: str) -> None:
        if os.path.lexists(self._folder / "cancel"):
            raise Cancelled(f"cancelled during: {step}. Nothing was left behind.")
        if not self._folder.is_dir():
            raise Cancelled(f"the job's folder was removed during: {step}. Nothing was left behind.")


def _number(value: float) -> float:
    value = float(value)
    return value if math.isfinite(value) else 0.0
