"""Runs that keep a file a metric, a line a value: what MLflow's folder store and DVCLive have in common."""

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, NamedTuple

from wisca_core.progress import Progress
from wisca_core.runs.file_reader import FileReader
from wisca_core.runs.growing import Growing, Lines

MOST_FILES = 20_000


class Point(NamedTuple):
    """``time`` in seconds, NaN where it is not known."""

    step: float
    value: float
    time: float


class MetricFiles(FileReader):
    """One run in a folder; ``top``: where its metrics lie in it, each named by its path there."""

    top: ClassVar[Path]
    ending: ClassVar[str] = ""

    def _settings(self) -> dict[str, object]:
        raise NotImplementedError

    def _point(self, metric: str, line: str) -> Point | None:
        """None for a line that is damaged."""
        raise NotImplementedError

    def _is_header(self, metric: str, line: str) -> bool:
        return False

    def _begin(self) -> None:
        super()._begin()
        self._lines: dict[Path, Lines] = {}
        self._out.config(self._out.run, self._settings())

    def advance(self, progress: Progress) -> bool:
        return super().advance(progress) or not self._lines

    def _growing(self) -> Iterator[Growing]:
        for path in files_in(self.source.path / self.top, self.ending):
            if path not in self._lines:
                self._lines[path] = Lines(Growing(path), patient=True)
            yield self._lines[path].file

    def _read(self, file: Growing) -> Iterator[tuple[int, int]]:
        metric = file.path.relative_to(self.source.path / self.top).as_posix().removesuffix(self.ending)
        yield from self._lines[file.path].read(lambda found: self._take(metric, found))

    def _take(self, metric: str, lines: list[bytes]) -> None:
        points: list[Point] = []
        for line in lines:
            text = line.decode("utf-8", "replace")
            if self._is_header(metric, text):
                continue
            found = self._point(metric, text)
            if found is None:
                self._out.damaged(len(line))
            else:
                points.append(found)
        if not any(math.isnan(point.time) for point in points):
            points.sort(key=lambda point: point.time)  # a client that logs from several threads mixes up the lines
        for point in points:
            self._out.point(self._out.run, metric, point.step, point.value, point.time)


def files_in(folder: Path, ending: str = "") -> Iterator[Path]:
    """Regular files below a folder, sorted; a metric's name may have folders in it."""
    n = 0
    for place, inner, names in os.walk(folder):
        inner.sort()
        for name in sorted(names):
            n += 1
            if n > MOST_FILES:
                return
            path = Path(place) / name
            if name.endswith(ending) and path.is_file() and not path.is_symlink():
                yield path
