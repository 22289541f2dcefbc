"""One rescale of a live model: measure, decide with the very arithmetic of a plan, apply in place."""

import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import nn

from wisca_core.architecture.site import DEFAULT_PAIRS, Refusal, Site
from wisca_core.equivalence.basis_proof import check_basis
from wisca_core.equivalence.proof import Proof, label
from wisca_core.errors import BadOption, PlanMismatch, ProofFailed
from wisca_core.methods import method
from wisca_core.patterns.table import norm
from wisca_core.planning.decide import NON_FINITE, OVERFLOW, ZERO, balance
from wisca_core.planning.factors import Factors
from wisca_core.planning.plan import Plan
from wisca_core.rescale import scalings
from wisca_core.rescale_basis import basis_of, change_, groups_of
from wisca_core.training import averages, distributed, lora, norms, zero
from wisca_core.training.apply import apply_, forget_caches
from wisca_core.training.choices import Choices, choices_from
from wisca_core.training.live import Live, copy_tensors, describe
from wisca_core.training.optimizer_state import States, folds_decay
from wisca_core.training.self_check import Check, SelfCheck


@dataclass(frozen=True, eq=False)
class Rescale:
    """What one rescale did. ``factors``: other than 1 where something changed; ``ratios``: site -> norm of the left
    side over the right one before; ``skipped``: site -> why it, or a part of it, was left alone this time;
    ``refusals``: what can never be done here; ``proof``: None where only LoRA pairs were asked for; ``check``: what the
    outputs did, None where they were not looked at.
    """

    factors: Factors
    ratios: Mapping[str, float]
    skipped: Mapping[str, str]
    refusals: tuple[Refusal, ...]
    proof: Proof | None
    check: Check | None = None
    rates: Mapping[str, tuple[tuple[float, float], tuple[float, float]]] = field(default_factory=dict)


def rescale_(
    model: nn.Module,
    optimizer: object = None,
    *,
    plan: Factors | Plan | None = None,
    also: Sequence[object] | None = None,
    replicated: bool = False,
    pairs: str | Sequence[str] = DEFAULT_PAIRS,
    **choices,
) -> Rescale:
    """Balance the pairs of a live model in place, once; its function stays the same.

    ``optimizer``: a torch optimiser, a wrapped one, a list of them, or None before there is one. ``plan``: these
    factors instead of balancing (``result.factors.undone()`` takes a rescale back). ``also``: other copies of the
    weights (EMA) that get the same factors; None: there should be none, and an AveragedModel that is found is an error.
    ``replicated``: every rank holds this very model although no wrapper shows it. Further options: see ``Choices``.

    Raises BadOption, UnknownArchitecture, ConfigMismatch, ProofFailed, NothingToRescale, PlanMismatch,
    UnsupportedCheckpoint; the model is then unchanged.
    """
    return Rescaler(model, optimizer, choices_from(pairs, choices), also, replicated).rescale_(plan)


