"""Tables and console logs: what is read, what is counted, and what a guess says of itself."""

import json
import math
import os
from datetime import datetime

import numpy as np
import pandas as pd
import pytest

from wisca_core.errors import BadOption, UnreadableInput
from wisca_core.runs import Logs, growing, long_table, read
from wisca_core.runs.collect import MemoryBudget
from wisca_core.runs.csv_table import Csv
from wisca_core.runs.writing import csv_pieces


def only(path, **options):
    runs = read([path], **options).runs
    assert len(runs) == 1
    return runs[0]


def write(path, text):
    path.write_text(text)
    return path


# --- CSV --------------------------------------------------------------------------------------------------------------


def test_a_csv_is_read_to_the_last_digit_and_in_order(tmp_path):
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {"step": np.arange(3000) * 7, "loss": rng.normal(size=3000) * 10.0 ** rng.integers(-300, 300, 3000), "lr": 0.1}
    )
    table.to_csv(tmp_path / "log.csv", index=False)
    run = only(tmp_path / "log.csv")
    assert (
        run.series["loss"].value.tolist() == table["loss"].tolist()
        and run.series["loss"].step.tolist() == table["step"].tolist()
    )
    assert run.step_column == "step" and not run.remarks


def test_pieces_give_the_same_as_the_whole(tmp_path, monkeypatch):
    write(
        tmp_path / "log.csv",
        "step,loss,note\n" + "".join(f"{i},{i / 7},{'a b' if i % 3 else ''}\n" for i in range(500)),
    )
    whole = only(tmp_path / "log.csv")
    monkeypatch.setattr(Csv, "piece_bytes", 97)
    pieces = only(tmp_path / "log.csv")
    assert len(pieces.series["loss"].chunks) > 20
    assert pieces.series["loss"].value.tolist() == whole.series["loss"].value.tolist() == [i / 7 for i in range(500)]
    assert pieces.counts == whole.counts and pieces.counts["text"] == 333


def test_text_nan_and_bad_rows_in_a_csv_are_counted(tmp_path):
    path = write(
        tmp_path / "log.csv",
        "step,loss,acc\n0,1.5,0.1\n1,oops,0.2\n2,nan,\n3,-inf,0.4\n4,1,2,3,4\n,9.0,0.5\nx,9.5,0.6\n6,0.5,0.7\n",
    )
    run = only(path)
    loss = run.series["loss"]
    assert loss.step.tolist() == [0, 2, 3, 6]
    assert loss.value[0] == 1.5 and math.isnan(loss.value[1]) and loss.value[2] == -math.inf and loss.value[3] == 0.5
    assert run.series["acc"].step.tolist() == [0, 1, 3, 6]
    assert (run.counts["text"], run.counts["damaged"], run.counts["no_step"]) == (1, 1, 2)
    said = " ".join(run.remarks)
    assert (
        "1 value is text" in said and "'loss'" in said and "1 damaged record" in said and "2 rows have no step" in said
    )


def test_a_step_column_is_guessed_said_and_can_be_corrected(tmp_path):
    path = write(tmp_path / "log.csv", "time_s,it_no,loss\n0.5,0,3\n1.0,5,2\n1.5,10,1\n")
    guessed = only(path)
    assert guessed.step_column == "it_no" and guessed.series["loss"].step.tolist() == [0, 5, 10]
    assert any("'it_no' is taken as the step" in remark for remark in guessed.remarks)
    corrected = only(path, step_column="time_s")
    assert corrected.series["loss"].step.tolist() == [0.5, 1.0, 1.5] and not corrected.remarks
    with pytest.raises(BadOption, match="'nope' is no column of numbers.*time_s, it_no, loss"):
        read([path], step_column="nope")


def test_without_a_step_column_rows_are_counted_and_that_is_said(tmp_path):
    run = only(write(tmp_path / "log.csv", "loss,acc\n3.5,0.1\n2.5,0.05\n1.5,0.7\n"))
    assert run.step_column == "" and run.series["acc"].step.tolist() == [0, 1, 2]
    assert any("no step column was found" in remark and "loss, acc" in remark for remark in run.remarks)


def test_a_column_that_turns_into_text_and_back_loses_only_the_text(tmp_path, monkeypatch):
    monkeypatch.setattr(Csv, "piece_bytes", 64)
    rows = [f"{i},{'broken' if 40 <= i < 43 else i / 3}\n" for i in range(100)]
    run = only(write(tmp_path / "log.csv", "step,loss\n" + "".join(rows)))
    assert run.series["loss"].step.tolist() == [i for i in range(100) if not 40 <= i < 43] and run.counts["text"] == 3


