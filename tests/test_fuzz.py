"""A few hundred damaged files through every reader; ``python tests/fuzz`` does the same with as many as are asked
for.
"""

import subprocess
import sys
from pathlib import Path


def test_damaged_files_end_in_named_errors_within_bounds(tmp_path):
    command = [sys.executable, str(Path(__file__).parent / "fuzz"), "--inputs", "540", "--workers", "1"]
    found = subprocess.run([*command, "--keep", str(tmp_path)], capture_output=True, text=True, timeout=600)
    assert found.returncode == 0, found.stdout[-4000:] + found.stderr[-2000:]
    assert " 0 faults" in found.stdout.splitlines()[-1]
