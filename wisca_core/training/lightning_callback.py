"""A callback for Lightning."""

from wisca_core.training.scaler import OfTrainer
from wisca_core.training.telemetry import scalars

try:
    from lightning.pytorch import Callback
except ImportError:  # the older package name
    from pytorch_lightning import Callback


class LightningWisca(OfTrainer, Callback):
    """``Trainer(callbacks=[LightningWisca(every=250)])``. The LightningModule holds a transformers model, or
    what ``sites=`` declares, in any attribute.

    Steps are the trainer's ``global_step``: with several optimisers it counts each one's. wisca.jsonl lies in
    ``default_root_dir``; the ratios go to the trainer's loggers; the state lies in Lightning's own checkpoints. Copies
    of the weights that other callbacks hold (WeightAveraging, EMAWeightAveraging, StochasticWeightAveraging) follow by
    themselves. With ``by="rates"`` the trainer's ``gradient_clip_val`` looks at the plain norm of the gradients, by
    weights at that of the rescaled ones.
    """

    _resumed: dict | None = None

    def on_train_start(self, trainer, pl_module) -> None:
        def log(step, done) -> None:
            for logger in trainer.loggers:
                logger.log_metrics(scalars(done), step=step)

        before = self._begin(
            pl_module,
            list(trainer.optimizers),
            trainer.callbacks,
            n_steps=trainer.estimated_stepping_batches if self._has_fractions else None,
            first_step=trainer.global_step,
            on_rescale=log,
            loader=trainer.train_dataloader,
            replicated=trainer.world_size > 1,
            output=trainer.default_root_dir if trainer.is_global_zero else None,
        )
        if self._resumed is not None:
            self.scaler.load_state_dict(self._resumed)
            self._resumed = None
        elif before is not None and before.is_of(pl_module):
            self.scaler.go_on_from(before)  # fit() again: the same weights, further on

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if trainer.global_step != self.scaler.steps:  # not in the middle of an accumulation
            self.scaler.at(trainer.global_step)

    def on_train_end(self, trainer, pl_module) -> None:
        if self.scaler is not None:
            self.scaler.remove()

    def state_dict(self) -> dict:
        return self.scaler.state_dict() if self.scaler is not None else {}

    def load_state_dict(self, state_dict: dict) -> None:
        self._resumed = dict(state_dict) or None
