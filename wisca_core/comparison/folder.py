"""The folder of a comparison: everything it is, readable while it runs and after.

spec.json               what was asked; never changed
corpus.json             which text it is, with its sha256, and on what it was trained; written at the first start
corpus/                 its tokens, where making them takes long: what every process maps into memory
executor.json           in which way and on what kind of device all its cells are trained; written at the first start
pilot.json              rates tried on the pilot seeds so far, and those chosen
additions.jsonl         seeds added later, with what had been seen by then; append-only
status.json             running | paused | done | cancelled | failed; replaced by rename
lock                    held by the process that runs the comparison
pause, cancel           markers: somebody asked it to stop
cells/NAME/spec.json    arm, learning rate, seed
cells/NAME/metrics.jsonl   append-only rows; a resumed cell first drops what lies behind its checkpoint
cells/NAME/status.json  waiting | running | done | failed, reason, attempts
cells/NAME/resume.pt    the last checkpoint of an unfinished cell
cells/NAME/model/       final weights as a model folder, where the spec keeps them
report.json             what follows from the finished cells
"""

import json
import math
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from wisca_core import storage
from wisca_core.comparison import pilot as pilots
from wisca_core.comparison.pilot import Pilot
from wisca_core.comparison.spec import FORMAT, VERSION, PilotSpec, Spec
from wisca_core.comparison.spec_reading import spec_from
from wisca_core.errors import OutputRefused, SpecError, UnreadableInput
from wisca_core.pairs import PAIRS
from wisca_core.untrusted import named_path, open_named

CORPUS, EXECUTOR, ADDITIONS, STATUS, CELL, CELL_STATUS, METRICS = (
    "wisca-comparison-corpus",
    "wisca-comparison-executor",
    "wisca-comparison-additions",
    "wisca-comparison-status",
    "wisca-comparison-cell",
    "wisca-comparison-cell-status",
    "wisca-metrics",
)

CELL_STATES = ("waiting", "running", "done", "failed")

# Columns of ``curves``: cell, arm, rate, seed name the run; losses in nats a token; the pairs are log2 of the left
# side's L1 norm over the right one, the median over the layers; seconds are the cell's own time.
CURVE_COLUMNS = (
    "cell",
    "arm",
    "rate",
    "seed",
    "step",
    "train_loss",
    "val_loss",
    "lr",
    "grad_norm",
    "tokens",
    "seconds",
    *PAIRS,
    "clipped",
    "final_loss",
)


@dataclass(frozen=True)
class Cell:
    """One run: an arm at a learning rate with a seed. ``step``: optimiser steps done; ``reason``: why it failed;
    ``seconds`` of its own training; ``attempts``: processes that ended under it; ``is_pilot``: its seed only chooses
    rates.
    """

    name: str
    arm: str
    rate: float
    seed: int
    folder: Path
    state: str = "waiting"
    step: int = 0
    reason: str = ""
    seconds: float = 0.0
    attempts: int = 0
    is_final: bool = True
    is_pilot: bool = False


@dataclass(frozen=True)
class Addition:
    """Seeds added later; ``n_finished``: cells whose results were there to be seen by then."""

    seeds: tuple[int, ...]
    n_finished: int
    when: float