def test_a_header_repeated_by_a_restart_is_no_text(tmp_path):
    run = only(write(tmp_path / "log.csv", "step,loss\n0,3\n1,2\nstep,loss\n1,2.5\n2,1\n"))
    assert run.series["loss"].value.tolist() == [3, 2, 2.5, 1] and (run.counts["header"], run.counts["text"]) == (1, 0)
    assert run.series["loss"].n_repeated == 1


def test_run_and_seed_columns_tell_runs_apart(tmp_path):
    text = "arm,seed,step,loss\n" + "".join(
        f"{arm},{seed},{s},{s + seed}\n" for s in range(3) for arm in ("base", "wisca") for seed in (1, 2)
    )
    runs = {run.name: run for run in read([write(tmp_path / "all.csv", text)]).runs}
    assert set(runs) == {"base, seed 1", "base, seed 2", "wisca, seed 1", "wisca, seed 2"}
    assert runs["wisca, seed 2"].series["loss"].value.tolist() == [2, 3, 4]
    assert dict(runs["wisca, seed 2"].config) == {"arm": "wisca", "seed": 2}


def test_a_chart_exported_from_wandb_gives_one_run_a_column(tmp_path):
    names = ("Step", *(f"lively-sun-1 - train/loss{end}" for end in ("", "__MIN", "__MAX")), "a - b - train/loss")
    head = ",".join(f'"{name}"' for name in names)
    runs = {
        r.name: r
        for r in read(
            [write(tmp_path / "export.csv", head + '\n"0","3","2.5","3.5","4"\n"10","2","1.5","2.5",""\n')]
        ).runs
    }
    assert set(runs) == {"lively-sun-1", "a - b"}
    assert runs["lively-sun-1"].series["train/loss"].value.tolist() == [3, 2] and set(runs["lively-sun-1"].series) == {
        "train/loss",
        "train/loss__MIN",
        "train/loss__MAX",
    }
    assert runs["a - b"].series["train/loss"].step.tolist() == [0]


def test_parquet_history_with_times_lists_and_missing_values(tmp_path):
    table = pd.DataFrame(
        {
            "_step": [0, 1, 2],
            "_timestamp": [1.7e9, 1.7e9 + 5, 1.7e9 + 9],
            "loss": [3.0, None, 1.0],
            "word": ["a", "b", "c"],
            "hist": [[1, 2], None, [3]],
        }
    )
    table.to_parquet(tmp_path / "history.parquet")
    run = only(tmp_path / "history.parquet")
    assert run.kind == "parquet" and run.step_column == "_step"
    assert run.series["loss"].step.tolist() == [0, 2] and run.series["loss"].wall_time.tolist() == [1.7e9, 1.7e9 + 9]
    assert set(run.series) == {"loss"} and run.counts["text"] == 3 and run.counts["not_scalar"] == 2
    (tmp_path / "bad.parquet").write_bytes((tmp_path / "history.parquet").read_bytes()[:-30])
    with pytest.raises(UnreadableInput, match="bad.parquet: not a sound parquet file"):
        read([tmp_path / "bad.parquet"])


# --- JSON -------------------------------------------------------------------------------------------------------------


def test_json_lines_with_damage_text_nested_and_nan(tmp_path):
    lines = [
        '{"step": 0, "loss": 3, "inner": {"a": 1}, "time": "2026-01-02T03:04:05+00:00"}',
        '{"step": 1, "loss": NaN, "word": "x"}',
        '{"step": 2, "lo',
        '{"step": 3, "loss": "1.5", "list": [1, 2]}',
        '{"loss": 9}',
        "[1]",
        '{"step": 4, "loss": true}',
    ]
    run = only(write(tmp_path / "log.jsonl", "\n".join(lines) + "\n"))
    loss = run.series["loss"]
    assert (
        loss.step.tolist() == [0, 1, 3, 4]
        and loss.value[[0, 2, 3]].tolist() == [3, 1.5, 1]
        and math.isnan(loss.value[1])
    )
    assert (
        run.series["inner.a"].value.tolist() == [1]
        and loss.wall_time[0] == datetime.fromisoformat("2026-01-02T03:04:05+00:00").timestamp()
    )
    c = run.counts
    assert (c["damaged"], c["text"], c["number_as_text"], c["not_scalar"], c["no_step"]) == (2, 1, 1, 1, 1)


