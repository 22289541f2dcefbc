"""The dtypes of a checkpoint as torch has them."""

import torch

from wisca_core.checkpoint.checkpoint import TORCH_NAMES

TORCH_DTYPES: dict[str, torch.dtype] = {name: getattr(torch, of_torch) for name, of_torch in TORCH_NAMES.items()}
