"""``python -m wisca_core.comparison.launch N FOLDER ...``: N workers that train each cell together; for the executor only.

What torchrun does, without its store, which listens on every interface: the ranks meet in a file of the comparison's
folder, so they are on one machine. ``torchrun -m wisca_core.comparison.worker FOLDER`` works as well, and over several
machines, where the network is yours alone.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from wisca_core.comparison.ranks import store_in
from wisca_core.comparison.worker import LOST
from wisca_core.processes import end, program

LOOK_SECONDS = 0.1
PATIENCE_SECONDS = 5.0


def main(arguments: list[str]) -> int:
    n, folder, *more = arguments
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = os.getppid()
    store = store_in(Path(folder))
    ranks = []
    try:
        for rank in range(int(n)):
            environment = os.environ | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": n}
            command = program("wisca_core.comparison.worker", folder, *more, "--store", store)
            ranks.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, env=environment))
        # where whoever started this is gone, leaving is enough: a rank stops when its parent has changed
        until = None
        while (
            any(one.poll() is None for one in ranks)
            and os.getppid() == parent
            and (until is None or time.monotonic() < until)
        ):
            time.sleep(LOOK_SECONDS)
            if until is None and any(one.returncode for one in ranks):
                until = (
                    time.monotonic() + PATIENCE_SECONDS
                )  # the others wait for one that is gone, and may have a word on why
        codes = [one.returncode or 0 for one in ranks]
        code = LOST if LOST in codes else next((code for code in codes if code), 0)
        return code if code >= 0 else 128 - code
    finally:
        if os.getppid() == parent:
            end(*ranks)
            store.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
