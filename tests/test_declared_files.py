"""Files of one's own classes: a state dict, a declaration beside it, and the code that it is proved on."""

import json

import pytest
import torch
from declared_models import GPT, MODELS, LitGPT, Llama
from safetensors.torch import load_file, save_file

import wisca_core as wisca
from wisca_core.architecture.declaration_files import toml
from wisca_core.cli import main
from wisca_core.errors import DeclarationError, ProofFailed

CODE = """
import itertools
import sys
sys.path.insert(0, {tests!r})
from declared_models import GPT, LitGPT, Llama

def small_gpt():
    return GPT(width=12, n_layer=1)

def small_llama():
    return Llama(width=16, n_layers=1)

def other():
    return LitGPT()

def restless():
    model, calls = small_gpt(), itertools.count(1)
    model.register_forward_hook(lambda module, given, out: (out[0] * next(calls), *out[1:]))
    return model

def call(model, ids):
    return model(ids)[0]
"""


def made(make, seed=0):
    torch.manual_seed(seed)
    return make()


@pytest.fixture
def nanogpt(tmp_path, monkeypatch):
    """As nanoGPT saves: a compiled model's state beside the optimiser's; the class in code.py of the working folder."""
    from pathlib import Path

    (tmp_path / "own_code.py").write_text(CODE.format(tests=str(Path(__file__).parent)))
    (tmp_path / "sites.toml").write_text(toml(MODELS["nanoGPT"][1]))
    monkeypatch.chdir(tmp_path)
    model = made(GPT)
    with torch.no_grad():
        for block in model.transformer.h:
            block.attn.c_attn.weight[:24] *= 6
    state = {f"_orig_mod.{name}": tensor for name, tensor in model.state_dict().items()}
    (tmp_path / "out").mkdir()
    torch.save({"model": state, "iter_num": 7, "best_val_loss": 1.5}, tmp_path / "out" / "ckpt.pt")
    return model


def test_paths_may_be_written_as_the_file_has_them(nanogpt, tmp_path, capsys):
    written = (tmp_path / "sites.toml").read_text()
    for before in ("", "_orig_mod.", "module._orig_mod."):
        (tmp_path / "sites.toml").write_text(written.replace('"transformer.h', f'"{before}transformer.h'))
        assert (before in (tmp_path / "sites.toml").read_text()) and main(
            ["inspect", "out/ckpt.pt", "--sites", "sites.toml"]
        ) == 0
        assert "4 pairs found" in capsys.readouterr().out


def read_back(folder):
    model = made(GPT, seed=1)
    missing, unexpected = model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    assert set(missing) <= {"lm_head.weight", "transformer.wte.weight"} and not unexpected
    return model.eval()


def test_a_checkpoint_of_nanogpt_is_inspected_proved_rescaled_and_read_back(nanogpt, tmp_path, capsys):
    assert main(["inspect", "out/ckpt.pt", "--sites", "sites.toml"]) == 0
    said = capsys.readouterr().out
    assert "query side is 6" in said and "4 pairs found" in said
    own = ["--sites", "sites.toml", "--build", "own_code:small_gpt"]
    assert main(["rescale", "out/ckpt.pt", "new", *own]) == 0
    said = capsys.readouterr().out
    assert "Proof on the model of rule declared: passed" in said and "Full check: not run" in said
    report = json.loads((tmp_path / "new" / "wisca_report.json").read_text())
    assert "unproved" not in report and report["proof"]["passed"] and float(report["proof"]["max_rel"]) < 1e-12
    ids = torch.arange(9)[None]
    before, after = nanogpt.eval()(ids)[0], read_back(tmp_path / "new")(ids)[0]
    assert torch.allclose(before, after, atol=1e-5) and not torch.equal(before, after)
    model = wisca.open("new/model.safetensors", sites=MODELS["nanoGPT"][1])
    assert (model.groups("l1")["log2_ratio"].abs().groupby(model.groups("l1")["name"]).mean() < 0.5).all()
    assert main(["verify", "out/ckpt.pt", "new/model.safetensors", *own]) == 0
    assert "equivalent up to rounding" in capsys.readouterr().out


