"""Running somebody's model and leaving no trace in it: random states, training modes, buffers and the default dtype are
what they were.
"""

import random
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy as np
import torch
from torch import nn


@contextmanager
def keep_random_states() -> Iterator[None]:
    """torch's (of every device in use), NumPy's and Python's random numbers go on as if nothing had been drawn
    inside.
    """
    host, numbers, python = torch.get_rng_state(), np.random.get_state(), random.getstate()
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    try:
        yield
    finally:
        torch.set_rng_state(host)
        np.random.set_state(numbers)
        random.setstate(python)
        for number, state in enumerate(devices):
            torch.cuda.set_rng_state(state, number)


def seed_torch(seed: int) -> None:
    """The random numbers of torch's own generators are the same each time."""
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:  # for devices that are not there it takes as long as a small model does for its outputs
        torch.default_generator.manual_seed(seed)


def seed_all(seed: int) -> None:
    """The random numbers a call may draw are the same each time."""
    seed_torch(seed)
    np.random.seed(seed)
    random.seed(seed)


def eagerly() -> AbstractContextManager[None]:
    """Inside, what was compiled runs as it was written. Importing the compiler for that would take longer than all
    else.
    """
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


@contextmanager
def leave_as_found(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in eval mode, without gradients and run eagerly; afterwards its modes and buffers, to the
    bit, and all random states are those of before.
    """
    modes = [(module, module.training) for module in model.modules()]
    buffers = [
        (module, name, buffer, buffer.detach().clone() if buffer is not None and not buffer.is_meta else None)
        for module in model.modules()
        for name, buffer in module._buffers.items()
    ]
    with keep_random_states(), torch.no_grad(), eagerly():
        try:
            model.eval()
            yield
        finally:
            for module, mode in modes:
                module.training = mode
            for module, name, buffer, value in buffers:
                module._buffers[name] = buffer
                if value is not None and not torch.equal(buffer, value):
                    buffer.copy_(value)
