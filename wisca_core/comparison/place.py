"""Where a cell is trained and in which precision: a device and the context of its training step.

torch is imported inside functions: a machine without a GPU is known without it. What is done on CUDA here was written
without a GPU at hand: it ran on a pretended one only (tests/pretend_gpu).
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from wisca_core.errors import DeviceMissing

# The files a driver makes: NVIDIA's, NVIDIA's under Windows, AMD's. Without one there is no GPU to import torch for.
_DRIVERS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "cublas_status_alloc_failed")
_LOST = (
    "cuda error",
    "cudnn_status",
    "cublas_status",
    "nccl error",
    "no cuda gpus are available",
    "device-side assert",
)


@dataclass(frozen=True)
class Placement:
    """``device``: as torch writes it; ``precision``: one of spec.PRECISIONS."""

    device: str = "cpu"
    precision: str = "float32"

    @property
    def is_cuda(self) -> bool:
        return self.device.startswith("cuda")

    def ready(self, model):
        """The model on the device, its weights in float64 where that is the precision; the same object."""
        return (model.double() if self.precision == "float64" else model).to(self.device)

    @contextmanager
    def cast(self) -> Iterator[None]:
        """bfloat16 by autocast where that is the precision."""
        import torch

        if self.precision == "bfloat16":
            # no cache: a captured graph must not hold casts of weights that have moved on
            with torch.autocast(self.device.partition(":")[0], dtype=torch.bfloat16, cache_enabled=False):
                yield
        else:
            yield

    @contextmanager
    def step(self) -> Iterator[None]:
        """The forward pass of training of a transformers model."""
        with self.cast(), self.validation_step():
            yield

    @contextmanager
    def validation_step(self) -> Iterator[None]:
        """The forward pass of validation of a transformers model: true float64 where that is the precision. Never
        autocast, so that step 0 of all arms agrees to the digits of float32.
        """
        if self.precision == "float64":
            from wisca_core.equivalence.float64 import in_float64

            with in_float64():
                yield
        else:
            yield


def gpus(wanted: str) -> tuple[int, ...]:
    """Numbers of the CUDA devices meant by "auto", "cpu", "cuda" or "cuda:N", as torch counts them; none means the CPU.

    Raises DeviceMissing where a GPU is named that is not there.
    """
    if wanted == "cpu":
        return ()
    n = _n_gpus()
    if wanted == "auto":
        return tuple(range(n))
    if not n:
        raise DeviceMissing(
            f'device: {wanted} was asked for; torch finds no CUDA GPU on this machine. Use device = "cpu" or "auto". '
            "Nothing was started."
        )
    if wanted == "cuda":
        return tuple(range(n))
    number = int(wanted.partition(":")[2])
    if number >= n:
        raise DeviceMissing(
            f"device: {wanted} was asked for; this machine has cuda:0 to cuda:{n - 1}. Nothing was started."
        )
    return (number,)


def check_precision(precision: str, numbers: tuple[int, ...]) -> None:
    """Raises DeviceMissing where a GPU cannot compute in it."""
    if precision != "bfloat16" or not numbers:
        return
    import torch

    for number in numbers:
        major, minor = torch.cuda.get_device_capability(number)
        if torch.version.hip is None and major < 8:
            raise DeviceMissing(
                f"precision: bfloat16 was asked for; cuda:{number} is of compute capability {major}.{minor}, 8.0 is "
                "needed. "
                'Use precision = "float32". Nothing was started.'
            )


def visible(number: int) -> str:
    """CUDA_VISIBLE_DEVICES of a process that is to see only the ``number``-th of the devices this one sees."""
    given = [one.strip() for one in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if one.strip()]
    return given[number] if number < len(given) else str(number)


def free_bytes(number: int) -> int:
    """Of that GPU's memory."""
    import torch

    return torch.cuda.mem_get_info(number)[0]


def is_out_of_memory(error: BaseException) -> bool:
    text = str(error).lower()
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or any(words in text for words in _MEMORY)
    )


def is_device_lost(error: BaseException) -> bool:
    """Whether the device itself failed: nothing more can be asked of it by this process."""
    if is_out_of_memory(error):
        return False
    text = str(error).lower()
    return type(error).__name__ == "AcceleratorError" or any(words in text for words in _LOST)


def _n_gpus() -> int:
    if not any(os.path.exists(driver) for driver in _DRIVERS):
        return 0
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0
