"""Running a comparison: processes side by side, each taking the next cells; all arms of a comparison by the same code.

Measured on CPU, two processes of one thread give 1.86 times the tokens of one thread, and one process with two threads
1.39 times: models this small leave little to share between threads. Of several GPUs each has a process of its own,
which sees no other. Which way it is done: see ``execution_plan``.
"""

import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path

from wisca_core import storage
from wisca_core.comparison import folder
from wisca_core.comparison.data import keep_corpus, kept_corpus, load_corpus
from wisca_core.comparison.execution_plan import ExecutionPlan, cores, plan_for, record
from wisca_core.comparison.folder import CORPUS, Comparison
from wisca_core.comparison.place import visible
from wisca_core.comparison.prepare import model_sha256
from wisca_core.comparison.worker import LOST, NO_DEVICE
from wisca_core.errors import Cancelled, OutputRefused, PlanMismatch
from wisca_core.processes import ONE_THREAD, end, program
from wisca_core.progress import Progress, silent

# A worker that dies without a word (killed, out of memory) gets a second try from its checkpoint, not a third.
ATTEMPTS = 2
LOOK_SECONDS = 0.25
PATIENCE_SECONDS = 30.0  # for workers to write their checkpoints
RANKS_SECONDS = 5.0  # for ranks that wait for one that is gone: they may have a word on why
STORE = ".ranks-"

Ranks = tuple[subprocess.Popen, ...]  # one process, or several that train each cell together


def run(path: Path, workers: int | None = None, progress: Progress = silent, executor: str = "auto") -> Comparison:
    """Train every unfinished cell of the comparison in ``path`` and return what the folder then says.

    ``workers``: processes side by side, default one a core or a GPU; ``executor``: one of execution_plan.EXECUTORS, or
    "auto". Returns early, state "paused", where the folder is asked to pause. Raises Cancelled (the folder keeps
    everything), OutputRefused where another process runs it, PlanMismatch where the text or the way of training is no
    longer the one it began with, BadOption and DeviceMissing where it cannot be trained in that way here.
    """
    path = Path(path)
    comparison = folder.read(path)
    way = plan_for(comparison, executor, workers)
    descriptor = storage.take_lock(path / "lock", patience=0.5)
    if descriptor is None:
        raise OutputRefused(
            f"{path} is being run by another process. Follow it on the Compare page, or pause it there."
        )
    try:
        return _run(comparison, way, progress)
    finally:
        os.close(descriptor)


def _run(comparison: Comparison, way: ExecutionPlan, progress: Progress) -> Comparison:
    path = comparison.path
    for marker in ("pause", "cancel"):
        (path / marker).unlink(missing_ok=True)
    began, earlier = time.time(), comparison.seconds

    def status(state: str, message: str = "") -> None:
        ended = {} if state == "running" else {"finished": time.time()}
        folder.write_status(
            path,
            state,
            message=message,
            started=began,
            workers=way.workers,
            seconds=round(earlier + time.time() - began, 1),
            **ended,
        )

    _same_corpus(comparison)
    record(path, way, comparison.spec)
    status("running")
    written = time.monotonic()

    def look() -> None:
        nonlocal written
        now = folder.read(path)
        n = sum(c.state == "done" for c in now.cells)
        progress(f"training, {n} of {len(now.cells) + now.n_coming} runs finished", now.steps_done, now.steps_total)
        if time.monotonic() - written > 2:
            written = time.monotonic()
            status("running")

    try:
        has_more = True
        while has_more:
            _train(path, way, look)
            # what a pilot found decides what is trained next
            has_more = not folder.stop_request(path) and folder.settle_pilot(path)
    except (Cancelled, KeyboardInterrupt) as stopped:
        status(
            "cancelled" if isinstance(stopped, Cancelled) else "paused",
            "asked to stop; resuming continues from the last checkpoints",
        )
        raise
    except BaseException as error:
        status("failed", f"{type(error).__name__}: {error}")
        raise
    marker = folder.stop_request(path)
    if marker:
        state = "paused" if marker == "pause" else "cancelled"
        status(state, "asked to stop; resuming continues from the last checkpoints")
    else:
        failed = [c for c in folder.read(path).cells if c.state == "failed"]
        left = [c for c in folder.read(path).cells if c.state not in ("done", "failed")]
        if left:
            status(
                "failed",
                f"{len(left)} cells were not run: every worker ended early. What they printed is in "
                f"{path / 'log.txt'}.",
            )
        else:
            status("done", f"{len(failed)} of {len(comparison.cells)} runs failed" if failed else "")
    return folder.read(path)


def _train(path: Path, way: ExecutionPlan, look: Callable[[], None]) -> None:
    """Every cell that is known by now and not finished."""
    todo = [c for c in folder.read(path).cells if c.state != "done" and not (c.state == "failed" and c.is_final)]
    for cell in todo:
        folder.write_cell_status(cell, state="waiting", reason="", attempts=0)
    if way.executor == "ray":
        from wisca_core.comparison import cluster

        with cluster.tasks(path, way.device) as (start, ended, stop):
            _supervise(path, todo, start, ended, stop, look)
    else:
        try:
            # a number decides a worker's GPUs
            _supervise(path, range(min(way.workers, len(todo))), partial(_start, path, way), _ended, _stop, look)
        finally:
            for store in path.glob(f"{STORE}*"):
                store.unlink(missing_ok=True)


