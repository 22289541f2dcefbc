"""Logs written by the tools themselves: Lightning's CSVLogger, trackio, W&B offline; those of transformers' Trainer are
in test_runs_joining.py.
"""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from wisca_core.errors import UnreadableInput
from wisca_core.runs import Logs, read


def test_lightnings_csv_logger(tmp_path):
    from lightning.pytorch.loggers import CSVLogger

    for seed in (1, 2):
        logger = CSVLogger(tmp_path, name="runs", version=f"seed-{seed}", flush_logs_every_n_steps=1)
        logger.log_hyperparams({"lr": 0.1 * seed, "seed": seed, "model": {"width": 8}})
        for step in range(5):
            logger.log_metrics({"train_loss": 1 / (step + 1), "epoch": 0}, step)
            if step % 2 == 0:
                logger.log_metrics({"val_loss": 2.0 - step, "epoch": 0}, step)
        logger.log_metrics({"train_loss": math.nan}, 5)
        logger.save()
    runs = {run.name: run for run in read([tmp_path]).runs}
    assert set(runs) == {"runs/seed-1", "runs/seed-2"}
    run = runs["runs/seed-2"]
    assert (run.kind, run.step_column) == ("csv", "step")
    # the CSV of a NaN says "nan", an empty cell says that nothing was logged
    assert run.series["train_loss"].step.tolist() == [0, 1, 2, 3, 4, 5] and math.isnan(
        run.series["train_loss"].value[-1]
    )
    assert run.series["val_loss"].step.tolist() == [0, 2, 4] and run.series["val_loss"].value.tolist() == [
        2.0,
        0.0,
        -2.0,
    ]
    assert dict(run.config) == {"lr": 0.2, "seed": 2, "model.width": 8}
    assert "1 NaN value kept: 'train_loss' 1×." in run.remarks


def test_trackios_project_file_and_its_growth(tmp_path):
    script = """
import sys, trackio
for seed in (1, 2):
    trackio.init(project="demo", name=f"seed-{seed}", config={"lr": 0.1, "seed": seed},
                 embed=False, auto_log_cpu=False, auto_log_gpu=False)
    for step in range(4):
        trackio.log({"train/loss": seed / (step + 1), "bad": float("nan"), "far": float("inf"), "word": "x",
                     "inner": {"a": step}}, step=step * 10)
    trackio.finish()
"""
    environment = os.environ | {"TRACKIO_DIR": str(tmp_path), "HF_HUB_OFFLINE": "1", "GRADIO_ANALYTICS_ENABLED": "0"}
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, env=environment)
    logs = Logs([tmp_path])
    logs.poll()
    runs = {run.name: run for run in logs.runs}
    assert set(runs) == {"demo/seed-1", "demo/seed-2"} and all(run.kind == "trackio" for run in runs.values())
    run = runs["demo/seed-2"]
    assert run.series["train/loss"].step.tolist() == [0, 10, 20, 30] and run.series["train/loss"].value.tolist() == [
        2,
        1,
        2 / 3,
        0.5,
    ]
    assert run.series["inner.a"].value.tolist() == [0, 1, 2, 3]
    assert all(map(math.isnan, run.series["bad"].value)) and run.series["far"].value.tolist() == [math.inf] * 4
    assert (run.series["train/loss"].wall_time > 1.7e9).all()
    assert dict(run.config) == {"lr": 0.1, "seed": 2}
    assert run.counts["text"] == 8 and run.counts["number_as_text"] == 0

    import sqlite3

    with sqlite3.connect(tmp_path / "demo.db") as database:
        database.execute(
            "insert into metrics (run_id, timestamp, run_name, step, metrics) select run_id, timestamp, run_name, 40, "
            "? from metrics "
            "where run_name = 'seed-2' limit 1",
            ('{"train/loss": 0.25}',),
        )
        database.execute(
            "insert into metrics (run_id, timestamp, run_name, step, metrics) values ('x', '', 'seed-2', 50, 'not "
            "json')"
        )
    database.close()
    assert logs.poll()
    run = {run.name: run for run in logs.runs}["demo/seed-2"]
    assert run.series["train/loss"].step.tolist() == [0, 10, 20, 30, 40] and run.counts["damaged"] == 1


