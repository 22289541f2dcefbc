"""What per-document results allow one to say: scores with their errors, constant answers, and differences over the same
documents.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from wisca_core.comparison.statistics import RESAMPLES
from wisca_core.evaluation.tasks import Document
from wisca_core.intervals import CONFIDENCE, half_width, ratio_error


def task_row(documents: Sequence[Document]) -> dict[str, Any]:
    """The row of one task and model: see the keys. ``chance``: expected of a blind guess; ``majority``: share of the
    most frequent right answer, ``rarest`` of the least frequent one: what the constant answers score. NaN where the
    task has no choices.
    """
    scores = np.array([one.score for one in documents], float)
    n = len(scores)
    golds = [one.gold for one in documents if one.gold is not None]
    widths = {one.n_choices for one in documents}
    chance = float(np.mean([1 / one.n_choices for one in documents])) if min(widths, default=0) > 1 else math.nan
    shares = [count / n for _, count in Counter(golds).most_common()] if len(golds) == n and n else []
    width = max(widths, default=0)
    majority, rarest = (shares[0], shares[-1] if len(shares) == width else 0.0) if shares else (math.nan, math.nan)
    score = float(scores.mean()) if n else math.nan
    return {
        "task": documents[0].task if n else "",
        "n": n,
        "choices": width,
        "chance": chance,
        "majority": majority,
        "rarest": rarest,
        "score": score,
        "standard_error": float(scores.std(ddof=1) / math.sqrt(n)) if n > 1 else math.nan,
        "between_constants": bool(rarest <= score <= majority),
        "most_given": commonest_share(documents),
    }


def commonest_share(documents: Sequence[Document]) -> float:
    """Share of the answer that the model gives most often; near 1, it does not look at the question."""
    given = Counter(one.answer for one in documents if one.answer is not None)
    return given.most_common(1)[0][1] / len(documents) if given else math.nan


def paired_row(first: Sequence[Document], second: Sequence[Document]) -> dict[str, Any]:
    """Second minus first over the same documents: difference of the scores with the 95 % interval of a bootstrap over
    documents, how often only one of the two is right, and McNemar's exact test of these two counts.

    Documents are paired by number; those that only one of the two has are left out and counted.
    """
    ones, others = ({d.number: d for d in documents} for documents in (first, second))
    shared = sorted(ones.keys() & others.keys())
    differences = np.array([others[i].score - ones[i].score for i in shared], float)
    low, high = bootstrap(differences)
    only_first, only_second = int((differences < 0).sum()), int((differences > 0).sum())
    discordant = only_first + only_second
    p = float(stats.binomtest(only_second, discordant, 0.5).pvalue) if discordant else 1.0
    return {
        "task": first[0].task if first else "",
        "n": len(shared),
        "difference": float(differences.mean()) if shared else math.nan,
        "low": low,
        "high": high,
        "only_first": only_first,
        "only_second": only_second,
        "p_mcnemar": p,
        "n_flipped": sum(ones[i].answer != others[i].answer for i in shared),
        "n_unpaired": len(ones.keys() ^ others.keys()),
    }


def bootstrap(differences: np.ndarray) -> tuple[float, float]:
    """95 % percentile interval of the mean over resampled documents; always the same for the same values.

    Differences of right and wrong take few values, so their counts are drawn instead of the documents: the same
    distribution, and memory that does not grow with them.
    """
    n = len(differences)
    if n < 2:
        return math.nan, math.nan
    values, counts = np.unique(differences, return_counts=True)
    draw = np.random.default_rng(0)
    if len(values) <= 64:
        means = draw.multinomial(n, counts / n, RESAMPLES) @ values / n
    else:
        means = np.array([differences[draw.integers(0, n, n)].mean() for _ in range(RESAMPLES // 5)])
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def windows_row(first: Any, second: Any) -> dict[str, Any]:
    """Second minus first, nats a token over the same windows, with its t interval over windows (which counts neighbours
    as independent), and the ratio of the perplexities.
    """
    counts = first.counts
    n = len(counts)
    gap = second.nats - first.nats
    mean = float(gap.sum() / counts.sum())
    half = half_width(ratio_error(gap, counts), n - 1)
    return {
        "n": n,
        "difference_nats": mean,
        "low": mean - half,
        "high": mean + half,
        "perplexity_ratio": math.exp(min(mean, 700.0)),
        "largest_window": float(np.abs(second.per_token - first.per_token).max()),
        "n_windows_equal": int((gap == 0).sum()),
    }


def mean_row(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The mean of the scores over the tasks; only ever shown beside their rows."""
    scores = [row["score"] for row in rows if row["score"] == row["score"]]
    return {"n_tasks": len(scores), "score": float(np.mean(scores)) if scores else math.nan}