def _supervise(path: Path, what: Iterable, start: Callable, ended: Callable, stop: Callable, look: Callable) -> None:
    """See each of ``what`` to its end: ``start`` makes a worker (processes, or a task of a cluster) of it; ``ended``
    gives those that are no more, within a moment, each with its exit code; ``stop`` ends them, by themselves within
    ``patience`` or by force.
    """
    running = {}
    try:
        for one in what:
            running[start(one)] = one
        while running:
            for worker, code in ended(running):
                one = running.pop(worker)
                # a device that failed may be there again for a fresh process; one that is not there stays without
                has_more = code == LOST or (code not in (0, NO_DEVICE) and _record_death(path, code))
                if has_more and not folder.stop_request(path):
                    running[start(one)] = one
            look()
    except (Cancelled, KeyboardInterrupt) as stopped:
        folder.ask(path, "cancel" if isinstance(stopped, Cancelled) else "pause")
        stop(*running, patience=PATIENCE_SECONDS)
        raise
    except BaseException:
        stop(*running)
        raise


def _start(path: Path, way: ExecutionPlan, number: int) -> Ranks:
    """For several, what torchrun does, without its store, which listens on every interface: they meet in a file of the
    comparison's folder, so they are on one machine.
    """
    environment = os.environ | ONE_THREAD
    gpus = way.gpus_of(number)
    if gpus:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(visible, gpus))
    options = ["--executor", way.executor, "--device", "cuda" if gpus else "cpu", "--at-once", way.at_once]
    places = [{}]
    if way.n_ranks > 1:
        options += ["--store", path / f"{STORE}{os.urandom(6).hex()}"]
        places = [{"RANK": str(n), "LOCAL_RANK": str(n), "WORLD_SIZE": str(way.n_ranks)} for n in range(way.n_ranks)]
    command, ranks = program("wisca_core.comparison.worker", path, *options), []
    try:
        with (path / "log.txt").open("ab") as log:
            for place in places:
                given = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log, "env": environment | place}
                ranks.append(subprocess.Popen(command, **given))
    except BaseException:
        end(*ranks)
        raise
    return tuple(ranks)


def _ended(workers: Iterable[Ranks]) -> Iterator[tuple[Ranks, int]]:
    time.sleep(LOOK_SECONDS)
    for ranks in list(workers):
        codes = [code for one in ranks if (code := one.poll()) is not None]
        if any(codes):
            end(*ranks, patience=RANKS_SECONDS)
            codes += [one.returncode for one in ranks]
        if len(codes) >= len(ranks):
            yield ranks, LOST if LOST in codes else next(filter(None, codes), 0)


def _stop(*workers: Ranks, patience: float = 0.0) -> None:
    end(*chain(*workers), patience=patience)


def _record_death(path: Path, code: int) -> bool:
    """A worker ended without a word: each cell it had gets another try, or is given up. Whether there was any."""
    words = f"signal {-code}; 9 is a kill, most often for lack of memory" if code < 0 else f"exit code {code}"
    found = False
    for cell in folder.read(path).cells:
        if cell.state == "running" and not storage.is_held(cell.folder / "lock"):
            found = True
            if cell.attempts + 1 < ATTEMPTS:
                folder.write_cell_status(cell, state="waiting", attempts=cell.attempts + 1)
            else:
                folder.write_cell_status(
                    cell,
                    state="failed",
                    attempts=cell.attempts + 1,
                    is_final=False,
                    reason=f"its process ended {ATTEMPTS} times without a word ({words}).",
                )
    return found


def _same_corpus(comparison: Comparison) -> None:
    # a data set of the hub is not fetched again: what was fetched is what the comparison trains on
    is_here = comparison.spec.data.source == "hub" and bool(comparison.corpus)
    corpus = kept_corpus(comparison.spec, comparison.path) if is_here else load_corpus(comparison.spec)
    facts = corpus.facts | {"model_sha256": model_sha256(comparison.spec)}
    if comparison.corpus:
        known = comparison.corpus["sha256"]
        if facts["sha256"] != known:
            raise PlanMismatch(
                f"the text has sha256 {facts['sha256'][:16]}..., this comparison began with {known[:16]}... (Python "
                f"{comparison.corpus['python']}). "
                "Results on different texts are never pooled: restore the text, or start a new comparison."
            )
        begun = comparison.corpus.get("model_sha256", "")
        if facts["model_sha256"] != begun:
            raise PlanMismatch(
                f"the model in {comparison.spec.model.path} has sha256 {facts['model_sha256'][:16]}..., this "
                f"comparison began from {begun[:16]}.... "
                "Runs from different models are never pooled: restore the model, or start a new comparison."
            )
        keep_corpus(corpus, comparison.spec, comparison.path)
        return
    machine = {
        "platform": platform.platform(),
        "processor": platform.machine(),
        "cores": cores(),
        "versions": _versions(),
    }
    keep_corpus(corpus, comparison.spec, comparison.path)
    storage.write_json(comparison.path / "corpus.json", CORPUS, 1, facts | {"machine": machine})


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {"python": platform.python_version()} | {name: version(name) for name in ("torch", "transformers", "wisca")}
