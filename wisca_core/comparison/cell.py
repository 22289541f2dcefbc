"""Training one cell, from its last checkpoint where there is one.

Everything is decided by the spec, the arm, the rate, the seed and the step, on one thread; a cell that was killed and
resumed therefore ends at the same numbers on the same machine.
"""

import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import torch
from torch import nn
from torch.utils._pytree import tree_map

from wisca_core.comparison import ranks
from wisca_core.comparison.arms import Treatment
from wisca_core.comparison.data import Corpus, batch, windows
from wisca_core.comparison.folder import METRICS, Cell, rows
from wisca_core.comparison.models import build_model, build_optimisers, learning_rate, loss_nats, mean_loss
from wisca_core.comparison.place import Placement
from wisca_core.comparison.spec import Spec
from wisca_core.comparison.weights import kept_state, load_state, save_weights

CHECKPOINT_SECONDS = 10.0

HEADER = {
    "format": METRICS,
    "version": 1,
    "losses": "nats per token; train_loss is the mean since the row before, before each update",
    "qk, vo, mlp, "
    "lora": "log2 of the left side's L1 norm over the right one, median over the layers, before a rescale of that step",
    "clipped": "share of the steps since the row before whose gradient was longer than the limit",
    "final_loss": "validation loss on the spec's final_windows, in the last row",
    "seconds": "of training, this cell's own or that of the cells trained at once with it",
}


class CellFailed(Exception):
    """The run itself came to nothing; running it again would give the same."""


@dataclass(eq=False)
class CellRun:
    """A cell in memory at optimiser step ``step``. ``seconds`` of training behind it; ``recent``, ``clipped``: training
    losses since the last row, and whether each gradient was longer than the limit.
    """

    cell: Cell
    model: nn.Module
    optimisers: list[torch.optim.Optimizer]
    treatment: Treatment
    step: int = 0
    seconds: float = 0.0
    recent: list[float] = field(default_factory=list)
    clipped: list[bool] = field(default_factory=list)


def begin(spec: Spec, cell: Cell, place: Placement) -> CellRun:
    """The cell as its last checkpoint left it, its metrics cut back to that step, or before its first step."""
    model = place.ready(build_model(spec, cell.seed))
    ranks.shard_(model)
    optimisers = build_optimisers(model, spec.optimiser, cell.rate)
    run = CellRun(cell, model, optimisers, Treatment(spec.arm(cell.arm), model, optimisers, spec.steps, spec.watched))
    _restore(run)
    return run


def train(spec: Spec, cell: Cell, corpus: Corpus, stop: Callable[[], bool], place: Placement = Placement()) -> bool:
    """Train ``cell`` to the end; False where ``stop()`` asked for a pause, after a checkpoint. Raises CellFailed where
    the loss is not finite.
    """
    validation = ranks.rows_of_rank(
        windows(corpus.validation, spec.data.validation_windows, spec.data.context).to(place.device)
    )
    last = ranks.rows_of_rank(final_windows(spec, corpus).to(place.device))
    run = begin(spec, cell, place)
    model, optimisers, treatment = run.model, run.optimisers, run.treatment
    began = saved = time.monotonic()
    before = run.seconds

    def measured(rows: torch.Tensor) -> float:
        with place.validation_step():
            return ranks.mean(mean_loss(model, rows), place.device)

    with metrics(cell) as log:
        if run.step == 0:
            treatment.at(0)
            write_row(log, spec, run, measured(validation), 0.0, None, treatment.ratios())
        for step in range(run.step + 1, spec.steps + 1):
            rate = learning_rate(spec.optimiser, cell.rate, step, spec.steps)
            for group in (group for one in optimisers for group in one.param_groups):
                group["lr"] = rate
            rows = ranks.rows_of_rank(batch(corpus.train, cell.seed, step, spec.batch_size, spec.data.context)).to(
                place.device
            )
            with place.step():
                loss = loss_nats(model, rows)
            value = ranks.mean(loss.item(), place.device)
            check_finite(value, step, spec)
            run.recent.append(value)
            loss.backward()
            norm = ranks.number(treatment.clip_(model.parameters(), spec.optimiser.clip))
            run.clipped.append(0 < spec.optimiser.clip < norm)
            for one in optimisers:
                one.step()
                one.zero_grad()
            run.step = step
            # before the rescale of this step: a chart then shows what each one finds
            is_logged = logs(spec, step)
            ratios = treatment.ratios() if is_logged else {}
            treatment.at(step)
            run.seconds = before + time.monotonic() - began
            if is_logged:
                val_loss = measured(validation) if evaluates(spec, step) else None
                final = measured(last) if step == spec.steps else None
                write_row(log, spec, run, val_loss, rate, norm, ratios, final)
            stops, is_time = ranks.first_rank_value((stop(), time.monotonic() - saved > CHECKPOINT_SECONDS))
            if step < spec.steps and (stops or is_time):
                keep([run])
                saved = time.monotonic()
            if stops and step < spec.steps:
                return False
    finish(spec, run)
    return True


