"""The sites of a live model, from its own config and parameter names, by the same rules as for checkpoints, or
declared.

Names are those the model has inside its wrappers: DDP, torch.compile, activation checkpointing, FSDP2 and peft leave no
trace in them. Every rule is proved on a miniature before it is used, and the modules of a pair must be transformers'
own, because the proof is of those: what of somebody else's can be seen there (``own_code``) is refused by name.
Declared sites are proved on the model's own code.

Not covered: models with offloaded (meta) parameters; several transformers models in one.
"""

import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from wisca_core.architecture.declaration import Declaration
from wisca_core.architecture.declared_paths import root_of
from wisca_core.architecture.declared_sites import declared_sites
from wisca_core.architecture.families import families
from wisca_core.architecture.find import find_sites
from wisca_core.architecture.site import DEFAULT_PAIRS, Refusal, Site, Sites
from wisca_core.checkpoint import RESCALABLE, Checkpoint
from wisca_core.checkpoint.live import DTYPE_NAMES, full_shape, live_checkpoint
from wisca_core.equivalence.declared_proof import names_of, prove_declared, submodule
from wisca_core.equivalence.proof import Proof, label
from wisca_core.equivalence.proving import prove
from wisca_core.errors import DeclarationError, NothingToRescale, PlanMismatch, ProofFailed, UnknownArchitecture
from wisca_core.training import distributed, lora, own_code, zero
from wisca_core.training.choices import Choices
from wisca_core.training.lora import clean


@dataclass(frozen=True, eq=False)
class Live:
    """A live model as the rules see it.

    ``inner``: the part of the model that the names are of, inside its wrappers. ``sites``: what can be rescaled, with
    the legs of adapters and copies that follow; ``refusals`` in it say what cannot and why. ``parameters``: tensor name
    of the legs -> the live tensor; ``places``: name -> (module, attribute) that holds it. ``columns``: DoRA magnitudes
    that follow a change of their weight's columns.
    """

    model: nn.Module
    inner: nn.Module
    checkpoint: Checkpoint
    sites: Sites
    parameters: Mapping[str, torch.Tensor]
    places: Mapping[str, tuple[nn.Module, str]]
    columns: tuple["lora.Columns", ...]
    groups: tuple
    proof: Proof | None
    declared: tuple[Declaration, ...] = ()

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: full_shape(p) for name, p in self.parameters.items()}

    def is_current(self) -> bool:
        """Whether the model still holds the very tensors that were found."""
        return all(
            module._parameters.get(attribute) is self.parameters[name]
            for name, (module, attribute) in self.places.items()
        )


