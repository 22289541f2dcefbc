"""A JSON list of rows."""

from wisca_core.errors import UnreadableInput
from wisca_core.runs.collect import SourceRuns
from wisca_core.runs.json_rows import WholeJson
from wisca_core.runs.tabular import RowBuffer, Tabular
from wisca_core.untrusted import parse_json_object


class JsonList(WholeJson):
    """One list."""

    def _fill(self, content: bytes, out: SourceRuns, what: str) -> Tabular:
        rows = parse_json_object(b'{"rows":' + content + b"}", what, unique_keys=False)["rows"]
        if not isinstance(rows, list):
            raise UnreadableInput(f"{what}: holds a JSON {type(rows).__name__}, expected a list of rows.")
        table = Tabular(out, self.source.run, self._ask.step_column, what)
        RowBuffer(table).add_all(rows)
        return table
