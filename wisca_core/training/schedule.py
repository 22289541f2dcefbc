"""When a rescale is due, counted in optimiser steps."""

from dataclasses import dataclass

from wisca_core.errors import BadOption


@dataclass(frozen=True)
class Schedule:
    """``every=250``: before the first step (step 0) and after optimiser steps 250, 500, ...; None: only before the
    first.

    ``at_start=False`` leaves out step 0. Nothing happens before step ``start`` or after step ``stop`` (both included).
    Raises BadOption.

    >>> [step for step in range(1001) if Schedule(every=250, stop=750).due(step)]
    [0, 250, 500, 750]
    """

    every: int | None = 250
    at_start: bool = True
    start: int = 0
    stop: int | None = None

    def __post_init__(self) -> None:
        if self.every is not None and (not _whole(self.every) or self.every < 1):
            raise BadOption(
                f"every: {self.every!r} was given; a whole number of optimiser steps from 1 is needed, or None for "
                "once at the start."
            )
        if not _whole(self.start) or self.start < 0:
            raise BadOption(f"start: {self.start!r} was given; a whole number of optimiser steps from 0 is needed.")
        if self.stop is not None and (not _whole(self.stop) or self.stop < self.start):
            raise BadOption(
                f"stop: {self.stop!r} was given; a whole number not below start = {self.start} is needed, or None."
            )
        if self.every is None and (not self.at_start or self.start > 0):
            raise BadOption(
                "every=None rescales once before the first step, and at_start=False or start > 0 forbids that; "
                "nothing would happen."
            )

    def due(self, step: int) -> bool:
        """Whether to rescale after ``step`` optimiser steps (0: before the first)."""
        if step < self.start or (self.stop is not None and step > self.stop):
            return False
        return self.at_start if step == 0 else self.every is not None and step % self.every == 0


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
