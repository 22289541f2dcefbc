"""One cell on several processes: weights, gradients and optimiser state sharded (FSDP2), each rank a part of the batch.

Every function is what it would be for one process where there is only one. Collective: every rank calls it.
What is done on CUDA here was written without a GPU at hand; on CPU it runs on gloo.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn


def join(store: str, device: str) -> None:
    """Meet the other ranks that RANK and WORLD_SIZE speak of, through the file ``store``, or where torchrun says.

    A file, because torch's TCP store listens on every interface; gloo and NCCL talk on loopback.
    """
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
    method = f"file://{store}" if store else "env://"
    kind = "nccl" if device.startswith("cuda") else "gloo"
    dist.init_process_group(
        kind, init_method=method, rank=int(os.environ["RANK"]), world_size=int(os.environ["WORLD_SIZE"])
    )


def n_ranks() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_first() -> bool:
    return n_ranks() == 1 or dist.get_rank() == 0


def shard_(model: nn.Module) -> None:
    """Each layer, then the rest, over all ranks."""
    if n_ranks() == 1:
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(next(model.parameters()).device.type, (n_ranks(),))
    layers = set(getattr(model, "_no_split_modules", None) or ())
    for module in model.modules():
        if type(module).__name__ in layers:
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)


def rows_of_rank(rows: torch.Tensor) -> torch.Tensor:
    """This rank's part of the rows; all of them where they do not divide."""
    n = n_ranks()
    return rows if n == 1 or len(rows) % n else rows.chunk(n)[dist.get_rank()]


def mean(value: float, device: str) -> float:
    """Over the ranks, which have parts of the same size."""
    if n_ranks() == 1:
        return value
    total = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return total.item() / n_ranks()


def first_rank_value(value: Any) -> Any:
    """The first rank's value, on every rank."""
    if n_ranks() == 1:
        return value
    held = [value]
    dist.broadcast_object_list(held, src=0)
    return held[0]


def number(value: torch.Tensor) -> float:
    """Of a 0-d tensor, a sum still spread over the ranks included."""
    return (value.full_tensor() if hasattr(value, "full_tensor") else value).item()


def model_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """The whole state dict on the CPU of the first rank, empty elsewhere."""
    from torch.distributed.checkpoint.state_dict import get_model_state_dict

    return dict(get_model_state_dict(model, options=_options()))


def optimiser_states(model: nn.Module, optimisers: Sequence[torch.optim.Optimizer]) -> list[dict]:
    """The same of the optimisers, by parameter name."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    return [dict(get_optimizer_state_dict(model, one, options=_options())) for one in optimisers]


def load_(
    model: nn.Module,
    optimisers: Sequence[torch.optim.Optimizer],
    state: Mapping[str, torch.Tensor],
    optimiser_states: Sequence[dict],
) -> None:
    """Every rank has the whole states and takes its part."""
    from torch.distributed.checkpoint.state_dict import set_model_state_dict, set_optimizer_state_dict

    set_model_state_dict(model, dict(state), options=_options())
    for one, saved in zip(optimisers, optimiser_states, strict=True):
        set_optimizer_state_dict(model, one, saved, options=_options())


def _options():
    from torch.distributed.checkpoint.state_dict import StateDictOptions

    return StateDictOptions(full_state_dict=True, cpu_offload=True)


def leave() -> None:
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
