"""What a full check says: the outputs of the original and of the rescaled checkpoint in figures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wisca_core.architecture.site import Sites
from wisca_core.checkpoint import Checkpoint
from wisca_core.equivalence.proof import OTHER_KERNELS, Proof
from wisca_core.errors import CheckNotRun
from wisca_core.planning.plan import Plan
from wisca_core.words import in_bytes

if TYPE_CHECKING:
    import torch

# a control that is this much smaller says the difference is more than rounding
SUSPICIOUS = 30.0
EAGER, SDPA = "eager", "sdpa"  # attention implementations, by the names transformers has for them
INPUTS = "random inputs"  # of a LoRA adapter's products, in place of tokens


@dataclass(frozen=True)
class FullCheck:
    """Differences of ``n_values`` outputs, the worst over ``kernels``: the attention implementations that were run.
    ``tokens``: where the inputs come from, ``counted``: how many there are, in words. ``max_rel``: relative to max
    |output| of the original. ``control_max_rel``: the same for the original with the touched weights rounded at random
    (None where the outputs are bit-equal). Perplexities are per token, None where the model predicts no next token.
    ``n_generated`` tokens were generated greedily by both, ``n_same_generated`` of them are the same (up to the first
    that is not, in each text); 0 where the model does not generate. ``int8_max_rel``: the difference of the two with
    every matrix rounded to int8 by one scale a matrix, beside ``int8_error``, what that rounding does to the original;
    None where it was not run.
    """

    outputs: str
    tokens: str
    n_tokens: int
    dtype: str
    max_abs: float
    max_rel: float
    n_values: int
    n_equal: int
    top1_agreement: float | None
    perplexity_before: float | None
    perplexity_after: float | None
    bit_identical: bool
    comparable: bool  # False where the original's own outputs are not finite
    control_max_rel: float | None
    seconds: float
    not_checked: tuple[str, ...]
    counted: str
    kernels: tuple[str, ...]
    n_generated: int = 0
    n_same_generated: int = 0
    int8_max_rel: float | None = None
    int8_error: float | None = None

    def words(self) -> str:
        """One line for reports."""
        if not self.comparable:
            return "the original's own outputs are not finite, so nothing could be compared."
        if self.bit_identical:
            return (
                f"all {self.n_values:,} {self.outputs} of {self.counted} are bit-identical in "
                f"{self.dtype}{self.by_kernels}{self._further()}."
            )
        out = (
            f"largest relative difference of the {self.outputs} {self.max_rel:.1e} on {self.counted} in "
            f"{self.dtype}{self.by_kernels}"
        )
        if self.control_max_rel is not None:
            out += f"; the same weights rounded at random move them by {self.control_max_rel:.1e}"
        if self.top1_agreement is not None:
            out += f"; top-1 agreement {100 * self.top1_agreement:.2f} %"
        return out + self._further() + "."

    def _further(self) -> str:
        """Generation and int8, where they were run."""
        out = ""
        if self.n_generated:
            same = "all" if self.n_same_generated == self.n_generated else f"{self.n_same_generated} of"
            out += f"; {same} {self.n_generated} greedily generated tokens are the same"
        if self.int8_max_rel is not None and self.int8_error is not None:
            moved = "equal to the bit" if self.int8_max_rel == 0 else f"{self.int8_max_rel:.1e} apart"
            out += (
                f"; with all matrices rounded to int8 (which moves the original by {self.int8_error:.1e}) the two "
                f"are {moved}"
            )
        return out

    @property
    def by_kernels(self) -> str:
        """ ", with eager attention and sdpa", "" where no attention was run."""
        if not self.kernels:
            return ""
        return f", with eager attention{''.join(f' and {name}' for name in self.kernels if name != EAGER)}"

    def agrees(self, plan: Plan) -> bool:
        """Whether the figures are what the plan promises: equal bits where it says so, else outputs that are finite and
        move no more than rounding explains.
        """
        if self.bit_identical or not self.comparable:
            return True
        if plan.bit_identical:
            return False
        if not self.max_rel < float("inf"):
            return False
        return self.max_rel <= SUSPICIOUS * max(self.control_max_rel or 0.0, _rounding(self.dtype))

    def to_json(self) -> dict:
        out = asdict(self)
        doubtful = [
            name for name in _MAYBE if out[name] is not None and not math.isfinite(out[name])
        ]  # JSON has no infinity
        return out | {name: repr(out[name]) for name in ("max_abs", "max_rel", *doubtful)}

    @classmethod
    def from_json(cls, data: Mapping) -> FullCheck:
        # before they were kept
        earlier = {
            "counted": f"{data['n_tokens']:,} tokens",
            "kernels": [EAGER],
            "n_generated": 0,
            "n_same_generated": 0,
        }
        earlier |= {"int8_max_rel": None, "int8_error": None}
        fields = {name: (earlier | data)[name] for name in cls.__dataclass_fields__}
        numbers = {name: float(data[name]) for name in ("max_abs", "max_rel", *_MAYBE) if data[name] is not None}
        return cls(**(fields | numbers | {name: tuple(fields[name]) for name in ("not_checked", "kernels")}))


_MAYBE = ("control_max_rel", "perplexity_before", "perplexity_after", "int8_max_rel", "int8_error")


def _rounding(dtype: str) -> float:
    return {"F64": 2.0**-52, "F32": 2.0**-23, "BF16": 2.0**-7, "F16": 2.0**-10}[dtype]


def not_covered(proof: Proof | None, check: FullCheck | None) -> tuple[str, ...]:
    """What neither covers, each once; a kernel that the check was run with is not said to be missing from the proof."""
    proved = proof.not_checked if proof else ()
    if check is None:
        return tuple(dict.fromkeys(proved))
    return tuple(dict.fromkeys((*(text for text in proved if text != OTHER_KERNELS), *check.not_checked)))


def memory_needed(checkpoint: Checkpoint) -> int:
    """Bytes the check needs at its peak: one model in its stored dtype, while it is loaded, and its activations."""
    return int(1.3 * sum(t.n_bytes for t in checkpoint.tensors)) + 512 * 2**20


def memory_free() -> int | None:
    """Bytes this machine can give, None where it does not say."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
        return None
    except OSError:
        return None


