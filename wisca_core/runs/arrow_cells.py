"""Columns of Arrow arrays as a Tabular takes them."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wisca_core.runs.tabular import NO_TEXT, ColumnCells

# A number as logs write it; what only Python reads as one ("1_000") is text.
_NUMBER = r"(?i)^\s*[-+]?(\d{1,60}\.?\d{0,60}(e[-+]?\d{1,5})?|\.\d{1,60}(e[-+]?\d{1,5})?|nan|inf(inity)?)\s*$"


def cells(column: pa.Array) -> ColumnCells:
    """``column``: float64 or binary."""
    if pa.types.is_floating(column.type):
        if not column.null_count:
            value = column.to_numpy(zero_copy_only=False)
            return ColumnCells(np.arange(len(value)), value, NO_TEXT, column.to_pylist)
        present = column.is_valid().to_numpy(zero_copy_only=False)
        return ColumnCells(
            np.flatnonzero(present), column.drop_null().to_numpy(zero_copy_only=False), NO_TEXT, column.to_pylist
        )
    number = pc.match_substring_regex(column, _NUMBER).fill_null(False)
    value = pc.cast(pc.utf8_trim_whitespace(pc.cast(column.filter(number), pa.string())), pa.float64())
    texts = pc.and_(pc.invert(number), column.is_valid())
    return ColumnCells(
        np.flatnonzero(number.to_numpy(zero_copy_only=False)),
        value.to_numpy(zero_copy_only=False),
        np.flatnonzero(texts.to_numpy(zero_copy_only=False)),
        lambda: [_plain(cell) for cell in column.to_pylist()],
    )


def _plain(cell: bytes | None) -> object:
    """A cell as its writer meant it: whole numbers as such, so that seed 3 is not "3"."""
    if cell is None:
        return None
    text = cell.decode("utf-8", "replace")
    try:
        return int(text) if len(text) < 20 else text
    except ValueError:
        return text
