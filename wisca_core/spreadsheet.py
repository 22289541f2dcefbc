"""Tables as CSV that a spreadsheet opens without executing anything."""

import os
from pathlib import Path

import pandas as pd

from wisca_core.errors import OutputRefused
from wisca_core.storage import replace_file

# A cell that begins with one of these is read as a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def csv_bytes(table: pd.DataFrame) -> bytes:
    """UTF-8 with a header row; text that would be read as a formula gets an apostrophe in front, numbers stay numbers.

    >>> csv_bytes(pd.DataFrame({"name": ["=1+1", "q"], "value": [-1, 2]}))
    b"name,value\\n'=1+1,-1\\nq,2\\n"
    """

    return (
        table.rename(columns=safe_cell)
        .map(safe_cell)
        .to_csv(index=False, lineterminator="\n")
        .encode("utf-8", "backslashreplace")
    )


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """Write ``csv_bytes`` whole or not at all, in place of the file that was there. Raises OutputRefused."""
    replace_file(path, csv_bytes(table))


def safe_cell(value: object) -> object:
    """Text that would be read as a formula with an apostrophe in front; anything else as it is."""
    return "'" + value if isinstance(value, str) and value.startswith(_FORMULA) else value


def check_replaceable(path: Path, head: str, kind: str = "") -> None:
    """Raises OutputRefused where ``path`` is a file that does not begin with ``head`` (ASCII): it is no table of that
    kind.

    ``kind``: what such a table is called, where its head says little.
    """
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            if file.read(len(head)) == head.encode():
                return
    except FileNotFoundError:
        if path.absolute().parent.is_dir():
            return
        raise OutputRefused(f"{path} cannot be written: its folder does not exist.") from None
    except OSError as error:
        raise OutputRefused(f"{path} cannot be written: {(error.strerror or str(error)).lower()}.") from error
    found = f"is no {kind}" if kind else f"does not begin with {head[:40]}..."
    raise OutputRefused(f"{path} exists and {found}; it is left alone. Choose another name.")
