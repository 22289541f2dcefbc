"""Whether the parts of a spec fit together: sizes that divide, paths that are there to be read, arms that differ.

What a field by itself may be is ``spec_reading``'s.
"""

import math
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

from wisca_core.architecture.site import granularity_of
from wisca_core.comparison.paper import SETUPS
from wisca_core.comparison.spec import Arm, DataSpec, ModelSpec, Spec
from wisca_core.comparison.spec_rules import N_PILOT_SEEDS, N_SEEDS
from wisca_core.errors import SpecError
from wisca_core.methods import method
from wisca_core.pairs import MODEL_PAIRS
from wisca_core.planning.options import parse_granularity
from wisca_core.planning.schedule import Schedule


def check_spec(spec: Spec) -> Spec:
    """The same spec, once everything in it fits together. Raises SpecError."""
    d, o = spec.data, spec.optimiser
    _check_model(spec.model, d)
    if d.source == "hub":
        if not d.path.startswith("hub:"):
            raise SpecError("data.path", d.path, "hub:owner/name[@revision], because data.source is hub")
    elif d.source != "bundled" and (not d.path or d.path.startswith("hub:")):
        raise SpecError("data.path", d.path, f"the path of a file, because data.source is {d.source}")
    if o.warmup_steps >= spec.steps and o.schedule == "cosine" and o.warmup_steps:
        raise SpecError("optimiser.warmup_steps", o.warmup_steps, f"fewer than steps = {spec.steps}")
    if not o.learning_rates or len(set(o.learning_rates)) < len(o.learning_rates):
        raise SpecError("optimiser.learning_rates", list(o.learning_rates), "one rate or more, each once")
    if not N_SEEDS.fits(len(spec.seeds)) or len(set(spec.seeds)) < len(spec.seeds):
        raise SpecError("seeds", list(spec.seeds), "1 to 1,000 seeds, each once")
    if spec.evaluate_every > spec.steps:
        raise SpecError("evaluate_every", spec.evaluate_every, f"at most steps = {spec.steps}")
    if spec.batch_size % spec.processes_per_cell:
        raise SpecError("processes_per_cell", spec.processes_per_cell, f"a divisor of batch_size = {spec.batch_size}")
    _check_arms(spec)
    _check_pilot(spec)
    return spec


# Fields that mean something for each source of a model; the others have to keep their default.
_DECODER = ("width", "n_layers", "n_heads", "n_kv_heads", "mlp_width", "init_std")
_USED = {
    "decoder": _DECODER,
    "paper": ("setup",),
    "shrunk": ("path", "width", "n_layers"),
    "whole": ("path", "weights"),
    "lora": ("path",),
}


