"""Perplexity against a plain loop over transformers' own model, at the loop's best batch size, in the same process.

    OMP_NUM_THREADS=1 python tests/benchmarks/perplexity.py [MODEL] [WINDOWS]

Both score the same packed windows of the bundled text; three rounds in turn, the best of each counts. Prints the two
paces, their ratio, and the largest difference of a window.
"""

import sys
import time
from pathlib import Path

import numpy as np
import torch

from wisca_core.evaluation.perplexity import score
from wisca_core.evaluation.subjects import open_subject
from wisca_core.evaluation.text import Text, Windows
from wisca_core.progress import silent

SAMPLE = Path(__file__).parents[2] / "sample_runs" / "gqa-docs" / "checkpoint-3600"
SIZES = (1, 2, 4, 8, 16, 32)


@torch.inference_mode()
def plain(model, ids: torch.Tensor, size: int) -> np.ndarray:
    out = []
    for part in ids.split(size):
        logits = model(part[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), part[:, 1:].flatten(), reduction="none")
        out.append(loss.view(len(part), -1).sum(1).double())
    return torch.cat(out).numpy()


def main() -> None:
    model = sys.argv[1] if len(sys.argv) > 1 else SAMPLE
    n = int(sys.argv[2]) if len(sys.argv) > 2 else 192
    subject = open_subject(model)
    length = min(subject.context or 1024, 1024)
    windows = [w for w, _ in zip(Windows(length, length).cut(Text().tokens(subject), "text"), range(n))]
    ids = torch.from_numpy(np.stack([w for w, _ in windows]))
    plain(subject.model, ids[:2], 1)
    paces = {size: _seconds(lambda size=size: plain(subject.model, ids[:32], size))[0] for size in SIZES}
    best = min(paces, key=paces.get)
    ours = theirs = float("inf")
    for _ in range(3):
        seconds, reference = _seconds(lambda: plain(subject.model, ids, best))
        theirs = min(theirs, seconds)
        seconds, found = _seconds(lambda: score(subject, iter(windows), silent))
        ours = min(ours, seconds)
    tokens = n * length
    print(f"plain loop, batch {best}: {tokens / theirs:,.0f} tokens a second")
    print(
        f"score, batch {max(found.batches)}: {tokens / ours:,.0f} tokens a second, ratio of times {ours / theirs:.3f}"
    )
    print(f"largest difference of a window: {np.abs(found.nats - reference).max():.1e} nats of {reference.mean():.0f}")


def _seconds(work) -> tuple[float, object]:
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


if __name__ == "__main__":
    main()
