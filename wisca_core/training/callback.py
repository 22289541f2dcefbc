"""A callback for transformers' Trainer, and for every trainer that takes its callbacks (TRL's)."""

import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from transformers import Trainer, TrainerCallback

from wisca_core.errors import BadOption
from wisca_core.storage import read_json, write_json
from wisca_core.training.scaler import STATE_VERSION, OfTrainer
from wisca_core.training.telemetry import scalars

FORMAT, VERSION = "wisca-training-state", 1
IN_TRAINER_STATE = "wisca_state"


class WiscaCallback(OfTrainer, TrainerCallback):
    """``Trainer(..., callbacks=[WiscaCallback(every=250)])``, or ``WiscaCallback(every=250).attach(trainer)`` to have
    the ratios in everything ``report_to`` names. Options: ``Schedule``'s and ``Choices``'; ``also``: other copies of
    the weights, beside those that other callbacks of the trainer hold (TRL's synced reference model), which follow by
    themselves.

    Steps are the trainer's ``global_step``. wisca.jsonl lies in the output folder, wisca_state.json in every folder the
    trainer saves the model to. The state lies in trainer_state.json as well, so a run resumed from any folder needs no
    further argument. A second callback for other pairs writes wisca_2.jsonl and wisca_state_2.json.

    With ``by="rates"`` the trainer's ``max_grad_norm`` looks at the plain norm of the gradients, by weights at that of
    the rescaled ones.
    """

    _to_log: Mapping[str, float] = MappingProxyType({})
    _number = 1

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

    def on_train_begin(self, args, state, control, model=None, optimizer=None, train_dataloader=None, **kwargs):
        if model is None:
            raise BadOption(
                "the trainer gave its callbacks no model; WiscaCallback is for transformers' Trainer and those made "
                "from it."
            )
        self._to_log = {}
        trainer = _trainer_of(self)
        callbacks = trainer.callback_handler.callbacks if trainer is not None else [self]
        mine = [one for one in callbacks if isinstance(one, WiscaCallback)]
        self._number = next(i for i, one in enumerate(mine, 1) if one is self)
        for other in mine[: self._number - 1]:
            both = set(self.choices.pairs) & set(other.choices.pairs)
            if both:
                raise BadOption(
                    f"pairs: two WiscaCallbacks of one trainer both have {', '.join(sorted(both))}; what each keeps "
                    "would "
                    "be only a part of what was done to the weights. Give each pair to one of them."
                )
        if trainer is not None:
            _write_with_the_model(trainer)
        folder = Path(args.output_dir)
        before = self._begin(
            model,
            optimizer,
            callbacks,
            n_steps=state.max_steps if self._has_fractions else None,
            first_step=state.global_step,
            replicated=args.world_size > 1,
            output=folder / self._named("wisca", "jsonl") if state.is_world_process_zero else None,
            on_rescale=self._keep,
            loader=train_dataloader,
        )
        if state.global_step > 0:
            self._resume(args, state)
        elif before is not None and before.is_of(model):
            self.scaler.go_on_from(before)  # train() again: the same weights, further on
        self._note(state)

    def _resume(self, args, state) -> None:
        found = (state.stateful_callbacks or {}).get(IN_TRAINER_STATE, {}).get(str(self._number))
        beside = Path(args.output_dir) / f"checkpoint-{state.global_step}" / self._named("wisca_state", "json")
        if found is None and beside.is_file():
            found = read_json(beside, FORMAT, VERSION)
        if found is None:
            what = (
                "rates are the plain ones until they are renewed"
                if self.choices.by == "rates"
                else "factors start anew"
            )
            warnings.warn(
                f"wisca: this run goes on at step {state.global_step} from a checkpoint without a state of this "
                "callback; "
                f"its {what}.",
                RuntimeWarning,
                stacklevel=2,
            )
            return
        self.scaler.load_state_dict({**found, "step": state.global_step, "state_version": STATE_VERSION})

    def on_step_end(self, args, state, control, **kwargs):
        if self.scaler is not None and self.scaler.at(state.global_step) is not None:
            self._note(state)

    def on_save(self, args, state, control, **kwargs):
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero and folder.is_dir():
            self.write_state(folder)

    def on_push_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.write_state(Path(args.output_dir))

    def on_train_end(self, args, state, control, **kwargs):
        """The trainer may have loaded the weights of its best step by now: factors and momentum go back with them."""
        if self.scaler is None:
            return
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:
            beside = Path(state.best_model_checkpoint) / self._named("wisca_state", "json")
            if beside.is_file():
                kept = read_json(beside, FORMAT, VERSION) | {"state_version": STATE_VERSION}
                self.scaler.go_back_to(kept)
            else:
                warnings.warn(
                    f"wisca: {beside} is missing, so it is not known by which factors the loaded best model was "
                    "rescaled; "
                    "wisca_state.json is that of the last step.",
                    RuntimeWarning,
                    stacklevel=2,
                )
            self._note(state)
        self.scaler.remove()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs is not None and self._to_log:
            logs.update(self._to_log)
            self._to_log = {}

    def write_state(self, folder: Path) -> None:
        """wisca_state.json beside a model that is saved now."""
        if self.scaler is not None:
            write_json(Path(folder) / self._named("wisca_state", "json"), FORMAT, VERSION, self._state())

    def _state(self) -> dict:
        return {key: value for key, value in self.scaler.state_dict().items() if key != "state_version"}

    def _note(self, state) -> None:
        """Into trainer_state.json, which goes wherever the checkpoint goes."""
        if state.stateful_callbacks is None:
            state.stateful_callbacks = {}
        state.stateful_callbacks.setdefault(IN_TRAINER_STATE, {})[str(self._number)] = self._state()

    def _named(self, stem: str, ending: str) -> str:
        return f"{stem}.{ending}" if self._number == 1 else f"{stem}_{self._number}.{ending}"

    def _keep(self, step, done) -> None:
        self._to_log = scalars(done)


def _trainer_of(callback: WiscaCallback) -> Trainer | None:
    """The trainer that is calling. transformers gives its callbacks a model and an optimiser, but neither the other
    callbacks nor a word when the model is saved.
    """
    frame = sys._getframe(1)
    while frame is not None:
        one = frame.f_locals.get("self")
        if isinstance(one, Trainer) and any(c is callback for c in one.callback_handler.callbacks):
            return one
        frame = frame.f_back
    return None


def _write_with_the_model(trainer: Trainer) -> None:
    """From now on ``trainer.save_model`` writes the states beside the model, and so does a push, which calls it."""
    save = trainer.save_model
    if getattr(save, "writes_wisca_state", False):
        return

    def save_model(output_dir=None, *args, **kwargs):
        # before the model, because a save may end in a push of the folder
        folder = Path(output_dir if output_dir is not None else trainer.args.output_dir)
        if trainer.is_world_process_zero():
            folder.mkdir(parents=True, exist_ok=True)
            for one in trainer.callback_handler.callbacks:
                if isinstance(one, WiscaCallback):
                    one.write_state(folder)
        return save(output_dir, *args, **kwargs)

    save_model.writes_wisca_state = True
    trainer.save_model = save_model


class _OffTheConsole(TrainerCallback):
    """Takes the ratios out of the logs again before they are printed: two lines a layer are for plots."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        for name in [name for name in logs or () if name.startswith("wisca/")]:
            del logs[name]
