"""The plain PyTorch object: ``scaler.step()`` after ``optimizer.step()``, and what all the other forms are made of."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from wisca_core.architecture.site import DEFAULT_PAIRS
from wisca_core.errors import BadOption
from wisca_core.planning.factors import Factors
from wisca_core.planning.schedule import Schedule
from wisca_core.training import distributed
from wisca_core.training.averages import held_copies
from wisca_core.training.choices import choices_from
from wisca_core.training.rates import Rates, own_rates
from wisca_core.training.rescaling import Rescale, Rescaler
from wisca_core.training.self_check import FromLoader
from wisca_core.training.telemetry import Telemetry

STATE_VERSION = 1


class Scaler:
    """Rescales a model on a schedule. Made after the optimiser, it rescales at once where the schedule has a step 0.
    ``by="rates"`` leaves the weights alone and lets the optimiser step at the rates that amount to it, renewed on the
    same schedule; a plain ``clip_grad_norm_`` then sees the plain norm, and ``scaler.clip_grad_norm_`` the one that
    rescaled weights would have.

    ``first_step``: optimiser steps already done (a resumed run); ``n_steps``: all steps of the run, where ``start`` or
    ``stop`` is a fraction of it. ``loader``: a loader of the training's data; where its data set is map-style, the
    outputs are looked at on its first samples (see ``Choices.check``). ``output``: folder or file for wisca.jsonl, None
    for none. The schedule's options (every, at_start, start, stop) are ``Schedule``'s, the others ``Choices``';
    ``also`` and ``replicated`` are ``rescale_``'s. Steps that a GradScaler skipped are not counted.

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
        start: int | float = 0,
        stop: int | float | None = None,
        n_steps: float | None = None,
        first_step: int = 0,
        also: Sequence[object] | None = None,
        output: str | Path | None = None,
        replicated: bool = False,
        pairs: str | Sequence[str] = DEFAULT_PAIRS,
        on_rescale: Callable[[int, Rescale], None] | None = None,
        loader: object = None,
        **choices,
    ):
        self.schedule = Schedule(every, at_start, start, stop).of_run(n_steps)
        self.choices = choices_from(pairs, choices)
        self.steps = first_step
        self.kept: dict[str, Factors] = {}
        self._on_rescale = on_rescale
        self._rates = (
            Rates(model, optimizer, self.choices, replicated=replicated) if self.choices.by == "rates" else None
        )
        self._rescaler = self._rates or Rescaler(
            model, optimizer, self.choices, also, replicated, None if loader is None else FromLoader(loader)
        )
        self._telemetry = None
        if output is not None:
            path = Path(output)
            self._telemetry = Telemetry(
                path if path.suffix == ".jsonl" else path / "wisca.jsonl", self.choices, first_step
            )
        self._counted = [0]  # optimiser steps seen by the hooks since the last call of step()
        self._counting = [_count(one, self._counted) for one in self._rescaler.states.optimizers[:1]]
        self._hooked = bool(self._rescaler.states.optimizers)
        self._as_started: dict[str, int] | None = None
        if first_step == 0 and self.schedule.due(0):
            self.rescale_(0)
            self._as_started = self._versions()

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
        if self._rates is None:
            kept = self.kept.get(done.factors.granularity)
            self.kept[done.factors.granularity] = kept.then(done.factors) if kept else done.factors
        if self._telemetry is not None:
            self._telemetry.write(step, done, time.perf_counter() - started, self.rates)
        if self._on_rescale is not None:
            self._on_rescale(step, done)
        return done

    @property
    def rates(self) -> dict[str, tuple[tuple[float, float], tuple[float, float]]]:
        """Site -> for its left and right side, the smallest and the largest of what the learning rates of the start's
        weights are multiplied by now, under Adam: what the rescales so far amount to, by weights as by rates.
        """
        sites, out = self._rescaler.live.sites, {}
        for factors in (self._rates.factors,) if self._rates else self.kept.values():
            out |= own_rates(sites, factors)
        return out

    @property
    def multipliers(self) -> dict[str, float]:
        """Parameter name -> what its learning rate is multiplied by inside a step; empty where weights are rescaled."""
        return dict(self._rates.multipliers) if self._rates else {}

    def clip_grad_norm_(self, max_norm: float) -> torch.Tensor:
        """``torch.nn.utils.clip_grad_norm_`` of all that the optimisers train, by the norm that WISCA clips by: the
        same thing where weights are rescaled, with every gradient times its multiplier where rates are. Returns the
        norm.
        """
        if self._rates is not None:
            return self._rates.clip_grad_norm_(max_norm)
        groups = [group for one in self._rescaler.states.optimizers for group in one.param_groups]
        return nn.utils.clip_grad_norm_([p for group in groups for p in group["params"]], max_norm)

    def is_of(self, model: nn.Module) -> bool:
        """Whether it was made for this very model."""
        return self._rescaler.model is model

    def go_on_from(self, earlier: "Scaler") -> None:
        """What an earlier scaler of the same model did counts as done before."""
        for granularity, factors in earlier.kept.items():
            kept = self.kept.get(granularity)
            self.kept[granularity] = factors.then(kept) if kept else factors
        if self._rates is not None and earlier._rates is not None and not self._rates.factors.sites:
            self._rates.set(earlier._rates.factors)

    def go_back_to(self, state: Mapping) -> None:
        """The weights have been loaded from where this state is of, and the optimisers' state has not: the factors are
        taken from it, and the momentum is carried back into its coordinates.
        """
        before, self._as_started = self.kept, None
        steps = self.steps
        self.load_state_dict(state)
        self.steps = steps
        if self._rates is None:
            for granularity, factors in before.items():
                back = factors.undone().then(self.kept.get(granularity, Factors(granularity)))
                self._rescaler.carry_states_(back)

    def remove(self) -> None:
        """End it: with ``by="rates"`` the optimiser steps at its plain rates again, and another scaler may take it."""
        for handle in self._counting:
            handle.remove()
        if self._rates is not None:
            self._rates.remove()

    def _versions(self) -> dict[str, int]:
        """Name -> a number that changes with every edit in place of that parameter, loading among them."""
        live = self._rescaler.live
        current = live.is_current()
        return {name: distributed.local(p)._version if current else -1 for name, p in live.parameters.items()}

    @property
    def refusals(self):
        """What was asked for and cannot be done in this model, with the reasons."""
        return self._rescaler.live.sites.refusals

    def state_dict(self) -> dict:
        """Plain JSON values: the step, and the product of all factors so far, which brings two checkpoints into one
        set of coordinates. With ``by="rates"`` there is no such product, but the factors that the rates of now stand
        for.
        """
        state = {"state_version": STATE_VERSION, "step": self.steps, "kept": [f.to_json() for f in self.kept.values()]}
        return state | ({"rates": self._rates.factors.to_json()} if self._rates else {})

    def load_state_dict(self, state: Mapping) -> None:
        """Raises BadOption for a newer state, and where the rescale of step 0 was done on weights that had been loaded
        already: the state of a later step knows nothing of it.
        """
        if state.get("state_version") != STATE_VERSION:
            raise BadOption(
                f"the scaler's state has version {state.get('state_version')}; {STATE_VERSION} is read here. Update "
                "wisca."
            )
        if ("rates" in state) != (self._rates is not None):
            was, now = ("rates", "weights") if "rates" in state else ("weights", "rates")
            raise BadOption(
                f"by: {now!r} was given and the scaler's state is of by={was!r}; resume with the same, or start anew."
            )
        if self._rates is None and self._as_started is not None and self._as_started == self._versions():
            raise BadOption(
                "the scaler rescaled the model when it was made, as at step 0, and the state is of step "
                f"{state['step']}; "
                f"loaded weights would be rescaled twice. Make it with first_step={state['step']}, or load the weights "
                "after it is made."
            )
        self.steps = int(state["step"])
        found = [Factors.from_json(one, "the scaler's state") for one in state["kept"]]
        self.kept = {factors.granularity: factors for factors in found}
        if self._rates is not None:
            self._rates.set(Factors.from_json(state["rates"], "the scaler's state"))


