"""Processes of our own: how one is started, how it ended in words, and its end. What it is asked, how long it may take
and what is made of its end stand where it is started: jobs, the workers and ranks of a comparison, and ``answering``.
"""

import atexit
import gc
import signal
import subprocess
import sys
import time
from contextlib import suppress

# of environments: where processes stand side by side, threads inside one only cost
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUTF8": "1"}


def program(module: str, *arguments: object) -> list[str]:
    """The command that runs a module of ours. -P: the current folder may be somebody's downloaded model, and a torch.py
    in it must not be imported.
    """
    return [sys.executable, "-P", "-m", module, *map(str, arguments)]


def collect_seldom() -> None:
    """For a process that ends with its work: what libraries bring along as they are imported, over a million objects,
    is not searched for cycles again and again, nor once more at the end. With transformers that is a second and a half.
    """
    gc.set_threshold(*gc.get_threshold()[:2], 1000)
    atexit.register(gc.freeze)


def how_it_ended(code: int) -> str:
    """Of an exit code of ``subprocess``: "by signal SIGKILL", "with exit code 3"."""
    return f"by signal {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"


def end(*processes: subprocess.Popen, patience: float = 0.0) -> None:
    """All of them have ended, by themselves within ``patience`` seconds in all or by force, and their pipes are
    closed.
    """
    until = time.monotonic() + patience
    for one in processes:
        with suppress(subprocess.TimeoutExpired):
            one.wait(max(0.0, until - time.monotonic()))
        one.kill()
        for pipe in filter(None, (one.stdin, one.stdout)):
            with suppress(OSError):
                pipe.close()
        one.wait()
