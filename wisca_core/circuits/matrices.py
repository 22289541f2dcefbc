"""Every matrix of a model by itself: norm, spectral norm, stable rank, outliers, kurtosis. A rescale moves most of
them.
"""

import math
import re
from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
import torch

from wisca_core.architecture.site import Sites
from wisca_core.checkpoint import TORCH_DTYPES, Checkpoint, Reader, TensorInfo
from wisca_core.circuits.columns import Column
from wisca_core.progress import Progress, silent
from wisca_core.threads import one_thread

# Of several hundred experts in a layer these many are looked at, evenly spread; the remark says so.
MOST_EXPERTS = 8
OUTLIER = 6.0
_BLOCK = 1 << 20
_WIDTH, _MOST_STEPS, _CLOSE = 8, 6, 1e-4

MATRIX_COLUMNS = (
    Column("name", "Matrix", "", None, "the tensor, with the expert where it holds several"),
    Column("part", "Part", "", None, "embedding, attention, feed-forward, head or other, by site or else by name"),
    Column("layer", "Layer", "", None, "the first number in the name, -1 for none"),
    Column("rows", "Rows", "", None, "outputs, as stored"),
    Column("columns", "Columns", "", None, "values a row"),
    Column("norm", "Norm", "Frobenius norm", None, "root of the sum of squares", log=True),
    Column("spectral_norm", "Spectral norm", "singular value", None, "largest singular value, to about 1e-3", log=True),
    Column(
        "stable_rank",
        "Stable rank",
        "directions",
        None,
        "squared Frobenius over squared spectral norm",
        ink="low",
        log=True,
    ),
    Column(
        "outliers", "Outliers", "per million", None, f"values beyond {OUTLIER:g} times the root mean square", log=True
    ),
    Column(
        "kurtosis", "Kurtosis", "", None, "fourth moment over squared variance: 3 for a normal distribution", log=True
    ),
    Column("moves", "Moves", "", None, "whether a rescale of some pair changes this matrix"),
)

_PARTS = (
    ("head", re.compile(r"(^|\.)(lm_head|score|classifier|embed_out|output_projection)\.")),
    ("embedding", re.compile(r"embed|(^|\.)(wte|wpe)\.|shared\.weight$")),
    ("attention", re.compile(r"attn|attention|self_att")),
    (
        "feed-forward",
        re.compile(r"mlp|ffn|feed_forward|experts?|fc\d?\b|fc_in|fc_out|intermediate|\.output\.dense|block_sparse_moe"),
    ),
)