def test_without_code_nothing_is_written_unless_it_is_said(nanogpt, tmp_path, capsys):
    assert main(["rescale", "out/ckpt.pt", "new", "--sites", "sites.toml"]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert said.startswith(
        "error: no proof was made: declared sites of a file are proved on the model's own code. Give --build "
        "module:function, "
    )
    assert said.endswith("or say --unproved to take them as they are. Nothing was written.")
    assert not (tmp_path / "new").exists()
    assert main(["rescale", "out/ckpt.pt", "new", "--sites", "sites.toml", "--unproved"]) == 0
    assert "NOT PROVED" in capsys.readouterr().out.splitlines()[0]
    report = json.loads((tmp_path / "new" / "wisca_report.json").read_text())
    assert list(report)[:3] == ["format", "version", "unproved"]
    card = [line for line in (tmp_path / "new" / "README.md").read_text().splitlines() if line and line[0] not in "<#"]
    assert card[0].startswith("**Not proved.**")
    assert torch.allclose(
        nanogpt.eval()(torch.arange(9)[None])[0], read_back(tmp_path / "new")(torch.arange(9)[None])[0], atol=1e-5
    )


def test_a_wrong_declaration_of_a_file_is_refused_by_the_proof(nanogpt, tmp_path, capsys):
    (tmp_path / "sites.toml").write_text(
        toml(MODELS["nanoGPT"][1]).replace("n_heads = 3", 'n_heads = 3\nlayout = "per_head"')
    )
    own = ["--sites", "sites.toml", "--build", "own_code.py:small_gpt", "--forward", "own_code:call"]
    assert main(["rescale", "out/ckpt.pt", "new", *own]) == 1
    assert "the outputs differ by" in " ".join(capsys.readouterr().err.split()) and not (tmp_path / "new").exists()


def test_a_model_that_cannot_be_compared_fails_the_proof_on_the_model(nanogpt, tmp_path, capsys):
    assert main(["rescale", "out/ckpt.pt", "new", "--sites", "sites.toml", "--build", "own_code:restless"]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert said.startswith("error: the proof on the model failed: GPT does not repeat its own outputs in eval mode")
    assert said.endswith("Nothing was written.") and not (tmp_path / "new").exists()


def test_bad_options_of_declared_files_are_named(nanogpt, tmp_path, capsys):
    for options, message in (
        (["--build", "own_code:small_gpt"], "--build is about declared sites; give --sites"),
        (["--sites", "sites.toml", "--build", "own_code:nothing"], "there is no such function"),
        (["--sites", "sites.toml", "--build", "own_code:small_gpt", "--unproved"], "give one of them"),
        (["--sites", "nowhere.toml"], "nowhere.toml"),
        (["--sites", "sites.toml", "--build", "own_code:other"], "build: "),
    ):
        assert main(["rescale", "out/ckpt.pt", "new", *options]) in (1, 2), message
        assert message in " ".join(capsys.readouterr().err.split())
        assert not (tmp_path / "new").exists()


def test_a_file_without_a_config_is_shown_with_a_declaration_to_correct(nanogpt, tmp_path, capsys):
    assert main(["inspect", "out/ckpt.pt"]) == 1
    said = capsys.readouterr().out
    assert (
        "--sites" in said
        and "[[attention]]" in said
        and 'layer = "transformer.h.{i}.attn"' in said
        and "n_heads" in said
    )


def test_any_state_dict_opens_with_its_declaration(tmp_path):
    for name in ("Llama", "litgpt"):
        make, sites, _ = MODELS[name]
        folder = tmp_path / name
        folder.mkdir()
        save_file(made(make).state_dict(), folder / "lit_model.safetensors")
        small = {"Llama": lambda: Llama(width=16), "litgpt": lambda: LitGPT(width=16, n_layer=1)}[name]
        if name == "litgpt":  # of half as wide heads half as many channels turn
            own = [wisca.attention(sites[0].layer, **{**dict(sites[0].words), "rope_channels": 2})]
            small = lambda own=own: (LitGPT(width=16, n_layer=1), own)
        model = wisca.open(folder / "lit_model.safetensors", sites=sites, build=small)
        plan = wisca.plan(model, granularity="group", exact=True)
        done = wisca.export(model, plan, tmp_path / f"{name}-new", check=False)
        assert done.proof.passed and plan.n_changed > 0
        back = made(make, seed=1)
        back.load_state_dict(load_file(done.folder / "lit_model.safetensors"))
        ids = torch.arange(11)[None]
        assert torch.equal(back(ids), made(make)(ids))  # powers of two
    with pytest.raises(DeclarationError, match="no tensor of the model lies there"):
        wisca.open(folder / "lit_model.safetensors", sites=MODELS["ViT"][1])
    unproved = wisca.open(folder / "lit_model.safetensors", sites=sites)
    with pytest.raises(ProofFailed, match="--unproved"):
        wisca.export(unproved, wisca.plan(unproved), tmp_path / "nothing", check=False)


def test_a_training_of_ones_own_is_a_trajectory(tmp_path, capsys):
    (tmp_path / "sites.toml").write_text(toml(MODELS["Llama"][1]))
    for step in (10, 20):
        model = made(Llama)
        with torch.no_grad():
            model.layers["0"].attention.wq.weight.mul_(step)
        torch.save(model.state_dict(), tmp_path / f"step_{step}.pt")
    found = wisca.trajectory(tmp_path, sites=MODELS["Llama"][1])
    layers = found.layers("l1").query("pair == 'qk' and layer == 0")
    assert layers["log2_ratio"].diff().iloc[1] == pytest.approx(1.0) and found.steps == (10, 20)
    assert main(["trajectory", str(tmp_path), "--sites", str(tmp_path / "sites.toml")]) == 0
    assert "2 checkpoints, steps 10 to 20" in capsys.readouterr().out
