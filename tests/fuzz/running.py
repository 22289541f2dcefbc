"""Mutated files through the readers, in worker processes that may die."""

import json
import os
import random
import resource
import shutil
import signal
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from mutate import mutated
from samples import Reader

from wisca_core.errors import WiscaError

CPU_SECONDS, MEMORY_MB = 5.0, 500
# A hang in compiled code hears no alarm: the parent ends a worker that has said nothing for so long.
SILENT_SECONDS = 60.0


class TooLong(BaseException):
    """More processor time than a reader may take."""


@dataclass
class Tally:
    """``faults``: kind of fault -> the folder of the first input that showed it."""

    inputs: int = 0
    read: int = 0
    refused: Counter = field(default_factory=Counter)
    faults: dict[str, str] = field(default_factory=dict)
    slowest: float = 0.0
    most_mb: int = 0


def fuzz(
    readers: dict[str, Reader], inputs: int, seconds: float, seed: int, workers: int, keep: Path
) -> dict[str, Tally]:
    """``inputs`` mutated files over all readers in turn, or as many as fit into ``seconds``."""
    tally = {name: Tally() for name in readers}
    shutil.rmtree(keep, ignore_errors=True)
    keep.mkdir(parents=True)
    end = time.monotonic() + seconds
    running = [_Worker(readers, seed, number, workers, 0, keep) for number in range(workers)]
    while running:
        for worker in list(running):
            n = sum(one.inputs for one in tally.values())
            for line in worker.lines():
                _add(tally[line["reader"]], line)
            if n >= inputs or time.monotonic() > end:
                worker.stop()
                running.remove(worker)
            elif fault := worker.fault():
                at, name = worker.doing()
                _add(tally[name], {"fault": fault, "folder": str(worker.folder)})
                worker.stop()
                running[running.index(worker)] = _Worker(readers, seed, worker.number, workers, at + 1, keep)
        time.sleep(0.02)
    return tally


def report(tally: dict[str, Tally]) -> str:
    """A line a reader, then every kind of fault."""
    lines = [f"{'reader':<14} inputs    read refused slowest  memory  faults"]
    for name, one in tally.items():
        refused = sum(one.refused.values())
        lines.append(
            f"{name:<14}{one.inputs:>7,}{one.read:>8,}{refused:>8,}{one.slowest:>7.2f}s{one.most_mb:>6} "
            f"MB{len(one.faults):>8}"
        )
    lines += [f"{name}: {kind}\n    {folder}" for name, one in tally.items() for kind, folder in one.faults.items()]
    lines.append(
        f"{sum(one.inputs for one in tally.values()):,} inputs, {sum(len(o.faults) for o in tally.values())} faults"
    )
    return "\n".join(lines)


def _add(tally: Tally, line: dict) -> None:
    tally.inputs += 1
    tally.slowest = max(tally.slowest, line.get("seconds", 0.0))
    tally.most_mb = max(tally.most_mb, line.get("mb", 0))
    if fault := line.get("fault"):
        tally.faults.setdefault(fault, line["folder"])
    elif line["refused"]:
        tally.refused[line["refused"]] += 1
    else:
        tally.read += 1


class _Worker:
    """A forked process that works through inputs ``first``, ``first`` + n_workers ... and writes a line for each."""

    def __init__(
        self, readers: dict[str, Reader], seed: int, number: int, n_workers: int, first: int, keep: Path
    ) -> None:
        self.number = number
        self.folder = Path(tempfile.mkdtemp(dir=keep, prefix=f"worker{number}-"))
        (self.folder / ".doing").write_text(json.dumps([first, next(iter(readers))]))
        self._out = (self.folder / ".lines").open("a+")
        self._begun, self._heard = "", time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                _work(readers, seed, number, n_workers, first, self.folder, keep)
            finally:
                os._exit(3)

    def lines(self) -> list[dict]:
        """What is new."""
        *whole, self._begun = (self._begun + self._out.read()).split("\n")  # the last one may be half written
        out = [json.loads(line) for line in whole]
        if out:
            self._heard = time.monotonic()
        return out

    def fault(self) -> str:
        """Why it ended or has to be ended; "" while it works."""
        ended, status = os.waitpid(self.pid, os.WNOHANG)
        if ended:
            self.pid = 0
            return f"the process died ({os.waitstatus_to_exitcode(status)})"
        return "hangs" if time.monotonic() - self._heard > SILENT_SECONDS else ""

    def doing(self) -> tuple[int, str]:
        """The number and reader of the input it works on."""
        return tuple(json.loads((self.folder / ".doing").read_text()))

    def stop(self) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.pid = 0
        self._out.close()


def _work(
    readers: dict[str, Reader], seed: int, number: int, n_workers: int, first: int, folder: Path, keep: Path
) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    names, seen, place = list(readers), set(), folder / "input"
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with (folder / ".lines").open("a", buffering=1) as out:
        for at in range(first, 10**9):
            name = names[at % len(names)]
            choose = random.Random(f"{seed} {number} {at}")
            _lay(readers[name], place, choose)
            (folder / ".doing").write_text(json.dumps([at, name]))
            line = {"reader": name} | _tried(readers[name], place)
            if kind := line.get("fault"):
                kept = keep / f"{name}-{len(seen)}-{number}"
                line["folder"] = str(kept)
                if (name, kind) not in seen:
                    seen.add((name, kind))
                    shutil.copytree(place, kept, symlinks=True)
            out.write(json.dumps(line) + "\n")


def _lay(reader: Reader, place: Path, choose: random.Random) -> None:
    shutil.rmtree(place, ignore_errors=True)
    changed = choose.choice(reader.mutated or list(reader.files))
    for name, data in reader.files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(mutated(data, choose) if name == changed else data)


def _tried(reader: Reader, place: Path) -> dict:
    signal.signal(signal.SIGPROF, _too_long)
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    before, started = _memory_mb(reset=True), time.process_time()
    refused = fault = ""
    try:
        reader.read(place)
    except WiscaError as error:
        refused = type(error).__name__
    except TooLong:
        fault = f"over {CPU_SECONDS:g} s of the processor"
    except BaseException as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        ours = [f for f in traceback.extract_tb(error.__traceback__) if "wisca_core" in f.filename][-1:] or [last]
        fault = f"{type(error).__name__} at {Path(ours[0].filename).name}:{ours[0].lineno} ({str(error)[:80]!r})"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    seconds, mb = time.process_time() - started, _memory_mb() - before
    if mb > MEMORY_MB and not fault:
        fault = f"over {MEMORY_MB} MB"
    return {"refused": refused, "seconds": seconds, "mb": mb} | ({"fault": fault} if fault else {})


def _too_long(*_: object) -> None:
    raise TooLong


def _memory_mb(reset: bool = False) -> int:
    """The peak of resident memory since the last reset, which this kernel keeps for each process."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) // 1024
