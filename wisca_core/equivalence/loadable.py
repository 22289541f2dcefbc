"""A folder of which transformers reads the very weights that were opened."""

import os
from pathlib import Path

from wisca_core.checkpoint import Checkpoint
from wisca_core.checkpoint.writer import write_weights, written_name
from wisca_core.progress import Progress, silent
from wisca_core.untrusted import locate

WEIGHTS = "model.safetensors"


def loadable(checkpoint: Checkpoint, place: Path, progress: Progress = silent) -> Path:
    """``place``, made: a folder that transformers loads this very checkpoint from, under the names it looks for: links
    to its weight files, which were looked through, or a copy where they are of another kind or under names that
    wrappers left.

    Raises OSError (disk full), CheckpointChanged, Cancelled.
    """
    place.mkdir()
    if checkpoint.kind != "safetensors" or checkpoint.is_unwrapped:  # converted, so that nothing is unpickled
        write_weights(checkpoint, {}, place, progress, as_read=True)
        if not checkpoint.index_file:
            (place / written_name(checkpoint, checkpoint.weight_files[0])).replace(place / WEIGHTS)
    else:
        for name in checkpoint.weight_files:
            os.symlink(locate(checkpoint.path, name), place / (name if checkpoint.index_file else WEIGHTS))
        if checkpoint.index_file:
            os.symlink(locate(checkpoint.path, checkpoint.index_file), place / f"{WEIGHTS}.index.json")
    (place / "config.json").write_text(checkpoint.config_json, encoding="utf-8")
    return place
