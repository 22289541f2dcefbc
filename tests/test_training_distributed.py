"""Several ranks as real torchrun processes on gloo, against one process: the factors themselves, the weights, and five
more steps.

Preserving the function is not enough here: a wrong factor preserves it as well, and so does an edit of a parameter
nobody uses.
"""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import training_ranks

WORKER = Path(__file__).with_name("training_ranks.py")
# torchrun's store listens on all interfaces whatever address it is given, so it gets a network of its own: loopback and
# nothing else
ALONE = """
import fcntl, os, socket, struct, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    fcntl.ioctl(s, 0x8914, struct.pack("16sh", b"lo", 0x41))  # SIOCSIFFLAGS: up and running
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


def launch(model: Path, out: Path) -> dict[str, list[dict]]:
    """Kind -> what both ranks wrote. torchrun runs in a network namespace where the machine allows one, else on
    127.0.0.1.
    """
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    run = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_addr", "127.0.0.1"]
    run += ["--master_port", str(port), str(WORKER), str(model), str(out)]
    own_network = (
        os.path.exists("/usr/bin/unshare")
        and subprocess.run(["unshare", "-rn", "true"], capture_output=True).returncode == 0
    )
    command = ["unshare", "-rn", sys.executable, "-c", ALONE, *run] if own_network else [sys.executable, *run]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    done = subprocess.run(command, capture_output=True, text=True, timeout=420, env=environment, cwd=out.parent)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return {kind: [torch.load(f"{out}.{kind}.{rank}.pt") for rank in range(2)] for kind in training_ranks.KINDS}


@pytest.fixture(scope="module")
def model(small_model) -> Path:
    return small_model("llama", num_key_value_heads=8, attention_bias=True)


@pytest.fixture(scope="module")
def one(model, tmp_path_factory) -> dict:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_ranks, "FOLDER", str(model))
        patch.setattr(training_ranks, "OUT", str(tmp_path_factory.mktemp("one") / "out"))
        return training_ranks.one()


@pytest.fixture(scope="module")
def launched(model, one, tmp_path_factory) -> dict[str, list[dict]]:
    return launch(model, tmp_path_factory.mktemp("ranks") / "out")


@pytest.fixture(scope="module")
def ranks(launched) -> list[dict]:
    return launched["ranks"]


@pytest.fixture(scope="module")
def zero(launched) -> list[dict]:
    return launched["zero"]


def apart(found: dict, expected: dict) -> float:
    """Largest difference of any parameter, relative to that parameter's largest value."""
    assert found.keys() == expected.keys()
    return max(((found[name] - expected[name]).abs().max() / expected[name].abs().max()).item() for name in expected)


def worst_factor(found: dict, expected: dict) -> float:
    assert found.keys() == expected.keys() and expected
    return max(abs(a / b - 1) for name in expected for a, b in zip(found[name], expected[name], strict=True))


CASES = [
    "DDP, adamw tensor",
    "DDP, momentum tensor",
    "FSDP2, adamw tensor",
    "FSDP2, adamw group",
    "FSDP2, adamw l2",
    "FSDP2, adamw max",
    "FSDP2, momentum tensor",
    "FSDP2 root only, adamw group",
    "FSDP2 by Accelerate, adamw tensor",
    "TP, adamw tensor",
    "TP, adamw group",
    "TP, adamw l2",
    "FSDP2, rates",
]


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_do_what_one_process_does(one, ranks, case):
    expected = one[case.split(", ")[1]]
    assert max(abs(f - 1) for fs in expected["factors"].values() for f in fs) > 0.01
    assert ranks[0][case]["factors"] == ranks[1][case]["factors"]  # to the last bit
    for rank in ranks:
        assert worst_factor(rank[case]["factors"], expected["factors"]) < 1e-12
        assert apart(rank[case]["rescaled"], expected["rescaled"]) < 1e-12
        assert apart(rank[case]["trained"], expected["trained"]) < 1e-10
    assert apart(expected["trained"], expected["rescaled"]) > 1e-3