class Rescaler:
    """A model made ready: found and proved once, so that each rescale only measures and multiplies."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: object,
        choices: Choices,
        also: Sequence[object] | None = None,
        replicated: bool = False,
        batch: object = None,
    ):
        self.model, self.choices, self.also, self.replicated = model, choices, tuple(also or ()), replicated
        self.method = method(choices.method)
        self.states = States.of(optimizer, choices.optimizer_state, choices.optimizer_rules)
        self._warned: set[str] = set()
        self.check = SelfCheck(choices.check, choices.forward, choices.batch if choices.batch is not None else batch)
        self._look()
        self._averages_named = also is not None
        self._check_averages()
        if any(
            lora.is_adapter(leg.tensor)
            for site in self.live.sites.sites
            if site.key.pair != "lora"
            for leg in site.legs
        ):
            warnings.warn(
                "wisca: the base under LoRA adapters is rescaled. An adapter saved alone then fits only the rescaled "
                "base: save the base too, "
                "merge, or take the factors back (plan=factors.undone()) before saving.",
                RuntimeWarning,
                stacklevel=3,
            )

    def _look(self) -> None:
        self.live: Live = self._without_refused(describe(self.model, self.choices, self.replicated))
        if any(zero.is_partitioned(p) for p in self.live.parameters.values()):
            zero.check(self.states)
            if any(site.key.pair == "lora" for site in self.live.sites.sites) or self.live.columns:
                raise BadOption("pairs: LoRA under DeepSpeed is not supported.")
        else:
            self.states.check_holds(self.live.parameters)
        self._look_at_bases()
        if self.live.columns and any(
            distributed.is_dtensor(self.live.parameters[n]) for c in self.live.columns for n in c.names
        ):
            raise BadOption(
                "pairs: the magnitudes of sharded DoRA adapters cannot follow a rescaled base; leave vo out of pairs."
            )
        self._set_layout()

    def _set_layout(self) -> None:
        self.layout = norms.layout(self.live, self.choices.granularity)

    @property
    def _bases(self) -> list[Site]:
        """Sites that a change of basis is for, adapters first."""
        found = [s for s in self.live.sites.sites if self.method.changes_basis_of(s.key.pair)]
        return sorted(found, key=lambda site: site.key.pair != "lora")

    def _look_at_bases(self) -> None:
        """What a full change of basis needs. Raises BadOption, ProofFailed."""
        sites, name = self._bases, self.method.name
        self._groups = {site.name: groups_of(site) for site in sites}
        if not sites:
            return
        for site in sites:
            if wrong := self.method.why_not(site):
                raise BadOption(f"method: {name!r} was given; {site.name}: {wrong}. Use method='wisca'.")
        if any(distributed.is_dtensor(p) or zero.is_partitioned(p) for p in self.live.parameters.values()):
            raise BadOption(f"method: {name!r} of sharded parameters is not supported; use method='wisca'.")
        for optimizer in self.states.optimizers if self.states.mode == "transport" else ():
            if set(self.states.rule_of(optimizer).values()) != {-1}:
                raise BadOption(
                    f"optimizer: method={name!r} mixes channels, and the squares {type(optimizer).__name__} keeps of "
                    "single "
                    "gradients cannot be mixed. Give optimizer_state='leave', or use SGD, or method='wisca'."
                )
        check_basis(self.live.checkpoint, sites, self.method)

    def _check_averages(self) -> None:
        """Looking through all that lives takes longer than a rescale: at most a hundredth of the time is spent on
        it.
        """
        if self._averages_named or time.monotonic() < getattr(self, "_next_look", 0.0):
            return
        started = time.monotonic()
        averages.check_none_forgotten(self.live)
        self._next_look = started + 100 * (time.monotonic() - started)

    @torch.no_grad()
    def rescale_(self, plan: Factors | Plan | None = None) -> Rescale:
        """Do it now. Collective where the model is spread over ranks: every rank calls it."""
        distributed.reshard(self.model)
        if not self.live.is_current():
            self._look()
        self._check_averages()
        live = self.live
        given = plan.factors if isinstance(plan, Plan) else plan
        if given is not None:
            if not isinstance(given, Factors):
                raise PlanMismatch(
                    f"plan: a {type(given).__name__} was given; a Plan or the factors of a rescale are needed."
                )
            given.check(live.sites)
            if isinstance(plan, Plan) and plan.bases:
                raise PlanMismatch(
                    "plan: a live model takes a plan's factors alone, and this one changes the basis of "
                    f"{len(plan.bases.sites)} "
                    "pairs. Export it, or give method='gram' instead of a plan."
                )
        copies = [copy_tensors(copy, live) for copy in self.also]
        stats = self._stats()
        ratios = norms.ratios(live.sites, self.layout, stats, self.choices.norm)
        skipped: dict[str, str] = {}
        factors = self._decide(stats, skipped) if given is None else given
        labels = {site.name: label(site) for site in live.sites.sites}
        mixed: dict[str, str] = {}

        def change(chosen: Callable[[str], bool]) -> None:
            mixed.clear()
            part = tuple((name, fs) for name, fs in factors.sites if chosen(labels[name]))
            apply_(live, Factors(factors.granularity, part), self.states, copies)
            if given is None:
                self._change_bases([s for s in self._bases if chosen(labels[s.name])], copies, mixed)

        check = None
        if self.check.is_due and (factors.sites or (given is None and self._bases)):
            kinds = tuple(dict.fromkeys(labels.values()))
            check = self.check.of(live, self.states, copies, change, kinds, is_one=given is not None)
            factors = self._less_refused(factors, labels, is_given=given is not None)
        else:
            change(lambda label: True)
        skipped |= mixed
        self._say_decay(factors)
        for name, reason in skipped.items():
            # B = 0 is how every LoRA begins, so it is no news
            if name not in self._warned and "not finite" in reason:
                self._warned.add(name)
                warnings.warn(f"wisca: {name} is left alone: {reason}", RuntimeWarning, stacklevel=2)
        return Rescale(factors, ratios, skipped, self.live.sites.refusals, live.proof, check)

    def _less_refused(self, factors: Factors, labels: Mapping[str, str], is_given: bool) -> Factors:
        """Without the pairs that the check found wrong, which are refused from now on. Raises ProofFailed where nothing
        is left, or where what was given cannot be done.
        """
        wrong = {name: self.check.refused[of] for name, of in labels.items() if of in self.check.refused}
        if not wrong:
            return factors
        said = "; ".join(f"{of}: {reason}" for of, reason in self.check.refused.items())
        if is_given or len(wrong) == len(labels):
            self.check.n_done = 0  # the next try is looked at again
            self.check.refused = {}
            raise ProofFailed(f"the rescale changed the function and was taken back to the bit. {said}.")
        warnings.warn(f"wisca: taken back to the bit and left alone from now on: {said}.", RuntimeWarning, stacklevel=4)
        self.live = self._without_refused(self.live)
        self._set_layout()
        return Factors(factors.granularity, tuple(one for one in factors.sites if one[0] not in wrong))

    def _without_refused(self, live: Live) -> Live:
        wrong = {s.name: self.check.refused[label(s)] for s in live.sites.sites if label(s) in self.check.refused}
        if not wrong:
            return live
        left = live.sites.only(lambda site: site.name not in wrong)
        refusals = (*live.sites.refusals, *(Refusal(name, reason) for name, reason in wrong.items()))
        return replace(live, sites=replace(left, refusals=refusals))

    @torch.no_grad()
    def balancing(self) -> dict[str, tuple[float, ...]]:
        """Site -> the factors that would balance it now, 1 where it is balanced; nothing is changed. A site that cannot
        be balanced now is left out. Collective.
        """
        skipped: dict[str, str] = {}
        factors = self._decide(self._stats(), skipped).by_site
        sites = (site for site in self.live.sites.sites if site.name not in skipped)
        return {s.name: factors.get(s.name, (1.0,) * s.n_cells(self.choices.granularity)) for s in sites}

    def _stats(self) -> dict[str, np.ndarray]:
        stats = norms.sides(self.layout, self.choices.norm, self._read)
        return dict(zip(stats, distributed.agree(np.stack(list(stats.values())), self.live.groups, self._device)))

    def _say_decay(self, factors: Factors) -> None:
        """Once, with the number: a decay that is a part of the gradient meets the new weights, not the old ones."""
        folded = [
            (one, group) for one in self.states.optimizers for group in one.param_groups if folds_decay(one, group)
        ]
        if not folded or "decay" in self._warned:
            return
        names = {id(parameter): name for name, parameter in self.live.parameters.items()}
        scaling = scalings(self.live.sites, factors.by_site, factors.granularity, self.live.shapes)
        found = []
        for one, group in folded:
            for parameter in group["params"]:
                name = names.get(id(parameter))
                for vector in scaling[name].along.values() if name in scaling else ():
                    found += [
                        (group["weight_decay"] * float(c) ** 2, name, one, group) for c in (vector.min(), vector.max())
                    ]
        if not found:
            return
        self._warned.add("decay")
        (low, of_low, *_), (high, of_high, one, group) = (f(found, key=lambda entry: entry[0]) for f in (min, max))
        warnings.warn(
            f"wisca: the weight decay of {type(one).__name__}, {group['weight_decay']:g}, is a part of the gradient. "
            "On a "
            f"matrix kept as c W it acts as {group['weight_decay']:g} c^2 on W: from now on as {low:.3g} ({of_low}) to "
            f"{high:.3g} ({of_high}), with optimizer_state='leave' too. A decoupled decay (AdamW) stays what it was.",
            RuntimeWarning,
            stacklevel=3,
        )

    @torch.no_grad()
    def carry_states_(self, factors: Factors) -> None:
        """What the optimisers keep, and nothing else, into the coordinates that these factors lead to. DeepSpeed's is
        left alone: it comes and goes with the weights.
        """
        if self.states.mode != "transport" or any(zero.is_partitioned(p) for p in self.live.parameters.values()):
            return
        before = {name: parameter.detach().clone() for name, parameter in self.live.parameters.items()}
        apply_(self.live, factors, self.states)
        for name, parameter in self.live.parameters.items():
            parameter.copy_(before[name])

    @property
    def _device(self) -> torch.device:
        return distributed.local(next(iter(self.live.parameters.values()))).device

    def _read(self, name: str) -> torch.Tensor:
        parameter = self.live.parameters[name]
        return zero.read(name, parameter) if zero.is_partitioned(parameter) else distributed.local(parameter)

    def _decide(self, stats: Mapping[str, np.ndarray], skipped: dict[str, str]) -> Factors:
        sites, where = self.live.sites.sites, self.layout
        left, right = norm(self.choices.norm, stats)
        exponents = np.array([s.exponent("left") + s.exponent("right") for s in sites])[where.site]
        chosen = np.array([not self.method.changes_basis_of(s.key.pair) for s in sites], bool)[where.site]
        if self.choices.when is not None:
            with np.errstate(divide="ignore", invalid="ignore"):
                chosen &= ~(np.abs(np.log2(left) - np.log2(right)) < np.log2(self.choices.when))
        _, factor, fate = balance(left, right, exponents, chosen, self.choices.options)
        self._stop_overflow(factor, fate)
        out = []
        for i, site in enumerate(sites):
            cells = slice(where.first[i], where.first[i + 1])
            reason = reason_of(site, fate[cells], left[cells])
            if reason:
                skipped[site.name] = reason
            # a NaN somewhere in the pair: the whole pair is left alone
            own = (
                np.ones(cells.stop - cells.start)
                if (fate[cells] == NON_FINITE).any()
                else np.where(fate[cells] == OVERFLOW, 1.0, factor[cells])
            )
            if (own != 1).any():
                out.append((site.name, tuple(own.tolist())))
        return Factors(self.choices.granularity, tuple(out))

    def _stop_overflow(self, factor: np.ndarray, fate: np.ndarray) -> None:
        """float16 alone has so small a range that a balanced pair can leave it."""
        if not any(p.dtype == torch.float16 for p in self.live.parameters.values()):
            return
        largest = norms.largest_half(self.live, self.layout, self._read)
        largest = distributed.agree(largest, self.live.groups, self._device)
        top = torch.finfo(torch.float16).max
        with np.errstate(over="ignore", invalid="ignore"):
            over = (largest[0] * factor > top) | (largest[1] / factor > top)
        fate[over & (factor != 1)] = OVERFLOW

    def _change_bases(
        self, sites: Iterable[Site], copies: Iterable[Mapping[str, torch.Tensor]], skipped: dict[str, str]
    ) -> None:
        for site in sites:
            found = [
                basis_of(self.method, site.key.pair, self.live.parameters, rows) for rows in self._groups[site.name]
            ]
            reason = next((one for one in found if isinstance(one, str)), None)
            if reason:
                skipped[site.name] = reason
                continue
            names = [leg.tensor for leg in site.legs]
            kept = {name: self.states.plan(self.live.parameters[name], name, uniform=False) for name in names}
            for rows, basis in zip(self._groups[site.name], found):
                for one in rows:
                    for tensors in (self.live.parameters, *copies):
                        change_(tensors[one.leg.tensor].detach(), one, basis)
                    for tensor, _ in kept[one.leg.tensor]:
                        change_(tensor, one, basis, is_gradient=True)
        forget_caches(self.live)


def reason_of(site, fate: np.ndarray, left: np.ndarray) -> str:
    if (fate == NON_FINITE).any():
        side = "left" if not np.isfinite(left).all() else "right"
        names = ", ".join(leg.tensor for leg in site.measured_legs(side))
        return f"a norm is not finite: {names} holds NaN or infinite values"
    if (fate == ZERO).any():
        side = "left" if (left == 0).any() else "right"
        part = "" if (fate == ZERO).all() else f"in {int((fate == ZERO).sum())} of {len(fate)} cells "
        return f"{part}every value of {site.measured_legs(side)[0].tensor} is zero, so no finite factor balances it"
    if (fate == OVERFLOW).any():
        return "a value would leave the range of float16. A smaller strength may fit"
    return ""
