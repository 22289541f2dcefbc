"""The way in: what the person wrote, to a checkpoint that was looked through."""

import os
import re
import stat
from dataclasses import replace
from pathlib import Path

from wisca_core.checkpoint import hub
from wisca_core.checkpoint.checkpoint import Checkpoint, Declared
from wisca_core.checkpoint.folder import look_through
from wisca_core.errors import UnreadableInput
from wisca_core.progress import Progress, silent
from wisca_core.untrusted import named_path, printable


def open_checkpoint(model: str | Path, *, progress: Progress = silent, declared: Declared | None = None) -> Checkpoint:
    """Looks a checkpoint through without reading its weights.

    ``model``: a folder, one weight file beside its config.json, or ``hub:owner/name[@revision]``; anything that does
    not begin with ``hub:`` is a path. A download goes into the cache of huggingface_hub. ``declared``: what a person
    says of its pairs.

    Raises UnreadableInput (UnsafeInput, HubError) or UnsupportedCheckpoint; nothing is ever executed or guessed.
    """
    found = _checkpoint_at(os.fspath(model), progress)
    return found if declared is None else replace(found, declared=declared)


def _checkpoint_at(source: str, progress: Progress) -> Checkpoint:
    if source.startswith(hub.PREFIX):
        return look_through(hub.download(source, progress), None, source, progress)
    if not source or "\0" in source:
        raise UnreadableInput("the model path is empty or has a zero byte. Give a model folder.")
    try:
        path = named_path(source).absolute()
        mode = os.stat(path).st_mode
    except (OSError, UnreadableInput) as error:
        hint = f" For a model on the hub write hub:{source}." if re.fullmatch(r"[\w.-]+/[\w.-]+", source) else ""
        raise UnreadableInput(
            f"{printable(source)}: cannot be opened: "
            f"{getattr(error, 'strerror', None) or printable(error).rstrip('.')}. "
            f"Give a model folder, a .safetensors file beside its config.json, or hub:owner/name.{hint}"
        ) from None
    if stat.S_ISDIR(mode):
        return look_through(Path(os.path.realpath(path)), None, source, progress)
    return look_through(Path(os.path.realpath(path.parent)), path.name, source, progress)
