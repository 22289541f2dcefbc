"""Measured tables kept between runs, so that a checkpoint is read once."""

import json
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import xxhash

from wisca_core.architecture.site import Sites
from wisca_core.checkpoint import Checkpoint
from wisca_core.errors import UnreadableInput, WiscaError
from wisca_core.patterns.table import PLACE, STATS, Patterns, header_digest
from wisca_core.progress import Progress, silent
from wisca_core.storage import atomic_file, folder
from wisca_core.untrusted import open_named

FORMAT = "wisca-patterns"
# What reading a kept file raises where it is gone, damaged or of another version: all is measured again.
UNUSABLE = (UnreadableInput, OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile)


def measured_patterns(checkpoint: Checkpoint, sites: Sites, progress: Progress = silent) -> Patterns:
    """The table of this checkpoint: from WISCA_HOME/measurements where its files are as they were, else by one pass."""
    kept = cached_patterns(checkpoint, sites)
    if kept is not None:
        return kept
    from wisca_core.patterns.measure import measure  # only where something is read

    found = measure(checkpoint, sites, progress)
    # the sites are not in it: they follow from names and config
    words = {"digests": dict(found.digests), "header": found.header, "dtypes": dict(found.dtypes)}
    keep(place(checkpoint, sites.sites), FORMAT, words, found.rows)
    return found


def cached_patterns(checkpoint: Checkpoint, sites: Sites) -> Patterns | None:
    """The kept table, or None where there is none (any more), or one of other sites."""
    try:
        words, rows = read_kept(place(checkpoint, sites.sites), FORMAT)
        n_rows = sum(len(leg.index.indices()) for site in sites.sites for leg in site.legs)
        touched = {leg.tensor for site in sites.sites for leg in site.legs}
        if not {*PLACE, *STATS} <= rows.keys() or any(len(column) != n_rows for column in rows.values()):
            return None
        if touched != words["digests"].keys():
            return None
        digests, dtypes = (MappingProxyType(words[name]) for name in ("digests", "dtypes"))
        return Patterns(sites, MappingProxyType(rows), digests, words["header"], dtypes)
    except UNUSABLE:
        return None


def n_bytes_to_read(checkpoint: Checkpoint, sites: Sites) -> int:
    """Bytes the measuring pass reads."""
    touched = {leg.tensor for site in sites.sites for leg in site.legs}
    return sum(t.n_bytes for t in checkpoint.tensors if t.name in touched)


def place(checkpoint: Checkpoint, sites: object, *of: str) -> Path:
    """Where what was measured of the checkpoint lies: named by real path, size and mtime of every weight file, the
    stored layout, the sites and ``of``; the bytes are in the digests of the table of channels.
    """
    files = [(name, *stamp) for name, stamp in zip(checkpoint.weight_files, checkpoint.stamps)]
    key = json.dumps([str(checkpoint.path), files, header_digest(checkpoint), *of]) + repr(sites)
    return folder("measurements") / f"{xxhash.xxh3_128(key.encode()).hexdigest()}.npz"


def keep(path: Path, format: str, words: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """An .npz of the arrays with ``words`` among them as JSON. A full disk only costs the next pass."""
    text = json.dumps({"format": format, "version": 1, **words})
    with suppress(OSError, WiscaError), atomic_file(path) as file:
        np.savez(file, words=np.frombuffer(text.encode(), dtype=np.uint8), **arrays)


def read_kept(path: Path, format: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(words, arrays) that ``keep`` was given. Raises one of UNUSABLE."""
    with open_named(path) as raw, np.load(raw, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    words = json.loads(arrays.pop("words").tobytes())
    if (words["format"], words["version"]) != (format, 1):
        raise ValueError(words["format"])
    return words, arrays
