"""Which column is the step, which is the time, which names the run: guessed from the names, said, and correctable."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from wisca_core.errors import BadOption
from wisca_core.untrusted import printable

# Names of step columns, best first; compared without case. The last ones count something coarser than an optimiser
# step.
STEP_NAMES = (
    "step",
    "global_step",
    "_step",
    "current_steps",
    "trainer/global_step",
    "train/global_step",
    "steps",
    "iteration",
    "iterations",
    "iter",
    "iter_num",
    "it",
    "update",
    "updates",
    "num_updates",
    "batch",
    "epoch",
    "train/epoch",
    "epochs",
)
# Seconds since 1970, an ISO date, or seconds since the start.
TIME_NAMES = (
    "wall_time",
    "_timestamp",
    "timestamp",
    "walltime",
    "time",
    "datetime",
    "created_at",
    "seconds",
    "elapsed",
    "elapsed_time",
    "_runtime",
)
# Those of them that count from the start of the run; they are measurements too.
SINCE_START = ("seconds", "elapsed", "_runtime")
# A row belongs to the run that these columns name together.
RUN_NAMES = ("run", "run_name", "cell", "arm", "seed")
# pandas writes its index as a column of one of these names: it counts rows of the export, nothing of the run.
INDEX_NAMES = ("", "unnamed: 0", "index")

# So many rows say which columns hold numbers; a column that turns into numbers later is still read, only slower.
SAMPLE_ROWS = 1000
MAX_COLUMNS = 20_000

_WANDB_EXPORT = re.compile(r"(.+) - (.+?)(__MIN|__MAX)?\Z", re.DOTALL)


# What may stand behind a step's name: "global_step/max_steps", whose cells are "5/100".
_OF_ALL = re.compile(r"/(max|total)_?(steps?|iters?|iterations?)?\Z")
_FRACTION = re.compile(r"\s*(\d{1,15})\s*/\s*\d{1,15}\s*\Z")


def is_step_name(lower: str) -> bool:
    """Whether a column of that name (lower case) may count the steps."""
    return _OF_ALL.sub("", lower) in STEP_NAMES


def fraction(cell: object) -> float | None:
    """5.0 of "5/100", how some trainers write a step; None for anything else."""
    found = _FRACTION.match(cell) if isinstance(cell, str) else None
    return float(found[1]) if found else None


@dataclass(frozen=True)
class Roles:
    """Names of columns. ``step`` None: rows are counted. ``exported``: names are "run - metric", a chart of W&B saved
    as a table.
    """

    step: str | None
    time: str | None
    runs: tuple[str, ...]
    exported: bool
    note: str  # what was guessed and how to correct it, "" where it was asked for


def roles(names: Sequence[str], samples: Mapping[str, np.ndarray], asked: str, what: str) -> Roles:
    """``names``: of the columns; ``samples``: first values of the columns that hold numbers (float64, NaN where empty).

    Raises BadOption where ``asked`` is no column that holds numbers.
    """
    lower = {name.strip().lower(): name for name in reversed(names)}
    note = ""
    if asked:
        if asked not in names or not (asked in samples or is_step_name(asked.lower())):
            raise BadOption(
                f"step column: {printable(asked)!r} is no column of numbers in {what}; it has {_column_list(samples)}."
            )
        step = asked
    else:
        step, note = _guess(names, samples)
    time = next((lower[name] for name in TIME_NAMES if name in lower and lower[name] != step), None)
    runs = tuple(lower[name] for name in RUN_NAMES if name in lower and lower[name] != step)
    exported = any(m and m[3] for m in map(_WANDB_EXPORT.match, names))  # "run - metric", "run - metric__MIN", ...
    return Roles(step, time, runs, exported, note)


def metric_of_export(name: str) -> tuple[str, str]:
    """(run, metric) of a column of a chart exported from W&B; ("", name) of any other."""
    match = _WANDB_EXPORT.match(name)
    return (match[1], match[2] + (match[3] or "")) if match else ("", name)


def tracker_step(samples: Mapping[str, np.ndarray], own: str) -> str | None:
    """The column in which a tracker's rows name the optimiser step, beside its ``own`` counter; None where none
    does.
    """
    for name in STEP_NAMES[:8]:
        for one, sample in samples.items():
            finite = sample[np.isfinite(sample)]
            if (
                one != own
                and one.lower().rsplit("/", 1)[-1] == name
                and len(finite)
                and (finite == np.floor(finite)).all()
                and finite[0] >= 0
            ):
                return one
    return None


def _guess(names: Sequence[str], samples: Mapping[str, np.ndarray]) -> tuple[str | None, str]:
    lower = {name: name.strip().lower() for name in names}
    for wanted in STEP_NAMES:
        for name in names:
            plain = _OF_ALL.sub("", lower[name])
            if plain == wanted and (plain != lower[name] or name in samples and _counts(samples[name])):
                sure = (
                    wanted in STEP_NAMES[:9] and sum(_OF_ALL.sub("", o) in STEP_NAMES[:9] for o in lower.values()) == 1
                )
                return name, "" if sure else (
                    f"column {printable(name, 60)!r} is taken as the step (guessed by its name); another one can be "
                    "named."
                )
    for name, sample in samples.items():
        usable = sample[np.isfinite(sample)]
        if (
            lower[name] not in (*INDEX_NAMES, *RUN_NAMES, *TIME_NAMES)
            and len(usable) > 2
            and (usable == np.floor(usable)).all()
            and (np.diff(usable) >= 0).all()
            and usable[-1] > usable[0]
            and usable[0] >= 0
        ):
            return name, (
                f"column {printable(name, 60)!r} is taken as the step (whole numbers that never fall); another one can "
                "be "
                f"named."
            )
    return None, (
        "no step column was found, so rows are counted from 0; a column can be named as the step: "
        f"{_column_list(samples)}."
    )


def _counts(sample: np.ndarray) -> bool:
    finite = sample[np.isfinite(sample)]
    return len(finite) == 0 or bool((finite >= 0).all())


def _column_list(samples: Mapping[str, np.ndarray], most: int = 12) -> str:
    usable = [printable(name, 40) for name in samples]
    if not usable:
        return "no column of numbers"
    return ", ".join(usable[:most]) + (f" and {len(usable) - most} more" if len(usable) > most else "")


_CLOCK = re.compile(r"\s*(?:(\d{1,6}) days?, )?(\d{1,6}):([0-5]\d):([0-5]\d(?:\.\d+)?)\s*\Z")


def seconds(value: object) -> float:
    """A time as seconds: a number as it is, "h:mm:ss" since the start, an ISO 8601 date as seconds since 1970 (UTC
    where it names no zone), else NaN.
    """
    if isinstance(value, bool) or value is None:
        return math.nan
    if isinstance(value, (int, float)):
        try:
            return float(value)
        except OverflowError:
            return math.nan
    if isinstance(value, str):
        from datetime import UTC, datetime

        try:
            return float(value)
        except ValueError:
            pass
        if clock := _CLOCK.match(value):  # "1 day, 2:03:04" since the start
            return float(clock[1] or 0) * 86400 + int(clock[2]) * 3600 + int(clock[3]) * 60 + float(clock[4])
        try:
            when = datetime.fromisoformat(value.strip())
        except ValueError:
            return math.nan
        return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
    return math.nan


def run_name(base: str, names: Sequence[str], values: Sequence[object]) -> str:
    """ "train" with columns arm, seed -> "train, baseline, seed 3"; a run's own name stands alone."""
    parts = []
    for name, value in zip(names, values):
        if value is None or value == "":
            continue
        text = f"{value:g}" if isinstance(value, float) else str(value)
        parts.append(f"seed {text}" if name.strip().lower() == "seed" else text)
    return ", ".join(parts) if parts else base
