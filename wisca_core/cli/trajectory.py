"""``wisca trajectory``: the ratio of every pair over the checkpoints of one training."""

from dataclasses import asdict
from pathlib import Path

import numpy as np

from wisca_core.checkpoint import Declared
from wisca_core.cli.terminal import bar, document, say, say_lines, table
from wisca_core.errors import BadOption, WiscaError, check_choice
from wisca_core.pairs import SIDES
from wisca_core.patterns.table import NORMS
from wisca_core.runs import read
from wisca_core.runs.groups import loss_metric
from wisca_core.spreadsheet import check_replaceable, write_csv
from wisca_core.trajectories import COLUMNS, Trajectory, advice, drifts, trajectory
from wisca_core.words import side

HEAD = ",".join(list(COLUMNS)[:-1])  # tables of earlier versions end there
MOST_STEPS = 8


def run(
    folder: Path,
    csv: Path | None,
    norm: str,
    every: int,
    logs: Path | None,
    json: bool,
    declared: Declared | None = None,
) -> int:
    """0; a folder without a checkpoint that can be measured raises."""
    check_choice("norm", norm, NORMS)
    if every < 1:
        raise BadOption(f"every: {every} was given; it is a number of steps, 1 or more.")
    if csv:
        check_replaceable(csv, HEAD)
    with bar() as progress:
        found = trajectory(folder, progress, declared)
        curve = _curve(folder, logs, progress)
    readings = advice(found, norm, every, curve)
    if csv:
        write_csv(csv, found.tables[norm])
    if json:
        document(
            "wisca-trajectory",
            {
                "folder": str(found.folder),
                "norm": norm,
                "every": every,
                "checkpoints": [{"step": c.step, "label": c.label} for c in found.checkpoints],
                "layers": found.layers(norm).to_dict("records"),
                "drifts": [asdict(d) for d in drifts(found, norm)],
                "advice": [{"text": a.text, "numbers": dict(a.numbers)} for a in readings],
                "remarks": found.remarks,
                "refused": [{"what": r.what, "reason": r.reason} for r in found.refusals],
            },
        )
        return 0
    _say(found, norm)
    for reading in readings:
        say(reading.text)
    say_lines("\nLabels:", found.remarks)
    say_lines("\nNot covered:", [f"{r.what}: {r.reason}" for r in found.refusals])
    if csv:
        say(f"\n{len(found.tables[norm]):,} rows written to {csv}")
    return 0


def _curve(folder: Path, logs: Path | None, progress) -> tuple[str, np.ndarray, np.ndarray] | None:
    """The loss logged beside the checkpoints, or in ``logs``; a log that was named has to be readable."""
    try:
        runs = read([logs or folder], progress=progress).runs
    except WiscaError:
        if logs is not None:
            raise
        return None
    one = runs[0] if len(runs) == 1 else None
    if one is None and logs is not None:
        raise BadOption(f"{logs} holds {len(runs)} runs; name the log of the one training the checkpoints are of.")
    metric = loss_metric(one) if one else None
    return (metric, one.series[metric].step, one.series[metric].value) if metric else None


def _say(found: Trajectory, norm: str) -> None:
    steps = sorted(set(found.steps))
    say(f"{found.folder}: {len(found.checkpoints)} checkpoints, steps {steps[0]:,} to {steps[-1]:,}", style="bold")
    layers = found.layers(norm)
    shown = (
        steps
        if len(steps) <= MOST_STEPS
        else [steps[i] for i in np.unique(np.linspace(0, len(steps) - 1, MOST_STEPS).astype(int))]
    )
    for pair, block in found.places:
        part = layers[(layers["pair"] == pair) & (layers["block"] == block)].pivot_table(
            index="layer", columns="step", values="log2_ratio", aggfunc="last"
        )
        left, right = SIDES[pair]
        say(
            f"\n{left.capitalize()} to {right}, {', '.join(filter(None, (found.titles(pair)[block], norm)))}: the "
            "heavier side in each layer" + (f" ({len(shown)} of {len(steps)} steps)" if len(shown) < len(steps) else "")
        )
        rows = [
            [str(layer), *(side(pair, part.loc[layer].get(step, np.nan), "equal", "×") for step in shown)]
            for layer in part.index
        ]
        rows.append(
            ["median", *(side(pair, part[step].median(), "equal", "×") if step in part else "" for step in shown)]
        )
        table(["Layer", *(f"step {step:,}" for step in shown)], rows, numbers=range(1, len(shown) + 1))
