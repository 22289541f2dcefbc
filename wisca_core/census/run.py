"""The census itself: prove what has no kept result, keep each as it comes."""

import json
from collections.abc import Iterable
from pathlib import Path

from wisca_core.architecture.site import GRANULARITIES
from wisca_core.census import pool
from wisca_core.census.entry import Entry
from wisca_core.census.judge import unreached_entry
from wisca_core.census.kept import entries, keep, lacks
from wisca_core.census.known import all_types, causal_types, check_type
from wisca_core.errors import BadOption
from wisca_core.progress import Progress, silent

N_WORKERS = 2
LIMIT_SECONDS = 120.0  # of one type; the slowest known takes a tenth of it


def census(
    model_types: Iterable[str],
    granularities: Iterable[str] = GRANULARITIES,
    progress: Progress = silent,
    *,
    again: bool = False,
    n_workers: int = N_WORKERS,
    limit_seconds: float = LIMIT_SECONDS,
    function: str | None = None,
) -> tuple[Entry, ...]:
    """Prove every type that has no kept result at these granularities (``again``: every type) and return what is then
    known, in the order of ``model_types``.

    What was proved before a cancel stays. A type that crashes its process or takes longer than ``limit_seconds`` is
    "not reached". BadOption for a granularity that is none, UnknownArchitecture for a name that is none.
    """
    names = tuple(dict.fromkeys(map(check_type, model_types)))
    asked = tuple(name for name in GRANULARITIES if name in set(granularities))
    wrong = sorted(set(granularities) - set(GRANULARITIES))
    if wrong or not asked:
        raise BadOption(f"granularity: {', '.join(wrong) or 'none'} was given; choose from {', '.join(GRANULARITIES)}.")
    tasks = [name for name in names if again or lacks(name, asked)]

    def failed(name: str, why: str, seconds: float) -> None:
        keep(unreached_entry(name, why, asked, seconds))

    def answered(name: str, answer: bytes, seconds: float) -> None:
        try:
            keep(Entry.from_json(json.loads(answer)))
        except (KeyError, TypeError, ValueError):
            failed(name, "its process gave an answer that is none", seconds)

    if tasks:
        pool.run(tasks, asked, answered, failed, progress, n_workers, limit_seconds, function or pool.FUNCTION)
    return entries(names)


def census_job(arguments: dict, progress: Progress, folder: Path) -> dict:
    """{all: bool, again: bool} or {model_types: list} -> {n: how many types are known}; the results are kept."""
    names = arguments.get("model_types") or (all_types() if arguments.get("all") else causal_types())
    return {"n": len(census(names, progress=progress, again=bool(arguments.get("again"))))}
