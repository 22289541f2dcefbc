"""A spec from a file or from plain values, checked field by field.

A spec is a TOML or JSON file that begins with ``format = "wisca-comparison"`` and ``version = 1``. Every wrong value is
a SpecError that names the field, the value and what is allowed.
"""

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from wisca_core.comparison.presets import BASE, KNOWN_ARMS, LORA_BASE
from wisca_core.comparison.spec import FORMAT, VERSION, Arm, OptimiserSpec, Spec
from wisca_core.comparison.spec_checks import check_spec
from wisca_core.errors import SpecError, UnreadableInput
from wisca_core.untrusted import named_path, parse_json_object, parse_toml, printable, read_regular

MAX_SPEC_BYTES = 1 << 20


def load_spec(path: str | Path) -> Spec:
    """The spec in a TOML or JSON file. Raises UnreadableInput, SpecError.

    >>> load_spec("compare.toml").n_cells  # doctest: +SKIP
    16
    """
    path = named_path(path)
    raw = read_regular(path, MAX_SPEC_BYTES)
    parse = parse_json_object if raw.lstrip().startswith(b"{") else parse_toml
    document = parse(raw, printable(path))
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
    is_lora = isinstance(given.get("model"), Mapping) and given["model"].get("source") == "lora"
    return check_spec(_part(Spec, given | {"arms": _arms(given.get("arms", LORA_BASE if is_lora else BASE))}, ""))


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
            if isinstance(one.get("gram"), bool):  # the word of specs from before methods had names
                one = {"method": "gram" if one.pop("gram") else Arm.method} | one
            out.append(_part(Arm, one, f"arms[{i}]."))
        else:
            raise SpecError(f"arms[{i}]", one, "the name of an arm, or a table")
    return tuple(out)


def _part(kind: type, given: Any, prefix: str) -> Any:
    """A dataclass of ``spec`` from plain values, each by the rule of its field; parts of it are tables of their own."""
    if not isinstance(given, Mapping):
        raise SpecError(prefix.rstrip("."), given, "a table")
    known = {f.name: f for f in fields(kind)}
    for name in known:
        if known[name].default is MISSING and name not in given:
            raise SpecError(f"{prefix}{name}", "", known[name].metadata["rule"].allowed)
    values: dict[str, Any] = {}
    for name, value in given.items():
        if name not in known:
            raise SpecError(f"{prefix}{name}", value, f"no such field; there are {', '.join(sorted(known))}")
        if is_dataclass(known[name].default):
            values[name] = _part(type(known[name].default), value, f"{prefix}{name}.")
        else:
            rule = known[name].metadata.get("rule")  # none for arms, which are read by now
            values[name] = rule.read(value, f"{prefix}{name}") if rule else value
    return kind(**values)
