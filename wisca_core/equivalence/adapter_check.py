"""The full check of a LoRA adapter: the product B A of every module as stored before and as stored after, on the same
random inputs, computed in float64. It needs no base model, and says nothing about one.
"""

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch

from wisca_core.architecture.site import Site, Sites
from wisca_core.checkpoint import Checkpoint, Reader, open_checkpoint
from wisca_core.checkpoint.writer import write_weights
from wisca_core.equivalence.full_check import INPUTS, FullCheck, random_rounding, stored_dtype
from wisca_core.progress import Progress, silent
from wisca_core.storage import workplace

N_INPUTS = 64


def compare_adapters(
    checkpoint: Checkpoint, sites: Sites, after: Path | Checkpoint, progress: Progress = silent
) -> FullCheck:
    """The check of the adapter ``checkpoint`` against a folder (or opened checkpoint) with the rescaled one."""
    started = time.perf_counter()
    other = after if isinstance(after, Checkpoint) else open_checkpoint(after)
    moved = _compare(checkpoint, other, sites, progress, "comparing the products")
    control = None
    if moved.n_different:
        with workplace(str(checkpoint.path)) as place:
            names = sorted({leg.tensor for site in sites.sites for leg in site.legs})
            drawn = {name: partial(random_rounding, torch.Generator().manual_seed(i)) for i, name in enumerate(names)}
            write_weights(checkpoint, drawn, place)
            (place / "adapter_config.json").write_text(checkpoint.adapter_json, encoding="utf-8")
            control = _compare(
                checkpoint,
                open_checkpoint(place),
                sites,
                progress,
                "running the control: the same weights rounded at random",
            ).max_rel
    return FullCheck(
        outputs="values of B A x",
        tokens=INPUTS,
        n_tokens=N_INPUTS,
        dtype=stored_dtype(checkpoint, sites),
        max_abs=moved.max_abs,
        max_rel=moved.max_rel,
        n_values=moved.n_values,
        n_equal=moved.n_values - moved.n_different,
        top1_agreement=None,
        perplexity_before=None,
        perplexity_after=None,
        bit_identical=not moved.n_different,
        comparable=moved.comparable,
        control_max_rel=control,
        seconds=time.perf_counter() - started,
        not_checked=("the adapter on its base model: the products were compared, in float64, not the whole model",),
        counted=f"{N_INPUTS} {INPUTS}",
        kernels=(),
    )


class _ProductChange:
    """Running figures over the modules; ``max_rel`` is relative to the largest value of each module's product."""

    def __init__(self) -> None:
        self.max_abs = self.max_rel = 0.0
        self.n_values = self.n_different = 0
        self.comparable = True

    def add(self, before: torch.Tensor, after: torch.Tensor) -> None:
        self.n_values += before.numel()
        self.n_different += int((before != after).sum())
        if not bool(before.isfinite().all()):
            self.comparable = False
            return
        gap, size = (before - after).abs().max().item(), before.abs().max().item()
        if gap != gap:  # NaN
            gap = float("inf")
        self.max_abs = max(self.max_abs, gap)
        self.max_rel = max(self.max_rel, gap / size if size else (0.0 if gap == 0 else float("inf")))


def _compare(before: Checkpoint, after: Checkpoint, sites: Sites, progress: Progress, step: str) -> _ProductChange:
    moved = _ProductChange()
    with Reader(before) as first, Reader(after) as second:
        for number, site in enumerate(sites.sites):
            progress(step, number, len(sites.sites))
            for one, other in zip(_products(first, site, number), _products(second, site, number)):
                moved.add(one, other)
    progress(step, len(sites.sites), len(sites.sites))
    return moved


def _products(reader: Reader, site: Site, seed: int) -> Iterator[torch.Tensor]:
    a, b = (reader.tensor(leg.tensor).double() for leg in site.legs)
    yield b @ (
        a @ torch.randn(a.shape[1], N_INPUTS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    )
