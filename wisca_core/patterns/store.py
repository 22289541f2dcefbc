"""Measured tables kept between runs, so that a checkpoint is read once."""

import json

import xxhash

from wisca_core.architecture.site import Sites
from wisca_core.checkpoint import Checkpoint
from wisca_core.errors import WiscaError
from wisca_core.patterns.table import Patterns, header_digest
from wisca_core.progress import Progress, silent
from wisca_core.storage import folder


def measured_patterns(checkpoint: Checkpoint, sites: Sites, progress: Progress = silent) -> Patterns:
    """The table of this checkpoint: from WISCA_HOME/measurements where its files are as they were, else by one pass."""
    kept = cached_patterns(checkpoint, sites)
    if kept is not None:
        return kept
    from wisca_core.patterns.measure import measure  # only where something is read

    patterns = measure(checkpoint, sites, progress)
    try:
        patterns.save(_path(checkpoint, sites))
    except (OSError, WiscaError):
        pass  # a full disk only costs the next pass
    return patterns


def cached_patterns(checkpoint: Checkpoint, sites: Sites) -> Patterns | None:
    """The kept table, or None where there is none (any more)."""
    return Patterns.load(_path(checkpoint, sites), sites)


def n_bytes_to_read(checkpoint: Checkpoint, sites: Sites) -> int:
    """Bytes the measuring pass reads."""
    touched = {leg.tensor for site in sites.sites for leg in site.legs}
    return sum(t.n_bytes for t in checkpoint.tensors if t.name in touched)


def _path(checkpoint: Checkpoint, sites: Sites):
    """Named by real path, size and mtime of every weight file, the stored layout and the sites; the bytes are in the
    table's digests.
    """
    layout = header_digest(checkpoint)
    files = [(name, *stamp) for name, stamp in zip(checkpoint.weight_files, checkpoint.stamps)]
    key = json.dumps([str(checkpoint.path), files, layout]) + repr(sites.sites)
    return folder("measurements") / f"{xxhash.xxh3_128(key.encode()).hexdigest()}.npz"
