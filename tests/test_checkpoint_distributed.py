"""Distributed checkpoints (torch.distributed.checkpoint) and training checkpoints, read without running a line of
them.
"""

import io
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file

from wisca_core.architecture.find import find_sites
from wisca_core.checkpoint import Reader, open_checkpoint
from wisca_core.cli import main
from wisca_core.equivalence.miniature import load
from wisca_core.equivalence.outputs import difference, outputs
from wisca_core.errors import UnreadableInput, UnsafeInput, WiscaError

SHARDED = """
import os, sys
import torch, torch.distributed as dist, torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, Replicate, distribute_tensor
rank, folder, store, part = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
mesh = init_device_mesh("cpu", (2,))
whole = torch.load(part, weights_only=True)
layout = {2: [Shard(0), Shard(1)], 1: [Shard(0)]}
state = {name: distribute_tensor(t, mesh, [layout[t.dim()][i % len(layout[t.dim()])]]) for i, (name, t) in enumerate(sorted(whole.items()))}
dcp.save({"model": state, "optimizer": {"state": {"exp_avg": torch.ones(3)}, "lr": 0.1}}, checkpoint_id=folder)
dist.destroy_process_group()
"""  # noqa: E501


@pytest.fixture(scope="module")
def sharded(small_model, tmp_path_factory) -> tuple[Path, Path]:
    """(the plain model's folder, a folder that two ranks saved: uneven rows, columns, an optimiser)."""
    base = small_model("llama", torch.float32, num_attention_heads=6, num_key_value_heads=3, hidden_size=48)
    place = tmp_path_factory.mktemp("dcp")
    torch.save(load_file(base / "model.safetensors"), place / "whole.pt")
    folder = place / "checkpoint"
    ranks = [
        subprocess.Popen(
            [
                sys.executable,
                "-W",
                "ignore",
                "-c",
                SHARDED,
                str(rank),
                str(folder),
                str(place / "store"),
                str(place / "whole.pt"),
            ],
            env=os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
        )
        for rank in (0, 1)
    ]
    assert [rank.wait(120) for rank in ranks] == [0, 0]
    shutil.copy(base / "config.json", folder / "config.json")
    return base, folder


def saved(folder: Path, state: dict) -> Path:
    dcp.save(state, checkpoint_id=folder, no_dist=True)
    return folder


