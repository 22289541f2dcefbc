"""Which column is the step, which is the time, which names the run: guessed from the names, said, and correctable."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from wisca_core.errors import BadOption
from wisca_core.untrusted import shown

# Names of step columns, best first; compared without case. The last ones count something coarser than an optimiser
# step.
STEP_NAMES = (
    "step",
    "global_step",
    "_step",
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
    "_runtime",
)
# A row belongs to the run that these columns name together.
RUN_NAMES = ("run", "run_name", "cell", "arm", "seed")
# pandas writes its index as a column of one of these names: it counts rows of the export, nothing of the run.
INDEX_NAMES = ("", "unnamed: 0", "index")

# So many rows say which columns hold numbers; a column that turns into numbers later is still read, only slower.
SAMPLE_ROWS = 1000
MAX_COLUMNS = 20_000

_WANDB_EXPORT = re.compile(r"(.+) - (.+?)(__MIN|__MAX)?\Z", re.DOTALL)


@dataclass(frozen=True)
class Roles:
    """Positions of columns. ``step`` None: rows are counted. ``series``: (position, run name or "", metric)."""

    step: int | None
    time: int | None
    runs: tuple[int, ...]
    series: tuple[tuple[int, str, str], ...]
    note: str  # what was guessed and how to correct it, "" where it was asked for


def roles(names: Sequence[str], samples: Mapping[int, np.ndarray], asked: str, what: str) -> Roles:
    """``names``: of the columns; ``samples``: position -> first values of the columns that hold numbers (float64, NaN
    where empty).

    Raises BadOption where ``asked`` is no column that holds numbers.
    """
    lower = [name.strip().lower() for name in names]
    note = ""
    if asked:
        if asked not in names or names.index(asked) not in samples:
            raise BadOption(
                f"step column: {shown(asked)!r} is no column of numbers in {what}; it has {_listed(names, samples)}."
            )
        step = list(names).index(asked)
    else:
        step, note = _guessed(names, lower, samples)
    time = next((lower.index(name) for name in TIME_NAMES if name in lower and lower.index(name) != step), None)
    runs = tuple(lower.index(name) for name in RUN_NAMES if name in lower and lower.index(name) != step)
    exported = [_WANDB_EXPORT.match(name) for name in names]
    is_export = any(
        m and m[3] for m in exported
    )  # a chart of W&B saved as CSV: "run - metric", "run - metric__MIN", ...
    series = []
    for i, name in enumerate(names):
        if (
            i in (step, *runs)
            or lower[i] in INDEX_NAMES
            or (i == time and lower[i] not in ("seconds", "elapsed", "_runtime"))
        ):
            continue
        match = exported[i] if is_export else None
        series.append((i, match[1], match[2] + (match[3] or "")) if match else (i, "", name))
    return Roles(step, time, runs, tuple(series), note)


def _guessed(names: Sequence[str], lower: Sequence[str], samples: Mapping[int, np.ndarray]) -> tuple[int | None, str]:
    for name in STEP_NAMES:
        for i, one in enumerate(lower):
            if one == name and i in samples and _counts(samples[i]):
                sure = name in STEP_NAMES[:8] and sum(one in STEP_NAMES[:8] for one in lower) == 1
                return (
                    i,
                    ""
                    if sure
                    else f"column {shown(names[i], 60)!r} is taken as the step (guessed by its name); another one can "
                    f"be named.",
                )
    for i, sample in samples.items():
        usable = sample[np.isfinite(sample)]
        if (
            lower[i] not in INDEX_NAMES
            and lower[i] not in RUN_NAMES
            and lower[i] not in TIME_NAMES
            and len(usable) > 2
            and (usable == np.floor(usable)).all()
            and (np.diff(usable) >= 0).all()
            and usable[-1] > usable[0]
            and usable[0] >= 0
        ):
            return (
                i,
                f"column {shown(names[i], 60)!r} is taken as the step (whole numbers that never fall); another one "
                f"can be named.",
            )
    return (
        None,
        f"no step column was found, so rows are counted from 0; a column can be named as the step: "
        f"{_listed(names, samples)}.",
    )


def _counts(sample: np.ndarray) -> bool:
    finite = sample[np.isfinite(sample)]
    return len(finite) == 0 or bool((finite >= 0).all())


def _listed(names: Sequence[str], samples: Mapping[int, np.ndarray], most: int = 12) -> str:
    usable = [shown(names[i], 40) for i in samples]
    if not usable:
        return "no column of numbers"
    return ", ".join(usable[:most]) + (f" and {len(usable) - most} more" if len(usable) > most else "")


def seconds(value: object) -> float:
    """A time as seconds: a number as it is, an ISO 8601 date as seconds since 1970 (UTC where it names no zone), else
    NaN.
    """
    if isinstance(value, bool) or value is None:
        return math.nan
    if isinstance(value, (int, float)):
        return float(value)
    if isinstance(value, str):
        from datetime import UTC, datetime

        try:
            return float(value)
        except ValueError:
            pass
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
