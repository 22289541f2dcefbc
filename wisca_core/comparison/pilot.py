"""Learning rates chosen beforehand, on seeds that are tested nowhere.

The best of several rates chosen on the very seeds that are tested covers the true difference too rarely where two rates
nearly tie (0.91 of the time with 4 seeds, 0.83 with 16); chosen on seeds of their own it does not. Each arm with a pilot
is trained at every rate of its grid; while its best rate is at an end of the grid, the grid grows by one rate there.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wisca_core import storage
from wisca_core.comparison.spec import Spec
from wisca_core.errors import SpecError

if TYPE_CHECKING:
    from wisca_core.comparison.folder import Comparison

FORMAT = "wisca-comparison-pilot"


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


def known(path: Path, spec: Spec) -> Pilot:
    """What the folder says; the grids as the spec has them where nothing is known yet."""
    if not (path / "pilot.json").exists():
        grid = tuple(sorted(spec.optimiser.learning_rates))
        return Pilot({name: grid for name in spec.pilot_arms}, {}, {})
    found = storage.read_json(path / "pilot.json", FORMAT, 1)
    grids = {str(name): tuple(map(float, rates)) for name, rates in found["grids"].items()}
    return Pilot(grids, {n: float(rate) for n, rate in found["chosen"].items()}, dict(found["at_end"]))


def check_source(source: "Comparison", spec: Spec) -> None:
    """Whether the rates that another comparison's pilot has chosen may serve this one. Raises SpecError."""
    if not source.pilot.chosen:
        raise SpecError(
            "pilot.source", spec.pilot.source, "a comparison whose pilot has chosen its rates; let it run on"
        )
    both = sorted(set(source.spec.pilot.seeds) & set(spec.seeds))
    if both:
        raise SpecError(
            "seeds", list(spec.seeds), f"none of the seeds that chose the rates: {', '.join(map(str, both))}"
        )


def losses(comparison: "Comparison") -> dict[str, dict[float, list[float]]]:
    """Arm -> rate -> final losses of the pilot runs that ended; infinite for one that failed."""
    from wisca_core.comparison.folder import final_loss

    out: dict[str, dict[float, list[float]]] = {}
    for cell in comparison.cells:
        if cell.is_pilot and cell.state in ("done", "failed"):
            loss = final_loss(cell) if cell.state == "done" else math.inf
            out.setdefault(cell.arm, {}).setdefault(cell.rate, []).append(loss)
    return out


def settle(comparison: "Comparison") -> bool:
    """Choose rates, or grow the grids, once every pilot run has ended; whether there is more to train than before."""
    spec, pilot = comparison.spec, comparison.pilot
    if not spec.pilot.seeds or pilot.chosen:
        return False
    if any(c.is_pilot and c.state not in ("done", "failed") for c in comparison.cells):
        return False
    found, grids, best, at_end = losses(comparison), dict(pilot.grids), {}, {}
    start = len(spec.optimiser.learning_rates)
    for name, grid in pilot.grids.items():
        means = {rate: sum(found[name][rate]) / len(found[name][rate]) for rate in grid}
        best[name] = min(grid, key=lambda rate: (means[rate], rate))
        end = "low" if best[name] == grid[0] else "high" if best[name] == grid[-1] else ""
        if end and len(grid) < start + spec.pilot.added_rates:
            grids[name] = _grown(grid, end)
        elif end:
            at_end[name] = end
    grown = Pilot(grids, best if grids == pilot.grids else {}, at_end if grids == pilot.grids else {})
    write(comparison.path, grown)
    return True


def write(path: Path, pilot: Pilot) -> None:
    document = {"grids": {n: list(rates) for n, rates in pilot.grids.items()}}
    storage.write_json(path / "pilot.json", FORMAT, 1, document | {"chosen": pilot.chosen, "at_end": pilot.at_end})


def _grown(grid: tuple[float, ...], end: str) -> tuple[float, ...]:
    """One rate more at that end, as far from it as the two there are from each other."""
    new = grid[0] * grid[0] / grid[1] if end == "low" else grid[-1] * grid[-1] / grid[-2]
    return tuple(sorted((*grid, float(f"{new:.6g}"))))
