"""Live tensors in the words of a checkpoint, so that one set of rules reads both."""

from collections.abc import Iterable
from pathlib import Path

import torch

from wisca_core.checkpoint.checkpoint import Checkpoint, TensorInfo
from wisca_core.checkpoint.torch_dtypes import TORCH_DTYPES
from wisca_core.wrappers import unwrapped_name

DTYPE_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}


def full_shape(parameter: torch.Tensor) -> tuple[int, ...]:
    """Of the whole parameter, also where ZeRO-3 has taken it apart."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def live_checkpoint(tensors: Iterable[tuple[str, torch.Tensor]], source: str, config_json: str = "") -> Checkpoint:
    """Of these names and tensors."""
    found = tuple(
        TensorInfo(name, DTYPE_NAMES.get(t.dtype, str(t.dtype)), full_shape(t), "", 0, t.numel() * t.element_size())
        for name, t in tensors
    )
    return Checkpoint(Path(), source, "live", config_json, found, ())


def module_checkpoint(model: torch.nn.Module) -> Checkpoint:
    """Of the module's parameters, without what wrappers put into their names; it has no config."""
    named = model.named_parameters(remove_duplicate=False)
    return live_checkpoint(((unwrapped_name(name), p) for name, p in named), type(model).__name__)