def describe(model: nn.Module, choices: Choices, replicated: bool = False) -> Live:
    """Find, check and prove. Raises UnknownArchitecture, ConfigMismatch, ProofFailed, NothingToRescale,
    UnsupportedCheckpoint.

    ``replicated``: every rank of the default process group holds this model (data parallel without a wrapper to see).
    """
    if not isinstance(model, nn.Module):
        raise UnknownArchitecture(f"a {type(model).__name__} was given where a torch module is needed.")
    distributed.reshard(model)
    inner = _inside(model, choices.sites)
    held = _ModelTensors.of(inner)
    checkpoint = _as_checkpoint(inner, held, not choices.sites)

    def look_for(pairs: Iterable[str]) -> Sites:
        if choices.sites:
            return declared_sites(checkpoint, choices.sites, pairs)
        return find_sites(checkpoint, pairs=pairs)

    found = look_for(choices.options.pairs)
    wants_base = any(pair != "lora" for pair in choices.pairs)
    chosen = tuple(site for site in found.sites if choices.chooses(site.key))
    refused = [r for r in found.refusals if wants_base and (r.what == "model" or choices.options.asks(r.what))]
    adapters = lora.adapters(inner)
    sites, columns = [], []
    own = {} if choices.sites else _own_code(inner, chosen)  # declared ones are proved on that very code
    outside = own_code.prompt_encoder(model)
    for site in chosen:
        for one in (
            lambda s: outside if s.key.pair in ("qk", "vo") else "",
            lambda s: own.get(s.name, ""),
            lambda s: _why_shared(s, held),
            lambda s: lora.why_not_rescalable(s, adapters),
        ):
            reason = one(site)
            if reason:
                refused.append(Refusal(site.name, reason))
                break
        else:
            followed, more = lora.follow(site, adapters, held.copies)
            sites.append(followed)
            columns += more
    sites, twice, partly = _once(sites, held)
    refused += partly
    ranks, why = lora.rank_sites(adapters)
    if found.family or ranks:
        every = look_for((*DEFAULT_PAIRS, "mlp")) if choices.exclude else found
        names = [one.name for one in (*every.sites, *ranks)] + [r.what for r in (*every.refusals, *why)]
        choices.options.check_names(names, found.attention.n_layers if found.attention else 0)
    if "lora" in choices.pairs:
        sites += [site for site in ranks if choices.chooses(site.key)]
        refused += why
        if not adapters:
            refused.append(
                Refusal("lora", "the model has no LoRA adapters (peft); attach them first, or leave lora out of pairs")
            )
    parameters, places = {}, {}
    for name in {leg.tensor for site in sites for leg in site.legs} | {n for c in columns for n in c.names}:
        parameters[name], places[name] = held.tensors[name], held.places[name]
    kept = []
    for site in sites:
        reason = _unusable(site, parameters, choices)
        if reason:
            refused.append(Refusal(site.name, reason))
        else:
            kept.append(site)
    names = {site.name for site in kept}
    columns = tuple(c for c in columns if c.site in names)
    if not kept:
        _refuse(refused, checkpoint, bool(adapters) and "lora" not in choices.pairs)
    replicated = replicated or any(hasattr(p, "_hp_mapping") or hasattr(p, "ds_id") for p in parameters.values())
    groups = distributed.agreement_groups(model, parameters.values(), replicated)
    proof = None
    if any(site.key.pair != "lora" for site in kept):
        if choices.sites and adapters and choices.build is None:
            raise DeclarationError(
                f"the {type(inner).__name__} has LoRA adapters, so a copy of it proves nothing of the model alone. "
                "Give build=, a "
                "function that makes a small model of the class."
            )

        def proved() -> Proof:
            if not choices.sites:
                return prove(checkpoint, found)
            names = {site.name for site in kept}
            own = found.only(lambda site: site.name in names)
            return prove_declared(
                choices.sites, own, inner, structure=checkpoint.tensors, build=choices.build, forward=choices.forward
            )

        proof = distributed.once(proved, groups)
        kept, unproved = _proved_sites(kept, proof)
        if unproved and not any(site.key.pair != "lora" for site in kept):
            how = "proof on the model" if choices.sites else "proof on a miniature"
            raise ProofFailed(
                f"{found.model_type}: the rule {found.family} did not pass its {how}: {proof.reason} The model is "
                "unchanged."
            )
        refused += unproved
        names = {site.name for site in kept}
        columns = tuple(c for c in columns if c.site in names)
    used = {leg.tensor for site in kept for leg in site.legs} | {n for c in columns for n in c.names}
    parameters = {name: p for name, p in parameters.items() if name in used}
    sites = Sites(found.family, found.model_type, found.attention, tuple(kept), tuple(refused), found.remarks + twice)
    places = {name: places[name] for name in parameters}
    return Live(model, inner, checkpoint, sites, parameters, places, columns, groups, proof, choices.sites)


def _proved_sites(kept: list[Site], proof: Proof) -> tuple[list[Site], list[Refusal]]:
    """The sites whose rule was proved (rank channels need no proof of the base), and why the others are left alone."""
    reasons = dict(proof.refused)
    fit = [site for site in kept if site.key.pair == "lora" or proof.covers(site)]
    return fit, [Refusal(s.name, reasons.get(label(s), proof.reason)) for s in kept if s not in fit]


