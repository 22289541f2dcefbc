"""Where a reader puts what it finds: points by run and metric, counts of what was skipped, and large columns moved to
disk.

Columns stay in memory up to a budget shared by everything that is open; beyond it they move into one unnamed file under
WISCA_HOME and are mapped, so that a log of many gigabytes costs address space, not memory. The file has no name: it is
gone with the process.
"""

import mmap
import os
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

from wisca_core import storage
from wisca_core.errors import OutputRefused, WiscaError
from wisca_core.runs.distributions import MOST_KEPT, Distribution
from wisca_core.runs.table import Run, Series
from wisca_core.untrusted import printable

# What is counted of every log: key -> (one, many), with the number in front.
COUNTS = {
    "used": ("value was read", "values were read"),
    "histogram": ("histogram was read", "histograms were read"),
    "damaged": ("damaged record was skipped", "damaged records were skipped"),
    "damaged_bytes": ("byte of it was skipped", "bytes were skipped with them"),
    "cut": ("record at the end is cut short (still being written, or lost)", "records at the end are cut short"),
    "text": ("value is text and was skipped", "values are text and were skipped"),
    "number_as_text": ("number was written as text", "numbers were written as text"),
    "not_scalar": (
        "entry is no single number (image, text, list) and was skipped",
        "entries are no single numbers (images, texts, lists) and were skipped",
    ),
    "no_step": ("row has no step and was skipped", "rows have no step and were skipped"),
    "header": ("repeated header line was passed over", "repeated header lines were passed over"),
    "other_lines": ("line is not a measurement", "lines are not measurements"),
}

# A reader with points one by one hands them over in pieces of this many.
_ROWS_A_PIECE = 1 << 16
MEMORY_BUDGET_BYTES = 256_000_000
MOST_METRICS = 20_000
MOST_RUNS = 2_000  # of one log; every page and table of more is of no use
MOST_CONFIG = 2_000
MAX_NAME = 300


