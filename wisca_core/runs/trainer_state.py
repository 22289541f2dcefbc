"""transformers' trainer_state.json: its log_history, and what the file says of the run. It is read whole, and again
where it changed.
"""

from wisca_core.errors import UnreadableInput
from wisca_core.progress import Progress
from wisca_core.runs.collect import MemoryBudget, SourceRuns
from wisca_core.runs.growing import Growing
from wisca_core.runs.json_rows import whole_file
from wisca_core.runs.source import Ask, Source
from wisca_core.runs.table import Run
from wisca_core.runs.tabular import RowBuffer, Tabular
from wisca_core.untrusted import parse_json_object, printable

_SETTINGS = (
    "max_steps",
    "num_train_epochs",
    "train_batch_size",
    "logging_steps",
    "eval_steps",
    "save_steps",
    "total_flos",
    "best_metric",
)


class TrainerState:
    """One file; the newest of a run holds the whole history."""

    def __init__(self, source: Source, room: MemoryBudget, ask: Ask = Ask()) -> None:
        self.source, self._room, self._ask = source, room, ask
        self._file, self._out, self._table = Growing(source.path), SourceRuns(room, source.run), None

    def advance(self, progress: Progress) -> bool:
        if not self._file.has_changed():
            return False
        progress(f"reading {printable(self.source.path.name, 60)}", 0, 0)
        file, out = Growing(self.source.path), SourceRuns(self._room, self.source.run)
        what = printable(self.source.path)
        state = parse_json_object(whole_file(file), what, unique_keys=False)
        history = state.get("log_history")
        if not isinstance(history, list):
            raise UnreadableInput(
                f"{what}: has no log_history; expected the trainer_state.json that transformers' Trainer writes."
            )
        out.config(
            self.source.run, {name: state[name] for name in _SETTINGS if isinstance(state.get(name), (int, float))}
        )
        table = Tabular(out, self.source.run, self._ask.step_column or "step", what, key=False)
        RowBuffer(table).add_all(history)
        self._out.release()
        self._file, self._out, self._table = file, out, table
        return True

    def runs(self) -> tuple[Run, ...]:
        usable, step = (self._table.usable, self._table.step_column) if self._table else ((), "")
        return self._out.runs("trainer_state", str(self.source.path), usable, step)