@dataclass(frozen=True)
class Comparison:
    """What a folder says at one moment. ``spec.seeds`` holds the added ones too. ``state``: running, paused, done,
    cancelled, failed, "new" before the first start, "interrupted" where its process ended without a word.
    """

    path: Path
    spec: Spec
    additions: tuple[Addition, ...]
    state: str
    message: str
    started: float | None
    finished: float | None
    seconds: float
    workers: int
    corpus: Mapping[str, Any]
    cells: tuple[Cell, ...]
    pilot: Pilot = Pilot({}, {}, {})

    @property
    def tested(self) -> tuple[Cell, ...]:
        """Without those of the pilot."""
        return tuple(c for c in self.cells if not c.is_pilot)

    @property
    def n_coming(self) -> int:
        """Cells whose rates a pilot has not chosen yet."""
        return 0 if self.pilot.chosen or not self.spec.has_pilot else self.spec.n_tested

    @property
    def is_active(self) -> bool:
        return self.state == "running"

    @property
    def is_extended(self) -> bool:
        """Whether seeds were added after results could be seen."""
        return any(a.n_finished for a in self.additions)

    @property
    def steps_done(self) -> int:
        return sum(c.step for c in self.cells)

    @property
    def steps_total(self) -> int:
        """Failed cells do not go on, so what they have done is all of theirs."""
        here = sum(c.step if c.state == "failed" else self.spec.steps for c in self.cells)
        return here + self.n_coming * self.spec.steps

    @property
    def steps_per_second(self) -> float | None:
        """Of all cells together. While some run: how many they are times the pace of a cell's own training, so that
        starting up, which is not repeated for every step left, is not counted; else of the whole time.
        """
        n_running, own = sum(c.state == "running" for c in self.cells), sum(c.seconds for c in self.cells)
        if self.is_active and n_running and own:
            return n_running * self.steps_done / own or None
        return self.steps_done / self.seconds if self.steps_done and self.seconds else None

    @property
    def seconds_left(self) -> float | None:
        """At the pace so far; None before the first steps."""
        pace = self.steps_per_second
        return (self.steps_total - self.steps_done) / pace if pace else None

    @property
    def tokens_per_second(self) -> float | None:
        """Of all cells together, at the same pace."""
        pace = self.steps_per_second
        return pace * self.spec.batch_size * self.spec.data.context if pace else None


def create(path: str | Path, spec: Spec) -> Path:
    """A new comparison's folder. Raises OutputRefused where ``path`` exists and is not an empty folder."""
    path = Path(os.path.abspath(named_path(path)))
    if (path / "spec.json").exists():
        raise OutputRefused(f"{path} holds a comparison already. Go on with --resume, or name a new folder.")
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise OutputRefused(f"{path} exists and is not an empty folder. Name a new one; nothing was written.")
    source = read(spec.pilot.source) if spec.pilot.source else None
    if source:
        _check_source(source, spec)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputRefused(f"{path} cannot be created: {(error.strerror or str(error)).lower()}.") from error
    if source:
        return _create_after(source, path, spec)
    storage.write_json(path / "spec.json", FORMAT, VERSION, spec.to_json())
    _make_cells(path, spec, pilots.read_pilot(path, spec))
    return path


def _check_source(source: Comparison, spec: Spec) -> None:
    """Whether the rates that another comparison's pilot has chosen may serve this one. Raises SpecError."""
    if not source.pilot.chosen:
        raise SpecError(
            "pilot.source", spec.pilot.source, "a comparison whose pilot has chosen its rates; let it run on"
        )
    both = ", ".join(map(str, sorted(set(source.spec.pilot.seeds) & set(spec.seeds))))
    if both:
        raise SpecError("seeds", list(spec.seeds), f"none of the seeds that chose the rates: {both}")


def _create_after(source: Comparison, path: Path, spec: Spec) -> Path:
    """With the rates, and the runs in common, of an earlier comparison."""
    pilots.write_pilot(path, source.pilot)
    spec = replace(spec, pilot=replace(spec.pilot, source=os.path.relpath(source.path, path)))
    storage.write_json(path / "spec.json", FORMAT, VERSION, spec.to_json())
    _make_cells(path, spec, source.pilot)
    if (source.path / "corpus.json").exists():
        shutil.copyfile(source.path / "corpus.json", path / "corpus.json")
    same = _same_training(source.spec) == _same_training(spec)
    theirs = {(source.spec.arm(c.arm).does, c.rate, c.seed): c for c in source.tested if c.state == "done"}
    for cell in read(path).cells if same else ():
        found = theirs.get((spec.arm(cell.arm).does, cell.rate, cell.seed))
        for name in ("metrics.jsonl", "status.json") if found else ():
            shutil.copyfile(found.folder / name, cell.folder / name)
    return path


def _same_training(spec: Spec) -> Spec:
    """What decides a run beside its arm, rate and seed."""
    optimiser = replace(spec.optimiser, learning_rates=())
    return replace(
        spec,
        optimiser=optimiser,
        arms=(),
        seeds=(),
        pilot=PilotSpec(),
        name="",
        note="",
        device="auto",
        detect_nats=1.0,
    )