@pytest.fixture(scope="module")
def wandb_file(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("wandb")
    script = """
import sys, wandb
settings = wandb.Settings(x_disable_stats=True, x_disable_meta=True, console="off", silent=True)
run = wandb.init(project="p", name="the name", dir=sys.argv[1], mode="offline", settings=settings,
                 config={"lr": 0.1, "seed": 7, "model": {"d": 4}})
for step in range(1500):
    run.log({"train/loss": 1 / (step + 1), "inner": {"a": step}, "word": "x" * 40, "bad": float("nan"),
             "far": float("-inf")})
run.log({"picture": wandb.Histogram([1, 2, 3]), "train/loss": 5.0}, step=2000)
run.finish()
"""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")} | {"WANDB_MODE": "offline"}
    subprocess.run([sys.executable, "-c", script, str(out)], check=True, capture_output=True, env=environment)
    return next(out.rglob("*.wandb"))


def test_wandbs_offline_file(wandb_file):
    run = read([wandb_file.parents[2]]).runs[0]  # the folder holds console logs and links of the same run too
    assert len(read([wandb_file.parents[2]]).runs) == 1
    assert (run.name, run.kind) == ("the name", "wandb")
    assert run.series["train/loss"].step.tolist() == [*range(1500), 2000]
    assert run.series["train/loss"].value.tolist() == [*(1 / (step + 1) for step in range(1500)), 5.0]
    assert run.series["inner.a"].value.tolist() == list(range(1500))
    assert run.series["bad"].n_nan == 1500 and run.series["far"].n_infinite == 1500
    assert {"lr": 0.1, "seed": 7, "model.d": 4}.items() <= dict(run.config).items()
    assert run.counts["text"] == 1500 and run.counts["histogram"] == 1 and run.counts["damaged"] == 0


def test_wandbs_file_damaged_or_cut_loses_what_is_damaged(wandb_file, tmp_path):
    whole = wandb_file.read_bytes()
    hurt = bytearray(whole)
    first = whole.index(b"train/loss", len(whole) // 2)
    for place in (
        first,
        whole.index(b"train/loss", first + 1),
    ):  # one is in the history, the other in the summary that follows it
        hurt[place] ^= 0x01
    (tmp_path / "run-a.wandb").write_bytes(hurt)
    run = read([tmp_path / "run-a.wandb"]).runs[0]
    assert run.counts["damaged"] == 2 and len(run.series["train/loss"]) == 1500
    (tmp_path / "run-b.wandb").write_bytes(whole[: whole.index(b"train/loss", len(whole) // 3) + 3])  # inside a record
    run = read([tmp_path / "run-b.wandb"]).runs[0]
    assert run.counts["cut"] == 1 and run.counts["damaged"] == 0
    n = len(run.series["train/loss"])
    assert 300 < n < 700 and run.series["train/loss"].step.tolist() == list(range(n))


def test_wandbs_file_is_followed(wandb_file, tmp_path):
    whole, path = wandb_file.read_bytes(), tmp_path / "run-a.wandb"
    logs = Logs([path])
    lengths = []
    for part in (0.3, 0.31, 0.7, 1.0):
        path.write_bytes(whole[: int(len(whole) * part)])
        os.utime(path, (0, lengths[-1] if lengths else 1))
        logs.poll()
        lengths.append(len(logs.runs[0].series["train/loss"]))
    assert lengths == sorted(lengths) and lengths[-1] == 1501
    assert logs.runs[0].series["train/loss"].step.tolist() == [*range(1500), 2000]


def test_a_file_named_wandb_that_is_none_is_refused(tmp_path):
    (tmp_path / "run-x.wandb").write_bytes(b"something else")
    with pytest.raises(UnreadableInput, match="named .wandb"):
        read([tmp_path / "run-x.wandb"])
