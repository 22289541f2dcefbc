"""Foreign SQLite files, opened read-only: plain tables only, and no statement that never ends; and what their readers
have in common.
"""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from wisca_core.errors import UnreadableInput
from wisca_core.progress import Progress
from wisca_core.runs.collect import MemoryBudget, SourceRuns
from wisca_core.runs.source import Ask, Source
from wisca_core.runs.table import Run
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
            f"{printable(path)}: SQLite cannot read it: {printable(error, 200)}. Copy the file while nothing writes to "
            "it."
        ) from None
    finally:
        if connection is not None:
            connection.close()


class DatabaseReader:
    """The runs of one file whose table ``metrics`` only grows: each look reads the rows behind the last one,
    ``_last``.
    """

    def __init__(self, source: Source, room: MemoryBudget, ask: Ask = Ask()) -> None:
        self.source, self._room, self._ask = source, room, ask
        self._stamp: tuple = ()
        self._begin()

    def _begin(self) -> None:
        """As if nothing had been read yet."""
        self._out = SourceRuns(self._room, self.source.run)
        self._last = 0
        self._names: dict[str, str] = {}
        self._titles: set[str] = set()

    def advance(self, progress: Progress) -> bool:
        now = _stamp(self.source.path)
        if now == self._stamp:
            return False
        with open_database(self.source.path) as database:
            highest = database.one("select coalesce(max(rowid), 0) from metrics")[0]
            if highest < self._last:  # another database in its place
                self._out.release()
                self._begin()
            self._read(database, highest, progress)
        self._stamp = now
        return True

    def runs(self) -> tuple[Run, ...]:
        return self._out.runs(self.source.kind, str(self.source.path))

    def _read(self, database: Database, highest: int, progress: Progress) -> None:
        """Take what is new; ``highest``: the number of the last row."""
        raise NotImplementedError

    def _name(self, run_id: str, title: str) -> str:
        """What the run is called; runs of one title are told apart by the start of their ids."""
        if run_id not in self._names:
            self._names[run_id] = title if title not in self._titles else f"{title} ({run_id[:6]})"
            self._titles.add(self._names[run_id])
        return self._names[run_id]


def _stamp(path: Path) -> tuple:
    """What changes when somebody writes to the file or its log."""
    out = []
    for one in (path, path.with_name(path.name + "-wal")):
        try:
            found = one.stat()
        except OSError:
            continue
        out.append((found.st_size, found.st_mtime_ns))
    return tuple(out)