def seen_as_checkpoint(model: nn.Module, pairs: Iterable[str] = DEFAULT_PAIRS) -> tuple[Checkpoint, Sites]:
    """The model in the words of a checkpoint and its pairs, unproved; it may lie on the meta device, without values."""
    inner = _transformer(model)
    checkpoint = _as_checkpoint(inner, _ModelTensors.of(inner), True)
    return checkpoint, find_sites(checkpoint, pairs=pairs)


def copy_tensors(copy: object, live: Live) -> dict[str, torch.Tensor]:
    """Leg name -> tensor of another copy of the weights: a module (an EMA model) or a mapping of names. Raises
    PlanMismatch.
    """
    if isinstance(copy, nn.Module):
        distributed.reshard(copy)
        found = dict(_ModelTensors.of(_inside(copy, live.declared)).tensors)
    elif isinstance(copy, Mapping):
        found = {}
        for name, tensor in copy.items():
            found.setdefault(clean(str(name)), tensor)
    else:
        raise PlanMismatch(
            f"also: a {type(copy).__name__} was given; a module or a mapping of parameter names to tensors is needed."
        )
    out = {}
    for name, parameter in live.parameters.items():
        tensor = found.get(name)
        if not isinstance(tensor, torch.Tensor):
            raise PlanMismatch(
                f"also: the copy has no {name}; every tensor that is rescaled must be in it under the name the model "
                "has for it."
            )
        if full_shape(tensor) != full_shape(parameter):
            raise PlanMismatch(
                f"also: {name} is {tuple(tensor.shape)} in the copy and {full_shape(parameter)} in the model."
            )
        if hasattr(tensor, "ds_id") or hasattr(tensor, "_hp_mapping"):
            raise PlanMismatch(
                f"also: {name} of the copy is partitioned by DeepSpeed, where what is written into it is undone; such "
                "a "
                "copy cannot follow."
            )
        if tensor is parameter or (
            tensor.numel()
            and not tensor.is_meta
            and distributed.local(tensor).data_ptr() == distributed.local(parameter).data_ptr()
        ):
            raise PlanMismatch(f"also: {name} of the copy is the model's own tensor; it would be scaled twice.")
        out[name] = tensor
    return out


def same_transformer(copy: nn.Module, model: nn.Module, declared: Sequence[Declaration] = ()) -> bool:
    """Whether ``copy`` holds a transformers model (or what the declared sites are of) of the same class and shapes as
    ``model``'s, and not that one.
    """
    try:
        mine, other = _inside(model, declared), _inside(copy, declared)
    except (UnknownArchitecture, DeclarationError):
        return False
    if mine is other or type(mine) is not type(other):
        return False
    shapes = [{name: full_shape(p) for name, p in _ModelTensors.of(one).names.items()} for one in (mine, other)]
    return shapes[0] == shapes[1]


def _inside(model: nn.Module, declared: Sequence[Declaration]) -> nn.Module:
    """What the names of sites are of: the part the declared paths begin in, else the one transformers model."""
    if not declared:
        return _transformer(model)
    return submodule(model, root_of(names_of(model), declared))


def _transformer(model: nn.Module) -> nn.Module:
    """The one transformers model inside whatever wraps it."""
    from transformers import PreTrainedModel

    found: list[nn.Module] = []

    def look(module: nn.Module) -> None:
        if isinstance(module, PreTrainedModel):
            if not any(module is one for one in found):
                found.append(module)
            return
        for child in module.children():
            look(child)

    look(model)
    if not found:
        raise UnknownArchitecture(
            f"{type(model).__name__} holds no transformers model, so there is no config to say which pairs are exact. "
            "For a "
            "class of your own declare them: sites=[wisca.attention(...)]; print(wisca.guess(model)) proposes a "
            "declaration. "
            "The model is unchanged."
        )
    if len(found) > 1:
        names = ", ".join(type(one).__name__ for one in found[:4])
        raise UnknownArchitecture(
            f"{type(model).__name__} holds {len(found)} transformers models ({names}); give the one to rescale."
        )
    return found[0]


