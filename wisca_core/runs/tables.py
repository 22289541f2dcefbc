"""Tables: CSV and TSV, JSON lines, a JSON list of rows, parquet. Lightning's metrics.csv and what W&B exports are such
tables.

A CSV is read in pieces and columns, so that a gigabyte costs seconds and little memory; rows that do not fit the header
are counted. Not covered: line breaks inside quoted cells (such rows are counted as damaged), compressed files.
"""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from wisca_core.checkpoint.untrusted import open_regular, parse_json_object, shown
from wisca_core.errors import UnreadableInput
from wisca_core.progress import Progress
from wisca_core.runs.collect import Collected, Room
from wisca_core.runs.columns import Roles, roles, run_name, seconds
from wisca_core.runs.growing import Growing, Lines, Replaced
from wisca_core.runs.source import Ask, Source
from wisca_core.runs.table import Run

MAX_COLUMNS = 20_000
MAX_JSON_BYTES = 512 << 20
MAX_CONFIG_BYTES = 10 << 20
_EMPTY = ["", "null", "None", "NULL"]
# A few rows say which columns hold numbers; a column that turns into numbers later is still read, only slower.
_SAMPLE_ROWS = 1000
_PIECE_BYTES = 8 << 20


class Csv:
    """A CSV or TSV file. A hparams.yaml beside Lightning's metrics.csv is the run's configuration."""

    def __init__(self, source: Source, room: Room, ask: Ask = Ask()) -> None:
        self.source, self._room, self._ask = source, room, ask
        self._begin()

    def _begin(self) -> None:
        self._out = Collected(self._room, self.source.run)
        self._file = Growing(self.source.path, _PIECE_BYTES)
        self._header: list[str] = []
        self._delimiter = ","
        self._roles: Roles | None = None
        self._numeric: set[int] = set()
        self._n_rows = 0
        self._open_tail = False
        config = _hparams_beside(self.source.path)
        if config:
            self._out.config(self.source.run, config)

    def advance(self, progress: Progress) -> bool:
        if not self._file.changed():
            return False
        try:
            for done, size in self._file.pieces(self._consume):
                progress(f"reading {shown(self.source.path.name, 60)}", done, size)
        except Replaced:
            self._out.release()
            self._begin()
            return self.advance(progress)
        return True

    def runs(self) -> tuple[Run, ...]:
        step = self._header[self._roles.step] if self._roles and self._roles.step is not None else ""
        usable = tuple(self._header[i] for i in sorted(self._numeric))
        return self._out.runs("csv", str(self.source.path), usable, step)

    def _consume(self, data: bytes, at_end: bool) -> int:
        if self._open_tail:
            if data[:1] not in (b"\n", b"\r"):
                raise Replaced
            self._open_tail = False
        end = data.rfind(b"\n") + 1
        if at_end and end < len(data) and (not self._ask.live or self._file.rests()):
            end, self._open_tail = len(data), True
        body = data[:end]
        if not self._header:
            body = self._take_header(body)
            if not self._header:
                return end
        if body.strip(b"\r\n"):
            self._take(body)
        return end

    def _take_header(self, body: bytes) -> bytes:
        body = body.removeprefix(b"\xef\xbb\xbf").lstrip(b"\r\n")
        first, _, rest = body.partition(b"\n")
        if not first.strip():
            return b""
        text = first.decode("utf-8", "replace").rstrip("\r")
        self._delimiter = max(",\t;", key=text.count)
        names = next(csv.reader([text], delimiter=self._delimiter))
        if len(names) > MAX_COLUMNS:
            raise UnreadableInput(
                f"{shown(self.source.path)}: {len(names):,} columns, at most {MAX_COLUMNS:,} are read."
            )
        seen: dict[str, int] = {}
        for name in names:  # two columns of one name stay two metrics
            seen[name] = seen.get(name, 0) + 1
            self._header.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
        return rest

    def _take(self, body: bytes) -> None:
        columns = self._columns(body)
        if columns is None:
            return
        if self._roles is None:
            samples = {}
            for i in range(len(self._header)):
                value, present, _ = self._numbers(i, columns[i].slice(0, _SAMPLE_ROWS))
                if present.any() or columns[i].slice(0, _SAMPLE_ROWS).null_count == min(len(columns[i]), _SAMPLE_ROWS):
                    samples[i] = np.where(present, value, np.nan)
                if present.any():
                    self._numeric.add(i)
            self._roles = roles(self._header, samples, self._ask.step_column, shown(self.source.path))
            if self._roles.note:
                self._out.notes.append(self._roles.note)
        self._hand_over(columns)

    def _columns(self, body: bytes) -> list[pa.Array] | None:
        """Arrow arrays a column: float64 where all of the piece is, else binary."""

        def bad(row) -> str:
            self._out.counts["damaged"] += 1
            return "skip"

        names = [str(i) for i in range(len(self._header))]
        for numeric in (self._numeric, set()):
            types = {name: pa.float64() if i in numeric else pa.binary() for i, name in enumerate(names)}
            before = self._out.counts["damaged"]
            try:
                table = pacsv.read_csv(
                    io.BytesIO(body),
                    pacsv.ReadOptions(use_threads=False, column_names=names, block_size=max(1 << 20, len(body) + 1)),
                    pacsv.ParseOptions(delimiter=self._delimiter, invalid_row_handler=bad),
                    pacsv.ConvertOptions(
                        check_utf8=False,
                        column_types=types,
                        null_values=_EMPTY,
                        strings_can_be_null=True,
                        quoted_strings_can_be_null=True,
                    ),
                )
            except pa.ArrowInvalid as error:
                self._out.counts["damaged"] = before
                if numeric:
                    continue
                if "Empty CSV" in str(error):
                    return None
                raise UnreadableInput(f"{shown(self.source.path)}: not a table: {shown(error, 200)}.") from None
            return [table.column(i).combine_chunks() for i in range(len(names))]
        return None

    def _numbers(self, i: int, column: pa.Array) -> tuple[np.ndarray, np.ndarray, int]:
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

    def _hand_over(self, columns: list[pa.Array]) -> None:
        role = self._roles
        n = len(columns[0])
        keep_row = np.ones(n, bool)
        if self._is_header(columns).any():
            repeated = self._is_header(columns)
            self._out.counts["header"] += int(repeated.sum())
            keep_row &= ~repeated
        if role.step is None:
            step = np.arange(self._n_rows, self._n_rows + n, dtype=np.float64)
        else:
            step, has_step, n_text = self._numbers(role.step, columns[role.step])
            missing = keep_row & ~(has_step & np.isfinite(step))
            self._out.counts["no_step"] += int(missing.sum())
            keep_row &= ~missing
        self._n_rows += int(keep_row.sum()) if role.step is None else n
        if role.step is None and not keep_row.all():
            step = np.cumsum(keep_row) - 1.0 + self._n_rows - int(keep_row.sum())
        wall = None if role.time is None else self._times(columns[role.time])
        for run, rows in self._by_run(columns, keep_row):
            shared: dict[bytes, tuple] = {}
            for i, exported, metric in role.series:
                value, present, n_text = self._numbers(i, columns[i])
                if n_text:
                    self._out.text(
                        metric, int(n_text - (0 if rows.all() else self._n_text_outside(i, columns[i], rows)))
                    )
                    self._numeric.discard(i)
                elif present.any():
                    self._numeric.add(i)
                chosen = present & rows
                if not chosen.any():
                    continue
                key = b"" if chosen.all() else np.packbits(chosen).tobytes()
                if key not in shared:
                    shared[key] = (self._out.keep(step[chosen]), None if wall is None else self._out.keep(wall[chosen]))
                kept_step, kept_wall = shared[key]
                self._out.add(exported or run, metric, kept_step, self._out.keep(value[chosen]), kept_wall)

    def _n_text_outside(self, i: int, column: pa.Array, rows: np.ndarray) -> int:
        return self._numbers(i, column.filter(pa.array(~rows)))[2]

    def _is_header(self, columns: list[pa.Array]) -> np.ndarray:
        """Rows that repeat the header, which a restarted logger appends."""
        out = np.ones(len(columns[0]), bool)
        for name, column in zip(self._header, columns):
            if pa.types.is_floating(column.type):
                return np.zeros(len(column), bool)
            if name:
                out &= pc.equal(column, pa.scalar(name.encode(), pa.binary())).fill_null(False).to_numpy(False)
                if not out.any():
                    break
        return out

    def _times(self, column: pa.Array) -> np.ndarray:
        value, present, n_text = self._numbers(-1, column)
        if not n_text:
            return np.where(present, value, np.nan)
        return np.array(
            [seconds(None if cell is None else cell.decode("utf-8", "replace")) for cell in column.to_pylist()]
        )

    def _by_run(self, columns: list[pa.Array], keep_row: np.ndarray):
        """(run, rows) for each run the run columns name, in the order of first appearance; no empty ones."""
        names = self._roles.runs
        if not names:
            if keep_row.any():
                yield self.source.run, keep_row
            return
        rows: dict[tuple, list[int]] = {}
        cells = [[_plain(cell) for cell in columns[i].to_pylist()] for i in names]
        for k in np.flatnonzero(keep_row):
            rows.setdefault(tuple(cell[k] for cell in cells), []).append(k)
        for values, which in rows.items():
            titles = [self._header[i] for i in names]
            run = run_name(self.source.run, titles, values)
            self._out.config(run, {title: value for title, value in zip(titles, values) if value is not None})
            chosen = np.zeros(len(keep_row), bool)
            chosen[which] = True
            yield run, chosen


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


