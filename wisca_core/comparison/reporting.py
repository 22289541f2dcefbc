"""The report of a comparison as a file, and the whole of it as a job."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wisca_core import storage
from wisca_core.comparison import executor, folder
from wisca_core.comparison.folder import Comparison
from wisca_core.progress import Progress

if TYPE_CHECKING:
    from wisca_core.comparison.report import Report

FORMAT = "wisca-comparison-report"


def write_report(comparison: Comparison) -> "Report":
    """Work it out from the finished cells and keep it as report.json. Raises UnequalStart."""
    from wisca_core.comparison.report import (
        report,
    )  # scipy and pandas: two seconds that the start of a job need not wait for

    found = report(comparison, folder.curves(comparison))
    storage.write_json(comparison.path / "report.json", FORMAT, 1, storage.plain(dataclasses.asdict(found)))
    return found


def compare_job(arguments: dict[str, Any], progress: Progress, job_folder: Path) -> dict[str, Any]:
    """{comparison: path of its folder, workers: int or None, executor: optional} -> {state}. The very work of ``wisca
    compare --out DIR --resume``.
    """
    comparison = executor.run(
        Path(arguments["comparison"]), arguments.get("workers"), progress, arguments.get("executor") or "auto"
    )
    write_report(comparison)
    return {"state": comparison.state}
