"""A callback for transformers' Trainer, and for every trainer that takes its callbacks (TRL's)."""

from collections.abc import Sequence
from pathlib import Path

from transformers import TrainerCallback

from wisca_core.architecture.site import DEFAULT_PAIRS
from wisca_core.errors import BadOption
from wisca_core.storage import read_json, write_json
from wisca_core.training.scaler import STATE_VERSION, Scaler, made
from wisca_core.training.schedule import Schedule
from wisca_core.training.telemetry import scalars

FILE, FORMAT, VERSION = "wisca_state.json", "wisca-training-state", 1


class WiscaCallback(TrainerCallback):
    """``Trainer(..., callbacks=[WiscaCallback(every=250)])``, or ``WiscaCallback(every=250).attach(trainer)`` to have
    the ratios in everything ``report_to`` names. Options: ``Schedule``'s and ``Choices``'; ``also``: other copies of
    the weights.

    Steps are the trainer's ``global_step``. wisca.jsonl lies in the output folder, wisca_state.json in every checkpoint
    folder; a resumed run needs no further argument.
    """

    def __init__(
        self,
        *,
        every: int | None = 250,
        at_start: bool = True,
        start: int = 0,
        stop: int | None = None,
        also: Sequence[object] = (),
        pairs: Sequence[str] = DEFAULT_PAIRS,
        **choices,
    ):
        self.schedule = Schedule(every, at_start, start, stop)
        self.choices = made(pairs, choices)
        self._options = dict(every=every, at_start=at_start, start=start, stop=stop, also=also, pairs=pairs, **choices)
        self._to_log: dict[str, float] = {}
        self.scaler: Scaler | None = None

    def attach(self, trainer) -> "WiscaCallback":
        """Put it ahead of the trainer's own integrations, so that TensorBoard, W&B and the others get the ratios.
        Returns itself.
        """
        from transformers.trainer_callback import PrinterCallback, ProgressCallback

        callbacks = trainer.callback_handler.callbacks
        callbacks[:] = [one for one in callbacks if one is not self and not isinstance(one, _OffTheConsole)]
        callbacks.insert(0, self)
        printers = [i for i, one in enumerate(callbacks) if isinstance(one, (PrinterCallback, ProgressCallback))]
        if printers:
            callbacks.insert(printers[0], _OffTheConsole())
        return self

    def on_train_begin(self, args, state, control, model=None, optimizer=None, **kwargs):
        if model is None:
            raise BadOption(
                "the trainer gave its callbacks no model; WiscaCallback is for transformers' Trainer and those made "
                "from it."
            )
        self._to_log = {}
        folder = Path(args.output_dir)
        self.scaler = Scaler(
            model,
            optimizer,
            **self._options,
            first_step=state.global_step,
            replicated=args.world_size > 1,
            output=folder if state.is_world_process_zero else None,
            on_rescale=self._keep,
        )
        if state.global_step > 0:
            resumed = folder / f"checkpoint-{state.global_step}" / FILE
            if resumed.is_file():
                self.scaler.load_state_dict(read_json(resumed, FORMAT, VERSION) | {"state_version": STATE_VERSION})

    def on_step_end(self, args, state, control, **kwargs):
        if self.scaler is not None:
            self.scaler.at(state.global_step)

    def on_save(self, args, state, control, **kwargs):
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if self.scaler is not None and state.is_world_process_zero and folder.is_dir():
            kept = {key: value for key, value in self.scaler.state_dict().items() if key != "state_version"}
            write_json(folder / FILE, FORMAT, VERSION, kept)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs is not None and self._to_log:
            logs.update(self._to_log)
            self._to_log = {}

    def _keep(self, step, done) -> None:
        self._to_log = scalars(done.ratios)


class _OffTheConsole(TrainerCallback):
    """Takes the ratios out of the logs again before they are printed: two lines a layer are for plots."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        for name in [name for name in logs or () if name.startswith("wisca/")]:
            del logs[name]
