"""What a comparison will take, before it is started: time, memory, disk, and the seeds an effect needs.

The time rests on a few training steps of this very model on this machine, on one thread; other work on the machine
stretches it.
"""

import math
import statistics
import time
from dataclasses import dataclass

from wisca_core.comparison.models import n_parameters
from wisca_core.comparison.spec import Spec
from wisca_core.comparison.statistics import seeds_to_see
from wisca_core.equivalence.full_check import memory_free

# Steps -> standard deviation of paired final differences, in nats: byte-level decoders of width 64 to 128, 4 layers,
# AdamW.
SPREAD = ((300, 0.07), (900, 0.028))
# What a worker holds before it has a model: torch and transformers, measured.
WORKER_BYTES = 450_000_000
# Importing torch and transformers and reading the text, in a worker.
START_SECONDS = 6.0
# A small step is too short to be timed once.
PROBE_SECONDS = 1.0


@dataclass(frozen=True)
class Estimate:
    """``memory_bytes``: of all workers together; ``free_bytes``: None where it is not known. ``spread_nats``: assumed
    standard deviation of a paired difference; ``seeds_needed``: to see ``effect_nats`` four times out of five with it.
    """

    n_cells: int
    n_parameters: int
    seconds_per_step: float
    seconds: float
    workers: int
    memory_bytes: int
    free_bytes: int | None
    disk_bytes: int
    effect_nats: float
    spread_nats: float
    seeds_needed: int

    @property
    def fits(self) -> bool:
        return self.free_bytes is None or self.memory_bytes < self.free_bytes


def estimate(spec: Spec, workers: int, seconds_per_step: float | None = None) -> Estimate:
    """``seconds_per_step``: measured here where it is not given, unless the model does not fit (then NaN)."""
    n, m, d = n_parameters(spec.model), spec.model, spec.data
    # weights, gradients, two moments, and a copy while a checkpoint is written; what a backward pass keeps
    kept = spec.batch_size * d.context * (m.n_layers * (16 * m.width + 6 * m.mlp_width + 2 * m.n_heads * d.context) + 4 * 257) * 4
    used = min(workers, spec.n_cells)
    memory = used * (WORKER_BYTES + 5 * 4 * n + kept)
    free = memory_free()
    if seconds_per_step is None:
        seconds_per_step = measure_step(spec) if free is None or memory < free else math.nan
    each = spec.steps * seconds_per_step * _overhead(spec)
    rounds = math.ceil(spec.n_cells / used)
    spread = expected_spread(spec.steps)
    rows = spec.steps / min(spec.log_every, spec.evaluation_steps)
    disk = int(spec.n_cells * (220 * rows + (4 * n if spec.save_weights else 0)) + used * 12 * n)
    return Estimate(
        spec.n_cells, n, seconds_per_step, START_SECONDS + rounds * each, used, int(memory), free, disk, spec.detect_nats, spread,
        seeds_to_see(spec.detect_nats, spread),
    )  # fmt: skip


def expected_spread(steps: int) -> float:
    """Standard deviation of a paired final difference, nats, from what was measured: straight in the logarithms,
    constant outside.

    >>> expected_spread(300), expected_spread(5000)
    (0.07, 0.028)
    """
    (a, high), (b, low) = SPREAD
    if steps <= a:
        return high
    if steps >= b:
        return low
    part = math.log(steps / a) / math.log(b / a)
    return math.exp(math.log(high) + part * (math.log(low) - math.log(high)))


def measure_step(spec: Spec) -> float:
    """Seconds of one training step on one thread: the median of those that fit into a second, at least three."""
    import torch

    from wisca_core.comparison.models import build_model, build_optimisers, loss_nats

    threads, random = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(1)
    try:
        model = build_model(spec, 0)
        optimisers = build_optimisers(model, spec.optimiser, spec.optimiser.learning_rates[0])
        rows = torch.randint(256, (spec.batch_size, spec.data.context + 1), generator=torch.Generator().manual_seed(0))
        taken: list[float] = []
        began = time.perf_counter()
        while len(taken) < 4 or (time.perf_counter() - began < PROBE_SECONDS and len(taken) < 100):
            start = time.perf_counter()
            loss_nats(model, rows).backward()
            for one in optimisers:
                one.step()
                one.zero_grad()
            taken.append(time.perf_counter() - start)
        return statistics.median(taken[1:])
    finally:
        torch.set_num_threads(threads)
        torch.set_rng_state(random)


def _overhead(spec: Spec) -> float:
    """Validation passes, in forward passes of a third of a step each, on top of training."""
    windows = spec.data.validation_windows / spec.batch_size / 3
    return 1.05 + windows / spec.evaluation_steps
