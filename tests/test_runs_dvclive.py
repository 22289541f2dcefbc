"""DVCLive's folders, laid out as its version 3.49.1 wrote them (the package brings seventy others, so it is not
installed here).
"""

import math

from wisca_core.runs import read
from wisca_core.runs.groups import seed_of


def written(folder, seed: int, lines: int = 4) -> None:
    metrics = folder / "plots" / "metrics"
    (metrics / "train").mkdir(parents=True)
    rows = [f"179597696{k}037\t{10 * k}\t{seed / (k + 1)}\n" for k in range(lines)]
    (metrics / "train" / "loss.tsv").write_text("timestamp\tstep\tloss\n" + "".join(rows))
    (metrics / "acc.tsv").write_text("step\tacc\n0\t0.5\n10\tnan\nbroken\n")
    (folder / "metrics.json").write_text('{"step": 30}\n')
    (folder / "params.yaml").write_text(f"lr: 0.1\nseed: {seed}\n")


def test_a_folder_is_one_run_with_its_parameters_steps_and_times(tmp_path):
    for seed in (1, 2):
        written(tmp_path / f"dvclive-{seed}", seed)
    logs = read([tmp_path])
    runs = {run.name: run for run in logs.runs}
    assert set(runs) == {"dvclive-1", "dvclive-2"} and not logs.problems
    run = runs["dvclive-2"]
    assert set(run.series) == {"train/loss", "acc"}
    assert run.series["train/loss"].step.tolist() == [0, 10, 20, 30]
    assert run.series["train/loss"].value.tolist() == [2.0, 1.0, 2 / 3, 0.5]
    assert run.series["train/loss"].wall_time[0] == 1795976960.037
    assert run.series["acc"].step.tolist() == [0, 10] and math.isnan(run.series["acc"].value[1])
    assert dict(run.config) == {"lr": 0.1, "seed": 2} and seed_of(run) == "2"
    assert any("1" in remark for remark in run.remarks)  # the damaged line is counted


def test_parameters_that_are_no_yaml_leave_the_metrics(tmp_path):
    written(tmp_path / "live", 1)
    (tmp_path / "live" / "params.yaml").write_text("a: &a [*a, *a]\nb: [")
    (run,) = read([tmp_path]).runs
    assert not run.config and len(run.series["train/loss"].step) == 4
    assert any(remark.startswith("settings are passed over: params.yaml beside it") for remark in run.remarks)