def test_a_json_list_of_rows(tmp_path):
    run = only(write(tmp_path / "log.json", json.dumps([{"step": i, "loss": i / 2} for i in range(5)])))
    assert run.kind == "json" and run.series["loss"].value.tolist() == [0, 0.5, 1, 1.5, 2]


def test_our_own_run_folder_and_a_newer_version_refused(tmp_path):
    from wisca_app.state import SAMPLE

    run = only(SAMPLE)
    rows = [json.loads(line) for line in (SAMPLE / "metrics.jsonl").read_text().splitlines()[1:]]
    for metric in ("train_loss", "val_loss"):
        expected = [(row["step"], row[metric], row["seconds"]) for row in rows if row[metric] is not None]
        s = run.series[metric]
        assert list(zip(s.step, s.value, s.wall_time)) == expected
    assert run.config["optimiser.lr"] == 0.002 and not run.remarks
    newer = tmp_path / "new" / "metrics.jsonl"
    newer.parent.mkdir()
    newer.write_text('{"format": "wisca-metrics", "version": 2}\n{"step": 0, "loss": 1}\n')
    with pytest.raises(UnreadableInput, match="wisca-metrics version 2; this program reads version 1"):
        read([newer])


def test_many_cells_of_a_comparison_share_the_spec_above_them(tmp_path):
    (tmp_path / "spec.json").write_text('{"format": "wisca-comparison", "version": 1, "steps": 3}')
    for arm in ("baseline", "wisca"):
        folder = tmp_path / "cells" / f"{arm}-seed-1"
        folder.mkdir(parents=True)
        (folder / "metrics.jsonl").write_text(
            '{"format": "wisca-metrics", "version": 1}\n{"step": 0, "loss": 2.0}\n{"step": 1, "loss": 1.0}\n'
        )
    runs = {run.name: run for run in read([tmp_path]).runs}
    assert set(runs) == {"cells/baseline-seed-1", "cells/wisca-seed-1"} and dict(runs["cells/wisca-seed-1"].config) == {
        "steps": 3
    }


# --- console ----------------------------------------------------------------------------------------------------------


def test_nanogpt_lines(tmp_path, capsys):
    print("tokens per iteration will be: 491,520")
    for iter_num in range(0, 20, 10):
        losses = {"train": 4.1 - iter_num / 10, "val": 4.2}
        # karpathy/nanoGPT, train.py: the two print calls of its loop
        print(f"step {iter_num}: train loss {losses['train']:.4f}, val loss {losses['val']:.4f}")
        for it, lossf, dt, running_mfu in ((iter_num, 4.0, 0.0125, -1.0), (iter_num + 5, float("nan"), 1.5, 0.42)):
            print(f"iter {it}: loss {lossf:.4f}, time {dt * 1000:.2f}ms, mfu {running_mfu * 100:.2f}%")
    print("iter 30: loss ")
    run = only(write(tmp_path / "train.log", capsys.readouterr().out))
    assert run.series["train loss"].value.tolist() == [4.1, 3.1] and run.series["train loss"].step.tolist() == [0, 10]
    assert run.series["loss"].step.tolist() == [0, 5, 10, 15] and run.series["loss"].n_nan == 2
    assert (
        run.series["time (ms)"].value.tolist() == [12.5, 1500.0] * 2
        and run.series["mfu (%)"].value.tolist() == [-100.0, 42.0] * 2
    )
    assert run.counts["other_lines"] == 1 and run.counts["damaged"] == 1 and "nanoGPT" in run.remarks[0]


