"""Training one cell, from its last checkpoint where there is one.

Everything is decided by the spec, the arm, the rate, the seed and the step, on one thread; a cell that was killed and
resumed therefore ends at the same numbers on the same machine.
"""

import json
import math
import os
import time
from collections.abc import Callable

import torch
from torch import nn

from wisca_core.comparison.arms import Treatment
from wisca_core.comparison.data import Corpus, batch, windows
from wisca_core.comparison.folder import METRICS, Cell, rows
from wisca_core.comparison.models import build_model, build_optimisers, learning_rate, loss_nats, mean_loss
from wisca_core.comparison.spec import Spec
from wisca_core.comparison.weights import kept_state, load_state, save_weights

CHECKPOINT_SECONDS = 10.0

HEADER = {
    "format": METRICS, "version": 1, "losses": "nats per token; train_loss is the mean since the row before, before each update",
    "qk, vo, lora": "log2 of the left side's L1 norm over the right one, median over the layers, before a rescale of that step",
    "seconds": "of this cell's own training",
}  # fmt: skip


class CellFailed(Exception):
    """The run itself came to nothing; running it again would give the same."""


def train(spec: Spec, cell: Cell, corpus: Corpus, stop: Callable[[], bool]) -> bool:
    """Train ``cell`` to the end; False where ``stop()`` asked for a pause, after a checkpoint. Raises CellFailed where
    the loss is not finite.
    """
    validation = windows(corpus.validation, spec.data.validation_windows, spec.data.context)
    model = build_model(spec, cell.seed)
    optimisers = build_optimisers(model, spec.optimiser, cell.rate)
    treatment = Treatment(spec.arm(cell.arm), model, optimisers)
    first, before, recent = _restore(cell, model, optimisers, treatment)
    began = saved = time.monotonic()
    each = spec.evaluation_steps

    def row(step: int, train_loss: float | None, rate: float, norm: float | None, ratios: dict[str, float]) -> dict:
        evaluates = step % each == 0 or step == spec.steps
        val_loss = mean_loss(model, validation) if evaluates else None
        if val_loss is not None and not math.isfinite(val_loss):
            raise CellFailed(f"the validation loss became {val_loss} at step {step:,}.")
        return {
            "step": step, "train_loss": _rounded(train_loss), "val_loss": _rounded(val_loss), "lr": rate, "grad_norm": _rounded(norm),
            "tokens": step * spec.batch_size * spec.data.context, "seconds": round(before + time.monotonic() - began, 2),
            **{pair: _rounded(value) for pair, value in ratios.items()},
        }  # fmt: skip

    with (cell.folder / "metrics.jsonl").open("a", buffering=1, encoding="utf-8") as log:
        if first == 0:
            treatment.at(0)
            log.write(json.dumps(row(0, None, 0.0, None, treatment.ratios())) + "\n")
        for step in range(first + 1, spec.steps + 1):
            rate = learning_rate(spec.optimiser, cell.rate, step, spec.steps)
            for group in (group for one in optimisers for group in one.param_groups):
                group["lr"] = rate
            loss = loss_nats(model, batch(corpus.train, cell.seed, step, spec.batch_size, spec.data.context))
            value = loss.item()
            if not math.isfinite(value):
                raise CellFailed(f"the training loss became {value} at step {step:,} of {spec.steps:,}.")
            recent.append(value)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(model.parameters(), spec.optimiser.clip)
            for one in optimisers:
                one.step()
                one.zero_grad()
            # before the rescale of this step: a chart then shows what each one finds
            is_logged = step % spec.log_every == 0 or step % each == 0 or step == spec.steps
            ratios = treatment.ratios() if is_logged else {}
            treatment.at(step)
            if is_logged:
                log.write(json.dumps(row(step, sum(recent) / len(recent), rate, norm.item(), ratios)) + "\n")
                recent.clear()
            stops = stop()
            if step < spec.steps and (stops or time.monotonic() - saved > CHECKPOINT_SECONDS):
                _keep(cell, step, model, optimisers, treatment, recent, before + time.monotonic() - began)
                saved = time.monotonic()
            if stops and step < spec.steps:
                return False
    if spec.save_weights:
        save_weights(spec, cell, model, treatment)
    return True


def _rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, 7)


def _keep(cell: Cell, step: int, model: nn.Module, optimisers: list, treatment: Treatment, recent: list[float], seconds: float) -> None:
    part = cell.folder / ".resume.pt.part"
    torch.save(
        {"version": 1, "step": step, "model": kept_state(model, treatment), "optimisers": [one.state_dict() for one in optimisers],
         "treatment": treatment.state(), "recent": list(recent), "seconds": seconds}, part,
    )  # fmt: skip
    os.replace(part, cell.folder / "resume.pt")


def _restore(cell: Cell, model: nn.Module, optimisers: list, treatment: Treatment) -> tuple[int, float, list[float]]:
    """Step, seconds and losses since the last row; the metrics are cut back to that step."""
    file, metrics = cell.folder / "resume.pt", cell.folder / "metrics.jsonl"
    state = torch.load(file, weights_only=True) if file.exists() else None
    step = state["step"] if state else 0
    kept = rows(cell.folder, behind=step) if state else []
    part = cell.folder / ".metrics.part"
    part.write_text("".join(json.dumps(line) + "\n" for line in [HEADER, *kept]), encoding="utf-8")
    os.replace(part, metrics)
    if state is None:
        return 0, 0.0, []
    load_state(model, state["model"])
    for one, saved in zip(optimisers, state["optimisers"], strict=True):
        one.load_state_dict(saved)
    treatment.restore(state["treatment"])
    return step, float(state["seconds"]), list(state["recent"])