class OfTrainer:
    """What the callbacks for trainers have in common: their options, and a scaler for each training."""

    def __init__(
        self,
        *,
        every: int | None = 250,
        at_start: bool = True,
        start: int | float = 0,
        stop: int | float | None = None,
        also: Sequence[object] | None = None,
        pairs: str | Sequence[str] = DEFAULT_PAIRS,
        **choices,
    ):
        self.schedule = Schedule(every, at_start, start, stop)
        self.choices = choices_from(pairs, choices)
        self._options = dict(every=every, at_start=at_start, start=start, stop=stop, pairs=pairs, **choices)
        self._also = also
        self._has_fractions = any(isinstance(one, float) for one in (start, stop))
        self.scaler: Scaler | None = None

    def _begin(self, model: nn.Module, optimizer: object, callbacks: Sequence[object], **more) -> Scaler | None:
        """A new scaler, for which copies of the weights that other ``callbacks`` hold follow; returns the one of the
        training before, which has ended. ``more``: of Scaler.
        """
        held = held_copies(callbacks, model, self.choices.sites)
        before, self.scaler = self.scaler, None
        if before is not None:
            before.remove()
        also = [*(self._also or ()), *held] if held else self._also
        self.scaler = Scaler(model, optimizer, **self._options, also=also, **more)
        return before


def _count(optimizer, counted: list[int]):
    def after(stepped, args, kwargs) -> None:
        # fused optimisers are called on skipped steps too and get this from the GradScaler
        found_inf = getattr(stepped, "found_inf", None)
        if found_inf is None or not bool(found_inf.item()):
            counted[0] += 1

    return optimizer.register_step_post_hook(after)
