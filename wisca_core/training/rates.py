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
  runs on a stand-in that shares its state), so schedulers, ``state_dict`` and loggers never see a split, and a step
  that raises leaves nothing behind.
- ``rates.factors``: c of the left side by site, plain values to store; ``rates.set(factors)`` brings them back.
  ``rates.multipliers``: parameter name -> m. ``rates.clip_grad_norm_(max_norm)``: torch's, with m g in the norm, as
  WISCA clips. ``rates.remove()`` ends it.

Without a live model's sites: ``multipliers(live, factors)``, and ``InsideStep(optimizers)`` with ``set({tensor: m})``.
"""

import copy
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from wisca_core.architecture.site import DEFAULT_PAIRS, Refusal, Sites
from wisca_core.errors import BadOption, NothingToRescale
from wisca_core.patterns.table import norm
from wisca_core.planning.decide import PLANNED, balance
from wisca_core.planning.factors import Factors
from wisca_core.planning.options import Options
from wisca_core.rescale import scalings
from wisca_core.training import distributed, norms, step_probe, zero
from wisca_core.training.choices import Choices, choices_from
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
    "torch.Adafactor": "its step grows with the weights themselves (scale_parameter), so a rescale does nothing here "
    "and "
    "neither would its rates",
    "torch.RAdam": "its first steps follow the gradient's size and its later ones do not, so no one rate stands for "
    "both",
    "torch.LBFGS": "it takes one step for all parameters together, so no parameter can have a rate of its own",
    "torch.Rprop": "it keeps a step size a weight and looks at the rate only once",
    "torch.Adadelta": "its steps take their size from the weights, so neither a rescale nor a rate does what it says",
    "torch.ASGD": "its decay and its averaging follow the rate in ways that no other rate undoes",
}


def rule_of(optimizer: torch.optim.Optimizer, group: Mapping) -> StepRule:
    """Of one parameter group. A class that no table has is tried out (``step_probe``). Raises BadOption where a group's
    rate does not do what the identity needs.
    """
    name = f"{type(optimizer).__module__}.{type(optimizer).__qualname__}"
    if not isinstance(optimizer, torch.optim.Optimizer) or "param_groups" not in vars(optimizer):
        raise BadOption(f"by: 'rates' was given; {name} has no parameter groups of its own. Use by='weights'.")
    if hasattr(type(optimizer), "__del__") or re.search(r"schedule_?free|prodigy|d_?adapt", name, re.IGNORECASE):
        raise BadOption(
            f"by: 'rates' was given; {name} keeps numbers a parameter group, or itself, outside its state, so its "
            "groups "
            "cannot be split for a step. Use by='weights'."
        )
    rule = _known_rule(type(optimizer), group, name)
    if rule == _DECOUPLED and not getattr(optimizer, "adam_w_mode", True):
        return _COUPLED
    rule = rule or step_probe.agreeing_rule(
        optimizer, group, (_DECOUPLED, _COUPLED, RULES["torch.SGD"]), adjusted_group
    )
    if isinstance(rule, str):
        raise BadOption(
            f"by: 'rates' was given; the steps of {name} are not known to be its rate times a direction without scale: "
            f"{rule}. Use by='weights'."
        )
    return rule


def _known_rule(kind: type, group: Mapping, name: str) -> StepRule | None:
    for base in kind.__mro__:
        known = f"{base.__module__.split('.')[0]}.{base.__qualname__}"
        reason = REFUSED.get(known, "")
        if known == "transformers.Adafactor" and group.get("scale_parameter"):
            reason = REFUSED["torch.Adafactor"] + ". Give scale_parameter=False"
        elif known == "transformers.Adafactor" and group.get("relative_step"):
            reason = "it makes its rate of the number of steps and ignores its group's. Give relative_step=False"
        if reason:
            raise BadOption(f"by: 'rates' was given; {name}: {reason}, or use by='weights'.")
        if known in RULES:
            rule = RULES[known]
            return _DECOUPLED if rule == _COUPLED and group.get("decoupled_weight_decay") else rule
    return None


def adjusted_group(group: Mapping, m: float, rule: StepRule) -> dict:
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


def split_group(group: Mapping, m: Mapping[int, float], rule: StepRule) -> list[dict]:
    """The group in parts, one a multiplier; ``m``: id of a parameter -> multiplier, 1 where it has none."""
    by_m: dict[float, list] = {}
    for parameter in group["params"]:
        by_m.setdefault(m.get(id(parameter), 1.0), []).append(parameter)
    return [adjusted_group(group, value, rule) | {"params": params} for value, params in by_m.items()]


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
        self._rules: dict[tuple, StepRule] = {}
        for one in self.optimizers:
            for group in one.param_groups:
                self._rule(one, group)
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

    def _rule(self, optimizer: torch.optim.Optimizer, group: Mapping) -> StepRule:
        # what schedules turn (rates, betas, the size of a decay) changes no rule
        switches = ("decoupled_weight_decay", "scale_parameter", "relative_step")
        key = (id(optimizer), bool(group.get("weight_decay")), *(bool(group.get(name)) for name in switches))
        if key not in self._rules:
            self._rules[key] = rule_of(optimizer, group)
        return self._rules[key]

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
        self._running = _StandIn.of(args[0], self._m, self._rule)
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
    def of(cls, optimizer, m: Mapping[int, float], rule_of: Callable[..., StepRule]) -> "_StandIn":
        groups, parts = [], []
        for group in optimizer.param_groups:
            if not any(id(parameter) in m for parameter in group["params"]):
                groups.append(group)
                continue
            found = split_group(group, m, rule_of(optimizer, group))
            groups += found
            parts.append((group, found, [dict(part) for part in found]))
        seen = object.__new__(type(optimizer))
        vars(seen).update(vars(optimizer))
        if hasattr(getattr(optimizer, "mng", None), "index2config"):
            # bitsandbytes keeps settings by place in the groups, beside those by parameter
            seen.mng = copy.copy(optimizer.mng)
            seen.mng.index2config = {}
        seen.param_groups = groups
        return cls(optimizer, seen, dict(vars(seen)), tuple(parts))

    def carry_over(self) -> None:
        for name, value in vars(self.seen).items():
            if self.attributes.get(name, self) is not value:
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


def balancing(
    live: Live, where: norms.Layout, choices: Choices, before: Factors = Factors("tensor")
) -> tuple[Factors, dict[str, float], dict[str, str]]:
    """(factors of the left sides at the choices' strength, ratios before, site -> why it is left alone), of the norms
    of now. With ``when`` a pair that has not moved so far from where ``before`` balances it keeps its factor.
    Collective where the model is spread over ranks. Raises BadOption for a strength that overflows.
    """
    first = next(iter(live.parameters.values()))
    read = norms.sides(where, choices.norm, lambda name: distributed.local(live.parameters[name]))
    table = distributed.agree(np.stack(list(read.values())), live.groups, distributed.local(first).device)
    stats = dict(zip(read, table))
    left, right = norm(choices.norm, stats)
    exponents = np.array([s.exponent("left") + s.exponent("right") for s in live.sites.sites])
    full, _, fate = balance(left, right, exponents, np.ones(len(left), bool), Options(method=choices.method))
    skipped, out = {}, []
    for i, site in enumerate(live.sites.sites):
        cell = slice(i, i + 1)
        if fate[i] != PLANNED:
            skipped[site.name] = reason_of(site, fate[cell], left[cell])
            continue
        (own,) = before.by_site.get(site.name, (1.0,))
        if choices.when is not None and abs(math.log2(full[i] / own)) * exponents[i] < math.log2(choices.when):
            out.append((site.name, (own,)))
            continue
        log2 = math.log2(full[i]) * choices.strength
        if abs(log2) > 100:
            raise BadOption(
                f"strength: {choices.strength:g} was given; with it {site.name} would train at 2^{-log2:.0f} times its "
                "rate."
            )
        out.append((site.name, (2.0 ** (round(log2) if choices.exact else log2),)))
    return Factors("tensor", tuple(out)), norms.ratios(live.sites, where, stats, choices.norm), skipped


def param_groups(
    model: nn.Module,
    params: Iterable | None = None,
    *,
    lr: float,
    weight_decay: float = 0.0,
    eps: float | None = None,
    optimizer: type[torch.optim.Optimizer] = torch.optim.AdamW,
    pairs: str | Sequence[str] = DEFAULT_PAIRS,
    **choices,
) -> list[dict]:
    """Parameter groups with the rates that balancing amounts to now, fixed for the whole training:
    ``torch.optim.AdamW(param_groups(model, lr=1e-3, weight_decay=0.1))``.

    ``params``: what the optimiser would be given (parameters, or groups with settings of their own); every trained
    parameter if None. ``optimizer``: the class the groups are for. ``eps``: where it is not the class' own. Further
    options: ``Choices``'; none of the weights is changed. Rates that are renewed while training: ``by="rates"``.

    Raises what a rescale raises, and BadOption for a class whose groups cannot stand for one.
    """
    chosen = choices_from(pairs, choices | {"by": "rates"})
    given = list(params) if params is not None else [p for p in model.parameters() if p.requires_grad]
    groups = given if given and isinstance(given[0], Mapping) else [{"params": given}]
    groups = [{"lr": lr, "weight_decay": weight_decay} | ({} if eps is None else {"eps": eps}) | g for g in groups]
    groups = [group | {"params": list(group["params"])} for group in groups]
    # the class' own epsilon and decay, as the groups would have them
    like = optimizer([torch.nn.Parameter(torch.zeros(1, 1))], lr=lr)
    groups = [{k: v for k, v in like.defaults.items() if k in ("eps", "decoupled_weight_decay")} | g for g in groups]
    live = fit_for_rates(describe(model, chosen), groups)
    factors, _, _ = balancing(live, norms.layout(live, "tensor"), chosen)
    by_id = {id(live.parameters[name]): m for name, m in multipliers(live, factors).items()}
    return [part for group in groups for part in split_group(group, by_id, rule_of(like, group))]


def own_rates(sites: Sites, factors: Factors) -> dict[str, tuple[tuple[float, float], tuple[float, float]]]:
    """Site -> for its left and its right side, the smallest and the largest of what a rescale by these factors, of the
    start's coordinates, makes of Adam's learning rate. With SGD it is the square.
    """
    out = {}
    for name, cells in factors.by_site.items():
        sides = (
            [c ** -sites[name].exponent("left") for c in cells],
            [c ** sites[name].exponent("right") for c in cells],
        )
        out[name] = tuple((min(side), max(side)) for side in sides)
    return out


def fit_for_rates(live: Live, groups: Iterable[Mapping]) -> Live:
    """The same with the sites that a rate a parameter can stand for; the others are among the refusals. Raises
    NothingToRescale where none is left.
    """
    wrong = _unfit(live, groups)
    refusals = tuple(Refusal(name, reason) for name, reason in wrong.items())
    if len(wrong) == len(live.sites.sites):
        shown = "\n".join(f"  {r.what}: {r.reason}" for r in refusals[:20])
        raise NothingToRescale(f"by: 'rates' was given; no pair of this model can have rates of its own:\n{shown}")
    sites = live.sites.only(lambda site: site.name not in wrong)
    return replace(live, sites=replace(sites, refusals=live.sites.refusals + refusals))


def _unfit(live: Live, groups: Iterable[Mapping]) -> dict[str, str]:
    decayed = {id(p) for group in groups if group.get("weight_decay") for p in group["params"]}
    out = in_part(live.sites, live.shapes)
    for site in live.sites.sites:
        for leg in site.legs:
            if site.name not in out and leg.offset and id(live.parameters[leg.tensor]) in decayed:
                out[site.name] = (
                    f"{leg.tensor} is stored as gain - {leg.offset:g} and decays; the decay pulls towards another gain "
                    "than "
                    "a rate could say. Give it weight_decay=0, or use by='weights'"
                )
    return out


def in_part(sites: Sites, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """Site -> why no rate can stand for a rescale of it: a tensor that it holds only a part of. ``shapes``: of all
    tensors.
    """
    # factors that no two sites share: a tensor with more than one in it holds more than this side
    distinct = {site.name: (2.0 ** (0.1 + i / len(sites.sites)),) for i, site in enumerate(sites.sites)}
    whole = {
        name: all((vector == vector.reshape(-1)[0]).all() for vector in scaling.along.values())
        for name, scaling in scalings(sites, distinct, "tensor", shapes).items()
    }
    return {
        site.name: f"{leg.tensor} holds more than its {leg.role} side, and a parameter has one rate. Use by='weights'"
        for site in sites.sites
        for leg in reversed(site.legs)  # the first that is so is named
        if not whole[leg.tensor]
    }


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
        self.model, self.replicated = model, replicated
        self.strength = choices.strength if strength is None else strength
        self.choices = replace(choices, by="rates", strength=self.strength)
        self.states = States.of(optimizer, "leave", weights=False)
        self.optimizers = self.states.optimizers
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
        self.states.check_holds(live.parameters)
        self.live = fit_for_rates(live, [group for one in self.optimizers for group in one.param_groups])
        self.layout = norms.layout(self.live, "tensor")

    def rescale_(self) -> Rescale:
        """``renew``, by the name that a ``Rescaler`` has for what it does."""
        return self.renew()

    def renew(self) -> Rescale:
        """Measure, and from the next step on train at the rates of now; with ``when``, of pairs that have moved so far
        from where the factors before balance them. The result's ``factors`` are empty, because no weight is changed; it
        has ``rates``. Collective where the model is spread over ranks.
        """
        distributed.reshard(self.model)
        if not self.live.is_current():
            self._look()
        factors, ratios, skipped = balancing(self.live, self.layout, self.choices, self.factors)
        self.set(factors)
        rates = own_rates(self.live.sites, factors)
        return Rescale(Factors("tensor"), ratios, skipped, self.live.sites.refusals, self.live.proof, rates=rates)

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
