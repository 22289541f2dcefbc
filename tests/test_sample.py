"""The bundled sample run is what it says it is, and its script makes such a run again."""

import importlib.util
import json
import re
import runpy
import stat
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

SAMPLES = Path(__file__).resolve().parent.parent / "sample_runs"
RUN = SAMPLES / "gqa-docs"
SCRIPT = SAMPLES / "train_gqa_docs.py"
SPEC = json.loads((RUN / "spec.json").read_text())
CHECKPOINTS = [RUN / f"checkpoint-{step}" for step in SPEC["checkpoints"]]


@pytest.fixture
def script():
    """The training script as a fresh module; it sets torch to one thread, which is undone."""
    threads = torch.get_num_threads()
    described = importlib.util.spec_from_file_location("train_gqa_docs", SCRIPT)
    module = importlib.util.module_from_spec(described)
    described.loader.exec_module(module)
    yield module
    torch.set_num_threads(threads)


def metrics(run: Path) -> list[dict]:
    header, *rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert (header["format"], header["version"]) == ("wisca-metrics", 1)
    return rows


def test_sample_runs_stays_under_20_mb():
    kept = [file for file in SAMPLES.rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    assert sum(file.stat().st_size for file in kept) < 20e6


def test_three_checkpoints_from_initialisation_to_the_end():
    first, middle, last = SPEC["checkpoints"]
    assert first == 0 < middle < last == SPEC["steps"]
    assert sorted(path.name for path in RUN.glob("checkpoint-*")) == sorted(path.name for path in CHECKPOINTS)


@pytest.mark.parametrize("folder", CHECKPOINTS, ids=lambda folder: folder.name)
def test_a_checkpoint_is_an_ordinary_bf16_folder_with_8_query_heads_on_2(folder):
    config = AutoConfig.from_pretrained(folder)
    assert (config.model_type, config.num_attention_heads, config.num_key_value_heads) == ("llama", 8, 2)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    assert sum(p.numel() for p in model.parameters()) == SPEC["n_parameters"]
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"BF16"}
        assert file.get_slice("model.layers.7.self_attn.q_proj.weight").get_shape() == [192, 192]
        assert file.get_slice("model.layers.7.self_attn.k_proj.weight").get_shape() == [48, 192]
        assert "lm_head.weight" not in file.keys()  # tied to the embedding
    for file in folder.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) & 0o444 == 0o444, f"{file.name} is not readable by everyone"


@pytest.mark.parametrize("folder", CHECKPOINTS, ids=lambda folder: folder.name)
def test_the_tokenizer_maps_every_byte_to_its_own_value_and_back(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) == SPEC["model"]["vocab_size"] == 258
    every_two_byte_character = "".join(map(chr, range(0x800)))
    for text in (every_two_byte_character, "  two  spaces\n\tTab's \r\n", "naïve 漢字 \U0001f40d\u0301", " ", "a"):
        ids = tokenizer(text)["input_ids"]
        assert ids == list(text.encode())
        assert tokenizer.decode(ids) == text
    assert tokenizer.convert_tokens_to_ids(["<|document|>", "<|pad|>"]) == [256, 257]


def test_the_last_checkpoint_predicts_held_out_topics_and_the_first_does_not(script):
    held_out = [doc for doc in script.documents() if doc[0].startswith("topic:") and script.held_out(doc[0])]
    stream = script.token_stream(held_out)[: 257 * 12].reshape(12, 257)
    losses = []
    for folder in CHECKPOINTS:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        with torch.no_grad():
            losses.append(script.loss_nats(model, stream).item())
    assert losses[0] > 5 and losses[1] < 3 and losses[2] < 2.5 and losses[2] < losses[1], losses


def test_the_layers_and_heads_of_the_last_checkpoint_differ():
    with safe_open(CHECKPOINTS[-1] / "model.safetensors", "pt") as file:
        heads = torch.stack(
            [
                file.get_tensor(f"model.layers.{i}.self_attn.q_proj.weight").double().view(8, 24, 192).abs().sum((1, 2))
                for i in range(8)
            ]
        )
    assert heads.unique().numel() == 64
    assert heads.amax() / heads.amin() > 1.3  # at initialisation the largest is within a few percent of the smallest


