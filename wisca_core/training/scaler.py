"""The plain PyTorch object: ``scaler.step()`` after ``optimizer.step()``, and what all the other forms are made of."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from torch import nn

from wisca_core.architecture.site import DEFAULT_PAIRS
from wisca_core.errors import BadOption
from wisca_core.training.choices import Choices
from wisca_core.training.factors import Factors
from wisca_core.training.rescaling import Rescale, Rescaler
from wisca_core.training.schedule import Schedule
from wisca_core.training.telemetry import Telemetry

STATE_VERSION = 1


class Scaler:
    """Rescales a model on a schedule. Made after the optimiser, it rescales at once where the schedule has a step 0.

    ``first_step``: optimiser steps already done (a resumed run). ``output``: folder or file for wisca.jsonl, None for
    none. The schedule's options (every, at_start, start, stop) are ``Schedule``'s, the others ``Choices``'; ``also``
    and ``replicated`` are ``rescale_``'s. Steps that a GradScaler skipped are not counted.

    >>> scaler = Scaler(model, optimizer, every=250)  # doctest: +SKIP
    >>> for batch in data:  # doctest: +SKIP
    ...     model(**batch).loss.backward(); optimizer.step(); scaler.step(); optimizer.zero_grad()
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: object = None,
        *,
        every: int | None = 250,
        at_start: bool = True,
        start: int = 0,
        stop: int | None = None,
        first_step: int = 0,
        also: Sequence[object] = (),
        output: str | Path | None = None,
        replicated: bool = False,
        pairs: Sequence[str] = DEFAULT_PAIRS,
        on_rescale: Callable[[int, Rescale], None] | None = None,
        **choices,
    ):
        self.schedule = Schedule(every, at_start, start, stop)
        self.choices = made(pairs, choices)
        self.steps = first_step
        self.kept: dict[str, Factors] = {}
        self._on_rescale = on_rescale
        self._rescaler = Rescaler(model, optimizer, self.choices, also, replicated)
        self._telemetry = None
        if output is not None:
            path = Path(output)
            self._telemetry = Telemetry(
                path if path.suffix == ".jsonl" else path / "wisca.jsonl", self.choices, first_step
            )
        self._counted = [0]  # optimiser steps seen by the hooks since the last call of step()
        for one in self._rescaler.states.optimizers[:1]:
            _count(one, self._counted)
        self._hooked = bool(self._rescaler.states.optimizers)
        if first_step == 0 and self.schedule.due(0):
            self.rescale_(0)

    def step(self) -> Rescale | None:
        """Call after ``optimizer.step()``; rescales where it is due and returns what was done."""
        if self._hooked:
            if not self._counted[0]:
                return None  # a GradScaler skipped the step, or gradients are still being accumulated
            self._counted[0] = 0
        self.steps += 1
        return self.rescale_(self.steps) if self.schedule.due(self.steps) else None

    def at(self, step: int) -> Rescale | None:
        """The same where the caller counts (a trainer's global_step)."""
        self.steps = step
        return self.rescale_(step) if self.schedule.due(step) else None

    def rescale_(self, step: int) -> Rescale:
        """Rescale now, whatever the schedule says."""
        started = time.perf_counter()
        done = self._rescaler.rescale_()
        kept = self.kept.get(done.factors.granularity)
        self.kept[done.factors.granularity] = kept.then(done.factors) if kept else done.factors
        if self._telemetry is not None:
            self._telemetry.write(step, done, time.perf_counter() - started)
        if self._on_rescale is not None:
            self._on_rescale(step, done)
        return done

    @property
    def refusals(self):
        """What was asked for and cannot be done in this model, with the reasons."""
        return self._rescaler.live.sites.refusals

    def state_dict(self) -> dict:
        """Plain JSON values: the step, and the product of all factors so far, which brings two checkpoints into one
        set of coordinates.
        """
        return {"state_version": STATE_VERSION, "step": self.steps, "kept": [f.to_json() for f in self.kept.values()]}

    def load_state_dict(self, state: Mapping) -> None:
        """Raises BadOption for a newer state."""
        if state.get("state_version") != STATE_VERSION:
            raise BadOption(
                f"the scaler's state has version {state.get('state_version')}; {STATE_VERSION} is read here. Update "
                "wisca."
            )
        self.steps = int(state["step"])
        found = [Factors.from_json(one, "the scaler's state") for one in state["kept"]]
        self.kept = {factors.granularity: factors for factors in found}


def made(pairs: Sequence[str], choices: Mapping) -> Choices:
    """Raises BadOption for an option there is none of."""
    unknown = set(choices) - set(Choices.__dataclass_fields__)
    if unknown:
        raise BadOption(
            f"{', '.join(sorted(unknown))}: there is no such option; there are "
            f"{', '.join(Choices.__dataclass_fields__)}."
        )
    return Choices(pairs=pairs, **choices)


def _count(optimizer, counted: list[int]) -> None:
    def after(stepped, args, kwargs) -> None:
        # fused optimisers are called on skipped steps too and get this from the GradScaler
        found_inf = getattr(stepped, "found_inf", None)
        if found_inf is None or not bool(found_inf.item()):
            counted[0] += 1

    optimizer.register_step_post_hook(after)
