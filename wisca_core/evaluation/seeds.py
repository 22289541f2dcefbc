"""The arms of a comparison, evaluated together: the training seed is the unit, windows and documents are nested in it.

What two models of one seed differ by on a thousand documents says nothing of the next seed; an interval over documents
is too narrow for a claim about a way of training.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from wisca_core.comparison import folder
from wisca_core.comparison.statistics import FEWEST, FIRM, paired_interval
from wisca_core.errors import BadOption, UnreadableInput
from wisca_core.untrusted import named_path

FILES = ("spec.json", "cells")


def is_comparison(path: str | Path) -> bool:
    """Whether this is the folder of a comparison."""
    place = named_path(path)
    return all((place / name).exists() for name in FILES)


def cells(path: str | Path) -> tuple[str, list[folder.Cell]]:
    """(name of the baseline, finished cells with their weights). After a pilot, whose own runs are left out, each arm
    has the rate that was chosen for it, and the cells' ``rate`` is None: arms are paired by their seed alone. Raises
    UnreadableInput where there are none.
    """
    comparison = folder.read(named_path(path))
    found = [cell for cell in comparison.tested if cell.state == "done" and (cell.folder / "model").is_dir()]
    if comparison.spec.has_pilot:
        found = [replace(cell, rate=None) for cell in found]
    if not found:
        kept = "kept no weights (save_weights is off)" if not comparison.spec.save_weights else "has no finished run"
        raise UnreadableInput(
            f"{comparison.path} {kept}, so there is nothing of it to run. Train it with save_weights on."
        )
    return comparison.spec.baseline.name, found


def seed_rows(baseline: str, values: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """``values``: {arm, rate, seed, measure, value} of every cell. A row an arm, rate and measure: mean over seeds of
    (arm minus baseline of the same seed) with its 95 % t interval over seeds.
    """
    found = {(v["arm"], v["rate"], v["seed"], v["measure"]): v["value"] for v in values}
    out = []
    groups = dict.fromkeys((v["arm"], v["rate"], v["measure"]) for v in values)
    for arm, rate, measure in groups:
        seeds = sorted({v["seed"] for v in values if (v["arm"], v["rate"], v["measure"]) == (arm, rate, measure)})
        mine = [found[arm, rate, seed, measure] for seed in seeds]
        row = {"arm": arm, "rate": rate, "measure": measure, "n_seeds": len(seeds), "mean": sum(mine) / len(mine)}
        shared = [seed for seed in seeds if (baseline, rate, seed, measure) in found]
        gaps = [found[arm, rate, seed, measure] - found[baseline, rate, seed, measure] for seed in shared]
        if arm != baseline and gaps:
            one = paired_interval(gaps)
            row |= {"difference": one.mean, "low": one.low, "high": one.high, "n_pairs": one.n, "differences": gaps}
            row["words"] = _words(one)
        out.append(row)
    return out


def _words(interval) -> str:
    if interval.n < 2:
        return "one seed: no interval"
    firm = "" if interval.n >= FIRM else "preliminary: " if interval.n >= FEWEST else "too few seeds to conclude: "
    return f"{firm}{'no detectable difference' if interval.spans_zero else 'higher' if interval.mean > 0 else 'lower'}"


def check_alone(path: str | Path, other: object) -> None:
    """Raises BadOption where a second model stands beside a comparison."""
    if other is not None:
        raise BadOption(f"{path} is a comparison: its arms are evaluated together, so no second model goes with it.")