def measure_matrices(
    checkpoint: Checkpoint, sites: Sites, progress: Progress = silent
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """(columns of MATRIX_COLUMNS, largest norm first; remarks). ``sites``: with feed-forward pairs, to say what moves.

    Streams: the memory of a few blocks and vectors, whatever the size of a matrix.
    """
    moved = {leg.tensor for site in sites.sites for leg in site.legs}
    role = {leg.tensor: leg.role for site in sites.sites for leg in site.legs if leg.measured}
    chosen = [t for t in checkpoint.tensors if len(t.shape) > 1 and _is_float(t) and min(t.shape) > 0]
    kept, n_left = _without_most_experts(chosen)
    total, done, out = sum(t.n_bytes for t in kept), 0, []
    with one_thread(), Reader(checkpoint) as reader:
        for tensor in kept:
            progress("measuring matrices", done, total)
            for name, shape, blocks in _each(reader, tensor):
                out.append(
                    {
                        "name": name,
                        "part": _part(tensor.name, role.get(tensor.name, "")),
                        "layer": _layer(tensor.name),
                        "rows": shape[0],
                        "columns": shape[1],
                        **_numbers(blocks, shape),
                        "moves": tensor.name in moved,
                    }
                )
            done += tensor.n_bytes
    progress("measuring matrices", total, total)
    frame = pd.DataFrame(out, columns=[column.name for column in MATRIX_COLUMNS])
    remarks = ()
    if n_left or any(len(t.shape) == 3 and t.shape[0] > MOST_EXPERTS for t in kept):
        remarks = (f"Of the experts of a layer {MOST_EXPERTS} are looked at, evenly spread; the others are left out.",)
    return frame.sort_values("norm", ascending=False, ignore_index=True), remarks


def _is_float(tensor: TensorInfo) -> bool:
    return tensor.dtype in TORCH_DTYPES and TORCH_DTYPES[tensor.dtype].is_floating_point


def _without_most_experts(tensors: list[TensorInfo]) -> tuple[list[TensorInfo], int]:
    """All but most of the experts that have a tensor each."""
    numbers: dict[str, set[int]] = {}
    pattern = re.compile(r"(experts\.)(\d+)(\.)")
    for tensor in tensors:
        if match := pattern.search(tensor.name):
            numbers.setdefault(pattern.sub(r"\1*\3", tensor.name, 1), set()).add(int(match[2]))
    keep = {name: set(_spread(sorted(found))) for name, found in numbers.items()}
    kept = []
    for tensor in tensors:
        match = pattern.search(tensor.name)
        if not match or int(match[2]) in keep[pattern.sub(r"\1*\3", tensor.name, 1)]:
            kept.append(tensor)
    return kept, len(tensors) - len(kept)


def _spread(numbers: list[int]) -> list[int]:
    if len(numbers) <= MOST_EXPERTS:
        return numbers
    return [numbers[round(i * (len(numbers) - 1) / (MOST_EXPERTS - 1))] for i in range(MOST_EXPERTS)]


Blocks = Callable[[], Iterator[torch.Tensor]]


def _each(reader: Reader, tensor: TensorInfo) -> Iterator[tuple[str, tuple[int, int], Blocks]]:
    """(name, (rows, columns), its rows in float32 blocks) of a matrix, or of each expert of a tensor that holds
    several.
    """
    if len(tensor.shape) == 3 and tensor.shape[1] > 4 and tensor.shape[2] > 4:
        for expert in _spread(list(range(tensor.shape[0]))):

            def one(expert: int = expert) -> Iterator[torch.Tensor]:
                yield reader.rows(tensor.name, expert, expert + 1)[0].float()

            yield f"{tensor.name}[{expert}]", tuple(tensor.shape[1:]), one
        return

    def whole() -> Iterator[torch.Tensor]:
        for _, block in reader.blocks(tensor.name, _BLOCK):
            yield block.float().reshape(block.shape[0], -1)

    yield tensor.name, (tensor.shape[0], math.prod(tensor.shape[1:])), whole


def _numbers(blocks: Blocks, shape: tuple[int, int]) -> dict[str, float]:
    n = shape[0] * shape[1]
    sums = np.zeros(4)
    for block in blocks():
        square = block * block
        sums += [
            block.sum(dtype=torch.float64),
            square.sum(dtype=torch.float64),
            (square * block).sum(dtype=torch.float64),
            (square * square).sum(dtype=torch.float64),
        ]
    empty = dict.fromkeys(("norm", "spectral_norm", "stable_rank", "outliers", "kurtosis"), math.nan)
    if not np.isfinite(sums).all():
        return empty
    mean, second, third, fourth = sums / n
    norm = math.sqrt(sums[1])
    if not norm:
        return empty | {"norm": 0.0, "spectral_norm": 0.0, "outliers": 0.0}
    variance = second - mean**2
    central = fourth - 4 * mean * third + 6 * mean**2 * second - 3 * mean**4
    mark = OUTLIER * math.sqrt(second)
    beyond = sum(int((block.abs() > mark).sum()) for block in blocks())
    top = _spectral_norm(blocks, shape[1]) if shape[0] > 1 and shape[1] > 1 else norm
    return {
        "norm": norm,
        "spectral_norm": top,
        "stable_rank": (norm / top) ** 2,
        "outliers": 1e6 * beyond / n,
        "kurtosis": central / variance**2 if variance > 0 else math.nan,
    }


def _spectral_norm(blocks: Blocks, n: int) -> float:
    """Block Lanczos on W^T W from a fixed random start, at most six passes; from below, exact where n is small."""
    width = min(_WIDTH, n)
    start = torch.randn(n, width, generator=torch.Generator().manual_seed(0))
    basis = torch.linalg.qr(start)[0]
    images, before, new = None, 0.0, basis
    for _ in range(_MOST_STEPS):
        image = sum(block.T @ (block @ new) for block in blocks())
        images = image if images is None else torch.cat([images, image], 1)
        small = basis.T.double() @ images.double()
        top = math.sqrt(max(float(torch.linalg.eigvalsh((small + small.T) / 2)[-1]), 0.0))
        if top - before <= _CLOSE * top or basis.shape[1] + width > n:
            return top
        before = top
        rest = image - basis @ (basis.T @ image)
        rest = rest - basis @ (basis.T @ rest)
        new = torch.linalg.qr(rest)[0]
        basis = torch.cat([basis, new], 1)
    return top


def _part(name: str, role: str) -> str:
    if role in ("q", "k", "v", "o"):
        return "attention"
    if role in ("up", "down", "gate"):
        return "feed-forward"
    return next((part for part, pattern in _PARTS if pattern.search(name)), "other")


def _layer(name: str) -> int:
    match = re.search(r"\.(\d+)\.", f".{name}")
    return int(match[1]) if match else -1
