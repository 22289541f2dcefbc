"""Exact mode on whole tiny models: bit equality where it is promised, counted losses where it is not."""

import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from wisca_core.checkpoint import open_checkpoint
from wisca_core.equivalence.checking import compare_folder, full_check
from wisca_core.equivalence.full_check import FullCheck, stored_dtype
from wisca_core.equivalence.proving import prove
from wisca_core.equivalence.verify import BIT_IDENTICAL, ROUNDING, verify
from wisca_core.exporting.export import export
from wisca_core.planning.decide import decide
from wisca_core.planning.options import Options
from wisca_core.planning.plan import make_plan


def planned(opened, **options):
    decision = decide(opened.patterns, Options(**options))
    return decision, make_plan(decision)


def exported(opened, plan, out, check=True):
    run = (
        (lambda folder, progress: compare_folder(opened.checkpoint, opened.sites, plan, folder, progress))
        if check
        else None
    )
    return export(opened.checkpoint, opened.sites, plan, out, prove(opened.checkpoint, opened.sites), run)


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_exact_mode_is_bit_identical_in_fp32_and_bf16(dtype, granularity, small_model, look, tmp_path):
    opened = look(small_model("llama", dtype, num_key_value_heads=8, attention_bias=True))
    decision, plan = planned(opened, granularity=granularity, exact=True)
    assert (
        decision.bit_identical
        and set(np.frexp([f for _, fs in plan.factors.sites for f in fs])[0]) == {0.5}
        and plan.n_changed > 2
        and not any(decision.effects[name] for name in ("rounded", "lost", "gains", "overflow"))
    )
    check = full_check(opened.checkpoint, opened.sites, plan)
    assert check.bit_identical and check.max_abs == 0 and check.n_equal == check.n_values == check.n_tokens * 61
    assert check.control_max_rel is None and check.agrees(plan) and check.top1_agreement == 1
    assert check.perplexity_before == check.perplexity_after > 1
    assert "bit-identical" in check.words() and check.tokens.startswith("random token ids")
    assert check.n_same_generated == check.n_generated == 32 and "all 32 greedily generated" in check.words()
    # one factor a matrix moves the scale of its int8 copy with it; factors a channel do not
    assert check.int8_error > 0 and (check.int8_max_rel == 0 or granularity != "tensor")
    report = exported(opened, plan, tmp_path / "out", check=False)
    assert verify(opened.checkpoint, open_checkpoint(report.parent)).verdict == BIT_IDENTICAL


def test_without_exact_mode_bf16_is_rounding_beside_a_control_of_its_size(small_model, look):
    opened = look(small_model("llama", torch.bfloat16, num_key_value_heads=8, attention_bias=True))
    decision, plan = planned(opened, granularity="channel")
    assert not decision.bit_identical and decision.effects["rounded"] == decision.effects["values"] > 0
    check = full_check(opened.checkpoint, opened.sites, plan)
    assert not check.bit_identical and check.dtype == "BF16" and check.n_equal < check.n_values
    assert 0.1 < check.max_rel / check.control_max_rel < 10 and check.agrees(plan)
    assert "rounded at random" in check.words() and "top-1" in check.words()
    assert FullCheck.from_json(json.loads(json.dumps(check.to_json(), allow_nan=False))) == check
    for value in (math.inf, math.nan):
        odd = replace(check, max_rel=math.inf, control_max_rel=value, perplexity_after=value)
        assert repr(FullCheck.from_json(json.loads(json.dumps(odd.to_json(), allow_nan=False)))) == repr(odd)


def test_a_difference_far_beyond_the_control_stops_the_export(small_model, look, tmp_path):
    """The folder that is checked is damaged under its temporary name: the check sees it and nothing is left."""
    from wisca_core.errors import ProofFailed

    opened = look(small_model("llama", torch.float32, num_key_value_heads=8, attention_bias=True))
    _, plan = planned(opened)

    def damaging(folder, progress):
        tensors = load_file(folder / "model.safetensors")
        tensors["model.layers.0.self_attn.q_proj.weight"] *= 1.01
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return compare_folder(opened.checkpoint, opened.sites, plan, folder, progress)

    with pytest.raises(ProofFailed, match="contradicts the plan"):
        export(
            opened.checkpoint, opened.sites, plan, tmp_path / "out", prove(opened.checkpoint, opened.sites), damaging
        )
    assert list(tmp_path.iterdir()) == []


