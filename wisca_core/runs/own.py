"""The run folders this project writes: spec.json, append-only metrics.jsonl, status.json; comparisons hold many of
them.

The spec beside the metrics, or the nearest above them inside what was opened, is the run's configuration.
"""

import json
from pathlib import Path

from wisca_core.errors import UnreadableInput
from wisca_core.runs.file_reader import LineReader
from wisca_core.runs.json_rows import json_row
from wisca_core.runs.table import Run
from wisca_core.runs.tabular import RowBuffer, Tabular
from wisca_core.untrusted import open_regular, parse_json_object, printable, read_exactly

METRICS_FORMAT, METRICS_VERSION = "wisca-metrics", 1
MAX_SPEC_BYTES = 10 << 20


class OwnRun(LineReader):
    """One metrics.jsonl. A newer version is refused by name."""

    def _begin(self) -> None:
        super()._begin()
        asked = self._ask.step_column or "step"
        self._table = Tabular(self._out, self.source.run, asked, printable(self.source.path))
        self._rows = RowBuffer(self._table)
        spec = self._spec()
        if spec:
            self._out.config(
                self.source.run, {name: value for name, value in spec.items() if name not in ("format", "version")}
            )

    def _spec(self) -> dict | None:
        folder = self.source.path.parent
        while True:
            path = folder / "spec.json"
            if path.is_file():
                try:
                    with open_regular(path.resolve()) as file:
                        raw = read_exactly(file, min(path.stat().st_size, MAX_SPEC_BYTES), printable(path))
                    return parse_json_object(raw, printable(path), unique_keys=False)
                except UnreadableInput as error:
                    self._out.notes.append(str(error))
                    return None
            if folder == self.source.root or folder == folder.parent:
                return None
            folder = folder.parent

    def runs(self) -> tuple[Run, ...]:
        return self._out.runs("own", str(self.source.path.parent), self._table.usable, self._table.step_column)

    def _take(self, lines: list[bytes]) -> None:
        for line in lines:
            row = json_row(line)
            if row is None:
                self._out.damaged(len(line))
            elif "format" in row:
                check_version(row, self.source.path)
            else:
                self._rows.add(row)


def check_version(head: dict, path: Path) -> None:
    """Raises UnreadableInput where the first line of a metrics file is of another format or a newer version."""
    version = head.get("version")
    if head.get("format") != METRICS_FORMAT:
        raise UnreadableInput(
            f"{printable(path)}: begins with format {printable(head.get('format'), 60)!r}; expected {METRICS_FORMAT!r}."
        )
    if version != METRICS_VERSION:
        raise UnreadableInput(
            f"{printable(path)}: is {METRICS_FORMAT} version {printable(json.dumps(version), 40)}; this program reads "
            "version "
            f"{METRICS_VERSION}. "
            "Use the program that wrote it."
        )
