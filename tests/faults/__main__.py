"""``python tests/faults [--times N] [--kind NAME ...] [--seed S]``

Faults at random moments of real work: kill -9, a disk that is full at any byte, two writers, a source that changes.
After each, what is there has to be whole or absent, nothing is left beside it, and the same work done again gives the
same bytes. Exit code 1 where anything else was found.
"""

import argparse
import os
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))

import kinds


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--times", type=int, default=100)
    options.add_argument("--kind", action="append", choices=list(kinds.KINDS))
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args()
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for name in given.kind or kinds.KINDS:
            place = Path(folder) / name
            place.mkdir()
            os.environ["WISCA_HOME"] = (
                f"{place}/home"  # of its own: a killed writer leaves a hidden file until it is cleaned
            )
            choose, outcomes = random.Random(f"{given.seed} {name}"), Counter()
            once = kinds.KINDS[name](place)
            for number in range(given.times):
                try:
                    outcomes[once(choose, number)] += 1
                except kinds.Fault as fault:
                    outcomes["FAULT"] += 1
                    found.append(f"{name} {number}: {fault}")
            print(f"{name:<16} {', '.join(f'{n} {what}' for what, n in sorted(outcomes.items()))}", flush=True)
    print("\n".join([*found, f"{len(found)} faults"]))
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
