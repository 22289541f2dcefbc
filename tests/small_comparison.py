"""Comparisons small enough for a test, and how a test trains one."""

from pathlib import Path
from typing import Any

from wisca_core.comparison import folder
from wisca_core.comparison.cell import train
from wisca_core.comparison.data import load_corpus
from wisca_core.comparison.presets import ARMS
from wisca_core.comparison.spec import DataSpec, ModelSpec, OptimiserSpec, Spec
from wisca_core.comparison.spec_checks import checked

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
    return checked(Spec(**{**given, **changes}))


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


def numbers(cell: folder.Cell) -> list[dict]:
    """The rows of a cell without how long they took."""
    return [{k: v for k, v in row.items() if k != "seconds"} for row in folder.rows(cell.folder)]
