"""Comparisons small enough for a test, how a test trains one, and finished ones whose losses a test decides."""

import json
import subprocess
from pathlib import Path
from typing import Any

from wisca_core.comparison import folder, worker
from wisca_core.comparison.cell import train
from wisca_core.comparison.data import load_corpus
from wisca_core.comparison.presets import ARMS
from wisca_core.comparison.spec import Arm, DataSpec, ModelSpec, OptimiserSpec, PilotSpec, Spec
from wisca_core.comparison.spec_checks import check_spec

TEXT = (b"The quick brown fox jumps over the lazy dog, again and again. " * 80)[:4000]
MODEL = ModelSpec(width=16, n_layers=2, n_heads=4, n_kv_heads=2, mlp_width=24, init_std=0.1)


def small_spec(text: Path, **changes: Any) -> Spec:
    """A decoder on ``text`` whose cells take a tenth of a second."""
    given = dict(
        name="small",
        model=MODEL,
        data=DataSpec("text", str(text), context=16, validation_windows=4),
        steps=12,
        seeds=(1, 2),
        batch_size=2,
        arms=(ARMS["baseline"], ARMS["wisca"]),
        optimiser=OptimiserSpec(warmup_steps=2),
        evaluate_every=4,
        log_every=2,
        save_weights=False,
    )
    return check_spec(Spec(**{**given, **changes}))


def never() -> bool:
    """Nobody asks to stop."""
    return False


def train_all(path: Path, spec: Spec) -> folder.Comparison:
    """Every cell in this process."""
    folder.create(path, spec)
    corpus = load_corpus(spec)
    for cell in folder.read(path).cells:
        assert train(spec, cell, corpus, never)
        folder.write_cell_status(cell, state="done")
    return folder.read(path)


def work_here(path: Path, way: Any, number: int) -> tuple[subprocess.Popen]:
    """``executor._start`` of one worker whose process is not what a test is about: it would import everything anew."""
    code = worker.work(path, "cpu", lambda: bool(folder.stop_request(path)), way.executor, way.at_once)
    return (subprocess.Popen(["sh", "-c", f"exit {code}"]),)


def numbers(cell: folder.Cell) -> list[dict]:
    """The rows of a cell without how long they took."""
    return [{k: v for k, v in row.items() if k != "seconds"} for row in folder.rows(cell.folder)]


def fill(path: Path, final, start=lambda arm, seed: 5.5, missing=(), middle=None):
    """Every cell ended, its last loss ``final(arm, rate, seed)``; ``missing``: name -> why it failed."""
    for cell in folder.read(path).cells:
        if cell.name in missing:
            folder.write_cell_status(cell, state="failed", reason=missing[cell.name])
            continue
        points = (
            [(0, start(cell.arm, cell.seed))]
            + ([(50, middle(cell.arm))] if middle else [])
            + [(100, final(cell.arm, cell.rate, cell.seed))]
        )
        rows = [{"format": "wisca-metrics", "version": 1}] + [
            {
                "step": s,
                "train_loss": None,
                "val_loss": v,
                "lr": 0.0,
                "grad_norm": None,
                "tokens": s,
                "seconds": 1.0,
                "qk": 3.0,
                "vo": -3.0,
            }
            for s, v in points
        ]
        (cell.folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        folder.write_cell_status(cell, state="done")


def with_pilot(path, pilot_loss, final, grid=(1e-3, 2e-3, 4e-3), arms=None, added=2, seeds=(1, 2, 3, 4), clipped=None):
    """A comparison whose pilot runs end at ``pilot_loss(arm, rate)`` and its tested ones at
    ``final(arm, rate, seed)``.
    """
    spec = Spec(
        "piloted",
        arms=arms or (ARMS["baseline"], ARMS["wisca"], Arm("rates", kind="rates", clip_norm="plain", rate_of="wisca")),
        seeds=tuple(seeds),
        steps=100,
        optimiser=OptimiserSpec(learning_rates=grid),
        pilot=PilotSpec((101, 102), ("baseline", "wisca"), added),
    )
    folder.create(path, spec)

    def ended() -> None:
        fill(path, lambda arm, rate, seed: pilot_loss(arm, rate) if seed > 100 else final(arm, rate, seed))

    ended()
    while folder.settle_pilot(path):
        ended()
    folder.write_status(path, "done")
    return folder.read(path)
