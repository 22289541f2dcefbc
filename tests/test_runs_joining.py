"""One training in several logs is one run, and no two that differ in more than their seed are pooled: folders written
by transformers' Trainer with its trackers, by SummaryWriter and by Lightning.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from wisca_core.errors import BadOption
from wisca_core.runs import Logs, read
from wisca_core.runs.groups import by_configuration, seed_of

_TRAIN = """
import os, pathlib, sys, torch, transformers
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments
transformers.utils.logging.set_verbosity_error()
torch.set_num_threads(1)
out = pathlib.Path(sys.argv[1])
def train(folder, seed, rate, report, **more):
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                                         num_attention_heads=2, num_key_value_heads=1, head_dim=4))
    rows = [{"input_ids": torch.randint(0, 16, (8,)), "labels": torch.randint(0, 16, (8,))} for _ in range(8)]
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder / "tb")
    steps = dict(max_steps=40, logging_steps=10, save_steps=40, eval_steps=20)
    arguments = TrainingArguments(output_dir=str(folder), seed=seed, eval_strategy="steps",
                                  per_device_train_batch_size=2, report_to=report, use_cpu=True, disable_tqdm=True,
                                  learning_rate=rate, **steps | more)
    Trainer(model=model, args=arguments, train_dataset=rows, eval_dataset=rows[:2]).train()
for rate in ("1e-3", "1e-2"):
    for seed in (1, 2, 3):
        train(out / "six" / f"lr{rate}" / f"seed-{seed}", seed, float(rate), ["tensorboard"] if seed == 1 else [])
train(out / "steps", 5, 0.05, ["tensorboard"], max_steps=6, logging_steps=1, save_steps=2, eval_steps=3)
os.environ["WANDB_DIR"], os.environ["TRACKIO_DIR"] = str(out / "all"), str(out / "all" / "trackio")
(out / "all").mkdir()
train(out / "all", 5, 0.01, ["tensorboard", "wandb", "trackio"], run_name="mine", project="proj")
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("trained")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")} | {
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
        "HF_HUB_OFFLINE": "1",
        "GRADIO_ANALYTICS_ENABLED": "0",
    }
    subprocess.run([sys.executable, "-c", _TRAIN, str(out)], check=True, capture_output=True, env=environment)
    return out


def history(folder: Path) -> list[dict]:
    return json.loads((folder / "checkpoint-40" / "trainer_state.json").read_text())["log_history"]


def test_a_trainers_four_logs_are_one_run_with_the_true_steps_and_all_settings(trained):
    runs = read([trained / "all"]).runs
    assert len(runs) == 1
    run = runs[0]
    assert run.kind == "trainer_state" and set(run.also) == {"wandb", "trackio", "tensorboard"}
    said = [(row["step"], row["loss"]) for row in history(trained / "all") if "loss" in row]
    assert list(zip(run.series["loss"].step, run.series["loss"].value)) == said and len(said) == 4
    assert "train/loss" not in run.series and run.series["eval_loss"].step.tolist() == [20, 40]
    assert run.config["learning_rate"] == 0.01 and seed_of(run) == "5"
    assert any("one training in 4 logs" in remark for remark in run.remarks)


@pytest.mark.parametrize("where", ["trackio", "wandb"])
def test_a_trackers_own_counter_is_not_the_step_and_can_be_asked_for(trained, where):
    run = read([trained / "all" / where]).runs[0]
    assert (run.kind, run.step_column) == (where, "train/global_step")
    assert run.series["train/loss"].step.tolist() == [10, 20, 30, 40]
    assert run.series["eval/loss"].step.tolist() == [20, 40]
    assert any("train/global_step" in remark and "counts calls" in remark for remark in run.remarks)
    own = read([trained / "all" / where], step_column="_step").runs[0]
    assert own.series["train/loss"].step.tolist() == [0, 1, 3, 4]
    with pytest.raises(BadOption, match="no_such"):
        read([trained / "all" / where], step_column="no_such")


def test_two_rates_with_three_seeds_are_two_groups_though_only_some_logs_say_the_rate(trained):
    runs = read([trained / "six"]).runs
    assert len(runs) == 6  # the two with TensorBoard beside them are no others
    groups = by_configuration(runs)
    found = sorted(sorted(run.name.split("/")[-2] for run in group) for group in groups.values())
    assert all(len(set(rates)) == 1 for rates in found)
    # and without a word of the rates in names or settings, the logged rates alone tell them apart
    renamed = [run.with_name(f"seed-{k}") for k, run in enumerate(runs) if not run.also]
    found = [[run.source for run in group] for group in by_configuration(renamed).values()]
    assert sorted(map(len, found)) == [2, 2]
    assert all(len({"lr1e-3" in source for source in group}) == 1 for group in found)


