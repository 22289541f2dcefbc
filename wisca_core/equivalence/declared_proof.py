"""Proof of declared sites on the model in front of us: a small one that the person builds, or a float64 copy of the
model itself, every parameter random, judged like any other rule (``bench.judge``): factors up to 2^10 both ways,
several lengths, and each side alone must move the outputs.

The person's own code is run, and only because they gave it. Nothing is kept: code of theirs may change between two
runs.
"""

import copy
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from wisca_core.architecture.declaration import NAME, Declaration, as_declarations
from wisca_core.architecture.declared_paths import root_of
from wisca_core.architecture.declared_sites import declared_sites
from wisca_core.architecture.layer import ROPES
from wisca_core.architecture.site import Site, Sites
from wisca_core.checkpoint import Checkpoint, TensorInfo
from wisca_core.checkpoint.live import module_checkpoint
from wisca_core.equivalence.bench import NOT_RUN, Bench, Trial, judge
from wisca_core.equivalence.float64 import in_float64
from wisca_core.equivalence.full_check import memory_free
from wisca_core.equivalence.miniature import randomise_
from wisca_core.equivalence.outputs import Difference, Outputs, difference, everything
from wisca_core.equivalence.proof import ALIVE, OCTAVES, OWN_CODE, TOLERANCE, Proof, label, lacking
from wisca_core.equivalence.undisturbed import keep_random_states, seed_all
from wisca_core.errors import Cancelled, DeclarationError, ProofFailed, WiscaError
from wisca_core.progress import Progress, silent
from wisca_core.rescale import rescaled_rows, scalings
from wisca_core.threads import one_thread
from wisca_core.words import in_bytes
from wisca_core.wrappers import unwrapped_name

LENGTHS = (1, 2, 7, 16, 33)
ROWS = 2
IDS = 16  # where no table of embeddings says how many there are
Build = Callable[[], object]
Forward = Callable[[nn.Module, object], object]

_USUAL_CAUSES = {
    "qk": "Usual causes: another rotary layout than the declared (rope=, rope_channels=), norms on q and k that were "
    "not "
    "declared (qk_norm=; without gains there is no pair), another order of the heads (layout=, n_kv_heads=), tensors "
    "that "
    "are tied to others, or a call that returns keys and values themselves (let forward= return the outputs alone).",
    "vo": "Usual causes: another order of the heads (layout=, n_kv_heads=), a norm between the heads and the output "
    "projection (sub_norm=), tensors that are tied to others, or a call that returns keys and values themselves (let "
    "forward= return the outputs alone).",
    "mlp": "Usual causes: gate and up taken for each other (gate=, up_first=), an activation other than the declared, "
    "a norm "
    "between up and down, or tensors that are tied to others.",
}


