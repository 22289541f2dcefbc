"""A rescale as a set of learning rates: the weights stay as they are, and every optimiser step runs with other rates.

A matrix W kept as cW, its optimiser state carried along, sees the gradient g / c. Adam's direction M / (sqrt(V) + eps)
has no scale, so cW moves by lr M / (sqrt(V) + c eps), and W itself by lr / c times that: in W's own coordinates nothing
is different but the rate (times m = 1 / c), epsilon (over m), a decoupled decay (over m, so that a step's lr * wd is
unchanged), a decay folded into the gradient (over m^2, because it meets g / c), and the share m g in the norm that
clipping looks at. Where the step is proportional to the gradient (SGD) the rate goes as m^2. Balancing gives
c = (|right| / |left|) ** (strength / 2) on the left side and its inverse on the right, so "WISCA every N steps" is
Wq's rate times sqrt(|Wq| / |Wk|), Wk's times the inverse, and so on, renewed every N steps.

``Rates(model, optimizer, choices, strength=1.0)`` is ready to be stepped with; nothing happens before ``renew()``:

- ``rates.renew()`` measures the norms of now and sets the multipliers; they *replace* the ones before, because strength
  is meant in own coordinates. Any finite strength: -1 is the inverse, 0 the plain training, 1 WISCA.
- ``optimizer.step()`` then runs with split groups. The optimiser itself is never changed, not even inside the step (it
  runs on a stand-in that shares its state), so schedulers, ``state_dict`` and loggers never see a split, and a step that
  raises leaves nothing behind.
- ``rates.factors``: c of the left side by site, plain values to store; ``rates.set(factors)`` brings them back.
  ``rates.multipliers``: parameter name -> m. ``rates.clip_grad_norm_(max_norm)``: torch's, with m g in the norm, as WISCA
  clips. ``rates.remove()`` ends it.

Without a live model's sites: ``multipliers(live, factors)``, and ``InsideStep(optimizers)`` with ``set({tensor: m})``.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from wisca_core.architecture.site import Refusal
from wisca_core.errors import BadOption, NothingToRescale
from wisca_core.patterns.table import norm
from wisca_core.planning.decide import PLANNED, balance
from wisca_core.planning.options import Options
from wisca_core.rescale import scalings
from wisca_core.training import distributed, norms, zero
from wisca_core.training.choices import Choices
from wisca_core.training.factors import Factors
from wisca_core.training.live import Live, describe
from wisca_core.training.optimizer_state import States
from wisca_core.training.rescaling import Rescale, reason_of


@dataclass(frozen=True)
class StepRule:
    """How a group's numbers follow a multiplier m: rate * m ** rate, decay / m ** decay, eps / m ** eps (the first of
    several where a tuple is kept: Adafactor's, which is added to squares).
    """

    rate: int = 1
    decay: int = 1
    eps: int = 1


_DECOUPLED, _COUPLED = StepRule(), StepRule(decay=2)
RULES: Mapping[str, StepRule] = {
    "torch.Adam": _COUPLED,
    "torch.AdamW": _DECOUPLED,
    "torch.NAdam": _COUPLED,
    "torch.Adamax": _COUPLED,
    "torch.Adagrad": _COUPLED,
    "torch.RMSprop": _COUPLED,
    "torch.SGD": StepRule(rate=2, decay=2),
    "torch.Muon": _DECOUPLED,
    "transformers.Adafactor": StepRule(eps=2),
    "deepspeed.FusedAdam": _DECOUPLED,
    "apex.FusedAdam": _DECOUPLED,
}
# class -> why its groups' rates cannot stand for a rescale
REFUSED: Mapping[str, str] = {
    "torch.Adafactor": "its step grows with the weights themselves (scale_parameter), so a rescale does nothing here and "
    "neither would its rates",
    "torch.RAdam": "its first steps follow the gradient's size and its later ones do not, so no one rate stands for both",
    "torch.LBFGS": "it takes one step for all parameters together, so no parameter can have a rate of its own",
    "torch.Rprop": "it keeps a step size a weight and looks at the rate only once",
    "torch.Adadelta": "its steps take their size from the weights, so neither a rescale nor a rate does what it says",
    "torch.ASGD": "its decay and its averaging follow the rate in ways that no other rate undoes",
}


def rule_of(optimizer: torch.optim.Optimizer, group: Mapping) -> StepRule:
    """Of one parameter group. Raises BadOption where a group's rate does not do what the identity needs."""
    name = f"{type(optimizer).__module__}.{type(optimizer).__qualname__}"
    if hasattr(type(optimizer), "__del__") or "param_groups" not in vars(optimizer):
        raise BadOption(f"by: 'rates' was given; the groups of {name} cannot be split for a step. Use by='weights'.")
    if isinstance(optimizer, torch.optim.Optimizer):
        for kind in type(optimizer).__mro__:
            known = f"{kind.__module__.split('.')[0]}.{kind.__qualname__}"
            if known in REFUSED:
                raise BadOption(f"by: 'rates' was given; {name}: {REFUSED[known]}. Use by='weights'.")
            if known == "transformers.Adafactor":
                if group.get("scale_parameter") or group.get("relative_step"):
                    which = "scale_parameter" if group.get("scale_parameter") else "relative_step"
                    why = (
                        REFUSED["torch.Adafactor"]
                        if which == "scale_parameter"
                        else "it makes its own rate out of the number of steps (relative_step) and ignores its group's"
                    )
                    raise BadOption(f"by: 'rates' was given; {name}: {why}. Give {which}=False.")
            if known in RULES:
                rule = RULES[known]
                if rule == _COUPLED and group.get("decoupled_weight_decay"):
                    return _DECOUPLED
                return _COUPLED if rule == _DECOUPLED and not getattr(optimizer, "adam_w_mode", True) else rule
    raise BadOption(
        f"by: 'rates' was given; there is no rule for the groups of {name}; there is one for "
        f"{', '.join(sorted({known.rsplit('.', 1)[1] for known in RULES}))}. Use by='weights'."
    )


