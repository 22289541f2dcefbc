"""WISCA inside a training run: one line for transformers' Trainer, Lightning or a plain loop.

transformers, lightning, peft and deepspeed are imported only where they are used.
"""

from wisca_core.planning.factors import Factors
from wisca_core.training.rates import param_groups
from wisca_core.training.rescaling import Rescale, rescale_
from wisca_core.training.scaler import Scaler

__all__ = ["Factors", "LightningWisca", "Rescale", "Scaler", "WiscaCallback", "param_groups", "rescale_"]


def __getattr__(name: str):
    if name == "WiscaCallback":
        from wisca_core.training.callback import WiscaCallback

        return WiscaCallback
    if name == "LightningWisca":
        from wisca_core.training.lightning_callback import LightningWisca

        return LightningWisca
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
