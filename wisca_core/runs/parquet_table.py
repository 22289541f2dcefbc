"""Parquet tables; W&B's exported history is one. A small file may unpack to any size, so it is unpacked apart."""

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from wisca_core import apart
from wisca_core.errors import UnreadableInput
from wisca_core.progress import Progress
from wisca_core.runs.arrow_cells import cells
from wisca_core.runs.collect import MemoryBudget, SourceRuns
from wisca_core.runs.columns import MAX_COLUMNS
from wisca_core.runs.growing import Growing
from wisca_core.runs.source import Ask, Source
from wisca_core.runs.table import Run
from wisca_core.runs.tabular import Tabular
from wisca_core.untrusted import open_regular, printable

# Cells that a batch is made for, and the bytes of one that are handed over.
_BATCH_CELLS = 2_000_000
_BATCH_BYTES = 32 << 20
# Text that is longer is no number, step, time or name of a run.
_TEXT_BYTES = 1024
# Sound tables repeat themselves: counted steps and constant columns take hardly any room in the file.
MOST_UNPACKED, FREE_BYTES = 200, 128_000_000
_SECONDS = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}


class Parquet:
    """It is read batch by batch, and again where it changed."""

    def __init__(self, source: Source, room: MemoryBudget, ask: Ask = Ask()) -> None:
        self.source, self._room, self._ask = source, room, ask
        self._file = Growing(source.path)
        self._table: Tabular | None = None

    def advance(self, progress: Progress) -> bool:
        if not self._file.has_changed():
            return False
        if self._table is not None:
            self._table.out.release()
        out = SourceRuns(self._room, self.source.run)
        table = Tabular(out, self.source.run, self._ask.step_column, printable(self.source.path), untyped=False)
        done = 0
        with closing(_apart("batches", self.source.path)) as batches:
            for piece in batches:
                batch = pa.ipc.open_stream(piece).read_next_batch()
                words = {key.decode(): int(value) for key, value in batch.schema.metadata.items()}
                out.counts["not_scalar"] += words["not_scalar"]
                table.take(len(batch), {name: cells(batch.column(i)) for i, name in enumerate(batch.schema.names)})
                done += len(batch)
                progress(f"reading {printable(self.source.path.name, 60)}", done, words["n_rows"])
        self._table = table
        self._file.all_taken()
        return True

    def runs(self) -> tuple[Run, ...]:
        table = self._table
        return (
            () if table is None else table.out.runs("parquet", str(self.source.path), table.usable, table.step_column)
        )


def columns_of(path: Path) -> list[str]:
    """Names of the columns of a parquet file. Raises UnreadableInput."""
    with closing(_apart("names", path)) as found:
        return json.loads(b"".join(found))


def _apart(function: str, path: Path) -> Iterator[bytes]:
    real = Path(path).resolve()
    open_regular(real).close()  # no pipe, no device
    return apart.pieces(f"{__name__}:{function}", str(real), printable(path))


# --- in the process apart ---------------------------------------------------------------------------------------------


def names(path: str) -> Iterator[bytes]:
    """The names of its columns as a JSON list."""
    with _NamedErrors(path):
        yield json.dumps(_open(path).schema_arrow.names[:MAX_COLUMNS]).encode()


def batches(path: str) -> Iterator[bytes]:
    """Its rows in order as Arrow streams of one batch, of float64 and binary columns; how many entries are no single
    number (not_scalar), and rows there are in all (n_rows), stand in the metadata.
    """
    with _NamedErrors(path):
        file = _open(path)
        header = file.schema_arrow.names[:MAX_COLUMNS]
        n_cells = 0
        _check_ratio(path, file.metadata.num_rows * len(header))
        rows = max(64, min(1 << 16, _BATCH_CELLS // max(1, len(header))))
        for batch in file.iter_batches(batch_size=rows, columns=header, use_threads=False):
            n_cells += len(batch) * len(header)
            _check_ratio(path, n_cells)  # where the footer said less
            not_scalar, columns = 0, []
            for i in range(len(header)):
                n, column = _plain(batch.column(i))
                not_scalar += n
                columns.append(column)
            metadata = {"not_scalar": str(not_scalar), "n_rows": str(file.metadata.num_rows)}
            plain = pa.record_batch(columns, names=header, metadata=metadata)
            step = max(1, len(plain) * _BATCH_BYTES // max(plain.nbytes, _BATCH_BYTES))
            for at in range(0, len(plain), step):
                sink = pa.BufferOutputStream()
                with pa.ipc.new_stream(sink, plain.schema) as stream:
                    stream.write_batch(plain.slice(at, step))
                yield sink.getvalue().to_pybytes()
                plain = plain.replace_schema_metadata(metadata | {"not_scalar": "0"})  # counted once


def _check_ratio(path: str, n_cells: int) -> None:
    n_bytes = Path(path).stat().st_size
    if n_cells * 8 > MOST_UNPACKED * n_bytes + FREE_BYTES:
        raise UnreadableInput(
            f"{printable(path)}: unpacks to over {MOST_UNPACKED} times its {n_bytes:,} bytes, as no log does; nothing "
            "of it is used."
        )


class _NamedErrors:
    """Arrow's errors in our words."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __enter__(self) -> None:
        pa.set_memory_pool(pa.system_memory_pool())  # the others reserve more than the limit before they use it

    def __exit__(self, _kind, error, _trace) -> None:
        if isinstance(error, (pa.ArrowException, OSError, ValueError)) and not isinstance(error, MemoryError):
            raise UnreadableInput(
                f"{printable(self.path)}: not a sound parquet file: {printable(error, 200)}."
            ) from None


def _open(path: str):
    import pyarrow.parquet as papq

    return papq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20)


def _plain(column: pa.Array) -> tuple[int, pa.Array]:
    """(entries that are neither number, time nor text, the column as ``cells`` takes it, without them)."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return _plain(column.dictionary_decode())
    if (
        pa.types.is_boolean(kind)
        or pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_decimal(kind)
    ):
        return 0, column.cast(pa.float64(), safe=False)
    if pa.types.is_date(kind):
        return _plain(column.cast(pa.timestamp("s"), safe=False))
    if pa.types.is_timestamp(kind) or pa.types.is_duration(kind):
        return 0, pc.divide(column.cast(pa.int64()).cast(pa.float64(), safe=False), _SECONDS[kind.unit])
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind):
        return 0, pc.binary_slice(column.cast(pa.binary()), 0, _TEXT_BYTES)
    return len(column) - column.null_count, pa.nulls(len(column), pa.float64())