@dataclass(frozen=True, eq=False)
class _ModelTensors:
    """All tensors of a model under clean names. ``names``: those a checkpoint of the bare model has, each with every
    name of the same storage in ``shared``; ``copies``: clean name -> names of further copies (peft's
    modules_to_save).
    """

    tensors: Mapping[str, torch.Tensor]
    places: Mapping[str, tuple[nn.Module, str]]
    names: Mapping[str, torch.Tensor]
    shared: Mapping[str, tuple[str, ...]]
    copies: Mapping[str, tuple[str, ...]]

    @classmethod
    def of(cls, inner: nn.Module) -> "_ModelTensors":
        tensors, places, copies = {}, {}, {}
        modules = dict(inner.named_modules(remove_duplicate=False))
        active = {
            clean(path + "."): set(getattr(module, "active_adapters", ()) or ())
            for path, module in modules.items()
            if type(module).__name__ == "ModulesToSaveWrapper"
        }
        for path, module in modules.items():
            for attribute, tensor in module._parameters.items():
                if tensor is None:
                    continue
                name = clean(f"{path}.{attribute}" if path else attribute)
                for wrapper, adapters in active.items():
                    inside = name.removeprefix(wrapper)
                    if inside == name:
                        continue
                    kind, _, rest = inside.partition(".")
                    which, _, last = rest.partition(".")
                    if kind == "modules_to_save" and which in adapters:
                        name = wrapper + last
                    elif kind in ("modules_to_save", "original_module"):
                        copies.setdefault(wrapper + (last if kind == "modules_to_save" else rest), []).append(name)
                tensors[name], places[name] = tensor, (module, attribute)
        beside = {name for names in copies.values() for name in names}
        plain = {name: t for name, t in tensors.items() if name not in beside and not lora.is_adapter(name)}
        by_owner: dict[object, list[str]] = {}
        for name, tensor in tensors.items():
            by_owner.setdefault(_storage(tensor), []).append(name)
        shared = {name: tuple(names) for names in by_owner.values() if len(names) > 1 for name in names}
        return cls(tensors, places, plain, shared, {name: tuple(names) for name, names in copies.items()})


def _storage(tensor: torch.Tensor) -> object:
    """What two names of the same memory have in common."""
    if tensor.is_meta or hasattr(tensor, "ds_id"):
        return id(tensor)
    held = distributed.local(tensor)
    return (held.device, held.data_ptr()) if held.numel() else id(tensor)


def _as_checkpoint(inner: nn.Module, held: _ModelTensors, has_config: bool) -> Checkpoint:
    return live_checkpoint(held.names.items(), type(inner).__name__, _config_json(inner) if has_config else "")


def _config_json(inner: nn.Module) -> str:
    import transformers

    config = json.loads(inner.config.to_json_string(use_diff=True))
    config["model_type"] = inner.config.model_type
    named = next((c.__name__ for c in type(inner).__mro__ if getattr(transformers, c.__name__, None) is c), None)
    if named and named != "PreTrainedModel":
        config["architectures"] = [named]
    for unstable in ("transformers_version", "dtype", "torch_dtype", "_name_or_path", "use_cache"):
        config.pop(unstable, None)  # says nothing of the structure; without it a proof serves every dtype
    return json.dumps(config, sort_keys=True)


def _own_code(inner: nn.Module, sites: Iterable[Site]) -> dict[str, str]:
    """Site -> why code of somebody's own among its modules forbids it."""
    family = families()[inner.config.model_type].name
    modules = {}
    for path, module in inner.named_modules(remove_duplicate=False):
        modules.setdefault(clean(path + ".").rstrip("."), (path, module))
    judged: dict[str, str] = {}

    def judge(parent: str) -> str:
        if parent not in judged:
            path, top = modules.get(parent, ("", inner))
            inside = [(f"{path}.{name}".strip(".") if name else path, module) for name, module in top.named_modules()]
            judged[parent] = own_code.own_code_in(inside, family) or own_code.attention_function(top)
        return judged[parent]

    out = {}
    for site in sites:
        for parent in dict.fromkeys(leg.tensor.rsplit(".", 2)[0] for leg in site.legs):
            reason = judge(parent)
            if reason:
                out.setdefault(site.name, reason)
    return out


