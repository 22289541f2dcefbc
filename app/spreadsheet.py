"""Tables as CSV that a spreadsheet opens without executing anything."""

import pandas as pd

# A cell that begins with one of these is read as a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def csv_bytes(table: pd.DataFrame) -> bytes:
    """UTF-8 with a header row; text that would be read as a formula gets an apostrophe, numbers stay whole."""

    def safe(value: object) -> object:
        return "'" + value if isinstance(value, str) and value.startswith(_FORMULA) else value

    return table.rename(columns=safe).map(safe).to_csv(index=False).encode()
