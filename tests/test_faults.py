"""A few faults of each kind; ``python tests/faults --times 100`` does as many as are asked for."""

import subprocess
import sys
from pathlib import Path


def test_kills_full_disks_two_writers_and_changed_sources_leave_all_or_nothing():
    command = [sys.executable, str(Path(__file__).parent / "faults"), "--times", "2"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert found.returncode == 0 and found.stdout.endswith("0 faults\n"), found.stdout[-4000:] + found.stderr[-2000:]
