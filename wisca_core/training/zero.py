"""DeepSpeed ZeRO-1, 2 and 3: the fp32 masters and the partitioned optimiser state, through DeepSpeed's own calls.

A module's parameters are only copies there: what is written into them alone is undone at the next step. One tensor at a
time is put together on every rank, multiplied, and taken apart again.

Not covered: gradients in the middle of an accumulation (rescale after an optimiser step); optimisers other than Adam,
AdamW and SGD, whose state is no longer one number a weight once it is flattened.
"""

import torch

from wisca_core import rescale
from wisca_core.errors import BadOption, UnsupportedCheckpoint
from wisca_core.rescale import Scaling, along_axis, work_dtype
from wisca_core.training.optimizer_state import States


def is_partitioned(parameter: torch.Tensor) -> bool:
    return hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping")


def read(name: str, parameter: torch.Tensor) -> torch.Tensor:
    """The whole fp32 master, on every rank. Raises UnsupportedCheckpoint where DeepSpeed has none."""
    from deepspeed.utils import safe_get_full_fp32_param

    if not parameter.requires_grad:
        raise UnsupportedCheckpoint(
            f"{name} is frozen under DeepSpeed, so there is no master to rescale. Rescale it before "
            "deepspeed.initialize."
        )
    found = safe_get_full_fp32_param(parameter)
    if found is None:
        raise UnsupportedCheckpoint(
            f"{name}: DeepSpeed gives no fp32 master for it; with this stage or offload it cannot be rescaled. "
            "Rescale before deepspeed.initialize, or use stage 1, 2 or 3 without offload."
        )
    return found


def check(states: States) -> None:
    """Raises BadOption where there is no optimiser, or one whose state cannot be taken apart."""
    if states.mode == "leave":
        return
    if not states.optimizers:
        raise BadOption(
            "optimizer: under DeepSpeed the engine's optimiser is needed (engine.optimizer), or "
            "optimizer_state='leave'."
        )
    for optimizer in states.optimizers:
        if "Adafactor" in type(optimizer).__name__ or "Muon" in type(optimizer).__name__:
            raise BadOption(
                f"optimizer: the state of {type(optimizer).__name__} is flattened under DeepSpeed and cannot be "
                "carried over. "
                "Give optimizer_state='leave'."
            )


def times_(name: str, parameter: torch.Tensor, scaling: Scaling, states: States) -> None:
    from deepspeed import zero
    from deepspeed.utils import safe_get_full_optimizer_state, safe_set_full_fp32_param, safe_set_full_optimizer_state

    master = read(name, parameter).clone()
    factors = [
        along_axis(torch.from_numpy(vector).to(master.device), axis, master.dim())
        for axis, vector in scaling.along.items()
    ]
    rescale.times_(master, factors, scaling.offset, work_dtype(master.dtype, scaling))
    safe_set_full_fp32_param(parameter, master)
    for key, power in _keys(states).items():
        state = safe_get_full_optimizer_state(parameter, key)
        if state is None:
            continue
        state = state.reshape(master.shape).clone()
        for factor in factors:
            state.mul_(factor**power)
        safe_set_full_optimizer_state(parameter, state, key)
    # the module's copy stays stale for one step otherwise
    if hasattr(parameter, "ds_id"):
        with zero.GatheredParameters([parameter], modifier_rank=0):
            parameter.data.copy_(master)
    else:
        parameter.data.copy_(master)


def _keys(states: States) -> dict[str, int]:
    out = {}
    if states.mode == "transport":
        for optimizer in states.optimizers:
            kept = {key for state in optimizer.state.values() for key in state}
            out |= {key: power for key, power in states.rule_of(optimizer).items() if key in kept}
    return out
