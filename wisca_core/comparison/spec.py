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
from wisca_core.errors import SpecError, UnreadableInput
from wisca_core.plan.options import PLAN_NORMS

FORMAT, VERSION = "wisca-comparison", 1
MAX_SPEC_BYTES = 1 << 20

KINDS = ("none", "balance", "placebo", "inverse")
OPTIMISERS = ("adamw", "sgd", "muon")
SCHEDULES = ("cosine", "constant")
SOURCES = ("bundled", "text", "jsonl")


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
_EVERY = Rule(lambda v: v is None or _whole(1, 10**9).fits(v), "a whole number of steps from 1, or nothing for once at the start")


# --- the parts --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ModelSpec:
    """A Llama-style decoder over bytes, from scratch. ``mlp_width``: of the gated MLP; ``init_std``: of every matrix.
    """

    width: int = 64
    n_layers: int = 4
    n_heads: int = 8
    n_kv_heads: int = 1
    mlp_width: int = 192
    init_std: float = 0.02


@dataclass(frozen=True)
class DataSpec:
    """``source``: "bundled" (the text of Python's own standard library), "text" (one file) or "jsonl" (``column`` of
    one). A token is a byte. ``context``: tokens a window; ``validation_windows``: windows spread evenly over the
    held-out text.
    """

    source: str = "bundled"
    path: str = ""
    column: str = "text"
    context: int = 128
    validation_windows: int = 64


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
    change of the same size the other way). ``every``: optimiser steps between rescales, None only at the start; the
    rest are the options of a live rescale.
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

    @property
    def does(self) -> tuple:
        """Everything but the name: arms that agree in it are one arm."""
        return (self.kind,) if self.kind == "none" else tuple(getattr(self, f.name) for f in fields(self))[1:]