def test_two_trainings_of_one_seed_stay_two_each_with_its_own_logs(trained, tmp_path):
    import shutil

    for name in ("a", "b"):
        shutil.copytree(trained / "six" / "lr1e-2" / "seed-1", tmp_path / name)
    runs = read([tmp_path]).runs
    assert sorted(run.name for run in runs) == ["a", "b"] and all(run.also == ("tensorboard",) for run in runs)


def test_trainer_state_gives_the_history_of_the_newest_checkpoint_once(trained):
    (state,) = read([trained / "steps"]).runs  # its TensorBoard events are the same training, and joined
    (events,) = read([trained / "steps" / "tb"]).runs
    assert (state.kind, state.also, events.kind) == ("trainer_state", ("tensorboard",), "tensorboard")
    assert state.source.endswith("checkpoint-6/trainer_state.json")
    assert state.series["loss"].step.tolist() == [1, 2, 3, 4, 5, 6]
    assert state.series["eval_loss"].step.tolist() == [3, 6]
    history = json.loads(Path(state.source).read_text())["log_history"]
    assert state.series["loss"].value.tolist() == [row["loss"] for row in history if "loss" in row]
    assert state.config["max_steps"] == 6
    assert events.series["train/loss"].step.tolist() == [1, 2, 3, 4, 5, 6]
    assert seed_of(events) == "5"  # out of the arguments that the Trainer writes as text
    assert events.series["train/loss"].value == pytest.approx(state.series["loss"].value, rel=1e-6)


def test_the_whole_history_is_read_when_one_checkpoint_is_named(trained):
    run = read([trained / "steps" / "checkpoint-4"]).runs[0]
    assert run.series["loss"].step.tolist() == [1, 2, 3, 4]


def test_a_newer_checkpoint_replaces_the_history(trained, tmp_path):
    (tmp_path / "checkpoint-2").mkdir()
    (tmp_path / "checkpoint-2" / "trainer_state.json").write_bytes(
        (trained / "steps" / "checkpoint-2" / "trainer_state.json").read_bytes()
    )
    logs = Logs([tmp_path])
    logs.poll()
    assert logs.runs[0].series["loss"].step.tolist() == [1, 2]
    (tmp_path / "checkpoint-6").mkdir()
    (tmp_path / "checkpoint-6" / "trainer_state.json").write_bytes(
        (trained / "steps" / "checkpoint-6" / "trainer_state.json").read_bytes()
    )
    assert logs.poll()
    assert len(logs.runs) == 1 and logs.runs[0].series["loss"].step.tolist() == [1, 2, 3, 4, 5, 6]


def test_add_hparams_and_add_scalars_belong_to_the_run_above_them(tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    for k, rate in enumerate((0.1, 0.2)):
        with SummaryWriter(tmp_path / f"run-{k}") as writer:
            for step in range(3):
                writer.add_scalar("loss", rate / (step + 1), step)
                writer.add_scalars("both", {"train": 1.0 + step, "val": 2.0 + step}, step)
            writer.add_hparams({"lr": rate, "name": "x"}, {"hparam/score": rate * 10})
    runs = {run.name: run for run in read([tmp_path]).runs}
    assert set(runs) == {"run-0", "run-1"}
    assert dict(runs["run-1"].config) == {"lr": 0.2, "name": "x"}
    assert runs["run-1"].series["hparam/score"].value.tolist() == [2.0]
    assert runs["run-1"].series["both/val"].value.tolist() == [2.0, 3.0, 4.0]
    assert runs["run-0"].series["loss"].value[0] == pytest.approx(0.1)


def test_lightnings_csv_and_tensorboard_of_one_training_are_one_run(tmp_path):
    from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

    for seed in (1, 2):
        loggers = (CSVLogger(tmp_path, name="csv", version=seed), TensorBoardLogger(tmp_path, name="tb", version=seed))
        for logger in loggers:
            logger.log_hyperparams({"lr": 0.1, "seed": seed})
            for step in range(4):
                logger.log_metrics({"train_loss": seed / (step + 3)}, step)
            logger.save()
            logger.finalize("success")
    runs = read([tmp_path]).runs
    assert len(runs) == 2 and all(run.kind == "csv" and run.also == ("tensorboard",) for run in runs)
    assert [seed_of(run) for run in runs] == ["1", "2"]


def test_wandbs_define_metric_says_over_which_column_a_metric_is_drawn(tmp_path):
    script = """
import sys, wandb
settings = wandb.Settings(x_disable_stats=True, x_disable_meta=True, console="off", silent=True)
run = wandb.init(project="p", name="defined", dir=sys.argv[1], mode="offline", settings=settings)
run.define_metric("val/*", step_metric="seen")
for k in range(3):
    run.log({"loss": 1 / (k + 1), "seen": k * 10})
    run.log({"val/loss": 2.0 - k})
run.finish()
"""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")}
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, capture_output=True, env=environment)
    run = read([tmp_path]).runs[0]
    assert run.series["loss"].step.tolist() == [0, 2, 4]  # nothing was defined for it: W&B's own counter
    assert run.series["val/loss"].step.tolist() == [0, 10, 20]
