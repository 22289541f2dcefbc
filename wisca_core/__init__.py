"""WISCA: are the attention weights of a transformer out of balance, and what would balancing them change?

>>> import wisca_core as wisca
>>> model = wisca.open("sample_runs/gqa-docs/checkpoint-3600")
>>> model.sentences()[0]
'The query side is 4.3× heavier in the median layer; 4.0× of that is size, 1.08× is not.'
>>> plan = wisca.plan(model, granularity="group", exact=True)
>>> plan.n_changed, plan.bit_identical
(32, True)
>>> done = wisca.export(model, plan, "balanced")
>>> done.proof.passed, done.check.bit_identical
(True, True)
>>> wisca.verify(model, "balanced").verdict
'bit-identical'

Every name is loaded when it is first used; importing this package imports nothing else.
"""

from importlib import import_module
from typing import TYPE_CHECKING

# name -> the module that has it, and what it is called there
_NAMES = {
    "LightningWisca": "training.lightning_callback:LightningWisca",
    "Model": "model:Model",
    "Scaler": "training.scaler:Scaler",
    "WiscaCallback": "training.callback:WiscaCallback",
    "WiscaError": "errors:WiscaError",
    "attention": "architecture.declaration:attention",
    "compare": "comparison.whole:compare",
    "evaluate": "evaluation.whole:evaluate",
    "export": "steps:export",
    "feed_forward": "architecture.declaration:feed_forward",
    "guess": "architecture.guessing:guess",
    "heads": "circuits.table:heads",
    "open": "model:open_model",
    "param_groups": "training.rates:param_groups",
    "plan": "steps:plan",
    "prove": "steps:prove",
    "read_logs": "runs.follow:read",
    "rescale_": "training.rescaling:rescale_",
    "trajectory": "trajectories:trajectory",
    "undo": "steps:undo",
    "verify": "steps:verify",
}

__all__ = list(_NAMES)

if TYPE_CHECKING:  # for editors: "as" keeps a name that is only handed on
    from wisca_core.architecture.declaration import attention as attention
    from wisca_core.architecture.declaration import feed_forward as feed_forward
    from wisca_core.circuits.table import heads as heads
    from wisca_core.comparison.whole import compare as compare
    from wisca_core.errors import WiscaError as WiscaError
    from wisca_core.evaluation.whole import evaluate as evaluate
    from wisca_core.model import Model as Model
    from wisca_core.model import open_model as open  # noqa: F401
    from wisca_core.runs.follow import read as read_logs  # noqa: F401
    from wisca_core.steps import export as export
    from wisca_core.steps import plan as plan
    from wisca_core.steps import prove as prove
    from wisca_core.steps import undo as undo
    from wisca_core.steps import verify as verify
    from wisca_core.training.callback import WiscaCallback as WiscaCallback
    from wisca_core.training.lightning_callback import LightningWisca as LightningWisca
    from wisca_core.training.rates import param_groups as param_groups
    from wisca_core.training.rescaling import rescale_ as rescale_
    from wisca_core.training.scaler import Scaler as Scaler
    from wisca_core.trajectories import trajectory as trajectory


def __getattr__(name: str):
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    module, attribute = _NAMES[name].split(":")
    return getattr(import_module(f"{__name__}.{module}"), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