def adjusted(group: Mapping, m: float, rule: StepRule) -> dict:
    """A copy of ``group`` with the numbers for a multiplier ``m``; its ``params`` are still the same list."""
    out = dict(group)
    out["lr"] = group["lr"] * m**rule.rate
    if group.get("weight_decay"):
        out["weight_decay"] = group["weight_decay"] / m**rule.decay
    eps = group.get("eps")
    if isinstance(eps, (tuple, list)):
        out["eps"] = type(eps)((eps[0] / m**rule.eps, *eps[1:]))
    elif eps:
        out["eps"] = eps / m**rule.eps
    return out


class InsideStep:
    """Hooks that let optimisers step with split groups. ``set`` says the multiplier of each parameter; none: nothing is
    done.

    The step runs on a stand-in: another object of the same class with the same state, the same everything, but split
    groups. What the step keeps in its groups or in itself is carried over to the optimiser afterwards. Raises BadOption
    for an optimiser that already has such hooks, or without a rule.
    """

    def __init__(self, optimizers: Iterable[torch.optim.Optimizer]):
        self.optimizers = tuple(optimizers)
        self._m: dict[int, float] = {}
        self._running: _StandIn | None = None
        for one in self.optimizers:
            for group in one.param_groups:
                rule_of(one, group)
            hooks = one._optimizer_step_pre_hooks.values()
            if any(isinstance(getattr(hook, "__self__", None), InsideStep) for hook in hooks):
                raise BadOption(
                    f"by: 'rates' was given; this {type(one).__name__} already trains at other rates of the kind. "
                    "Call remove() of the first, or make one for all pairs."
                )
        self._handles = [
            handle
            for one in self.optimizers
            for handle in (one.register_step_pre_hook(self._before), one.register_step_post_hook(self._after))
        ]

    def set(self, multipliers: Mapping[torch.Tensor, float]) -> None:
        """Parameter -> m, from the next step on, instead of those before."""
        self._kept = tuple(multipliers)  # an id is a parameter's only while it lives
        self._m = {id(parameter): float(m) for parameter, m in multipliers.items() if m != 1}

    def remove(self) -> None:
        """From the next step on the optimisers are themselves again."""
        for handle in self._handles:
            handle.remove()

    def _before(self, optimizer, args, kwargs):
        inner = self._running is not None and optimizer is self._running.seen  # a subclass' step within a step
        if inner or not self._m:
            return None
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            raise BadOption("by: 'rates' was given; a captured step (CUDA graph) runs no hook. Use by='weights'.")
        self._running = _StandIn.of(optimizer, self._m)
        return (self._running.seen, *args[1:]), kwargs

    def _after(self, optimizer, args, kwargs) -> None:
        running = self._running
        if running is not None and args and args[0] is running.seen and optimizer is not running.seen:
            self._running = None
            running.carry_over()


