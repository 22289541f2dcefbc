"""Ratios over checkpoints whose weights are built to drift in a known way."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from wisca_core import trajectories as module
from wisca_core.cli import main
from wisca_core.errors import UnreadableInput
from wisca_core.trajectories import advice, content_key, drifts, find_checkpoints, trajectory

CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_size": 8,
    "head_dim": 2,
    "intermediate_size": 8,
    "vocab_size": 4,
    "rope_theta": 10000.0,
}
Q_OVER_K = 1.0  # octaves: 4 query heads on 2, equal values


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("WISCA_HOME", str(tmp_path / "home"))


def checkpoint(folder: Path, key_octaves: list[float], value_octaves: float = 0.0, config: dict = CONFIG) -> Path:
    """Every weight is +-1, but those of k are 2**key_octaves[layer] and those of v 2**value_octaves."""
    sign = torch.tensor([1.0, -1.0]).repeat(4)
    tensors = {"model.embed_tokens.weight": sign.repeat(4, 1)}
    for layer in range(config["num_hidden_layers"]):
        base = f"model.layers.{layer}.self_attn."
        for name, rows, size in (("q", 8, 0.0), ("k", 4, key_octaves[layer]), ("v", 4, value_octaves), ("o", 8, 0.0)):
            tensors[f"{base}{name}_proj.weight"] = sign.repeat(rows, 1) * 2.0**size
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def training(tmp_path) -> Path:
    """Keys of layers 0 and 1 grow by an octave in 500 steps, from step 500 on; layer 2 and the values stay."""
    for step, octaves in ((0, 0.0), (250, 0.0), (500, 0.0), (750, 0.5), (1000, 1.0)):
        checkpoint(tmp_path / "out" / f"checkpoint-{step}", [octaves, octaves, 0.0])
    return tmp_path / "out"


def test_ratios_of_every_pair_layer_and_group_over_the_steps(training):
    found = trajectory(training)
    assert found.steps == (0, 250, 500, 750, 1000) and found.pairs == ("qk", "vo") and not found.refusals
    assert len(found.remarks) == 2  # the first three checkpoints hold the same weights
    table = found.tables["l1"]
    assert list(table.columns) == list(module.COLUMNS) and len(table) == 5 * 3 * 2 * 2
    row = table[(table["step"] == 1000) & (table["layer"] == 0) & (table["pair"] == "qk") & (table["group"] == 1)].iloc[
        0
    ]
    # a KV group: 2 query heads of 2 rows of 8 ones, against 1 key head of 2 rows of 8 twos
    assert (row["left"], row["right"], row["log2_ratio"], row["log2_size"]) == (32.0, 32.0, 0.0, 1.0)
    layers = found.layers("l1").pivot_table(index="step", columns=["pair", "layer"], values="log2_ratio")
    assert (
        layers[("qk", 0)].tolist() == pytest.approx([1.0, 1.0, 1.0, 0.5, 0.0], abs=1e-7)
        and layers[("qk", 2)].tolist() == [1.0] * 5
    )
    assert layers[("vo", 1)].tolist() == [-1.0] * 5
    assert set(found.tables) == {"l1", "l2", "max", "rms", "mean"} and found.layers("mean")["log2_ratio"].max() == 0.0


def test_a_drift_is_said_with_its_side_its_beginning_and_its_size(training):
    first, *rest = drifts(trajectory(training), "l1")
    assert (first.pair, first.layers, first.growing, first.against, first.from_step) == (
        "qk",
        (0, 1),
        "key",
        "query",
        500,
    )
    assert (first.octaves, first.log2_first, first.log2_last, first.per_1000_steps) == (-1.0, 1.0, 0.0, -2.0)
    assert [(d.pair, d.layers, d.growing) for d in rest] == [("qk", (2,), ""), ("vo", (0, 1, 2), "")]


def test_the_reading_names_numbers_and_claims_nothing_else(training):
    curve = ("loss", np.array([0.0, 500.0, 1000.0, 1500.0]), np.array([4.0, 3.0, 2.0, 1.0]))
    texts = [a.text for a in advice(trajectory(training), "l1", 250, curve)]
    # half an octave in 250 steps is 1.41x in the ratio and its root, 1.19x, on each side
    assert texts[0] == (
        "Key grows against query from step 500 on in layers 0-1: the ratio moves by 2.0×, from query 2.0× to level "
        "(median of these layers). "
        "At this drift 250 steps move the ratio by 1.41×, so WISCA every 250 steps would have rescaled each side by "
        "1.19× a time after the first."
    )
    assert texts[1] == "Query against key moves less than 0.1 octaves (1.07×) over the training in layer 2."
    assert any("does not say that balancing helps" in text for text in texts)
    assert texts[-1].startswith("Meanwhile loss falls from 4.000 at step 0 to 2.000 at step 1,000.")
    numbers = dict(advice(trajectory(training), "l1", 100)[0].numbers)
    assert numbers["factor_per_interval"] == pytest.approx(2 ** (0.2 / 2)) and numbers["octaves_per_1000_steps"] == -2.0
    assert "up to 250 steps apart, nothing was measured" in advice(trajectory(training), "l1", 100)[0].text


def test_nothing_is_said_of_more_steps_than_were_seen(training):
    found = advice(trajectory(training), "l1", 5000)[0]
    assert "what 5,000 steps would move is not known" in found.text and "WISCA every" not in found.text
    assert "ratio_per_interval" not in dict(found.numbers)


def test_one_step_says_that_it_is_none(tmp_path):
    checkpoint(tmp_path / "checkpoint-5", [0.0] * 3)
    assert advice(trajectory(tmp_path))[0].text.startswith("One step only")


def test_checkpoints_are_measured_once(training, monkeypatch):
    first = trajectory(training)

    def again(*_):
        raise AssertionError("measured a second time")

    monkeypatch.setattr("wisca_core.patterns.measure.measure", again)
    pd.testing.assert_frame_equal(trajectory(training).tables["l2"], first.tables["l2"])


def test_labels_that_lie_are_pointed_out(tmp_path):
    first = checkpoint(tmp_path / "checkpoint-100", [0.0] * 3)
    checkpoint(tmp_path / "checkpoint-200", [0.5] * 3)
    shutil.copytree(first, tmp_path / "checkpoint-300")
    (tmp_path / "checkpoint-200" / "trainer_state.json").write_text('{"global_step": 150}')
    remarks = trajectory(tmp_path).remarks
    assert len(remarks) == 2
    assert "checkpoint-200 says step 150 in its trainer_state.json" in remarks[0]
    assert "checkpoint-300 and checkpoint-100 hold byte-identical attention weights" in remarks[1]


def test_what_cannot_be_measured_is_named_and_the_rest_is_shown(tmp_path):
    checkpoint(tmp_path / "checkpoint-1", [0.0] * 3)
    checkpoint(tmp_path / "checkpoint-2", [0.1] * 3)
    checkpoint(tmp_path / "checkpoint-3", [0.1] * 2, config=CONFIG | {"num_hidden_layers": 2})
    torn = checkpoint(tmp_path / "checkpoint-4", [0.2] * 3) / "model.safetensors"
    torn.write_bytes(torn.read_bytes()[:-100])
    (tmp_path / "checkpoint-5").mkdir()
    (tmp_path / "checkpoint-5" / ".metadata").write_bytes(b"\x80")
    (tmp_path / "checkpoint-5" / "__0_0.distcp").write_bytes(b"x")
    (tmp_path / "epoch=1-step=6.ckpt").write_bytes(b"x")
    found = trajectory(tmp_path)
    assert found.steps == (1, 2)
    why = {r.what: r.reason for r in found.refusals}
    assert set(why) == {"checkpoint-3", "checkpoint-4", "checkpoint-5", "epoch=1-step=6.ckpt"}
    assert "not of the same training" in why["checkpoint-3"] and "damaged" in why["checkpoint-5"]


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("checkpoint-500", 500),
        ("step_1000", 1000),
        ("iter_0002000", 2000),
        ("global_step30", 30),
        ("epoch-2-step-70", 70),
        ("0000400", 400),
        ("ckpt_9", 9),
    ],
)
def test_labels_of_many_tools_are_read(tmp_path, name, step):
    (tmp_path / name).mkdir()
    (tmp_path / name / "model.safetensors").write_bytes(b"")
    (tmp_path / "runs").mkdir()
    (tmp_path / "checkpoint-1").mkdir()  # holds no model
    assert [(c.label, c.step) for c in find_checkpoints(tmp_path)] == [(name, step)]


def test_a_folder_without_checkpoints_says_what_was_expected(tmp_path):
    with pytest.raises(UnreadableInput, match="checkpoint-500, step_1000"):
        trajectory(tmp_path)
    with pytest.raises(UnreadableInput, match="cannot be listed"):
        trajectory(tmp_path / "nowhere")
    (tmp_path / "checkpoint-1").mkdir()
    (tmp_path / "checkpoint-1" / "model.safetensors").write_bytes(b"")
    with pytest.raises(UnreadableInput, match="none of 1 checkpoints could be measured. checkpoint-1: "):
        trajectory(tmp_path)


def test_the_key_for_caches_follows_the_files(training):
    before = content_key(training)
    assert content_key(training) == before
    checkpoint(training / "checkpoint-1250", [0.0] * 3)
    assert content_key(training) != before


def test_the_command_line_shows_writes_and_refuses(training, tmp_path, capsys):
    (training / "log.jsonl").write_text(
        "".join(f'{{"step": {s}, "loss": {5 - s / 500}}}\n' for s in range(0, 1001, 100))
    )
    assert main(["trajectory", str(training), "--csv", str(tmp_path / "t.csv")]) == 0
    out = capsys.readouterr().out
    assert "Key grows against query from step 500 on in layers 0-1" in out and "Meanwhile loss falls from 5.000" in out
    assert len(pd.read_csv(tmp_path / "t.csv")) == 60
    assert main(["trajectory", str(training), "--json", "--every", "500"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["format"], found["version"]) == ("wisca-trajectory", 1) and [
        c["step"] for c in found["checkpoints"]
    ] == [0, 250, 500, 750, 1000]
    assert found["advice"][0]["numbers"]["ratio_per_interval"] == 2.0
    (tmp_path / "mine.txt").write_text("keep")
    assert main(["trajectory", str(training), "--csv", str(tmp_path / "mine.txt")]) == 2
    assert (tmp_path / "mine.txt").read_text() == "keep"
    assert (
        main(["trajectory", str(training), "--every", "0"]) == 2 and main(["trajectory", str(tmp_path / "none")]) == 2
    )
    assert main(["trajectory", str(training), "--norm", "l7"]) == 2


def test_checkpoints_of_a_real_training_by_transformers(tmp_path):
    """Sharded, and bfloat16: what save_pretrained writes."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(**{k: v for k, v in CONFIG.items() if k not in ("model_type", "architectures", "rope_theta")})
    ).bfloat16()
    for step in (10, 20):
        model.save_pretrained(tmp_path / f"step_{step}", max_shard_size="1KB")
        with torch.no_grad():
            model.model.layers[0].self_attn.k_proj.weight *= 4
    assert len(list((tmp_path / "step_10").glob("*.safetensors"))) > 1
    layers = trajectory(tmp_path).layers("l1").pivot_table(index="step", columns=["pair", "layer"], values="log2_ratio")
    assert layers[("qk", 0)].loc[10] - layers[("qk", 0)].loc[20] == pytest.approx(2.0, abs=1e-6)
    assert layers[("qk", 1)].loc[10] == layers[("qk", 1)].loc[20]
