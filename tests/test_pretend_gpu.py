"""What the code for GPUs does, on a GPU that is pretended: see pretend_gpu/device.py for what that shows and what
not.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).with_name("pretend_gpu")
# Sums in another order, and of norms in float64 where the CPU sums a row in float32.
ROUNDING = 1e-6


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict:
    """Everything the program measured, by the name of its part."""
    if sys.platform != "linux" or not shutil.which("g++") or torch.version.cuda or torch.version.hip:
        pytest.skip("pretending a GPU needs Linux, g++ and a torch built for the CPU")
    folder = tmp_path_factory.mktemp("gpu")
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "WISCA_HOME": str(folder / "home"),
        "HF_HUB_OFFLINE": "1",
        "LD_PRELOAD": str(library(folder)),
    }
    done = subprocess.run(
        [sys.executable, str(FOLDER / "program.py"), str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=420,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-8000:]
    return json.loads(done.stdout.splitlines()[-1])


def library(folder: Path) -> Path:
    """device.cpp, compiled for this torch."""
    top, out = Path(torch.__file__).parent, folder / "device.so"
    built = [
        "-shared",
        "-fPIC",
        "-O0",
        "-std=c++20",
        f"-I{top / 'include'}",
        "-o",
        str(out),
        str(FOLDER / "device.cpp"),
    ]
    linked = [f"-L{top / 'lib'}", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{top / 'lib'}"]
    done = subprocess.run(["g++", *built, *linked], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return out


def test_the_pretended_gpu_refuses_what_a_real_one_refuses(found):
    mixing = found["mixing"]
    assert mixing["gradient"] == "cuda:0"
    assert all(
        mixing[name].startswith("Expected all tensors to be on the same device") for name in ("mixed", "looked up")
    )
    assert mixing["numpy"].startswith("can't convert cuda:0")
    # captured with a rate of 2, replayed after the tensor there became 3 and the rate here 5
    assert mixing["replayed"] == [6.0, 6.0]


@pytest.mark.parametrize("name", ["adamw", "two rates", "sgd", "muon", "float64"])
def test_replicas_captured_once_and_single_cells_give_the_numbers_of_the_cpu(found, name):
    measured = found["comparisons"][name]
    assert measured["failed"] == [] and measured["captured"] == 1
    # Muon's iteration is in bfloat16, and is batched on a GPU
    most = {"float64": 1e-12, "muon": 5e-3}.get(name, ROUNDING)
    assert measured["replicas"] < most and measured["alone"] < most


def test_embeddings_that_are_looked_up_equal_those_multiplied(found):
    assert found["many_tokens"]["replicas"] < ROUNDING


def test_a_replica_without_finite_losses_leaves_and_the_rest_is_captured_anew(found):
    measured = found["one_leaves"]
    assert measured["ended"] == {
        "placebo-lr0.01-seed1": "the training loss became nan at step 4 of 8.",
        "baseline-lr0.01-seed1": "",
    }
    assert measured["captured"] == 2 and measured["apart"] < ROUNDING


def test_a_step_that_cannot_be_captured_runs_without_a_graph_to_the_same_numbers(found):
    assert found["a_wrong_step"]["captured"] == 0 and found["a_wrong_step"]["apart"] < ROUNDING


def test_the_gpu_is_waited_for_at_rows_and_not_at_steps(found):
    assert found["waits"]["few rows"] < 20 < 40 < found["waits"]["many rows"]


def test_a_captured_step_of_all_replicas_is_a_handful_of_operations(found):
    """Rows, rates and copies of what comes back beside the graph; one cell alone sends hundreds."""
    assert found["sent"]["replicas"] <= 12 and found["sent"]["alone"] > 200


def test_a_worker_trains_on_the_gpu_it_is_told(found):
    measured = found["a_worker"]
    assert (measured["code"], measured["states"], measured["reasons"]) == (0, ["done", "done"], ["", ""]) and measured[
        "apart"
    ] < ROUNDING


def test_a_paused_run_holds_nothing_of_the_gpu_and_goes_on_to_the_same_numbers(found):
    assert found["pausing"] == {"paused": True, "steps": [5, 5], "places": ["cpu"], "apart": 0.0}


@pytest.mark.parametrize(
    "name",
    [*(f"{o} {g}" for o in ("adamw", "sgd", "muon") for g in ("tensor", "group", "channel")), "adafactor tensor"],
)
def test_a_model_in_training_is_rescaled_with_its_optimiser_state_as_on_the_cpu(found, name):
    measured = found["live"][name]
    assert measured["changed"] == 8 and measured["weights"] < ROUNDING and measured["state"] < ROUNDING


@pytest.mark.parametrize("kind", ["wisca", "gram"])
def test_adapters_are_balanced_as_on_the_cpu(found, kind):
    assert found["adapters"][kind]["changed"] == 8 and found["adapters"][kind]["apart"] < 1e-5
