"""Perplexity of a text: nats of every window, their mean, its spread over windows, and bits a byte.

Batches hold as many windows as go fastest: the first ones are tried with 1, 2, 4 ... at a time, and what they gave is
kept. A second model on the same windows goes in the same batches, because rounding hangs on them.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from wisca_core.evaluation.subjects import Subject
from wisca_core.intervals import ratio_error
from wisca_core.progress import Progress

LARGEST_BATCH = 64
LOGIT_BYTES = 1 << 30  # of one batch, in float32


@dataclass(frozen=True, eq=False)
class TokenScores:
    """Sums of nats ``nats`` and counts ``counts`` of the scored tokens of every window, float64 and int64; ``batches``:
    how many windows each batch held.
    """

    nats: np.ndarray
    counts: np.ndarray
    batches: tuple[int, ...]
    seconds: float

    @property
    def per_token(self) -> np.ndarray:
        """(n windows,), nats a token."""
        return self.nats / self.counts


@torch.inference_mode()
def nats_of(model, ids: torch.Tensor, n_scored: list[int]) -> np.ndarray:
    """(n,), float64: nats of the last ``n_scored[i]`` tokens of row i of ``ids`` (n, length + 1)."""
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none")
    loss = loss.view(len(ids), -1).cpu().numpy().astype(np.float64)
    return np.array([row[-n:].sum() for row, n in zip(loss, n_scored)])


def score(
    subject: Subject,
    windows: Iterator[tuple[np.ndarray, int]],
    progress: Progress,
    n_expected: int = 0,
    batch_size: int = 0,
    like: TokenScores | None = None,
    most: int = 0,
    keep: Callable[[int, float, int], None] | None = None,
) -> TokenScores:
    """Every window (at most ``most``, 0 for all). ``batch_size``: 0 to find the fastest. ``like``: go in its batches.
    ``keep(i, nats, count)`` is told every window as soon as it is scored.
    """
    started = time.perf_counter()
    batches = _batch_sizes(like) if like else _one_size(batch_size) if batch_size else _fastest(subject)
    nats: list[float] = []
    counts: list[int] = []
    sizes: list[int] = []
    step = f"scoring the text with {subject.name}"
    size, held = next(batches), []
    windows = iter(windows)
    while True:
        one = next(windows, None) if not most or len(nats) + len(held) < most else None
        if one is not None:
            held.append(one)
        if held and (one is None or len(held) == size):
            began = time.perf_counter()
            ids = torch.from_numpy(np.stack([ids for ids, _ in held])).to(subject.device)
            found = nats_of(subject.model, ids, [n for _, n in held])
            for value, (_, n) in zip(found, held):
                if keep is not None:
                    keep(len(nats), float(value), n)
                nats.append(float(value))
                counts.append(n)
            sizes.append(len(held))
            size = batches.send((time.perf_counter() - began) / len(held))
            held = []
            progress(step, len(nats), n_expected)
        if one is None:
            break
    return TokenScores(np.array(nats), np.array(counts), tuple(sizes), time.perf_counter() - started)


def _one_size(size: int):
    while True:
        yield size


def _batch_sizes(like: TokenScores):
    sizes = iter(like.batches)
    while True:
        yield next(sizes, 1)


def _fastest(subject: Subject):
    """Sizes of batches: doubled for as long as a window takes less time, then the best one."""
    length = subject.context or 1024
    most = max(1, min(LARGEST_BATCH, LOGIT_BYTES // (4 * length * subject.vocabulary)))
    best, best_seconds, size, worse = 1, math.inf, 1, 0
    yield 1  # the first run of a model is slow: not counted
    while size <= most and worse < 2:
        seconds = yield size
        if seconds < 0.97 * best_seconds:
            best, best_seconds, worse = size, seconds, 0
        else:
            worse += 1
        size *= 2
    while True:
        yield best


def summary(scored: TokenScores, n_tokens: int, n_bytes: int) -> dict[str, Any]:
    """The row of a model: see the keys. Errors are standard errors over windows, as if windows were independent."""
    total, count = float(scored.nats.sum()), int(scored.counts.sum())
    mean = total / count
    error = ratio_error(scored.nats, scored.counts)
    to_bits = n_tokens / n_bytes / math.log(2) if n_bytes else math.nan
    perplexity = math.exp(mean) if mean < 700 else math.inf
    return {
        "perplexity": perplexity,
        "perplexity_error": perplexity * error,
        "nats_a_token": mean,
        "nats_error": error,
        "bits_a_byte": mean * to_bits,
        "bits_error": error * to_bits,
        "n_windows": len(scored.nats),
        "n_tokens": count,
        "bytes_a_token": n_bytes / n_tokens if n_tokens else math.nan,
        "batch_size": max(scored.batches, default=0),
        "seconds": scored.seconds,
    }
