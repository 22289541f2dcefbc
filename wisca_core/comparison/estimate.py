"""What a comparison will take, before it is started: time, memory, disk, and the seeds an effect needs.

Where the model fits and a step is short, the time rests on a few training steps of this very model on this machine, on
one thread; other work on the machine stretches it. Else it is reckoned from the number of parameters, and says so.
"""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from wisca_core.comparison.place import Placement, free_bytes
from wisca_core.comparison.prepare import Facts, prepare
from wisca_core.comparison.spec import Spec
from wisca_core.comparison.statistics import seeds_to_see
from wisca_core.equivalence.full_check import memory_free
from wisca_core.threads import one_thread

if TYPE_CHECKING:
    from wisca_core.comparison.execution_plan import ExecutionPlan

# Standard deviation of paired final differences, in nats, at a well-chosen rate: a byte-level decoder of width 64, 4
# layers, AdamW at 4e-3, 600 steps, 8 seeds. At a rate four times too low it is half of that, and misleads.
SPREAD = 0.063
# The same where training goes on from trained weights: LoRA of rank 8 on such a decoder, 4 seeds a rate.
SPREAD_CONTINUED = 0.005
# What a worker holds before it has a model: torch and transformers, measured.
WORKER_BYTES = 450_000_000
# The same of one that uses a GPU, and what CUDA's context takes there: assumptions, of the usual order.
CUDA_WORKER_BYTES, CUDA_BYTES = 3_000_000_000, 600_000_000
# Importing torch and transformers and reading the text, in a worker.
START_SECONDS = 6.0
# A small step is too short to be timed once.
PROBE_SECONDS = 1.0
# A step that would take longer than this is not tried.
LONGEST_STEP = 3.0
# Of what a plain matrix product reaches, a training step on one thread gets about half.
STEP_SHARE = 0.5
# One data-centre GPU training in bf16: an assumption, of that order for those of 300 to 1,000 TFLOP/s on paper.
GPU_FLOPS = 1e14


@dataclass(frozen=True)
class Estimate:
    """``memory_bytes``: of all workers together; ``free_bytes``: None where it is not known. ``is_measured``: whether
    the time rests on steps taken; else on ``flops_per_second``, this thread's. ``gpu_seconds``, ``gpu_bytes``: all
    cells one after the other on one GPU of GPU_FLOPS, and one cell's memory there; never measured. ``spread_nats``:
    assumed standard deviation of a paired difference, ``spread_words`` the same with what it rests on;
    ``seeds_needed``: to see ``effect_nats`` four times out of five with it;
    ``device_memory_bytes``: of one cell on each GPU, ``device_free_bytes`` there, where it is trained on GPUs.
    """

    n_cells: int
    title: str
    n_parameters: int
    n_trained: int
    seconds_per_step: float
    is_measured: bool
    flops_per_second: float
    seconds: float
    workers: int
    memory_bytes: int
    free_bytes: int | None
    disk_bytes: int
    gpu_seconds: float
    gpu_bytes: int
    effect_nats: float
    spread_nats: float
    spread_words: str
    seeds_needed: int
    device_memory_bytes: int = 0
    device_free_bytes: int | None = None

    @property
    def fits(self) -> bool:
        fits_device = self.device_free_bytes is None or self.device_memory_bytes < self.device_free_bytes
        return fits_device and (self.free_bytes is None or self.memory_bytes < self.free_bytes)


def estimate(
    spec: Spec,
    workers: int,
    timed: Callable[[Spec, str], float] | None = None,
    facts: Facts | None = None,
    way: "ExecutionPlan | None" = None,
) -> Estimate:
    """``timed``: gives the seconds of a step on a device, by default ``measure_step``; not asked where the model does
    not fit or a step is long: it is then reckoned. ``way``: how it will be trained, by default one by one on CPU; a
    step is measured on its device, one cell at a time, so replicas on a GPU take less than is said. Raises what
    ``prepare`` raises.
    """
    facts = facts or prepare(spec)
    used = min(workers, spec.n_cells)
    a_cell = cell_bytes(spec, facts)
    if way is not None and way.device == "cuda":
        # the weights pass through the main memory on their way to the GPU
        memory, free = used * (CUDA_WORKER_BYTES + 4 * facts.n_parameters), memory_free()
        device_memory, device_free = (
            int(CUDA_BYTES + a_cell / way.n_ranks),
            min((free_bytes(n) for n in way.gpus), default=None),
        )
    else:
        memory, free = used * (WORKER_BYTES * _n_ranks(way) + max(1, way.at_once if way else 1) * a_cell), memory_free()
        device_memory, device_free = 0, None
    work, speed = flops_per_step(spec, facts), STEP_SHARE * thread_flops()
    fits = (free is None or memory < free) and (device_free is None or device_memory < device_free)
    device = f"cuda:{way.gpus[0]}" if way and way.gpus else "cpu"
    is_measured = fits and _n_ranks(way) == 1 and (device != "cpu" or work / speed < LONGEST_STEP)
    seconds_per_step = (timed or measure_step)(spec, device) if is_measured else work / speed
    each = spec.steps * seconds_per_step * _overhead(spec)
    rounds = math.ceil(spec.n_cells / used)
    spread = expected_spread(spec)
    rows = spec.steps / min(spec.log_every, spec.evaluation_steps)
    kept = 4 * (facts.n_parameters + (facts.n_trained if spec.model.source == "lora" else 0))
    disk = int(spec.n_cells * (220 * rows + (kept if spec.save_weights else 0)) + used * 12 * facts.n_trained)
    return Estimate(
        spec.n_cells,
        facts.title,
        facts.n_parameters,
        facts.n_trained,
        seconds_per_step,
        is_measured,
        speed,
        START_SECONDS + rounds * each,
        used,
        int(memory),
        free,
        disk,
        spec.n_cells * spec.steps * _overhead(spec) * work / GPU_FLOPS,
        int(a_cell),
        spec.detect_nats,
        spread,
        spread_in_words(spec, facts.n_parameters),
        seeds_to_see(spec.detect_nats, spread),
        device_memory,
        device_free,
    )