def why_too_large(checkpoint: Checkpoint) -> str:
    """Why the memory does not suffice for the check, with the figures; "" where it does, or nobody knows."""
    needed, free = memory_needed(checkpoint), memory_free()
    if free is None or needed <= free:
        return ""
    return f"it needs about {in_bytes(needed)} of memory, {in_bytes(free)} are free"


def why_not_checked(checkpoint: Checkpoint, asked: bool | None) -> str:
    """ "" where the full check is to run: where it is ``asked`` for, or None and the memory suffices. Raises
    CheckNotRun where it was asked for and does not fit.
    """
    if asked is False:
        return "not asked for"
    reason = why_too_large(checkpoint)
    if reason and asked:
        raise CheckNotRun(f"the full check was asked for, but {reason}. Nothing was written.")
    return reason


def stored_dtype(checkpoint: Checkpoint, sites: Sites) -> str:
    """The dtype of most of the pairs' weights."""
    names = {leg.tensor for site in sites.sites for leg in site.legs} or checkpoint.by_name.keys()
    count: dict[str, int] = {}
    for name in names:
        tensor = checkpoint.by_name[name]
        count[tensor.dtype] = count.get(tensor.dtype, 0) + tensor.n_elements
    return max(count, key=count.get)


def random_rounding(generator: torch.Generator, block: torch.Tensor, first_row: int) -> torch.Tensor:
    """Each value one unit in the last place up or down with probability 1/12: the variance of one rounding (ulp^2 /
    12).
    """
    import torch

    draw = torch.randint(24, block.shape, generator=generator)
    return add_ulps(block, (draw == 0).to(torch.int8) - (draw == 1).to(torch.int8))


def add_ulps(block: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
    """Each value so many units in the last place further out; ``steps``: of the block's shape, small whole numbers."""
    import torch

    bits = block.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[block.element_size()])
    ordinary = (
        block.isfinite() & (block.abs() > torch.finfo(block.dtype).tiny) & (block.abs() < torch.finfo(block.dtype).max)
    )
    return torch.where(ordinary, bits + steps.to(bits.dtype), bits).view(block.dtype)
