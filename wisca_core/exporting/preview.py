"""What an export will do to a folder, listed before anything is written."""

import json
import os
import re
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path

from wisca_core.checkpoint import Checkpoint
from wisca_core.checkpoint.writer import rewritten_files, written_name
from wisca_core.errors import WiscaError
from wisca_core.planning.bases import BASES
from wisca_core.untrusted import locate, read_regular

# Other copies of the weights, which would still be the old ones, and optimiser state, which would no longer fit.
_WEIGHTS = re.compile(
    r"\.(safetensors|bin|pt|pth|ckpt|h5|msgpack|onnx|onnx_data|gguf|ggml|ot|tflite|mlmodel|npz|data|distcp)$|"
    r"\.index\.json$|(^|/)\.metadata$",
    re.I,
)
# Of the same endings, but neither: states of a trainer that hold no weight.
_HARMLESS = re.compile(r"^(training_args\.bin|scheduler\.pt|rng_state(_\d+)?\.pth)$")
_SKIPPED_FOLDERS = (".git", ".cache", "__pycache__")

REPORT, PICTURE = "wisca_report.json", "wisca_factors.svg"
MAX_FILES = 10_000


@dataclass(frozen=True)
class ExportPreview:
    """``rewritten``: (file, name it is written under). ``copied``, ``left_out``: files relative to the folder, the
    latter with the reason. ``n_bytes``: of everything to write.
    """

    rewritten: tuple[tuple[str, str], ...]
    copied: tuple[str, ...]
    left_out: tuple[tuple[str, str], ...]
    n_bytes: int


def preview(checkpoint: Checkpoint) -> ExportPreview:
    """Every file of the folder in exactly one of three lists. Raises UnreadableInput for a folder of over 10,000
    files.
    """
    copied, left_out, n_bytes = [], [], 0
    indexes = {checkpoint.index_file} if checkpoint.kind == "safetensors" else set()
    modules = _module_folders(checkpoint.path)
    for name in _files(checkpoint.path):
        base = name.rsplit("/", 1)[-1]
        if name in checkpoint.weight_files:
            continue
        adapter = base in ("adapter_model.safetensors", "adapter_model.bin", "adapter_config.json")
        if base in (REPORT, BASES, PICTURE):
            left_out.append((name, "the report of an earlier rescale; a new one is written"))
        elif adapter and not checkpoint.adapter_json:
            left_out.append(
                (
                    name,
                    "a LoRA adapter of the old weights, which does not fit the new ones; rescale it with its base "
                    "(--adapter)",
                )
            )
        elif (
            not (adapter and "/" in name)
            and name not in indexes
            and _WEIGHTS.search(base)
            and not _HARMLESS.match(base)
            and not name.startswith(modules)
        ):
            optimiser = "optim" in base.lower() or base.startswith(("zero_pp", "bf16_zero", "mp_rank"))
            left_out.append(
                (
                    name,
                    "optimiser state, which does not fit the new weights"
                    if optimiser
                    else "weights that are not this adapter's"
                    if checkpoint.adapter_json
                    else "another copy of weights, which would still be the old ones",
                )
            )
        else:
            try:
                n_bytes += locate(checkpoint.path, name).stat().st_size
                copied.append(name)
            except (WiscaError, OSError):
                left_out.append((name, "a link out of the folder or not a regular file"))
    rewritten = tuple((file, written_name(checkpoint, file)) for file in rewritten_files(checkpoint))
    n_bytes += sum(size for size, _ in checkpoint.stamps) + sum(
        checkpoint.by_name[owner].n_bytes for _, owner in checkpoint.aliases
    )
    return ExportPreview(rewritten, tuple(copied), tuple(left_out), n_bytes)


def _module_folders(folder: Path) -> tuple[str, ...]:
    """``2_Dense/`` and the like of a sentence-transformers folder: their weights are layers of their own, not
    copies.
    """
    try:
        modules = json.loads(read_regular(locate(folder, "modules.json"), 1 << 20))
        paths = [module["path"] for module in modules if isinstance(module["path"], str)]
    except (WiscaError, OSError, ValueError, KeyError, TypeError, RecursionError):
        return ()
    return tuple(path.strip("/") + "/" for path in paths if path.strip("/"))


def n_bytes_free(path: Path) -> int:
    """On the disk that ``path`` will lie on."""
    while not os.path.exists(path) and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free


def _files(folder: Path) -> list[str]:
    """Names of all files below the folder, links to folders not followed."""
    out: list[str] = []
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        for entry in sorted(here.iterdir()):
            mode = entry.lstat().st_mode
            if stat.S_ISDIR(mode):
                if entry.name not in _SKIPPED_FOLDERS:
                    waiting.append(entry)
            else:
                out.append(entry.relative_to(folder).as_posix())
            if len(out) > MAX_FILES:
                raise WiscaError(
                    f"{folder} holds over {MAX_FILES:,} files; this is not a model folder. Nothing was written."
                )
    return sorted(out)
