"""SwanLab's local run files (run-ID.swanlab, any mode) and the settings beside them (files/config.yaml); no swanlab
needed (swanlab/sdk/internal/core_python/store of version 0.10).
"""

import math

from wisca_core.runs.record_log import RecordLog, text
from wisca_core.runs.table import Run


class SwanLab(RecordLog):
    """One .swanlab file (":SWL", 0xE1D6, version 2), one run."""

    header, expected, record = b":SWL\xd6\xe1\x02", "a run-*.swanlab file of version 2", "SwanLabRecord"

    def _begin(self) -> None:
        super()._begin()
        self._run = self.source.run

    def runs(self) -> tuple[Run, ...]:
        self._out.config(self._run, self._settings())
        return super().runs()

    def _take(self, found) -> None:
        if found.HasField("start"):
            self._run = text(found.start.name) or self._run
        elif found.HasField("scalar"):
            one = found.scalar
            wall = one.timestamp.seconds + one.timestamp.nanos / 1e9 if one.HasField("timestamp") else math.nan
            self._out.point(self._run, text(one.key), one.step, one.value.number, wall)
        elif found.HasField("media"):
            self._out.counts["not_scalar"] += 1

    def _settings(self) -> dict[str, object]:
        """SwanLab keeps each as ``{desc, sort, value}``."""
        found = self._settings_in(self.source.path.parent / "files" / "config.yaml").items()
        return {str(name): one["value"] for name, one in found if isinstance(one, dict) and "value" in one}