def test_spec_metrics_and_status_tell_how_the_sample_was_made():
    assert (SPEC["format"], SPEC["version"]) == ("wisca-run", 1)
    assert re.fullmatch("[0-9a-f]{64}", SPEC["data"]["sha256"])
    assert SPEC["data"]["n_bytes"] > 1_000_000
    rows = metrics(RUN)
    steps = [row["step"] for row in rows]
    assert steps[0] == 0 and steps[-1] == SPEC["steps"] and all(a < b for a, b in zip(steps, steps[1:]))
    assert [row["tokens"] for row in rows] == [step * 4 * 256 for step in steps]
    status = json.loads((RUN / "status.json").read_text())
    assert (status["format"], status["version"], status["state"]) == ("wisca-status", 1, "done")
    assert status["val_loss"] == rows[-1]["val_loss"] < 2.0 < 5.0 < rows[0]["val_loss"]
    assert f"{status['val_loss']:.3f} nats per byte" in (CHECKPOINTS[-1] / "README.md").read_text()


def test_no_file_of_the_sample_names_a_place_on_somebodys_machine():
    texts = [file for file in SAMPLES.rglob("*") if file.suffix in {".json", ".jsonl", ".md", ".py"}]
    assert len(texts) >= 3 + 3 * 4
    for file in texts:
        assert not re.search(r"/(home|Users|root|tmp|usr|opt|var)/", file.read_text()), file


def test_the_script_makes_a_loadable_run_and_never_writes_over_one(script, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--steps", "3", "--out", str(tmp_path / "run")])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    spec = json.loads((tmp_path / "run" / "spec.json").read_text())
    assert spec["data"]["sha256"] in capsys.readouterr().out and spec["checkpoints"] == [0, 3]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "checkpoint-0",
        "checkpoint-3",
        "metrics.jsonl",
        "spec.json",
        "status.json",
    ]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "checkpoint-3")
    assert model.dtype == torch.bfloat16
    rows = metrics(tmp_path / "run")
    assert [row["step"] for row in rows] == [0, 3] and rows[1]["val_loss"] < rows[0]["val_loss"]

    with pytest.raises(SystemExit, match="holds a finished run"):
        script.main()


def test_an_interrupted_run_continues_to_the_same_weights(script, monkeypatch, tmp_path):
    monkeypatch.setattr(script, "documents", lambda: [(f"topic:{i}", bytes(range(32, 127)) * 8) for i in range(60)])
    monkeypatch.setattr(script, "MODEL", script.MODEL | dict(hidden_size=32, intermediate_size=32, num_hidden_layers=1))
    monkeypatch.setattr(script, "DATA", script.DATA | dict(context=16, val_windows=4, val_every=2, log_every=1))

    def run(name):
        monkeypatch.setattr(sys, "argv", ["train_gqa_docs.py", "--steps", "12", "--out", str(tmp_path / name)])
        script.main()

    run("whole")
    true_batch = script.batch

    def stopped_at_7(stream, step):
        if step == 7:
            raise KeyboardInterrupt
        return true_batch(stream, step)

    monkeypatch.setattr(script, "batch", stopped_at_7)
    with pytest.raises(KeyboardInterrupt):
        run("broken")
    assert json.loads((tmp_path / "broken" / "status.json").read_text())["state"] == "running"
    monkeypatch.setattr(script, "batch", true_batch)
    with monkeypatch.context() as other:
        other.setattr(script, "SEED", 2)
        with pytest.raises(SystemExit, match="unfinished run with other settings"):
            run("broken")
    run("broken")
    whole, broken = (tmp_path / name for name in ("whole", "broken"))
    for step in (0, 2, 12):
        file = f"checkpoint-{step}/model.safetensors"
        assert (whole / file).read_bytes() == (broken / file).read_bytes()

    def without_time(rows):
        return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]

    assert without_time(metrics(whole)) == without_time(metrics(broken))
