"""DVCLive's folder: ``plots/metrics/NAME.tsv`` a metric (columns timestamp where asked for, step, value) and
``params.yaml`` (dvclive/plots/metric.py, dvclive/live.py); no dvclive needed.
"""

import math
from pathlib import Path

from wisca_core.runs.metric_files import MetricFiles, Point, files_in
from wisca_core.runs.tabular import plain_number

METRICS = Path("plots", "metrics")


def is_run_folder(folder: Path, names: set[str]) -> bool:
    """Whether a folder with these names in it is what DVCLive writes."""
    return "plots" in names and next(files_in(folder / METRICS, ".tsv"), None) is not None


class DvcLive(MetricFiles):
    """One run."""

    top, ending = METRICS, ".tsv"

    def _begin(self) -> None:
        self._columns: dict[str, list[str]] = {}
        super()._begin()

    def _settings(self) -> dict[str, object]:
        return {str(name): value for name, value in self._settings_in(self.source.path / "params.yaml").items()}

    def _is_header(self, metric: str, line: str) -> bool:
        if metric in self._columns:
            return False
        self._columns[metric] = line.rstrip("\r\n").split("\t")
        return True

    def _point(self, metric: str, line: str) -> Point | None:
        row = dict(zip(self._columns[metric], line.rstrip("\r\n").split("\t")))
        when = plain_number(row.pop("timestamp", ""))
        step = plain_number(row.pop("step", ""))
        value = plain_number(next(iter(row.values()), ""))
        if step is None or value is None:
            return None
        return Point(step, value, math.nan if when is None else when / 1000)
