"""CSV and TSV tables; Lightning's metrics.csv and what W&B exports are such tables.

A file is read in pieces and columns, so that a gigabyte costs seconds and little memory; rows that do not fit the
header are counted. A header that stands again, with the same columns or others, holds from there on. Not covered: line
breaks inside quoted cells (such rows are counted as damaged), compressed files.
"""

import csv
import re

import pyarrow as pa
import pyarrow.csv as pacsv

from wisca_core.errors import UnreadableInput
from wisca_core.runs.arrow_cells import cells
from wisca_core.runs.columns import MAX_COLUMNS, is_step_name
from wisca_core.runs.file_reader import FileReader
from wisca_core.runs.growing import Replaced
from wisca_core.runs.tabular import plain_number
from wisca_core.untrusted import printable

_EMPTY_LINES = re.compile(rb"[\r\n]*")
_EMPTY = ["", "null", "None", "NULL"]


class Csv(FileReader):
    """A CSV or TSV file. A hparams.yaml beside Lightning's metrics.csv is the run's configuration."""

    piece_bytes = 8 << 20

    def _begin(self) -> None:
        super()._begin()
        self._table = self._tabular()
        self._header: list[str] = []
        self._marks: list[bytes] = []
        self._numeric: set[str] = set()
        self._delimiter = ","
        self._old_ends = False
        self._open_tail = False
        if self.source.path.name == "metrics.csv":
            self._out.config(self.source.run, self._settings_in(self.source.path.with_name("hparams.yaml")))

    def _consume(self, data: bytes, at_end: bool) -> int:
        if self._open_tail:
            if data[:1] not in (b"\n", b"\r"):
                raise Replaced
            self._open_tail = False
        if not self._header and b"\n" not in data and b"\r" in data[:-1]:
            self._old_ends = True  # lines end with a carriage return alone
        if self._old_ends:
            data = data.replace(b"\r", b"\n")
        end = data.rfind(b"\n") + 1
        if at_end and end < len(data) and (not self._ask.live or self._file.rests()):
            end, self._open_tail = len(data), True
        body = data[:end]
        if not self._header:
            body = self._take_header(body)
            if not self._header:
                return end
        at = 0
        for begin, stop in self._headers_in(body):
            self._take(body[at:begin])
            self._out.counts["header"] += 1
            self._new_header(body[begin:stop].decode("utf-8", "replace").strip("\r\n"))
            at = stop
        self._take(body[at:] if at else body)
        return end

    def _take_header(self, body: bytes) -> bytes:
        body = body.removeprefix(b"\xef\xbb\xbf").lstrip(b"\r\n")
        first, _, rest = body.partition(b"\n")
        if not first.strip():
            return b""
        text = first.decode("utf-8", "replace").rstrip("\r")
        self._delimiter = max(",\t;", key=text.count)
        self._new_header(text)
        return rest

    def _new_header(self, text: str) -> None:
        names = self._cells(text)
        if names is None or len(names) > MAX_COLUMNS:
            n = f"{len(names):,} columns, at most {MAX_COLUMNS:,} are read" if names else "its first line is no header"
            raise UnreadableInput(f"{printable(self.source.path)}: {n}.")
        seen: dict[str, int] = {}
        self._header = []
        for name in names:  # two columns of one name stay two metrics
            seen[name] = seen.get(name, 0) + 1
            self._header.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
        # a header that stands again names the step once more, or at least one of these
        steps = [name for name in names if is_step_name(name.strip().lower())]
        self._marks = [name.encode("utf-8", "replace") for name in steps[:2] or sorted(names, key=len)[-2:] if name]

    def _cells(self, line: str) -> list[str] | None:
        try:
            return next(csv.reader([line], delimiter=self._delimiter), None)
        except csv.Error:
            return None

    def _headers_in(self, body: bytes) -> list[tuple[int, int]]:
        """(begin, end) of each line of ``body`` that is a header: names only, one of them a step's or known."""
        out: list[tuple[int, int]] = []
        for mark in self._marks:
            # one byte is looked for ten times as fast as several, and numbers have few letters
            if any(body.find(mark[i : i + 1]) < 0 for i in range(len(mark))):
                continue
            at = body.find(mark)
            while at >= 0 and len(out) < 1000:
                begin, end = body.rfind(b"\n", 0, at) + 1, body.find(b"\n", at) + 1 or len(body)
                if end - begin < 1 << 16 and self._is_header(body[begin:end].decode("utf-8", "replace").strip("\r\n")):
                    out.append((begin, end))
                at = body.find(mark, end) if end < len(body) else -1
            if out:
                break
        return out

    def _is_header(self, line: str) -> bool:
        names = self._cells(line)
        if not names or len(names) < 2:
            return False
        known = set(self._header)
        return all(name and plain_number(name) is None for name in names) and (
            names == self._header or any(is_step_name(name.strip().lower()) and name in known for name in names)
        )

    def _take(self, body: bytes) -> None:
        if _EMPTY_LINES.fullmatch(body):
            return
        columns = self._columns(body)
        if columns is not None and len(columns[0]):
            taken = {name: cells(column) for name, column in zip(self._header, columns)}
            self._numeric = {name for name, one in taken.items() if len(one.rows) and not len(one.texts)}
            self._table.take(len(columns[0]), taken)

    def _columns(self, body: bytes) -> list[pa.Array] | None:
        """Arrow arrays a column: float64 where all of the piece is, else binary."""

        def bad(row) -> str:
            self._out.damaged()
            return "skip"

        names = [str(i) for i in range(len(self._header))]
        for numeric in (self._numeric, set()):
            types = {str(i): pa.float64() if name in numeric else pa.binary() for i, name in enumerate(self._header)}
            before = self._out.counts["damaged"]
            try:
                table = pacsv.read_csv(
                    pa.BufferReader(body),
                    pacsv.ReadOptions(use_threads=True, column_names=names, block_size=max(1 << 20, len(body) + 1)),
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
                raise UnreadableInput(f"{printable(self.source.path)}: not a table: {printable(error, 200)}.") from None
            columns = [table.column(i) for i in range(len(names))]
            return [one.chunk(0) if one.num_chunks == 1 else one.combine_chunks() for one in columns]
        return None
