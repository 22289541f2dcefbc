"""A JSON list of rows."""

from wisca_core.errors import UnreadableInput
from wisca_core.progress import Progress
from wisca_core.runs.collect import Collected, MemoryBudget
from wisca_core.runs.growing import Growing
from wisca_core.runs.json_rows import Rows, whole_file
from wisca_core.runs.source import Ask, Source
from wisca_core.runs.table import Run
from wisca_core.untrusted import parse_json_object, shown


class JsonList:
    """It is read whole, and again where it changed."""

    def __init__(self, source: Source, room: MemoryBudget, ask: Ask = Ask()) -> None:
        self.source, self._room, self._ask = source, room, ask
        self._file = Growing(source.path)
        self._out, self._rows = Collected(room, source.run), None

    def advance(self, progress: Progress) -> bool:
        if not self._file.changed():
            return False
        self._out.release()
        self._out = Collected(self._room, self.source.run)
        self._file = Growing(self.source.path)
        self._rows = Rows(self._out, self.source.run, self._ask.step_column, shown(self.source.path))
        content = whole_file(self._file)
        wrapped = parse_json_object(b'{"rows":' + content + b"}", shown(self.source.path), unique_keys=False)
        rows = wrapped["rows"]
        if not isinstance(rows, list):
            raise UnreadableInput(
                f"{shown(self.source.path)}: holds a JSON {type(rows).__name__}, expected a list of rows."
            )
        self._rows.add_all(rows)
        return True

    def runs(self) -> tuple[Run, ...]:
        return self._out.runs("json", str(self.source.path), tuple(self._rows.columns), self._rows.step_column or "")