@dataclass(frozen=True)
class Spec:
    """One comparison. ``evaluate_every``: steps between validation losses, 0 for a twentieth of the run;
    ``save_weights``: keep every cell's final weights as a model folder; ``detect_nats``: the effect one wants to be
    able to see.
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
    "placebo": Arm("placebo", kind="placebo"),
    "inverse": Arm("inverse", kind="inverse"),
}

_BASE = ("baseline", "wisca", "qk_only", "inverse")
PRESETS: dict[str, Spec] = {
    "default": Spec("default", arms=tuple(ARMS[name] for name in _BASE)),
    "rates": Spec("rates", arms=tuple(ARMS[name] for name in _BASE), optimiser=OptimiserSpec(learning_rates=(5e-4, 1e-3, 2e-3))),
    "thorough": Spec(
        "thorough", arms=tuple(ARMS[n] for n in (*_BASE, "init_only", "vo_only", "placebo")), seeds=tuple(range(1, 9)), steps=2400
    ),
}  # fmt: skip

_RULES: dict[type, dict[str, Rule]] = {
    ModelSpec: {
        "width": _whole(4, 65536),
        "n_layers": _whole(1, 1000),
        "n_heads": _whole(1, 1024),
        "n_kv_heads": _whole(1, 1024),
        "mlp_width": _whole(1, 10**6),
        "init_std": _number(0, 1, above=True),  # what transformers takes
    },
    DataSpec: {
        "source": _one_of(*SOURCES),
        "path": _TEXT,
        "column": _TEXT,
        "context": _whole(2, 131072),
        "validation_windows": _whole(1, 100_000),
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
    },
    Spec: {
        "name": Rule(lambda v: isinstance(v, str) and 0 < len(v) <= 120 and v.isprintable(), "printable text of 1 to 120 characters"),
        "steps": _whole(1, 10**9),
        "batch_size": _whole(1, 10**6),
        "evaluate_every": _whole(0, 10**9),
        "log_every": _whole(1, 10**9),
        "save_weights": _YES_NO,
        "detect_nats": _number(0, 100, above=True),
    },
}
_RATE = _number(0, 100, above=True)
_SEED = _whole(0, 10**9)


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
    if spec.data.path and not Path(spec.data.path).is_absolute():
        spec = replace(spec, data=replace(spec.data, path=str((path.parent / spec.data.path).resolve())))
    return spec


def spec_from(given: Mapping[str, Any]) -> Spec:
    """A spec from plain values; what is missing has its default. Raises SpecError."""
    given = dict(given)
    parts: dict[str, Any] = {}
    for name, kind in (("model", ModelSpec), ("data", DataSpec), ("optimiser", OptimiserSpec)):
        parts[name] = _part(kind, given.pop(name, {}), f"{name}.")
    parts["arms"] = _arms(given.pop("arms", list(_BASE)))
    parts["seeds"] = _list(given.pop("seeds", list(Spec.seeds)), "seeds", _SEED)
    spec = _part(Spec, given, "", parts)
    return checked(spec)


def checked(spec: Spec) -> Spec:
    """The same spec, once everything in it fits together. Raises SpecError."""
    m, d, o = spec.model, spec.data, spec.optimiser
    if m.width % m.n_heads:
        raise SpecError("model.n_heads", m.n_heads, f"a divisor of width = {m.width}")
    if (m.width // m.n_heads) % 2:
        raise SpecError("model.n_heads", m.n_heads, f"a number that leaves an even head size (width / n_heads is {m.width // m.n_heads})")
    if m.n_heads % m.n_kv_heads:
        raise SpecError("model.n_kv_heads", m.n_kv_heads, f"a divisor of n_heads = {m.n_heads}")
    if d.source != "bundled" and not d.path:
        raise SpecError("data.path", d.path, f"the path of a file, because data.source is {d.source}")
    if o.warmup_steps >= spec.steps and o.schedule == "cosine" and o.warmup_steps:
        raise SpecError("optimiser.warmup_steps", o.warmup_steps, f"fewer than steps = {spec.steps}")
    if not o.learning_rates or len(set(o.learning_rates)) < len(o.learning_rates):
        raise SpecError("optimiser.learning_rates", list(o.learning_rates), "one rate or more, each once")
    if not spec.seeds or len(set(spec.seeds)) < len(spec.seeds):
        raise SpecError("seeds", list(spec.seeds), "one seed or more, each once")
    if spec.evaluate_every > spec.steps:
        raise SpecError("evaluate_every", spec.evaluate_every, f"at most steps = {spec.steps}")
    _check_arms(spec)
    return spec


def _check_arms(spec: Spec) -> None:
    names = [arm.name for arm in spec.arms]
    if len(set(names)) < len(names):
        raise SpecError("arms", names, "each name once")
    if sum(arm.kind == "none" for arm in spec.arms) != 1 or len(spec.arms) < 2:
        raise SpecError("arms", names, 'exactly one arm of kind "none" (the baseline) and at least one other')
    seen: dict[tuple, str] = {}
    for i, arm in enumerate(spec.arms):
        if arm.kind != "none" and arm.every is None and not arm.at_start:
            raise SpecError(f"arms[{i}].at_start", arm.at_start, "true where every is left out; nothing would happen otherwise")
        if arm.kind == "inverse" and not arm.at_start:
            raise SpecError(f"arms[{i}].at_start", arm.at_start, "true for an inverse arm: it mirrors the balance at the start")
        same = seen.setdefault(_effect(arm, spec.model), arm.name)
        if same != arm.name:
            raise SpecError(f"arms[{i}]", arm.name, f"an arm that differs from {same}; with this model both do the same")


def _effect(arm: Arm, model: ModelSpec) -> tuple:
    # one KV head: a group of a layer is the whole matrix
    is_one = arm.granularity == "group" and model.n_kv_heads == 1
    return replace(arm, name="", granularity="tensor" if is_one else arm.granularity, pairs=tuple(sorted(arm.pairs))).does


def coinciding(name: str, model: ModelSpec) -> str:
    """The name of an earlier arm of ARMS that does the same with this model, "" where there is none."""
    wanted = _effect(ARMS[name], model)
    for other, arm in ARMS.items():
        if other == name:
            return ""
        if _effect(arm, model) == wanted:
            return other
    return ""


def _arms(given: Any) -> tuple[Arm, ...]:
    if not isinstance(given, (list, tuple)):
        raise SpecError("arms", given, "a list of names and tables")
    out = []
    for i, one in enumerate(given):
        if isinstance(one, str):
            if one not in ARMS:
                raise SpecError(f"arms[{i}]", one, f"one of {', '.join(ARMS)}, or a table of its own")
            out.append(ARMS[one])
        elif isinstance(one, Mapping):
            one = dict(one)
            pairs = one.pop("pairs", list(DEFAULT_PAIRS))
            if not isinstance(pairs, (list, tuple)) or not pairs or any(p not in DEFAULT_PAIRS for p in pairs):
                raise SpecError(f"arms[{i}].pairs", pairs, f"a list of {', '.join(DEFAULT_PAIRS)}")
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
        rule = _RULES[kind][name]
        if not rule.fits(value):
            raise SpecError(f"{prefix}{name}", value, rule.allowed)
        values[name] = float(value) if isinstance(getattr(kind, name, None), float) else value
    return kind(**values)
