"""A JSON list of rows."""

from wisca_core.errors import UnreadableInput
from wisca_core.progress import Progress
from wisca_core.runs.collect import MemoryBudget, SourceRuns
from wisca_core.runs.growing import Growing
from wisca_core.runs.json_rows import whole_file
from wisca_core.runs.source import Ask, Source
from wisca_core.runs.table import Run
from wisca_core.runs.tabular import RowBuffer, Tabular
from wisca_core.untrusted import parse_json_object, printable


class JsonList:
    """It is read whole, and again where it changed."""

    def __init__(self, source: Source, room: MemoryBudget, ask: Ask = Ask()) -> None:
        self.source, self._room, self._ask = source, room, ask
        self._file = Growing(source.path)
        self._out, self._table = SourceRuns(room, source.run), None

    def advance(self, progress: Progress) -> bool:
        if not self._file.has_changed():
            return False
        self._out.release()
        self._out = SourceRuns(self._room, self.source.run)
        self._file = Growing(self.source.path)
        self._table = Tabular(self._out, self.source.run, self._ask.step_column, printable(self.source.path))
        content = whole_file(self._file)
        wrapped = parse_json_object(b'{"rows":' + content + b"}", printable(self.source.path), unique_keys=False)
        rows = wrapped["rows"]
        if not isinstance(rows, list):
            raise UnreadableInput(
                f"{printable(self.source.path)}: holds a JSON {type(rows).__name__}, expected a list of rows."
            )
        RowBuffer(self._table).add_all(rows)
        return True

    def runs(self) -> tuple[Run, ...]:
        usable, step = (self._table.usable, self._table.step_column) if self._table else ((), "")
        return self._out.runs("json", str(self.source.path), usable, step)