def test_all_ranks_look_at_the_outputs_and_decide_alike(ranks, zero):
    for found, cases in ((ranks, CASES[:-1]), (zero, ["ZeRO-1", "ZeRO-2", "ZeRO-3"])):
        for case in cases:
            checks = [rank[case]["check"] for rank in found]
            assert all(float(one["moved"]) < 1e-5 and one["inputs"] == "made-up inputs" for one in checks), case
            assert checks[0]["moved"] == checks[1]["moved"] and checks[0]["control"] == checks[1]["control"]
    for found in (rank["declared"] for rank in ranks):  # one of them clamps its keys: both leave QK alone
        assert found["refused"] == ["decoder.0.self.qk", "decoder.1.self.qk"] and "decoder.self.qk" in found["said"][0]
        assert {name.split(".")[-2] for name in found["changed"]} == {"wv", "wo"}


@pytest.mark.parametrize("stage", [2, 3])
def test_under_zero_masters_and_state_are_taken_back_to_the_bit(zero, stage):
    for rank in zero:
        found = rank[f"ZeRO-{stage}, declared"]
        assert found["refused"] == ["decoder.0.self.qk", "decoder.1.self.qk"] and "decoder.self.qk" in found["said"][0]
        assert {name.split(".")[-2] for name in found["changed"]} == {"c_attn", "c_proj"}
        kinds = {name.partition("|")[2] for name in found["changed"]}
        assert kinds == {"", "exp_avg", "exp_avg_sq"}  # of the masters and of the state alike
        for name, places in found["changed"].items():
            if "c_attn" in name:  # of [q; k; v] the values alone
                width = 15 if "weight" in name else 1
                assert min(places) >= 2 * 15 * width
        assert found["function"] < 2e-6  # nor are the module's copies stale
    for one in zero:  # forwards of a check leave nothing behind
        for kept in ("rescaled", "trained"):
            mine, unseen = one["ZeRO-3"][kept], one["ZeRO-3, unseen"][kept]
            assert all(torch.equal(mine[name], unseen[name]) for name in mine)
    assert zero[0]["ZeRO-3, unseen"]["check"] is None


def test_at_rates_two_ranks_clip_by_the_norm_of_one_process_and_see_no_split(one, ranks):
    for rank in ranks:
        found = rank["FSDP2, rates"]
        assert found["n_groups"] == 1 and all(norm > 0.1 for norm in one["rates"]["norms"])
        assert max(abs(a / b - 1) for a, b in zip(found["norms"], one["rates"]["norms"], strict=True)) < 1e-10


def test_replicas_are_equal_to_the_last_bit_after_a_schedule(ranks):
    assert ranks[0]["replicas stay equal"] and ranks[1]["replicas stay equal"]


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_zero_rescales_masters_and_state_to_the_precision_of_float32(one, zero, stage):
    expected = one["float32"]
    for rank in zero:
        found = rank[f"ZeRO-{stage}"]
        assert found["function"] < 2e-6 and expected["function"] < 2e-6  # the module's copies were not left stale
        assert worst_factor(found["factors"], expected["factors"]) < 1e-6
        assert apart(found["rescaled"], expected["rescaled"]) < 2e-6
        assert apart(found["trained"], expected["trained"]) < 1e-5
        assert "under DeepSpeed ZeRO parameters lie flattened in groups" in rank[f"ZeRO-{stage}, rates"]


@pytest.mark.parametrize("which", ["DDP", "ZeRO-3"])
def test_the_trainers_callback_on_two_ranks_is_the_one_on_one(one, ranks, zero, which):
    found = {"DDP": ranks, "ZeRO-3": zero}[which]
    expected = one["Trainer"]
    assert [row["step"] for row in expected["rows"]] == [0, 2, 4]
    for rank in found:
        rank = rank[f"Trainer, {which}"]
        assert rank["wrapped"] == {"DDP": "DistributedDataParallel", "ZeRO-3": "DeepSpeedEngine"}[which]
        assert [row["step"] for row in rank["rows"]] == [0, 2, 4]
        for a, b in zip(rank["rows"], expected["rows"], strict=True):
            assert all(abs(a["ratios"][name] / b["ratios"][name] - 1) < 1e-5 for name in b["ratios"])
        assert apart(rank["trained"], expected["trained"]) < 1e-4
