"""One process that trains cells: ``python -m wisca_core.comparison.worker FOLDER``, started by the executor only.

It takes any cell that is not finished and that nobody holds, or with ``--at-once N`` up to N of them together. It
ends when there is none, when it is asked to pause or cancel, or when the process that started it is gone; an unfinished
cell then has a checkpoint. ``torchrun -m wisca_core.comparison.worker FOLDER`` works as well, and over several
machines, where the network is yours alone.
"""

import argparse
import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from wisca_core import storage
from wisca_core.comparison import folder
from wisca_core.comparison.data import Corpus, kept_corpus
from wisca_core.comparison.executors import TOGETHER
from wisca_core.comparison.folder import Cell, Comparison
from wisca_core.comparison.place import Placement, is_device_lost, is_out_of_memory
from wisca_core.processes import collect_seldom

# Exit codes: the device failed while cells were trained (a fresh process may find it again), or was not there at all.
LOST, NO_DEVICE = 75, 76


def main(arguments: list[str]) -> int:
    options = argparse.ArgumentParser(prog="wisca_core.comparison.worker", description="Use wisca compare.")
    options.add_argument("folder", type=Path)
    options.add_argument("--device", default="cpu")
    options.add_argument("--executor", default="processes")
    options.add_argument("--at-once", type=int, default=0, help="cells, where the executor trains several together")
    options.add_argument(
        "--store", default="", help="file in which the ranks of one cell meet; started by torchrun they meet without"
    )
    given = options.parse_args(arguments)
    collect_seldom()
    parent = os.getppid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the executor asks for a pause
    path: Path = given.folder

    def stop() -> bool:
        return bool(folder.stop_request(path)) or os.getppid() != parent

    return work(path, given.device, stop, given.executor, given.at_once, given.store)


def work(
    path: Path,
    device: str,
    stop: Callable[[], bool],
    executor: str = "processes",
    at_once: int = 0,
    store: str = "",
    only: str = "",
) -> int:
    """Train what can be taken of the comparison in ``path``; an exit code. ``at_once``: cells together, where the
    executor does that; ``only``: the name of the one cell to train. Where RANK and WORLD_SIZE are set, this is one of
    several processes of each cell.
    """
    comparison = folder.read(path)
    if only:
        comparison = replace(comparison, cells=tuple(c for c in comparison.cells if c.name == only))

    import torch
    from transformers.utils import logging

    from wisca_core.comparison import ranks

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    is_rank = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    place = Placement(device, comparison.spec.precision)
    if place.is_cuda:
        try:
            torch.cuda.set_device(device)
            torch.zeros(1, device=device)
        except Exception as error:
            print(f"{device} cannot be used: {error}", file=sys.stderr)
            return NO_DEVICE
    corpus = kept_corpus(comparison.spec, path)
    if is_rank:
        ranks.join(store, device)
    room = TOGETHER.get(executor)
    try:
        if room:
            room.train(comparison, corpus, stop, place, at_once, _take, _end)
        else:
            _singles(comparison, corpus, stop, place)
    except Exception as error:
        if isinstance(error, _RankLost) or is_device_lost(error):
            return LOST
        raise
    ranks.leave()
    return 0


class _RankLost(Exception):
    pass


def _singles(comparison: Comparison, corpus: Corpus, stop: Callable[[], bool], place: Placement) -> None:
    from wisca_core.comparison import ranks
    from wisca_core.comparison.cell import CellFailed, train

    for known in comparison.cells:
        if ranks.first_rank_value(stop()):
            return
        cell, descriptor = _take_on_first(comparison.path, known)
        if cell is None:
            continue
        try:
            _say(cell, state="running", reason="")
            try:
                if not train(comparison.spec, cell, corpus, stop, place):
                    _say(cell, state="waiting", reason="")
                    return
            except Exception as error:  # whatever it was, the other cells go on
                if ranks.is_first() or not isinstance(error, CellFailed):
                    _end(comparison.path, cell, error, place)
                if is_device_lost(error) or (ranks.n_ranks() > 1 and not isinstance(error, CellFailed)):
                    raise _RankLost from error  # other ranks wait for this one: all of them start anew
            else:
                if ranks.is_first():
                    _end(comparison.path, cell, None, place)
        finally:
            if descriptor is not None:
                os.close(descriptor)


def _say(cell: Cell, **more) -> None:
    from wisca_core.comparison import ranks

    if ranks.is_first():
        folder.write_cell_status(cell, **more)


def _take_on_first(path: Path, known: Cell) -> tuple[Cell | None, int | None]:
    """The cell on every rank, its lock on the first; None where it is not to be had."""
    from wisca_core.comparison import ranks

    cell, descriptor = (_take(path, known) or (None, None)) if ranks.is_first() else (None, None)
    return ranks.first_rank_value(cell), descriptor


def _take(path: Path, known: Cell) -> tuple[Cell, int] | None:
    """The cell as it is now and the descriptor of its lock; None where somebody has it or nothing is left to do."""
    descriptor = storage.take_lock(known.folder / "lock")
    if descriptor is None:
        return None
    cell = next(c for c in folder.read(path).cells if c.name == known.name)
    if cell.state == "done" or cell.state == "failed":
        os.close(descriptor)
        return None
    return cell, descriptor


def _end(path: Path, cell: Cell, error: BaseException | None, place: Placement) -> None:
    from wisca_core.comparison.cell import CellFailed

    if error is None:
        done = next(c for c in folder.read(path).cells if c.name == cell.name)
        folder.write_cell_status(done, state="done", reason="")
        folder.remove_checkpoint(done)
    elif isinstance(error, CellFailed):
        folder.write_cell_status(cell, state="failed", reason=str(error), is_final=True)
    else:
        traceback.print_exception(error)
        folder.write_cell_status(cell, state="failed", reason=_reason(error, place.device), is_final=False)


def _reason(error: BaseException, device: str = "cpu") -> str:
    text = str(error).splitlines()[0][:300] if str(error) else ""
    if is_out_of_memory(error):
        return (
            f"out of memory{'' if device == 'cpu' else f' on {device}'}. Make the model, the batch or the context "
            "smaller, or use a larger machine."
        )
    if is_device_lost(error):
        return f"the device failed: {text}. Resume once it is back; the cell goes on from its last checkpoint."
    return f"{type(error).__name__}: {text}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
