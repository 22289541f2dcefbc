"""MLflow's two local stores: the database ``mlflow.db`` (its default since 3.7) and the older folder ``mlruns``. Each
run with its parameters, steps as logged; no mlflow needed.

Database: tables runs, params, metrics and experiments (mlflow/store/tracking/dbmodels/models.py). Folder:
``mlruns/EXPERIMENT/RUN/{meta.yaml, params/NAME, metrics/NAME}``, a line "time value step" a value
(mlflow/store/tracking/file_store.py). Deleted runs are left out and counted.
"""

import math
import os
from pathlib import Path

from wisca_core.errors import UnreadableInput
from wisca_core.progress import Progress
from wisca_core.runs.metric_files import MetricFiles, Point, files_in
from wisca_core.runs.sqlite_file import Database, DatabaseReader
from wisca_core.runs.tabular import plain_number
from wisca_core.untrusted import open_regular, printable

_TABLES = {
    "runs": {"run_uuid", "name", "lifecycle_stage", "experiment_id"},
    "metrics": {"key", "value", "timestamp", "run_uuid", "step", "is_nan"},
    "params": {"key", "value", "run_uuid"},
    "experiments": {"experiment_id", "name"},
}
# SQL has no infinity: MLflow stores the largest float for it.
_INFINITE = 1.7976931348623157e308
MAX_PARAMETER_BYTES = 64 << 10


def is_mlflow(database: Database) -> bool:
    """Whether the SQLite file has MLflow's tables."""
    return all(columns <= database.columns(table) for table, columns in _TABLES.items())


def is_run_folder(names: set[str]) -> bool:
    """Whether a folder with these names in it is a run of the folder store."""
    return "meta.yaml" in names and {"params", "tags"} <= names and bool(names & {"metrics", "artifacts"})


def name_of(folder: Path) -> str:
    """What a run of the folder store is called, "" for one that was deleted."""
    if _yaml_value(folder / "meta.yaml", "lifecycle_stage") == "deleted":
        return ""
    name = _small(folder / "tags" / "mlflow.runName") or _yaml_value(folder / "meta.yaml", "run_name") or folder.name
    experiment = _yaml_value(folder.parent / "meta.yaml", "name")
    return f"{experiment}/{name}" if experiment and experiment != "Default" else name


def _plain(text: object) -> object:
    """A parameter as it was before MLflow made it text."""
    if not isinstance(text, str):
        return text
    if text in ("True", "False", "None"):
        return {"True": True, "False": False, "None": None}[text]
    number = plain_number(text)
    if number is None:
        return text
    return int(number) if number == math.floor(number) and text.lstrip("+-").isdigit() else number


class MlflowDatabase(DatabaseReader):
    """All runs of one mlflow.db."""

    def _read(self, database: Database, highest: int, progress: Progress) -> None:
        deleted = set()
        found = database.rows(
            "select r.run_uuid, r.name, r.lifecycle_stage, e.name from runs r left join experiments e "
            "on r.experiment_id = e.experiment_id order by r.rowid"
        )
        for number, name, stage, experiment in found:
            if stage == "deleted":
                deleted.add(number)
            else:
                title = f"{experiment}/{name or number}" if experiment not in (None, "Default") else f"{name or number}"
                self._name(str(number), title)
        if deleted:
            n = len(deleted)
            self._out.notes[:] = [f"{n:,} deleted {'run is' if n == 1 else 'runs are'} left out."]
        settings: dict[str, dict[str, object]] = {}
        for number, key, value in database.rows("select run_uuid, key, value from params"):
            settings.setdefault(number, {})[str(key)] = _plain(value)
        for number, values in settings.items():
            if str(number) in self._names:
                self._out.config(self._names[str(number)], values)
        # a client logs from several threads at once: rows lie in the order in which those came through
        statement = (
            "select run_uuid, key, value, timestamp, step, is_nan from metrics where rowid > ? and rowid <= ? "
            "order by timestamp, rowid"
        )
        n_new = highest - self._last
        found = database.rows(statement, self._last, highest)
        self._last = highest
        for n, (number, key, value, when, step, is_nan) in enumerate(found):
            if n % 20_000 == 0:
                progress(f"reading {printable(self.source.path.name, 60)}", n, n_new)
            if str(number) not in self._names:
                self._out.damaged(n=int(number not in deleted))
            elif not isinstance(step, (int, float)):
                self._out.counts["no_step"] += 1
            elif isinstance(value, (int, float)) or is_nan:
                number_ = math.nan if is_nan else float(value)
                if abs(number_) >= _INFINITE:
                    number_ = math.copysign(math.inf, number_)
                wall = when / 1000 if isinstance(when, (int, float)) else math.nan
                self._out.point(self._names[str(number)], str(key), float(step), number_, wall)
            else:
                self._out.text(str(key))


class MlflowFolder(MetricFiles):
    """One run of the folder store."""

    top = Path("metrics")

    def _name_of_run(self) -> str:
        return name_of(self.source.path) or self.source.path.name

    def _settings(self) -> dict[str, object]:
        top = self.source.path / "params"
        return {path.relative_to(top).as_posix(): _plain(_small(path)) for path in files_in(top)}

    def _point(self, metric: str, line: str) -> Point | None:
        parts = line.split()
        value = plain_number(parts[1]) if len(parts) in (2, 3) else None
        when, step = (
            (plain_number(parts[0]), plain_number(parts[2]) if len(parts) == 3 else 0.0) if parts else (None, None)
        )
        return None if value is None or step is None else Point(step, value, math.nan if when is None else when / 1000)


def _small(path: Path) -> str:
    """The text of a small file, "" where there is none."""
    try:
        with open_regular(Path(os.path.realpath(path))) as file:
            return (file.read(MAX_PARAMETER_BYTES) or b"").decode("utf-8", "replace").strip()
    except (UnreadableInput, OSError):
        return ""


def _yaml_value(path: Path, key: str) -> str:
    """The plain value of a key at the top of a YAML file of MLflow's; nothing in it is interpreted."""
    for line in _small(path).splitlines():
        name, colon, value = line.partition(": ")
        if name == key and colon:
            return value.strip().strip("'\"")
    return ""
