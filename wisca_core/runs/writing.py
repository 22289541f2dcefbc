"""The long table as a CSV file, piece by piece, however long it is."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from wisca_core.errors import OutputRefused
from wisca_core.progress import Progress, silent
from wisca_core.runs.table import COLUMNS, Run, long_pieces
from wisca_core.spreadsheet import check_replaceable, safe_cell
from wisca_core.storage import atomic_file

HEAD = ",".join(COLUMNS)


def csv_pieces(runs: Iterable[Run]) -> Iterator[bytes]:
    """UTF-8, the header first; names that a spreadsheet would run get an apostrophe, NaN is written "nan", numbers in
    full.
    """
    yield f"{HEAD}\n".encode()
    for piece in long_pieces(runs):
        step = piece["step"].to_numpy()
        if np.isfinite(step).all() and (step == np.floor(step)).all() and (np.abs(step) < 2**53).all():
            piece["step"] = step.astype(np.int64)
        for name in ("run", "metric", "source"):  # the same in every row of a piece
            piece[name] = safe_cell(piece[name].iloc[0])
        yield (
            piece[list(COLUMNS)]
            .to_csv(index=False, header=False, lineterminator="\n", na_rep="nan")
            .encode("utf-8", "backslashreplace")
        )


def write_csv(path: Path, runs: Iterable[Run], progress: Progress = silent) -> int:
    """Write the long table beside ``path`` and rename it; returns its rows. An earlier table of this kind is replaced,
    nothing else is.

    Raises OutputRefused.
    """
    check_replaceable(path, HEAD)
    runs = list(runs)
    total = sum(len(run) for run in runs)
    rows = 0
    try:
        with atomic_file(path) as file:
            for piece in csv_pieces(runs):
                rows += piece.count(b"\n")
                progress("writing the table", rows, total)
                file.write(piece)
    except OSError as error:
        raise OutputRefused(
            f"{path} cannot be written: {(error.strerror or str(error)).lower()}. Nothing was left behind."
        ) from error
    return total
