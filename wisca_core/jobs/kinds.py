"""The kinds of job there are, each with the function that does the work.

A job function is ``function(arguments: dict, progress: Progress, folder: Path) -> dict``: ``arguments`` are plain JSON
values (paths absolute), the result is too, and ``folder`` is the job's own folder. It writes beside and renames, so
that an end at any moment leaves nothing half written. Its module is imported in the worker only, never by whoever
starts the job.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from wisca_core.errors import BadOption
from wisca_core.progress import Progress

KINDS: dict[str, str] = {
    "measure": "wisca_core.job_functions:measure_job",
    "prove": "wisca_core.job_functions:prove_job",
    "discover": "wisca_core.job_functions:discover_job",
    "check": "wisca_core.job_functions:check_job",
    "export": "wisca_core.job_functions:export_job",
    "heads": "wisca_core.circuits.table:heads_job",
    "matrices": "wisca_core.circuits.table:matrices_job",
    "trajectory": "wisca_core.trajectories:trajectory_job",
    "compare": "wisca_core.comparison.reporting:compare_job",
    "evaluate": "wisca_core.evaluation.whole:evaluate_job",
    "census": "wisca_core.census.run:census_job",
    "sleep": "wisca_core.jobs.kinds:sleep_job",
}


def sleep_job(arguments: dict[str, Any], progress: Progress, folder: Path) -> dict[str, Any]:
    """The self-test job: count to ``steps`` (int), sleeping ``seconds`` (float) before each.

    Returns {"counted": steps}. Raises BadOption for a negative number of steps.
    """
    steps, seconds = arguments["steps"], arguments["seconds"]
    if steps < 0:
        raise BadOption(f"steps is {steps}; expected 0 or more.")
    print(f"counting to {steps}")
    for step in range(steps):
        progress("counting", step, steps)
        time.sleep(seconds)
    progress("counting", steps, steps)
    return {"counted": steps}
