"""Shards: which indices of a tensor a rank holds, sums over ranks, and agreement of all ranks on the same numbers.

DDP, FSDP2 (``fully_shard``) and tensor parallelism as DTensors, alone or together. Not covered: FSDP1 (its flat
parameters are refused by name), pipeline stages as one model.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist

from wisca_core.errors import UnsupportedCheckpoint

T = TypeVar("T")


def is_dtensor(tensor: torch.Tensor) -> bool:
    if not dist.is_available():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def local(tensor: torch.Tensor) -> torch.Tensor:
    """What this rank holds, sharing its memory; a plain tensor is itself."""
    tensor = tensor.detach()
    return tensor.to_local() if is_dtensor(tensor) else tensor


def local_indices(tensor: torch.Tensor, axis: int) -> np.ndarray | None:
    """int64, the global index along ``axis`` of each local one; None where the rank holds all of them in order.

    Found by sharding the numbers 0..n-1 in the very way the tensor is sharded, so uneven and strided shards come out
    right.
    """
    if not is_dtensor(tensor):
        return None
    from torch.distributed.tensor import Replicate, distribute_tensor

    placements = []
    for placement in tensor.placements:
        if placement.is_partial():
            raise UnsupportedCheckpoint(
                "a parameter is a partial DTensor, a sum still to be made; only whole or sharded ones can be rescaled."
            )
        dim = getattr(placement, "dim", None)
        if dim is None:
            placements.append(placement)
        elif dim % tensor.dim() != axis:
            placements.append(Replicate())
        elif type(placement).__name__ == "_StridedShard":
            placements.append(type(placement)(0, split_factor=placement.split_factor))
        else:
            placements.append(type(placement)(0))
    if all(getattr(p, "dim", None) is None for p in placements):
        return None
    numbers = torch.arange(tensor.shape[axis], device=tensor.device)
    return distribute_tensor(numbers, tensor.device_mesh, placements, src_data_rank=None).to_local().cpu().numpy()


def sum_groups(tensor: torch.Tensor) -> tuple:
    """The process groups over which the shards of ``tensor`` add up to the whole."""
    if not is_dtensor(tensor):
        return ()
    mesh = tensor.device_mesh
    return tuple(mesh.get_group(i) for i, p in enumerate(tensor.placements) if getattr(p, "dim", None) is not None)


def agreement_groups(model: torch.nn.Module, tensors: Iterable[torch.Tensor], replicated: bool) -> tuple:
    """The groups within which all ranks must use the very same factors: a last bit of difference would grow into two
    models.
    """
    from torch.nn.parallel import DistributedDataParallel

    if not (dist.is_available() and dist.is_initialized()):
        return ()
    groups = [m.process_group for m in model.modules() if isinstance(m, DistributedDataParallel)]
    for tensor in tensors:
        if is_dtensor(tensor):
            groups += [tensor.device_mesh.get_group(i) for i in range(tensor.device_mesh.ndim)]
    if replicated:
        groups.append(dist.group.WORLD)
    return tuple(dict.fromkeys(groups))


def all_reduce(table: np.ndarray, groups: Sequence, op: str, device: torch.device) -> np.ndarray:
    """The table summed ("sum") or maximised ("max") over every group in turn."""
    values = torch.from_numpy(table).to(device)
    for group in groups:
        dist.all_reduce(values, op=dist.ReduceOp.SUM if op == "sum" else dist.ReduceOp.MAX, group=group)
    return values.cpu().numpy()


def agree(table: np.ndarray, groups: Sequence, device: torch.device) -> np.ndarray:
    """The first rank's table, on every rank."""
    if not groups:
        return table
    values = torch.from_numpy(np.ascontiguousarray(table)).to(device)
    for group in groups:
        dist.broadcast(values, group_src=0, group=group)
    return values.cpu().numpy()


def once(make: Callable[[], T], groups: Sequence) -> T:
    """``make()`` on the first rank of all, its result or its error on every rank."""
    if not groups:
        return make()
    made: list = [None]
    if dist.get_rank() == 0:
        try:
            made = [(True, make())]
        except Exception as error:  # every rank must raise, else the others wait for ever
            made = [(False, error)]
    dist.broadcast_object_list(made, src=0)
    fine, value = made[0]
    if not fine:
        raise value
    return value


def reshard(model: torch.nn.Module) -> None:
    """FSDP2: free what a forward pass gathered. Edits of gathered parameters are lost, and the optimiser holds the
    shards.
    """
    if not dist.is_available():
        return
    from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel

    for module in model.modules():
        if isinstance(module, FullyShardedDataParallel):
            raise UnsupportedCheckpoint(
                "the model is wrapped by FullyShardedDataParallel (FSDP1), whose flat parameters hold no whole rows. "
                "Use fully_shard (FSDP2; fsdp_version: 2 in accelerate)."
            )
        if isinstance(module, FSDPModule):
            module.reshard()
