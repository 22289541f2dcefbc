"""What was read from logs: runs with their series, and the one long table they make.

A run is one training (one seed, one configuration); a series is one metric of one run, in the order in which it was
logged.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np
import pandas as pd

from wisca_core.runs.distributions import Distribution

# The long table: column -> meaning.
COLUMNS = {
    "run": "name of the run",
    "step": "optimiser step, or whatever the log counts in (a whole number where every step of the series is one)",
    "metric": "name as the tool wrote it",
    "value": "float64; NaN and infinities are kept",
    "wall_time": "seconds since 1970, or since the start where the log only has that; NaN where it has none",
    "source": "file or folder it was read from",
}


@dataclass(frozen=True, eq=False)
class Series:
    """One metric of one run, in pieces as they were read; nothing is sorted, joined or dropped.

    ``chunks``: (step, value, wall_time) of float64 arrays of equal length, read-only; wall_time is None where the log
    has none.
    """

    run: str
    metric: str
    chunks: tuple[tuple[np.ndarray, np.ndarray, np.ndarray | None], ...]
    n_nan: int = 0
    n_infinite: int = 0
    n_repeated: int = 0  # points at the step of the point before, with another value
    n_back: int = 0  # points at a smaller step than the point before
    first_back: tuple[float, float] | None = None  # the first such pair of steps

    def __len__(self) -> int:
        return sum(len(step) for step, _, _ in self.chunks)

    @property
    def step(self) -> np.ndarray:
        """float64 (n,)."""
        return _concatenate([step for step, _, _ in self.chunks])

    @property
    def value(self) -> np.ndarray:
        """float64 (n,)."""
        return _concatenate([value for _, value, _ in self.chunks])

    @property
    def wall_time(self) -> np.ndarray:
        """Seconds, float64 (n,), NaN where unknown."""
        return _concatenate([np.full(len(step), np.nan) if wall is None else wall for step, _, wall in self.chunks])


def _concatenate(parts: list[np.ndarray]) -> np.ndarray:
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts) if parts else np.zeros(0)


@dataclass(frozen=True, eq=False)
class Run:
    """One run as one log tells it.

    ``config``: dotted name -> plain value (text, number, bool or None). ``columns``: what could be named as the step
    column, tables only; ``step_column``: what was taken, "" where rows were counted. ``distributions``: histograms by
    name. ``also``: kinds of other logs of the same training that were joined to it. ``counts``: what was read and what
    was not, keys of ``collect.COUNTS``; ``remarks``: the same and everything else worth knowing, in sentences, names in
    them still foreign.
    """

    name: str
    kind: str  # a key of recognise.KINDS
    source: str
    series: Mapping[str, Series]
    config: Mapping[str, object]
    counts: Mapping[str, int]
    remarks: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    step_column: str = ""
    distributions: Mapping[str, Distribution] = field(default_factory=dict)
    also: tuple[str, ...] = ()

    def __len__(self) -> int:
        return sum(len(series) for series in self.series.values())

    def with_name(self, name: str) -> "Run":
        """The same run under another name."""
        if name == self.name:
            return self
        return replace(self, name=name, series=_of_run(self.series, name))

    def over(self, metric: str) -> "Run":
        """The same run with the values of ``metric`` as its steps, each of those at the step at which it was logged;
        points where it was not logged are left out, and counted in a remark.
        """
        if metric not in self.series:
            return self
        at, to = self.series[metric].step, self.series[metric].value
        order = np.argsort(at, kind="stable")
        at, to = at[order], to[order]
        out, n_lost = {}, 0
        for name, one in self.series.items():
            if name == metric:
                continue
            place = np.searchsorted(at, one.step, side="right") - 1
            known = (place >= 0) & (at[np.maximum(place, 0)] == one.step) & np.isfinite(to[np.maximum(place, 0)])
            n_lost += int(len(known) - known.sum())
            if known.any():
                chunk = (to[place[known]], one.value[known], one.wall_time[known])
                out[name] = replace(one, chunks=(chunk,), n_repeated=0, n_back=0, first_back=None)
        remark = f"drawn over {metric!r}, as was asked; {n_lost:,} values at steps without it are left out."
        return replace(self, series=MappingProxyType(out), remarks=(*self.remarks, remark), step_column=metric)


def _of_run(series: Mapping[str, Series], run: str) -> Mapping[str, Series]:
    return MappingProxyType({metric: replace(one, run=run) for metric, one in series.items()})


def metrics(runs: Iterable[Run]) -> list[str]:
    """Names of all metrics, those that most runs have first, then in the order of first appearance."""
    count: dict[str, int] = {}
    for run in runs:
        for metric in run.series:
            count[metric] = count.get(metric, 0) + 1
    return sorted(count, key=lambda metric: -count[metric])


def long_table(runs: Iterable[Run]) -> pd.DataFrame:
    """All points of ``runs``, columns COLUMNS: by run, metric, and within a series as logged."""
    frames = list(long_pieces(runs, 1 << 62))
    if not frames:
        return pd.DataFrame(
            {name: pd.Series(dtype="float64" if name in ("step", "value", "wall_time") else "str") for name in COLUMNS}
        )
    whole = all((frame["step"] == np.floor(frame["step"])).all() for frame in frames)
    out = pd.concat(frames, ignore_index=True)
    return out.astype({"step": "int64"}) if whole and (out["step"].abs() < 2**53).all() else out


def long_pieces(runs: Iterable[Run], most_rows: int = 200_000) -> Iterable[pd.DataFrame]:
    """The long table in pieces of at most ``most_rows`` rows, for writing what does not fit in memory."""
    for run in runs:
        for metric, series in run.series.items():
            for step, value, wall in series.chunks:
                for at in range(0, len(step), most_rows):
                    part = slice(at, at + most_rows)
                    steps = np.array(step[part])
                    yield pd.DataFrame(
                        {
                            "run": run.name,
                            "step": steps,
                            "metric": metric,
                            "value": np.array(value[part]),
                            "wall_time": np.full(len(steps), np.nan) if wall is None else np.array(wall[part]),
                            "source": run.source,
                        }
                    )
