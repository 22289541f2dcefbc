"""transformers' trainer_state.json: its log_history, and what the file says of the run."""

from wisca_core.errors import UnreadableInput
from wisca_core.runs.collect import SourceRuns
from wisca_core.runs.json_rows import WholeJson
from wisca_core.runs.tabular import RowBuffer, Tabular
from wisca_core.untrusted import parse_json_object

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


class TrainerState(WholeJson):
    """One file; the newest of a run holds the whole history."""

    def _fill(self, content: bytes, out: SourceRuns, what: str) -> Tabular:
        state = parse_json_object(content, what, unique_keys=False)
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
        return table
