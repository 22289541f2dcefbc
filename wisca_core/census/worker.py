"""One process of the census: ``python -P -m wisca_core.census.worker``, started by the pool only.

Reads one JSON request a line, {"model_type", "granularities"}, and answers each with the entry as one JSON line; the
first line says that it is ready. Ends when its input does, so that it never outlives who started it by more than a type.
"""

import json
import os
import signal
import sys

from wisca_core.processes import collect_seldom


def main() -> int:
    """Until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the pool ends this process itself
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer

    collect_seldom()
    import torch

    from wisca_core.census.judge import judge_type

    torch.set_num_threads(1)
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        entry = judge_type(asked["model_type"], asked["granularities"])
        print(json.dumps(entry.to_json()), file=answers, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
