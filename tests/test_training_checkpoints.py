"""Checkpoints as trainers leave them: nanoGPT's script, Lightning, whole models and programs."""

import argparse
import json
import re

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

import wisca_core as wisca
from wisca_core.checkpoint import Reader, open_checkpoint
from wisca_core.cli import main
from wisca_core.errors import UnsafeInput


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=64, n_positions=32, bos_token_id=1, eos_token_id=1)
    )
    with torch.no_grad():
        for block in model.transformer.h:
            block.attn.c_attn.weight[:, :32] *= 4
    return model


def test_a_scalar_beside_the_model_does_not_hide_its_weights(tmp_path):
    """What nanoGPT's train.py saves: best_val_loss is a tensor once a validation has run."""
    model = gpt2()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(input_ids=torch.ones(1, 4, dtype=torch.int64), labels=torch.ones(1, 4, dtype=torch.int64)).loss.backward()
    optimizer.step()
    torch.save(
        {
            "model": {f"_orig_mod.{name}": tensor for name, tensor in model.state_dict().items()},
            "optimizer": optimizer.state_dict(),
            "model_args": {
                "n_layer": 2,
                "n_head": 4,
                "n_embd": 32,
                "block_size": 32,
                "bias": False,
                "vocab_size": None,
            },
            "iter_num": 250,
            "best_val_loss": torch.tensor(2.5),
            "config": {"out_dir": "out", "learning_rate": 6e-4, "compile": True},
        },
        tmp_path / "ckpt.pt",
    )
    checkpoint = open_checkpoint(tmp_path / "ckpt.pt")
    with Reader(checkpoint) as read:
        name = "transformer.h.1.attn.c_attn.weight"
        assert torch.equal(read.tensor(name), model.state_dict()[name])
    assert checkpoint.remarks == (
        "Of a training checkpoint, 'model' was read; not looked at: optimizer, model_args, iter_num, best_val_loss, "
        "config.",
    )


@pytest.fixture
def lightning_ckpt(tmp_path):
    """A folder with config.json and the last.ckpt that a Lightning Trainer writes after a step."""
    import lightning as L

    class Module(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = gpt2()

        def training_step(self, batch, _):
            return self.model(input_ids=batch, labels=batch).loss

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=1e-2)

    module = Module()
    quiet = dict(logger=False, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False)
    trainer = L.Trainer(max_steps=1, accelerator="cpu", default_root_dir=tmp_path, **quiet)
    trainer.fit(module, torch.utils.data.DataLoader(torch.ones(1, 8, dtype=torch.int64)))
    place = tmp_path / "run"
    trainer.save_checkpoint(place / "last.ckpt")
    module.model.config.save_pretrained(place)
    return place, module.model.eval()


def test_a_lightning_checkpoint_is_exported_under_the_name_that_from_pretrained_finds(lightning_ckpt, tmp_path, capsys):
    place, model = lightning_ckpt
    assert main(["rescale", str(place / "last.ckpt"), str(tmp_path / "out"), "--exact", "--no-check"]) == 0
    assert "last.ckpt becomes model.safetensors" in capsys.readouterr().out
    again, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    moved = again.transformer.h[0].attn.c_attn.weight - model.transformer.h[0].attn.c_attn.weight
    assert moved.abs().max() > 0
    with torch.no_grad():
        ids = torch.arange(12)[None]
        assert torch.equal(again.eval()(input_ids=ids).logits, model(input_ids=ids).logits)


class Program(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)


def refused_files(folder):
    weights = Program()
    state = weights.state_dict()
    torch.save({"state_dict": state, "hyper_parameters": argparse.Namespace(lr=1)}, folder / "arguments.ckpt")
    torch.save(weights.linear, folder / "module.pt")
    torch.save(state, folder / "old.bin", _use_new_zipfile_serialization=False)
    torch.jit.script(weights).save(folder / "program.pt")
    return state


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["arguments.ckpt", "module.pt", "old.bin", "program.pt"])
def test_the_advice_on_a_refused_file_converts_that_very_file(name, tmp_path, monkeypatch):
    state = refused_files(tmp_path)
    with pytest.raises(UnsafeInput, match="If you trust the file") as caught:
        open_checkpoint(tmp_path / name)
    code = re.search(r'python -c "(.*)"', str(caught.value))[1].replace("FILE", name)
    monkeypatch.chdir(tmp_path)
    exec(code, {})  # none of the names here: it has to import what it uses
    made = load_file(tmp_path / "model.safetensors")
    assert {n.removeprefix("linear."): t.tolist() for n, t in made.items()} == {
        n.removeprefix("linear."): t.tolist() for n, t in state.items()
    }


def test_an_index_that_names_an_absent_tensor_refuses_only_the_pair_that_needs_it(tmp_path, capsys):
    """As transformers shards a model; one tensor is then lost and a name invented."""
    from real_folders import real_folder

    source = real_folder("llama", tmp_path / "whole")
    AutoModelForCausalLM.from_pretrained(source).save_pretrained(tmp_path / "m", max_shard_size="20kB")
    index = tmp_path / "m" / "model.safetensors.index.json"
    found = json.loads(index.read_text())
    lost = "model.layers.0.self_attn.k_proj.weight"
    shard = tmp_path / "m" / found["weight_map"][lost]
    from safetensors.torch import save_file

    save_file({n: t for n, t in load_file(shard).items() if n != lost}, shard, metadata={"format": "pt"})
    found["weight_map"]["model.layers.9.self_attn.k_proj.weight"] = found["weight_map"][lost]
    del found["weight_map"]["model.layers.1.input_layernorm.weight"]
    index.write_text(json.dumps(found))
    assert main(["inspect", str(tmp_path / "m")]) == 0
    assert "not named in model.safetensors.index.json: model.layers.1.input_layernorm.weight" in capsys.readouterr().out
    assert main(["rescale", str(tmp_path / "m"), str(tmp_path / "out"), "--exact", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [r["what"] for r in told["refused"]] == ["decoder.0.self.qk"] and lost in told["refused"][0]["reason"]
    assert told["full_check"] is None and f"1 missing: {lost}" in told["full_check_not_run"]
    done = wisca.export(tmp_path / "m", wisca.plan(tmp_path / "m"), tmp_path / "by the library")
    assert done.check is None and f"1 missing: {lost}" in done.not_run
    assert main(["rescale", str(tmp_path / "m"), str(tmp_path / "asked"), "--exact", "--check"]) == 2
    assert "was asked for and cannot be run" in capsys.readouterr().err and not (tmp_path / "asked").exists()
    report = json.loads((tmp_path / "out" / "wisca_report.json").read_text())
    assert (
        report["full_check_not_run"] == told["full_check_not_run"]
        and str(tmp_path / "m") in report["full_check_not_run"]
    )
