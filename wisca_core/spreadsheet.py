"""Tables as CSV that a spreadsheet opens without executing anything."""

import pandas as pd

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


def safe_cell(value: object) -> object:
    """Text that would be read as a formula with an apostrophe in front; anything else as it is."""
    return "'" + value if isinstance(value, str) and value.startswith(_FORMULA) else value
