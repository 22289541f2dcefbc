"""An arm at work on a live model. All rescaling is ``wisca_core.training``'s; here is only what each arm asks of it,
and when.
"""

import math
import statistics
from collections.abc import Mapping

import torch
from torch import nn

from wisca_core.comparison.spec import Arm
from wisca_core.training import norms
from wisca_core.training.choices import Choices
from wisca_core.training.factors import Factors
from wisca_core.training.rescaling import Rescaler
from wisca_core.training.schedule import Schedule

PLACEBO = 1.001


class Treatment:
    """One arm on one model. ``at(step)`` after each optimiser step, and once with 0 before the first."""

    def __init__(self, arm: Arm, model: nn.Module, optimisers: list[torch.optim.Optimizer]):
        self.arm = arm
        self.schedule = None if arm.kind == "none" else Schedule(arm.every, arm.at_start)
        # The baseline looks through one as well: its ratios are measured by the same code. "leave" asks nothing of the
        # optimiser.
        choices = Choices() if arm.kind == "none" else Choices(
            pairs=arm.pairs, granularity=arm.granularity, norm=arm.norm, strength=arm.strength, exact=arm.exact,
            optimizer_state=arm.optimizer_state,
        )  # fmt: skip
        self._rescaler = Rescaler(model, optimisers, choices)
        self._measuring = self._rescaler if choices.norm == "l1" and set(choices.pairs) == {"qk", "vo"} else Rescaler(model, None, Choices())
        self._layout = norms.layout(self._measuring.live, "tensor")
        self._mirror: Factors | None = None
        self._n_done = 0

    def at(self, step: int) -> bool:
        """Rescale where it is due; says whether it was."""
        if self.schedule is None or not self.schedule.due(step):
            return False
        if self.arm.kind == "placebo":
            # in turn, so that nothing but rounding accumulates
            self._rescaler.rescale_(plan=self._even(PLACEBO if self._n_done % 2 == 0 else 1 / PLACEBO))
        else:
            done = self._rescaler.rescale_()
            if self.arm.kind == "inverse":
                if self._mirror is None:
                    self._mirror = Factors(done.factors.granularity, tuple((n, tuple(f**-2 for f in fs)) for n, fs in done.factors.sites))
                self._rescaler.rescale_(plan=self._mirror)
        self._n_done += 1
        return True

    def ratios(self) -> dict[str, float]:
        """Pair -> log2 of the L1 norm of the left side over the right one, the median over the layers."""
        live, layout = self._measuring.live, self._layout
        stats = norms.sides(live, layout, "l1", lambda name: live.parameters[name].detach())
        found: dict[str, list[float]] = {}
        for name, ratio in norms.ratios(live.sites, layout, stats, "l1").items():
            if ratio > 0 and math.isfinite(ratio):
                found.setdefault(name.rsplit(".", 1)[-1], []).append(math.log2(ratio))
        return {pair: statistics.median(values) for pair, values in found.items()}

    def _even(self, factor: float) -> Factors:
        sites = self._rescaler.live.sites.sites
        return Factors(self.arm.granularity, tuple((s.name, (factor,) * s.n_cells(self.arm.granularity)) for s in sites))

    def state(self) -> dict:
        """Plain values that ``restore`` takes in a resumed run."""
        return {"n_done": self._n_done, "mirror": None if self._mirror is None else self._mirror.to_json()}

    def restore(self, state: Mapping) -> None:
        self._n_done = int(state["n_done"])
        self._mirror = None if state["mirror"] is None else Factors.from_json(state["mirror"], "the cell's checkpoint")
