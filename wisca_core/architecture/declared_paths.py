"""Where the tensors of a declaration lie in a model: its paths, with the numbers of layers and experts in them."""

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from wisca_core.architecture.declaration import Declaration
from wisca_core.architecture.layer import Weights
from wisca_core.errors import DeclarationError


@dataclass(frozen=True)
class LayerPath:
    layer: int
    expert: int
    prefix: str


def root_of(names: Iterable[str], declarations: Sequence[Declaration]) -> str:
    """What stands before every declared path in these names, "" where they begin with it. Raises DeclarationError."""
    names = list(names)
    roots: set[str] | None = None
    for one in declarations:
        pattern = re.compile(r"(?:^|(?<=\.))" + _pattern(one))
        found = {name[: match.start()] for name in names for match in pattern.finditer(name)}
        if not found:
            raise DeclarationError(f"{one.title}: no tensor of the model lies there. {_near(one, names)}")
        found = {""} if "" in found else found
        roots = found if roots is None else roots & found
    if len(roots or ()) != 1:
        shown = ", ".join(f"{root!r}" for root in sorted(roots or ()))
        raise DeclarationError(
            f"sites: the paths are found below {len(roots)} places of the model ({shown}); write them from the top of "
            "the "
            "model on."
            if roots
            else "sites: no one part of the model holds every declared path; write them from the top of the model on."
        )
    return next(iter(roots))


def _pattern(one: Declaration) -> str:
    escaped = (
        re.escape(one.layer)
        .replace(re.escape("{i}"), r"(?P<i>\d{1,6})", 1)
        .replace(re.escape("{e}"), r"(?P<e>\d{1,6})", 1)
    )
    return escaped.replace(re.escape("{i}"), r"(?P=i)").replace(re.escape("{e}"), r"(?P=e)") + r"\."


def _near(one: Declaration, names: Sequence[str]) -> str:
    numbered = one.layer.replace("{i}", "0").replace("{e}", "0")
    parents = list(dict.fromkeys(name.rpartition(".")[0].rpartition(".")[0] for name in names))
    like = difflib.get_close_matches(numbered, [parent for parent in parents if parent], 3, 0.4) or parents[:3]
    return f"Near it are {', '.join(like)}." if any(like) else "It has no tensors in modules."


def layer_paths(weights: Weights, one: Declaration, root: str) -> list[LayerPath]:
    pattern = re.compile(re.escape(root) + _pattern(one))
    found = {}
    for name in weights.names:
        match = pattern.match(name)
        if match:
            at = match.groupdict()
            place = LayerPath(int(at.get("i") or 0), int(at["e"]) if at.get("e") else -1, match[0])
            found[(place.layer, place.expert)] = place
    chosen = one["layers"]
    missing = sorted(set(chosen or ()) - {layer for layer, _ in found})
    if missing:
        raise DeclarationError(
            f"{one.title}: layers={list(chosen)} names layer {missing[0]}; the model has none there."
        )
    return [place for key, place in sorted(found.items()) if not chosen or place.layer in chosen]


def row_name(weights: Weights, one: Declaration, place: LayerPath, module: str) -> str:
    """As a row names it: a tensor that is itself the parameter ends in "!"."""
    if f"{place.prefix}{module}.weight" in weights:
        return module
    if f"{place.prefix}{module}" in weights:
        return f"{module}!"
    aliases = {alias: owner for alias, owner in weights.checkpoint.aliases}
    shared = aliases.get(f"{place.prefix}{module}.weight")
    if shared:
        raise DeclarationError(
            f"{one.title}: {place.prefix}{module}.weight is {shared} too; scaling it would change both."
        )
    inside = sorted({name.removeprefix(place.prefix).removesuffix(".weight") for name in weights.below(place.prefix)})
    raise DeclarationError(
        f"{one.title}: {place.prefix}{module} is no tensor of the model and no module with a weight; there are "
        f"{', '.join(inside[:8]) or 'none'}."
    )
