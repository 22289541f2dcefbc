"""Rows of named cells as points, whatever they come out of: which column is the step, which the time, which names the
run, and the numbers of all others. CSV, parquet, JSON and the rows that trackers keep all pass through here.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

from wisca_core.errors import BadOption
from wisca_core.runs.collect import MOST_RUNS, SourceRuns, flat
from wisca_core.runs.columns import (
    INDEX_NAMES,
    MAX_COLUMNS,
    RUN_NAMES,
    SAMPLE_ROWS,
    SINCE_START,
    TIME_NAMES,
    Roles,
    fraction,
    is_step_name,
    metric_of_export,
    roles,
    run_name,
    seconds,
    tracker_step,
)
from wisca_core.runs.distributions import of_tool
from wisca_core.untrusted import printable

# Rows of one batch: enough to be cheap, few enough to show progress.
BATCH_ROWS = 8192


@dataclass(frozen=True)
class ColumnCells:
    """The cells of one column in a batch of rows: ``rows`` (int64, rising) are those with a number, ``value`` (float64)
    their numbers, ``texts`` the positions of cells that are text; ``raw()``: every cell as a plain value, None where it
    is empty.
    """

    rows: np.ndarray
    value: np.ndarray
    texts: np.ndarray
    raw: Callable[[], Sequence]


NO_TEXT = np.zeros(0, np.int64)


class Tabular:
    """Takes batches of columns. ``asked``, ``what``: see ``columns.roles``; ``key``: whether columns such as "seed"
    name the run; ``untyped``: a column that begins empty may turn out to hold numbers.

    ``own``: the column in which a tracker counts its own calls. It is the step only where the rows say no other and no
    other was defined. ``define``: as W&B's define_metric, patterns of metrics drawn over another column.
    """

    def __init__(
        self, out: SourceRuns, run: str, asked: str, what: str, *, key: bool = True, untyped: bool = True, own: str = ""
    ) -> None:
        self.out, self.run, self.asked, self.what, self.key, self.untyped = out, run, asked, what, key, untyped
        self.own = own
        self.columns: dict[str, None] = {}
        self.notes: list[str] = []  # of this run alone, where a log holds several
        self._roles: Roles | None = None
        self._defined: dict[str, str] = {}
        self._last: dict[str, float] = {}
        self._n_rows = 0
        self._n_carried = 0
        self._runs: dict[str, None] = {}
        self._said: set[str] = set()

    @property
    def step_column(self) -> str:
        """Its name, empty where rows are counted or nothing was read yet."""
        return (self._roles and self._roles.step) or ""

    @property
    def usable(self) -> tuple[str, ...]:
        """The columns that hold numbers."""
        return tuple(self.columns)

    def define(self, pattern: str, column: str) -> None:
        """Metrics that match ``pattern`` are drawn over ``column``; where a step column was asked for, over that."""
        if len(self._defined) < MAX_COLUMNS:
            self._defined[pattern] = column

    def take(
        self, n: int, cells: Mapping[str, ColumnCells], histograms: Sequence[tuple[int, str, np.ndarray]] = ()
    ) -> None:
        """The next ``n`` rows; ``histograms``: (row, name, a row of distributions.FIGURES)."""
        if self._roles is None:
            self._settle(n, cells)
        self.columns |= dict.fromkeys(name for name, one in cells.items() if len(one.rows))
        role = self._roles
        if role.step is None:
            counted = np.arange(self._n_rows, self._n_rows + n, dtype=np.float64)
            steps = (counted, np.ones(n, bool), np.zeros(n, bool))
            self._n_rows += n
        else:
            steps = self._step(role.step, n, cells)
            self.out.counts["no_step"] += int(n - steps[1].sum())
        self._hand_over(n, cells, steps, self._wall(n, cells), histograms)

    def _settle(self, n: int, cells: Mapping[str, ColumnCells]) -> None:
        """Decide on the first rows which column is what."""
        samples = {}
        for name, one in cells.items():
            begin = one.rows < SAMPLE_ROWS
            if begin.any() or (self.untyped and not len(one.texts) and not len(one.rows)):
                first = np.full(min(n, SAMPLE_ROWS), np.nan)
                first[one.rows[begin]] = one.value[begin]
                samples[name] = first
        if self.own:
            self._roles = self._tracker_roles(samples)
        else:
            self._roles = roles(tuple(cells), samples, self.asked, self.what)
        if not self.key:
            self._roles = Roles(self._roles.step, self._roles.time, (), self._roles.exported, self._roles.note)
        if self._roles.note:
            (self.notes if self.own else self.out.notes).append(self._roles.note)

    def _tracker_roles(self, samples: Mapping[str, np.ndarray]) -> Roles:
        """A tracker's own counter, the column the rows say, or the one asked for."""
        if self.asked:
            if self.asked not in samples:
                named = ", ".join(printable(name, 40) for name in list(samples)[:12])
                raise BadOption(
                    f"step column: {printable(self.asked)!r} is no number in the first rows of {self.what}; it has "
                    f"{named}."
                )
            return Roles(self.asked, None, (), False, "")
        step = self._defined.get("*") or tracker_step(samples, self.own)
        if step is None:
            return Roles(self.own, None, (), False, "")
        told = "as its writer defined" if "*" in self._defined else "which each row names"
        note = (
            f"steps are those of {printable(step, 60)!r}, {told}; the tracker's own counter "
            f"({printable(self.own, 40)!r}) counts "
            f"calls, and can be named as the step."
        )
        return Roles(step, None, (), False, note)

    # --- steps and times ----------------------------------------------------------------------------------------------

    def _step(self, name: str, n: int, cells: Mapping[str, ColumnCells]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(step, whether there is one, whether it is another row's) of each row: a tracker's row that names none has
        the last one named before.
        """
        step, has, carried = np.zeros(n), np.zeros(n, bool), np.zeros(n, bool)
        one = cells.get(name)
        if one is not None:
            step[one.rows], has[one.rows] = one.value, True
            if len(one.texts):  # "5/100"
                raw = one.raw()
                for k in one.texts:
                    number = fraction(raw[k])
                    if number is not None:
                        step[k], has[k] = number, True
        has &= np.isfinite(step) & (np.abs(step) < 1e300)
        if self.own and name != self.own and not has.all():
            at = np.maximum.accumulate(np.where(has, np.arange(n), -1))
            before = self._last.get(name)
            carried = ~has & ((at >= 0) | (before is not None))
            step = np.where(at >= 0, step[np.maximum(at, 0)], 0.0 if before is None else before)
            has = has | carried
        if has.any():
            self._last[name] = float(step[np.flatnonzero(has)[-1]])
        return step, has, carried

    def _wall(self, n: int, cells: Mapping[str, ColumnCells]) -> np.ndarray | None:
        name = self._roles.time or ("_timestamp" if self.own else None)
        one = cells.get(name) if name else None
        if one is None:
            return None
        wall = np.full(n, np.nan)
        wall[one.rows] = one.value
        if len(one.texts):
            raw = one.raw()
            for k in one.texts:
                wall[k] = seconds(raw[k])
        return wall

    def remarks(self) -> list[str]:
        """What is to be said of the steps of this run alone."""
        n = self._n_carried
        if not n:
            return self.notes
        said = f"{n:,} {'value stands in a row' if n == 1 else 'values stand in rows'} without a step"
        return [*self.notes, f"{said} and {'is' if n == 1 else 'are'} drawn at the last one named before."]

    # --- points -------------------------------------------------------------------------------------------------------

    def _hand_over(
        self,
        n: int,
        cells: Mapping[str, ColumnCells],
        of_step: tuple[np.ndarray, np.ndarray, np.ndarray],
        wall: np.ndarray | None,
        histograms: Sequence[tuple[int, str, np.ndarray]],
    ) -> None:
        role, has = self._roles, of_step[1]
        names, code = self._run_of_row(n, cells, has)
        passed = {role.step, role.time, self.own, *role.runs, *self._defined.values()}
        steps = {role.step: of_step}
        shared: dict[tuple, tuple] = {}

        def steps_of(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, str | None]:
            over = role.step if self.asked or not self._defined else self._over(name)
            if over not in steps:
                steps[over] = self._step(over, n, cells)
            return (*steps[over], over)

        for k, name, figures in histograms:
            at, known, _, _ = steps_of(name)
            if known[k] and (names is None or code[k] >= 0):
                self.out.distribution(self.run if names is None else names[code[k]], name, float(at[k]), figures)
        for name, one in cells.items():
            lower = name.strip().lower()
            if name in passed and not (name == role.time and lower in SINCE_START) or lower in INDEX_NAMES:
                continue
            if self.own and name in ("_timestamp", "_runtime"):
                continue
            at, known, carried, over = steps_of(name)
            run, metric = metric_of_export(name) if role.exported else ("", name)
            if len(one.texts):
                n_text = int(has[one.texts].sum())
                if n_text:
                    self.out.text(metric, n_text)
            rows, value = one.rows, one.value
            if not (known.all() and names is None):
                chosen = known[rows] & (code[rows] >= 0) if names is not None else known[rows]
                if not chosen.all():
                    rows, value = rows[chosen], value[chosen]
            if not len(rows):
                continue
            self._n_carried += int(carried[rows].sum())
            for title, part in self._parts(names, code, rows):
                index = rows if part is None else rows[part]
                key = (over, title, b"" if len(index) == n else index.tobytes())
                if key not in shared:
                    shared[key] = (self.out.keep(at[index]), None if wall is None else self.out.keep(wall[index]))
                kept_step, kept_wall = shared[key]
                numbers = self.out.keep(value if part is None else value[part])
                self.out.add(run or title, metric, kept_step, numbers, kept_wall)

    def _over(self, metric: str) -> str:
        """The column a metric is drawn over: the one defined for it, for a pattern it matches, else the step."""
        if metric in self._defined:
            return self._defined[metric]
        for pattern, column in self._defined.items():
            if "*" in pattern and pattern != "*" and fnmatchcase(metric, _literal_but_stars(pattern)):
                return column
        return self._defined.get("*", self._roles.step)

    def _run_of_row(
        self, n: int, cells: Mapping[str, ColumnCells], has: np.ndarray
    ) -> tuple[list[str] | None, np.ndarray]:
        """(names, which of them each row belongs to, -1 none); (None, empty) where no column names the run."""
        titles = [name for name in self._roles.runs if name in cells]
        if not titles:
            return None, NO_TEXT
        raw = [cells[title].raw() for title in titles]
        code, names, known = np.full(n, -1), [], {}
        for k in np.flatnonzero(has):
            values = tuple(column[k] for column in raw)
            if values not in known:
                name = run_name(self.run, titles, values)
                if name not in self._runs:
                    if len(self._runs) >= MOST_RUNS:
                        if "runs" not in self._said:
                            self._said.add("runs")
                            self.out.notes.append(
                                f"columns {', '.join(repr(printable(t, 40)) for t in titles)} name more than "
                                f"{MOST_RUNS:,} "
                                f"runs; the rows of the others are left out."
                            )
                        known[values] = -1
                        continue
                    self._runs[name] = None
                    self.out.config(name, {t: v for t, v in zip(titles, values) if v is not None})
                known[values] = len(names)
                names.append(name)
            code[k] = known[values]
        return names, code

    def _parts(
        self, names: list[str] | None, code: np.ndarray, rows: np.ndarray
    ) -> Iterator[tuple[str, np.ndarray | None]]:
        """(run, positions in ``rows``) of each run with some; positions None for all."""
        if names is None:
            yield self.run, None
            return
        of = code[rows]
        order = np.argsort(of, kind="stable")
        found, first = np.unique(of[order], return_index=True)
        for which, begin, end in zip(found, first, [*first[1:], len(order)]):
            yield names[which], order[begin:end]


def _literal_but_stars(pattern: str) -> str:
    return re.sub(r"[\[?]", lambda m: f"[{m[0]}]", pattern)


class RowBuffer:
    """Rows as mappings, one by one, into batches for a Tabular. Text and lists are counted, histograms kept."""

    def __init__(self, table: Tabular) -> None:
        self.table = table
        self._begin()

    def _begin(self) -> None:
        self._n = 0
        self._rows: dict[str, list[int]] = {}
        self._values: dict[str, list[float]] = {}
        self._texts: dict[str, list[int]] = {}
        self._raw: dict[str, dict[int, object]] = {}
        self._histograms: list[tuple[int, str, np.ndarray]] = []

    def add(self, row: Mapping[str, object]) -> None:
        """One row; mappings in it become dotted names."""
        n = self._n
        rows, values = self._rows, self._values
        for name, cell in row.items():
            if type(cell) is float and name in rows and name not in self._raw:  # nearly all of them
                rows[name].append(n)
                values[name].append(cell)
                continue
            for inner, value in flat({name: cell}):
                self._cell(n, inner, value)
        self._n = n + 1
        if self._n >= (BATCH_ROWS if self.table._roles else SAMPLE_ROWS):
            self.settle()

    def add_all(self, listed: list) -> None:
        """A whole list of rows; what is no row is counted."""
        for row in listed:
            if isinstance(row, dict):
                self.add(row)
            else:
                self.table.out.damaged()
        self.settle()

    def settle(self) -> None:
        """Hand over what is waiting, as when nothing more may come for a while."""
        if not self._n:
            return
        n, cells = self._n, {}
        for name, rows in self._rows.items():
            texts, raw = self._texts.get(name), self._raw.get(name, {})
            cells[name] = ColumnCells(
                np.array(rows, np.int64),
                np.array(self._values[name], np.float64),
                np.array(texts, np.int64) if texts else NO_TEXT,
                lambda raw=raw: [raw.get(k) for k in range(n)],
            )
        histograms = self._histograms
        self._begin()
        self.table.take(n, cells, histograms)

    def _cell(self, n: int, name: str, cell: object) -> None:
        if name not in self._rows:
            if len(self._rows) >= MAX_COLUMNS:
                return
            self._rows[name], self._values[name] = [], []
            lower = name.strip().lower()
            if lower in RUN_NAMES or lower in TIME_NAMES or is_step_name(lower) or name == self.table.asked:
                self._raw[name] = {}  # what such a column says may be no number
        raw = self._raw.get(name)
        if raw is not None and cell is not None:
            raw[n] = cell
        if isinstance(cell, str):
            number = plain_number(cell)
            if number is None:
                self._texts.setdefault(name, []).append(n)
            elif raw is None:
                self.table.out.counts["number_as_text"] += 1
        elif isinstance(cell, Mapping) and "histogram" in str(cell.get("_type")):
            number, figures = None, of_tool(cell)
            if figures is None:
                self.table.out.counts["not_scalar"] += 1
            else:
                self._histograms.append((n, name, figures))
        else:
            number = self.table.out.number(cell)
        if number is not None:
            self._rows[name].append(n)
            self._values[name].append(number)


def plain_number(text: str) -> float | None:
    """float(), but without what only Python reads as a number ("1_000")."""
    try:
        return float(text) if len(text) < 64 and "_" not in text else None
    except ValueError:
        return None