def prove_declared(
    declarations: Sequence[Declaration],
    sites: Sites,
    model: nn.Module | None = None,
    *,
    structure: Iterable[TensorInfo] = (),
    build: Build | None = None,
    forward: Forward | None = None,
    progress: Progress = silent,
) -> Proof:
    """The proof of these sites. ``model``: the module they were found in, copied where there is no ``build``;
    ``structure``: the tensors the declarations were read against, which what ``build`` makes must have by name.

    ``build()`` gives a small model of the same class, with the same head counts (or (model, sites) with declarations of
    its own); ``forward(model, ids)`` calls it where ``model(ids)`` does not. Never raises for a rule that is wrong.
    Raises DeclarationError for a build or a call that does not fit, ProofFailed where the model does not repeat its
    outputs.
    """
    started = time.perf_counter()
    with keep_random_states(), one_thread(), torch.no_grad():
        seed_all(1)
        progress("building a small model", 0, 1)
        small, own = _call_build(build) if build else (_float64_copy(model), None)
        own = own or tuple(declarations)
        inner = small
        if build is not None:
            _check_its_own(small, model)
            if model is not None and not any(_kind(one) is _kind(model) for one in small.modules()):
                raise DeclarationError(
                    f"build: it makes a {_kind(small).__name__}; the model is a {_kind(model).__name__}."
                )
            inner = submodule(small, root_of(names_of(small), own))
            _check_alike(inner, model, structure)
        try:
            inner = inner.double().eval()
            randomise_(inner, seed=1)
        except (RuntimeError, TypeError, NotImplementedError) as error:
            raise DeclarationError(
                f"the model cannot be made random in float64: {_words(error)}. Give another build=."
            ) from error
        checkpoint = module_checkpoint(inner)
        pairs = tuple(dict.fromkeys(site.key.pair for site in sites.sites))
        wanted = {label(site) for site in sites.sites}
        try:
            found = declared_sites(checkpoint, own, pairs).only(lambda site: label(site) in wanted)
        except DeclarationError as error:
            raise DeclarationError(
                f"build: the declarations do not fit the model that it makes: {error} Keep the head counts and make it "
                "narrower, or let build return (model, sites) with declarations of its own."
            ) from error
        missing = lacking(sites, found)
        if missing:
            raise DeclarationError(f"build: the model that it makes has no {missing}.")
        with in_float64():
            bench = _bench(inner, found, _Caller(inner, forward))
            verdict = judge(bench, "channel", progress)
            refused = tuple(
                (name, _with_usual_cause(name, why, bench, own, checkpoint)) for name, why in verdict.refused
            )
    if build:
        counts = " Does what build() makes have the declared head counts?"
        refused = tuple((name, why if NOT_RUN in why else why + counts) for name, why in refused)
    n = sum(p.numel() for p in inner.parameters())
    whose = "as build() makes it" if build else "itself, copied in float64"
    return Proof(
        passed=not refused,
        rule=NAME,
        what=f"{OWN_CODE}{type(inner).__name__} {whose}, {n:,} parameters, every one random",
        n_cases=len(bench.cases) * verdict.n_trials,
        cases=bench.cases,
        max_rel=verdict.worst,
        liveness=verdict.alive,
        largest_factor=2.0**OCTAVES,
        seconds=time.perf_counter() - started,
        reason=" ".join(f"{name}: {why}" for name, why in refused),
        not_checked=(
            "masks, caches and whatever else the calls of the proof do not use",
            f"more than {LENGTHS[-1]} positions",
        ),
        proved=verdict.proved,
        refused=refused,
    )


def names_of(model: nn.Module) -> list[str]:
    """Of its parameters, without what wrappers put into them."""
    return [unwrapped_name(name) for name, _ in model.named_parameters(remove_duplicate=False)]


def submodule(model: nn.Module, root: str) -> nn.Module:
    """The module whose parameters' names begin with ``root`` ("" or "a.b."), inside its wrappers."""
    found = model
    for path, module in model.named_modules():
        if unwrapped_name(f"{path}." if path else "") == root:
            found = module
    return found


def _call_build(build: Build) -> tuple[nn.Module, tuple[Declaration, ...] | None]:
    if not callable(build):
        raise DeclarationError(
            f"build: a {type(build).__name__} was given; a function that makes a small model is needed."
        )
    try:
        made = build()
    except WiscaError:
        raise
    except Exception as error:  # the person's own code
        raise DeclarationError(f"build: making the small model failed: {_words(error)}.") from error
    small, own = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(small, nn.Module):
        raise DeclarationError(f"build: it returned a {type(small).__name__}; a torch module is needed.")
    return small, None if own is None else as_declarations(own)


def _float64_copy(model: nn.Module) -> nn.Module:
    """The module with every parameter and buffer in float64, where its memory allows."""
    memo: dict[int, object] = {}
    tensors = [*model.parameters(), *model.buffers()]
    for tensor in tensors:
        if tensor.is_meta or hasattr(tensor, "ds_id") or hasattr(tensor, "device_mesh"):
            raise DeclarationError(
                f"the {type(model).__name__} is spread over devices or offloaded, so it cannot be copied to prove its "
                "sites on. "
                "Give build=, a function that makes a small model of the class."
            )
    needed = int(1.5 * sum(8 * t.numel() for t in tensors))
    device = next((t.device for t in tensors), torch.device("cpu"))
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else memory_free()
    if free is not None and needed > free:
        raise DeclarationError(
            f"a float64 copy of the {type(model).__name__} needs {in_bytes(needed)} and {in_bytes(free)} are free. "
            "Give "
            "build=, a function that makes a small model of the class."
        )
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(_tensor_copy(parameter), requires_grad=False)
    for buffer in model.buffers():
        memo[id(buffer)] = _tensor_copy(buffer)
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:  # whatever the person's modules hold
        raise DeclarationError(
            f"the {type(model).__name__} cannot be copied to prove its sites on: {_words(error)}. Give build=, a "
            "function that "
            "makes a small model of the class."
        ) from error


def _kind(module: nn.Module) -> type:
    """Its class; FSDP2 puts one of its own in front of it."""
    return next(kind for kind in type(module).__mro__ if not kind.__module__.startswith("torch.distributed."))