def test_a_plan_that_promised_equal_bits_is_contradicted_by_rounding(small_model, look):
    opened = look(small_model("llama", torch.bfloat16, num_key_value_heads=8, attention_bias=True))
    _, free = planned(opened)
    check = full_check(opened.checkpoint, opened.sites, free)
    assert not free.bit_identical and check.agrees(free)
    assert not check.agrees(replace(free, bit_identical=True))


def without_subnormals(folder, to):
    """The same model in F16 on a coarse grid of large values: halving a few times loses no bit."""
    shutil.copytree(folder, to)
    tensors = load_file(to / "model.safetensors")
    for name, t in tensors.items():
        if "self_attn" in name:
            coarse = torch.round(t.float() * 16) / 16  # multiples of 2^-4
            tensors[name] = torch.where(coarse == 0, torch.full_like(coarse, 0.0625), coarse).half()
    save_file(tensors, to / "model.safetensors", metadata={"format": "pt"})
    return to


def brute_force_lost(before, after, plan, opened) -> int:
    """Values of the plan's tensors whose new value is not exactly a power of two times the old one."""
    lost = 0
    old, new = load_file(before / "model.safetensors"), load_file(after / "model.safetensors")
    for name in plan.tensors:
        x, y = old[name].double(), new[name].double()
        ratio = torch.log2((y / x)[(x != 0) & (y != 0)].abs())
        lost += int((ratio != ratio.round()).sum()) + int(((x != 0) & (y == 0)).sum())
    return lost


def test_exact_mode_in_fp16_without_subnormals_loses_no_bit_and_verify_tells_by_the_outputs(
    small_model, look, tmp_path
):
    folder = without_subnormals(small_model("llama", torch.float16, num_key_value_heads=8), tmp_path / "half")
    opened = look(folder)
    decision, plan = planned(opened, granularity="group", exact=True)
    assert plan.n_changed and decision.effects["lost"] == 0
    assert not decision.bit_identical  # activations may turn subnormal: never promised for fp16
    out = exported(opened, plan, tmp_path / "out").parent
    assert brute_force_lost(folder, out, plan, opened) == 0
    found = verify(opened.checkpoint, open_checkpoint(out))
    assert found.verdict == (BIT_IDENTICAL if found.check.bit_identical else ROUNDING)
    assert found.powers_of_two and found.check.dtype == "F16"


def test_lost_bits_in_fp16_with_subnormals_are_counted_beforehand_exactly(small_model, look, tmp_path, edited):
    def small_weights(tensors):
        for name in tensors:
            if name.endswith(("q_proj.weight", "o_proj.weight")):
                tensors[name] = (tensors[name].float() * 1e-3).half()  # many below 2^-14
            if name.endswith(("k_proj.weight", "v_proj.weight")):  # so that the small side is scaled down further
                tensors[name] = (tensors[name].float() * 2e-5).half()

    folder = edited(small_model("llama", torch.float16, num_key_value_heads=8), small_weights)
    opened = look(folder)
    decision, plan = planned(opened, granularity="channel", exact=True)
    out = exported(opened, plan, tmp_path / "out", check=False).parent
    assert decision.effects["lost"] == brute_force_lost(folder, out, plan, opened) > 100
    found = verify(opened.checkpoint, open_checkpoint(out), run_models=False)
    assert found.verdict == ROUNDING


def test_gains_stored_as_one_plus_w_are_counted_and_nothing_is_promised(small_model, look, edited):
    def heavier_queries(tensors):
        for name in tensors:
            if name.endswith("q_norm.weight"):
                tensors[name] = 4 * (tensors[name] + 1) - 1  # the gains are 1 + w

    opened = look(edited(small_model("gemma3_text", torch.bfloat16), heavier_queries))
    decision, plan = planned(opened, exact=True, granularity="channel", pairs=("qk",))
    touched = int((decision.row_factor != 1).sum())
    assert decision.effects["gains"] == decision.effects["values"] == touched > 0
    assert not decision.bit_identical and set(np.frexp([f for _, fs in plan.factors.sites for f in fs])[0]) == {0.5}
    assert planned(opened, exact=True, pairs=("vo",))[0].bit_identical  # those carry no offset