def test_megatron_lines(tmp_path, capsys):
    for iteration in (100, 200):
        # NVIDIA/Megatron-LM, megatron/training/training.py: log_string of training_log
        log_string = f" [{datetime(2026, 1, 2, 3, 4, 5).strftime('%Y-%m-%d %H:%M:%S.%f')}]"
        log_string += f" iteration {iteration:8d}/{5000:8d} |"
        log_string += f" consumed samples: {iteration * 512:12d} |"
        log_string += f" elapsed time per iteration (ms): {612.34:.1f} |"
        log_string += f" throughput per GPU (TFLOP/s/GPU): {401.25:.1f} |"
        log_string += f" learning rate: {1.5e-4:.6E} |"
        log_string += f" global batch size: {512:5d} |"
        log_string += " {}: {:.6E} |".format("lm loss", 1000 / iteration)
        log_string += f" loss scale: {1.0:.1f} |"
        log_string += f" grad norm: {float('inf'):.3f} |"
        log_string += f" number of skipped iterations: {0:3d} |"
        log_string += f" number of nan iterations: {3:3d} |"
        print(log_string)
    # the same file, evaluate_and_print_results
    string = f" validation loss at {'iteration 200'} | "
    string += "{} value: {:.6E} | ".format("lm loss", 4.5)
    string += "{} PPL: {:.6E} | ".format("lm loss", math.exp(4.5))
    print("-" * (len(string) + 1), string, "-" * (len(string) + 1), sep="\n")
    run = only(write(tmp_path / "slurm.out", capsys.readouterr().out))
    assert run.series["lm loss"].step.tolist() == [100, 200] and run.series["lm loss"].value.tolist() == [10.0, 5.0]
    assert run.series["consumed samples"].value.tolist() == [51200, 102400]
    assert run.series["elapsed time per iteration (ms)"].value.tolist() == [612.3, 612.3]
    assert run.series["learning rate"].value.tolist() == [1.5e-4] * 2 and run.series["grad norm"].n_infinite == 2
    assert run.series["number of nan iterations"].value.tolist() == [3, 3]
    assert run.series["validation lm loss value"].value.tolist() == [4.5] and run.series[
        "validation lm loss value"
    ].step.tolist() == [200]
    assert run.series["lm loss"].wall_time[0] == datetime(2026, 1, 2, 3, 4, 5).timestamp()
    assert run.counts["other_lines"] == 2 and run.counts["damaged"] == 0


def test_nanochat_lines(tmp_path, capsys):
    # karpathy/nanochat, scripts/base_train.py: the print0 calls of its loop
    print(f"Step {0:05d} | Validation bpb: {1.25:.6f}")
    print(
        f"step {10:05d}/{500:05d} ({2.0:.2f}%) | loss: {3.5:.6f} | lrm: {1.0:.2f} | dt: {0.25 * 1000:.2f}ms | "
        f"tok/sec: {1234567:,} | bf16_mfu: {41.5:.2f}"
        f" | epoch: {'1 pq: 0 rg: 3'} | total time: {30 / 60:.2f}m | eta: {1.0:.1f}m"
    )
    run = only(write(tmp_path / "run.log", capsys.readouterr().out))
    assert run.series["Validation bpb"].value.tolist() == [1.25] and run.series["loss"].value.tolist() == [3.5]
    assert run.series["tok/sec"].value.tolist() == [1234567] and run.series["dt (ms)"].value.tolist() == [250.0]
    assert run.series["total time (min)"].value.tolist() == [0.5] and run.series["loss"].step.tolist() == [10]


def test_the_trainers_console_lines_say_that_they_have_no_step(tmp_path, capsys):
    from transformers import PrinterCallback, TrainerControl, TrainerState, TrainingArguments

    state = TrainerState(is_local_process_zero=True)
    for loss in (2.5, float("nan")):
        PrinterCallback().on_log(
            TrainingArguments(output_dir=str(tmp_path)),
            state,
            TrainerControl(),
            logs={"loss": loss, "grad_norm": 1.25, "epoch": 0.1},
        )
    run = only(write(tmp_path / "train.log", capsys.readouterr().out))
    assert (
        run.series["loss"].step.tolist() == [0, 1]
        and run.series["loss"].n_nan == 1
        and run.series["grad_norm"].value.tolist() == [1.25, 1.25]
    )
    assert any("prints no step" in remark for remark in run.remarks)


def test_a_progress_bars_carriage_returns_end_lines_too(tmp_path):
    run = only(
        write(
            tmp_path / "a.log",
            "  3%|# | 1/9\riter 1: loss 2.5000, time 1.00ms, mfu 1.00%\r\n 5%|\riter 2: loss 2.0000, time 1.00ms, mfu "
            "1.00%",
        )
    )
    assert run.series["loss"].value.tolist() == [2.5, 2.0]


