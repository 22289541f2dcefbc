"""Many types in a few processes of one thread each, each type with a limit of time.

Processes, because a model may crash the one it runs in, and only a process can be stopped whatever it is doing; not
those of concurrent.futures, which lose every task when one of them dies.
"""

import json
import os
import selectors
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from wisca_core.errors import WiscaError
from wisca_core.processes import ONE_THREAD, end, how_it_ended, program
from wisca_core.progress import Progress

COMMAND = program("wisca_core.census.worker")
START_SECONDS = 300.0  # to import torch and transformers on a busy machine
LOOK_SECONDS = 0.2


@dataclass(eq=False)
class _Worker:
    process: subprocess.Popen
    log: object
    since: float  # when it was started, or given its task
    task: str | None = None
    is_ready: bool = False
    unread: bytes = field(default=b"", repr=False)


def run(
    tasks: Iterable[str],
    granularities: Sequence[str],
    on_answer: Callable[[str, dict, float], None],
    on_failure: Callable[[str, str, float], None],
    progress: Progress,
    n_workers: int,
    limit_seconds: float,
    command: Sequence[str] = COMMAND,
) -> None:
    """Give every task to a process; ``on_answer(task, answer, seconds)`` as each comes back, ``on_failure(task, why, seconds)``
    where its process ended or took longer than ``limit_seconds``; both in this process. No order is promised.

    Cancelled (raised by ``progress``) ends all processes. WiscaError where no process can be started.
    """
    waiting = list(tasks)[::-1]
    total, done = len(waiting), 0
    workers: list[_Worker] = []
    with selectors.DefaultSelector() as selector:
        try:
            while waiting or workers:
                while waiting and len(workers) < min(n_workers, total - done):
                    workers.append(_start(command, selector))
                busy = [worker.task for worker in workers if worker.task]
                progress("proving " + ", ".join(sorted(busy)) if busy else "starting", done, total)
                for key, _ in selector.select(LOOK_SECONDS):
                    worker = key.data
                    answer = _read(worker)
                    if answer is None:
                        why = _last_words(worker)
                        _stop(worker, selector, workers)
                        if worker.task is None and not worker.is_ready:
                            raise WiscaError(f"the census cannot start: {why}. Nothing was proved.")
                        if worker.task is not None:
                            on_failure(worker.task, why, time.monotonic() - worker.since)
                            done += 1
                        continue
                    for one in answer:
                        if worker.is_ready:
                            on_answer(worker.task, one, time.monotonic() - worker.since)
                            worker.task = None
                            done += 1
                        worker.is_ready = True
                        if waiting:
                            _give(worker, waiting.pop(), granularities)
                        else:
                            _stop(worker, selector, workers)
                for worker in [
                    w for w in workers if time.monotonic() - w.since > (limit_seconds if w.is_ready else START_SECONDS)
                ]:
                    _stop(worker, selector, workers)
                    if not worker.is_ready:
                        raise WiscaError(
                            f"the census cannot start: its process was not ready within {START_SECONDS:.0f} s. Nothing was proved."
                        )
                    on_failure(worker.task, f"it took longer than {limit_seconds:.0f} s", limit_seconds)
                    done += 1
            progress("proved", total, total)
        finally:
            for worker in list(workers):
                _stop(worker, selector, workers)


def _start(command: Sequence[str], selector: selectors.BaseSelector) -> _Worker:
    log = tempfile.TemporaryFile()
    process = subprocess.Popen(
        list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env={**os.environ, **ONE_THREAD}
    )
    os.set_blocking(process.stdout.fileno(), False)
    worker = _Worker(process, log, time.monotonic())
    selector.register(process.stdout, selectors.EVENT_READ, worker)
    return worker


def _give(worker: _Worker, task: str, granularities: Sequence[str]) -> None:
    worker.task, worker.since = task, time.monotonic()
    request = json.dumps({"model_type": task, "granularities": list(granularities)}) + "\n"
    with suppress(OSError):  # it ended meanwhile: the end of its output says so
        worker.process.stdin.write(request.encode())
        worker.process.stdin.flush()


def _read(worker: _Worker) -> list[dict] | None:
    """The answers that are complete; None where it has ended, or speaks what is no answer."""
    try:
        new = os.read(worker.process.stdout.fileno(), 1 << 20)
    except BlockingIOError:
        return []
    if not new:
        return None
    *lines, worker.unread = (worker.unread + new).split(b"\n")
    try:
        return [json.loads(line) for line in lines]
    except ValueError:
        return None


def _last_words(worker: _Worker) -> str:
    try:
        code = worker.process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        return "its process gave an answer that is none"
    worker.log.seek(0)
    lines = worker.log.read()[-4000:].decode("utf-8", "replace").strip().splitlines()
    return f"its process ended {how_it_ended(code)}" + (f" ({lines[-1][:200]})" if lines and code > 0 else "")


def _stop(worker: _Worker, selector: selectors.BaseSelector, workers: list[_Worker]) -> None:
    if worker in workers:
        workers.remove(worker)
        selector.unregister(worker.process.stdout)
    end(worker.process)
    worker.log.close()
