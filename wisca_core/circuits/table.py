"""The way in: a model, and the table of its heads or of its matrices."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from wisca_core.architecture.declaration_files import open_declared
from wisca_core.architecture.discovery import sites_of
from wisca_core.architecture.find import pairs_to_find
from wisca_core.checkpoint import Checkpoint, open_checkpoint
from wisca_core.circuits import store
from wisca_core.progress import Progress, silent

if TYPE_CHECKING:
    from wisca_core.circuits.measure import Circuits
    from wisca_core.model import Model


def heads(model: str | Path | Checkpoint | Model, progress: Progress = silent) -> pd.DataFrame:
    """One row a query head, the columns of ``circuits.columns.COLUMNS``; float64, NaN where ``note`` says why.

    Columns that no rescale moves: norm, spectral norm, stable and effective rank of the QK circuit Wq^T Wk and of the
    OV circuit Wo Wv, the largest logit the weights allow, how far OV is from copying. Columns that one moves: norms,
    ratios and equivalent learning rates. ``attrs["remarks"]``: what is not covered; ``attrs["refused"]``: pairs left
    out, and why.

    Reads the attention weights once and keeps the result under WISCA_HOME/measurements. Raises UnreadableInput,
    UnsupportedCheckpoint, CheckpointChanged. A model without a known head gives an empty table.

    >>> import wisca_core as wisca
    >>> table = wisca.heads("sample_runs/gqa-docs/checkpoint-3600")
    >>> table.query("layer == 0")["qk_stable_rank"].round(2).tolist()[:3]
    [1.27, 1.3, 1.39]
    """
    return as_table(*circuits_of(model, progress))


def matrices(model: str | Path | Checkpoint | Model, progress: Progress = silent) -> pd.DataFrame:
    """One row a matrix of the whole model, the columns of ``circuits.matrices.MATRIX_COLUMNS``, largest norm first.

    Reads every weight a few times in a stream and keeps the result. Raises as :func:`heads`.
    """
    checkpoint = _checkpoint(model, progress)
    return store.measured_matrices(checkpoint, sites_of(checkpoint, pairs_to_find(("mlp",))), progress)


def circuits_of(model: str | Path | Checkpoint | Model, progress: Progress = silent) -> tuple[Circuits, tuple]:
    """(heads with their spectra and channels, refusals of QK and VO pairs or of the model)."""
    checkpoint = _checkpoint(model, progress)
    sites = sites_of(checkpoint)
    return store.measured_circuits(checkpoint, sites, progress), sites.refusals


def as_table(circuits: Circuits, refusals: tuple = ()) -> pd.DataFrame:
    """The table with what belongs beside it in ``attrs``."""
    table = circuits.table.copy()
    table.attrs = {"remarks": list(circuits.remarks), "refused": [f"{r.what}: {r.reason}" for r in refusals]}
    return table


def heads_job(arguments: dict, progress: Progress, folder: Path) -> dict:
    """{model} -> {}: the heads are then in WISCA_HOME/measurements."""
    circuits_of(open_declared(arguments, progress), progress)
    return {}


def matrices_job(arguments: dict, progress: Progress, folder: Path) -> dict:
    """{model} -> {}: the matrices are then in WISCA_HOME/measurements."""
    matrices(open_declared(arguments, progress), progress)
    return {}


def _checkpoint(model, progress: Progress) -> Checkpoint:
    if isinstance(model, Checkpoint):
        return model
    return getattr(model, "checkpoint", None) or open_checkpoint(model, progress=progress)
