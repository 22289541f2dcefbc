"""``wisca runs``."""

import json
import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest

from wisca_core.cli import main


@pytest.fixture
def logs(tmp_path, monkeypatch):
    monkeypatch.setenv("WISCA_HOME", str(tmp_path / "home"))
    folder = tmp_path / "logs"
    for arm, shift in (("base", 0.0), ("wisca", -0.25)):
        for seed in (1, 2):
            place = folder / f"{arm}-seed-{seed}"
            place.mkdir(parents=True)
            (place / "hparams.yaml").write_text(f"arm: {arm}\nseed: {seed}\n")
            (place / "metrics.csv").write_text(
                "step,loss,note\n" + "".join(f"{s},{3 - s + seed + shift},\n" for s in range(3)) + "3,nan,hello\n"
            )
    return folder


def test_the_summary_names_runs_groups_settings_and_what_was_not_read(logs, capsys):
    (logs / "broken.csv").write_text("")
    assert main(["runs", str(logs)]) == 0
    out = capsys.readouterr().out
    assert "4 runs, 16 values, 1 metric" in out and "arm wisca" in out and "1 NaN value kept: 'loss'" in out
    assert "1 value is text and was skipped: 'note'" in out and "an empty file" in out


def test_the_json_document_holds_the_same(logs, capsys):
    assert main(["runs", str(logs), "--json", "--metric", "loss"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["format"], found["version"], found["metric"]) == ("wisca-runs", 1, "loss")
    run = next(run for run in found["runs"] if run["run"] == "wisca-seed-2")
    assert run["config"] == {"arm": "wisca", "seed": 2} and run["seed"] == "2" and run["step_column"] == "step"
    assert run["metrics"]["loss"] == {
        "points": 4,
        "first_step": 0.0,
        "last_step": 3.0,
        "final": None,
        "best": 2.75,
        "best_step": 2.0,
        "nan": 1,
        "infinite": 0,
        "repeated_steps": 0,
        "steps_back": 0,
    }
    assert [group["not_finite"] for group in found["groups"]] == [2, 2]


def test_the_csv_is_the_long_table(logs, tmp_path, capsys):
    out = tmp_path / "all.csv"
    assert main(["runs", str(logs), "--csv", str(out)]) == 0
    table = pd.read_csv(out)
    assert list(table.columns) == ["run", "step", "metric", "value", "wall_time", "source"] and len(table) == 16
    assert (
        table[table["run"] == "base-seed-1"]["value"].tolist()[:3] == [4.0, 3.0, 2.0]
        and table["value"].isna().sum() == 4
    )
    assert main(["runs", str(logs), "--csv", str(out)]) == 0  # an earlier table is replaced
    out.write_text("something of mine")
    assert main(["runs", str(logs), "--csv", str(out)]) == 2 and out.read_text() == "something of mine"
    assert not list(tmp_path.glob(".*part"))


def test_wrong_paths_metrics_and_options_are_refused(logs, capsys):
    assert main(["runs", str(logs / "nowhere")]) == 2
    assert main(["runs", str(logs), "--metric", "nope"]) == 2
    assert "they have loss" in capsys.readouterr().err
    assert main(["runs", str(logs), "--follow", "--json"]) == 2
    assert main(["runs", str(logs), "--step-column", "note"]) == 2


def test_the_command_reads_a_log_with_another_step_column(logs, capsys):
    (logs / "x.csv").write_text("step,tokens,loss\n1,100,3\n2,200,2\n")
    assert main(["runs", str(logs / "x.csv"), "--step-column", "tokens", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"][0]["metrics"]["loss"]["last_step"] == 200.0


def test_following_prints_new_values_until_it_is_stopped(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1, "loss": 3}\n')
    # (a shell without job control starts what is in its background with interrupts ignored)
    code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    code += "from wisca_core.cli import main, runs; runs.FOLLOW_SECONDS = 0.1; sys.exit(main(sys.argv[1:]))"
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", code, "runs", "--follow", str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"WISCA_HOME": str(tmp_path / "home")},
    )
    try:
        assert process.stdout.readline() == "log: step 1, loss 3, best 3, 1 values\n"
        with path.open("a") as file:
            file.write('{"step": 2, "loss": 2}\n')
        began = time.monotonic()
        assert process.stdout.readline() == "log: step 2, loss 2, best 2, 2 values\n" and time.monotonic() - began < 60
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    finally:
        process.kill()