def _n_ranks(way: "ExecutionPlan | None") -> int:
    return way.n_ranks if way else 1


def flops_per_step(spec: Spec, facts: Facts) -> float:
    """Floating-point operations of one optimiser step: 6 a parameter a token passes through (4 where it is frozen,
    since no gradient of it is needed), and the scores of the attention.
    """
    tokens = spec.batch_size * spec.data.context
    frozen = facts.n_active if facts.n_trained < facts.n_parameters else 0
    a_token = 4 * frozen + 6 * (facts.n_trained if frozen else facts.n_active)
    return tokens * (a_token + 12 * facts.n_layers * facts.width * spec.data.context)


@lru_cache(maxsize=1)
def thread_flops() -> float:
    """Floating-point operations a second of a matrix product in float32 on one thread, measured for a tenth of a
    second.
    """
    import torch

    n = 384
    with one_thread():
        a, b = torch.ones(n, n), torch.ones(n, n)
        a @ b
        began, done = time.perf_counter(), 0
        while time.perf_counter() - began < 0.1:
            a @ b
            done += 1
        return done * 2 * n**3 / (time.perf_counter() - began)


def expected_spread(spec: Spec) -> float:
    """Standard deviation of a paired final difference, nats, from what was measured."""
    return SPREAD_CONTINUED if spec.model.is_trained_before else SPREAD


def spread_in_words(spec: Spec, n_parameters: int) -> str:
    """The spread and what it rests on; that nothing was measured at this length or size, where that is so."""
    if spec.model.is_trained_before:
        basis, is_far = "LoRA of rank 8 on a decoder of 2 M parameters, 150 and 300 steps", spec.model.source != "lora"
    else:
        basis = "a byte-level decoder of 0.2 M parameters at its best rate, 600 steps"
        is_far = not 300 <= spec.steps <= 1200 or n_parameters > 1_000_000 or spec.data.tokens != "bytes"
    far = "; nothing was measured at this length, size or unit, so it may be far off" if is_far else ""
    return f"{expected_spread(spec):.3f} nats: {basis}{far}"


def cell_bytes(spec: Spec, facts: Facts) -> float:
    """Weights, gradients, two moments, and a copy while a checkpoint is written; what a backward pass keeps."""
    context = spec.data.context
    a_token = (
        facts.n_layers * (16 * facts.width + 6 * facts.mlp_width + 2 * facts.n_heads * context) + 4 * facts.vocabulary
    )
    return 4 * facts.n_parameters + 16 * facts.n_trained + 4 * spec.batch_size * context * a_token


def measure_step(spec: Spec, device: str = "cpu") -> float:
    """Seconds of one training step of one cell, on one thread or on a GPU: the median of those that fit into a second,
    at least three.
    """
    import torch

    from wisca_core.comparison.models import build_model, build_optimisers, loss_nats
    from wisca_core.equivalence.undisturbed import keep_random_states

    with one_thread(), keep_random_states():
        place = Placement(device, spec.precision)
        model = place.ready(build_model(spec, 0))
        optimisers = build_optimisers(model, spec.optimiser, spec.optimiser.learning_rates[0])
        rows = torch.randint(
            256, (spec.batch_size, spec.data.context + 1), generator=torch.Generator().manual_seed(0)
        ).to(device)
        taken: list[float] = []
        began = time.perf_counter()
        while len(taken) < 4 or (time.perf_counter() - began < PROBE_SECONDS and len(taken) < 100):
            start = time.perf_counter()
            with place.step():
                loss = loss_nats(model, rows)
            loss.backward()
            for one in optimisers:
                one.step()
                one.zero_grad()
            if place.is_cuda:
                torch.cuda.synchronize(device)
            taken.append(time.perf_counter() - start)
        return statistics.median(taken[1:])


def _overhead(spec: Spec) -> float:
    """Validation passes, in forward passes of a third of a step each, on top of training."""
    data, third = spec.data, 1 / (3 * spec.batch_size)
    return 1.05 + third * (data.validation_windows / spec.evaluation_steps + data.final_windows / spec.steps)


def duration(seconds: float) -> str:
    """ "45 s", "6 min", "2 h 5 min", "12 days"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    if minutes < 60 * 48:
        return f"{minutes // 60} h {minutes % 60} min"
    days = seconds / 86400
    return f"{days:.0f} days" if days < 730 else f"{days / 365:,.0f} years"
