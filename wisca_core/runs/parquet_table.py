"""Parquet tables; W&B's exported history is one."""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from wisca_core.errors import UnreadableInput
from wisca_core.progress import Progress
from wisca_core.runs.arrow_cells import cells
from wisca_core.runs.collect import Collected, MemoryBudget
from wisca_core.runs.columns import MAX_COLUMNS
from wisca_core.runs.growing import Growing
from wisca_core.runs.source import Ask, Source
from wisca_core.runs.table import Run
from wisca_core.runs.tabular import Tabular
from wisca_core.untrusted import open_regular, shown


class Parquet:
    """It is read row group by row group, and again where it changed."""

    def __init__(self, source: Source, room: MemoryBudget, ask: Ask = Ask()) -> None:
        self.source, self._room, self._ask = source, room, ask
        self._file = Growing(source.path)
        self._table: Tabular | None = None

    def advance(self, progress: Progress) -> bool:
        if not self._file.changed():
            return False
        import pyarrow.parquet as papq

        open_regular(Path(self.source.path).resolve()).close()  # no pipe, no device
        if self._table is not None:
            self._table.out.release()
        out = Collected(self._room, self.source.run)
        table = Tabular(out, self.source.run, self._ask.step_column, shown(self.source.path), untyped=False)
        try:
            file = papq.ParquetFile(self.source.path)
            header = [field.name for field in file.schema_arrow][:MAX_COLUMNS]
            done = 0
            for batch in file.iter_batches(batch_size=1 << 16, columns=header):
                columns = {name: _plain(batch.column(batch.schema.get_field_index(name)), out) for name in header}
                table.take(len(batch), {name: cells(column) for name, column in columns.items()})
                done += len(batch)
                progress(f"reading {shown(self.source.path.name, 60)}", done, file.metadata.num_rows)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise UnreadableInput(
                f"{shown(self.source.path)}: not a sound parquet file: {shown(error, 200)}."
            ) from None
        self._table = table
        self._file.all_taken()
        return True

    def runs(self) -> tuple[Run, ...]:
        table = self._table
        return (
            () if table is None else table.out.runs("parquet", str(self.source.path), table.usable, table.step_column)
        )


def _plain(column: pa.Array, out: Collected) -> pa.Array:
    """The column as ArrowColumns takes it; what is neither number, time nor text is counted and left empty."""
    kind = column.type
    if (
        pa.types.is_boolean(kind)
        or pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_decimal(kind)
    ):
        return column.cast(pa.float64(), safe=False)
    if pa.types.is_timestamp(kind):
        return pc.divide(column.cast(pa.timestamp("us")).cast(pa.int64()).cast(pa.float64()), 1e6)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind):
        return column.cast(pa.binary())
    if not pa.types.is_null(kind):
        out.counts["not_scalar"] += len(column) - column.null_count
    return pa.nulls(len(column), pa.float64())