def final_windows(spec: Spec, corpus: Corpus) -> torch.Tensor:
    """Those of the final loss: as many as the spec asks for, and no more than the held-out text has side by side."""
    n = min(spec.data.final_windows, max(1, len(corpus.validation) // spec.data.context))
    return windows(corpus.validation, n, spec.data.context)


def evaluates(spec: Spec, step: int) -> bool:
    return step % spec.evaluation_steps == 0 or step in (spec.first_evaluation, spec.steps)


def logs(spec: Spec, step: int) -> bool:
    return step % spec.log_every == 0 or evaluates(spec, step)


def metrics(cell: Cell) -> TextIO:
    """To be appended to; of several ranks the first one's are written."""
    return (cell.folder / "metrics.jsonl" if ranks.is_first() else Path(os.devnull)).open(
        "a", buffering=1, encoding="utf-8"
    )


def write_row(
    log: TextIO,
    spec: Spec,
    run: CellRun,
    val_loss: float | None,
    rate: float,
    norm: float | None,
    ratios: dict[str, float],
    final_loss: float | None = None,
) -> None:
    """One line of its metrics at the step it is at; ``recent`` and ``clipped`` begin anew. Raises CellFailed for a
    validation loss that is not finite.
    """
    for loss in (val_loss, final_loss):
        if loss is not None and not math.isfinite(loss):
            raise CellFailed(f"the validation loss became {loss} at step {run.step:,}.")
    found = {
        "step": run.step,
        "train_loss": _round(sum(run.recent) / len(run.recent)) if run.recent else None,
        "val_loss": _round(val_loss),
        "lr": rate,
        "grad_norm": _round(norm),
        "tokens": run.step * spec.batch_size * spec.data.context,
        "seconds": round(run.seconds, 2),
        **{pair: _round(value) for pair, value in ratios.items()},
    }
    if run.clipped:
        found["clipped"] = round(sum(run.clipped) / len(run.clipped), 4)
    if final_loss is not None:
        found["final_loss"] = _round(final_loss)
    log.write(json.dumps(found) + "\n")
    run.recent.clear()
    run.clipped.clear()


def check_finite(loss: float, step: int, spec: Spec) -> None:
    if not math.isfinite(loss):
        raise CellFailed(f"the training loss became {loss} at step {step:,} of {spec.steps:,}.")


def _round(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, 7)


def keep(runs: Sequence[CellRun]) -> None:
    """A checkpoint of each, written before the first takes its name: a kill rarely parts runs that train together."""
    for run in runs:
        if ranks.n_ranks() == 1:
            model, optimisers = (
                _cpu_copy(kept_state(run.model, run.treatment)),
                [_cpu_copy(one.state_dict()) for one in run.optimisers],
            )
        else:
            model, optimisers = ranks.model_state(run.model), ranks.optimiser_states(run.model, run.optimisers)
        state = {
            "version": 1,
            "step": run.step,
            "model": model,
            "optimisers": optimisers,
            "treatment": run.treatment.state(),
            "recent": list(run.recent),
            "clipped": list(run.clipped),
            "seconds": run.seconds,
        }
        if ranks.is_first():
            torch.save(state, run.cell.folder / ".resume.pt.part")
    for run in runs:
        if ranks.is_first():
            os.replace(run.cell.folder / ".resume.pt.part", run.cell.folder / "resume.pt")


def _cpu_copy(state: Mapping) -> dict:
    """Tensors on the CPU with a memory of their own: of a view, torch.save would write all that it is a view of."""
    return tree_map(
        lambda value: value.detach().cpu().clone() if isinstance(value, torch.Tensor) else value, dict(state)
    )


def _restore(run: CellRun) -> None:
    file, metrics = run.cell.folder / "resume.pt", run.cell.folder / "metrics.jsonl"
    state = torch.load(file, weights_only=True, map_location="cpu") if file.exists() else None
    if ranks.is_first():
        kept = rows(run.cell.folder, behind=state["step"]) if state else []
        part = run.cell.folder / ".metrics.part"
        part.write_text("".join(json.dumps(line) + "\n" for line in [HEADER, *kept]), encoding="utf-8")
        os.replace(part, metrics)
    if state is None:
        return
    if ranks.n_ranks() == 1:
        load_state(run.model, state["model"])
        for one, saved in zip(run.optimisers, state["optimisers"], strict=True):
            one.load_state_dict(saved)
    else:
        ranks.load_(run.model, run.optimisers, state["model"], state["optimisers"])
    run.treatment.restore(state["treatment"])
    run.step, run.seconds, run.recent = state["step"], float(state["seconds"]), list(state["recent"])
    run.clipped = list(state.get("clipped", ()))


def finish(spec: Spec, run: CellRun) -> None:
    """Final weights as a model folder where the spec keeps them; the run is used up."""
    if not spec.save_weights:
        return
    model = run.model
    if ranks.n_ranks() > 1:
        state = ranks.model_state(model)
        if not ranks.is_first():
            return
        model = build_model(spec, run.cell.seed).to(next(iter(state.values())).dtype)
        model.load_state_dict(state)
    save_weights(spec, run.cell, model, run.treatment)
