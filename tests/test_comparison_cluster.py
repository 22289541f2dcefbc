"""One cell on two processes, and cells on the workers of a Ray cluster: the numbers of one process, whoever is
killed.
"""

import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from safetensors.torch import load_file
from small_comparison import numbers, small_spec

from wisca_core.comparison import cluster, execution_plan, executor, folder
from wisca_core.comparison.cell import train
from wisca_core.comparison.data import load_corpus
from wisca_core.comparison.presets import ARMS
from wisca_core.comparison.spec import OptimiserSpec, Spec
from wisca_core.errors import BadOption, DeviceMissing, OutputRefused

# torchrun's store and Ray listen on all interfaces whatever address they are given, so they get a network of their own:
# loopback and nothing else
ALONE = """
import fcntl, os, socket, struct, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    fcntl.ioctl(s, 0x8914, struct.pack("16sh", b"lo", 0x41))  # SIOCSIFFLAGS: up and running
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


def in_a_network_of_its_own(*arguments: str, **more) -> subprocess.Popen:
    allowed = subprocess.run(["unshare", "-rn", "true"], capture_output=True, text=True)
    assert allowed.returncode == 0, (
        f"this machine allows no network namespace (unshare -rn: {allowed.stderr.strip()}), and without one it would "
        "listen on all interfaces"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1", **more}
    return subprocess.Popen(
        ["unshare", "-rn", sys.executable, "-c", ALONE, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture
def small(text):
    """small(**changes) -> a spec whose cells last long enough to be paused and killed."""
    return partial(
        small_spec,
        text,
        steps=60,
        seeds=(1,),
        arms=(ARMS["baseline"], replace(ARMS["wisca"], every=3)),
        optimiser=OptimiserSpec(warmup_steps=2, learning_rates=(1e-2,)),
        evaluate_every=20,
        log_every=5,
    )


def alone(path: Path, spec: Spec) -> tuple[folder.Cell, ...]:
    folder.create(path, spec)
    cells = folder.read(path).cells
    for cell in cells:
        assert train(spec, cell, load_corpus(spec), lambda: False)
    return cells


def test_a_cell_on_two_processes_paused_and_resumed_under_torchrun_has_the_losses_of_one(tmp_path, small):
    spec = small(save_weights=True, arms=(replace(ARMS["wisca"], every=3), ARMS["baseline"]))
    whole = alone(tmp_path / "alone", spec)
    path = folder.create(tmp_path / "c", replace(spec, processes_per_cell=2))

    def pause(message: str, done: int, total: int) -> None:
        if done >= 10:
            folder.ask(path, "pause")

    paused = executor.run(path, 1, pause)
    assert paused.state == "paused" and 10 <= paused.steps_done < 60 and (paused.cells[0].folder / "resume.pt").exists()
    assert not list(path.glob(".ranks-*"))
    (path / "pause").unlink()
    run = [
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "--master_addr",
        "127.0.0.1",
        "--master_port",
        "29500",
    ]
    done = in_a_network_of_its_own(*run, "-m", "wisca_core.comparison.worker", str(path))
    said = done.communicate(timeout=300)[0]
    assert done.returncode == 0, said[-4000:]
    for one, other in zip(folder.read(path).cells, whole, strict=True):
        assert one.state == "done"
        for a, b in zip(numbers(one), numbers(other), strict=True):
            assert a.keys() == b.keys() and a["step"] == b["step"]
            assert all(a[k] == b[k] or abs(a[k] - b[k]) < 1e-5 * max(1, abs(b[k])) for k in a)
        a, b = (load_file(cell.folder / "model" / "model.safetensors") for cell in (one, other))
        assert a.keys() == b.keys() and all((a[n] - b[n]).abs().max() < 1e-4 * b[n].abs().max() for n in b)


ON_RAY = """
import os, signal, sys
from pathlib import Path
import ray
from wisca_core.comparison import cluster, executor, folder, execution_plan

path, kills = Path(sys.argv[1]), [True]
ray.init(num_cpus=2, include_dashboard=False, _node_ip_address="127.0.0.1", object_store_memory=80_000_000, log_to_driver=False, configure_logging=False)

def kill(message, done, total):
    first = folder.read(path).cells[0]
    if kills and first.step >= 10:
        inode = os.stat(first.folder / "lock").st_ino
        holder = [line.split()[4] for line in Path("/proc/locks").read_text().splitlines() if line.split()[5].endswith(f":{inode}")]
        if holder:
            os.kill(int(holder[0]), signal.SIGKILL)
            kills.clear()
            print("killed", flush=True)

comparison = executor.run(path, None, kill, executor="ray")
print(comparison.state, comparison.workers, comparison.message, [(c.state, c.attempts, c.reason) for c in comparison.cells], flush=True)
"""  # noqa: E501


def test_a_ray_worker_killed_in_mid_run_loses_nothing(tmp_path, small):
    spec = small(steps=300, evaluate_every=60)
    whole = alone(tmp_path / "alone", spec)
    path = folder.create(tmp_path / "c", spec)
    with tempfile.TemporaryDirectory(prefix="ray") as short:  # the paths of its sockets have at most 107 characters
        process = in_a_network_of_its_own("-c", ON_RAY, str(path), RAY_TMPDIR=short, RAY_USAGE_STATS_ENABLED="0")
        said = process.communicate(timeout=300)[0]
    assert process.returncode == 0 and "killed" in said, said[-4000:]
    comparison = folder.read(path)
    assert comparison.state == "done" and comparison.workers == 2
    assert [(c.state, c.attempts) for c in comparison.cells] == [("done", 1), ("done", 0)]
    assert [numbers(cell) for cell in comparison.cells] == [numbers(cell) for cell in whole]
    assert not list(path.glob(".cluster-*"))


def test_without_a_cluster_or_a_shared_folder_ray_is_refused_by_name(tmp_path, small, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(DeviceMissing, match="no Ray cluster was reached at 127.0.0.1:1.*ray start --head"):
        executor.run(folder.create(tmp_path / "c", small()), executor="ray")
    assert not (tmp_path / "c" / "executor.json").exists()
    with pytest.raises(OutputRefused, match="is not the folder it is here. Put the comparison on a file system"):
        cluster.train_cell(str(tmp_path / "c"), "baseline-lr0.01-seed1", ".cluster-elsewhere", "cpu")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(BadOption, match=r"pip install 'wisca\[ray\]'"):
        executor.run(tmp_path / "c", executor="ray")
    with pytest.raises(BadOption, match="processes_per_cell is 2. Use --executor processes"):
        execution_plan.choose(small(processes_per_cell=2), "ray")
