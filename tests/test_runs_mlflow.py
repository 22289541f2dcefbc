"""MLflow's stores, written by mlflow itself, and SQLite files that are none or never end."""

import math
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from wisca_core.errors import BadOption, UnreadableInput
from wisca_core.runs import Logs, read
from wisca_core.runs.groups import by_configuration, seed_of

_WRITE = """
import math, os, sys, mlflow
os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
for uri in (f"sqlite:///{sys.argv[1]}/db/mlflow.db", f"file://{sys.argv[1]}/files/mlruns"):
    mlflow.set_tracking_uri(uri)
    mlflow.set_experiment("sweep")
    for seed in (1, 2):
        with mlflow.start_run(run_name=f"trial-{seed}"):
            mlflow.log_params({"lr": 0.1, "seed": seed, "on": True, "name": "1_000"})
            for k in range(4):
                mlflow.log_metrics({"train/loss": seed / (k + 1), "tokens": k * 512}, step=k * 10)
            mlflow.log_metric("bad", math.nan, step=5)
            mlflow.log_metric("far", math.inf, step=5)
    with mlflow.start_run(run_name="gone") as run:
        mlflow.log_metric("train/loss", 9.0, step=0)
    mlflow.delete_run(run.info.run_id)
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("mlflow")
    (out / "db").mkdir()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW")} | {"GIT_PYTHON_REFRESH": "quiet"}
    subprocess.run([sys.executable, "-c", _WRITE, str(out)], check=True, capture_output=True, env=environment)
    return out


@pytest.mark.parametrize("where", ["db/mlflow.db", "db", "files/mlruns", "files"])
def test_each_run_with_its_parameters_and_its_steps_as_logged(written, where):
    logs = read([written / where])
    runs = {run.name: run for run in logs.runs}
    assert set(runs) == {"sweep/trial-1", "sweep/trial-2"}  # the deleted one is left out
    run = runs["sweep/trial-2"]
    assert run.series["train/loss"].step.tolist() == [0, 10, 20, 30]
    assert run.series["train/loss"].value.tolist() == [2.0, 1.0, 2 / 3, 0.5]
    assert (run.series["train/loss"].wall_time > 1.7e9).all()
    assert math.isnan(run.series["bad"].value[0]) and run.series["far"].value.tolist() == [math.inf]
    assert dict(run.config) == {"lr": 0.1, "seed": 2, "on": True, "name": "1_000"} and seed_of(run) == "2"
    assert list(map(len, by_configuration(logs.runs).values())) == [2]
    said = [remark for run in logs.runs for remark in run.remarks] + [why for _, why in logs.problems]
    assert any("deleted" in one for one in said)


def test_a_database_that_grows_gives_only_what_is_new(written, tmp_path):
    path = tmp_path / "mlflow.db"
    path.write_bytes((written / "db" / "mlflow.db").read_bytes())
    logs = Logs([path])
    logs.poll()
    assert not logs.poll()
    with sqlite3.connect(path) as database:
        database.execute(
            "insert into metrics (key, value, timestamp, run_uuid, step, is_nan) "
            "select key, 0.25, timestamp, run_uuid, 40, 0 from metrics where key = 'train/loss' and step = 30 limit 1"
        )
    database.close()
    assert logs.poll()
    assert sorted(len(run.series["train/loss"]) for run in logs.runs) == [4, 5]


def test_values_that_threads_wrote_out_of_turn_are_read_in_the_order_of_their_times(written, tmp_path):
    path = tmp_path / "mlflow.db"
    path.write_bytes((written / "db" / "mlflow.db").read_bytes())
    with sqlite3.connect(path) as database:
        insert = (
            "insert into metrics (key, value, timestamp, run_uuid, step, is_nan) "
            "select 'late', ?, ?, run_uuid, ?, 0 from runs where name = 'trial-1'"
        )
        database.executemany(insert, [(k / 10, 1000 + k, k) for k in (0, 2, 1, 3)])
    database.close()
    run = next(run for run in read([path]).runs if "late" in run.series)
    assert run.series["late"].step.tolist() == [0, 1, 2, 3] and not any("go back" in one for one in run.remarks)
    files = next(path for path in (written / "files").rglob("metrics") if (path.parent / "params" / "lr").exists())
    (files / "late").write_text("".join(f"{1000 + k} {k / 10} {k}\n" for k in (0, 2, 1, 3)))
    run = next(run for run in read([written / "files"]).runs if "late" in run.series)
    (files / "late").unlink()
    assert run.series["late"].step.tolist() == [0, 1, 2, 3] and not any("go back" in one for one in run.remarks)


def test_a_step_column_is_a_logged_metric_or_refused(written):
    with pytest.raises(BadOption, match="no_such"):
        read([written / "db"], step_column="no_such")
    run = read([written / "db"], step_column="tokens").runs[0]
    assert run.series["train/loss"].step.tolist() == [0, 512, 1024, 1536]
    assert any("drawn over 'tokens'" in remark and "2 values" in remark for remark in run.remarks)


def test_views_that_never_end_and_other_databases_are_refused(tmp_path):
    for name, statement in (
        (
            "trackio.db",
            "create view metrics as with recursive r(id, run_name, step, metrics, timestamp) as "
            "(select 1, 'a', 0, '{}', '' union all select id + 1, 'a', 0, '{}', '' from r) select * from r",
        ),
        ("other.db", "create table metrics (a)"),
    ):
        with sqlite3.connect(tmp_path / name) as database:
            database.execute(statement)
        database.close()
        with pytest.raises(UnreadableInput, match="without the tables of trackio or MLflow"):
            read([tmp_path / name])


def test_a_trackio_file_whose_ids_are_text_is_read_in_order(tmp_path):
    with sqlite3.connect(tmp_path / "p.db") as database:
        database.execute("create table metrics (id text, run_name text, step integer, timestamp text, metrics text)")
        for k in range(12):
            database.execute("insert into metrics values (?, 'a', ?, '', ?)", (f"x{k}", k, f'{{"loss": {k}.5}}'))
    database.close()
    run = read([tmp_path / "p.db"]).runs[0]
    assert run.series["loss"].value.tolist() == [k + 0.5 for k in range(12)]
