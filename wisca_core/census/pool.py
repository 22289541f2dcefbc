"""Many types in a few processes of one thread each, each type with a limit of time.

Processes, because a model may crash the one it runs in, and only a process can be stopped whatever it is doing; not
those of concurrent.futures, which lose every task when one of them dies.
"""

import tempfile
import time
from collections.abc import Callable, Iterable, Sequence

from wisca_core.answering import Answerer, heard
from wisca_core.errors import WiscaError
from wisca_core.processes import how_it_ended
from wisca_core.progress import Progress

FUNCTION = "wisca_core.census.judge:answers"
START_SECONDS = 300.0  # to import torch and transformers on a busy machine
LOOK_SECONDS = 0.2


class _Worker(Answerer):
    def __init__(self, function: str) -> None:
        self.log = tempfile.TemporaryFile()
        super().__init__(self.log)
        self.function, self.task = function, ""
        self.ask(function, [])  # answered once everything is imported

    def give(self, task: str, granularities: Sequence[str]) -> None:
        self.task = task
        self.ask(self.function, [[task, list(granularities)]])

    def end(self) -> None:
        super().end()
        self.log.close()


def run(
    tasks: Iterable[str],
    granularities: Sequence[str],
    on_answer: Callable[[str, bytes, float], None],
    on_failure: Callable[[str, str, float], None],
    progress: Progress,
    n_workers: int,
    limit_seconds: float,
    function: str = FUNCTION,
) -> None:
    """Give every task to a process, which has ``function`` answer [[task, granularities]];
    ``on_answer(task, answer, seconds)`` as each comes back, ``on_failure(task, why, seconds)`` where its process ended
    or took longer than ``limit_seconds``; both in this process. No order is promised.

    Cancelled (raised by ``progress``) ends all processes. WiscaError where no process can be started.
    """
    waiting = list(tasks)[::-1]
    total, done = len(waiting), 0
    workers: list[_Worker] = []
    try:
        while waiting or workers:
            while waiting and len(workers) < min(n_workers, total - done):
                workers.append(_Worker(function))
            busy = sorted(worker.task for worker in workers if worker.task)
            progress("proving " + ", ".join(busy) if busy else "starting", done, total)
            speaking = heard(workers, LOOK_SECONDS)
            for worker in list(workers):
                seconds = time.monotonic() - worker.asked
                limit = limit_seconds if worker.task else START_SECONDS
                if worker in speaking:
                    answer, why = _answer(worker)
                elif seconds <= limit:
                    continue
                else:
                    words = "it took longer than" if worker.task else "its process was not ready within"
                    answer, why = None, f"{words} {limit:.0f} s"
                if worker.task:
                    done += 1
                    on_failure(worker.task, why, seconds) if answer is None else on_answer(worker.task, answer, seconds)
                elif answer is None:
                    raise WiscaError(f"the census cannot start: {why}. Nothing was proved.")
                if answer is not None and waiting:
                    worker.give(waiting.pop(), granularities)
                else:
                    workers.remove(worker)
                    worker.end()
        progress("proved", total, total)
    finally:
        for worker in workers:
            worker.end()


def _answer(worker: _Worker) -> tuple[bytes | None, str]:
    """The answer, or None and why there is none."""
    try:
        return b"".join(worker.answer()), ""
    except (WiscaError, TimeoutError, OverflowError):
        return None, "its process gave an answer that is none"
    except EOFError as ended:
        (code,) = ended.args
    worker.log.seek(0)
    lines = worker.log.read()[-4000:].decode("utf-8", "replace").strip().splitlines()
    return None, f"its process ended {how_it_ended(code)}" + (f" ({lines[-1][:200]})" if lines and code > 0 else "")
