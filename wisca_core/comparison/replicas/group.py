"""Training several cells at once in one process, as replicas of one stack; each ends, fails and is kept on its own.

A cell begins, is kept and resumes by the very code of a single one (``cell``), its arm acts on views of the stack, and
its metrics have the same rows. On CUDA the step is captured as a graph once and replayed; that part was written without
a GPU at hand and ran on a pretended one only (tests/pretend_gpu).
"""

import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack

import torch

from wisca_core.comparison import cell as single
from wisca_core.comparison.cell import CellFailed, CellRun
from wisca_core.comparison.data import Corpus, batch, windows
from wisca_core.comparison.folder import Cell
from wisca_core.comparison.models import learning_rate, loss_nats
from wisca_core.comparison.place import Placement, is_device_lost, is_out_of_memory
from wisca_core.comparison.replicas.stack import Stack, why_not_model
from wisca_core.comparison.spec import Spec
from wisca_core.errors import BadOption

# Of float32 losses of one model by two ways of computing them, relative.
SAME_LOSS = 1e-5
_WARM_UPS = 3

Ended = Callable[[Cell, BaseException | None], None]


def train_group(
    spec: Spec, cells: Sequence[Cell], corpus: Corpus, stop: Callable[[], bool], place: Placement, ended: Ended
) -> bool:
    """Train ``cells`` to their ends; ``ended(cell, error)`` is called as each ends or fails.

    False where ``stop()`` asked for a pause, after a checkpoint of all that were left. Raises BadOption where the model
    is of a shape that cannot be stacked, and whatever ends all of them at once: no memory, a device that is gone.
    """
    runs = []
    for cell in cells:
        run = _alone(cell, ended, lambda cell=cell: single.begin(spec, cell, place))
        runs += [run] if run is not None else []
    if not runs:
        return True
    reason = why_not_model(runs[0].model)
    if reason:
        raise BadOption(f"executor: replicas cannot train this model: {reason}. Use --executor processes.")
    validation = windows(corpus.validation, spec.data.validation_windows, spec.data.context).to(place.device)
    last = single.final_windows(spec, corpus).to(place.device)
    # a kill between the checkpoints of two cells leaves them at different steps
    for step in sorted({run.step for run in runs}):
        group = _Replicas(spec, [run for run in runs if run.step == step], place, ended)
        if step == 0:
            group.treat(0)
        group.check(validation[:2])
        if not group.train(corpus, validation, last, stop):
            return False
    return True


