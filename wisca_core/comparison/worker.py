"""One process that trains cells, one after the other: ``python -m wisca_core.comparison.worker FOLDER``, started by the
executor only.

It takes any cell that is not finished and that nobody holds. It ends when there is none, when it is asked to pause or
cancel, or when the process that started it is gone; an unfinished cell then has a checkpoint.
"""

import os
import signal
import sys
import traceback
from pathlib import Path

from wisca_core import home
from wisca_core.comparison import folder
from wisca_core.comparison.data import load_corpus


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: python -m wisca_core.comparison.worker FOLDER (use wisca compare)", file=sys.stderr)
        return 2
    parent = os.getppid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the executor asks for a pause
    path = Path(arguments[0])
    comparison = folder.read(path)

    import torch
    from transformers.utils import logging

    from wisca_core.comparison.cell import CellFailed, train

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    corpus = load_corpus(comparison.spec)

    def stop() -> bool:
        return bool(folder.asked(path)) or os.getppid() != parent

    for known in comparison.cells:
        if stop():
            return 0
        descriptor = home.take_lock(known.folder / "lock")
        if descriptor is None:
            continue
        try:
            cell = next(c for c in folder.read(path).cells if c.name == known.name)
            if cell.state == "done" or (cell.state == "failed" and cell.is_final):
                continue
            folder.write_cell_status(cell, state="running", reason="")
            try:
                if not train(comparison.spec, cell, corpus, stop):
                    folder.write_cell_status(cell, state="waiting", reason="")
                    return 0
            except CellFailed as error:
                folder.write_cell_status(cell, state="failed", reason=str(error), is_final=True)
            except Exception as error:  # whatever it was, the other cells go on
                traceback.print_exc()
                folder.write_cell_status(cell, state="failed", reason=_reason(error), is_final=False)
            else:
                done = next(c for c in folder.read(path).cells if c.name == known.name)
                folder.write_cell_status(done, state="done", reason="")
                folder.remove_checkpoint(done)
        finally:
            os.close(descriptor)
    return 0


def _reason(error: BaseException) -> str:
    text = str(error).splitlines()[0][:300] if str(error) else ""
    is_memory = isinstance(error, MemoryError) or "out of memory" in text.lower() or "can't allocate memory" in text.lower()
    if is_memory:
        return "out of memory. Make the model, the batch or the context smaller, or use a larger machine."
    return f"{type(error).__name__}: {text}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
