"""The process of one job: ``python -m wisca_core.jobs.worker FOLDER DESCRIPTOR``, started by ``jobs.start`` only.

DESCRIPTOR is the open, locked ``lock`` of the folder; it stays open until this process ends. SIGTERM stops the work
like a cancel. The process leads its own session, so the end of a server or terminal does not reach it.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import signal
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from wisca_core import storage
from wisca_core.errors import Cancelled, OutputRefused, UnreadableInput, WiscaError
from wisca_core.jobs.control import LOCK_FORMAT, LOCK_VERSION
from wisca_core.jobs.kinds import KINDS
from wisca_core.jobs.state import RESULT_FORMAT, RESULT_VERSION, SPEC_FORMAT, SPEC_VERSION
from wisca_core.processes import collect_seldom
from wisca_core.progress import FolderProgress

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def main(arguments: list[str]) -> int:
    """Run the job in the folder ``arguments[0]``; returns 0 where it is done, 1 where not, 2 for a wrong call."""
    if len(arguments) != 2 or not arguments[1].isdigit():
        print("usage: python -m wisca_core.jobs.worker FOLDER DESCRIPTOR (use wisca_core.jobs.start)", file=sys.stderr)
        return 2
    folder, descriptor = Path(arguments[0]), int(arguments[1])
    # Programs that the work starts must not keep the lock when the worker has ended.
    os.set_inheritable(descriptor, False)
    _sign(descriptor)
    collect_seldom()
    faulthandler.enable()  # a segmentation fault at least says where, in log.txt
    sys.stdout.reconfigure(line_buffering=True)
    try:
        os.nice(5)  # the dashboard and the person's own programs come first
    except OSError:
        pass
    progress = FolderProgress(folder)
    state, error = _work(folder, progress)
    _ignore_signals()
    return 0 if progress.finish(state, error) and state == "done" else 1


def _work(folder: Path, progress: FolderProgress) -> tuple[str, dict[str, str] | None]:
    """The final state and its error."""
    try:
        for number in _SIGNALS:
            signal.signal(number, _stop)
        spec = storage.read_json(folder / "spec.json", SPEC_FORMAT, SPEC_VERSION)
        result = _function(spec["kind"])(spec["arguments"], progress, folder)
        # From here on the work stands: a late signal must not turn it into "cancelled".
        _ignore_signals()
        if not isinstance(result, dict):
            raise TypeError(f"a job of kind {spec['kind']} returned {type(result).__name__}; expected dict")
        _keep(folder / "result.json", result)
    except Cancelled as error:
        return "cancelled", _words(error, str(error))
    except WiscaError as error:
        traceback.print_exc()
        return "failed", _words(error, str(error))
    except MemoryError as error:
        traceback.print_exc()
        return "failed", _words(error, "out of memory. Free some or use a larger machine; nothing was written.")
    except BaseException as error:
        traceback.print_exc()
        last = "".join(traceback.format_exception_only(error)).strip().splitlines()[-1]
        return "failed", _words(error, f"{last} (unexpected; the whole trace is in {folder / 'log.txt'})")
    return "done", None


def _keep(path: Path, result: dict[str, Any]) -> None:
    """Write the result, trying for five seconds on a full disk: the work itself is done and may have taken hours."""
    until = time.monotonic() + 5.0
    while True:
        try:
            return storage.write_json(path, RESULT_FORMAT, RESULT_VERSION, {"result": result})
        except OutputRefused as error:
            if time.monotonic() >= until:
                raise OutputRefused(f"the work was finished, but its result could not be kept: {error}") from error
            time.sleep(0.2)


def _function(kind: str) -> Any:
    if kind not in KINDS:
        raise UnreadableInput(f"there is no kind of job {kind!r} here; it is one of {', '.join(sorted(KINDS))}.")
    module, _, name = KINDS[kind].partition(":")
    return getattr(importlib.import_module(module), name)


def _words(error: BaseException, message: str) -> dict[str, str]:
    return {"class": type(error).__name__, "message": message}


def _sign(descriptor: int) -> None:
    """Say inside the lock who holds it. In place: a rename would put a file nobody holds under its name."""
    holder = {"format": LOCK_FORMAT, "version": LOCK_VERSION, "pid": os.getpid(), "host": socket.gethostname()}
    try:
        os.pwrite(descriptor, json.dumps(holder).encode("utf-8"), 0)
    except OSError:
        pass  # full disk: the marker can still cancel the job


def _stop(number: int, frame: Any) -> None:
    _ignore_signals()  # the second one must not interrupt the tidying
    raise Cancelled(f"stopped from outside ({signal.Signals(number).name}). Nothing was left behind.")


def _ignore_signals() -> None:
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