def _check_model(m: ModelSpec, d: DataSpec) -> None:
    used = _USED[m.source]
    for name in (f.name for f in fields(ModelSpec)):
        if name != "source" and name not in used and getattr(m, name) != getattr(ModelSpec, name):
            raise SpecError(
                f"model.{name}", getattr(m, name), f"nothing: a model of source {m.source} has {', '.join(used)}"
            )
    if m.source == "decoder":
        if m.width % m.n_heads:
            raise SpecError("model.n_heads", m.n_heads, f"a divisor of width = {m.width}")
        if (m.width // m.n_heads) % 2:
            raise SpecError(
                "model.n_heads",
                m.n_heads,
                f"a number that leaves an even head size (width / n_heads is {m.width // m.n_heads})",
            )
        if m.n_heads % m.n_kv_heads:
            raise SpecError("model.n_kv_heads", m.n_kv_heads, f"a divisor of n_heads = {m.n_heads}")
    elif m.source == "paper" and not m.setup:
        raise SpecError("model.setup", m.setup, f"one of {', '.join(SETUPS)}")
    elif m.source != "paper" and not m.path:
        raise SpecError("model.path", m.path, f"a model folder, because model.source is {m.source}")
    if m.path.startswith("hub:"):
        raise SpecError(
            "model.path",
            m.path,
            "a folder on this machine: open the model on Inspect first, which fetches it, and give that folder",
        )
    if d.tokens == "tokenizer" and m.source == "decoder" and not d.tokenizer:
        raise SpecError(
            "data.tokenizer", d.tokenizer, "a folder with a tokenizer: the small decoder has none of its own"
        )


def _check_arms(spec: Spec) -> None:
    names = [arm.name for arm in spec.arms]
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        raise SpecError("arms", names, f"each name once, and {twice} is there twice")
    if sum(arm.kind == "none" for arm in spec.arms) != 1 or len(spec.arms) < 2:
        raise SpecError("arms", names, 'exactly one arm of kind "none" (the baseline) and at least one other')
    for i, arm in enumerate(spec.arms):
        if arm.kind == "none":
            continue
        if arm.every is None and not arm.at_start:
            raise SpecError(
                f"arms[{i}].at_start", arm.at_start, "true where every is left out; nothing would happen otherwise"
            )
        if arm.kind == "inverse" and not arm.at_start:
            raise SpecError(
                f"arms[{i}].at_start", arm.at_start, "true for an inverse arm: it mirrors the balance at the start"
            )
        _check_schedule(arm, i, spec.steps)
        if arm.when is not None and (arm.kind != "balance" or arm.strength != 1):
            raise SpecError(
                f"arms[{i}].when", arm.when, "nothing for this arm: it is a matter of kind balance at strength 1"
            )
        if "lora" in arm.pairs and spec.model.source != "lora":
            raise SpecError(
                f"arms[{i}].pairs",
                list(arm.pairs),
                f"a list of {', '.join(MODEL_PAIRS)}; lora needs model.source = lora",
            )
        if arm.kind == "rates":
            _check_rates(arm, i, spec)
        elif arm.clip_norm != Arm.clip_norm:
            raise SpecError(f"arms[{i}].clip_norm", arm.clip_norm, "nothing: it is a matter of arms of kind rates")
        _check_method(arm, i, spec.optimiser.name)
    refuse_coinciding(spec, partition_by_spec(spec))


def _check_schedule(arm: Arm, i: int, steps: int) -> None:
    if arm.start and (arm.every is None or arm.kind == "inverse"):
        why = "it acts at the start only" if arm.every is None else "it mirrors the balance at the start"
        raise SpecError(f"arms[{i}].start", arm.start, f"0 for {arm.name}: {why}")
    first, last = (round(at * steps) if isinstance(at, float) else at for at in (arm.start, arm.stop))
    if last is not None and last < first:
        raise SpecError(
            f"arms[{i}].stop", arm.stop, f"a step not before start = {arm.start:g}: an arm stops after it starts"
        )


def _check_rates(arm: Arm, i: int, spec: Spec) -> None:
    if arm.granularity != "tensor":
        raise SpecError(
            f"arms[{i}].granularity", arm.granularity, "tensor for an arm of kind rates: a matrix has one rate"
        )
    if spec.processes_per_cell > 1 and arm.clip_norm == "weighted":
        raise SpecError(
            "processes_per_cell",
            spec.processes_per_cell,
            f"1, because {arm.name} weighs the norm that clipping looks at",
        )
    for name in ("optimizer_state", "method"):
        if getattr(arm, name) != getattr(Arm, name):
            raise SpecError(
                f"arms[{i}].{name}", getattr(arm, name), "nothing for an arm of kind rates: no weight is touched"
            )
    if spec.model.source == "lora" and arm.pairs != ("lora",):
        raise SpecError(f"arms[{i}].pairs", list(arm.pairs), 'only "lora": the base is frozen, so it has no rates')


def _check_pilot(spec: Spec) -> None:
    names, pilot = [arm.name for arm in spec.arms], spec.pilot
    if spec.baseline.rate_of:
        raise SpecError("arms", spec.baseline.rate_of, "no rate_of for the baseline: its rate is its own")
    if pilot.seeds and pilot.source:
        raise SpecError("pilot.source", pilot.source, "nothing beside pilot.seeds: rates are chosen here or there")
    if not pilot.seeds:
        if pilot.arms:  # those of a source are its own matter
            raise SpecError("pilot.arms", list(pilot.arms), "nothing without pilot.seeds")
        return
    if not N_PILOT_SEEDS.fits(len(pilot.seeds)) or len(set(pilot.seeds)) < len(pilot.seeds):
        raise SpecError("pilot.seeds", list(pilot.seeds), "at most 1,000 seeds, each once")
    both = sorted(set(pilot.seeds) & set(spec.seeds))
    if both:
        raise SpecError(
            "pilot.seeds",
            list(pilot.seeds),
            f"seeds that are not tested: {', '.join(map(str, both))} {'is' if len(both) == 1 else 'are'} among seeds, "
            "and a rate chosen on a seed flatters its arm on that seed",
        )
    unknown = [name for name in pilot.arms if name not in names]
    if unknown or (pilot.arms and spec.baseline.name not in pilot.arms) or len(set(pilot.arms)) < len(pilot.arms):
        raise SpecError("pilot.arms", list(pilot.arms), f"names of arms, each once and {spec.baseline.name} among them")
    if len(spec.optimiser.learning_rates) < 2:
        raise SpecError(
            "optimiser.learning_rates",
            list(spec.optimiser.learning_rates),
            "two rates or more where pilot seeds choose the best of them: of one there is nothing to choose",
        )


def _check_method(arm: Arm, i: int, optimiser: str) -> None:
    found = method(arm.method)
    if found.by_factors:
        return
    if arm.optimizer_state == "transport" and optimiser != "sgd":
        raise SpecError(
            f"arms[{i}].optimizer_state",
            "transport",
            f"leave, because {optimiser} keeps squares of single gradients, which no change of basis "
            "takes along; sgd may have transport",
        )
    misfit = found.misfit(arm) if arm.kind == "balance" else f"it is a matter of kind balance, and this is {arm.kind}"
    if misfit:
        raise SpecError(f"arms[{i}].method", arm.method, f"{Arm.method} for this arm: {misfit}")


def partition_by_spec(spec: Spec) -> Callable[[Arm], Any]:
    """What an arm's granularity comes to, as far as the spec says it without its model: one key/value head is one
    group.
    """
    one_kv = spec.model.source == "decoder" and spec.model.n_kv_heads == 1

    def comes_to(arm: Arm) -> str:
        each = {pair: granularity_of(arm.granularity, pair) for pair in arm.pairs}
        each = {pair: "tensor" if one_kv and one == "group" else one for pair, one in each.items()}
        return each[arm.pairs[0]] if len(set(each.values())) == 1 else parse_granularity(each)

    return comes_to


def refuse_coinciding(spec: Spec, partition: Callable[[Arm], Any]) -> None:
    """Raises SpecError for an arm that does what an earlier one does. ``partition``: what an arm's granularity comes to
    in this model, equal for two that come to the same.
    """
    seen: dict[tuple, str] = {}
    for i, arm in enumerate(spec.arms):
        same = seen.setdefault(effect(arm, spec, partition), arm.name)
        if same != arm.name:
            raise SpecError(
                f"arms[{i}]",
                arm.name,
                f"an arm that differs from {same}; with this model and these steps both do the same",
            )


def _due_steps(schedule: Schedule, n_steps: int) -> range:
    """The steps before ``n_steps`` at which it is due; not written out, for a run may have 10^9."""
    every = schedule.every or n_steps
    first = math.ceil(schedule.start / every) * every or (0 if schedule.at_start else every)
    return range(first, n_steps if schedule.stop is None else min(n_steps, schedule.stop + 1), every)


def effect(arm: Arm, spec: Spec, partition: Callable[[Arm], Any]) -> tuple:
    """What an arm comes to: two arms with the same one are one arm."""
    if arm.kind == "none":
        return ("nothing",)
    pairs = tuple(sorted(arm.pairs))
    # a rescale after the last step moves nothing that is measured
    schedule = Schedule(arm.every, arm.at_start, arm.start, arm.stop).of_run(spec.steps)
    due = _due_steps(schedule, spec.steps)
    at_start, every = 0 in due, arm.every if any(due[:2]) else None
    if spec.model.source == "lora":
        if "lora" not in pairs and arm.kind == "balance":
            every = None  # the base is frozen: balanced once, it stays so
        if every is None:
            pairs = tuple(p for p in pairs if p != "lora")  # B is zero at the start
    due = due if every is not None else due[:1] if at_start else range(0)
    if not pairs or not due or (arm.kind in ("balance", "rates") and arm.strength == 0):
        return ("nothing",)
    state = arm.optimizer_state
    if every is None or (spec.optimiser.name == "sgd" and spec.optimiser.momentum == 0):
        state = "leave"  # there is nothing to carry
    arm = replace(arm, name="", every=every, pairs=pairs, optimizer_state=state)
    clip = "plain" if arm.kind == "rates" and spec.optimiser.clip == 0 else arm.clip_norm
    norm, strength = arm.norm, arm.strength
    done = (arm.kind, due, pairs, partition(arm), norm, strength, arm.exact, state, arm.method, clip)
    return (*done, None if arm.when == 1 else arm.when)
