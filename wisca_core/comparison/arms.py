"""An arm at work on a live model. All rescaling is ``wisca_core.training``'s; here is only what each arm asks of it,
and when.
"""

import math
import statistics
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn

from wisca_core.architecture.site import DEFAULT_PAIRS
from wisca_core.comparison.spec import Arm
from wisca_core.errors import BadOption
from wisca_core.planning.factors import Factors
from wisca_core.planning.schedule import Schedule
from wisca_core.training import distributed, norms
from wisca_core.training.choices import Choices
from wisca_core.training.rates import Rates
from wisca_core.training.rescaling import Rescaler

PLACEBO = 1.001
# Factors beyond this leave float32 behind after a few more of their kind.
MOST_OCTAVES = 60.0


class Treatment:
    """One arm on one model. ``at(step)`` after each optimiser step, and once with 0 before the first. ``n_steps``: of
    the run, for an arm whose start or stop is a fraction of it. ``watched``: the pairs whose ratios are measured.
    """

    def __init__(
        self,
        arm: Arm,
        model: nn.Module,
        optimisers: list[torch.optim.Optimizer],
        n_steps: int | None = None,
        watched: Sequence[str] = DEFAULT_PAIRS,
    ):
        self.arm = arm
        self.schedule = None if arm.kind == "none" else schedule_of(arm, n_steps)
        with warnings.catch_warnings():
            # about saving adapters of a rescaled base: ``in_original_coordinates_`` is the answer
            warnings.filterwarnings("ignore", "wisca: the base under LoRA", RuntimeWarning)
            # The baseline looks through one as well: its ratios are measured by the same code. "leave" asks nothing of
            # the optimiser.
            self._measuring = Rescaler(model, None, Choices(tuple(watched), frozen="scale"))
            moves = arm.kind not in ("none", "rates")
            self._rescaler = Rescaler(model, optimisers, choices_of(arm)) if moves else None
            rates = arm.kind == "rates"
            self._rates = Rates(model, optimisers, choices_of(arm), strength=arm.strength) if rates else None
        self._layout = norms.layout(self._measuring.live, "tensor")
        self._mirror: dict[str, tuple[float, ...]] = {}
        self._placebo: dict[str, float] = {}
        # site -> what its left side is multiplied by in all so far: the way back to the weights' own coordinates
        self._total: dict[str, np.ndarray] = {}
        self._base = Factors(arm.granularity)  # of a frozen base, all of them so far
        self._base_of = (
            {site.name for site in self._rescaler.live.sites.sites if _is_frozen(site, self._rescaler.live)}
            if self._rescaler
            else set()
        )

    def is_due(self, step: int) -> bool:
        return self.schedule is not None and self.schedule.due(step)

    def at(self, step: int) -> bool:
        """Rescale where it is due; says whether it was."""
        if not self.is_due(step):
            return False
        if self.arm.kind == "placebo":
            self._apply(self._even())
        elif self.arm.kind == "rates":
            self._rates.renew()
        elif self.arm.strength != 1:
            wanted = self._wanted()
            self._apply({n: tuple((w / self._total.get(n, np.ones(1))).tolist()) for n, w in wanted.items()})
            self._total |= wanted
        else:
            done = self._rescaler.rescale_()
            self._note_base(done.factors)
            if self.arm.kind == "inverse":
                # each pair is mirrored where it is first met: a LoRA pair has no ratio while B is zero
                for site in self._rescaler.live.sites.sites:
                    if site.name not in done.skipped and site.name not in self._mirror:
                        factors = done.factors.by_site.get(site.name, (1.0,) * site.n_cells(self.arm.granularity))
                        self._mirror[site.name] = tuple(f**-2 for f in factors)
                self._apply({name: fs for name, fs in self._mirror.items() if name not in done.skipped})
        return True

    def _wanted(self) -> dict[str, np.ndarray]:
        """Site -> the factors that the weights as they would be without any rescale should have: those that balance
        them, to the power of the strength. Sites that cannot be balanced now are left out. Raises BadOption.
        """
        out = {}
        with np.errstate(over="ignore"):
            for name, own in self._rescaler.balancing().items():
                wanted = (np.asarray(own) * self._total.get(name, 1.0)) ** self.arm.strength
                wanted = np.exp2(np.rint(np.log2(wanted))) if self.arm.exact else wanted
                if not (np.abs(np.log2(wanted)) < MOST_OCTAVES).all():
                    raise BadOption(
                        f"arm {self.arm.name}: strength {self.arm.strength:g} multiplies {name} by {wanted.max():.3g}, "
                        f"beyond 2^{MOST_OCTAVES:g}. Give a strength nearer to 0."
                    )
                out[name] = wanted
        return out

    def clip_(self, parameters, limit: float) -> torch.Tensor:
        """Clip the gradients to the norm ``limit``, 0 for not at all; returns the norm, 0-d. Of a rates arm with the
        weighted norm that norm is what the rescaled model's would be.
        """
        if self._rates and self.arm.clip_norm == "weighted":
            return self._rates.clip_grad_norm_(limit or math.inf)
        return nn.utils.clip_grad_norm_(parameters, limit or math.inf)

    def _apply(self, factors: Mapping[str, tuple[float, ...]]) -> None:
        plan = Factors(self.arm.granularity, tuple(factors.items()))
        self._rescaler.rescale_(plan=plan)
        self._note_base(plan)

    def _note_base(self, factors: Factors) -> None:
        self._base = self._base.then(
            Factors(factors.granularity, tuple((n, fs) for n, fs in factors.sites if n in self._base_of))
        )

    def _even(self) -> dict[str, tuple[float, ...]]:
        """1.001 and 1/1.001 in turn, so that nothing but rounding accumulates; pairs of adapters from when B is not
        zero.
        """
        live = self._rescaler.live
        out = {}
        for site in live.sites.sites:
            if site.key.pair == "lora" and not all(bool(live.parameters[leg.tensor].any()) for leg in site.legs):
                continue
            self._placebo[site.name] = factor = 1 / self._placebo.get(site.name, 1 / PLACEBO)
            out[site.name] = (factor,) * site.n_cells(self.arm.granularity)
        return out

    def in_original_coordinates_(self) -> None:
        """Take back what was done to a frozen base, so that its adapters fit the base as it was. In place, for good."""
        if self._base.sites:
            self._rescaler.rescale_(plan=self._base.undone())
            self._base = Factors(self.arm.granularity)

    def parameters(self) -> list[torch.Tensor]:
        """Every tensor that this arm rescales, frozen ones of a base among them."""
        return list(self._rescaler.live.parameters.values()) if self._rescaler else []

    def ratios(self, totals: Mapping[str, float] | None = None) -> dict[str, float]:
        """Pair -> log2 of the L1 norm of the left side over the right one, the median over the layers. ``totals``:
        parameter name -> sum of |values|, where somebody has them already; used where whole matrices are all it takes.
        """
        live, layout = self._measuring.live, self._layout
        if totals is not None and all(
            part.cells is None and not part.leg.offset and not part.leg.fixed and not part.groups
            for part in layout.parts
        ):
            l1 = np.zeros(2 * layout.n_cells)
            for part in layout.parts:
                l1[part.cell] += totals[part.leg.tensor]
            stats = {"n": layout.n, "l1": l1.reshape(2, -1)}
        else:
            stats = norms.sides(layout, "l1", lambda name: distributed.local(live.parameters[name]))
        pairs = {site.name: site.key.pair for site in live.sites.sites}
        found: dict[str, list[float]] = {}
        for name, ratio in norms.ratios(live.sites, layout, stats, "l1").items():
            if ratio > 0 and math.isfinite(ratio):
                found.setdefault(pairs[name], []).append(math.log2(ratio))
        return {pair: statistics.median(values) for pair, values in found.items()}

    def state(self) -> dict:
        """Plain values that ``restore`` takes in a resumed run."""
        return {
            "mirror": {n: list(fs) for n, fs in self._mirror.items()},
            "placebo": dict(self._placebo),
            "base": self._base.to_json(),
            "total": {n: factors.tolist() for n, factors in self._total.items()},
            "rates": self._rates.factors.to_json() if self._rates else None,
        }

    def restore(self, state: Mapping) -> None:
        self._mirror = {n: tuple(fs) for n, fs in state["mirror"].items()}
        self._placebo = dict(state["placebo"])
        self._base = Factors.from_json(state["base"], "the cell's checkpoint")
        self._total = {n: np.array(factors) for n, factors in state.get("total", {}).items()}
        if self._rates:
            self._rates.set(Factors.from_json(state["rates"], "the cell's checkpoint"))


def schedule_of(arm: Arm, n_steps: int | None) -> Schedule:
    """When it acts in a run of so many steps. Raises BadOption."""
    return Schedule(arm.every, arm.at_start, arm.start, arm.stop).of_run(n_steps)


def choices_of(arm: Arm) -> Choices:
    """The options of a live rescale that an arm stands for."""
    return Choices(
        pairs=arm.pairs,
        granularity=arm.granularity,
        norm=arm.norm,
        exact=arm.exact and arm.strength == 1,
        when=arm.when,
        optimizer_state=arm.optimizer_state,
        frozen="scale",
        method=arm.method,
        check="never",  # that all arms of a seed start as one function is looked at by the comparison itself
    )


def _is_frozen(site, live) -> bool:
    """A pair of the base under adapters: its own weights are not trained."""
    return site.key.pair != "lora" and not any(
        live.parameters[leg.tensor].requires_grad for leg in site.measured_legs("left")
    )
