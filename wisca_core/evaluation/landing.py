"""What an evaluation leaves behind: a folder like every job's, and a line in the export's report.

    spec.json       what was asked
    metrics.jsonl   a row a window and a document as soon as it is there; append-only
    result.json     every table

Not covered: going on with an evaluation that was stopped; its rows are there to be read, a new one starts anew.
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wisca_core.errors import OutputRefused
from wisca_core.evaluation.subjects import Subject
from wisca_core.exporting.preview import REPORT
from wisca_core.storage import plain, write_json
from wisca_core.untrusted import named_path

FORMAT, VERSION = "wisca-evaluation", 1
METRICS = "wisca-evaluation-rows"
MOST_KEPT = 20  # evaluations in one report


class MetricsFile:
    """Appends rows to ``metrics.jsonl`` of a folder; does nothing where there is no folder."""

    def __init__(self, folder: Path | None) -> None:
        self._file = None
        if folder is not None:
            try:
                self._file = (folder / "metrics.jsonl").open("a", encoding="utf-8")
            except OSError as error:
                raise OutputRefused(f"{folder} cannot be written: {(error.strerror or str(error)).lower()}.") from error
            if not self._file.tell():
                self.add(format=METRICS, version=1)

    def add(self, **row: Any) -> None:
        if self._file is not None:
            self._file.write(json.dumps(plain(row), ensure_ascii=True) + "\n")
            self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def new_folder(out: str | Path | None, asked: Mapping[str, Any]) -> Path | None:
    """``out`` created, with spec.json. Raises OutputRefused where it exists."""
    if out is None:
        return None
    place = named_path(out)
    try:
        place.mkdir(parents=True)
    except FileExistsError as error:
        raise OutputRefused(f"{place} exists; it is left alone. Choose a new folder for the evaluation.") from error
    except OSError as error:
        raise OutputRefused(f"{place} cannot be created: {(error.strerror or str(error)).lower()}.") from error
    write_json(place / "spec.json", FORMAT, VERSION, {"created": time.time(), "asked": plain(dict(asked))})
    return place


def land(second: Subject, result: Mapping[str, Any]) -> Path | None:
    """Adds the summary to the wisca_report.json of an export; its path. None where the folder cannot be written."""
    if second.report is None:
        return None
    kept = list(second.report.get("evaluations", ()))[-(MOST_KEPT - 1) :]
    short = {
        key: result[key] for key in ("models", "text", "perplexity", "windows", "tasks", "paired", "same", "sentences")
    }
    short["created"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    path = second.folder / REPORT
    try:
        write_json(path, "wisca-report", 1, {**second.report, "evaluations": [*kept, plain(short)]})
    except OutputRefused:
        return None
    return path
