"""What a path holds: which logs, of which tools, and what their runs are called.

Inside a folder only what is surely a log is taken (tables need a step column and numbers, text a line of a known
format); a file that is named itself is read as far as it can be.
"""

import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from wisca_core.errors import UnreadableInput
from wisca_core.runs import columns, console, dvclive, mlflow, own, trackio
from wisca_core.runs.collect import MemoryBudget
from wisca_core.runs.csv_table import Csv
from wisca_core.runs.json_lines import JsonLines
from wisca_core.runs.json_list import JsonList
from wisca_core.runs.json_rows import json_row
from wisca_core.runs.parquet_table import Parquet, columns_of
from wisca_core.runs.source import Ask, LogReader, Source
from wisca_core.runs.sqlite_file import open_database
from wisca_core.runs.swanlab import SwanLab
from wisca_core.runs.tensorboard import TensorBoard
from wisca_core.runs.trainer_state import TrainerState
from wisca_core.runs.wandb_offline import Wandb
from wisca_core.untrusted import named_path, open_regular, printable

# kind -> (what a person calls it, its reader)
KINDS: dict[str, tuple[str, Callable[[Source, MemoryBudget, Ask], LogReader]]] = {
    "tensorboard": ("TensorBoard event files", TensorBoard),
    "trainer_state": ("transformers' trainer_state.json", TrainerState),
    "csv": ("CSV table", Csv),
    "jsonl": ("JSON lines", JsonLines),
    "json": ("JSON list of rows", JsonList),
    "parquet": ("parquet table", Parquet),
    "trackio": ("trackio project", trackio.Trackio),
    "mlflow": ("MLflow database", mlflow.MlflowDatabase),
    "mlflow_folder": ("MLflow run folder", mlflow.MlflowFolder),
    "dvclive": ("DVCLive folder", dvclive.DvcLive),
    "wandb": ("W&B run file", Wandb),
    "swanlab": ("SwanLab run file", SwanLab),
    "console": ("console output", console.Console),
    "own": ("run folder of this project", own.OwnRun),
}
RECORD_LOGS = {"wandb": Wandb, "swanlab": SwanLab}
RUN_ENDINGS = tuple(f".{kind}" for kind in RECORD_LOGS)
LOOKED_FOR = (
    "TensorBoard event files, trainer_state.json, CSV, TSV, JSONL, parquet, mlflow.db, mlruns, DVCLive's folder, "
    "trackio's .db, run-*.wandb, run-*.swanlab, console logs "
    "of nanoGPT, "
    "nanochat or Megatron-LM, and runs of this project"
)
_TABLES, _ROWS, _TEXTS = (".csv", ".tsv"), (".jsonl", ".ndjson"), (".log", ".txt", ".out", ".stdout")
MOST_ENTRIES = 100_000
MAX_DEPTH = 12
_NO_DISKS = ("/proc", "/sys", "/dev")
_SNIFF = 64 << 10
_SNIFF_CONSOLE = 1 << 20
_CHECKPOINT = re.compile(r"checkpoint-(\d+)\Z")


@dataclass(frozen=True)
class FoundLogs:
    """``sources`` to read; ``passed_over``: (path, reason) of files that looked like logs and are none."""

    sources: tuple[Source, ...]
    passed_over: tuple[tuple[str, str], ...] = ()


class FileKinds:
    """What files turned out to be, so that looking again is cheap: a log stays one, anything else is opened again once
    it changes.
    """

    def __init__(self) -> None:
        self._found: dict[tuple[Path, bool], tuple[tuple[int, int], str, str]] = {}

    def kind(self, path: Path, sure: bool) -> tuple[str, str]:
        """(kind, "") or ("", why not), see ``_kind``."""
        try:
            found = path.stat()
        except OSError as error:
            return "", f"cannot be opened: {error.strerror}."
        stamp = (found.st_size, found.st_mtime_ns)
        before = self._found.get((path, sure))
        if before is None or (not before[1] and before[0] != stamp):
            before = self._found[path, sure] = (stamp, *_kind(path, sure))
        return before[1], before[2]