class MemoryBudget:
    """The memory that everything open shares. ``n_bytes`` of columns are in memory, ``on_disk`` in the unnamed file."""

    def __init__(self, budget: int = MEMORY_BUDGET_BYTES) -> None:
        self.budget = budget
        self.n_bytes = 0
        self.on_disk = 0
        self._file = None

    def keep(self, column: np.ndarray) -> np.ndarray:
        """``column`` (float64), read-only: itself, or its copy on disk once the budget is used up."""
        if self.n_bytes + column.nbytes <= self.budget or column.nbytes < mmap.ALLOCATIONGRANULARITY:
            self.n_bytes += column.nbytes
            column.flags.writeable = False
            return column
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=storage.folder("measurements"), prefix=".log-columns-")
            at = -(-self.on_disk // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
            data, done = memoryview(np.ascontiguousarray(column)).cast("B"), 0
            while done < len(data):
                done += os.pwrite(self._file.fileno(), data[done:], at + done)
            self.on_disk = at + len(data)
            mapped = mmap.mmap(self._file.fileno(), len(data), access=mmap.ACCESS_READ, offset=at)
        except (OSError, WiscaError) as error:
            raise OutputRefused(
                f"the logs need more than {self.budget // 10**6} MB of memory and cannot be kept on disk under "
                f"WISCA_HOME: "
                f"{getattr(error, 'strerror', None) or error}. Free some space, or open fewer logs at once."
            ) from error
        return np.frombuffer(mapped, dtype=np.float64)


@dataclass
class _Column:
    chunks: list = field(default_factory=list)
    n: int = 0
    n_nan: int = 0
    n_infinite: int = 0
    n_repeated: int = 0
    n_back: int = 0
    first_back: tuple[float, float] | None = None
    last: float | None = None
    last_value: float = 0.0
    steps: list = field(default_factory=list)
    values: list = field(default_factory=list)
    walls: list = field(default_factory=list)

    def add(self, step: np.ndarray, value: np.ndarray, wall: np.ndarray | None) -> None:
        if not len(step):
            return
        self.chunks.append((step, value, wall))
        self.n += len(step)
        finite = np.isfinite(value)
        if not finite.all():
            nan = int(np.isnan(value).sum())
            self.n_nan += nan
            self.n_infinite += int((~finite).sum()) - nan
        before = self.last if self.last is not None else -np.inf
        if step[0] <= before or not (step[1:] > step[:-1]).all():
            follows = np.concatenate([[before], step])
            gap = np.diff(follows)
            # said again with the same value, as trainers do with their epoch, it is nothing to speak of
            values = np.concatenate([[self.last_value], value])
            self.n_repeated += int(((gap == 0) & (values[1:] != values[:-1])).sum())
            back = np.flatnonzero(gap < 0)
            self.n_back += len(back)
            if len(back) and self.first_back is None:
                self.first_back = (float(follows[back[0]]), float(follows[back[0] + 1]))
        self.last, self.last_value = float(step[-1]), float(value[-1])


class SourceRuns:
    """What one source, called ``run`` where it names no run itself, gave so far. ``counts`` and ``notes`` are filled by
    the reader.
    """

    def __init__(self, room: MemoryBudget, run: str) -> None:
        self.room, self.run = room, run
        self.counts: Counter[str] = Counter()
        self.notes: list[str] = []
        self.texts: Counter[str] = Counter()  # where text was met: metric -> how often
        self.configs: dict[str, dict[str, object]] = {}
        self._columns: dict[str, dict[str, _Column]] = {}
        self._distributions: dict[str, dict[str, tuple[list[float], list[np.ndarray]]]] = {}
        self._taken: set[str] = set()
        self._n_metrics = 0
        self._pending = 0
        self._in_memory = 0

    def release(self) -> None:
        """Give its memory back to the room: what it holds is about to be dropped."""
        self.room.n_bytes -= self._in_memory
        self._in_memory = 0

    def add(self, run: str, metric: str, step: np.ndarray, value: np.ndarray, wall: np.ndarray | None = None) -> None:
        """Points in the order logged: float64 arrays of equal length, from ``keep``, not changed afterwards."""
        column = self._column(run, metric)
        if column is not None:
            column.add(step, value, wall)
            self.counts["used"] += len(step)

    def takes(self, run: str) -> bool:
        """Whether what belongs to ``run`` is kept: that of the first MOST_RUNS is, of the others it is said that it is
        not.
        """
        if run not in self._taken:
            if len(self._taken) >= MOST_RUNS:
                note = f"more than {MOST_RUNS:,} runs in one log; the others are left out."
                if note not in self.notes[-1:]:
                    self.notes.append(note)
                return False
            self._taken.add(run)
        return True

    def keep(self, column: np.ndarray) -> np.ndarray:
        """A column for ``add``; columns that several series share are kept once."""
        before = self.room.n_bytes
        kept = self.room.keep(np.ascontiguousarray(column, dtype=np.float64))
        self._in_memory += self.room.n_bytes - before
        return kept

    def point(self, run: str, metric: str, step: float, value: float, wall: float = float("nan")) -> None:
        """One point."""
        column = self._column(run, metric)
        if column is None:
            return
        column.steps.append(step)
        column.values.append(value)
        column.walls.append(wall)
        self.counts["used"] += 1
        self._pending += 1
        if self._pending >= _ROWS_A_PIECE:
            self.flush()

    def distribution(self, run: str, metric: str, step: float, figures: np.ndarray) -> None:
        """One histogram as a row of distributions.FIGURES."""
        if not self.takes(_cut(run)):
            return
        self.counts["histogram"] += 1
        if self.counts["histogram"] > MOST_KEPT:
            self.notes.append(f"more than {MOST_KEPT:,} histograms; the others are left out.")
            return
        steps, rows = self._distributions.setdefault(_cut(run), {}).setdefault(_cut(metric), ([], []))
        steps.append(step)
        rows.append(figures)

    def number(self, value: object) -> float | None:
        """The value as a number; None where it is nothing, or something else, which is counted."""
        if isinstance(value, (bool, int, float)):
            try:
                return float(value)
            except OverflowError:
                return float("inf") if value > 0 else float("-inf")
        self.counts["not_scalar"] += value is not None
        return None

    def text(self, metric: str, n: int = 1) -> None:
        """``n`` values of ``metric`` are text."""
        self.counts["text"] += n
        if metric in self.texts or len(self.texts) < 1000:
            self.texts[metric] += n

    def damaged(self, n_bytes: int = 0, n: int = 1) -> None:
        """``n`` records are skipped, of ``n_bytes`` together (0 where nobody knows)."""
        self.counts["damaged"] += n
        self.counts["damaged_bytes"] += n_bytes

    def config(self, run: str, values: Mapping[str, object]) -> None:
        """Settings of a run; mappings become dotted names, lists become text."""
        if not self.takes(_cut(run)):
            return
        config = self.configs.setdefault(run, {})
        for name, value in flat(values):
            if len(config) >= MOST_CONFIG:
                break
            config[_cut(name)] = _plain(value)

    def flush(self) -> None:
        """Turn single points into arrays."""
        if not self._pending:
            return
        self._pending = 0
        shared: dict[bytes, np.ndarray] = {}

        def kept(values: list) -> np.ndarray:  # metrics logged together share their steps
            array = np.array(values, dtype=np.float64)
            key = array.tobytes()
            if key not in shared:
                shared[key] = self.keep(array)
            return shared[key]

        for columns in self._columns.values():
            for column in columns.values():
                if column.steps:
                    step, wall = kept(column.steps), kept(column.walls)
                    value = np.array(column.values, dtype=np.float64)
                    column.steps, column.values, column.walls = [], [], []
                    column.add(step, self.keep(value), None if np.isnan(wall).all() else wall)
                    if (
                        len(column.chunks) > 64 and column.n < 4 * _ROWS_A_PIECE
                    ):  # a log that is followed grows by crumbs
                        column.chunks = [tuple(_concatenate(column.chunks, i) for i in range(3))]

    def runs(
        self, kind: str, source: str, columns: tuple[str, ...] = (), step_column: str = "", remarks: Sequence[str] = ()
    ) -> tuple[Run, ...]:
        """What was found, as values; later points do not change them."""
        self.flush()
        out = []
        names = dict.fromkeys([*self._columns, *self.configs, *self._distributions]) or [
            self.run
        ]  # without a single number there are still remarks
        for name in names:
            series = {
                metric: Series(
                    name, metric, tuple(c.chunks), c.n_nan, c.n_infinite, c.n_repeated, c.n_back, c.first_back
                )
                for metric, c in self._columns.get(name, {}).items()
                if c.n
            }
            out.append(
                Run(
                    name,
                    kind,
                    source,
                    MappingProxyType(series),
                    MappingProxyType(dict(self.configs.get(name, {}))),
                    MappingProxyType({key: self.counts[key] for key in COUNTS}),
                    (*self._remarks(series), *remarks),
                    columns,
                    step_column,
                    MappingProxyType(
                        {
                            metric: Distribution(metric, np.array(steps), np.array(rows))
                            for metric, (steps, rows) in self._distributions.get(name, {}).items()
                        }
                    ),
                )
            )
        return tuple(out)

    def _column(self, run: str, metric: str) -> _Column | None:
        columns = self._columns.get(run)
        if columns is None:
            if not self.takes(_cut(run)):
                return None
            columns = self._columns.setdefault(_cut(run), {})
        column = columns.get(metric)
        if column is None:
            metric = _cut(metric)
            if metric not in columns:
                if self._n_metrics >= MOST_METRICS:
                    if self._n_metrics == MOST_METRICS:
                        self.notes.append(f"more than {MOST_METRICS:,} metrics; the others are left out.")
                        self._n_metrics += 1
                    return None
                self._n_metrics += 1
                columns[metric] = _Column()
            column = columns[metric]
        return column

    def _remarks(self, series: Mapping[str, Series]) -> tuple[str, ...]:
        out = list(dict.fromkeys(self.notes))
        counts = self.counts
        for key in COUNTS:
            if key not in ("used", "histogram") and counts[key]:
                where = ""
                if key == "text" and self.texts:
                    names = [f"{printable(metric, 60)!r} ({n:,})" for metric, n in self.texts.most_common(4)]
                    where = ": " + ", ".join(names) + (" and others" if len(self.texts) > 4 else "")
                out.append(f"{counts[key]:,} {COUNTS[key][counts[key] != 1]}{where}.")
        for what, key in (("NaN", "n_nan"), ("infinite", "n_infinite")):
            found = {metric: getattr(s, key) for metric, s in series.items() if getattr(s, key)}
            if found:
                out.append(
                    f"{sum(found.values()):,} {what} value{'s' if sum(found.values()) > 1 else ''} kept: "
                    f"{_most_frequent(found)}."
                )
        repeated = {metric: s.n_repeated for metric, s in series.items() if s.n_repeated}
        if repeated:
            out.append(f"steps repeat: {_most_frequent(repeated)}; every point is kept.")
        back = {metric: s.n_back for metric, s in series.items() if s.n_back}
        if back:
            first = series[next(iter(back))].first_back
            out.append(
                f"steps go back: {_most_frequent(back)}, first from {first[0]:,g} to {first[1]:,g}; the run was "
                "continued "
                f"from an earlier "
                "step, or several runs are in one log. Every point is kept."
            )
        return tuple(out)


def _concatenate(chunks: list, i: int) -> np.ndarray | None:
    if all(chunk[i] is None for chunk in chunks):
        return None
    array = np.concatenate([np.full(len(c[0]), np.nan) if c[i] is None else c[i] for c in chunks])
    array.flags.writeable = False
    return array


def _most_frequent(found: Mapping[str, int], most: int = 4) -> str:
    names = [
        f"{printable(metric, 60)!r} {n:,}×" for metric, n in sorted(found.items(), key=lambda item: -item[1])[:most]
    ]
    return ", ".join(names) + (f" and {len(found) - most:,} more" if len(found) > most else "")


def _plain(value: object) -> object:
    """A setting as a number, text of at most 2,000 characters, or None; a number beyond every float is infinite."""
    if isinstance(value, int) and value.bit_length() > 1023:
        return float("inf") if value > 0 else float("-inf")
    try:
        plain = value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
    except ValueError:  # such a number in a list
        plain = f"a {type(value).__name__}"
    return plain[:2000] if isinstance(plain, str) else plain


def _cut(name: str) -> str:
    return name if len(name) <= MAX_NAME else name[: MAX_NAME - 3] + "..."


def flat(row: Mapping, prefix: str = "", depth: int = 0):
    """(dotted name, cell) of every cell; what a tracker marks as media ("_type") stays whole."""
    for name, value in row.items():
        if isinstance(value, Mapping) and depth < 8 and "_type" not in value:  # W&B marks its media so
            yield from flat(value, f"{prefix}{name}.", depth + 1)
        else:
            yield f"{prefix}{name}", value
