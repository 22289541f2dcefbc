"""Other copies of the weights: averages and references that are mixed with them have to follow a rescale.

A copy that gets the same factors stays the same function, so following is never wrong; one that does not follow is
mixed with weights in other coordinates, and its function breaks in silence.
"""

import gc
from collections.abc import Iterable, Sequence

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from wisca_core.errors import BadOption, WiscaError
from wisca_core.training import distributed
from wisca_core.training.live import Live, copy_tensors, same_transformer


def held_copies(callbacks: Iterable[object], model: nn.Module, declared: Sequence = ()) -> list[nn.Module]:
    """The copies of ``model`` that a trainer's callbacks hold: Lightning's WeightAveraging and
    StochasticWeightAveraging, TRL's SyncRefModelCallback, and every other one with such a module among its attributes.
    """
    out: list[nn.Module] = []
    for callback in callbacks:
        for value in list(vars(callback).values()) if hasattr(callback, "__dict__") else []:
            if (
                isinstance(value, nn.Module)
                and same_transformer(value, model, declared)
                and not any(value is o for o in out)
            ):
                out.append(value)
    return out


def check_none_forgotten(live: Live) -> None:
    """Raises BadOption where an AveragedModel of these very weights lives that nobody named in ``also``."""
    found = _is_forgotten(live)
    if found:
        gc.collect()  # what nobody holds any more is no average of anything
        found = _is_forgotten(live)
    if found:
        raise BadOption(
            "also: an AveragedModel of this model is kept and was not named, so it would be mixed with weights in "
            "other "
            "coordinates. Give also=[averaged] to let it follow, or also=() where it is of another training. "
            "The model is unchanged."
        )


def _is_forgotten(live: Live) -> bool:
    for one in gc.get_referrers(AveragedModel):
        if not isinstance(one, AveragedModel):
            continue
        try:
            copy = copy_tensors(one, live)
        except WiscaError:  # of another model
            continue
        name = next(iter(copy))
        mine, other = (distributed.local(t).detach() for t in (live.parameters[name], copy[name]))
        if mine.shape != other.shape or mine.is_meta or other.is_meta:
            continue
        # averages of a training are near its weights; a stranger of the same shape is root 2 away
        with torch.no_grad():
            if (other.to(mine.device, mine.dtype) - mine).norm() < 0.5 * mine.norm():
                return True
    return False
