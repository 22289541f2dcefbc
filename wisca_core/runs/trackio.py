"""trackio's SQLite file: one project, many runs. Opened read-only; rows that are new are read by their number."""

from dataclasses import replace

from wisca_core.progress import Progress
from wisca_core.runs.columns import seconds
from wisca_core.runs.json_rows import json_row
from wisca_core.runs.sqlite_file import Database, DatabaseReader
from wisca_core.runs.table import Run
from wisca_core.runs.tabular import RowBuffer, Tabular
from wisca_core.untrusted import printable

MAX_CELL = 4 << 20
# trackio's own counter of calls, as a column of its rows
OWN = "_step"
# How trackio spells in JSON what JSON cannot hold.
_SPELLED = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}


def is_trackio(database: Database) -> bool:
    """Whether the SQLite file has trackio's table of metrics."""
    return {"run_name", "step", "metrics", "timestamp"} <= database.columns("metrics")


class Trackio(DatabaseReader):
    """The runs of one project file."""

    def _begin(self) -> None:
        super()._begin()
        self._rows: dict[str, RowBuffer] = {}

    def runs(self) -> tuple[Run, ...]:
        tables = {name: rows.table for name, rows in self._rows.items()}
        columns = tuple(dict.fromkeys(name for table in tables.values() for name in table.usable))
        found = self._out.runs("trackio", str(self.source.path), columns)
        return tuple(
            replace(run, step_column=table.step_column, remarks=(*run.remarks, *table.remarks()))
            if (table := tables.get(run.name))
            else run
            for run in found
        )

    def _read(self, database: Database, highest: int, progress: Progress) -> None:
        columns = database.columns("metrics")
        id_column = "run_id" if "run_id" in columns else "run_name"
        if "config" in database.columns("configs"):
            key = "run_id" if "run_id" in database.columns("configs") else "run_name"
            for run_id, name, text in database.rows(f"select {key}, run_name, config from configs"):
                config = _json(text)
                if config is not None:
                    own = {k: v for k, v in config.items() if not str(k).startswith("_")}
                    self._out.config(self._of_project(run_id, name), own)
        query = (
            f"select rowid, {id_column}, run_name, step, timestamp, metrics from metrics where rowid > ? order by rowid"
        )
        for n, (number, run_id, name, step, when, text) in enumerate(database.rows(query, self._last)):
            if n % 5000 == 0:
                progress(f"reading {printable(self.source.path.name, 60)}", number, highest)
            self._last = number
            row = _json(text)
            if row is None:
                self._out.damaged()
            elif not isinstance(step, (int, float)):
                self._out.counts["no_step"] += 1
            elif self._out.takes(called := self._of_project(run_id, name)):
                row = {
                    key: _SPELLED.get(value, value) if isinstance(value, str) else value for key, value in row.items()
                }
                self._of(called).add(row | {OWN: step, "_timestamp": seconds(when)})
        for rows in self._rows.values():
            rows.settle()

    def _of(self, name: str) -> RowBuffer:
        if name not in self._rows:
            table = Tabular(
                self._out,
                name,
                self._ask.step_column,
                f"{printable(self.source.path)}, {printable(name)}",
                key=False,
                own=OWN,
            )
            self._rows[name] = RowBuffer(table)
        return self._rows[name]

    def _of_project(self, run_id: object, name: object) -> str:
        return self._name(str(run_id), f"{self.source.run}/{name}")


def _json(text: object) -> dict | None:
    return json_row(text) if isinstance(text, (str, bytes)) and len(text) <= MAX_CELL else None
