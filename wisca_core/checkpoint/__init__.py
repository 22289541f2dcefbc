"""Opening a model folder safely and reading its weights lazily; no model class, nothing executed.

>>> checkpoint = open_checkpoint("path/to/model")  # doctest: +SKIP
>>> with Reader(checkpoint) as reader:  # doctest: +SKIP
...     for first_row, block in reader.blocks("model.embed_tokens.weight"): ...
"""

from typing import TYPE_CHECKING

from wisca_core.checkpoint.checkpoint import RESCALABLE, Checkpoint, Declared, Recipe, TensorInfo, parse_config
from wisca_core.checkpoint.hub import HubSize, hub_size
from wisca_core.checkpoint.opening import open_checkpoint
from wisca_core.checkpoint.quantised import quantisation
from wisca_core.checkpoint.reader import Reader
from wisca_core.checkpoint.safetensors_header import Header, read_header

if TYPE_CHECKING:
    from wisca_core.checkpoint.torch_dtypes import TORCH_DTYPES

__all__ = [
    "RESCALABLE",
    "TORCH_DTYPES",
    "Checkpoint",
    "Declared",
    "Header",
    "HubSize",
    "Reader",
    "Recipe",
    "TensorInfo",
    "hub_size",
    "open_checkpoint",
    "parse_config",
    "quantisation",
    "read_header",
]


def __getattr__(name: str):
    """What needs torch, loaded when it is first used: looking through a folder does not."""
    if name == "TORCH_DTYPES":
        from wisca_core.checkpoint.torch_dtypes import TORCH_DTYPES

        return TORCH_DTYPES
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