def read(path: str | Path) -> Comparison:
    """Raises UnreadableInput, SpecError."""
    path = Path(os.path.abspath(named_path(path)))
    if not (path / "spec.json").is_file():
        raise UnreadableInput(
            f"{path} is no comparison: it has no spec.json. Start one with: wisca compare SPEC --out {path}"
        )
    spec = spec_from(storage.read_json(path / "spec.json", FORMAT, VERSION))
    try:
        additions = _additions(path)
        for addition in additions:
            spec = replace(spec, seeds=spec.seeds + addition.seeds)
        status = _status(path)
        pilot = pilots.read_pilot(path, spec)
        cells = tuple(_cell(path, spec, *one) for one in order(spec, pilot))
        corpus = storage.read_json(path / "corpus.json", CORPUS, 1) if (path / "corpus.json").exists() else {}
        return Comparison(
            path,
            spec,
            additions,
            str(status["state"]),
            str(status.get("message", "")),
            status.get("started"),
            status.get("finished"),
            float(status.get("seconds", 0.0)),
            int(status.get("workers", 0)),
            corpus,
            cells,
            pilot,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UnreadableInput(
            f"{path} cannot be understood: {type(error).__name__} at {error}. A file in it is damaged."
        ) from error


def _status(path: Path) -> dict[str, Any]:
    """What status.json says, and "interrupted" where it says "running" and nobody is at it any more."""
    status, is_left = storage.last_status(lambda: _status_file(path), ("running",), path / "lock")
    message = "its process ended without a word; resuming continues from the last checkpoints"
    return status | {"state": "interrupted", "message": message} if is_left else status


def _status_file(path: Path) -> dict[str, Any]:
    file = path / "status.json"
    return storage.read_json(file, STATUS, 1) if file.exists() else {"state": "new"}


def heading(path: Path) -> tuple[str, str]:
    """(name, state) of the comparison in ``path``, for lists of many: its cells are not looked at. Raises
    UnreadableInput.
    """
    try:
        stamps = [
            file.stat().st_mtime_ns if file.exists() else 0 for file in (path / "spec.json", path / "status.json")
        ]
        name, state = _heading(path, *stamps)
        return name, str(_status(path)["state"]) if state == "running" else state
    except (OSError, KeyError, TypeError) as error:
        raise UnreadableInput(f"{path} cannot be understood: {error}. A file in it is damaged.") from error


@lru_cache(4096)
def _heading(path: Path, *stamps: int) -> tuple[str, str]:
    spec = storage.read_json(path / "spec.json", FORMAT, VERSION)
    return str(spec.get("name", Spec.name)), str(_status_file(path)["state"])


def spec_to_go(path: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """(document, missing): the comparison's spec as it can be run from another folder, what lies on this machine named
    by its absolute path; ``missing``: what it names that is not here, in words. Raises UnreadableInput.
    """
    document = storage.read_json(path / "spec.json", FORMAT, VERSION)
    missing = []
    for part, name, what in (
        ("model", "path", "model"),
        ("data", "path", "text"),
        ("data", "tokenizer", "tokenizer"),
        ("pilot", "source", "comparison"),
    ):
        said = document.get(part, {}).get(name, "")
        if not said or said.startswith("hub:"):
            continue
        found = (path / named_path(said)).resolve()
        if found.exists():
            document[part] = {**document[part], name: str(found)}
        else:
            missing.append(f"the {what} {said}")
    return {"format": FORMAT, "version": VERSION, **document}, tuple(missing)


def order(spec: Spec, pilot: Pilot) -> list[tuple[str, float, int]]:
    """(arm, rate, seed) in the order of training: seed by seed, so that pairs are complete early; with a pilot its runs
    first, and then each arm at its chosen rate.
    """
    if not spec.has_pilot:
        return [
            (arm.name, rate, seed) for seed in spec.seeds for rate in spec.optimiser.learning_rates for arm in spec.arms
        ]
    out = [(name, rate, seed) for seed in spec.pilot.seeds for name, rates in pilot.grids.items() for rate in rates]
    if pilot.chosen:
        out += [(arm.name, pilot.rate(spec, arm.name), seed) for seed in spec.seeds for arm in spec.arms]
    return out


def settle_pilot(path: Path) -> bool:
    """Once every pilot run has ended, choose the rates or add some; whether there is more to train now."""
    comparison = read(path)
    spec = comparison.spec
    has_ended = all(c.state in ("done", "failed") for c in comparison.cells if c.is_pilot)
    if not spec.pilot.seeds or comparison.pilot.chosen or not has_ended:
        return False
    pilot = pilots.next_pilot(spec, comparison.pilot, pilot_losses(comparison))
    pilots.write_pilot(comparison.path, pilot)
    _make_cells(comparison.path, spec, pilot)
    return True


def pilot_losses(comparison: Comparison) -> dict[str, dict[float, list[float]]]:
    """Arm -> rate -> final losses of the pilot runs that ended; infinite for one that failed."""
    out: dict[str, dict[float, list[float]]] = {}
    for cell in comparison.cells:
        if cell.is_pilot and cell.state in ("done", "failed"):
            loss = final_loss(cell) if cell.state == "done" else math.inf
            out.setdefault(cell.arm, {}).setdefault(cell.rate, []).append(loss)
    return out


def cell_name(arm: str, rate: float, seed: int) -> str:
    return f"{arm}-lr{rate:g}-seed{seed}"


def add_seeds(path: Path, n: int) -> Comparison:
    """``n`` further seeds, marked as added after so many finished cells. Raises SpecError, OutputRefused."""
    if not isinstance(n, int) or not 1 <= n <= 1000:
        raise SpecError("add_seeds", n, "a whole number from 1 to 1,000")
    comparison = read(path)
    if comparison.is_active:
        raise OutputRefused(f"{path} is running; seeds are added once it has stopped. Pause it first.")
    first = max(comparison.spec.seeds + comparison.spec.pilot.seeds) + 1
    row = {
        "seeds": list(range(first, first + n)),
        "n_finished": sum(c.state == "done" for c in comparison.cells),
        "when": time.time(),
    }
    file = comparison.path / "additions.jsonl"
    lines = [] if file.exists() else [{"format": ADDITIONS, "version": 1}]
    with file.open("a", encoding="utf-8") as out:
        out.write("".join(json.dumps(line) + "\n" for line in [*lines, row]))
    _make_cells(comparison.path, replace(comparison.spec, seeds=tuple(row["seeds"])), comparison.pilot)
    return read(path)


def ask(path: Path, marker: str) -> None:
    """Ask a running comparison to stop: "pause" or "cancel". Both keep everything, and both can be resumed."""
    (Path(path) / marker).touch()


def stop_request(path: Path) -> str:
    """The marker that is set, "" for none."""
    return next((marker for marker in ("cancel", "pause") if (path / marker).exists()), "")


def write_status(path: Path, state: str, **more: Any) -> None:
    storage.write_json(path / "status.json", STATUS, 1, {"state": state, "updated": time.time(), **more})


def write_cell_status(cell: Cell, **more: Any) -> None:
    """``more``: what changes of state, reason, attempts, seconds, is_final."""
    new = replace(cell, **more)
    storage.write_json(
        cell.folder / "status.json",
        CELL_STATUS,
        1,
        {
            "state": new.state,
            "reason": new.reason,
            "seconds": round(new.seconds, 2),
            "attempts": new.attempts,
            "is_final": new.is_final,
        },
    )


def rows(cell_folder: Path, behind: int | None = None) -> list[dict]:
    """The rows of a cell's metrics, up to the step ``behind``. Raises UnreadableInput for another format."""
    path = cell_folder / "metrics.jsonl"
    found = storage.read_rows(path, METRICS, 1) if path.exists() else []
    return [row for row in found if behind is None or row["step"] <= behind]


def final_loss(cell: Cell) -> float:
    """Of a finished cell: on the final windows; of one trained before there were any, on those of the curve."""
    last = _last_row(cell.folder / "metrics.jsonl")
    return float(last.get("final_loss", last["val_loss"]))


def curves(comparison: Comparison, of_pilot: bool = False):
    """All rows of all tested cells, or of the pilot's, as one pandas frame with CURVE_COLUMNS; empty before the
    first.
    """
    import pandas as pd

    found = [
        {"cell": cell.name, "arm": cell.arm, "rate": cell.rate, "seed": cell.seed, **row}
        for cell in comparison.cells
        if cell.is_pilot == of_pilot
        for row in rows(cell.folder)
    ]
    frame = pd.DataFrame(found, columns=list(CURVE_COLUMNS))
    numbers = list(CURVE_COLUMNS[4:])
    return frame.astype({name: float for name in numbers} | {"rate": float, "seed": int})


def log_lines(comparison: Comparison, most: int = 60) -> list[str]:
    """The last lines of what the training processes printed."""
    text = _end_of(comparison.path / "log.txt", 20_000).decode("utf-8", "replace")
    return [line for line in text.splitlines() if line.strip()][-most:]


def every(top: Path | None = None) -> list[Path]:
    """Comparison folders under WISCA_HOME/comparisons, newest first."""
    top = top or storage.folder("comparisons")
    found = [path for path in top.iterdir() if (path / "spec.json").is_file() and not path.name.startswith(".")]
    return sorted(found, key=lambda path: (path / "spec.json").stat().st_mtime, reverse=True)


def new_place(name: str) -> Path:
    """A free folder under WISCA_HOME/comparisons for a comparison of that name."""
    word = "".join(c if c.isascii() and c.isalnum() else "-" for c in name.lower()).strip("-")[:40] or "comparison"
    return (
        storage.folder("comparisons") / f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{word}-{os.urandom(2).hex()}"
    )


def remove(path: Path) -> int:
    """Delete a comparison under WISCA_HOME with everything in it; the bytes freed. Raises OutputRefused where it lies
    elsewhere or is running, and where it cannot be removed.
    """
    path, top = Path(path), storage.folder("comparisons")
    if path.parent != top or path not in every():
        raise OutputRefused(f"{path} is no comparison under {top}; only those are deleted here. Nothing was deleted.")
    freed = storage.remove_entry(path)
    if freed is None:
        raise OutputRefused(f"{path} is running. Pause or cancel it first; nothing was deleted.")
    return freed


def remove_checkpoint(cell: Cell) -> None:
    for name in ("resume.pt", ".resume.pt.part"):
        (cell.folder / name).unlink(missing_ok=True)
    shutil.rmtree(cell.folder / ".model.part", ignore_errors=True)


def _make_cells(path: Path, spec: Spec, pilot: Pilot) -> None:
    for arm, rate, seed in order(spec, pilot):
        folder = path / "cells" / cell_name(arm, rate, seed)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "spec.json").exists():
            storage.write_json(folder / "spec.json", CELL, 1, {"arm": arm, "learning_rate": rate, "seed": seed})


def _cell(path: Path, spec: Spec, arm: str, rate: float, seed: int) -> Cell:
    name = cell_name(arm, rate, seed)
    folder = path / "cells" / name
    cell = Cell(name, arm, rate, seed, folder, is_pilot=seed in spec.pilot.seeds)
    if (folder / "status.json").exists():
        status = storage.read_json(folder / "status.json", CELL_STATUS, 1)
        if status["state"] not in CELL_STATES:
            raise ValueError(f"state {status['state']!r} of {name}")
        cell = replace(cell, **{key: status[key] for key in ("state", "reason", "seconds", "attempts", "is_final")})
    if cell.state == "done":
        return replace(cell, step=spec.steps)
    last = _last_row(folder / "metrics.jsonl")
    return replace(cell, step=int(last.get("step", 0)), seconds=float(last.get("seconds") or cell.seconds))


def _last_row(path: Path) -> dict:
    for line in reversed(_end_of(path, 4096).split(b"\n")):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        return row if isinstance(row, dict) and "format" not in row else {}
    return {}


def _end_of(path: Path, n_bytes: int) -> bytes:
    """At most so many bytes; none where it cannot be read."""
    try:
        with open_named(path) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - n_bytes))
            return file.read()
    except (UnreadableInput, OSError):
        return b""


def _additions(path: Path) -> tuple[Addition, ...]:
    file = path / "additions.jsonl"
    found = storage.read_rows(file, ADDITIONS, 1) if file.exists() else []
    return tuple(Addition(tuple(map(int, row["seeds"])), int(row["n_finished"]), float(row["when"])) for row in found)