def test_sharded_tensors_are_put_together_as_they_are_read(sharded):
    base, folder = sharded
    whole, checkpoint = load_file(base / "model.safetensors"), open_checkpoint(folder)
    assert {t.name: (t.dtype, t.shape) for t in checkpoint.tensors} == {
        n: ("F32", tuple(t.shape)) for n, t in whole.items()
    }
    assert checkpoint.kind == "dcp" and len(checkpoint.weight_files) == 3  # .metadata and two ranks
    chunks = {name: len(recipe.parts) for name, recipe in checkpoint.recipes}
    assert set(chunks.values()) == {2} and any("optimizer" in remark for remark in checkpoint.remarks)
    assert any(
        sum(o != 0 for o in recipe.settings[len(recipe.settings) // 2 :]) and recipe.settings[-1]
        for _, recipe in checkpoint.recipes
    )  # columns
    with Reader(checkpoint) as reader:
        for name, tensor in whole.items():
            assert torch.equal(reader.tensor(name), tensor), name
            assert torch.equal(torch.cat([block.clone() for _, block in reader.blocks(name, 100)]), tensor)
            assert b"".join(map(bytes, reader.raw(name))) == tensor.numpy().tobytes()
            assert torch.equal(reader.rows(name, 1, 13), tensor[1:13])
    assert find_sites(checkpoint).sites == find_sites(open_checkpoint(base)).sites


def test_it_is_rescaled_into_safetensors(sharded, tmp_path, capsys):
    base, folder = sharded
    out = tmp_path / "out"
    assert main(["rescale", str(folder), str(out), "--granularity", "group", "--exact"]) == 0
    assert "bit-identical" in capsys.readouterr().out
    assert sorted(p.name for p in out.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "wisca_factors.svg",
        "wisca_report.json",
    ]
    plain = tmp_path / "plain"
    assert main(["rescale", str(base), str(plain), "--granularity", "group", "--exact", "--no-check"]) == 0
    ours, theirs = (load_file(p / "model.safetensors") for p in (out, plain))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert (
        difference(
            outputs(load(base, dtype=torch.float32), seed=1), outputs(load(out, dtype=torch.float32), seed=1)
        ).max_abs
        == 0
    )


def test_dtypes_scalars_and_a_folder_of_accelerate(tmp_path):
    state = {
        "w": torch.randn(3, 5, dtype=torch.bfloat16),
        "h": torch.randn(4).half(),
        "n": torch.tensor(7),
        "f": torch.randn(2, 2).to(torch.float8_e4m3fn),
    }
    (tmp_path / "run").mkdir()
    saved(tmp_path / "run" / "pytorch_model_fsdp_0", {"model": state, "step": 3, "note": "text"})
    saved(tmp_path / "run" / "optimizer_0", {"optim": {"m": torch.ones(2)}})
    (tmp_path / "run" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    checkpoint = open_checkpoint(tmp_path / "run")
    assert checkpoint.config == {"model_type": "llama"}
    with Reader(checkpoint) as reader:
        got = {t.name.removeprefix("model."): reader.tensor(t.name) for t in checkpoint.tensors}
    assert got.keys() == state.keys() and all(
        torch.equal(got[n].view(torch.uint8), state[n].reshape(got[n].shape).view(torch.uint8)) for n in ("w", "h", "f")
    )
    assert int(got["n"]) == 7
    with pytest.raises(UnreadableInput, match="describes no tensor of a model"):
        open_checkpoint(tmp_path / "run" / "optimizer_0")


# Hostile


class Payload:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (os.system, (f"touch {self.path}",))


class Late:
    """Code in the state of an allowed object."""

    def __reduce__(self):
        return (eval, ("1 + 1",))


def metadata_of(folder: Path):
    with (folder / ".metadata").open("rb") as file:
        return pickle.load(file)  # written by this test


def rewritten(folder: Path, out: Path, change) -> Path:
    shutil.copytree(folder, out)
    found = metadata_of(out)
    change(found)
    (out / ".metadata").write_bytes(pickle.dumps(found))
    return out


@pytest.fixture
def plain(tmp_path) -> Path:
    return saved(tmp_path / "plain", {"a": torch.arange(12.0).reshape(3, 4), "b": torch.ones(5)})


def test_a_payload_in_the_metadata_does_not_run(plain, tmp_path):
    ran = tmp_path / "ran"
    for number, evil in enumerate((Payload(ran), [Payload(ran)], {"x": Late()})):
        out = rewritten(plain, tmp_path / f"evil-{number}", lambda m: setattr(m, "planner_data", evil))
        with pytest.raises(UnsafeInput, match="contains code: refused .it asks for (posix|nt|builtins)"):
            open_checkpoint(out)
    (plain / ".metadata").write_bytes(pickle.dumps(Payload(ran)))
    with pytest.raises(UnsafeInput, match="contains code: refused"):
        open_checkpoint(plain)
    assert not ran.exists()


class CopiedSize:
    """A shape made of one list of 100,000 numbers, which the pickle names again for every copy."""

    def __init__(self, axes: list):
        self.axes = axes

    def __reduce__(self):
        return torch.Size, (self.axes,)


def test_metadata_of_a_kilobyte_that_never_ends_is_refused(plain, tmp_path):
    endless = (1, 2)
    for _ in range(180):  # its hash and its text would each take 2^180 steps
        endless = (endless, endless)
    axes, circle = [1] * 100_000, []
    circle.append(circle)
    for number, (evil, words) in enumerate(
        ((endless, "values"), ([CopiedSize(axes)] * 3, "100000 axes"), (circle, "holds itself"))
    ):
        out = rewritten(plain, tmp_path / f"endless-{number}", lambda m: setattr(m, "planner_data", evil))
        with pytest.raises(UnreadableInput, match=words):
            open_checkpoint(out)


def test_a_payload_in_a_chunk_does_not_run(plain, tmp_path):
    ran = tmp_path / "ran"
    buffer = io.BytesIO()
    torch.save(Payload(ran), buffer)

    def change(found):
        info = next(iter(found.storage_data.values()))
        info.offset, info.length = (plain / "__0_0.distcp").stat().st_size, len(buffer.getvalue())

    out = rewritten(plain, tmp_path / "evil", change)
    with (out / "__0_0.distcp").open("ab") as file:
        file.write(buffer.getvalue())
    with pytest.raises(UnsafeInput, match="contains code: refused"):
        open_checkpoint(out)
    assert not ran.exists()


def _info(found, fqn="a"):
    return next(info for index, info in found.storage_data.items() if index.fqn == fqn)


def _chunk(found, fqn="a"):
    return found.state_dict_metadata[fqn].chunks[0]


def _set(thing, **values):
    for name, value in values.items():
        object.__setattr__(thing, name, value)


MISTAKES = {
    "a file outside": (
        lambda m: _set(_info(m), relative_path="../../../etc/passwd"),
        UnsafeInput,
        "outside the model folder",
    ),
    "an absolute file": (
        lambda m: _set(_info(m), relative_path="/etc/passwd"),
        UnsafeInput,
        "outside the model folder",
    ),
    "a missing file": (lambda m: _set(_info(m), relative_path="__9_9.distcp"), UnreadableInput, "no such file"),
    "an offset behind the end": (
        lambda m: _set(_info(m), offset=2**50),
        UnreadableInput,
        "which the file does not have",
    ),
    "a negative offset": (lambda m: _set(_info(m), offset=-5), UnreadableInput, "which the file does not have"),
    "a length beyond the end": (
        lambda m: _set(_info(m), length=2**60),
        UnreadableInput,
        "which the file does not have",
    ),
    "a range in the middle": (lambda m: _set(_info(m), offset=40), UnreadableInput, "damaged"),
    "the chunk of another": (
        lambda m: _set(_info(m), **vars(_info(m, "b"))),
        UnreadableInput,
        r"is F32 \(5,\), expected",
    ),
    "compressed": (lambda m: _set(_info(m), transform_descriptors=["zstd"]), UnsafeInput, "compressed"),
    "a chunk outside": (lambda m: _set(_chunk(m), sizes=torch.Size([4, 4])), UnreadableInput, "expected F32"),
    "a hole": (lambda m: _set(m.state_dict_metadata["a"], size=torch.Size([6, 4])), UnreadableInput, "12 of 24 values"),
    "a shape that overflows": (
        lambda m: _set(m.state_dict_metadata["a"], size=torch.Size([2**50, 4])),
        UnreadableInput,
        "damaged",
    ),
    "a chunk twice": (lambda m: m.state_dict_metadata["a"].chunks.append(_chunk(m)), UnreadableInput, "overlap"),
    "no chunks": (lambda m: m.state_dict_metadata["a"].chunks.clear(), UnreadableInput, "0 chunks"),
    "no places": (lambda m: m.storage_data.clear(), UnreadableInput, "has no place"),
    "a hostile name": (
        lambda m: m.state_dict_metadata.update({"a\u202e": m.state_dict_metadata.pop("a")}),
        UnreadableInput,
        "control or invisible|right-to-left|no place",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_metadata_that_lies_is_named(plain, tmp_path, name):
    change, error, message = MISTAKES[name]
    with pytest.raises(error, match=message):
        open_checkpoint(rewritten(plain, tmp_path / "wrong", change))


def test_cut_and_spoilt_metadata_end_in_a_named_error(plain):
    raw = (plain / ".metadata").read_bytes()
    generator = torch.Generator().manual_seed(1)
    spoilt = [raw[:n] for n in range(0, len(raw), 37)]
    for _ in range(150):
        copy = bytearray(raw)
        copy[int(torch.randint(len(raw), (1,), generator=generator))] ^= 1 << int(
            torch.randint(8, (1,), generator=generator)
        )
        spoilt.append(bytes(copy))
    n_named = 0
    for content in spoilt:
        (plain / ".metadata").write_bytes(content)
        try:
            open_checkpoint(plain)
        except WiscaError:
            n_named += 1
    assert n_named > 100


# Training checkpoints as single files


def test_the_model_inside_a_training_checkpoint_is_read(tmp_path):
    weights = {"model.layers.0.w": torch.randn(3, 3), "lm_head.weight": torch.randn(2, 3)}
    optimiser = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))], lr=0.1)
    lightning = {
        "epoch": 1,
        "global_step": 5,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": {f"model.{n}": t for n, t in weights.items()},
        "optimizer_states": [optimiser.state_dict()],
        "lr_schedulers": [],
        "loops": {"fit_loop": {"state_dict": {}}},
    }
    plain = {
        "model": {f"_orig_mod.{n}": t for n, t in weights.items()},
        "optimizer": optimiser.state_dict(),
        "iter_num": 7,
        "best": 1.5,
    }
    names = {
        n: f"model._orig_mod.{n.replace('.0.', '.0._orig_mod.')}" for n in weights
    }  # blocks compiled, then all of it
    compiled = lightning | {"state_dict": {names[n]: t for n, t in weights.items()}}
    for name, content in (("last.ckpt", lightning), ("ckpt.pt", plain), ("compiled.ckpt", compiled)):
        torch.save(content, tmp_path / name)
        checkpoint = open_checkpoint(tmp_path / name)
        with Reader(checkpoint) as reader:
            assert {t.name: reader.tensor(t.name).tolist() for t in checkpoint.tensors} == {
                n: t.tolist() for n, t in weights.items()
            }
        assert any("Of a training checkpoint" in remark and "not looked at" in remark for remark in checkpoint.remarks)


def test_names_that_are_the_models_own_are_kept(tmp_path):
    torch.save(
        {"state_dict": {"model.layers.0.w": torch.ones(2), "model.norm.weight": torch.ones(2)}}, tmp_path / "a.ckpt"
    )
    assert {t.name for t in open_checkpoint(tmp_path / "a.ckpt").tensors} == {"model.layers.0.w", "model.norm.weight"}


def test_a_training_checkpoint_with_objects_is_refused(tmp_path):
    import argparse

    torch.save({"state_dict": {"w": torch.ones(2)}, "hyper_parameters": argparse.Namespace(lr=1)}, tmp_path / "a.ckpt")
    with pytest.raises(UnsafeInput, match="argparse.Namespace"):
        open_checkpoint(tmp_path / "a.ckpt")