@dataclass(frozen=True, eq=False)
class _StandIn:
    optimizer: torch.optim.Optimizer
    seen: torch.optim.Optimizer
    attributes: Mapping
    parts: tuple  # (group of the optimiser, its parts, what each part was before the step)

    @classmethod
    def of(cls, optimizer, m: Mapping[int, float]) -> "_StandIn":
        groups, parts = [], []
        for group in optimizer.param_groups:
            by_m: dict[float, list] = {}
            for parameter in group["params"]:
                by_m.setdefault(m.get(id(parameter), 1.0), []).append(parameter)
            if set(by_m) <= {1.0}:
                groups.append(group)
                continue
            rule = rule_of(optimizer, group)
            split = [adjusted(group, value, rule) | {"params": params} for value, params in by_m.items()]
            groups += split
            parts.append((group, split, [dict(part) for part in split]))
        seen = object.__new__(type(optimizer))
        attributes = dict(vars(optimizer))
        vars(seen).update(attributes)
        seen.param_groups = groups
        return cls(optimizer, seen, attributes, tuple(parts))

    def carry_over(self) -> None:
        for name, value in vars(self.seen).items():
            if name != "param_groups" and self.attributes.get(name, self) is not value:
                setattr(self.optimizer, name, value)
        for group, split, before in self.parts:
            for key in {key for part in split for key in part}:
                if all(part.get(key, self) is old.get(key, self) for part, old in zip(split, before)):
                    continue
                values = [part.get(key) for part in split]
                if any(value is not values[0] and value != values[0] for value in values):
                    raise BadOption(
                        f"by: 'rates' was given; {type(self.optimizer).__name__} keeps its own {key!r} a parameter "
                        "group, so groups cannot be split inside a step. The step is done; use by='weights'."
                    )
                group[key] = values[0]


def multipliers(live: Live, factors: Factors) -> dict[str, float]:
    """Parameter name -> m of everything that a rescale by these factors (one a site) would multiply as a whole."""
    out = {}
    for name, scaling in scalings(live.sites, factors.by_site, "tensor", live.shapes).items():
        out[name] = 1 / math.prod(float(vector.reshape(-1)[0]) for vector in scaling.along.values())
    for columns in live.columns:  # DoRA: one factor on all columns of the weight is one on the whole magnitude
        if columns.weight in out:
            out[columns.magnitude] = out.get(columns.magnitude, 1.0) * out[columns.weight]
    return {name: m for name, m in out.items() if m != 1}


def unfit(live: Live, optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, str]:
    """Site -> why a rate a parameter cannot stand for its rescale."""
    decayed = {id(p) for one in optimizers for g in one.param_groups if g.get("weight_decay") for p in g["params"]}
    # factors that no two sites share: a tensor with more than one in it holds more than this side
    distinct = {site.name: (2.0 ** (0.1 + i / len(live.sites.sites)),) for i, site in enumerate(live.sites.sites)}
    whole = {
        name: all((vector == vector.reshape(-1)[0]).all() for vector in scaling.along.values())
        for name, scaling in scalings(live.sites, distinct, "tensor", live.shapes).items()
    }
    out = {}
    for site in live.sites.sites:
        for leg in site.legs:
            if not whole[leg.tensor]:
                out[site.name] = (
                    f"{leg.tensor} holds more than its {leg.role} side, and a parameter has one rate. Use by='weights'"
                )
                break
            if leg.offset and id(live.parameters[leg.tensor]) in decayed:
                out[site.name] = (
                    f"{leg.tensor} is stored as gain - {leg.offset:g} and decays; the decay pulls towards another gain than "
                    "a rate could say. Give it weight_decay=0, or use by='weights'"
                )
                break
    return out


