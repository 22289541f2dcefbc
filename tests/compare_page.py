"""What the tests of the Compare page share: a finished comparison, one not begun, jobs that are noted."""

import shutil
from pathlib import Path

from wisca_app.comparing.choosing import SAMPLES
from wisca_core import jobs, storage
from wisca_core.comparison import folder
from wisca_core.comparison.presets import ARMS
from wisca_core.comparison.spec import Spec

SAMPLE = SAMPLES / "compare-gqa64"


def kept(name: str = "20260101-000000-kept") -> Path:
    """A copy of the sample under WISCA_HOME."""
    place = storage.folder("comparisons") / name
    shutil.copytree(SAMPLE, place)
    return place


def fresh(name: str = "20260101-000000-fresh") -> Path:
    return folder.create(
        storage.folder("comparisons") / name, Spec("fresh", arms=(ARMS["baseline"], ARMS["wisca"]), steps=100)
    )


def started(monkeypatch) -> list:
    """Starting a job is noted, not done."""
    asked = []
    monkeypatch.setattr(jobs, "start", lambda kind, arguments, title, exclusive=None: asked.append((kind, arguments)))
    return asked
