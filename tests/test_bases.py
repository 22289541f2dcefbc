"""A checkpoint whose V and O pairs get a full change of basis: the same function, said, taken back, and not believed on
its word.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import wisca_core as wisca
from wisca_core.cli import main
from wisca_core.equivalence.adapter_miniature import build_adapter
from wisca_core.equivalence.verify import BIT_IDENTICAL, DIFFERENT, ROUNDING
from wisca_core.errors import BadOption, NothingToRescale, PlanMismatch, UnreadableInput
from wisca_core.methods import method
from wisca_core.planning.bases import BASES, Bases
from wisca_core.planning.plan import load_plan, save_plan
from wisca_core.rescale_basis import groups_of


def grams(folder: Path, site: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(left, right) of each KV group, of the weights as they are stored."""
    model = wisca.open(folder)
    tensors = {name: t.double() for name, t in load_file(folder / "model.safetensors").items()}
    out = []
    for group in groups_of(model.sites[site]):
        sums = {"left": 0.0, "right": 0.0}
        for rows in group:
            if rows.leg.measured:
                for index in rows.indices:
                    block = tensors[rows.leg.tensor].index_select(rows.leg.axis, index).movedim(rows.leg.axis, 0)
                    sums[rows.leg.side] = sums[rows.leg.side] + block.flatten(1) @ block.flatten(1).T
        out.append((sums["left"], sums["right"]))
    return out


@pytest.fixture(scope="module")
def done(small_model, tmp_path_factory):
    """(float64 model of grouped queries with biases, its plan, its export)."""
    model = wisca.open(small_model("qwen2"))
    plan = wisca.plan(model, method="gram", granularity="channel", norm="l2")
    return model, plan, wisca.export(model, plan, tmp_path_factory.mktemp("gram") / "out")


# heads that share keys and values, matrices stored the other way round, one tensor for q, k and v, another for k and v
@pytest.mark.parametrize("model_type", ["qwen2", "gpt2", "phi3", "deepseek_v3"])
def test_the_function_stays_and_both_gram_matrices_are_equal(model_type, small_model, tmp_path):
    model = wisca.open(small_model(model_type))
    plan = wisca.plan(model, pairs="vo", method="gram")
    out = wisca.export(model, plan, tmp_path / "out")
    assert out.check.max_rel < 1e-6, "transformers' norms are float32 inside"
    assert plan.sites and not plan.factors.sites and not plan.bit_identical
    for name in plan.sites:
        for (left, right), (before, _) in zip(grams(out.folder, name), grams(model.checkpoint.path, name), strict=True):
            assert torch.allclose(left, right, rtol=1e-9, atol=1e-9 * float(left.abs().max()))
            assert not torch.allclose(left, before, rtol=1e-2)
    found = wisca.verify(model, out.folder)
    assert found.verdict == ROUNDING and "changes of basis" in found.reasons[0], found.reasons


def test_what_is_said_of_afterwards_is_what_is_then_measured(done, look, monkeypatch):
    model, plan, out = done
    said, found = model.groups("l1", plan), look(out.folder).groups("l1")
    with monkeypatch.context() as patch:  # measured once
        patch.setattr("wisca_core.rescale_basis.measure", None)
        assert model.groups("l1", plan).equals(said)
    assert np.allclose(said["left_after"], found["left"], rtol=1e-9) and np.allclose(
        said["right_after"], found["right"]
    )
    is_vo = said["pair"] == "vo"
    assert np.allclose(model.groups("l2", plan)["log2_after"], 0, atol=1e-9), "of equal Gram matrices"
    assert (said["log2_after"][is_vo].abs() > 1e-3).any(), "the sums of magnitudes are not made equal by it"


def test_what_it_leaves_gets_factors_and_the_report_says_both(done):
    _, plan, out = done
    assert {name.rpartition(".")[2] for name in plan.factors.by_site} == {"qk"}
    report = json.loads(out.report.read_text())
    assert report["basis_proof"]["passed"] and report["plan"]["bases"]["sites"] == {
        name: len(s) for name, s in plan.bases.sites.items()
    }
    assert (out.folder / BASES).is_file() and "full changes of basis (method gram)" in (
        out.folder / "README.md"
    ).read_text()


