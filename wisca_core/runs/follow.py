"""Several logs opened together, and looked at again as they grow.

>>> logs = read(["runs/"])  # doctest: +SKIP
>>> logs.runs[0].series["train/loss"].value  # doctest: +SKIP
>>> logs.poll()  # whether anything is new  # doctest: +SKIP
"""

import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from wisca_core.errors import BadOption, UnreadableInput, WiscaError
from wisca_core.progress import Progress, silent
from wisca_core.runs.collect import MemoryBudget
from wisca_core.runs.joining import join_runs
from wisca_core.runs.recognise import FileKinds, find, reader
from wisca_core.runs.source import Ask, LogReader, Source
from wisca_core.runs.table import Run
from wisca_core.untrusted import printable


class Logs:
    """Everything found at ``paths``. ``runs`` after the last ``poll``; ``problems``: (path, why) of what could not be
    read; ``version``: how often that changed. Several threads may poll: one reads, the others wait.

    ``live``: an unfinished last line of a text file waits until the file has rested for some seconds.
    """

    def __init__(self, paths: Sequence[str | Path], step_column: str = "", live: bool = True) -> None:
        self.paths = tuple(str(path) for path in paths)
        self.ask = Ask(step_column, live)
        self.runs: tuple[Run, ...] = ()
        self.problems: tuple[tuple[str, str], ...] = ()
        self.version = 0
        self._lock = threading.Lock()
        self._room = MemoryBudget()
        self._looked = FileKinds()
        self._readers: dict[tuple[str, Path], LogReader] = {}
        self._runs: dict[tuple[str, Path], tuple[Run, ...]] = {}

    def poll(self, progress: Progress = silent) -> bool:
        """Look for new logs and new points in known ones; whether anything changed. Raises UnreadableInput where
        nothing can be read.
        """
        with self._lock:
            return self._poll(progress)

    def _poll(self, progress: Progress) -> bool:
        sources, problems = self._sources()
        changed = False
        refused: list[BadOption] = []
        for source in sources:
            key = (source.kind, _identity(source))
            if key not in self._readers:
                self._readers[key] = reader(source, self._room, self.ask)
            one = self._readers[key]
            if one.source != source and source.kind == "trainer_state":  # a newer checkpoint has the longer history
                one = self._readers[key] = reader(source, self._room, self.ask)
            try:
                if one.advance(progress):
                    self._runs[key] = self._over_asked(one, one.runs())
                    changed = True
            except UnreadableInput as error:
                problems.append((str(source.path), str(error)))
            except BadOption as error:  # its step column is not in this log: others may have it
                refused.append(error)
                problems.append((str(source.path), str(error)))
        if refused and not self._runs:
            raise refused[0]
        problems = tuple(dict.fromkeys(problems))
        if changed or problems != self.problems:
            self.problems = problems
            found = [run for runs in self._runs.values() for run in runs if run.series or run.distributions]
            self.runs = _distinct_names(join_runs(found))
            self.version += 1
            changed = True
        if not self.runs:
            self._nothing(problems)
        return changed

    def _over_asked(self, one: LogReader, runs: tuple[Run, ...]) -> tuple[Run, ...]:
        """The runs of a log without columns over the metric that was asked for as the step."""
        asked = self.ask.step_column
        if not asked or one.source.kind not in ("tensorboard", "mlflow", "mlflow_folder", "dvclive", "console"):
            return runs
        if not any(asked in run.series for run in runs):
            names = ", ".join(
                printable(name, 40) for name in list(dict.fromkeys(m for run in runs for m in run.series))[:12]
            )
            raise BadOption(
                f"step column: {printable(asked)!r} is not logged in {printable(one.source.path)}; it has {names}."
            )
        return tuple(run.over(asked) for run in runs)

    def _sources(self) -> tuple[list[Source], list[tuple[str, str]]]:
        sources: list[Source] = []
        problems: list[tuple[str, str]] = []
        for path in self.paths:
            try:
                found = find(path, self._looked)
            except WiscaError as error:
                problems.append((path, str(error)))
                continue
            sources += found.sources
            problems += found.passed_over
        return list({(s.kind, _identity(s)): s for s in sources}.values()), problems

    def _nothing(self, problems: tuple[tuple[str, str], ...]) -> None:
        remarks = [remark for runs in self._runs.values() for run in runs for remark in run.remarks]
        if remarks:
            raise UnreadableInput(
                f"{', '.join(printable(path) for path in self.paths)}: no number was found. {' '.join(remarks[:6])}"
            )
        if len(problems) == 1:
            raise UnreadableInput(problems[0][1])
        listed = " ".join(f"{printable(Path(path).name, 60)}: {why}" for path, why in problems[:6])
        raise UnreadableInput(f"no log could be read at {', '.join(printable(path) for path in self.paths)}. {listed}")


def read(paths: str | Path | Sequence[str | Path], step_column: str = "", progress: Progress = silent) -> Logs:
    """All logs at ``paths``, one or several, read once as they are now. Raises UnreadableInput where there is none,
    BadOption for a wrong ``step_column``.
    """
    if not paths:
        raise UnreadableInput("no path was given. Give log files or folders of logs.")
    logs = Logs([paths] if isinstance(paths, (str, Path)) else paths, step_column, live=False)
    logs.poll(progress)
    return logs


def _identity(source: Source) -> Path:
    """What stays the same as a source grows: a Trainer's newest checkpoint moves on."""
    if source.kind == "trainer_state" and len(source.files) > 1 or source.path.parent.name.startswith("checkpoint-"):
        return source.root / source.run
    return source.path


def _distinct_names(runs: Sequence[Run]) -> tuple[Run, ...]:
    """Runs of one name get the tool, then a number behind it."""
    counts = Counter(run.name for run in runs)
    kinds = Counter((run.name, run.kind) for run in runs)
    used: Counter[str] = Counter()
    out = []
    for run in runs:
        name = run.name
        if counts[name] > 1:
            name = (
                f"{name} ({run.kind})" if kinds[run.name, run.kind] == 1 else f"{Path(run.source).parent.name}/{name}"
            )
        used[name] += 1
        while used[name] > 1:
            name = f"{name} ({used[name]})"
            used[name] += 1
        out.append(run.with_name(name))
    return tuple(out)