def test_the_dtype_of_the_run_is_that_of_most_of_the_pairs(small_model, look, edited):
    def mixed(tensors):
        tensors["model.layers.0.self_attn.q_proj.weight"] = tensors["model.layers.0.self_attn.q_proj.weight"].bfloat16()

    opened = look(edited(small_model("llama", torch.float32), mixed))
    assert stored_dtype(opened.checkpoint, opened.sites) == "F32"
    _, plan = planned(opened)
    assert full_check(opened.checkpoint, opened.sites, plan).agrees(plan)


def test_the_check_leaves_nothing_under_the_home(small_model, look, wisca_home):
    opened = look(small_model("opt", torch.float32))
    _, plan = planned(opened)
    check = full_check(opened.checkpoint, opened.sites, plan)
    assert check.max_rel < 1e-4 and check.dtype == "F32"
    assert [p.name for p in (wisca_home / "exports").iterdir() if not p.name.endswith(".lock")] == []


def shard(folder, to, index="model.safetensors.index.json"):
    """The same tensors in two files and an index."""
    shutil.copytree(folder, to, ignore=shutil.ignore_patterns("model.safetensors"))
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    half = len(names) // 2
    files = ["part-00001-of-00002.safetensors", "part-00002-of-00002.safetensors"]
    weight_map = {}
    for file, part in zip(files, (names[:half], names[half:])):
        save_file({n: tensors[n] for n in part}, to / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    (to / index).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return to


def as_torch(folder, to, name):
    shutil.copytree(folder, to, ignore=shutil.ignore_patterns("model.safetensors"))
    torch.save(load_file(folder / "model.safetensors"), to / name)
    return to


def wrapped(folder, to, name=lambda name: f"module._orig_mod.{name}"):
    """The same tensors under the names that wrappers give them."""
    shutil.copytree(folder, to)
    tensors = load_file(folder / "model.safetensors")
    save_file(
        {name(one): tensor for one, tensor in tensors.items()}, to / "model.safetensors", metadata={"format": "pt"}
    )
    return to


LAYOUTS = {
    "named by wrappers": wrapped,
    "named by wrappers of single blocks, sharded": lambda folder, to: shard(
        wrapped(folder, to.with_name("inside"), lambda name: name.replace(".self_attn.", "._orig_mod.self_attn.")), to
    ),
    "torch, named by wrappers": lambda folder, to: as_torch(
        wrapped(folder, to.with_name("inside")), to, "pytorch_model.bin"
    ),
    "sharded": lambda folder, to: shard(folder, to),
    "sharded under another name": lambda folder, to: shard(folder, to, "weights.safetensors.index.json"),
    "one file of another name": lambda folder, to: (
        shutil.copytree(folder, to) and (to / "model.safetensors").rename(to / "w.safetensors") and to
    ),
    "torch": lambda folder, to: as_torch(folder, to, "pytorch_model.bin"),
    "torch, one file of another name": lambda folder, to: as_torch(folder, to, "weights.bin") / "weights.bin",
}


@pytest.fixture(scope="module")
def plain(small_model, look):
    """A folder in one file, and the check of its plan."""
    folder = small_model("llama", torch.bfloat16, num_key_value_heads=8, attention_bias=True)
    opened = look(folder)
    return folder, full_check(opened.checkpoint, opened.sites, planned(opened, granularity="group")[1])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_check_with_its_control_runs_on_every_file_layout(layout, plain, look, tmp_path):
    source, same = plain
    opened = look(LAYOUTS[layout](source, tmp_path / "source"))
    _, plan = planned(opened, granularity="group")
    report = exported(opened, plan, tmp_path / "out")
    check = FullCheck.from_json(json.loads(report.read_text())["full_check"])
    assert check.control_max_rel > 0 and check.n_tokens == check.n_values / 61
    assert (check.max_rel, check.perplexity_before) == (same.max_rel, same.perplexity_before)
    assert verify(opened.checkpoint, open_checkpoint(tmp_path / "out"), run_models=False).verdict == ROUNDING
