"""What a comparison is, as a value: model, data, arms, optimiser, steps and seeds, checked field by field.

A spec is a TOML or JSON file that begins with ``format = "wisca-comparison"`` and ``version = 1``; what it leaves out
has the default below. Every wrong value is a SpecError that names the field, the value and what is allowed.
"""

import json
import math
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from wisca_core.architecture.site import DEFAULT_PAIRS, GRANULARITIES
from wisca_core.comparison.paper import SETUPS
from wisca_core.errors import SpecError, UnreadableInput
from wisca_core.plan.options import PLAN_NORMS

FORMAT, VERSION = "wisca-comparison", 1
MAX_SPEC_BYTES = 1 << 20

KINDS = ("none", "balance", "placebo", "inverse")
OPTIMISERS = ("adamw", "sgd", "muon")
SCHEDULES = ("cosine", "constant")
SOURCES = ("bundled", "text", "jsonl", "hub")
MODELS = ("decoder", "paper", "shrunk", "whole", "lora")
ARM_PAIRS = (*DEFAULT_PAIRS, "lora")
MOST_BYTES = 2 << 30  # of text, held in memory
PRECISIONS = ("float32", "bfloat16", "float64")


# --- what a value may be ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rule:
    """``fits(value) -> bool``; ``allowed`` says the same in words."""

    fits: Callable[[Any], bool]
    allowed: str


def _whole(low: int, high: int) -> Rule:
    return Rule(
        lambda v: isinstance(v, int) and not isinstance(v, bool) and low <= v <= high, f"a whole number from {low:,} to {high:,}"
    )


def _number(low: float, high: float, above: bool = False) -> Rule:
    def fits(v: Any) -> bool:
        is_number = isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v)
        return is_number and (low < v if above else low <= v) and v <= high

    return Rule(fits, f"a number {'above' if above else 'from'} {low:g} {'and at most' if above else 'to'} {high:g}")


def _one_of(*values: str) -> Rule:
    return Rule(lambda v: isinstance(v, str) and v in values, "one of " + ", ".join(values))


_TEXT = Rule(lambda v: isinstance(v, str) and len(v) <= 4096 and "\0" not in v, "text of at most 4,096 characters")
_YES_NO = Rule(lambda v: isinstance(v, bool), "true or false")
_NAME = Rule(lambda v: isinstance(v, str) and re.fullmatch(r"[a-z][a-z0-9_]{0,31}", v) is not None,
             "a lower-case word of letters, digits and _ (at most 32)")  # fmt: skip
