"""What lies near: models and folders below a folder, and models of the hub that are on this machine already."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from wisca_core.errors import UnreadableInput

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".distcp")
MOST = 200  # entries looked at below one folder


@dataclass(frozen=True)
class Near:
    """``kind``: "model", "adapter", "file" (weights by themselves) or "folder" (no model in it). ``n_files``: weight
    files, of a folder the folders in it.
    """

    path: Path
    kind: str
    n_files: int
    n_bytes: int


def below(folder: Path) -> list[Near]:
    """Models, then weight files, then other folders right below ``folder``, each by name; hidden ones are left out. No
    weights are read and no link is followed out of sight: a linked folder is listed under its own name.

    Raises UnreadableInput where it is no folder or may not be read.
    """
    try:
        with os.scandir(folder) as entries:
            found = sorted((e.name for e in entries if not e.name.startswith(".")), key=str.lower)[:MOST]
    except OSError as error:
        raise UnreadableInput(f"{folder} cannot be listed: {(error.strerror or str(error)).lower()}.") from error
    out = [near for name in found if (near := _look(folder / name)) is not None]
    order = {"model": 0, "adapter": 0, "file": 1, "folder": 2}
    return sorted(out, key=lambda near: order[near.kind])


def _look(path: Path) -> Near | None:
    try:
        if path.is_file():
            return Near(path, "file", 1, path.stat().st_size) if path.suffix in WEIGHTS else None
        if not path.is_dir():
            return None
        with os.scandir(path) as entries:
            inside = [(e.name, e.is_dir(), e.stat().st_size) for e in entries if not e.name.startswith(".")]
    except OSError:
        return None  # gone meanwhile, a broken link, or not ours to read
    names = {name for name, is_folder, _ in inside if not is_folder}
    weights = [size for name, is_folder, size in inside if not is_folder and name.endswith(WEIGHTS)]
    if weights and "adapter_config.json" in names:
        return Near(path, "adapter", len(weights), sum(weights))
    if weights and names & {"config.json", "model.safetensors.index.json", ".metadata"}:
        return Near(path, "model", len(weights), sum(weights))
    return Near(path, "folder", sum(is_folder for _, is_folder, _ in inside), 0)


def downloaded_models() -> list[str]:
    """Ids of the models in the hub library's cache that have a config, by name."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    out = []
    for path in sorted(cache.glob("models--*")) if cache.is_dir() else []:
        match = re.fullmatch(r"models--([\w.-]+?)--([\w.-]+)", path.name)
        if match and any(path.glob("snapshots/*/*config.json")):
            out.append(f"{match[1]}/{match[2]}")
    return out
