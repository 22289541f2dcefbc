"""Total tokens per second of a comparison's cells, by every way there is to train them, as ratios within one run.

    python tests/benchmarks/compare_throughput.py [--rounds N] [--steps N] [--model default|wide] [--device
    auto|cpu|cuda] [--busy]

Every way has its processes waiting from the start; a round lets one way after the other train for some steps, so that
other work on the machine meets all of them, and a ratio is the median over the rounds of the ratio within a round.
Start-up, validation and rescales are left out. "a CPU second" counts the processors' time of all processes of a way,
which other work disturbs less; threads that wait in a loop count as busy there. ``--busy`` leaves out the ways of
several threads, which crawl where others want the cores too, and compares one thread with one thread. Ratios over 1 are
for us.
"""

import argparse
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from queue import Queue

from wisca_core.comparison.execution_plan import cores
from wisca_core.comparison.presets import PRESETS
from wisca_core.comparison.replicas import AT_ONCE
from wisca_core.comparison.spec import ModelSpec, Spec

MODELS = {
    "default": ModelSpec(),
    "wide": ModelSpec(width=128, mlp_width=384),
}  # both of 4 layers, 8 query heads on 1 KV head
WARM_UP = 3


# --- in a process of its own ------------------------------------------------------------------------------------------


def plain(spec: Spec, device: str, at_once: int) -> Callable[[int], None]:
    """The step of ``cell.train``."""
    import torch

    from wisca_core.comparison.data import batch, load_corpus
    from wisca_core.comparison.models import build_model, build_optimisers, loss_nats

    corpus = load_corpus(spec)
    model = build_model(spec, 1).to(device)
    optimisers = build_optimisers(model, spec.optimiser, 1e-3)
    done = 0

    def run(steps: int) -> None:
        nonlocal done
        for _ in range(steps):
            done += 1
            loss = loss_nats(model, batch(corpus.train, 1, done, spec.batch_size, spec.data.context).to(device))
            loss.item()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for one in optimisers:
                one.step()
                one.zero_grad()

    return run


