"""Small uploaded files become a model folder of their own under WISCA_HOME/uploads."""

import os
import re
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path

from wisca_core import storage
from wisca_core.errors import OutputRefused, UnsafeInput
from wisca_core.untrusted import printable

ENDINGS = ("safetensors", "pt", "pth", "json", "model", "txt", "toml")


def name_of(folder: Path) -> str:
    """What a kept upload is called: its weight file, or the first of its files."""
    names = sorted(path.name for path in folder.glob("*")) if os.path.isdir(folder) else []
    weights = (name for name in names if name.endswith((".safetensors", ".pt", ".pth")))
    return next(weights, names[0] if names else folder.name)


def model_in(folder: Path) -> Path:
    """What of a kept upload is opened: a torch file of any name by itself, as no folder is one for it."""
    torch = [one for one in folder.glob("*") if one.suffix in (".pt", ".pth")]
    return torch[0] if len(torch) == 1 and not any(folder.glob("*.safetensors")) else folder


def keep(files: Sequence[tuple[str, bytes]], endings: tuple[str, ...] = ENDINGS) -> Path:
    """Write (name, content) into a new folder and return it. Raises UnsafeInput for anything but plain file names."""
    for name, _ in files:
        if not re.fullmatch(r"[\w-][\w .-]{0,119}", name, re.ASCII) or not name.endswith(endings):
            raise UnsafeInput(
                f"{printable(name)} is not a plain file name ending in "
                f"{', '.join(filter(None, endings)) or 'anything'}. "
                f"Nothing was kept."
            )
    id = secrets.token_hex(8)
    folder = storage.folder("uploads") / id
    beside = folder.with_name(f".{id}")
    try:
        beside.mkdir(mode=0o700)
        for name, content in files:
            (beside / name).write_bytes(content)
        beside.rename(folder)
    except OSError as error:
        shutil.rmtree(beside, ignore_errors=True)
        raise OutputRefused(
            f"the upload cannot be kept in {folder.parent}: {error.strerror}. Nothing was left behind."
        ) from error
    return folder
