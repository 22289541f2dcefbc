"""Measured heads kept between runs, beside the table of channels."""

from pathlib import Path
from types import MappingProxyType

import pandas as pd

from wisca_core.architecture.site import Sites
from wisca_core.checkpoint import Checkpoint
from wisca_core.circuits.columns import COLUMNS
from wisca_core.circuits.matrices import MATRIX_COLUMNS, measure_matrices
from wisca_core.circuits.measure import CHANNEL_COLUMNS, Circuits, measure
from wisca_core.patterns.store import UNUSABLE, keep, place, read_kept
from wisca_core.progress import Progress, silent

HEADS, MATRICES = "wisca-heads", "wisca-matrices"


def measured_circuits(checkpoint: Checkpoint, sites: Sites, progress: Progress = silent) -> Circuits:
    """The heads of this checkpoint: from WISCA_HOME/measurements where its files are as they were, else by one pass."""
    kept = cached_circuits(checkpoint, sites)
    if kept is not None:
        return kept
    found = measure(checkpoint, sites, progress)
    is_number = {name: found.table[name].dtype.kind in "if" for name in found.table}
    words = {
        "columns": [c.name for c in COLUMNS],
        "text": {name: found.table[name].tolist() for name, number in is_number.items() if not number},
        "channels": found.channels.to_numpy().tolist(),
        "remarks": list(found.remarks),
    }
    arrays = {name: found.table[name].to_numpy() for name, number in is_number.items() if number}
    arrays |= {f"spectrum {name}": values for name, values in found.spectra.items()}
    keep(_place(checkpoint, sites, HEADS), HEADS, words, arrays)
    return found


def cached_circuits(checkpoint: Checkpoint, sites: Sites) -> Circuits | None:
    """The kept heads, or None where there are none (any more)."""
    try:
        words, arrays = read_kept(_place(checkpoint, sites, HEADS), HEADS)
        if words["columns"] != [c.name for c in COLUMNS]:
            return None
        table = pd.DataFrame({c.name: arrays[c.name] if c.name in arrays else words["text"][c.name] for c in COLUMNS})
        channels = pd.DataFrame(words["channels"], columns=CHANNEL_COLUMNS)
        spectra = MappingProxyType({name: arrays[f"spectrum {name}"] for name in ("qk", "ov")})
        return Circuits(table, spectra, channels, tuple(words["remarks"]))
    except UNUSABLE:
        return None


def measured_matrices(checkpoint: Checkpoint, sites: Sites, progress: Progress = silent) -> pd.DataFrame:
    """The matrices of this checkpoint with remarks in ``attrs``: kept ones where its files are as they were, else
    measured.
    """
    kept = cached_matrices(checkpoint, sites)
    if kept is not None:
        return kept
    frame, remarks = measure_matrices(checkpoint, sites, progress)
    frame.attrs = {"remarks": list(remarks)}
    words = {"remarks": list(remarks), "rows": frame.to_dict("list")}
    keep(_place(checkpoint, sites, MATRICES), MATRICES, words, {})
    return frame


def cached_matrices(checkpoint: Checkpoint, sites: Sites) -> pd.DataFrame | None:
    """The kept matrices, or None."""
    try:
        words, _ = read_kept(_place(checkpoint, sites, MATRICES), MATRICES)
        frame = pd.DataFrame(words["rows"], columns=[column.name for column in MATRIX_COLUMNS])
        frame.attrs = {"remarks": words["remarks"]}
        return frame
    except UNUSABLE:
        return None


def n_bytes_to_read(checkpoint: Checkpoint, sites: Sites) -> int:
    """Bytes the pass reads, or a little less: fused matrices count once."""
    touched = {leg.tensor for site in sites.sites if site.key.pair in ("qk", "vo") for leg in site.legs}
    return sum(t.n_bytes for t in checkpoint.tensors if t.name in touched)


def _place(checkpoint: Checkpoint, sites: Sites, what: str) -> Path:
    return place(checkpoint, sites, what, checkpoint.config_json)