# --- following --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["csv", "jsonl", "log"])
def test_growing_text_is_followed_without_taking_half_a_number(tmp_path, ending):
    line = {
        "csv": "{},{}\n",
        "jsonl": '{{"step": {}, "loss": {}}}\n',
        "log": "iter {}: loss {}, time 1.00ms, mfu 1.00%\n",
    }[ending]
    head = "step,loss\n" if ending == "csv" else ""
    path = write(tmp_path / f"log.{ending}", head + line.format(0, 3.25) + line.format(1, 2.25))
    logs = Logs([path])
    logs.poll()
    assert logs.runs[0].series["loss"].value.tolist() == [3.25, 2.25] and not logs.poll()
    whole = line.format(2, 1.25)
    half = {"csv": 4, "jsonl": 22, "log": 14}[ending]
    with path.open("a") as file:
        file.write(whole[:half])
    logs.poll()
    assert logs.runs[0].series["loss"].value.tolist() == [3.25, 2.25]
    with path.open("a") as file:
        file.write(whole[half:] + line.format(3, 0.25)[:-1])
    logs.poll()
    assert logs.runs[0].series["loss"].value.tolist() == [3.25, 2.25, 1.25]
    os.utime(path, (1, 1))  # nobody writes any more: the last line is whole without its end
    logs.poll()
    assert logs.runs[0].series["loss"].value.tolist() == [3.25, 2.25, 1.25, 0.25]
    assert logs.runs[0].counts["damaged"] == 0


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_a_last_line_taken_too_early_is_read_again(tmp_path, ending, monkeypatch):
    monkeypatch.setattr(growing, "REST_SECONDS", -1.0)
    text = {"csv": "step,loss\n0,3\n1,2", "jsonl": '{"step": 0, "loss": 3}\n{"step": 1, "loss": 2'}[ending]
    rest = {"csv": ".5\n2,1\n", "jsonl": '.5}\n{"step": 2, "loss": 1}\n'}[ending]
    path = write(tmp_path / f"log.{ending}", text)
    logs = Logs([path])
    logs.poll()
    with path.open("a") as file:
        file.write(rest)
    logs.poll()
    assert logs.runs[0].series["loss"].value.tolist() == [3, 2.5, 1] and logs.runs[0].counts["damaged"] == 0


def test_a_file_written_anew_is_read_anew_and_new_files_join(tmp_path):
    path = write(tmp_path / "a.jsonl", "".join(f'{{"step": {i}, "loss": 1}}\n' for i in range(10)))
    logs = Logs([tmp_path])
    logs.poll()
    path.write_text('{"step": 0, "loss": 7}\n')
    assert logs.poll() and logs.runs[0].series["loss"].value.tolist() == [7]
    path.write_text(
        "".join(f'{{"step": {i}, "loss": 8}}\n' for i in range(10))
    )  # longer than before, and another beginning
    assert logs.poll() and logs.runs[0].series["loss"].value.tolist() == [8] * 10
    write(tmp_path / "b.jsonl", '{"step": 0, "loss": 5}\n')
    assert logs.poll() and {run.name for run in logs.runs} == {"a", "b"}


# --- whatever lies in a folder ----------------------------------------------------------------------------------------


def test_a_folder_gives_its_logs_and_says_what_it_passed_over(tmp_path):
    write(tmp_path / "log.csv", "step,loss\n0,1\n")
    write(tmp_path / "people.csv", "name,age\nann,3\n")
    write(tmp_path / "data.jsonl", '{"text": "hello"}\n')
    write(tmp_path / "notes.txt", "nothing to read\n")
    write(tmp_path / "empty.csv", "")
    (tmp_path / "config.json").write_text("{}")
    os.mkfifo(tmp_path / "pipe.log")
    (tmp_path / "loop").symlink_to(tmp_path)
    logs = read([tmp_path])
    assert [run.name for run in logs.runs] == ["log"]
    reasons = {os.path.basename(path): why for path, why in logs.problems}
    assert set(reasons) == {"people.csv", "data.jsonl", "empty.csv"} and "name it itself" in reasons["people.csv"]