_NOTE = Rule(lambda v: isinstance(v, str) and len(v) <= 2000 and "\0" not in v, "text of at most 2,000 characters")
_DEVICE = Rule(lambda v: isinstance(v, str) and re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", v) is not None, "auto, cpu, cuda or cuda:N")
_EVERY = Rule(lambda v: v is None or _whole(1, 10**9).fits(v), "a whole number of steps from 1, or nothing for once at the start")


# --- the parts --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ModelSpec:
    """Which model every cell trains; the same seed gives every arm the same one.

    ``source``: "decoder", a Llama-style decoder from scratch of the sizes here (``mlp_width``: of the gated MLP;
    ``init_std``: of every matrix); "paper", the set-up ``setup`` of ``paper.SETUPS``; "shrunk", the config of the model
    at ``path`` made ``width`` wide and ``n_layers`` deep, from scratch; "whole", that config as it is, its ``weights``
    "fresh" or "continued"; "lora", adapters on its frozen weights.
    """

    width: int = 64
    n_layers: int = 4
    n_heads: int = 8
    n_kv_heads: int = 1
    mlp_width: int = 192
    init_std: float = 0.02
    source: str = "decoder"
    path: str = ""
    setup: str = ""
    weights: str = "fresh"

    @property
    def is_trained_before(self) -> bool:
        """Whether training goes on from weights that are there already."""
        return self.source == "lora" or self.weights == "continued"


@dataclass(frozen=True)
class LoraSpec:
    """The adapters of a model with source "lora". ``r``: rank; the product B A is scaled by alpha / r, with ``rslora`` by
    alpha / sqrt(r). ``targets``: names of linear layers, none for all projections of the attention. ``init``: of A,
    "kaiming" (uniform, as LoRA's own code) or "gaussian"; B begins at zero.
    """

    r: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = ()
    rslora: bool = False
    init: str = "kaiming"


@dataclass(frozen=True)
class DataSpec:
    """``source``: "bundled" (the text of Python's own standard library), "text" (one file), "jsonl" (``column`` of one)
    or "hub" (``column`` of the ``split`` of a data set, ``path`` = hub:owner/name[@revision], ``subset`` where it has
    several). ``tokens``: "bytes", or "tokenizer", that of the model's folder or of the folder ``tokenizer``.
    ``context``: tokens a window; ``validation_windows``: windows spread evenly over the held-out text; ``max_bytes`` of
    text are read, 0 for all.
    """

    source: str = "bundled"
    path: str = ""
    column: str = "text"
    context: int = 128
    validation_windows: int = 64
    tokens: str = "bytes"
    tokenizer: str = ""
    split: str = "train"
    subset: str = ""
    max_bytes: int = 0


@dataclass(frozen=True)
class OptimiserSpec:
    """``learning_rates``: every arm is trained at each. ``momentum``: of sgd and muon. ``weight_decay``: on matrices,
    decoupled; sgd has none, because a decay folded into the gradient does not follow a rescale. Muon takes the matrices
    of the layers, AdamW the rest, both at the learning rate.
    """

    name: str = "adamw"
    learning_rates: tuple[float, ...] = (1e-3,)
    schedule: str = "cosine"
    warmup_steps: int = 50
    weight_decay: float = 0.1
    momentum: float = 0.9
    clip: float = 1.0


@dataclass(frozen=True)
class Arm:
    """One treatment. ``kind``: "none" (baseline), "balance" (WISCA), "placebo" (factors 1.001 and 1/1.001 in turn:
    numerical noise only), "inverse" (each pair is held as far out of balance again as it began, on the same schedule: a
    change of the same size the other way). ``every``: optimiser steps between rescales, None only at the start.
    ``pairs``: of qk, vo and, with LoRA, lora (A against B, left alone while B is zero). ``gram``: VO and LoRA pairs by
    the full change of basis that makes the two Gram matrices equal, instead of one factor. The rest are the options of
    a live rescale.
    """

    name: str
    kind: str = "balance"
    every: int | None = 25
    at_start: bool = True
    pairs: tuple[str, ...] = DEFAULT_PAIRS
    granularity: str = "tensor"
    norm: str = "l1"
    strength: float = 1.0
    exact: bool = False
    optimizer_state: str = "transport"
    gram: bool = False

    @property
    def does(self) -> tuple:
        """Everything but the name: arms that agree in it are one arm."""
        return (self.kind,) if self.kind == "none" else tuple(getattr(self, f.name) for f in fields(self))[1:]


@dataclass(frozen=True)
class Spec:
    """One comparison. ``evaluate_every``: steps between validation losses, 0 for a twentieth of the run;
    ``save_weights``: keep every cell's final weights as a model folder; ``detect_nats``: the effect one wants to be
    able to see; ``note``: what a reader must know of how this comparison came about, shown with its result.
    ``device``: "auto" (every CUDA GPU of the machine, else the CPU), "cpu", "cuda" or "cuda:N";
    ``precision``: of the training step: "float32", "bfloat16" (autocast over float32 weights) or "float64";
    validation is never autocast. ``processes_per_cell``: over 1 spreads each cell over so many processes (GPUs).
    """

    name: str = "comparison"
    model: ModelSpec = ModelSpec()
    data: DataSpec = DataSpec()
    optimiser: OptimiserSpec = OptimiserSpec()
    arms: tuple[Arm, ...] = ()
    steps: int = 1200
    batch_size: int = 4
    seeds: tuple[int, ...] = (1, 2, 3, 4)
    evaluate_every: int = 0
    log_every: int = 10
    save_weights: bool = True
    detect_nats: float = 0.044
    lora: LoraSpec = LoraSpec()
    note: str = ""
    device: str = "auto"
    precision: str = "float32"
    processes_per_cell: int = 1

    @property
    def baseline(self) -> Arm:
        return next(arm for arm in self.arms if arm.kind == "none")

    @property
    def n_cells(self) -> int:
        return len(self.arms) * len(self.optimiser.learning_rates) * len(self.seeds)

    @property
    def evaluation_steps(self) -> int:
        return self.evaluate_every or max(1, self.steps // 20)

    def arm(self, name: str) -> Arm:
        return next(arm for arm in self.arms if arm.name == name)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


# Names with a meaning of their own: an arm may be written as one of these words.
ARMS: dict[str, Arm] = {
    "baseline": Arm("baseline", kind="none"),
    "wisca": Arm("wisca"),
    "init_only": Arm("init_only", every=None),
    "qk_only": Arm("qk_only", pairs=("qk",)),
    "vo_only": Arm("vo_only", pairs=("vo",)),
    "group": Arm("group", granularity="group"),
    "channel": Arm("channel", granularity="channel"),
    "l2": Arm("l2", norm="l2"),
    "state_left": Arm("state_left", optimizer_state="leave"),
    # Adam's squares of single gradients cannot follow a change of basis, so the state stays as it is
    "gram": Arm("gram", optimizer_state="leave", gram=True),
    "placebo": Arm("placebo", kind="placebo"),
    "inverse": Arm("inverse", kind="inverse"),
}
# The same for adapters on a frozen base, which therefore is balanced once and stays so.
LORA_ARMS: dict[str, Arm] = {
    "baseline": ARMS["baseline"],
    "lora_ab": Arm("lora_ab", pairs=("lora",)),
    "base": Arm("base", every=None),
    "base_and_ab": Arm("base_and_ab", pairs=ARM_PAIRS),
    "lora_gram": Arm("lora_gram", pairs=("lora",), optimizer_state="leave", gram=True),
    "lora_channel": Arm("lora_channel", pairs=("lora",), granularity="channel"),
    "lora_placebo": Arm("lora_placebo", kind="placebo", pairs=("lora",)),
}
KNOWN_ARMS = ARMS | LORA_ARMS

_BASE = ("baseline", "wisca", "qk_only", "inverse")
_LORA_BASE = ("baseline", "lora_ab", "base", "lora_gram", "lora_placebo")


def _of_paper(name: str) -> Spec:
    return Spec(
        name, ModelSpec(source="paper", setup=name), DataSpec("hub", "hub:roneneldan/TinyStories", tokens="tokenizer", context=512),
        OptimiserSpec(learning_rates=(4e-4,), warmup_steps=500), (ARMS["baseline"], replace(ARMS["wisca"], every=250)),
        steps=20_000, batch_size=8,
    )  # fmt: skip


PRESETS: dict[str, Spec] = {
    "default": Spec("default", arms=tuple(ARMS[name] for name in _BASE)),
    "rates": Spec("rates", arms=tuple(ARMS[name] for name in _BASE), optimiser=OptimiserSpec(learning_rates=(5e-4, 1e-3, 2e-3))),
    "thorough": Spec(
        "thorough", arms=tuple(ARMS[n] for n in (*_BASE, "init_only", "vo_only", "placebo")), seeds=tuple(range(1, 9)), steps=2400
    ),
    "lora": Spec(
        "lora", ModelSpec(source="lora"), DataSpec(tokens="tokenizer"), OptimiserSpec(learning_rates=(1e-3,), warmup_steps=20, weight_decay=0.0),
        tuple(LORA_ARMS[name] for name in _LORA_BASE), steps=300, detect_nats=0.007,
    ),
    **{name: _of_paper(name) for name in SETUPS},
}  # fmt: skip

_RULES: dict[type, dict[str, Rule]] = {
    ModelSpec: {
        "width": _whole(4, 65536),
        "n_layers": _whole(1, 1000),
        "n_heads": _whole(1, 1024),
        "n_kv_heads": _whole(1, 1024),
        "mlp_width": _whole(1, 10**6),
        "init_std": _number(0, 1, above=True),  # what transformers takes
        "source": _one_of(*MODELS),
        "path": _TEXT,
        "setup": _one_of("", *SETUPS),
        "weights": _one_of("fresh", "continued"),
    },
    LoraSpec: {
        "r": _whole(1, 4096),
        "alpha": _number(0, 1e6, above=True),
        "rslora": _YES_NO,
        "init": _one_of("kaiming", "gaussian"),
    },
    DataSpec: {
        "source": _one_of(*SOURCES),
        "path": _TEXT,
        "column": _TEXT,
        "context": _whole(2, 131072),
        "validation_windows": _whole(1, 100_000),
        "tokens": _one_of("bytes", "tokenizer"),
        "tokenizer": _TEXT,
        "split": _TEXT,
        "subset": _TEXT,
        "max_bytes": _whole(0, MOST_BYTES),
    },
    OptimiserSpec: {
        "name": _one_of(*OPTIMISERS),
        "schedule": _one_of(*SCHEDULES),
        "warmup_steps": _whole(0, 10**9),
        "weight_decay": _number(0, 10),
        "momentum": _number(0, 0.9999),
        "clip": _number(0, 1e9, above=True),
    },
    Arm: {
        "name": _NAME,
        "kind": _one_of(*KINDS),
        "every": _EVERY,
        "at_start": _YES_NO,
        "granularity": _one_of(*GRANULARITIES),
        "norm": _one_of(*PLAN_NORMS),
        "strength": _number(0, 1),
        "exact": _YES_NO,
        "optimizer_state": _one_of("transport", "leave"),
        "gram": _YES_NO,
    },
    Spec: {
        "name": Rule(lambda v: isinstance(v, str) and 0 < len(v) <= 120 and v.isprintable(), "printable text of 1 to 120 characters"),
        "steps": _whole(1, 10**9),
        "batch_size": _whole(1, 10**6),
        "evaluate_every": _whole(0, 10**9),
        "log_every": _whole(1, 10**9),
        "save_weights": _YES_NO,
        "detect_nats": _number(0, 100, above=True),
        "note": _NOTE,
        "device": _DEVICE,
        "precision": _one_of(*PRECISIONS),
        "processes_per_cell": _whole(1, 1024),
    },
}
_RATE = _number(0, 100, above=True)
_SEED = _whole(0, 10**9)
_MODULE = Rule(lambda v: isinstance(v, str) and re.fullmatch(r"[A-Za-z0-9_.]{1,120}", v) is not None, "the name of a linear layer")


def with_model(spec: Spec, model: str | Path | None) -> Spec:
    """A preset with the folder it leaves open: the model of LoRA, the tokenizer of a set-up of the paper. Raises SpecError.
    """
    if model is not None and spec.model.source == "paper":
        return checked(replace(spec, data=replace(spec.data, tokenizer=str(Path(model).absolute()))))
    if model is not None and spec.model.source == "decoder":
        raise SpecError("model", str(model), "nothing: this preset has a model of its own")
    return checked(replace(spec, model=replace(spec.model, path=str(Path(model).absolute()))) if model is not None else spec)


def for_scale(spec: Spec) -> str:
    """The paper's figure that stands beside a result of this kind."""
    if spec.model.source == "lora":
        return "For scale: the paper's differences with LoRA are −0.007 nats on Alpaca and −0.001 on MetaMath."
    if spec.model.source == "paper":
        (base, _), (with_it, _) = SETUPS[spec.model.setup].paper
        change = f"{with_it - base:.3f}".replace("-", "−")
        return f"The paper reports {change} nats of training loss for {SETUPS[spec.model.setup].title} with settings of its own."
    return "For scale: the paper's difference on TinyLlama 1.1B is −0.044 nats."


# --- reading ----------------------------------------------------------------------------------------------------------


def load_spec(path: str | Path) -> Spec:
    """The spec in a TOML or JSON file. Raises UnreadableInput, SpecError.

    >>> load_spec("compare.toml").n_cells  # doctest: +SKIP
    16
    """
    path = Path(path)
    try:
        if path.stat().st_size > MAX_SPEC_BYTES:
            raise UnreadableInput(f"{path} has {path.stat().st_size:,} bytes; a spec has at most {MAX_SPEC_BYTES:,}. Is it the right file?")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UnreadableInput(f"{path} cannot be read: {(error.strerror or str(error)).lower()}. Give a spec in TOML or JSON.") from error
    except UnicodeDecodeError as error:
        raise UnreadableInput(f"{path} is not text in UTF-8 (byte {error.start}); expected a spec in TOML or JSON.") from error
    try:
        document = json.loads(text) if text.lstrip().startswith("{") else tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise UnreadableInput(f"{path} is neither TOML nor JSON: {error}.") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        found = document.get("format") if isinstance(document, dict) else None
        raise UnreadableInput(f'{path} has format {str(found)[:60]!r}; a spec begins with format = "{FORMAT}" and version = {VERSION}.')
    if document.get("version") != VERSION:
        raise UnreadableInput(
            f"{path} is {FORMAT} version {str(document.get('version'))[:20]}; version {VERSION} is read here. Update "
            f"wisca to read a newer one."
        )
    spec = spec_from({k: v for k, v in document.items() if k not in ("format", "version")})
    beside = path.parent
    return replace(
        spec,
        model=replace(spec.model, path=_from(beside, spec.model.path)),
        data=replace(spec.data, path=_from(beside, spec.data.path), tokenizer=_from(beside, spec.data.tokenizer)),
    )


def _from(beside: Path, path: str) -> str:
    """A path of a spec is meant from where the spec lies."""
    return path if not path or path.startswith("hub:") or Path(path).is_absolute() else str((beside / path).resolve())


def spec_from(given: Mapping[str, Any]) -> Spec:
    """A spec from plain values; what is missing has its default. Raises SpecError."""
    given = dict(given)
    parts: dict[str, Any] = {}
    for name, kind in (("model", ModelSpec), ("data", DataSpec), ("optimiser", OptimiserSpec), ("lora", LoraSpec)):
        parts[name] = _part(kind, given.pop(name, {}), f"{name}.")
    is_lora = parts["model"].source == "lora"
    parts["arms"] = _arms(given.pop("arms", list(_LORA_BASE if is_lora else _BASE)))
    parts["seeds"] = _list(given.pop("seeds", list(Spec.seeds)), "seeds", _SEED)
    spec = _part(Spec, given, "", parts)
    return checked(spec)


def checked(spec: Spec) -> Spec:
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
    if not spec.seeds or len(set(spec.seeds)) < len(spec.seeds):
        raise SpecError("seeds", list(spec.seeds), "one seed or more, each once")
    if spec.evaluate_every > spec.steps:
        raise SpecError("evaluate_every", spec.evaluate_every, f"at most steps = {spec.steps}")
    if spec.batch_size % spec.processes_per_cell:
        raise SpecError("processes_per_cell", spec.processes_per_cell, f"a divisor of batch_size = {spec.batch_size}")
    _check_arms(spec)
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
            raise SpecError(f"model.{name}", getattr(m, name), f"nothing: a model of source {m.source} has {', '.join(used)}")
    if m.source == "decoder":
        if m.width % m.n_heads:
            raise SpecError("model.n_heads", m.n_heads, f"a divisor of width = {m.width}")
        if (m.width // m.n_heads) % 2:
            raise SpecError("model.n_heads", m.n_heads, f"a number that leaves an even head size (width / n_heads is {m.width // m.n_heads})")
        if m.n_heads % m.n_kv_heads:
            raise SpecError("model.n_kv_heads", m.n_kv_heads, f"a divisor of n_heads = {m.n_heads}")
    elif m.source == "paper" and not m.setup:
        raise SpecError("model.setup", m.setup, f"one of {', '.join(SETUPS)}")
    elif m.source != "paper" and not m.path:
        raise SpecError("model.path", m.path, f"a model folder, because model.source is {m.source}")
    if m.path.startswith("hub:"):
        raise SpecError("model.path", m.path, "a folder on this machine: open the model on Inspect first, which fetches it, and give that folder")
    if d.tokens == "tokenizer" and m.source == "decoder" and not d.tokenizer:
        raise SpecError("data.tokenizer", d.tokenizer, "a folder with a tokenizer: the small decoder has none of its own")

def _check_arms(spec: Spec) -> None:
    names = [arm.name for arm in spec.arms]
    if len(set(names)) < len(names):
        raise SpecError("arms", names, "each name once")
    if sum(arm.kind == "none" for arm in spec.arms) != 1 or len(spec.arms) < 2:
        raise SpecError("arms", names, 'exactly one arm of kind "none" (the baseline) and at least one other')
    for i, arm in enumerate(spec.arms):
        if arm.kind == "none":
            continue
        if arm.every is None and not arm.at_start:
            raise SpecError(f"arms[{i}].at_start", arm.at_start, "true where every is left out; nothing would happen otherwise")
        if arm.kind == "inverse" and not arm.at_start:
            raise SpecError(f"arms[{i}].at_start", arm.at_start, "true for an inverse arm: it mirrors the balance at the start")
        if "lora" in arm.pairs and spec.model.source != "lora":
            raise SpecError(f"arms[{i}].pairs", list(arm.pairs), f"a list of {', '.join(DEFAULT_PAIRS)}; lora needs model.source = lora")
        if arm.gram:
            _check_gram(arm, i, spec.optimiser.name)
    kv = spec.model.n_kv_heads if spec.model.source == "decoder" else None
    refuse_coinciding(spec, lambda arm: "tensor" if arm.granularity == "group" and kv == 1 else arm.granularity)


def _check_gram(arm: Arm, i: int, optimiser: str) -> None:
    if arm.optimizer_state == "transport" and optimiser != "sgd":
        raise SpecError(f"arms[{i}].optimizer_state", "transport", f"leave, because {optimiser} keeps squares of single gradients, which no change of basis "
                        "takes along; sgd may have transport")  # fmt: skip
    if arm.kind != "balance":
        raise SpecError(f"arms[{i}].gram", True, f"false for an arm of kind {arm.kind}")
    if arm.exact or arm.strength != 1:
        raise SpecError(f"arms[{i}].gram", True, "false with exact or a strength other than 1: a full change of basis has neither")
    if not {"vo", "lora"} & set(arm.pairs):
        raise SpecError(f"arms[{i}].gram", True, "false without vo or lora among its pairs: rotary positions leave QK no full change of basis")


def refuse_coinciding(spec: Spec, partition: Callable[[Arm], Any]) -> None:
    """Raises SpecError for an arm that does what an earlier one does. ``partition``: what an arm's granularity comes to
    in this model, equal for two that come to the same.
    """
    seen: dict[tuple, str] = {}
    for i, arm in enumerate(spec.arms):
        same = seen.setdefault(_effect(arm, spec, partition), arm.name)
        if same != arm.name:
            raise SpecError(f"arms[{i}]", arm.name, f"an arm that differs from {same}; with this model and these steps both do the same")


def _effect(arm: Arm, spec: Spec, partition: Callable[[Arm], Any]) -> tuple:
    """What an arm comes to: two arms with the same one are one arm."""
    if arm.kind == "none":
        return ("nothing",)
    pairs = tuple(sorted(arm.pairs))
    # a rescale after the last step moves nothing that is measured
    every = None if arm.every is not None and arm.every >= spec.steps else arm.every
    if spec.model.source == "lora":
        if "lora" not in pairs and arm.kind == "balance":
            every = None  # the base is frozen: balanced once, it stays so
        if every is None:
            pairs = tuple(p for p in pairs if p != "lora")  # B is zero at the start
    if not pairs or (every is None and not arm.at_start) or (arm.kind == "balance" and arm.strength == 0):
        return ("nothing",)
    state = arm.optimizer_state
    if every is None or (spec.optimiser.name == "sgd" and spec.optimiser.momentum == 0):
        state = "leave"  # there is nothing to carry
    arm = replace(arm, name="", every=every, pairs=pairs, optimizer_state=state)
    return (arm.kind, every, arm.at_start, pairs, partition(arm), arm.norm, arm.strength, arm.exact, state, arm.gram)


def coinciding(name: str, spec: Spec, partition: Callable[[Arm], Any] | None = None) -> str:
    """The name of an earlier known arm that does the same in this comparison, "" where there is none."""
    arms = LORA_ARMS if spec.model.source == "lora" else ARMS
    one_kv = spec.model.source == "decoder" and spec.model.n_kv_heads == 1
    use = partition or (lambda arm: "tensor" if one_kv and arm.granularity == "group" else arm.granularity)
    wanted = _effect(arms[name], spec, use)
    for other, arm in arms.items():
        if other == name:
            return ""
        if _effect(arm, spec, use) == wanted:
            return other
    return ""


def _arms(given: Any) -> tuple[Arm, ...]:
    if not isinstance(given, (list, tuple)):
        raise SpecError("arms", given, "a list of names and tables")
    out = []
    for i, one in enumerate(given):
        if isinstance(one, str):
            if one not in KNOWN_ARMS:
                raise SpecError(f"arms[{i}]", one, f"one of {', '.join(KNOWN_ARMS)}, or a table of its own")
            out.append(KNOWN_ARMS[one])
        elif isinstance(one, Mapping):
            one = dict(one)
            pairs = one.pop("pairs", list(DEFAULT_PAIRS))
            if not isinstance(pairs, (list, tuple)) or not pairs or any(p not in ARM_PAIRS for p in pairs):
                raise SpecError(f"arms[{i}].pairs", pairs, f"a list of {', '.join(ARM_PAIRS)}")
            if "name" not in one:
                raise SpecError(f"arms[{i}].name", "", _NAME.allowed)
            out.append(_part(Arm, one, f"arms[{i}].", {"pairs": tuple(dict.fromkeys(pairs))}))
        else:
            raise SpecError(f"arms[{i}]", one, "the name of an arm, or a table")
    return tuple(out)


def _list(given: Any, name: str, rule: Rule) -> tuple:
    if not isinstance(given, (list, tuple)):
        raise SpecError(name, given, f"a list, each {rule.allowed}")
    for i, one in enumerate(given):
        if not rule.fits(one):
            raise SpecError(f"{name}[{i}]", one, rule.allowed)
    return tuple(given)


def _part(kind: type, given: Any, prefix: str, parts: Mapping[str, Any] | None = None) -> Any:
    if not isinstance(given, Mapping):
        raise SpecError(prefix.rstrip("."), given, "a table")
    values: dict[str, Any] = dict(parts or {})
    known = {f.name for f in fields(kind)}
    for name, value in given.items():
        if name not in known or name in values:
            raise SpecError(f"{prefix}{name}", value, f"no such field; there are {', '.join(sorted(known))}")
        if name == "learning_rates":
            values[name] = tuple(float(rate) for rate in _list(value, f"{prefix}{name}", _RATE))
            continue
        if name == "targets":
            values[name] = _list(value, f"{prefix}{name}", _MODULE)
            continue
        rule = _RULES[kind][name]
        if not rule.fits(value):
            raise SpecError(f"{prefix}{name}", value, rule.allowed)
        values[name] = float(value) if isinstance(getattr(kind, name, None), float) else value
    return kind(**values)
