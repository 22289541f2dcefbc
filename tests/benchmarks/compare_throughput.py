"""Tokens per second of a comparison on CPU: its processes side by side against one process with all threads, and HF Trainer.

    python tests/benchmarks/compare_throughput.py [--steps N] [--preset default]

All figures come from one run of this file, one after the other, and leave out start-up. Ratios over 1 are for us. On a machine with
other work on it they say little: the processes side by side then share what is left of the cores.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from wisca_core.comparison.executor import cores
from wisca_core.comparison.spec import PRESETS, Spec


def ours(spec: Spec) -> float:
    """Seconds of ``spec.steps`` steps of one cell in this process."""
    import torch

    from wisca_core.comparison.data import batch, load_corpus
    from wisca_core.comparison.models import build_model, build_optimisers, loss_nats

    corpus = load_corpus(spec)
    model = build_model(spec, 1)
    optimisers = build_optimisers(model, spec.optimiser, 1e-3)

    def step(i: int) -> None:
        loss = loss_nats(model, batch(corpus.train, 1, i, spec.batch_size, spec.data.context))
        loss.item()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for one in optimisers:
            one.step()
            one.zero_grad()

    for i in range(5):
        step(i)
    began = time.perf_counter()
    for i in range(spec.steps):
        step(i)
    return time.perf_counter() - began


def trainer(spec: Spec) -> float:
    """The same with transformers' Trainer."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from wisca_core.comparison.data import batch, load_corpus
    from wisca_core.comparison.models import build_model

    corpus = load_corpus(spec)
    rows = [batch(corpus.train, 1, i, 1, spec.data.context)[0, :-1] for i in range((spec.steps + 5) * spec.batch_size)]
    marks = {}

    class Clock(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            marks[state.global_step] = time.perf_counter()

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, max_steps=spec.steps + 5, per_device_train_batch_size=spec.batch_size, learning_rate=1e-3, report_to=[], save_strategy="no",
            logging_strategy="no", disable_tqdm=True, use_cpu=True,
        )  # fmt: skip
        Trainer(build_model(spec, 1), arguments, train_dataset=[{"input_ids": r, "labels": r} for r in rows], callbacks=[Clock()]).train()
    return marks[spec.steps + 5] - marks[5]


def alone(what: str, spec: Spec, preset: str, threads: int, processes: int = 1) -> float:
    """Tokens per second of ``processes`` fresh processes of ``threads`` threads, which start their steps together."""
    start = time.time() + 25
    command = [sys.executable, __file__, "--run", what, "--steps", str(spec.steps), "--preset", preset, "--at", str(start)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    running = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(processes)]
    seconds = [float(one.communicate()[0].split()[-1]) for one in running]
    return processes * spec.steps * spec.batch_size * spec.data.context / max(seconds)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--steps", type=int, default=200)
    options.add_argument("--preset", default="default", choices=list(PRESETS))
    options.add_argument("--run", choices=["ours", "trainer"], help=argparse.SUPPRESS)
    options.add_argument("--at", type=float, help=argparse.SUPPRESS)
    given = options.parse_args()
    spec = replace(PRESETS[given.preset], steps=given.steps)
    if given.run:
        import torch
        import transformers  # noqa: F401 - imported before the clock

        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        if given.at:
            time.sleep(max(0.0, given.at - time.time()))
        print({"ours": ours, "trainer": trainer}[given.run](spec))
        return
    n = cores()
    print(f"{given.preset}: width {spec.model.width}, {spec.model.n_layers} layers, batch {spec.batch_size} x {spec.data.context}, "
          f"{spec.steps} steps, {n} cores, load before {os.getloadavg()[0]:.1f}; {Path(sys.executable).name}", flush=True)  # fmt: skip
    figures = {}
    for name, what, threads, processes in (
        ("one process, one thread", "ours", 1, 1),
        (f"one process, {n} threads", "ours", n, 1),
        ("HF Trainer, one thread", "trainer", 1, 1),
        (f"HF Trainer, {n} threads", "trainer", n, 1),
        (f"{n} processes of one thread", "ours", 1, n),
    ):
        figures[name] = alone(what, spec, given.preset, threads, processes)
        print(f"{name:28s} {figures[name]:10,.0f} tokens/s", flush=True)
    values = list(figures.values())
    print(f"side by side over one process with all threads: {values[4] / values[1]:.2f}")
    print(f"side by side over HF Trainer at its best:        {values[4] / max(values[2:4]):.2f}")
    print(f"one thread of ours over one of HF Trainer:       {values[0] / values[2]:.2f}")


if __name__ == "__main__":
    main()
