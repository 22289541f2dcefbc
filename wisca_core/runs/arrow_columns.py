"""A table that comes as Arrow arrays, piece by piece: which column is what, and its numbers as points."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wisca_core.runs.collect import Collected
from wisca_core.runs.columns import SAMPLE_ROWS, Roles, roles, run_name, seconds


class ArrowColumns:
    """``header``: a name for each column, set before the first piece; ``numeric``: positions of those that held numbers so
    far; ``asked``, ``what``: see ``columns.roles``; ``untyped``: the columns have no types of their own, so that one that
    begins empty may turn out to hold numbers.
    """

    def __init__(self, out: Collected, run: str, asked: str, what: str, untyped: bool) -> None:
        self.out, self.run, self.asked, self.what, self.untyped = out, run, asked, what, untyped
        self.header: list[str] = []
        self.numeric: set[int] = set()
        self._roles: Roles | None = None
        self._n_rows = 0

    @property
    def step_column(self) -> str:
        """Its name, empty where rows are counted."""
        return self.header[self._roles.step] if self._roles and self._roles.step is not None else ""

    @property
    def usable(self) -> tuple[str, ...]:
        """The columns that hold numbers."""
        return tuple(self.header[i] for i in sorted(self.numeric))

    def take(self, columns: list[pa.Array]) -> None:
        """The next rows: float64 arrays, or binary ones where a column is not all numbers."""
        if self._roles is None:
            self._settle(columns)
        self._hand_over(columns)

    def _settle(self, columns: list[pa.Array]) -> None:
        """Decide on the first rows which column is what."""
        samples = {}
        for i, column in enumerate(columns):
            first = column.slice(0, SAMPLE_ROWS)
            value, present, _ = _numbers(first)
            if present.any() or (self.untyped and first.null_count == len(first)):
                samples[i] = np.where(present, value, np.nan)
            if present.any():
                self.numeric.add(i)
        self._roles = roles(self.header, samples, self.asked, self.what)
        if self._roles.note:
            self.out.notes.append(self._roles.note)

    def _hand_over(self, columns: list[pa.Array]) -> None:
        role = self._roles
        n = len(columns[0])
        keep_row = np.ones(n, bool)
        repeated = self._is_header(columns)
        if repeated.any():
            self.out.counts["header"] += int(repeated.sum())
            keep_row &= ~repeated
        if role.step is None:
            step = np.arange(self._n_rows, self._n_rows + n, dtype=np.float64)
        else:
            step, has_step, n_text = _numbers(columns[role.step])
            missing = keep_row & ~(has_step & np.isfinite(step))
            self.out.counts["no_step"] += int(missing.sum())
            keep_row &= ~missing
        self._n_rows += int(keep_row.sum()) if role.step is None else n
        if role.step is None and not keep_row.all():
            step = np.cumsum(keep_row) - 1.0 + self._n_rows - int(keep_row.sum())
        wall = None if role.time is None else _times(columns[role.time])
        for run, rows in self._by_run(columns, keep_row):
            shared: dict[bytes, tuple] = {}
            for i, exported, metric in role.series:
                value, present, n_text = _numbers(columns[i])
                if n_text:
                    self.out.text(metric, int(n_text - (0 if rows.all() else _n_text_outside(columns[i], rows))))
                    self.numeric.discard(i)
                elif present.any():
                    self.numeric.add(i)
                chosen = present & rows
                if not chosen.any():
                    continue
                key = b"" if chosen.all() else np.packbits(chosen).tobytes()
                if key not in shared:
                    shared[key] = (self.out.keep(step[chosen]), None if wall is None else self.out.keep(wall[chosen]))
                kept_step, kept_wall = shared[key]
                self.out.add(exported or run, metric, kept_step, self.out.keep(value[chosen]), kept_wall)

    def _is_header(self, columns: list[pa.Array]) -> np.ndarray:
        """Rows that repeat the header, which a restarted logger appends."""
        out = np.ones(len(columns[0]), bool)
        for name, column in zip(self.header, columns):
            if pa.types.is_floating(column.type):
                return np.zeros(len(column), bool)
            if name:
                out &= pc.equal(column, pa.scalar(name.encode(), pa.binary())).fill_null(False).to_numpy(False)
                if not out.any():
                    break
        return out

    def _by_run(self, columns: list[pa.Array], keep_row: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """(run, rows) for each run the run columns name, in the order of first appearance; no empty ones."""
        names = self._roles.runs
        if not names:
            if keep_row.any():
                yield self.run, keep_row
            return
        rows: dict[tuple, list[int]] = {}
        cells = [[_plain(cell) for cell in columns[i].to_pylist()] for i in names]
        for k in np.flatnonzero(keep_row):
            rows.setdefault(tuple(cell[k] for cell in cells), []).append(k)
        for values, which in rows.items():
            titles = [self.header[i] for i in names]
            run = run_name(self.run, titles, values)
            self.out.config(run, {title: value for title, value in zip(titles, values) if value is not None})
            chosen = np.zeros(len(keep_row), bool)
            chosen[which] = True
            yield run, chosen


def _numbers(column: pa.Array) -> tuple[np.ndarray, np.ndarray, int]:
    """(values, which are numbers, how many are text) of a column; float64 and bool (n,)."""
    if pa.types.is_floating(column.type):
        present = np.ones(len(column), bool) if not column.null_count else ~column.is_null().to_numpy(False)
        return column.fill_null(0.0).to_numpy(False) if column.null_count else column.to_numpy(), present, 0
    value, present, n_text = np.zeros(len(column)), np.zeros(len(column), bool), 0
    if column.null_count == len(column):
        return value, present, 0
    try:
        cast = pc.cast(pc.cast(column, pa.string()), pa.float64())
        return cast.fill_null(0.0).to_numpy(False), ~cast.is_null().to_numpy(False), 0
    except (pa.ArrowInvalid, UnicodeDecodeError):
        pass
    for k, cell in enumerate(column.to_pylist()):
        if cell is None:
            continue
        try:
            value[k] = _number(cell)
            present[k] = True
        except ValueError:
            n_text += 1
    return value, present, n_text


def _n_text_outside(column: pa.Array, rows: np.ndarray) -> int:
    return _numbers(column.filter(pa.array(~rows)))[2]


def _times(column: pa.Array) -> np.ndarray:
    value, present, n_text = _numbers(column)
    if not n_text:
        return np.where(present, value, np.nan)
    return np.array([seconds(None if cell is None else cell.decode("utf-8", "replace")) for cell in column.to_pylist()])


def _number(cell: bytes) -> float:
    """float(), but without what only Python reads as a number ("1_000")."""
    if b"_" in cell or len(cell) > 64:
        raise ValueError
    return float(cell)


def _plain(cell):
    if not isinstance(cell, bytes):
        return cell
    text = cell.decode("utf-8", "replace")
    try:
        return int(text)
    except ValueError:
        return text
