"""The plan as a file that jobs are given: named by checkpoint and options, so that a job can be found again by it."""

from pathlib import Path

import xxhash

from wisca_app import cached
from wisca_core import storage
from wisca_core.model import Model
from wisca_core.planning.options import Options
from wisca_core.planning.plan import save_plan


def path(model: Model, options: Options) -> Path:
    """Where it lies, written or not."""
    name = xxhash.xxh3_128(f"{model.key}\n{options!r}".encode()).hexdigest()
    return storage.folder("proofs") / f"plan-{name}.json"


def write_kept_plan(model: Model, options: Options) -> str:
    """The same, written now. Raises OutputRefused."""
    where = path(model, options)
    save_plan(cached.plan(model, options), where)
    return str(where)
