"""Learning rates chosen beforehand, on seeds that are tested nowhere.

The best of several rates chosen on the very seeds that are tested covers the true difference too rarely where two rates
nearly tie (0.91 of the time with 4 seeds, 0.83 with 16); chosen on seeds of their own it does not. Each arm with a
pilot is trained at every rate of its grid; while its best rate is at an end of the grid, the grid grows by one rate
there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from wisca_core import storage
from wisca_core.comparison.spec import Spec

FORMAT = "wisca-comparison-pilot"

# arm -> rate -> final losses of its pilot runs
Losses = Mapping[str, Mapping[float, Sequence[float]]]


@dataclass(frozen=True)
class Pilot:
    """``grids``: arm -> its rates so far, ascending; ``chosen``: arm -> the best of them, empty until all are known;
    ``at_end``: arms whose best is an end of a grid that may not grow further, with which end, "low" or "high".
    """

    grids: dict[str, tuple[float, ...]]
    chosen: dict[str, float]
    at_end: dict[str, str]

    def rate(self, spec: Spec, arm: str) -> float | None:
        """That an arm is tested at; None until it is known."""
        for name in (spec.arm(arm).rate_of, arm, spec.baseline.name):
            if name in self.chosen:
                return self.chosen[name]
        return None


def read_pilot(path: Path, spec: Spec) -> Pilot:
    """What the folder says; the grids as the spec has them where nothing is known yet."""
    if not (path / "pilot.json").exists():
        grid = tuple(sorted(spec.optimiser.learning_rates))
        return Pilot({name: grid for name in spec.pilot_arms}, {}, {})
    found = storage.read_json(path / "pilot.json", FORMAT, 1)
    grids = {str(name): tuple(map(float, rates)) for name, rates in found["grids"].items()}
    return Pilot(grids, {n: float(rate) for n, rate in found["chosen"].items()}, dict(found["at_end"]))


def next_pilot(spec: Spec, pilot: Pilot, losses: Losses) -> Pilot:
    """With its rates chosen, or its grids grown. ``losses``: of every pilot run, infinite for one that failed."""
    grids, best, at_end = dict(pilot.grids), {}, {}
    start = len(spec.optimiser.learning_rates)
    for name, grid in pilot.grids.items():
        means = {rate: sum(losses[name][rate]) / len(losses[name][rate]) for rate in grid}
        best[name] = min(grid, key=lambda rate, means=means: (means[rate], rate))
        end = "low" if best[name] == grid[0] else "high" if best[name] == grid[-1] else ""
        if end and len(grid) < start + spec.pilot.added_rates:
            grids[name] = _grow(grid, end)
        elif end:
            at_end[name] = end
    return Pilot(grids, {}, {}) if grids != pilot.grids else Pilot(grids, best, at_end)


def write_pilot(path: Path, pilot: Pilot) -> None:
    document = {"grids": {n: list(rates) for n, rates in pilot.grids.items()}}
    storage.write_json(path / "pilot.json", FORMAT, 1, document | {"chosen": pilot.chosen, "at_end": pilot.at_end})


def _grow(grid: tuple[float, ...], end: str) -> tuple[float, ...]:
    """One rate more at that end, as far from it as the two there are from each other."""
    new = grid[0] * grid[0] / grid[1] if end == "low" else grid[-1] * grid[-1] / grid[-2]
    return tuple(sorted((*grid, float(f"{new:.6g}"))))
