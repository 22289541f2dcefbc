"""Several cells at once in each process, stacked (``group``, ``stack``). This file is the only door of the room, and
``executors.TOGETHER`` the only way to it: without the room, that import and that entry go.
"""

import os
from collections.abc import Callable
from pathlib import Path

from wisca_core.comparison import folder
from wisca_core.comparison.data import Corpus
from wisca_core.comparison.folder import Cell, Comparison
from wisca_core.comparison.place import Placement, free_bytes, is_device_lost, is_out_of_memory
from wisca_core.comparison.spec import Spec

# Replicas of one process where nothing else limits them. On CPU two measured 1.12 (width 64) and 1.00 (width 128) times
# one by one, and more gained nothing: they leave the caches.
AT_ONCE = {"cpu": 2, "cuda": 64}


def why_not(spec: Spec) -> str:
    """Why this comparison's cells cannot be trained so, "" where they can."""
    if spec.processes_per_cell > 1:
        return f"processes_per_cell = {spec.processes_per_cell} spreads each cell over several processes"
    if spec.model.source == "lora":
        return "they are adapters on a frozen model"
    if any(arm.kind == "rates" for arm in spec.arms):
        return "an arm gives single matrices their own learning rates"
    from wisca_core.comparison.models import model_config
    from wisca_core.comparison.replicas import stack

    return stack.why_not(model_config(spec))


def train(
    comparison: Comparison,
    corpus: Corpus,
    stop: Callable[[], bool],
    place: Placement,
    at_once: int,
    take: Callable[[Path, Cell], tuple[Cell, int] | None],
    end: Callable[[Path, Cell, BaseException | None, Placement], None],
) -> None:
    """Train what can be had of the comparison, up to ``at_once`` cells together. ``take``: the cell and its lock, None
    where somebody has it; ``end``: says how it ended. Raises what ends the device for all of them.
    """
    import torch

    from wisca_core.comparison.replicas import group

    if place.is_cuda:
        at_once = min(at_once, _fitting(comparison.spec, place))
    while not stop():
        held: dict[str, tuple[Cell, int]] = {}
        limit = at_once
        for known in comparison.cells:
            taken = take(comparison.path, known) if len(held) < limit else None
            if taken is None:
                continue
            if not held and taken[0].attempts:  # a process ended under it, perhaps for lack of memory
                limit = max(1, at_once // 2)
            held[known.name] = taken
        if not held:
            return

        def ended(cell: Cell, error: BaseException | None, held: dict[str, tuple[Cell, int]] = held) -> None:
            end(comparison.path, cell, error, place)
            os.close(held.pop(cell.name)[1])

        def say(state: str, held: dict[str, tuple[Cell, int]] = held) -> None:
            for cell, _ in held.values():
                folder.write_cell_status(cell, state=state, reason="")

        try:
            say("running")
            cells = [cell for cell, _ in held.values()]
            if not group.train_group(comparison.spec, cells, corpus, stop, place, ended):
                say("waiting")
                return
        except Exception as error:
            if is_out_of_memory(error) and len(held) > 1:
                at_once = max(1, len(held) // 2)
                print(f"out of memory with {len(held)} replicas at once; going on with {at_once}", flush=True)
                say("waiting")
            else:
                for cell, _ in list(held.values()):
                    ended(cell, error)
                if is_device_lost(error):
                    raise
        finally:
            for _, descriptor in held.values():
                os.close(descriptor)
        if place.is_cuda:
            torch.cuda.empty_cache()


def _fitting(spec: Spec, place: Placement) -> int:
    """Replicas that the GPU's free memory should hold; where it does not, running out of it makes them fewer."""
    from wisca_core.comparison.estimate import cell_bytes
    from wisca_core.comparison.prepare import prepare

    # half as much again: while a step is captured, weights and moments are there twice
    return max(1, int(0.9 * free_bytes(int(place.device.partition(":")[2])) / (1.5 * cell_bytes(spec, prepare(spec)))))