def find(path: str | Path, looked: FileKinds | None = None) -> FoundLogs:
    """The logs at ``path``, a file or a folder with everything below it; links to folders are not followed.

    ``looked``: kept between calls by whoever follows a folder. Raises UnreadableInput where there are none.
    """
    looked = looked or FileKinds()
    text = os.fspath(path)
    real = Path(os.path.abspath(named_path(path)))
    try:
        mode = os.stat(real).st_mode
    except OSError as error:
        raise UnreadableInput(f"{printable(text)}: cannot be opened: {error.strerror}. Check the path.") from None
    if real == real.parent:
        raise UnreadableInput(f"{printable(text)}: the whole disk is no folder of logs. Give a folder nearer to them.")
    if stat.S_ISDIR(mode):
        return _in_folder(real, looked)
    if not stat.S_ISREG(mode):
        raise UnreadableInput(f"{printable(text)}: not a regular file; expected a log file or a folder of logs.")
    kind, why = looked.kind(real, sure=False)
    if not kind:
        raise UnreadableInput(f"{printable(text)}: {why} Looked for {LOOKED_FOR}.")
    return FoundLogs((Source(kind, real, (real,), _run_name(real, real.parent), real.parent),))


def reader(source: Source, room: MemoryBudget, ask: Ask = Ask()) -> LogReader:
    """The reader of a source."""
    return KINDS[source.kind][1](source, room, ask)


def _in_folder(root: Path, looked: FileKinds) -> FoundLogs:
    sources: list[Source] = []
    passed_over: list[tuple[str, str]] = []
    worth: list[Path] = []  # opened once the folder is known to be no whole disk
    stores: list[Path] = []
    states: dict[Path, list[Path]] = {}
    n_entries = 0
    stack = [(root, 0)]
    while stack:
        folder, depth = stack.pop()
        try:
            with os.scandir(folder) as entries:
                listed = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            if folder == root:
                raise UnreadableInput(f"{printable(folder)}: cannot be listed: {error.strerror}.") from None
            passed_over.append((str(folder), f"cannot be listed: {error.strerror}"))
            continue
        n_entries += len(listed)
        if n_entries > MOST_ENTRIES:
            raise UnreadableInput(
                f"{printable(root)}: more than {MOST_ENTRIES:,} entries below it. Give a folder nearer to the logs."
            )
        names = {entry.name for entry in listed}
        is_run = any(name.endswith(RUN_ENDINGS) for name in names)
        if mlflow.is_run_folder(names):
            stores.append(folder)
            continue
        if dvclive.is_run_folder(folder, names):
            sources.append(Source("dvclive", folder, (folder,), _relative(folder, root), root))
            continue
        events: list[Path] = []
        inner = []
        for entry in listed:
            try:
                if entry.is_dir(follow_symlinks=False):
                    if depth < MAX_DEPTH and not entry.name.startswith(".") and entry.path not in _NO_DISKS:
                        inner.append((Path(entry.path), depth + 1))
                    continue
                if not entry.is_file():
                    continue
            except OSError:
                continue
            if "tfevents" in entry.name:
                events.append(Path(entry.path))
            elif entry.name == "trainer_state.json":
                states.setdefault(
                    folder.parent if folder != root and _CHECKPOINT.search(folder.name) else folder, []
                ).append(Path(entry.path))
            elif _worth_a_look(entry.name, is_run):
                worth.append(Path(entry.path))
        if events:
            sources.append(Source("tensorboard", folder, tuple(events), _relative(folder, root), root))
        stack += [] if is_run else reversed(inner)
    for folder in stores:
        if name := mlflow.name_of(folder):
            sources.append(Source("mlflow_folder", folder, (folder,), name, root))
        else:
            passed_over.append((str(folder), "a deleted run of MLflow."))
    for path in worth:
        kind, why = looked.kind(path, sure=True)
        if kind:
            sources.append(Source(kind, path, (path,), _run_name(path, root), root))
        elif why:
            passed_over.append((str(path), why))
    for folder, files in states.items():
        newest = max(files, key=lambda path: int(m[1]) if (m := _CHECKPOINT.search(path.parent.name)) else 1 << 62)
        sources.append(Source("trainer_state", newest, tuple(files), _relative(folder, root), root))
    if not sources:
        more = (
            f" Passed over: {'; '.join(f'{printable(Path(p).name, 60)}: {why}' for p, why in passed_over[:3])}"
            if passed_over
            else ""
        )
        raise UnreadableInput(f"{printable(root)}: no logs in this folder or below it. Looked for {LOOKED_FOR}.{more}")
    return FoundLogs(tuple(sorted(sources, key=lambda source: _natural(source.run))), tuple(passed_over))


def _worth_a_look(name: str, is_run: bool) -> bool:
    if name in ("debug.log", "debug-internal.log"):  # W&B's own, also where a link to them lies
        return False
    ending = os.path.splitext(name)[1].lower()
    if is_run:  # what W&B and SwanLab keep beside their run file is the same run again
        return ending in RUN_ENDINGS
    return ending in (*_TABLES, *_ROWS, ".parquet", ".db", ".sqlite", *RUN_ENDINGS, *_TEXTS)


