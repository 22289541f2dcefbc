"""``python tests/fuzz [--inputs N | --minutes M] [--reader NAME ...] [--seed S] [--workers W] [--keep DIR]``

Mutates sound files for every reader of files from outside and reports, by reader, what became of them. A reader may
return, or raise one of our named errors; anything else is a fault: another exception, over 5 s of the processor, over
500 MB more memory, a process that dies. Faults are kept as folders in DIR, each kind once. Exit code 1 where there is
any.
"""

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import running
import samples


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--inputs", type=int, default=0)
    options.add_argument("--minutes", type=float, default=1.0)
    options.add_argument("--reader", action="append")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--workers", type=int, default=2)
    options.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()) / "wisca-fuzz")
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        readers = samples.readers(Path(folder))
        if given.reader:
            readers = {name: readers[name] for name in given.reader}
        seconds = 1e9 if given.inputs else given.minutes * 60
        tally = running.fuzz(readers, given.inputs or 10**9, seconds, given.seed, given.workers, given.keep)
    print(running.report(tally))
    return 1 if any(one.faults for one in tally.values()) else 0


if __name__ == "__main__":
    raise SystemExit(main())
