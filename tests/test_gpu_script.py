"""The script for a machine with a GPU, at toy size on the CPU: that it runs, writes as it goes, and lets no part stop
another.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent / "benchmarks" / "gpu.py"


def test_it_runs_at_toy_size_and_a_part_that_fails_stops_no_other(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "compare-gpu").write_text("in the way: the comparison fails, and says why")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path / "out"), "--toy", "--parts", "inspect,live,comparison"],
        env=os.environ | {"OMP_NUM_THREADS": "1", "WISCA_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        timeout=600,
    )
    found = json.loads((tmp_path / "out" / "gpu.json").read_text())
    parts = found["parts"]
    assert found["toy"] and set(parts) == {"inspect", "live", "comparison"}, done.stderr
    assert done.returncode == 1 and "compare-gpu" in parts["comparison"]["error"]
    measured = parts["live"]["found"]
    assert len(measured) == 21
    assert all(value["weights"] == value["state"] == 0 for value in measured.values() if isinstance(value, dict))
    assert measured["float16, exact: logits"] < 1e-2 and measured["bfloat16, exact: logits"] == 0
    assert parts["inspect"]["found"]["ratio"] > 0 and "| live |" in done.stdout