def test_it_is_taken_back_up_to_rounding(done, tmp_path):
    model, _, out = done
    back = wisca.export(out.folder, wisca.undo(out.report), tmp_path / "back", check=False)
    before, after = (load_file(folder / "model.safetensors") for folder in (model.checkpoint.path, back.folder))
    assert all(torch.allclose(before[name], after[name], rtol=1e-8, atol=1e-12) for name in before)
    assert wisca.verify(out.folder, back.folder).verdict == ROUNDING
    again = wisca.export(out.folder, wisca.plan(out.folder, pairs="vo", method="gram"), tmp_path / "again", check=False)
    assert (out.folder / "wisca_factors.svg").exists() and not (again.folder / "wisca_factors.svg").exists()


def test_a_saved_plan_is_the_same_plan_and_goes_with_its_file_alone(done, tmp_path):
    _, plan, _ = done
    save_plan(plan, tmp_path / "plan.json")
    assert load_plan(tmp_path / "plan.json") == plan
    held = (tmp_path / "plan.bases").read_bytes()
    (tmp_path / "plan.bases").unlink()
    with pytest.raises(UnreadableInput, match="plan.bases"):
        load_plan(tmp_path / "plan.json")
    (tmp_path / "plan.bases").write_bytes(held[:-1])
    with pytest.raises(UnreadableInput, match="holds no changes of basis"):
        load_plan(tmp_path / "plan.json")
    Bases({name: 2 * s for name, s in plan.bases.sites.items()}).write(tmp_path / "plan.json")
    with pytest.raises(PlanMismatch, match="other changes of basis"):
        load_plan(tmp_path / "plan.json")


def test_bases_that_fit_no_pair_or_have_no_way_back_are_refused_by_name(done):
    model, plan, _ = done
    name, matrices = next(iter(plan.bases.sites.items()))
    flat = matrices.copy()
    flat[0, 1] = flat[0, 0]
    for wrong, said in (
        ({"decoder.9.self.vo": matrices}, "no such pair"),
        ({name.replace("vo", "qk"): matrices}, "no such pair"),  # rotary positions pass no change of basis
        ({name: matrices[:1]}, "belongs to another model"),
        ({name: matrices.astype(np.float32)}, "belongs to another model"),
        ({name: matrices * np.nan}, "not finite"),
        ({name: flat}, "cannot be taken back"),
    ):
        with pytest.raises(PlanMismatch, match=said):
            Bases(wrong).check(model.sites, method("gram"))


def test_verify_believes_the_weights_and_not_the_file(done, tmp_path):
    model, plan, out = done
    site = model.sites[next(iter(plan.bases.sites))]
    side = next(leg.tensor for leg in site.measured_legs("right"))

    def changed(name: str, change) -> Path:
        copy = tmp_path / name
        shutil.copytree(out.folder, copy)
        tensors = load_file(copy / "model.safetensors")
        change(tensors)
        save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
        return copy

    def one_side(tensors):
        tensors[side] = load_file(model.checkpoint.path / "model.safetensors")[side]

    def one_value(tensors):
        tensors[side][0, 0] *= 1 + 1e-9

    for name, change in (("one side", one_side), ("one value", one_value)):
        found = wisca.verify(model, changed(name, change), run_models=False)
        assert found.verdict == DIFFERENT and side in found.reasons[0], (name, found.reasons)
    # right weights, beside a file that cannot say by what they were made
    shutil.copytree(out.folder, tmp_path / "damaged")
    (tmp_path / "damaged" / BASES).write_bytes(b"nothing")
    found = wisca.verify(model, tmp_path / "damaged", run_models=False)
    assert found.verdict == DIFFERENT and found.reasons[0].startswith(f"{BASES} says") and len(found.reasons) > 1
    # a change of basis of rotary pairs, explained by a file that says so
    untouched = tmp_path / "rotary"
    shutil.copytree(model.checkpoint.path, untouched)
    rng = np.random.default_rng(0)
    of_qk = {
        n.replace("vo", "qk"): np.eye(s.shape[1]) + 0.1 * rng.standard_normal(s.shape)
        for n, s in plan.bases.sites.items()
    }
    Bases(of_qk).write(untouched / BASES)
    assert wisca.verify(model, untouched, run_models=False).verdict == BIT_IDENTICAL, "nothing of it was done"
    # weights that were not changed, beside a file that says they were
    Bases(dict(plan.bases.sites)).write(untouched / BASES)
    assert wisca.verify(model, untouched, run_models=False).verdict == DIFFERENT


