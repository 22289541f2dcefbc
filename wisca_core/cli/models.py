"""Opening the models a person names, and saying what they are in a line."""

import importlib
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from wisca_core.architecture.declaration_files import read_declarations
from wisca_core.architecture.discovery import Discovery
from wisca_core.architecture.site import Sites
from wisca_core.checkpoint import Checkpoint, Declared, hub_size, open_checkpoint
from wisca_core.checkpoint.hub import PREFIX, n_bytes_missing
from wisca_core.cli.terminal import bar, confirm
from wisca_core.errors import BadOption, Cancelled, HubError
from wisca_core.planning.options import parse_layers
from wisca_core.progress import Progress
from wisca_core.words import in_bytes, join_names, plural


def open_after_asking(model: str, yes: bool, declared: Declared | None = None) -> Checkpoint:
    """The checkpoint; a download is announced with its size and asked for first, unless ``yes``."""
    if model.startswith(PREFIX) and not yes:
        _ask(model)
    with bar() as progress:
        return open_checkpoint(model, progress=progress, declared=declared)


def typed_options(**options: Any) -> dict[str, Any]:
    """Those that were typed, for ``Options``, whose defaults the others have. Raises BadOption."""
    typed = {name: value for name, value in options.items() if value is not None and value is not False and value != ()}
    if "layers" in typed and not parse_layers(typed["layers"]):
        raise BadOption("layers: nothing was given; write layers like 0-3,7, or leave the option out for all of them.")
    return typed


def site_options(
    sites: Path | None, build: str | None = None, forward: str | None = None, unproved: bool = False
) -> Declared | None:
    """What --sites, --build, --forward and --unproved say. Raises BadOption, UnreadableInput, DeclarationError."""
    if sites is None:
        given = [
            name for name, value in (("--build", build), ("--forward", forward), ("--unproved", unproved)) if value
        ]
        if given:
            raise BadOption(f"{given[0]} is about declared sites; give --sites sites.toml too.")
        return None
    if unproved and build:
        raise BadOption("--build makes the proof that --unproved does without; give one of them.")
    return Declared(
        read_declarations(sites), _own_function(build, "--build"), _own_function(forward, "--forward"), unproved
    )


def _own_function(named: str | None, option: str) -> Callable | None:
    """The person's own function "module:function", or "file.py:function"; the folder they stand in is looked in
    first.
    """
    if not named:
        return None
    module, _, function = named.rpartition(":")
    path = Path(module)
    sys.path.insert(0, str(path.absolute().parent if path.suffix == ".py" else Path.cwd()))
    try:
        found = getattr(importlib.import_module(path.stem if path.suffix == ".py" else module), function)
    except Exception as error:  # their code is run, because they named it
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise BadOption(
            f"{option} {named}: there is no such function (module:function is needed). {reason}."
        ) from error
    finally:
        del sys.path[0]
    return found


def _ask(model: str) -> None:
    try:
        size = hub_size(model)
    except HubError:
        return  # opening says why, or finds it in the cache
    missing = n_bytes_missing(size)
    if not missing:
        return
    what = f"{model} is {in_bytes(size.n_bytes)}, {in_bytes(missing)} of it to download"
    if not confirm(f"{what}. Download it?", f"{what}; nobody can be asked here. Add --yes to download it."):
        raise Cancelled("not downloaded. Nothing was left behind.")


def facts(checkpoint: Checkpoint, sites: Sites) -> str:
    """Architecture, size, layers, heads, dtypes and pairs in one line."""
    parts = [sites.architecture or "unknown architecture", parameters(checkpoint.n_parameters)]
    a = sites.attention
    if a is not None:
        heads = (
            f"{a.n_heads} heads"
            if a.n_heads == a.n_kv_heads
            else f"{a.n_heads} query heads on {plural(a.n_kv_heads, 'KV head')}"
        )
        parts += [plural(a.n_layers, "layer"), f"{heads} of {a.head_dim}"]
    parts += [
        join_names(dtypes(checkpoint)),
        f"{plural(len(sites.sites), 'pair')} found, {len(sites.refusals):,} refused",
    ]
    return ", ".join(filter(None, parts))


def dtypes(checkpoint: Checkpoint) -> list[str]:
    """Stored dtypes that hold a hundredth of the values or more, the most frequent first."""
    if checkpoint.kind == "gguf":  # its formats are no dtypes; the sentence on looking names them
        return []
    count: Counter[str] = Counter()
    for tensor in checkpoint.stored or checkpoint.tensors:
        count[tensor.dtype] += tensor.n_elements
    return [name for name, n in count.most_common() if 100 * n >= count.total()]


def parameters(n: int) -> str:
    """22713216 -> "22.7 M parameters"."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if n >= size:
            return f"{n / size:.1f} {letter} parameters"
    return plural(n, "parameter")


def search(checkpoint: Checkpoint, progress: Progress) -> Discovery:
    """A rule by trial for a model type that no file has; torch is imported for it, and for nothing else that looks."""
    from wisca_core.equivalence.trial import discover

    return discover(checkpoint, progress)