def _why_shared(site: Site, held: _ModelTensors) -> str:
    """Why sharing forbids the site: a leg's storage is something else as well, other than the same leg of another
    layer.
    """
    for leg in site.legs:
        for other in held.shared.get(leg.tensor, ()):
            if other != leg.tensor and _layerless(other) != _layerless(leg.tensor):
                return f"{leg.tensor} shares its storage with {other}; scaling it would change both"
    return ""


def _layerless(name: str) -> str:
    return re.sub(r"\.\d+\.", ".#.", name, count=1)


def _once(sites: Sequence[Site], held: _ModelTensors) -> tuple[list[Site], tuple[str, ...], list[Refusal]]:
    """Layers that are one and the same module are scaled once; layers that share only a part of a pair are refused."""

    def owner(name: str) -> str:
        return held.shared.get(name, (name,))[0]

    kept: dict[tuple, Site] = {}
    remarks = []
    for site in sites:
        canonical = tuple(replace(leg, tensor=owner(leg.tensor)) for leg in site.legs)
        if canonical in kept:
            remarks.append(f"{site.name} is {kept[canonical].name}: the same parameters, scaled once.")
        else:
            kept[canonical] = site
    users: dict[tuple, list[tuple[str, frozenset[int]]]] = {}  # of a tensor along an axis: who scales which indices
    for site in kept.values():
        for leg in site.legs:
            place = (site.key.pair, owner(leg.tensor), leg.axis, leg.fixed)
            users.setdefault(place, []).append((site.name, frozenset(leg.index.indices().tolist())))
    wrong: dict[str, set[str]] = {}
    for found in users.values():
        # two sites may have rows of their own in one matrix: latent attention's content and rotary queries
        for (name, rows), (other, its_rows) in itertools.combinations(found, 2):
            if name != other and not rows.isdisjoint(its_rows):
                wrong.setdefault(name, set()).add(other)
                wrong.setdefault(other, set()).add(name)
    refused = [
        Refusal(name, f"some of its tensors, not all, are those of {', '.join(sorted(others))} too")
        for name, others in wrong.items()
    ]
    return [site for site in kept.values() if site.name not in wrong], tuple(remarks), refused


def _unusable(site: Site, parameters: Mapping[str, torch.Tensor], choices: Choices) -> str:
    for leg in site.legs:
        tensor = parameters[leg.tensor]
        if tensor.is_inference():
            return f"{leg.tensor} was made in inference mode, so it cannot be edited in place; clone it"
        if tensor.is_meta:
            return f"{leg.tensor} is on the meta device (offloaded); it cannot be edited in place"
        if leg.fixed and (distributed.is_dtensor(tensor) or zero.is_partitioned(tensor)):
            return (
                f"{leg.tensor} holds several experts or heads on an axis of their own and is sharded; that is not "
                "supported"
            )
        if DTYPE_NAMES.get(tensor.dtype) not in RESCALABLE:
            return f"{leg.tensor} is {tensor.dtype}; only {', '.join(RESCALABLE)} can be rescaled"
        if not tensor.requires_grad and choices.frozen == "refuse":
            return f"{leg.tensor} is frozen (requires_grad is False). frozen='scale' rescales frozen parameters too"
    return ""


def _refuse(refused: Iterable[Refusal], checkpoint: Checkpoint, has_ranks: bool) -> None:
    refused = list(dict.fromkeys(refused))
    whole = next((r for r in refused if r.what == "model"), None)
    if whole:
        raise UnknownArchitecture(f"{checkpoint.source}: {whole.reason} The model is unchanged.")
    shown = "\n".join(f"  {r.what}: {r.reason}" for r in refused[:20])
    more = f"\n  and {len(refused) - 20} more" if len(refused) > 20 else ""
    if has_ranks:
        more += "\nThe model has LoRA adapters: pairs=('lora',) balances the two sides of each."
    raise NothingToRescale(
        f"nothing of what was asked can be rescaled in this {checkpoint.source}:\n{shown}{more}"
        if refused
        else f"this {checkpoint.source} has no pair of the kind and layers that were asked for.{more}"
    )
