"""Declarations that a person confirmed: files under WISCA_HOME/sites, named by what they say, so that an address can
name one and a job can read it.
"""

from collections.abc import Sequence
from pathlib import Path

import xxhash

from wisca_core import storage
from wisca_core.architecture.declaration import Declaration
from wisca_core.architecture.declaration_files import read_declarations, toml
from wisca_core.errors import OutputRefused, UnreadableInput
from wisca_core.model import Model


def keep(declarations: Sequence[Declaration]) -> str:
    """Its name; the same declaration has the same one. Raises OutputRefused."""
    text = toml(declarations).encode()
    name = xxhash.xxh3_128(text).hexdigest()
    try:
        if not path(name).is_file():
            with storage.atomic_file(path(name)) as file:
                file.write(text)
    except OSError as error:
        raise OutputRefused(f"{path(name)}: the declaration cannot be kept: {error.strerror}.") from error
    return name


def path(name: str) -> Path:
    return storage.folder("sites") / f"{name}.toml"


def read(name: str) -> tuple[Declaration, ...]:
    """() for "". Raises UnreadableInput where it is not kept (any more), DeclarationError."""
    if not name:
        return ()
    if not path(name).is_file():
        raise UnreadableInput(
            f"the declaration {name} that this address names is not kept on this machine (any more). Open the file "
            "again on "
            "the page Open another, and declare its pairs or give your sites.toml."
        )
    return read_declarations(path(name))


def name_of(model: Model) -> str:
    """Of the declaration that it was opened with, "" where there is none. Raises OutputRefused."""
    declared = model.checkpoint.declared
    return keep(declared.sites) if declared else ""


def arguments(model: Model) -> dict[str, str]:
    """What a job on this model is told beside its path."""
    name = name_of(model)
    return {"sites": str(path(name))} if name else {}
