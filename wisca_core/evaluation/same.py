"""Two models that should be one function: what their answers and windows say of it, and what the export's report
says.
"""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from wisca_core.evaluation.subjects import Subject
from wisca_core.evaluation.tasks import Document
from wisca_core.words import join_names

# Nats a token by which weights that were rounded once may move a window before it is said to be more than rounding.
# Chosen with room, by the bits of the dtype; not measured.
ROUNDING = {"float32": 1e-3, "float64": 1e-6, "bfloat16": 5e-2, "float16": 2e-2}


def same_model(
    first: Subject, second: Subject, text: Mapping[str, Any] | None, tasks: Sequence[tuple[Sequence[Document], ...]]
) -> dict[str, Any]:
    """``text``: the row of ``statistics.windows_row``; ``tasks``: (documents of the first, of the second) of each task.

    {is_export, exact, verdict, words, n_documents, n_flipped, flipped, n_likelihoods_equal, largest_likelihood}. The
    verdict is "identical" (every compared number is), "same answers", "within rounding" or "different".
    """
    pairs = [(one, other) for ones, others in tasks for one, other in zip(ones, others) if one.number == other.number]
    flipped = [one for one, other in pairs if one.answer != other.answer or one.score != other.score]
    moved = [abs(a - b) for one, other in pairs for a, b in zip(one.likelihoods, other.likelihoods)]
    largest = max(moved, default=0.0)
    identical = not flipped and largest == 0 and (text is None or text["n_windows_equal"] == text["n"])
    bound = ROUNDING.get(second.stored, 1e-3)
    small = text is None or (math.isfinite(text["largest_window"]) and text["largest_window"] <= bound)
    verdict = (
        "identical" if identical else "different" if not small else "within rounding" if flipped else "same answers"
    )
    report = second.report or {}
    options = report.get("plan", {}).get("options", {}) if isinstance(report.get("plan"), dict) else {}
    is_export = bool(report) and _is_source(report, first)
    return {
        "is_export": is_export,
        "exact": bool(options.get("exact")) if is_export else None,
        "verdict": verdict,
        "n_documents": len(pairs),
        "n_flipped": len(flipped),
        "flipped": [
            {"task": d.task, "number": d.number, "margin": d.margin, "question": d.question[-120:]} for d in flipped
        ],
        "n_likelihoods_equal": sum(gap == 0 for gap in moved),
        "n_likelihoods": len(moved),
        "largest_likelihood": largest,
        "rounding_bound_nats": bound,
        "words": _words(verdict, text, pairs, flipped, largest, bound, is_export, bool(options.get("exact"))),
    }


def _is_source(report: Mapping[str, Any], first: Subject) -> bool:
    source = str(report.get("source", ""))
    return source == first.source or (not source.startswith("hub:") and os.path.realpath(source) == str(first.path))


def _words(verdict, text, pairs, flipped, largest, bound, is_export, exact) -> str:
    what = "The second is an export of the first" if is_export else "Compared as they are"
    what += f", {'with factors that are powers of two' if exact else 'with free factors'}: " if is_export else ": "
    parts = []
    if text is not None:
        parts.append(f"{text['n_windows_equal']:,} of {text['n']:,} windows give the same nats to the last bit")
    if pairs:
        parts.append(f"{len(pairs) - len(flipped):,} of {len(pairs):,} documents are answered alike")
    said = join_names(parts) or "nothing was compared"
    ends = {
        "identical": ".",
        "same answers": f"; no answer differs, the largest likelihood by {largest:.1e} nats.",
        "within rounding": f"; the largest window moves by no more than {bound:g} nats a token, which is rounding, and "
        f"{len(flipped):,} documents lie so near a tie that they flip.",
        "different": f"; the largest window moves by {text['largest_window']:.2g} nats a token, more than rounding "
        f"({bound:g})."
        if text is not None
        else "; answers differ.",
    }
    return what + said + ends[verdict]
