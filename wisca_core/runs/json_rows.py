"""What the readers of JSON have in common: an object out of a line, and a file of bounded size that is read whole."""

import json

from wisca_core.errors import UnreadableInput
from wisca_core.progress import Progress
from wisca_core.runs.collect import MemoryBudget, SourceRuns
from wisca_core.runs.growing import Growing
from wisca_core.runs.source import Ask, Source
from wisca_core.runs.table import Run
from wisca_core.runs.tabular import Tabular
from wisca_core.untrusted import printable

MAX_JSON_BYTES = 512 << 20


def json_row(line: bytes | str) -> dict | None:
    """The JSON object in a line, None for anything else."""
    try:
        row = json.loads(line.decode("utf-8", "replace") if isinstance(line, bytes) else line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def json_value(text: str) -> object:
    """What the JSON says; text that is none stays text."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


class WholeJson:
    """One file that is read whole, and again where it changed."""

    def __init__(self, source: Source, room: MemoryBudget, ask: Ask = Ask()) -> None:
        self.source, self._room, self._ask = source, room, ask
        self._file, self._out, self._table = Growing(source.path), SourceRuns(room, source.run), None

    def _fill(self, content: bytes, out: SourceRuns, what: str) -> Tabular:
        """The rows in ``content``, handed to a table over ``out``. Raises UnreadableInput (beginning with ``what``)."""
        raise NotImplementedError

    def advance(self, progress: Progress) -> bool:
        if not self._file.has_changed():
            return False
        progress(f"reading {printable(self.source.path.name, 60)}", 0, 0)
        file, out = Growing(self.source.path), SourceRuns(self._room, self.source.run)
        table = self._fill(_whole_file(file), out, printable(self.source.path))
        self._out.release()
        self._file, self._out, self._table = file, out, table
        return True

    def runs(self) -> tuple[Run, ...]:
        usable, step = (self._table.usable, self._table.step_column) if self._table else ((), "")
        return self._out.runs(self.source.kind, str(self.source.path), usable, step)


def _whole_file(file: Growing) -> bytes:
    """All bytes of a file of at most MAX_JSON_BYTES."""
    parts: list[bytes] = []
    size = 0

    def consume(data: bytes, at_end: bool) -> int:
        nonlocal size
        parts.append(bytes(data))
        size += len(data)
        if size > MAX_JSON_BYTES:
            raise UnreadableInput(
                f"{printable(file.path)}: larger than {MAX_JSON_BYTES >> 20} MB, which is the most that is read of a "
                "JSON "
                f"file."
            )
        return len(data)

    for _ in file.pieces(consume):
        pass
    return b"".join(parts)