def test_a_model_that_does_not_pass_it_is_refused_by_name_and_the_rest_goes_on(small_model):
    plan = wisca.plan(small_model("afmoe"), method="gram")  # its output gate multiplies channel by channel
    assert plan.factors.sites and not plan.bases
    reasons = {r.what: r.reason for r in plan.refusals if r.what.endswith(".vo")}
    assert reasons and all("full change of basis is not exact" in reason for reason in reasons.values())
    with pytest.raises(NothingToRescale, match="full change of basis is not exact"):
        wisca.export(small_model("afmoe"), wisca.plan(small_model("afmoe"), pairs="vo", method="gram"), "nowhere")


def test_a_pair_without_full_rank_and_one_that_is_not_finite_are_left(small_model, edited):
    def change(tensors):
        tensors["model.layers.0.self_attn.v_proj.weight"][1] = tensors["model.layers.0.self_attn.v_proj.weight"][0]
        tensors["model.layers.1.self_attn.o_proj.weight"][0, 0] = torch.nan

    plan = wisca.plan(edited(small_model("llama"), change), pairs="vo", method="gram")
    said = {r.what: r.reason for r in plan.refusals}
    assert not plan.bases and "full rank" in said["decoder.0.self.vo"] and "not finite" in said["decoder.1.self.vo"]


def test_what_does_not_go_with_it_is_said(small_model, tmp_path, capsys):
    for wrong in ({"exact": True}, {"strength": 0.5}, {"pairs": "qk"}):
        with pytest.raises(BadOption, match="'gram' was given"):
            wisca.plan(small_model("llama"), method="gram", **wrong)
    base = small_model("llama")
    build_adapter(base, tmp_path / "adapter", {"r": 2}, ("self_attn.v_proj",), seed=9)
    with pytest.raises(BadOption, match="adapters follow factors alone"):
        wisca.export(base, wisca.plan(base, method="gram"), tmp_path / "out", adapters=[tmp_path / "adapter"])
    assert (
        main(["rescale", str(base), str(tmp_path / "out"), "--method", "gram", "--adapter", str(tmp_path / "adapter")])
        == 2
    )
    assert "adapters follow factors alone" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_live_model_does_not_take_half_a_plan(done):
    from wisca_core.equivalence.miniature import load

    model, plan, _ = done
    live = load(model.checkpoint.path)
    before = {name: p.clone() for name, p in live.named_parameters()}
    with pytest.raises(PlanMismatch, match="changes the basis of 2 pairs"):
        wisca.rescale_(live, plan=plan)
    assert all(torch.equal(p, before[name]) for name, p in live.named_parameters())


def test_an_adapter_of_its_own_is_balanced_by_it(small_model, tmp_path):
    build_adapter(small_model("llama"), tmp_path / "adapter", {"r": 2}, ("self_attn.q_proj", "mlp.down_proj"), seed=9)
    plan = wisca.plan(tmp_path / "adapter", pairs="lora", method="gram")
    out = wisca.export(tmp_path / "adapter", plan, tmp_path / "out")
    assert plan.bases and out.proof.passed
    before, after = (load_file(f / "adapter_model.safetensors") for f in (tmp_path / "adapter", out.folder))
    for name in (n for n in before if ".lora_A." in n):
        a, b = after[name].double(), after[name.replace("lora_A", "lora_B")].double()
        assert torch.allclose(a @ a.T, b.T @ b, rtol=1e-4), "stored in float32"
        old = before[name.replace("lora_A", "lora_B")].double() @ before[name].double()
        assert torch.allclose(b @ a, old, rtol=1e-5, atol=1e-6 * float(old.abs().max()))


def test_the_command_line_says_what_it_does(small_model, tmp_path, capsys):
    base = small_model("llama", torch.bfloat16)
    arguments = ["rescale", str(base), str(tmp_path / "out"), "--method", "gram", "--norm", "l2"]
    assert main([*arguments, "--save-plan", str(tmp_path / "plan.json"), "--dry-run"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "method gram" in said and "the left side becomes S^-1 left" in said and "rule gram: passed" in said
    assert not (tmp_path / "out").exists() and (tmp_path / "plan.bases").is_file()
    assert main(["rescale", str(base), str(tmp_path / "out"), "--plan", str(tmp_path / "plan.json"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (
        document["basis_proof"]["passed"]
        and document["n_bases_changed"] == 8
        and document["pairs"]["vo"]["within_2x_after"]
    )
    assert main(["verify", str(base), str(tmp_path / "out"), "--weights-only"]) == 0
    assert "changes of basis, which lie in wisca_report.bases" in " ".join(capsys.readouterr().out.split())