@pytest.mark.parametrize(
    ("content", "name", "why"),
    [
        (b"", "a.csv", "an empty file"),
        (b"\0\1\2" * 50, "a.csv", "not text"),
        (b"\x1f\x8b" + b"x" * 50, "a.csv.gz", "compressed"),
        (b"SQLite format 3\0" + bytes(200), "a.db", "SQLite cannot read it: file is not a database"),
        (b"hello\n", "a.log", "no line of a known console format"),
        (b'{"a": 1}', "a.json", "neither a list of rows"),
        (b'{"log_history": [', "trainer_state.json", "not valid JSON"),
        (b'{"log_history": 3}', "trainer_state.json", "has no log_history"),
        (b"step,loss\nx,y\n", "a.csv", "no number was found"),
        (b"PAR1" + bytes(100), "a.parquet", "not a sound parquet file"),
        (b"[" * 100_000, "a.json", "nest deeper"),
    ],
)
def test_what_is_no_log_is_refused_by_name_with_the_reason(tmp_path, content, name, why):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UnreadableInput, match=why) as error:
        read([tmp_path / name])
    assert name in str(error.value)


def test_missing_paths_are_named(tmp_path):
    with pytest.raises(UnreadableInput, match="nowhere.*Check the path"):
        read([tmp_path / "nowhere"])
    with pytest.raises(UnreadableInput, match="no logs in this folder"):
        read([tmp_path])


def test_hostile_names_stay_text_and_cannot_become_formulas(tmp_path):
    names = ["=cmd|' /C calc'!A0", "<img src=x onerror=alert(1)>", "![x](http://evil/x.png)", "@SUM(A1)", "+1", "-2"]
    path = tmp_path / "=run.jsonl"
    path.write_text(json.dumps({"step": 0} | {name: 1.0 for name in names}) + "\n")
    run = only(path)
    assert list(run.series) == names
    lines = b"".join(csv_pieces([run])).decode().splitlines()
    for name, line in zip(names, lines[1:]):
        fields = next(__import__("csv").reader([line]))
        assert fields[0] == "'=run" and fields[2] == ("'" + name if name[0] in "=+-@" else name) and fields[3] == "1.0"


def test_two_logs_of_one_name_stay_two_runs(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "log.csv", "step,loss\n0,1\n")
    assert {run.name for run in read([tmp_path / "a" / "log.csv", tmp_path / "b" / "log.csv"]).runs} == {
        "a/log",
        "b/log",
    }


def test_columns_beyond_the_memory_budget_go_to_disk_and_stay_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("WISCA_HOME", str(tmp_path / "home"))
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"step": np.arange(20_000), **{f"m{k}": rng.normal(size=20_000) for k in range(5)}})
    table.to_csv(tmp_path / "log.csv", index=False)
    logs = Logs([tmp_path / "log.csv"], live=False)
    logs._room = MemoryBudget(budget=300_000)
    logs.poll()
    assert logs._room.n_bytes <= 300_000 and logs._room.on_disk >= 500_000
    for k in range(5):
        assert logs.runs[0].series[f"m{k}"].value.tolist() == table[f"m{k}"].tolist()
    assert len(long_table(logs.runs)) == 100_000
    assert not list((tmp_path / "home" / "measurements").iterdir())  # the file has no name


def test_a_header_with_other_columns_holds_from_there_on(tmp_path):
    text = "step,loss,lr\n0,3.0,0.1\n1,2.5,0.2\nlr,step,val_loss,loss\n0.3,2,9.0,2.0\n0.4,3,8.0,1.5\n"
    run = only(write(tmp_path / "log.csv", text))
    assert run.series["loss"].value.tolist() == [3.0, 2.5, 2.0, 1.5]
    assert run.series["lr"].value.tolist() == [0.1, 0.2, 0.3, 0.4]
    assert run.series["val_loss"].step.tolist() == [2, 3] and run.counts["header"] == 1


def test_lightnings_csv_of_a_restart_appended_behind_the_first_keeps_its_columns_apart(tmp_path):
    from lightning.pytorch.loggers import CSVLogger

    parts = []
    for name, metrics in (("a", ("loss", "lr")), ("b", ("acc", "loss"))):
        logger = CSVLogger(tmp_path / "parts", name=name, version=0)
        for step in range(2):
            logger.log_metrics({metric: step + len(metric) / 10 for metric in metrics}, step)
        logger.save()
        parts.append((tmp_path / "parts" / name / "version_0" / "metrics.csv").read_text())
    run = only(write(tmp_path / "metrics.csv", "".join(parts)))
    assert run.series["loss"].value.tolist() == [0.4, 1.4, 0.4, 1.4]
    assert run.series["lr"].value.tolist() == [0.2, 1.2] and run.series["acc"].value.tolist() == [0.3, 1.3]


