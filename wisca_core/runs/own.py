"""The run folders this project writes: spec.json, append-only metrics.jsonl, status.json; comparisons hold many of
them.

The spec beside the metrics, or the nearest above them inside what was opened, is the run's configuration.
"""

import json
from pathlib import Path

from wisca_core.checkpoint.untrusted import open_regular, parse_json_object, read_exactly, shown
from wisca_core.errors import UnreadableInput
from wisca_core.progress import Progress
from wisca_core.runs.collect import Collected, Room
from wisca_core.runs.growing import Growing, Lines, Replaced
from wisca_core.runs.source import Ask, Source
from wisca_core.runs.table import Run
from wisca_core.runs.tables import Rows, json_row

METRICS_FORMAT, METRICS_VERSION = "wisca-metrics", 1
MAX_SPEC_BYTES = 10 << 20


class Own:
    """One metrics.jsonl. A newer version is refused by name."""

    def __init__(self, source: Source, room: Room, ask: Ask = Ask()) -> None:
        self.source, self._room, self._ask = source, room, ask
        self._begin()

    def _begin(self) -> None:
        self._out = Collected(self._room, self.source.run)
        self._file = Growing(self.source.path)
        self._lines = Lines(self._file, self._ask.live)
        self._rows = Rows(self._out, self.source.run, self._ask.step_column or "step", shown(self.source.path))
        self._headed = False
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
                        raw = read_exactly(file, min(path.stat().st_size, MAX_SPEC_BYTES), shown(path))
                    return parse_json_object(raw, shown(path), unique_keys=False)
                except UnreadableInput as error:
                    self._out.notes.append(str(error))
                    return None
            if folder == self.source.root or folder == folder.parent:
                return None
            folder = folder.parent

    def advance(self, progress: Progress) -> bool:
        if not self._file.changed():
            return False
        try:
            for done, size in self._lines.read(self._take):
                progress(f"reading {shown(self.source.path.name, 60)}", done, size)
        except Replaced:
            self._out.release()
            self._begin()
            return self.advance(progress)
        self._rows.settle()
        return True

    def runs(self) -> tuple[Run, ...]:
        return self._out.runs(
            "own", str(self.source.path.parent), tuple(self._rows.columns), self._rows.step_column or ""
        )

    def _take(self, lines: list[bytes]) -> None:
        for line in lines:
            row = json_row(line)
            if row is None:
                self._out.counts["damaged"] += 1
                self._out.counts["damaged_bytes"] += len(line)
            elif "format" in row:
                check_version(row, self.source.path)
            else:
                self._rows.add(row)


def check_version(head: dict, path: Path) -> None:
    """Raises UnreadableInput where the first line of a metrics file is of another format or a newer version."""
    version = head.get("version")
    if head.get("format") != METRICS_FORMAT:
        raise UnreadableInput(
            f"{shown(path)}: begins with format {shown(head.get('format'), 60)!r}; expected {METRICS_FORMAT!r}."
        )
    if version != METRICS_VERSION:
        raise UnreadableInput(
            f"{shown(path)}: is {METRICS_FORMAT} version {shown(json.dumps(version), 40)}; this program reads version "
            f"{METRICS_VERSION}. "
            "Use the program that wrote it."
        )
