"""Measured heads kept between runs, beside the table of channels."""

import json
import zipfile
from types import MappingProxyType

import numpy as np
import pandas as pd
import xxhash

from wisca_core.architecture.site import Sites
from wisca_core.checkpoint import Checkpoint
from wisca_core.circuits.columns import COLUMNS
from wisca_core.circuits.matrices import MATRIX_COLUMNS, measure_matrices
from wisca_core.circuits.measure import CHANNEL_COLUMNS, Circuits, measure
from wisca_core.errors import UnreadableInput, WiscaError
from wisca_core.patterns.measure import header_digest
from wisca_core.progress import Progress, silent
from wisca_core.storage import MAX_JSON_BYTES, atomic_file, folder
from wisca_core.untrusted import open_named, read_regular

FORMAT, VERSION = "wisca-heads", 1


def measured_circuits(checkpoint: Checkpoint, sites: Sites, progress: Progress = silent) -> Circuits:
    """The heads of this checkpoint: from WISCA_HOME/measurements where its files are as they were, else by one pass."""
    kept = cached_circuits(checkpoint, sites)
    if kept is not None:
        return kept
    found = measure(checkpoint, sites, progress)
    try:
        _save(found, _path(checkpoint, sites))
    except (OSError, WiscaError):
        pass  # a full disk only costs the next pass
    return found


def cached_circuits(checkpoint: Checkpoint, sites: Sites) -> Circuits | None:
    """The kept heads, or None where there are none (any more)."""
    try:
        with open_named(_path(checkpoint, sites)) as raw, np.load(raw, allow_pickle=False) as file:
            words = json.loads(file["words"].tobytes())
            if (words["format"], words["version"], words["columns"]) != (FORMAT, VERSION, [c.name for c in COLUMNS]):
                return None
            table = pd.DataFrame(
                {c.name: file[c.name] if c.name in file.files else words["text"][c.name] for c in COLUMNS}
            )
            channels = pd.DataFrame(words["channels"], columns=CHANNEL_COLUMNS)
            spectra = MappingProxyType({name: file[f"spectrum {name}"] for name in ("qk", "ov")})
            return Circuits(table, spectra, channels, tuple(words["remarks"]))
    except (UnreadableInput, OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile):
        return None


def measured_matrices(checkpoint: Checkpoint, sites: Sites, progress: Progress = silent) -> pd.DataFrame:
    """The matrices of this checkpoint with remarks in ``attrs``: kept ones where its files are as they were, else measured."""
    kept = cached_matrices(checkpoint, sites)
    if kept is not None:
        return kept
    frame, remarks = measure_matrices(checkpoint, sites, progress)
    frame.attrs = {"remarks": list(remarks)}
    words = {"format": "wisca-matrices", "version": VERSION, "remarks": list(remarks), "rows": frame.to_dict("list")}
    try:
        path = _path(checkpoint, sites, "matrices")
        with atomic_file(path) as file:
            file.write(json.dumps(words).encode())
    except (OSError, WiscaError):
        pass
    return frame


def cached_matrices(checkpoint: Checkpoint, sites: Sites) -> pd.DataFrame | None:
    """The kept matrices, or None."""
    try:
        words = json.loads(read_regular(_path(checkpoint, sites, "matrices"), MAX_JSON_BYTES))
        if (words["format"], words["version"]) != ("wisca-matrices", VERSION):
            return None
        frame = pd.DataFrame(words["rows"], columns=[column.name for column in MATRIX_COLUMNS])
        frame.attrs = {"remarks": words["remarks"]}
        return frame
    except (UnreadableInput, ValueError, KeyError, TypeError):
        return None


def n_bytes_to_read(checkpoint: Checkpoint, sites: Sites) -> int:
    """Bytes the pass reads, or a little less: fused matrices count once."""
    touched = {leg.tensor for site in sites.sites if site.key.pair in ("qk", "vo") for leg in site.legs}
    return sum(t.n_bytes for t in checkpoint.tensors if t.name in touched)


def _save(found: Circuits, path) -> None:
    is_number = {name: found.table[name].dtype.kind in "if" for name in found.table}
    words = {
        "format": FORMAT,
        "version": VERSION,
        "columns": [c.name for c in COLUMNS],
        "text": {name: found.table[name].tolist() for name, number in is_number.items() if not number},
        "channels": found.channels.to_numpy().tolist(),
        "remarks": list(found.remarks),
    }
    arrays = {name: found.table[name].to_numpy() for name, number in is_number.items() if number}
    arrays |= {f"spectrum {name}": values for name, values in found.spectra.items()}
    with atomic_file(path) as file:
        np.savez(file, words=np.frombuffer(json.dumps(words).encode(), dtype=np.uint8), **arrays)


def _path(checkpoint: Checkpoint, sites: Sites, what: str = "heads"):
    """Named by real path, size and mtime of every weight file, the stored layout and the sites."""
    files = [(name, *stamp) for name, stamp in zip(checkpoint.weight_files, checkpoint.stamps)]
    key = json.dumps([what, str(checkpoint.path), files, header_digest(checkpoint), checkpoint.config_json])
    name = xxhash.xxh3_128((key + repr(sites)).encode("utf-8", "surrogateescape")).hexdigest()
    return folder("measurements") / f"{name}.{'json' if what == 'matrices' else 'npz'}"