def test_steps_of_other_trainers(tmp_path):
    # LLaMA-Factory, extras/trainer callbacks: trainer_log.jsonl; ms-swift: logging.jsonl
    factory = [
        {"current_steps": k, "total_steps": 100, "loss": 1 / k, "elapsed_time": f"0:0{k // 5}:00"} for k in (5, 10)
    ]
    run = only(write(tmp_path / "trainer_log.jsonl", "".join(json.dumps(row) + "\n" for row in factory)))
    assert run.series["loss"].step.tolist() == [5, 10] and run.series["loss"].wall_time.tolist() == [60, 120]
    swift = [{"loss": 1 / k, "global_step/max_steps": f"{k}/100", "percentage": f"{k}.00%"} for k in (5, 10)]
    run = only(write(tmp_path / "logging.jsonl", "".join(json.dumps(row) + "\n" for row in swift)))
    assert run.series["loss"].step.tolist() == [5, 10] and run.step_column == "global_step/max_steps"
    printed = "".join(f"{{'loss': {1 / k}, 'global_step/max_steps': '{k}/100', 'epoch': 0.1}}\n" for k in (5, 10))
    assert only(write(tmp_path / "swift.log", printed)).series["loss"].step.tolist() == [5, 10]


def test_pairs_without_bars_are_each_a_metric(tmp_path):
    # torchtune, training/metric_logging.py DiskLogger.log_dict
    lines = "".join(f"Step {k} | loss:{2.5 - k} lr:2e-05 tokens_per_second_per_gpu:301.25 \n" for k in (1, 2))
    run = only(write(tmp_path / "log.txt", lines))
    assert set(run.series) == {"loss", "lr", "tokens_per_second_per_gpu"}
    assert run.series["loss"].value.tolist() == [1.5, 0.5] and run.series["lr"].value.tolist() == [2e-5, 2e-5]
    # torchtitan, components/metrics.py, with its colours
    lines = "[titan] - root - INFO - \x1b[31mstep: 10  \x1b[32mloss:  7.4  \x1b[33mmemory: 12.5GiB(13.2%)  tps: 1,234\n"
    run = only(write(tmp_path / "titan.log", lines))
    assert run.series["loss"].value.tolist() == [7.4] and run.series["tps"].value.tolist() == [1234]


def test_a_dictionary_of_the_trainer_is_one_whatever_its_first_name(tmp_path, capsys):
    from transformers import PrinterCallback, TrainerControl, TrainerState, TrainingArguments

    PrinterCallback().on_log(
        TrainingArguments(output_dir=str(tmp_path)),
        TrainerState(is_local_process_zero=True),
        TrainerControl(),
        logs={"eval_math_loss": 1.5, "eval_math_runtime": 2.0, "epoch": 0.5},
    )
    run = only(write(tmp_path / "train.log", capsys.readouterr().out + "{'input_ids': 5, 'labels': 7}\n"))
    assert run.series["eval_math_loss"].value.tolist() == [1.5] and "input_ids" not in run.series


def test_tables_of_strangers_end_in_words(tmp_path):
    run = only(write(tmp_path / "old.csv", "step,loss\r1,2.5\r2,1.5\r"))  # line ends of old
    assert run.series["loss"].value.tolist() == [2.5, 1.5]
    big = "x" * 200_000
    run = only(write(tmp_path / "big.csv", f"step,loss,note\n1,2.5,{big}\n2,1.5,\n"))
    assert run.series["loss"].value.tolist() == [2.5, 1.5] and run.counts["text"] == 1
    with pytest.raises(UnreadableInput, match="no header"):
        read([write(tmp_path / "head.csv", f'step,"{big}"\n1,2\n')])
    rows = "".join(f'{{"step": {k}, "run": "r{k}", "loss": 1.0}}\n' for k in range(20_000))
    many = read([write(tmp_path / "many.jsonl", rows)])
    assert len(many.runs) == 2000 and any("more than 2,000 runs" in r for r in many.runs[0].remarks)
    odd = f'{{"step": 1, "seed": NaN, "loss": {"9" * 401}}}\n{{"step": 2, "seed": 1e999, "loss": 2, "\\ud800": 1}}\n'
    for run in read([write(tmp_path / "odd.jsonl", odd)]).runs:
        assert run.series["loss"].n_infinite + len(run.series["loss"]) >= 1
    from wisca_core.runs.groups import by_configuration

    assert len(by_configuration(read([tmp_path / "odd.jsonl"]).runs)) >= 1
