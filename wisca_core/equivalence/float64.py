"""True float64: every cast to a shorter floating-point type inside a model becomes a cast to float64.

``model.double()`` is not enough: transformers casts to float32 inside norms, softmax and rotary embeddings, and in
float32 a right rule (5e-7) and scaling under a norm that absorbs it (9e-7) look the same. Under :func:`in_float64` the
first reads below 1e-13. A cast can hide a difference as well: a softmax in float32 swallows those below 1e-8.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from wisca_core.equivalence.undisturbed import eagerly

SHORT = frozenset({torch.float32, torch.float16, torch.bfloat16})


class _Lift(TorchDispatchMode):
    # Below the Python surface (no TorchFunctionMode), so that casts made in C++ or in scripted functions are met too.
    # torch.autocast needs no rule: it leaves float64 tensors alone.
    # A miniature's operations take less time than what is around them here, so nothing is done that can be left out.

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled inside; torch would take its compiler out and put it back at every operation

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        # dtypes stand among the arguments themselves, never inside lists: no tree need be walked on the way in
        for value in args:
            if isinstance(value, torch.dtype):
                args = tuple(map(_longer, args))
                break
        if kwargs:
            out = func(*args, **{name: _longer(value) for name, value in kwargs.items()})
        else:
            out = func(*args)
        if isinstance(out, torch.Tensor):
            # in place: the tensor handed in is the result, and it is float64 already
            return out.double() if out.dtype in SHORT and not func._schema.is_mutable else out
        if func._schema.is_mutable:
            return out
        return tree_map(lambda t: t.double() if isinstance(t, torch.Tensor) and t.dtype in SHORT else t, out)


def _longer(value):
    return torch.float64 if isinstance(value, torch.dtype) and value in SHORT else value


@contextmanager
def in_float64() -> Iterator[None]:
    """Inside, whatever asks for float32, float16 or bfloat16 gets float64; float64 is also torch's default dtype.

    Parameters and buffers must be float64 already (``model.double()``). What was computed before, such as the rotary
    frequencies made in float32 at construction, keeps its rounding: the same in both models of a comparison.

    >>> with in_float64():
    ...     torch.softmax(torch.zeros(3, dtype=torch.float64), dim=-1, dtype=torch.float32).dtype
    torch.float64
    """
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with eagerly(), _Lift():
            yield
    finally:
        torch.set_default_dtype(default)
