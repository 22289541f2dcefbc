"""What the readers of growing files have in common: each look reads on where the last one ended, or from the start
where a file was replaced.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

from wisca_core.errors import UnreadableInput
from wisca_core.progress import Progress
from wisca_core.runs.collect import MemoryBudget, SourceRuns
from wisca_core.runs.growing import PIECE_BYTES, Growing, Lines, Replaced
from wisca_core.runs.source import Ask, Source
from wisca_core.runs.table import Run
from wisca_core.runs.tabular import RowBuffer, Tabular
from wisca_core.untrusted import parse_yaml, printable, read_regular

MAX_SETTINGS_BYTES = 1 << 20


class FileReader:
    """Reads one file in pieces. A reader of its kind says what ``_begin`` starts with and what ``_consume`` takes of a
    piece; named cells go through ``_table``, rows that it hands over one by one wait in ``_rows``. One of several files
    says which they are and how each is read.
    """

    piece_bytes = PIECE_BYTES
    _table: Tabular | None = None
    _rows: RowBuffer | None = None

    def __init__(self, source: Source, room: MemoryBudget, ask: Ask = Ask()) -> None:
        self.source, self._room, self._ask = source, room, ask
        self._begin()

    def _begin(self) -> None:
        """As if nothing had been read yet."""
        self._out = SourceRuns(self._room, self._name_of_run())
        self._file = Growing(self.source.path, self.piece_bytes)

    def _settings_in(self, path: Path) -> dict[str, object]:
        """The settings of a YAML file beside the values, none where there is no such file. Where it cannot be read
        (Lightning may write Python objects, which are never made) it is said: runs are pooled by what is known of them.
        """
        if not path.exists():
            return {}
        try:
            content = parse_yaml(read_regular(path, MAX_SETTINGS_BYTES), f"{path.name} beside it")
        except (UnreadableInput, OSError) as error:
            self._out.notes.append(f"settings are passed over: {error}")
            return {}
        return content if isinstance(content, dict) else {}

    def _name_of_run(self) -> str:
        return self.source.run

    def _tabular(self, **more) -> Tabular:
        """Over what the file gives; ``more``: of Tabular."""
        return Tabular(self._out, self.source.run, self._ask.step_column, printable(self.source.path), **more)

    def runs(self) -> tuple[Run, ...]:
        table = self._table
        of_table = (table.usable, table.step_column, table.remarks()) if table else ()
        return self._out.runs(self.source.kind, str(self.source.path), *of_table)

    def advance(self, progress: Progress) -> bool:
        changed = False
        try:
            for file in self._growing():
                if file.has_changed():
                    changed = True
                    for done, size in self._read(file):
                        progress(f"reading {printable(file.path.name, 60)}", done, size)
        except Replaced:
            self._out.release()
            self._begin()
            return self.advance(progress)
        if changed and self._rows is not None:
            self._rows.settle()
        return changed

    def _growing(self) -> Iterable[Growing]:
        return (self._file,)

    def _read(self, file: Growing) -> Iterator[tuple[int, int]]:
        """Take what is new; yields as Growing.pieces does."""
        yield from file.pieces(self._consume)

    def _consume(self, data: bytes, at_end: bool) -> int:
        """Take what is whole in ``data``; how many of its bytes are done with. Raises Replaced, UnreadableInput."""
        raise NotImplementedError


class LineReader(FileReader):
    """The same for a file of lines, which go to ``_take``."""

    def _begin(self) -> None:
        super()._begin()
        self._lines = Lines(self._file, self._ask.live)

    def _read(self, file: Growing) -> Iterator[tuple[int, int]]:
        yield from self._lines.read(self._take)

    def _take(self, lines: list[bytes]) -> None:
        """Whole lines, none of them empty."""
        raise NotImplementedError
