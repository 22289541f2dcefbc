"""DeepSpeed ZeRO-1, 2 and 3: the fp32 masters and the partitioned optimiser state, through DeepSpeed's own calls.

A module's parameters are only copies there: what is written into them alone is undone at the next step. Each rank
multiplies its own part of a master and of what the optimiser keeps for it; the module's copy is then made of the
masters.

Not covered: gradients in the middle of an accumulation (rescale after an optimiser step); optimisers other than Adam,
AdamW and SGD, whose state is no longer one number a weight once it is flattened.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from wisca_core import rescale
from wisca_core.errors import BadOption, UnsupportedCheckpoint
from wisca_core.rescale import Scaling, work_dtype
from wisca_core.training.optimizer_state import States


def is_partitioned(parameter: torch.Tensor) -> bool:
    return hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping")


def is_sharded(parameter: torch.Tensor) -> bool:
    """ZeRO-3: the module's copy too lies in parts."""
    return hasattr(parameter, "ds_id")


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


@dataclass(frozen=True, eq=False)
class Fragment:
    """This rank's part, flat, of a parameter's fp32 master (``key`` "") or of what the optimiser keeps for it: the
    values ``first`` to ``first + n`` of the parameter, and behind them what pads the parts to equal lengths.
    """

    parameter: torch.Tensor
    key: str
    first: int
    n: int

    def read(self) -> torch.Tensor:
        """May share the memory of what is kept."""
        from deepspeed.utils import safe_get_local_fp32_param, safe_get_local_optimizer_state

        if not is_sharded(self.parameter):
            return self.parameter._hp_mapping.get_hp_fragment(self.key or None)
        if self.key:
            return safe_get_local_optimizer_state(self.parameter, self.key)
        return safe_get_local_fp32_param(self.parameter)

    def copy_(self, value: torch.Tensor) -> None:
        from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

        if not is_sharded(self.parameter):
            self.read().copy_(value)
        elif self.key:
            safe_set_local_optimizer_state(self.parameter, value, self.key)
        else:
            safe_set_local_fp32_param(self.parameter, value)


def fragments(parameter: torch.Tensor, states: States) -> list[tuple[Fragment, int]]:
    """(what this rank keeps of the parameter, the power of c that a rescale by c multiplies it by); nothing where all
    of it lies on other ranks.
    """
    if is_sharded(parameter):
        import deepspeed.comm

        size = parameter.ds_tensor.numel()
        first = size * deepspeed.comm.get_rank(group=parameter.ds_process_group)
        n = max(0, min(size, parameter.ds_numel - first))
    elif parameter._hp_mapping is None:
        return []
    else:
        address = parameter._hp_mapping.lp_fragment_address
        first, n = address.start, address.numel
    return [(Fragment(parameter, key, first, n), power) for key, power in {"": 1, **_keys(states)}.items()]


def module_copy(parameter: torch.Tensor) -> torch.Tensor:
    """What this rank holds of the module's own copy, sharing its memory. After an edit of it: ``settle_``."""
    return (parameter.ds_tensor if is_sharded(parameter) else parameter).detach()


def settle_(parameters: Iterable[torch.Tensor]) -> None:
    """Let go of what a forward pass put together of parts that have been edited since."""
    for parameter in parameters:
        if is_sharded(parameter) and parameter.ds_status.name == "AVAILABLE":
            parameter.partition()


def unreachable(parameters: Iterable[torch.Tensor]) -> str:
    """Why this rank's parts cannot be copied and put back, "" where they can."""
    for parameter in parameters:
        if is_sharded(parameter) and parameter.ds_tensor.status.name != "AVAILABLE":
            return "DeepSpeed has parameters on NVMe, which are not copied"
        if getattr(parameter, "ds_secondary_tensor", None) is not None:
            return "DeepSpeed keeps a second copy of the parameters within a node (hpZ), which is not copied"
    return ""


def times_(name: str, parameter: torch.Tensor, scaling: Scaling, states: States) -> None:
    """Multiply the master and the optimiser's state, each rank its part, and make the module's copy anew.
    Collective.
    """
    from deepspeed import zero

    shape = getattr(parameter, "ds_shape", parameter.shape)
    for part, power in fragments(parameter, states):
        whole = part.read().clone()
        own = whole[: part.n]
        at = np.arange(part.first, part.first + part.n)
        factors = [
            torch.from_numpy(vector[at // int(np.prod(shape[axis + 1 :])) % shape[axis]]).to(own.device)
            for axis, vector in scaling.along.items()
        ]
        if part.key:
            for factor in factors:
                own.mul_(factor**power)
        else:
            rescale.times_(own, factors, scaling.offset, work_dtype(own.dtype, scaling))
        part.copy_(whole)
    # the module's copy stays stale for one step otherwise
    master = read(name, parameter)
    if is_sharded(parameter):
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
