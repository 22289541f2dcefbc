"""Rows as mappings, one by one, and how they are read out of JSON: what JSON lines, a JSON list, trainer_state.json and
our own metrics have in common.
"""

import json

import numpy as np

from wisca_core.errors import UnreadableInput
from wisca_core.runs.collect import Collected
from wisca_core.runs.columns import MAX_COLUMNS, SAMPLE_ROWS, roles, run_name, seconds
from wisca_core.runs.growing import Growing
from wisca_core.untrusted import shown

MAX_JSON_BYTES = 512 << 20


class Rows:
    """Points out of rows; the first rows say which column is the step. ``asked``, ``what``: see ``columns.roles``; ``key``:
    whether columns such as "seed" name the run.
    """

    def __init__(self, out: Collected, run: str, asked: str, what: str, key: bool = True) -> None:
        self.out, self.run, self.asked, self.what = out, run, asked, what
        self.step_column: str | None = None
        self.columns: dict[str, None] = {}
        self._waiting: list[dict] = []
        self._n = 0
        self._time: str | None = None
        self._runs: tuple[str, ...] = ()
        self._decided = False
        self._key = key

    def add(self, row: dict) -> None:
        if self._decided:
            self._take(row)
            return
        self._waiting.append(row)
        if len(self._waiting) >= SAMPLE_ROWS:
            self.settle()

    def add_all(self, listed: list) -> None:
        """A whole list of rows; what is no row is counted."""
        for row in listed:
            if isinstance(row, dict):
                self.add(row)
            else:
                self.out.damaged()
        self.settle()

    def settle(self) -> None:
        """Decide on the rows seen so far which column is the step, and take them."""
        if self._decided or not self._waiting:
            return
        names = list(dict.fromkeys(name for row in self._waiting for name in row))[:MAX_COLUMNS]
        samples = {}
        for i, name in enumerate(names):
            cells = [row.get(name) for row in self._waiting]
            numbers = [
                float(c) if isinstance(c, (int, float)) and not isinstance(c, bool) and abs(c) < 1e300 else np.nan
                for c in cells
            ]
            if any(isinstance(c, (int, float)) and not isinstance(c, bool) for c in cells):
                samples[i] = np.array(numbers)
        found = roles(names, samples, self.asked, self.what)
        self.step_column = None if found.step is None else names[found.step]
        self._time = None if found.time is None else names[found.time]
        self._runs = tuple(names[i] for i in found.runs) if self._key else ()
        self.columns = dict.fromkeys(names[i] for i in samples)
        if found.note:
            self.out.notes.append(found.note)
        self._decided = True
        waiting, self._waiting = self._waiting, []
        for row in waiting:
            self._take(row)

    def _take(self, row: dict) -> None:
        rest = dict(row)
        run = self.run
        if self._runs:
            values = [rest.pop(name, None) for name in self._runs]
            run = run_name(self.run, self._runs, values)
            if run not in self.out.configs:
                self.out.config(run, {name: value for name, value in zip(self._runs, values) if value is not None})
        if self.step_column is None:
            step = float(self._n)
        else:
            step = rest.pop(self.step_column, None)
            if isinstance(step, str):
                try:
                    step = float(step)
                except ValueError:
                    step = None
            if type(step) not in (int, float) or not abs(step) < 1e300:
                self.out.counts["no_step"] += 1
                return
        self._n += 1
        wall = seconds(rest.get(self._time)) if self._time else float("nan")
        if self._time and self._time.lower() not in ("seconds", "elapsed", "_runtime"):
            rest.pop(self._time, None)
        self.out.values(run, rest, float(step), wall)


def json_row(line: bytes) -> dict | None:
    """The JSON object in a line, None for anything else."""
    try:
        row = json.loads(line.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def whole_file(file: Growing) -> bytes:
    """All bytes of a file of at most MAX_JSON_BYTES."""
    parts: list[bytes] = []
    size = 0

    def consume(data: bytes, at_end: bool) -> int:
        nonlocal size
        parts.append(bytes(data))
        size += len(data)
        if size > MAX_JSON_BYTES:
            raise UnreadableInput(
                f"{shown(file.path)}: larger than {MAX_JSON_BYTES >> 20} MB, which is the most that is read of a JSON "
                f"file."
            )
        return len(data)

    for _ in file.pieces(consume):
        pass
    return b"".join(parts)