def _kind(path: Path, sure: bool) -> tuple[str, str]:
    """(kind, "") of a file, or ("", why it is none); with ``sure``, ("", "") where it plainly is something else."""
    name, ending = path.name, path.suffix.lower()
    if "tfevents" in name:
        return "tensorboard", ""
    if name == "trainer_state.json":
        return "trainer_state", ""
    try:
        with open_regular(path.resolve()) as file:
            start = file.read(_SNIFF_CONSOLE) or b""
    except UnreadableInput as error:
        return "", str(error)
    except OSError as error:
        return "", f"cannot be read: {error.strerror}."
    if kind := next((kind for kind, reader in RECORD_LOGS.items() if start.startswith(reader.header)), ""):
        return kind, ""
    if start.startswith(b"SQLite format 3\0"):
        try:
            with open_database(path) as database:
                if mlflow.is_mlflow(database):
                    return "mlflow", ""
                if trackio.is_trackio(database):
                    return "trackio", ""
        except UnreadableInput as error:
            return "", str(error)
        return "", "an SQLite file without the tables of trackio or MLflow."
    if start.startswith(b"PAR1"):
        return (
            ("parquet", "") if not sure or _parquet_has_step(path) else ("", "a parquet table without a step column.")
        )
    if start.startswith((b"\x1f\x8b", b"PK\x03\x04", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")):
        return "", "a compressed file. Unpack it first."
    if ending in RUN_ENDINGS:
        return "", f"named {ending}, but does not begin as one does."
    if not start.strip():  # beside logs, an empty text file is nothing to speak of
        return "", "" if sure and ending in _TEXTS else "an empty file."
    if b"\0" in start[:_SNIFF]:
        return "", "not text."
    if ending in _TABLES:
        return (
            ("csv", "")
            if not sure or _csv_has_step(start)
            else ("", "a table without a step column; name it itself to open it.")
        )
    rows = [json_row(line) for line in start[:_SNIFF].splitlines()[:8]]
    if ending in _ROWS or (rows and rows[0] is not None and ending != ".json"):
        first = next((row for row in rows if row is not None), None)
        if first is not None and first.get("format") == own.METRICS_FORMAT:
            return "own", ""
        if first is None and ending not in _ROWS:
            return "", "not lines of JSON."
        numbers = first is not None and any(
            isinstance(v, (int, float)) and not isinstance(v, bool) for v in first.values()
        )
        has_step = first is not None and any(name.lower() in columns.STEP_NAMES for name in first)
        return (
            ("jsonl", "")
            if not sure or (numbers and has_step)
            else ("", "JSON lines without a step; name it itself to open it.")
        )
    if ending == ".json":
        if start.lstrip()[:1] == b"[":
            return ("json", "") if not sure else ("", "")
        return (
            ("trainer_state", "")
            if b'"log_history"' in start
            else ("", "JSON, but neither a list of rows nor a trainer_state.json.")
        )
    for line in start.decode("utf-8", "replace").replace("\r", "\n").split("\n"):
        if console.parse_line(line) is not None:
            return "console", ""
    if sure:
        return "", ""
    if _csv_has_step(start):
        return "csv", ""
    return "", "no line of a known console format in its first MB, and no table."


def _csv_has_step(start: bytes) -> bool:
    head = start.removeprefix(b"\xef\xbb\xbf").lstrip().partition(b"\n")[0].decode("utf-8", "replace")
    delimiter = max(",\t;", key=head.count)
    names = [name.strip().strip('"').lower() for name in head.split(delimiter)]
    return len(names) > 1 and any(name in columns.STEP_NAMES for name in names)


def _parquet_has_step(path: Path) -> bool:
    try:
        return any(name.lower() in columns.STEP_NAMES for name in columns_of(path))
    except UnreadableInput:
        return False


def _relative(folder: Path, root: Path) -> str:
    return root.name or str(root) if folder == root else folder.relative_to(root).as_posix()


def _run_name(path: Path, root: Path) -> str:
    """A metrics file is called by its folder, any other by itself."""
    if path.name in ("metrics.csv", "metrics.jsonl", "trainer_state.json") or "tfevents" in path.name:
        return _relative(path.parent, root) if path.parent != root else path.parent.name
    return path.relative_to(root).with_suffix("").as_posix()


def _natural(name: str) -> list:
    """seed-2 before seed-10."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name)]