class _Replicas:
    """The runs of one stack, in its order; those that fail leave it."""

    def __init__(self, spec: Spec, runs: list[CellRun], place: Placement, ended: Ended):
        self.spec, self.runs, self.place, self.ended = spec, runs, place, ended
        self._stacked()

    def _stacked(self) -> None:
        self.stack = Stack([run.model for run in self.runs], [run.optimisers for run in self.runs])
        self.step_: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]] | None = None

    def check(self, rows: torch.Tensor) -> None:
        """That the stack computes what each model computes. Raises BadOption."""
        if not self.runs:
            return
        found = self.stack.mean_losses(rows)
        with torch.no_grad(), self.place.validation_step():
            own = [loss_nats(run.model, rows).item() for run in self.runs]
        for run, a, b in zip(self.runs, found, own):
            if not abs(a - b) <= SAME_LOSS * abs(b) and b == b:
                raise BadOption(
                    f"executor: replicas compute a loss of {a:.6f} where the model of {run.cell.name} computes "
                    f"{b:.6f}; this model is not "
                    "of a shape they know. Use --executor processes."
                )

    def train(self, corpus: Corpus, validation: torch.Tensor, last: torch.Tensor, stop: Callable[[], bool]) -> bool:
        spec, step = self.spec, self.runs[0].step if self.runs else 0
        began = saved = time.monotonic()
        before = {run.cell.name: run.seconds for run in self.runs}
        with ExitStack() as files:
            self.logs = {run.cell.name: files.enter_context(single.metrics(run.cell)) for run in self.runs}
            if step == 0 and self.runs:
                self._log(0, self._validated(validation, 0), [None] * len(self.runs), self._ratios())
            pending: list[torch.Tensor] = []
            lengths: list[torch.Tensor] = []
            while self.runs and step < spec.steps:
                step += 1
                losses, norms = self._step(corpus, step)
                pending.append(losses)
                lengths.append(norms)
                is_logged = single.logs(spec, step)
                is_due = any(run.treatment.is_due(step) for run in self.runs)
                stops = stop()
                keeps = step < spec.steps and (stops or time.monotonic() - saved > single.CHECKPOINT_SECONDS)
                if is_logged or is_due or keeps or not self.place.is_cuda:
                    # one look at the device for all steps since the last
                    alive = self._looked_at(torch.stack(pending).tolist(), torch.stack(lengths).tolist(), step)
                    pending.clear()
                    lengths.clear()
                    found = [norm for norm, lives in zip(norms.tolist(), alive) if lives]
                    if not all(alive):
                        self._leave(alive)
                        if not self.runs:
                            break
                    now = time.monotonic() - began
                    for run in self.runs:
                        run.step, run.seconds = step, before[run.cell.name] + now
                    ratios = self._ratios() if is_logged else []
                    self.treat(step)
                    if is_logged:
                        final = self.stack.mean_losses(last) if step == spec.steps else None
                        self._log(step, self._validated(validation, step), found, ratios, final)
                if keeps and self.runs:
                    self.stack.publish([step] * len(self.runs), self._rates(step))
                    single.keep(self.runs)
                    saved = time.monotonic()
                if stops and step < spec.steps:
                    return False
        for r, run in enumerate(self.runs):
            self.stack.release(r)
            if _alone(run.cell, self.ended, lambda run=run: single.finish(spec, run) or run) is not None:
                self.ended(run.cell, None)
        return True

    def _step(self, corpus: Corpus, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        spec, device = self.spec, self.place.device
        seeds = {
            run.cell.seed: batch(corpus.train, run.cell.seed, step, spec.batch_size, spec.data.context)
            for run in self.runs
        }
        rows = torch.stack([seeds[run.cell.seed] for run in self.runs]).to(device, non_blocking=True)
        self.stack.set_rates(self._rates(step), [step] * len(self.runs))
        if self.step_ is None:
            self.step_ = (
                _capture(self.stack, rows, spec.optimiser.clip, self.place) if self.place.is_cuda else self._plain
            )
        return self.step_(rows)

    def _plain(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return _one_step(self.stack, rows, self.spec.optimiser.clip, self.place)

    def _rates(self, step: int) -> list[float]:
        return [learning_rate(self.spec.optimiser, run.cell.rate, step, self.spec.steps) for run in self.runs]

    def _looked_at(self, losses: list[list[float]], norms: list[list[float]], step: int) -> list[bool]:
        """Losses of the last steps, ``step`` the last of them, into ``recent``; which replicas' are all finite."""
        limit = self.spec.optimiser.clip
        alive = []
        for r, run in enumerate(self.runs):
            try:
                for i, row in enumerate(losses):
                    single.check_finite(row[r], step - len(losses) + 1 + i, self.spec)
                    run.recent.append(row[r])
                    run.clipped.append(0 < limit < norms[i][r])
                alive.append(True)
            except CellFailed as error:
                self.ended(run.cell, error)
                alive.append(False)
        return alive

    def _leave(self, alive: Sequence[bool]) -> None:
        """Only the ``alive`` stay; the numbers of a replica do not depend on its neighbours."""
        for r, lives in enumerate(alive):
            if not lives:
                self.stack.release(r)
        self.runs = [run for run, lives in zip(self.runs, alive) if lives]
        if self.runs:
            self._stacked()

    def treat(self, step: int) -> None:
        done = [_alone(run.cell, self.ended, lambda run=run: run.treatment.at(step)) is not None for run in self.runs]
        if not all(done):
            self._leave(done)

    def _ratios(self) -> list[dict[str, float]]:
        totals = self.stack.totals()
        return [
            run.treatment.ratios({name: one[r].item() for name, one in totals.items()})
            for r, run in enumerate(self.runs)
        ]

    def _validated(self, validation: torch.Tensor, step: int) -> list[float | None]:
        return self.stack.mean_losses(validation) if single.evaluates(self.spec, step) else [None] * len(self.runs)

    def _log(
        self,
        step: int,
        val_losses: list,
        norms: list,
        ratios: list[dict[str, float]],
        finals: list[float] | None = None,
    ) -> None:
        rates = self._rates(step) if step else [0.0] * len(self.runs)
        written = []
        for run, *values in zip(self.runs, val_losses, rates, norms, ratios, finals or [None] * len(self.runs)):

            def write(run: CellRun = run, values: list = values) -> CellRun:
                single.write_row(self.logs[run.cell.name], self.spec, run, *values)
                return run

            written.append(_alone(run.cell, self.ended, write) is not None)
        if not all(written):
            self._leave(written)


def _alone(cell: Cell, ended: Ended, act: Callable):
    """What ``act`` returns; None where it failed, which ends this cell only. What ends all of them is passed on."""
    try:
        return act()
    except Exception as error:
        if is_out_of_memory(error) or is_device_lost(error):
            raise
        ended(cell, error)
        return None


def _one_step(stack: Stack, rows: torch.Tensor, clip: float, place: Placement) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses before the update, norms of the gradients before clipping, each (n_replicas,)."""
    stack.gradients.zero_()
    with place.cast():
        losses = stack.losses(rows)
    with warnings.catch_warnings():
        # torch would like gradients packed for one tensor alone; here they are packed for one replica
        warnings.filterwarnings("ignore", "grad and param do not obey the gradient layout contract")
        losses.sum().backward()
    return losses.detach(), stack.update_(clip)


def _capture(
    stack: Stack, rows: torch.Tensor, clip: float, place: Placement
) -> Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """``_one_step`` as a CUDA graph: hundreds of small kernels started by one call. Where capture fails, the plain
    step.
    """
    held = [stack.values, *stack.moments]
    before = [buffer.clone() for buffer in held]
    rows = rows.clone()
    try:
        side = torch.cuda.Stream(place.device)
        side.wait_stream(torch.cuda.current_stream(place.device))
        with torch.cuda.stream(side):
            for _ in range(_WARM_UPS):
                _one_step(stack, rows, clip, place)
        torch.cuda.current_stream(place.device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            losses, norms = _one_step(stack, rows, clip, place)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        print(f"the training step was not captured as a CUDA graph and runs without: {error}", flush=True)
        graph = None
    for buffer, kept in zip(held, before):
        buffer.copy_(kept)
    if graph is None:
        return lambda new: _one_step(stack, new, clip, place)

    def replay(new: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rows.copy_(new)
        graph.replay()
        return losses.clone(), norms.clone()

    return replay
