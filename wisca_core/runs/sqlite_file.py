"""Foreign SQLite files, opened read-only: plain tables only, and no statement that never ends."""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from wisca_core.errors import UnreadableInput
from wisca_core.untrusted import open_regular, printable

# Seconds a statement may compute without giving a row.
_PATIENCE = 5.0


class Database:
    """One open file. ``rows`` is for statements of our own over tables that ``columns`` has found."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._asked = time.monotonic()
        connection.set_progress_handler(lambda: time.monotonic() - self._asked > _PATIENCE, 100_000)

    def columns(self, table: str) -> set[str]:
        """Names of the columns of a plain table; empty for a view, a virtual table or none at all: those may compute
        without end.
        """
        found = self._connection.execute(
            "select sql from sqlite_master where type = 'table' and name = ?", (table,)
        ).fetchone()
        if found is None or not str(found[0]).lstrip().lower().startswith("create table"):
            return set()
        return {row[1] for row in self._connection.execute(f"pragma table_info({table})")}

    def rows(self, statement: str, *values: object) -> Iterator[tuple]:
        """The rows of a statement, one by one."""
        self._asked = time.monotonic()
        for row in self._connection.execute(statement, values):
            yield row
            self._asked = time.monotonic()

    def one(self, statement: str, *values: object) -> tuple:
        """Its first row."""
        return next(self.rows(statement, *values))


@contextmanager
def open_database(path: Path) -> Iterator[Database]:
    """The file at ``path``. Raises UnreadableInput, also for what fails while it is read."""
    real = path.resolve()
    open_regular(real).close()
    address = f"file:{quote(str(real))}?mode=ro"
    connection = None
    try:
        try:
            connection = sqlite3.connect(address, uri=True, timeout=5)
            connection.execute("select 1 from sqlite_master limit 1").fetchone()
        except sqlite3.OperationalError:  # a read-only folder cannot hold the shared-memory file of a live database
            if connection is not None:
                connection.close()
            connection = sqlite3.connect(address + "&immutable=1", uri=True, timeout=5)
        connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
        yield Database(connection)
    except (
        sqlite3.Error,
        OverflowError,
        UnicodeDecodeError,
    ) as error:  # the last: SQLite's own message quotes the file
        raise UnreadableInput(
            f"{printable(path)}: SQLite cannot read it: {printable(error, 200)}. Copy the file while nothing writes to it."
        ) from None
    finally:
        if connection is not None:
            connection.close()


def stamp(path: Path) -> tuple:
    """What changes when somebody writes to the file or its log."""
    out = []
    for one in (path, path.with_name(path.name + "-wal")):
        try:
            found = one.stat()
        except OSError:
            continue
        out.append((found.st_size, found.st_mtime_ns))
    return tuple(out)
