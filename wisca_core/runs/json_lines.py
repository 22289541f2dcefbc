"""JSON lines: one object a line."""

from wisca_core.runs.file_reader import LineReader
from wisca_core.runs.json_rows import json_row
from wisca_core.runs.table import Run
from wisca_core.runs.tabular import RowBuffer


class JsonLines(LineReader):
    """Lines that are no object are counted; NaN and Infinity are read as Python writes them."""

    def _begin(self) -> None:
        super()._begin()
        self._table = self._tabular()
        self._rows = RowBuffer(self._table)

    def runs(self) -> tuple[Run, ...]:
        if self._lines.n_too_long:
            self._out.damaged(n=self._lines.n_too_long)
            self._lines.n_too_long = 0
        return super().runs()

    def _take(self, lines: list[bytes]) -> None:
        for line in lines:
            row = json_row(line)
            if row is None:
                if line.strip():
                    self._out.damaged(len(line))
            else:
                self._rows.add(row)
