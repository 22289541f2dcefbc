"""A CUDA GPU that is none: tensors that say "cuda:0" and are computed on the CPU.

It finds what breaks on every GPU and on no CPU: an operation that mixes the two places, a step that waits for the GPU
or copies from the host while it is captured as a graph, a graph that is replayed with numbers of the step it was
captured in, a checkpoint or a metric left on the GPU. It shows neither speed, nor the rounding of CUDA's kernels, nor
that there is a kernel for everything, nor bfloat16: torch switches autocast off where it finds no GPU.
"""

import contextlib
from collections.abc import Callable
from functools import cache

import torch
from torch.utils._python_dispatch import TorchDispatchMode

GPU = torch.device("cuda:0")
# Operations whose result is a number or a shape that only the GPU knows.
_WAITS = ("_local_scalar_dense", "nonzero", "equal", "masked_select", "_unique")


class OnGpu(torch.Tensor):
    """``held``: the values, on the CPU."""

    @staticmethod
    def __new__(cls, held: torch.Tensor):
        return torch.Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype, device=GPU
        )

    def __init__(self, held: torch.Tensor):
        self.held = held

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        with Gpu() as gpu:  # also on the engine's own threads
            return gpu.__torch_dispatch__(func, types, args, kwargs)

    # what torch reads from a tensor without asking __torch_dispatch__

    @property
    def data(self):
        return OnGpu(self.held)

    @data.setter
    def data(self, new):
        self.held = new.held

    def data_ptr(self):
        return self.held.data_ptr()

    def untyped_storage(self):
        return self.held.untyped_storage()

    def tolist(self):
        return self.to("cpu").tolist()

    def numpy(self):
        raise TypeError(
            "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory "
            "first."
        )


class Gpu(TorchDispatchMode):
    """While it is entered, tensors can be put on "cuda:0". ``waits``: how often its results were waited for; ``sent``:
    operations it was given, views left out, a replayed graph for one.
    """

    waits = 0
    sent = 0
    capturing: "Graph | None" = None

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled inside; torch would look for its compiler at every operation

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, name = dict(kwargs or {}), _name(func)
        given = _tensors((args, list(kwargs.values())))
        here = [t for t in given if isinstance(t, OnGpu)]
        wanted = kwargs.get("device")
        to_gpu = bool(here) if wanted is None else torch.device(wanted).type == "cuda"
        if name.startswith(("_to_copy", "copy_")):
            to_gpu, source = (isinstance(args[0], OnGpu), args[1]) if name.startswith("copy_") else (to_gpu, args[0])
            if isinstance(source, OnGpu) != to_gpu:
                self._crosses(func, not to_gpu)
        elif here and any(t.dim() for t in given if not isinstance(t, OnGpu)):
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! "
                f"({func})"
            )
        elif here and name.startswith(_WAITS):
            self._crosses(func, True)
        Gpu.sent += bool(here or to_gpu) and not _is_view(func)
        if wanted is not None:
            kwargs["device"] = torch.device("cpu")
        plain = _each(args, _held)
        plain_kwargs = {key: _each(value, _held) for key, value in kwargs.items()}
        out = func(*plain, **plain_kwargs)
        if name.startswith("_local_scalar_dense"):
            return out
        known = {id(t.held): t for t in here}  # an operation in place returns the very tensor it was given
        if Gpu.capturing is not None and to_gpu:
            Gpu.capturing.keep(func, plain, plain_kwargs, here, out)
        return _each(out, lambda t: known[id(t)] if id(t) in known else OnGpu(t) if to_gpu else t)

    def _crosses(self, func, down: bool) -> None:
        Gpu.waits += down
        if Gpu.capturing is not None:
            raise RuntimeError(f"CUDA error: operation not permitted when stream is capturing ({func})")


# An operation is given tensors, numbers, and lists of either, and gives tensors or lists of them: torch's own walk over
# trees of any kind takes longer than the operation.


def _tensors(value) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    return [t for one in value for t in _tensors(one)] if isinstance(value, list | tuple) else []


def _each(value, change: Callable):
    """``value`` with every tensor changed."""
    if isinstance(value, torch.Tensor):
        return change(value)
    return type(value)([_each(one, change) for one in value]) if type(value) in (list, tuple) else value


def _held(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.held if isinstance(tensor, OnGpu) else tensor


@cache
def _name(func) -> str:
    return str(func).removeprefix("aten.")


@cache
def _is_view(func) -> bool:
    """Whether it only looks at the same memory in another way."""
    return any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)


class Graph:
    """In place of torch.cuda.CUDAGraph: the operations, done again on the very memory they were captured with."""

    captured = 0

    def __init__(self):
        self._operations = []

    def keep(self, func, args, kwargs, here, out) -> None:
        held = {id(t.held) for t in here}

        def fixed(tensor: torch.Tensor) -> torch.Tensor:  # a number of the CPU is part of a captured kernel for good
            return tensor if id(tensor) in held else tensor.clone()

        kwargs = {key: _each(value, fixed) for key, value in kwargs.items()}
        self._operations.append((func, _each(args, fixed), kwargs, _tensors(out)))

    def replay(self) -> None:
        sent = Gpu.sent
        for func, args, kwargs, before in self._operations:
            for new, old in zip(_tensors(func(*args, **kwargs)), before, strict=True):
                if new.data_ptr() != old.data_ptr():
                    old.copy_(new)
        Gpu.sent = sent + 1


@contextlib.contextmanager
def _capture(graph: Graph):
    Gpu.capturing = graph
    try:
        yield
        Graph.captured += 1
    finally:
        Gpu.capturing = None


class _Stream:
    def __init__(self, *_):
        pass

    def wait_stream(self, other) -> None:
        pass


def install() -> None:
    """Let this process, into which device.cpp was preloaded, have one GPU as far as this project asks for one."""
    cuda = torch.cuda
    cuda._lazy_init = lambda: None
    cuda.Stream, cuda.current_stream, cuda.stream = _Stream, lambda *_: _Stream(), lambda _: contextlib.nullcontext()
    cuda.CUDAGraph, cuda.graph = Graph, _capture
    cuda.set_device, cuda.synchronize, cuda.empty_cache = lambda *_: None, lambda *_: None, lambda: None
    cuda.mem_get_info = lambda *_: (8 << 30, 8 << 30)
    # Module.to would set .data of a parameter of another class, which cannot be on this GPU; tied ones must stay tied
    torch.__future__.set_swap_module_params_on_conversion(True)
