"""One thing to read: which reader, which files, and what its run is called; and what every reader has to offer."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from wisca_core.progress import Progress
from wisca_core.runs.table import Run


@dataclass(frozen=True)
class Source:
    """``kind``: a key of recognise.KINDS. ``files``: in the order in which they are read. ``run``: name of the run,
    where the log has none.
    """

    kind: str
    path: Path
    files: tuple[Path, ...]
    run: str
    root: Path


@dataclass(frozen=True)
class Ask:
    """How to read: ``step_column`` "" is guessed; ``live`` means an unfinished last line may be half of a number."""

    step_column: str = ""
    live: bool = False


class LogReader(Protocol):
    """Reads one source, again and again as it grows."""

    source: Source

    def advance(self, progress: Progress) -> bool:
        """Read what is new; whether there was anything. Raises UnreadableInput."""

    def runs(self) -> tuple[Run, ...]:
        """All that was read so far."""
