"""Which way a comparison's cells are trained, decided once and the same for all its arms, and recorded in its
folder.
"""

import math
import os
from dataclasses import dataclass, replace
from pathlib import Path

from wisca_core import storage
from wisca_core.comparison import place
from wisca_core.comparison.executors import EXECUTORS, TOGETHER
from wisca_core.comparison.folder import EXECUTOR, Comparison
from wisca_core.comparison.spec import Spec
from wisca_core.errors import BadOption, DeviceMissing, PlanMismatch
from wisca_core.words import plural


@dataclass(frozen=True)
class ExecutionPlan:
    """``device``: "cpu" or "cuda"; ``gpus``: numbers of the GPUs in use; ``workers``: processes side by side;
    ``at_once``: replicas in each, 0 where cells are trained one by one; ``n_ranks``: processes that a worker is made
    of.
    """

    executor: str
    device: str
    gpus: tuple[int, ...]
    workers: int
    at_once: int
    n_ranks: int = 1

    def gpus_of(self, worker: int) -> tuple[int, ...]:
        """Numbers of that worker's GPUs, none on CPU."""
        first = worker * self.n_ranks % max(1, len(self.gpus) - self.n_ranks + 1)
        return self.gpus[first : first + self.n_ranks]

    @property
    def in_words(self) -> str:
        """ "2 processes of one thread", "2 processes on 2 GPUs, up to 16 runs at once in each"."""
        if self.executor == "ray":
            return "the workers of a Ray cluster"
        where = f" on {plural(len(self.gpus), 'GPU')}" if self.gpus else " of one thread"
        each = (
            f", up to {self.at_once} runs at once in each"
            if self.at_once > 1
            else ", one run at a time in each"
            if self.at_once
            else ""
        )
        ranks = f", {self.n_ranks} of them for each run" if self.n_ranks > 1 else ""
        return f"{plural(self.workers * self.n_ranks, 'process', 'processes')}{where}{each}{ranks}"


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def choose(spec: Spec, executor: str = "auto", workers: int | None = None, n_cells: int | None = None) -> ExecutionPlan:
    """``n_cells``: those still to train. Raises BadOption, DeviceMissing.

    >>> from wisca_core.comparison.presets import PRESETS
    >>> choose(PRESETS["default"], "processes", workers=2).workers
    2
    """
    if executor not in ("auto", *EXECUTORS):
        raise BadOption(f"executor: {executor!r} was given; choose from auto, {', '.join(EXECUTORS)}.")
    if workers is not None and workers < 1:
        raise BadOption(f"workers: {workers} was given; a whole number from 1 is needed.")
    if executor == "ray":
        return _on_cluster(spec)
    numbers = place.gpus(spec.device)
    place.check_precision(spec.precision, numbers)
    device = "cuda" if numbers else "cpu"
    if executor == "auto":
        executor = next((name for name, room in TOGETHER.items() if numbers and not room.why_not(spec)), "processes")
    elif executor in TOGETHER and (why_not := TOGETHER[executor].why_not(spec)):
        raise BadOption(
            f"executor: {executor} cannot train this comparison's models: {why_not}. Use --executor processes."
        )
    n_ranks = spec.processes_per_cell
    if numbers and len(numbers) < n_ranks:
        raise DeviceMissing(
            f"processes_per_cell: {n_ranks} GPUs a cell were asked for; there {'is' if len(numbers) == 1 else 'are'} "
            f"{len(numbers)}. "
            "Nothing was started."
        )
    workers = workers or max(1, (len(numbers) if numbers else cores()) // n_ranks)
    left = spec.n_cells if n_cells is None else n_cells
    at_once = 0
    if executor in TOGETHER:
        at_once = max(1, min(TOGETHER[executor].AT_ONCE[device], math.ceil(left / workers)))
    return ExecutionPlan(executor, device, numbers, workers, at_once, n_ranks)


def plan_for(comparison: Comparison, executor: str = "auto", workers: int | None = None) -> ExecutionPlan:
    """The way this comparison began, or a new one where it is new. Raises PlanMismatch where it began in another."""
    known = recorded_execution(comparison)
    left = sum(c.state != "done" for c in comparison.cells)
    if not known:
        return choose(comparison.spec, executor, workers, left)
    began = f"this comparison's runs were trained by {known['executor']} on {known['device']}"
    rest = (
        "All its runs are trained in one way, or their differences would hold that one too: go on as it began, or "
        "start a new comparison."
    )
    if executor not in ("auto", known["executor"]):
        raise PlanMismatch(f"{began}; --executor {executor} was given. {rest}")
    spec = comparison.spec
    if spec.device == "auto" and known["device"] == "cpu":
        spec = replace(spec, device="cpu")
    way = choose(spec, known["executor"], workers, left)
    if way.device != known["device"]:
        raise DeviceMissing(f"{began}; there is only {way.device} here. {rest}")
    return way


def recorded_execution(comparison: Comparison) -> dict:
    """executor and device it began with; empty for one that never began."""
    file = comparison.path / "executor.json"
    if file.exists():
        return storage.read_json(file, EXECUTOR, 1)
    # begun before there was a choice
    return {"executor": "processes", "device": "cpu"} if comparison.corpus else {}


def record(path: Path, way: ExecutionPlan, spec: Spec) -> None:
    if (path / "executor.json").exists():
        return
    names = []
    if way.gpus:
        import torch

        names = [torch.cuda.get_device_name(number) for number in way.gpus]
    storage.write_json(
        path / "executor.json",
        EXECUTOR,
        1,
        {"executor": way.executor, "device": way.device, "device_names": names, "precision": spec.precision},
    )


def _on_cluster(spec: Spec) -> ExecutionPlan:
    if spec.processes_per_cell > 1:
        raise BadOption(
            f"executor: ray trains a cell in one process; processes_per_cell is {spec.processes_per_cell}. Use "
            "--executor processes."
        )
    from wisca_core.comparison.cluster import connect

    found = connect()
    if spec.device.startswith("cuda") and not found["GPU"]:
        raise DeviceMissing(
            f"device: {spec.device} was asked for; no node of the Ray cluster has a GPU. Nothing was started."
        )
    device = "cpu" if spec.device == "cpu" or not found["GPU"] else "cuda"
    return ExecutionPlan("ray", device, (), max(1, found["GPU" if device == "cuda" else "CPU"]), 0)