def replicas(spec: Spec, device: str, at_once: int) -> Callable[[int], None]:
    """The step of ``replicas.train_group``, captured as a graph on CUDA."""
    import torch

    from wisca_core.comparison.data import batch, load_corpus
    from wisca_core.comparison.models import build_model, build_optimisers
    from wisca_core.comparison.place import Placement
    from wisca_core.comparison.replicas.group import _capture, _one_step
    from wisca_core.comparison.replicas.stack import Stack

    corpus = load_corpus(spec)
    place = Placement(device)
    seeds = [1 + i // 4 for i in range(at_once)]  # four arms a seed see the same text
    models = [build_model(spec, seed).to(device) for seed in seeds]
    stack = Stack(models, [build_optimisers(m, spec.optimiser, 1e-3) for m in models])
    done, step = 0, None

    def run(steps: int) -> None:
        nonlocal done, step
        for i in range(steps):
            done += 1
            texts = {seed: batch(corpus.train, seed, done, spec.batch_size, spec.data.context) for seed in set(seeds)}
            rows = torch.stack([texts[seed] for seed in seeds]).to(device)
            stack.set_rates([1e-3] * at_once, [done] * at_once)
            if step is None:
                step = (
                    _capture(stack, rows, 1.0, place)
                    if place.is_cuda
                    else lambda rows: _one_step(stack, rows, 1.0, place)
                )
            losses, _ = step(rows)
            if not place.is_cuda or i == steps - 1:
                losses.tolist()

    return run


def trainer(spec: Spec, device: str, at_once: int) -> Callable[[int], None]:
    """transformers' Trainer, held at the end of a step until more are asked for."""
    import tempfile

    from transformers import Trainer, TrainerCallback, TrainingArguments

    from wisca_core.comparison.data import batch, load_corpus
    from wisca_core.comparison.models import build_model

    corpus = load_corpus(spec)
    rows = [batch(corpus.train, 1, i, 1, spec.data.context)[0, :-1] for i in range(2000)]
    wanted, finished = Queue(), Queue()

    class Gate(TrainerCallback):
        left = 0

        def on_step_begin(self, *_, **__):
            if self.left == 0:
                self.left = wanted.get()

        def on_step_end(self, *_, **__):
            self.left -= 1
            if self.left == 0:
                if device != "cpu":
                    import torch

                    torch.cuda.synchronize()
                finished.put(None)

    arguments = TrainingArguments(
        tempfile.mkdtemp(),
        max_steps=10**9,
        per_device_train_batch_size=spec.batch_size,
        learning_rate=1e-3,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        use_cpu=device == "cpu",
    )
    one = Trainer(
        build_model(spec, 1), arguments, train_dataset=[{"input_ids": r, "labels": r} for r in rows], callbacks=[Gate()]
    )
    threading.Thread(target=one.train, daemon=True).start()

    def run(steps: int) -> None:
        wanted.put(steps)
        finished.get()

    return run


WAYS = {"plain": plain, "replicas": replicas, "trainer": trainer}


def serve(spec: Spec, way: str, device: str, at_once: int) -> None:
    """Answers each line with a number of steps on stdin by the wall and processor seconds they took."""
    import torch
    from transformers.utils import logging

    logging.set_verbosity_error()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    run = WAYS[way](spec, device, at_once)
    run(WARM_UP)
    print("ready", flush=True)
    for line in sys.stdin:
        began, busy = time.perf_counter(), time.process_time()
        run(int(line))
        print(time.perf_counter() - began, time.process_time() - busy, flush=True)
    os._exit(0)  # the trainer's thread waits for ever


# --- all of them together ---------------------------------------------------------------------------------------------


class ExecutionPlan:
    """``n`` waiting processes that train by one way, on ``threads`` threads each."""

    def __init__(
        self,
        title: str,
        what: str,
        options: argparse.Namespace,
        device: str,
        threads: int = 1,
        n: int = 1,
        at_once: int = 1,
    ):
        self.title, self.n, self.at_once, self.figures = title, n, at_once, []
        command = [
            sys.executable,
            "-W",
            "ignore",
            __file__,
            "--serve",
            what,
            "--model",
            options.model,
            "--on",
            device,
            "--at-once",
            str(at_once),
        ]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
        self.processes = [
            subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for _ in range(n)
        ]

    def wait(self) -> None:
        for one in self.processes:
            while (line := one.stdout.readline().strip()) != "ready":
                if not line and one.poll() is not None:
                    raise SystemExit(f"{self.title} ended with {one.returncode}")

    def round(self, spec: Spec, steps: int) -> None:
        steps = max(1, steps // self.at_once)
        for one in self.processes:
            print(steps, file=one.stdin, flush=True)
        taken = [tuple(map(float, one.stdout.readline().split())) for one in self.processes]
        tokens = self.n * self.at_once * steps * spec.batch_size * spec.data.context
        self.figures.append((tokens / max(wall for wall, _ in taken), tokens / sum(busy for _, busy in taken)))

    def over(self, other: "ExecutionPlan", which: int = 0) -> float:
        return statistics.median(a[which] / b[which] for a, b in zip(self.figures, other.figures, strict=True))

    def middle(self, which: int) -> float:
        return statistics.median(figure[which] for figure in self.figures)

    def end(self) -> None:
        for one in self.processes:
            one.stdin.close()
            one.wait()


def compare(ways: list[ExecutionPlan], spec: Spec, options: argparse.Namespace) -> None:
    for way in ways:
        way.wait()
    for _ in range(options.rounds):
        for way in ways:
            way.round(spec, options.steps)
    for way in ways:
        print(f"  {way.title:48s} {way.middle(0):10,.0f} tokens/s {way.middle(1):10,.0f} a CPU second", flush=True)
        way.end()


def on_cpu(spec: Spec, options: argparse.Namespace) -> None:
    n, r = cores(), AT_ONCE["cpu"]
    one, hf = (
        ExecutionPlan("plain loop, one thread", "plain", options, "cpu"),
        ExecutionPlan("HF Trainer, one thread", "trainer", options, "cpu"),
    )
    stacked = ExecutionPlan(f"replicas: {r} in one process of one thread", "replicas", options, "cpu", at_once=r)
    wide = (
        []
        if options.busy
        else [
            ExecutionPlan(f"plain loop, {n} threads", "plain", options, "cpu", n),
            ExecutionPlan(f"HF Trainer, {n} threads", "trainer", options, "cpu", n),
            ExecutionPlan(f"processes: {n} of one thread", "plain", options, "cpu", n=n),
            ExecutionPlan(
                f"replicas: {r} in each of {n} processes of one thread", "replicas", options, "cpu", n=n, at_once=r
            ),
        ]
    )
    compare([one, hf, stacked, *wide], spec, options)
    for what, which in (("", 0), (" in CPU time", 1)):
        print(
            f"  one thread{what}: plain over HF Trainer {one.over(hf, which):.2f}, replicas over HF Trainer "
            f"{stacked.over(hf, which):.2f}, "
            f"replicas over plain {stacked.over(one, which):.2f}"
        )
    if wide:
        all_threads, hf_all, side, stacked_side = wide
        best_hf = max(hf, hf_all, key=lambda way: way.middle(0))
        print(f"  processes over one process with all threads: {side.over(all_threads):.2f} (target 1.2)")
        print(f"  processes over HF Trainer at its best:       {side.over(best_hf):.2f} (target 1)")
        print(f"  replicas in {n} processes over {n} processes: {stacked_side.over(side):.2f}")


def on_gpu(spec: Spec, options: argparse.Namespace) -> None:
    hf, one = (
        ExecutionPlan("HF Trainer, one cell after another", "trainer", options, "cuda:0"),
        ExecutionPlan("plain loop", "plain", options, "cuda:0"),
    )
    stacked = [
        ExecutionPlan(f"replicas: {r} at once", "replicas", options, "cuda:0", at_once=r)
        for r in (4, 16, AT_ONCE["cuda"])
    ]
    compare([hf, one, *stacked], spec, options)
    for way in (one, *stacked):
        print(f"  {way.title} over HF Trainer: {way.over(hf):.2f}{' (target 8)' if way is stacked[-1] else ''}")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--rounds", type=int, default=9)
    options.add_argument("--steps", type=int, default=24, help="cell steps of a process in a round")
    options.add_argument("--model", choices=list(MODELS), help="default: both, one after the other")
    options.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    options.add_argument("--busy", action="store_true", help="only ways of one thread")
    options.add_argument("--serve", choices=list(WAYS), help=argparse.SUPPRESS)
    options.add_argument("--on", help=argparse.SUPPRESS)
    options.add_argument("--at-once", type=int, default=1, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.serve:
        serve(replace(PRESETS["default"], model=MODELS[given.model]), given.serve, given.on, given.at_once)
        return
    import torch

    for model in [given.model] if given.model else list(MODELS):
        given.model = model
        spec = replace(PRESETS["default"], model=MODELS[given.model])
        print(
            f"width {spec.model.width}, {spec.model.n_layers} layers, batch {spec.batch_size} x {spec.data.context}; "
            f"{given.rounds} rounds of "
            f"{given.steps} steps; torch {torch.__version__}",
            flush=True,
        )
        if given.device != "cuda":
            print(f" CPU, {cores()} cores, load before {os.getloadavg()[0]:.1f}", flush=True)
            on_cpu(spec, given)
        if torch.cuda.is_available() and given.device != "cpu":
            print(f" {torch.cuda.get_device_name(0)}", flush=True)
            on_gpu(spec, given)
        elif given.device != "cpu":
            print(" no CUDA GPU here: nothing was measured on one", flush=True)


if __name__ == "__main__":
    main()