def _hparams_beside(path: Path) -> dict | None:
    beside = path.parent / "hparams.yaml"
    try:
        if path.name != "metrics.csv" or not beside.is_file() or beside.stat().st_size > MAX_CONFIG_BYTES:
            return None
        import yaml

        # Lightning may write Python objects in there; the safe loader refuses those, and nothing is run.
        content = yaml.safe_load(beside.read_text("utf-8", "replace"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return None
    return content if isinstance(content, dict) else None


class Rows:
    """Rows as mappings, one by one: what JSON lines, a JSON list and our own metrics have in common."""

    def __init__(self, out: Collected, run: str, asked: str, what: str, key: bool = True) -> None:
        self.out, self.run, self.asked, self.what = out, run, asked, what
        self.step_column: str | None = None
        self.columns: dict[str, None] = {}
        self._waiting: list[dict] = []
        self._n = 0
        self._time: str | None = None
        self._runs: tuple[str, ...] = ()
        self._decided = False
        self._key = key  # whether columns such as "seed" name the run

    def add(self, row: dict) -> None:
        if self._decided:
            self._take(row)
            return
        self._waiting.append(row)
        if len(self._waiting) >= _SAMPLE_ROWS:
            self.settle()

    def settle(self) -> None:
        """Decide on the rows seen so far which column is the step, and take them."""
        if self._decided or not self._waiting:
            return
        names = list(dict.fromkeys(name for row in self._waiting for name in row))[:MAX_COLUMNS]
        samples = {}
        for i, name in enumerate(names):
            cells = [row.get(name) for row in self._waiting]
            numbers = [
                float(c) if isinstance(c, (int, float)) and not isinstance(c, bool) and abs(c) < 1e300 else np.nan
                for c in cells
            ]
            if any(isinstance(c, (int, float)) and not isinstance(c, bool) for c in cells):
                samples[i] = np.array(numbers)
        found = roles(names, samples, self.asked, self.what)
        self.step_column = None if found.step is None else names[found.step]
        self._time = None if found.time is None else names[found.time]
        self._runs = tuple(names[i] for i in found.runs) if self._key else ()
        self.columns = dict.fromkeys(names[i] for i in samples)
        if found.note:
            self.out.notes.append(found.note)
        self._decided = True
        waiting, self._waiting = self._waiting, []
        for row in waiting:
            self._take(row)

    def _take(self, row: dict) -> None:
        rest = dict(row)
        run = self.run
        if self._runs:
            values = [rest.pop(name, None) for name in self._runs]
            run = run_name(self.run, self._runs, values)
            if run not in self.out.configs:
                self.out.config(run, {name: value for name, value in zip(self._runs, values) if value is not None})
        if self.step_column is None:
            step = float(self._n)
        else:
            step = rest.pop(self.step_column, None)
            if isinstance(step, str):
                try:
                    step = float(step)
                except ValueError:
                    step = None
            if type(step) not in (int, float) or not abs(step) < 1e300:
                self.out.counts["no_step"] += 1
                return
        self._n += 1
        wall = seconds(rest.get(self._time)) if self._time else float("nan")
        if self._time and self._time.lower() not in ("seconds", "elapsed", "_runtime"):
            rest.pop(self._time, None)
        self.out.values(run, rest, float(step), wall)


class JsonLines:
    """One JSON object a line. Lines that are none are counted; NaN and Infinity are read as Python writes them."""

    def __init__(self, source: Source, room: Room, ask: Ask = Ask()) -> None:
        self.source, self._room, self._ask = source, room, ask
        self._begin()

    def _begin(self) -> None:
        self._out = Collected(self._room, self.source.run)
        self._file = Growing(self.source.path)
        self._lines = Lines(self._file, self._ask.live)
        self._rows = Rows(self._out, self.source.run, self._ask.step_column, shown(self.source.path))

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
        if self._lines.n_too_long:
            self._out.counts["damaged"] += self._lines.n_too_long
            self._lines.n_too_long = 0
        return self._out.runs("jsonl", str(self.source.path), tuple(self._rows.columns), self._rows.step_column or "")

    def _take(self, lines: list[bytes]) -> None:
        for line in lines:
            row = json_row(line)
            if row is None:
                if line.strip():
                    self._out.counts["damaged"] += 1
                    self._out.counts["damaged_bytes"] += len(line)
            else:
                self._rows.add(row)


def json_row(line: bytes) -> dict | None:
    """The JSON object in a line, None for anything else."""
    try:
        row = json.loads(line.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


class JsonList:
    """A JSON list of rows. It is read whole, and again where it changed."""

    def __init__(self, source: Source, room: Room, ask: Ask = Ask()) -> None:
        self.source, self._room, self._ask = source, room, ask
        self._file = Growing(source.path)
        self._out, self._rows = Collected(room, source.run), None

    def advance(self, progress: Progress) -> bool:
        if not self._file.changed():
            return False
        self._out.release()
        self._out = Collected(self._room, self.source.run)
        self._file = Growing(self.source.path)
        self._rows = Rows(self._out, self.source.run, self._ask.step_column, shown(self.source.path))
        content = whole_file(self._file)
        wrapped = parse_json_object(b'{"rows":' + content + b"}", shown(self.source.path), unique_keys=False)
        rows = wrapped["rows"]
        if not isinstance(rows, list):
            raise UnreadableInput(
                f"{shown(self.source.path)}: holds a JSON {type(rows).__name__}, expected a list of rows."
            )
        for row in rows:
            if isinstance(row, dict):
                self._rows.add(row)
            else:
                self._out.counts["damaged"] += 1
        self._rows.settle()
        return True

    def runs(self) -> tuple[Run, ...]:
        return self._out.runs("json", str(self.source.path), tuple(self._rows.columns), self._rows.step_column or "")


def whole_file(file: Growing) -> bytes:
    """All bytes of a file of at most MAX_JSON_BYTES."""
    parts: list[bytes] = []
    size = 0

    def consume(data: bytes, at_end: bool) -> int:
        nonlocal size
        parts.append(bytes(data))
        size += len(data)
        if size > MAX_JSON_BYTES:
            raise UnreadableInput(
                f"{shown(file.path)}: larger than {MAX_JSON_BYTES >> 20} MB, which is the most that is read of a JSON "
                f"file."
            )
        return len(data)

    for _ in file.pieces(consume):
        pass
    return b"".join(parts)


class Parquet:
    """A parquet file (W&B's exported history is one), row group by row group; read again where it changed."""

    def __init__(self, source: Source, room: Room, ask: Ask = Ask()) -> None:
        self.source, self._room, self._ask = source, room, ask
        self._file = Growing(source.path)
        self._table: Csv | None = None

    def advance(self, progress: Progress) -> bool:
        if not self._file.changed():
            return False
        import pyarrow.parquet as papq

        open_regular(Path(self.source.path).resolve()).close()  # no pipe, no device
        if self._table is not None:
            self._table._out.release()
        taken = _Arrow(self.source, self._room, self._ask)
        try:
            file = papq.ParquetFile(self.source.path)
            names = [field.name for field in file.schema_arrow]
            taken.begin(names[:MAX_COLUMNS])
            done = 0
            for batch in file.iter_batches(batch_size=1 << 16, columns=taken.header):
                taken.take(batch)
                done += len(batch)
                progress(f"reading {shown(self.source.path.name, 60)}", done, file.metadata.num_rows)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise UnreadableInput(
                f"{shown(self.source.path)}: not a sound parquet file: {shown(error, 200)}."
            ) from None
        self._table = taken
        found = self.source.path.stat()
        self._file._seen, self._file.offset = (found.st_size, found.st_mtime_ns), found.st_size
        return True

    def runs(self) -> tuple[Run, ...]:
        runs = self._table.runs() if self._table is not None else ()
        return tuple(
            Run(r.name, "parquet", r.source, r.series, r.config, r.counts, r.remarks, r.columns, r.step_column)
            for r in runs
        )


class _Arrow(Csv):
    """A table that is already in columns."""

    @property
    def header(self) -> list[str]:
        return self._header

    def begin(self, names: list[str]) -> None:
        self._header = names

    def take(self, batch: pa.RecordBatch) -> None:
        columns = []
        for name in self._header:
            column = batch.column(batch.schema.get_field_index(name))
            kind = column.type
            if (
                pa.types.is_boolean(kind)
                or pa.types.is_integer(kind)
                or pa.types.is_floating(kind)
                or pa.types.is_decimal(kind)
            ):
                columns.append(column.cast(pa.float64(), safe=False))
            elif pa.types.is_timestamp(kind):
                columns.append(pc.divide(column.cast(pa.timestamp("us")).cast(pa.int64()).cast(pa.float64()), 1e6))
            elif pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind):
                columns.append(column.cast(pa.binary()))
            elif pa.types.is_null(kind):
                columns.append(pa.nulls(len(column), pa.float64()))
            else:
                self._out.counts["not_scalar"] += len(column) - column.null_count
                columns.append(pa.nulls(len(column), pa.float64()))
        if self._roles is None:
            samples = {}
            for i, column in enumerate(columns):
                value, present, _ = self._numbers(i, column.slice(0, _SAMPLE_ROWS))
                if present.any():
                    samples[i] = np.where(present, value, np.nan)
                    self._numeric.add(i)
            self._roles = roles(self._header, samples, self._ask.step_column, shown(self.source.path))
            if self._roles.note:
                self._out.notes.append(self._roles.note)
        self._hand_over(columns)