def _tensor_copy(tensor: torch.Tensor) -> torch.Tensor:
    """A copy, never the tensor itself, in float64 where it holds floating-point numbers."""
    return tensor.detach().to(torch.float64 if tensor.is_floating_point() else tensor.dtype, copy=True)


def _check_its_own(small: nn.Module, model: nn.Module | None) -> None:
    """Every parameter of what ``build`` made is made random: none may be the live model's. Raises DeclarationError."""
    held = {_memory(t): name for name, t in _tensors(model)} if model is not None else {}
    shared = next(((name, held[_memory(t)]) for name, t in _tensors(small) if _memory(t) in held), None)
    if shared:
        raise DeclarationError(
            f"build: it returns the live model, or a part of it ({shared[0]} is the memory of {shared[1]}), which a "
            "proof would "
            "make random. Make a new small model in it. The model is unchanged."
        )


def _tensors(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    """Parameters that hold values here."""
    return [(n, p) for n, p in model.named_parameters() if not p.is_meta and p.numel() and not hasattr(p, "ds_id")]


def _memory(tensor: torch.Tensor) -> tuple:
    held = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return held.device, held.untyped_storage().data_ptr()


def _check_alike(small: nn.Module, model: nn.Module | None, structure: Iterable[TensorInfo]) -> None:
    """Raises DeclarationError where what ``build`` made is another model than the one the sites are of."""
    theirs = {(_numberless(t.name), len(t.shape)) for t in structure}
    held = {unwrapped_name(name): t for name, t in (small.state_dict() if model is None else {}).items()}
    held |= {unwrapped_name(name): p for name, p in small.named_parameters(remove_duplicate=False)}
    ours = {(_numberless(name), t.dim()) for name, t in held.items()}
    # a file may lack or hold what is computed anew: tables that are no parameters
    parameters = {_numberless(name) for name in names_of(small)}
    for here, there, where in ((ours, theirs, "the small model has"), (theirs, ours, "the model has")):
        different = sorted(one for one in here - there if model is not None or one[0] in parameters or here is theirs)
        if different:
            shown = ", ".join(f"{name} ({dims} dimensions)" for name, dims in different[:3])
            raise DeclarationError(
                f"build: its names or shapes are not those of the model; only {where} {shown}"
                f"{f' and {len(different) - 3} more' if len(different) > 3 else ''}."
            )


def _numberless(name: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=\.|$)|^\d+(?=\.)", "#", name)


class _Caller:
    """How the model is run: ``cases()`` gives name -> what a call is given; ``__call__`` every floating value it
    gives.
    """

    def __init__(self, model: nn.Module, forward: Forward | None):
        if forward is not None and not callable(forward):
            raise DeclarationError(
                f"forward: a {type(forward).__name__} was given; a function of (model, ids) is needed."
            )
        self.forward = forward
        self.kind = type(model).__name__
        tables = [m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding)]
        if not tables and forward is None:
            raise DeclarationError(
                f"{self.kind} holds no nn.Embedding, so it is not known what it takes. Say how it is called: "
                "forward=lambda "
                "model, ids: model(torch.randn(*ids.shape, 64)), or whatever its inputs are."
            )
        device = next((p.device for p in model.parameters()), "cpu")
        generator = torch.Generator().manual_seed(2)
        self.cases = {
            f"length {n}": torch.randint(min([*tables, 1 << 31]) if tables else IDS, (ROWS, n), generator=generator).to(
                device
            )
            for n in LENGTHS
        }

    def __call__(self, model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
        seed_all(2)
        try:
            out = self.forward(model, ids) if self.forward else model(ids)
        except Cancelled:
            raise
        except Exception as error:  # the person's own code
            how = "forward=" if self.forward else "it"
            raise DeclarationError(
                f"{self.kind}: calling {how} with ids of {tuple(ids.shape)} failed: {_words(error)}."
                + ("" if self.forward else " Say how it is called: forward=lambda model, ids: model(ids, ...).")
            ) from error
        try:
            return everything(out)
        except WiscaError as error:
            raise DeclarationError(f"{self.kind}: {error} Let forward= return its outputs.") from error

    def settle(self, model: nn.Module) -> dict[str, torch.Tensor]:
        """The outputs of every length that the model takes; longer ones than its table of positions are left out."""
        out: dict[str, torch.Tensor] = {}
        for name, ids in self.cases.items():
            try:
                out[name] = self(model, ids)
            except DeclarationError:
                if len(out) < 3:
                    raise
                break
        self.cases = {name: self.cases[name] for name in out}
        return out


def _bench(model: nn.Module, sites: Sites, call: _Caller) -> Bench:
    reference = Outputs("features", call.settle(model))
    if not all(bool(values.isfinite().all()) for values in reference.cases.values()):
        raise ProofFailed(
            f"{call.kind} gives values that are not finite with random parameters, so nothing can be compared."
        )

    def run() -> Outputs:
        return Outputs("features", {name: call(model, ids) for name, ids in call.cases.items()})

    again = difference(reference, run())
    if again.max_rel > TOLERANCE:
        raise ProofFailed(
            f"{call.kind} does not repeat its own outputs in eval mode ({again.max_rel:.1e} relative, the same inputs "
            "and "
            "random state), so nothing can be proved on it."
        )
    return _on(model, sites, call, reference, run)


def _on(model: nn.Module, sites: Sites, call: _Caller, reference: Outputs, run: Callable[[], Outputs]) -> Bench:
    parameters = {unwrapped_name(name): p for name, p in model.named_parameters(remove_duplicate=False)}
    shapes = {name: tuple(p.shape) for name, p in parameters.items()}
    sites = _once(sites, parameters)

    @contextmanager
    def changed(trial: Trial, granularity: str):
        scaling = scalings(sites, trial.factors, granularity, shapes, trial.side)
        before = {name: parameters[name].detach().clone() for name in scaling}
        try:
            for name, one in scaling.items():
                parameters[name].copy_(rescaled_rows(before[name].cpu(), one))
            yield
        finally:
            for name, tensor in before.items():
                parameters[name].copy_(tensor)

    def moved(trial: Trial, granularity: str) -> Difference:
        with changed(trial, granularity):
            return difference(reference, run())

    def lives(trial: Trial, granularity: str) -> float:
        """Of the two sides, each alone: the smaller of how far they move the outputs."""
        out = []
        for side in ("left", "right"):
            largest = 0.0
            with changed(replace(trial, side=side), granularity):
                for name in sorted(call.cases, key=lambda name: -call.cases[name].shape[1]):
                    left = reference.cases[name]
                    gap = (call(model, call.cases[name]) - left).abs().max().item()
                    largest = max(largest, gap / (left.abs().max().item() or 1.0))
                    if largest > ALIVE:
                        break
            out.append(largest)
        return min(out)

    return Bench(
        sites, tuple(reference.cases), moved, lives, on=lambda others: _on(model, others, call, reference, run)
    )


def _once(sites: Sites, parameters: Mapping[str, torch.Tensor]) -> Sites:
    """Layers that are one and the same module are scaled once."""
    seen: set[tuple] = set()

    def is_new(site: Site) -> bool:
        own = tuple((id(parameters[leg.tensor]), leg.axis, leg.index, leg.side, leg.fixed) for leg in site.legs)
        return not (own in seen or seen.add(own))

    return sites.only(is_new)


def _with_usual_cause(
    name: str, why: str, bench: Bench, declared: Sequence[Declaration], checkpoint: Checkpoint
) -> str:
    """The reason with what usually causes it, and the rotary layout that would hold where one does."""
    if NOT_RUN in why:
        return why
    pair = name.rpartition(".")[2]
    better = _other_rope(name, bench, declared, checkpoint) if pair == "qk" else ""
    return f"{why} {better or _USUAL_CAUSES[pair]}"


def _other_rope(name: str, bench: Bench, declared: Sequence[Declaration], checkpoint: Checkpoint) -> str:
    rng = np.random.default_rng(5)
    for rope in (one for one in ROPES if one != "none"):
        others = [
            replace(one, words=(*((k, v) for k, v in one.words if k != "rope"), ("rope", rope)))
            if one.kind == "attention" and one["rope"] != rope
            else one
            for one in declared
        ]
        if others == list(declared):
            continue
        sites = declared_sites(checkpoint, others, ("qk",)).only(lambda site: label(site) == name)
        factors = {s.name: np.exp2(rng.uniform(-OCTAVES, OCTAVES, s.n_cells("channel"))) for s in sites.sites}
        if bench.on(sites).moved(Trial("another rotary layout", factors), "channel").max_rel <= TOLERANCE:
            return f"With rope={rope!r} it would hold; declare that if it is what the model does."
    return ""


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300].rstrip('.')}"
