"""When a rescale is due, counted in optimiser steps."""

import math
from dataclasses import dataclass, replace

from wisca_core.errors import BadOption


@dataclass(frozen=True)
class Schedule:
    """``every=250``: before the first step (step 0) and after optimiser steps 250, 500, ...; None: only before the
    first.

    ``at_start=False`` leaves out step 0. Nothing happens before step ``start`` or after step ``stop`` (both included);
    numbers between 0 and 1 are fractions of the run, which ``of_run`` turns into steps. Raises BadOption.

    >>> [step for step in range(1001) if Schedule(every=250, stop=750).due(step)]
    [0, 250, 500, 750]
    """

    every: int | None = 250
    at_start: bool = True
    start: int | float = 0
    stop: int | float | None = None

    def __post_init__(self) -> None:
        if self.every is not None and (not _whole(self.every) or self.every < 1):
            raise BadOption(
                f"every: {self.every!r} was given; a whole number of optimiser steps from 1 is needed, or None for "
                "once at the start."
            )
        if not _fraction(self.start) and (not _whole(self.start) or self.start < 0):
            raise BadOption(
                f"start: {self.start!r} was given; a whole number of optimiser steps from 0 is needed, or a fraction "
                "of the "
                "run below 1."
            )
        comparable = _fraction(self.stop) == _fraction(self.start) or self.start == 0
        if self.stop is not None and (
            not (_whole(self.stop) or _fraction(self.stop)) or (comparable and self.stop < self.start)
        ):
            raise BadOption(
                f"stop: {self.stop!r} was given; a whole number not below start = {self.start} is needed, a fraction "
                "of the "
                "run below 1, or None."
            )
        if self.every is None and (not self.at_start or self.start > 0):
            raise BadOption(
                "every=None rescales once before the first step, and at_start=False or start > 0 forbids that; "
                "nothing would happen."
            )

    def of_run(self, n_steps: float | None) -> "Schedule":
        """The same with fractions as steps of a run of ``n_steps``. Raises BadOption where that is not known.

        >>> Schedule(every=10, start=0.25, stop=0.5).of_run(100)
        Schedule(every=10, at_start=True, start=25, stop=50)
        """
        fractions = {name: getattr(self, name) for name in ("start", "stop") if _fraction(getattr(self, name))}
        if not fractions:
            return self
        if n_steps is None or not math.isfinite(n_steps) or n_steps < 1:
            raise BadOption(
                f"{', '.join(fractions)}: a fraction of the run was given, and how long the run is is not known. Give "
                "steps, "
                "or n_steps."
            )
        return replace(self, **{name: round(part * n_steps) for name, part in fractions.items()})

    def due(self, step: int) -> bool:
        """Whether to rescale after ``step`` optimiser steps (0: before the first)."""
        if step < self.start or (self.stop is not None and step > self.stop):
            return False
        return self.at_start if step == 0 else self.every is not None and step % self.every == 0


def _fraction(value: object) -> bool:
    return isinstance(value, float) and 0 < value < 1


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
