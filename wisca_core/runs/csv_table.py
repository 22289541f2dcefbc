"""CSV and TSV tables; Lightning's metrics.csv and what W&B exports are such tables.

A file is read in pieces and columns, so that a gigabyte costs seconds and little memory; rows that do not fit the header
are counted. Not covered: line breaks inside quoted cells (such rows are counted as damaged), compressed files.
"""

import csv
import io
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pacsv

from wisca_core.errors import UnreadableInput
from wisca_core.runs.arrow_columns import ArrowColumns
from wisca_core.runs.columns import MAX_COLUMNS
from wisca_core.runs.file_reader import FileReader
from wisca_core.runs.growing import Replaced
from wisca_core.runs.table import Run
from wisca_core.untrusted import shown

MAX_CONFIG_BYTES = 10 << 20
_EMPTY = ["", "null", "None", "NULL"]


class Csv(FileReader):
    """A CSV or TSV file. A hparams.yaml beside Lightning's metrics.csv is the run's configuration."""

    piece_bytes = 8 << 20

    def _begin(self) -> None:
        super()._begin()
        self._table = ArrowColumns(
            self._out, self.source.run, self._ask.step_column, shown(self.source.path), untyped=True
        )
        self._delimiter = ","
        self._open_tail = False
        config = _hparams_beside(self.source.path)
        if config:
            self._out.config(self.source.run, config)

    def runs(self) -> tuple[Run, ...]:
        return self._out.runs("csv", str(self.source.path), self._table.usable, self._table.step_column)

    def _consume(self, data: bytes, at_end: bool) -> int:
        if self._open_tail:
            if data[:1] not in (b"\n", b"\r"):
                raise Replaced
            self._open_tail = False
        end = data.rfind(b"\n") + 1
        if at_end and end < len(data) and (not self._ask.live or self._file.rests()):
            end, self._open_tail = len(data), True
        body = data[:end]
        if not self._table.header:
            body = self._take_header(body)
            if not self._table.header:
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
            self._table.header.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
        return rest

    def _take(self, body: bytes) -> None:
        columns = self._columns(body)
        if columns is not None:
            self._table.take(columns)

    def _columns(self, body: bytes) -> list[pa.Array] | None:
        """Arrow arrays a column: float64 where all of the piece is, else binary."""

        def bad(row) -> str:
            self._out.damaged()
            return "skip"

        names = [str(i) for i in range(len(self._table.header))]
        for numeric in (self._table.numeric, set()):
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
