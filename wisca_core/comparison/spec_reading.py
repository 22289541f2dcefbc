"""A spec from a file or from plain values, checked field by field.

A spec is a TOML or JSON file that begins with ``format = "wisca-comparison"`` and ``version = 1``. Every wrong value is a
SpecError that names the field, the value and what is allowed.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from wisca_core.architecture.site import DEFAULT_PAIRS, GRANULARITIES
from wisca_core.comparison.paper import SETUPS
from wisca_core.comparison.presets import BASE, KNOWN_ARMS, LORA_BASE
from wisca_core.comparison.spec import (
    CLIP_NORMS,
    FORMAT,
    KINDS,
    MODELS,
    MOST_BYTES,
    OPTIMISERS,
    PRECISIONS,
    SCHEDULES,
    SOURCES,
    VERSION,
    Arm,
    DataSpec,
    LoraSpec,
    ModelSpec,
    OptimiserSpec,
    PilotSpec,
    Spec,
)
from wisca_core.comparison.spec_checks import checked
from wisca_core.errors import BadOption, SpecError, UnreadableInput
from wisca_core.methods import NAMES as METHODS
from wisca_core.pairs import PAIRS
from wisca_core.planning.options import PLAN_NORMS, parse_granularity
from wisca_core.untrusted import named_path, parse_json_object, parse_toml, read_regular, shown

MAX_SPEC_BYTES = 1 << 20


# --- what a value may be ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rule:
    """``fits(value) -> bool``; ``allowed`` says the same in words."""

    fits: Callable[[Any], bool]
    allowed: str


def _whole(low: int, high: int) -> Rule:
    return Rule(
        lambda v: isinstance(v, int) and not isinstance(v, bool) and low <= v <= high,
        f"a whole number from {low:,} to {high:,}",
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
_NAME = Rule(
    lambda v: isinstance(v, str) and re.fullmatch(r"[a-z][a-z0-9_]{0,31}", v) is not None,
    "a lower-case word of letters, digits and _ (at most 32)",
)
_OTHER = Rule(lambda v: v == "" or _NAME.fits(v), "the name of another arm, or nothing")
_NOTE = Rule(lambda v: isinstance(v, str) and len(v) <= 2000 and "\0" not in v, "text of at most 2,000 characters")
_DEVICE = Rule(
    lambda v: isinstance(v, str) and re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", v) is not None,
    "auto, cpu, cuda or cuda:N",
)
_EVERY = Rule(
    lambda v: v is None or _whole(1, 10**9).fits(v), "a whole number of steps from 1, or nothing for once at the start"
)

_START = Rule(
    lambda v: _whole(0, 10**9).fits(v) or (isinstance(v, float) and 0 < v < 1),
    "a whole number of steps from 0, or a fraction of the run below 1",
)
_STOP = Rule(lambda v: v is None or _START.fits(v), f"{_START.allowed}, or nothing")
_WHEN = Rule(lambda v: v is None or _number(1, 1e9).fits(v), "a ratio from 1, such as 1.5, or nothing")


def _is_granularity(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool(parse_granularity(value))
    except BadOption:
        return False


_GRANULARITY = Rule(_is_granularity, f"one of {', '.join(GRANULARITIES)}, or one a pair, such as qk=channel,vo=tensor")

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
        "final_windows": _whole(1, 1_000_000),
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
        "clip": _number(0, 1e9),
        "epsilon": _number(0, 1),
    },
    Arm: {
        "name": _NAME,
        "kind": _one_of(*KINDS),
        "every": _EVERY,
        "at_start": _YES_NO,
        "granularity": _GRANULARITY,
        "when": _WHEN,
        "start": _START,
        "stop": _STOP,
        "norm": _one_of(*PLAN_NORMS),
        "strength": _number(-100, 100),
        "exact": _YES_NO,
        "optimizer_state": _one_of("transport", "leave"),
        "method": _one_of(*METHODS),
        "clip_norm": _one_of(*CLIP_NORMS),
        "rate_of": _OTHER,
    },
    PilotSpec: {"added_rates": _whole(0, 20), "source": _TEXT},
    Spec: {
        "name": Rule(
            lambda v: isinstance(v, str) and 0 < len(v) <= 120 and v.isprintable(),
            "printable text of 1 to 120 characters",
        ),
        "steps": _whole(1, 10**9),
        "batch_size": _whole(1, 10**6),
        "evaluate_every": _whole(0, 10**9),
        "log_every": _whole(1, 10**9),
        "save_weights": _YES_NO,
        "detect_nats": _number(0, 100, above=True),
        "useful_nats": _number(0, 100),
        "note": _NOTE,
        "device": _DEVICE,
        "precision": _one_of(*PRECISIONS),
        "processes_per_cell": _whole(1, 1024),
    },
}
_RATE = _number(0, 100, above=True)
_SEED = _whole(0, 10**9)
_MODULE = Rule(
    lambda v: isinstance(v, str) and re.fullmatch(r"[A-Za-z0-9_.]{1,120}", v) is not None, "the name of a linear layer"
)


# --- reading ----------------------------------------------------------------------------------------------------------


def load_spec(path: str | Path) -> Spec:
    """The spec in a TOML or JSON file. Raises UnreadableInput, SpecError.

    >>> load_spec("compare.toml").n_cells  # doctest: +SKIP
    16
    """
    path = named_path(path)
    raw = read_regular(path, MAX_SPEC_BYTES)
    parse = parse_json_object if raw.lstrip().startswith(b"{") else parse_toml
    document = parse(raw, shown(path))
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        found = document.get("format") if isinstance(document, dict) else None
        raise UnreadableInput(
            f'{path} has format {str(found)[:60]!r}; a spec begins with format = "{FORMAT}" and version = {VERSION}.'
        )
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
        pilot=replace(spec.pilot, source=_from(beside, spec.pilot.source)),
    )


def _from(beside: Path, path: str) -> str:
    """A path of a spec is meant from where the spec lies."""
    return path if not path or path.startswith("hub:") or Path(path).is_absolute() else str((beside / path).resolve())


def spec_from(given: Mapping[str, Any]) -> Spec:
    """A spec from plain values; what is missing has its default. Raises SpecError."""
    given = dict(given)
    if isinstance(given.get("optimiser", {}), Mapping):  # nobody asked for a warm-up longer than the run
        given["optimiser"] = {"warmup_steps": _warmup(given.get("steps", Spec.steps)), **given.get("optimiser", {})}
    parts: dict[str, Any] = {}
    for name, kind in (("model", ModelSpec), ("data", DataSpec), ("optimiser", OptimiserSpec), ("lora", LoraSpec)):
        parts[name] = _part(kind, given.pop(name, {}), f"{name}.")
    is_lora = parts["model"].source == "lora"
    parts["arms"] = _arms(given.pop("arms", list(LORA_BASE if is_lora else BASE)))
    parts["seeds"] = _list(given.pop("seeds", list(Spec.seeds)), "seeds", _SEED)
    parts["pilot"] = _pilot(given.pop("pilot", {}))
    spec = _part(Spec, given, "", parts)
    return checked(spec)


def _warmup(steps: Any) -> int:
    """Where none is given: a tenth of the run, at most the default. What is no number of steps is refused elsewhere."""
    return (
        min(OptimiserSpec.warmup_steps, steps // 10)
        if isinstance(steps, int) and steps > 0
        else OptimiserSpec.warmup_steps
    )


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
            if not isinstance(pairs, (list, tuple)) or not pairs or any(p not in PAIRS for p in pairs):
                raise SpecError(f"arms[{i}].pairs", pairs, f"a list of {', '.join(PAIRS)}")
            if isinstance(one.get("gram"), bool):  # the word of specs from before methods had names
                one = {"method": "gram" if one.pop("gram") else Arm.method} | one
            one |= _granularity(one.get("granularity", "tensor"), f"arms[{i}].granularity")
            if "name" not in one:
                raise SpecError(f"arms[{i}].name", "", _NAME.allowed)
            out.append(_part(Arm, one, f"arms[{i}].", {"pairs": tuple(dict.fromkeys(pairs))}))
        else:
            raise SpecError(f"arms[{i}]", one, "the name of an arm, or a table")
    return tuple(out)


def _granularity(given: Any, name: str) -> dict[str, str]:
    """As one word whatever it was written as: a table of pairs, or a word."""
    try:
        return {"granularity": parse_granularity(given)}
    except BadOption:
        raise SpecError(name, given, _GRANULARITY.allowed) from None


def _pilot(given: Any) -> PilotSpec:
    if not isinstance(given, Mapping):
        raise SpecError("pilot", given, "a table")
    given = dict(given)
    seeds = _list(given.pop("seeds", []), "pilot.seeds", _SEED)
    arms = _list(given.pop("arms", []), "pilot.arms", _NAME)
    return _part(PilotSpec, given, "pilot.", {"seeds": seeds, "arms": arms})


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