class Rates:
    """A model's pairs balanced by rates instead of by weights; see the module. ``choices``: pairs, norm, layers,
    exclude, frozen and exact (powers of two) as for a rescale; ``strength`` instead of theirs.

    Raises what a rescale raises, BadOption and NothingToRescale where an optimiser or a tensor does not allow it.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: object,
        choices: Choices = Choices(),
        *,
        strength: float | None = None,
        replicated: bool = False,
    ):
        self.model, self.choices, self.replicated = model, choices, replicated
        self.strength = choices.strength if strength is None else strength
        if not isinstance(self.strength, (int, float)) or not math.isfinite(self.strength):
            raise BadOption(f"strength: {self.strength!r} was given; by='rates' takes any finite number.")
        if choices.granularity != "tensor":
            raise BadOption(
                f"granularity: {choices.granularity!r} was given; by='rates' has one rate a parameter, so only 'tensor'."
            )
        if "gram" in (choices.lora, choices.vo):
            raise BadOption("lora, vo: 'gram' mixes channels and is no set of rates. Use by='weights'.")
        self.optimizers = States.of(optimizer, "leave").optimizers
        if not self.optimizers:
            raise BadOption("optimizer: None was given; by='rates' changes an optimiser's rates, so it needs one.")
        self.factors = Factors("tensor")
        self.multipliers: dict[str, float] = {}
        self._look()
        self.inside = InsideStep(self.optimizers)

    def _look(self) -> None:
        live = describe(self.model, self.choices, self.replicated)
        if any(zero.is_partitioned(p) for p in live.parameters.values()):
            raise BadOption(
                "by: 'rates' was given; under DeepSpeed ZeRO parameters lie flattened in groups that cannot be split. "
                "Use by='weights'."
            )
        States(self.optimizers, "leave").check_holds(live.parameters)
        wrong = unfit(live, self.optimizers)
        refusals = tuple(Refusal(name, reason) for name, reason in wrong.items())
        if len(wrong) == len(live.sites.sites):
            shown = "\n".join(f"  {r.what}: {r.reason}" for r in refusals[:20])
            raise NothingToRescale(f"by: 'rates' was given; no pair of this model can have rates of its own:\n{shown}")
        sites = live.sites.only(lambda site: site.name not in wrong)
        self.live = replace(live, sites=replace(sites, refusals=live.sites.refusals + refusals))
        self.layout = norms.layout(self.live, "tensor")

    def renew(self) -> Rescale:
        """Measure, and from the next step on train at the rates of now. Collective where the model is spread over ranks.

        ``factors`` of the result are those of no weight: it has ``rates``.
        """
        distributed.reshard(self.model)
        if not self.live.is_current():
            self._look()
        live, where, name = self.live, self.layout, self.choices.norm
        first = next(iter(live.parameters.values()))
        read = norms.sides(live, where, name, lambda n: distributed.local(live.parameters[n]))
        table = distributed.agree(np.stack(list(read.values())), live.groups, distributed.local(first).device)
        stats = dict(zip(read, table))
        left, right = norm(name, stats)
        exponents = np.array([s.exponent("left") + s.exponent("right") for s in live.sites.sites])
        full, _, fate = balance(left, right, exponents, np.ones(len(left), bool), Options())
        skipped, out = {}, []
        for i, site in enumerate(live.sites.sites):
            cell = slice(i, i + 1)
            if fate[i] != PLANNED:
                skipped[site.name] = reason_of(site, fate[cell], left[cell], right[cell])
                continue
            log2 = math.log2(full[i]) * self.strength
            try:
                factor = 2.0 ** (round(log2) if self.choices.exact else log2)
            except OverflowError:
                factor = math.inf
            if not 1e-30 < factor < 1e30:
                raise BadOption(
                    f"strength: {self.strength:g} was given; {site.name} would train at 2^{-log2:.0f} times its rate."
                )
            out.append((site.name, (factor,)))
        self.set(Factors("tensor", tuple(out)))
        ratios = norms.ratios(live.sites, where, stats, name)
        return Rescale(
            Factors("tensor"), ratios, skipped, live.sites.refusals, live.proof, rates=dict(self.multipliers)
        )

    def set(self, factors: Factors) -> None:
        """These factors (of the left sides, in own coordinates) instead of measured ones. Raises PlanMismatch."""
        factors.check(self.live.sites)
        self.factors, self.multipliers = factors, multipliers(self.live, factors)
        self.inside.set({self.live.parameters[name]: m for name, m in self.multipliers.items()})

    def clip_grad_norm_(self, max_norm: float) -> torch.Tensor:
        """torch's ``clip_grad_norm_`` over the optimisers' parameters, with m g for g in the norm (not in the
        gradients): what clipping sees where the weights themselves are rescaled. Returns that norm.
        """
        of = {id(self.live.parameters[name]): m for name, m in self.multipliers.items()}
        parameters = [
            p for one in self.optimizers for group in one.param_groups for p in group["params"] if p.grad is not None
        ]
        found = [torch.linalg.vector_norm(p.grad) * of.get(id(p), 1.0) for p in parameters]
        total = torch.linalg.vector_norm(torch.stack([one.to(found[0].device) for one in found]))
        nn.utils.clip_grads_with_norm_(parameters, max_norm, total)
        return total

    def remove(self) -> None:
        """Train at the plain rates again."""
        self.inside.remove()
