"""TensorBoard event files, written by the real writers and read back beside TensorBoard's own reader."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c
from tensorboard.plugins.scalar.summary_v2 import scalar_pb
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from torch.utils.tensorboard import SummaryWriter

from wisca_core.errors import UnreadableInput
from wisca_core.runs import Logs, long_table, read
from wisca_core.runs.tensorboard import masked_crc

TAGS = (
    "train/loss",
    "lr",
    "eval/accuracy of a rather long name that does not fit into one block of bytes at all, by far",
)


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """A run by SummaryWriter: three tags, steps up to 2**40, NaN and infinities, and a histogram and a text between
    them.
    """
    import torch

    folder = tmp_path_factory.mktemp("tb") / "run"
    writer = SummaryWriter(folder)
    for i in range(400):
        writer.add_scalar(TAGS[0], 1 / (i + 1), i)
        writer.add_scalar(TAGS[1], float("nan") if i == 7 else float("inf") if i == 9 else 1e-3 * i, i * 2**31)
        if i % 50 == 0:
            writer.add_scalar(TAGS[2], i / 3, i)
            writer.add_histogram("weights", torch.arange(100.0), i)
            writer.add_text("note", "a text", i)
    writer.close()
    return folder


def event_file(folder: Path) -> Path:
    return next(path for path in folder.iterdir() if "tfevents" in path.name)


def records(data: bytes) -> list[tuple[int, int]]:
    """(start of the record, length of its bytes)."""
    out, at = [], 0
    while at < len(data):
        (n,) = struct.unpack_from("<Q", data, at)
        out.append((at, n))
        at += n + 16
    return out


def values_of(folder: Path) -> dict[str, list[tuple[float, float]]]:
    run = read([folder]).runs[0]
    return {tag: list(zip(series.step, series.value)) for tag, series in run.series.items()}


def test_every_scalar_is_the_one_tensorboard_reads_in_its_order(written):
    theirs = EventAccumulator(str(written), size_guidance={"scalars": 0})
    theirs.Reload()
    run = read([written]).runs[0]
    assert list(run.series) and set(run.series) == set(theirs.Tags()["scalars"]) == set(TAGS)
    for tag in TAGS:
        expected = theirs.Scalars(tag)
        series = run.series[tag]
        assert series.step.tolist() == [e.step for e in expected]
        np.testing.assert_array_equal(series.value, [e.value for e in expected])  # NaN equals NaN here
        assert series.wall_time.tolist() == [e.wall_time for e in expected]
    assert (run.counts["histogram"], run.counts["not_scalar"]) == (8, 8)  # the texts are none
    assert (run.series["lr"].n_nan, run.series["lr"].n_infinite) == (1, 1)
    assert any("1 NaN value kept: 'lr'" in remark for remark in run.remarks)


def test_the_long_table_has_whole_steps_and_every_row(written):
    table = long_table(read([written]).runs)
    assert list(table.columns) == ["run", "step", "metric", "value", "wall_time", "source"]
    assert len(table) == 808 and table["step"].dtype == np.int64
    assert table["step"].max() == 399 * 2**31


def test_a_flipped_bit_in_a_record_costs_that_record_only(written, tmp_path):
    data = bytearray(event_file(written).read_bytes())
    places = records(bytes(data))
    start, length = places[100]
    hurt = Event.FromString(bytes(data[start + 12 : start + 12 + length])).summary.value[0].tag
    data[start + 12 + length - 2] ^= 0x10  # inside the float
    (tmp_path / event_file(written).name).write_bytes(data)
    before, after = values_of(written), values_of(tmp_path)
    assert len(after[hurt]) == len(before[hurt]) - 1
    assert all(repr(after[tag]) == repr(before[tag]) for tag in TAGS if tag != hurt)
    run = read([tmp_path]).runs[0]
    assert run.counts["damaged"] == 1 and run.counts["damaged_bytes"] == length + 16
    assert any("1 damaged record was skipped" in remark for remark in run.remarks)


def test_reading_goes_on_behind_a_damaged_length(written, tmp_path):
    data = bytearray(event_file(written).read_bytes())
    start, length = records(bytes(data))[100]
    data[start] ^= 0xFF
    (tmp_path / event_file(written).name).write_bytes(data)
    before, after = values_of(written), values_of(tmp_path)
    assert sum(map(len, after.values())) == sum(map(len, before.values())) - 1
    run = read([tmp_path]).runs[0]
    assert run.counts["damaged"] == 1 and run.counts["damaged_bytes"] == length + 16


def test_a_file_cut_short_keeps_everything_before_and_says_so(written, tmp_path):
    data = event_file(written).read_bytes()
    start, _ = records(data)[-1]
    (tmp_path / event_file(written).name).write_bytes(data[: start + 20])
    run = read([tmp_path]).runs[0]
    assert len(run) == 807 and run.counts["cut"] == 1 and run.counts["damaged"] == 0
    assert any("cut short" in remark for remark in run.remarks)


def test_zeros_in_the_middle_do_not_end_the_reading(written, tmp_path):
    data = bytearray(event_file(written).read_bytes())
    places = records(bytes(data))
    first, last = places[50][0], places[60][0]
    data[first:last] = bytes(last - first)
    (tmp_path / event_file(written).name).write_bytes(data)
    lost = sum(
        len(
            [
                v
                for v in Event.FromString(bytes(event_file(written).read_bytes()[s + 12 : s + 12 + n])).summary.value
                if v.HasField("simple_value")
            ]
        )
        for s, n in places[50:60]
    )
    assert len(read([tmp_path]).runs[0]) == 808 - lost


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damage=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=12), cut=st.integers(0, 10**6))
def test_no_damage_ever_invents_a_value(written, tmp_path, damage, cut):
    whole = event_file(written).read_bytes()
    data = bytearray(whole)
    for at, byte in damage:
        data[at % len(data)] = byte
    (tmp_path / "events.out.tfevents.1").write_bytes(data[: len(data) - cut % len(data)])
    try:
        run = read([tmp_path]).runs[0]
    except UnreadableInput:
        return
    true = {
        tag: list(zip(series.step, series.value.view(np.uint64)))
        for tag, series in read([written]).runs[0].series.items()
    }
    for tag, series in run.series.items():
        rest = iter(true[tag])
        assert all(point in rest for point in zip(series.step, series.value.view(np.uint64)))  # a subsequence, in order


def test_a_growing_file_gives_only_what_is_new_and_waits_for_whole_records(tmp_path):
    writer = SummaryWriter(tmp_path / "run")
    writer.add_scalar("loss", 3.0, 1)
    writer.flush()
    logs = Logs([tmp_path])
    assert logs.poll() and logs.runs[0].series["loss"].value.tolist() == [3.0]
    assert not logs.poll()
    writer.add_scalar("loss", 2.0, 2)
    writer.add_scalar("new", 5.0, 2)
    writer.flush()
    assert logs.poll()
    assert logs.runs[0].series["loss"].value.tolist() == [3.0, 2.0] and logs.runs[0].series["new"].value.tolist() == [
        5.0
    ]
    writer.add_scalar("loss", 1.0, 3)
    writer.close()
    path = event_file(tmp_path / "run")
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    logs.poll()
    assert logs.runs[0].series["loss"].value.tolist() == [3.0, 2.0]
    path.write_bytes(whole)
    assert logs.poll() and logs.runs[0].series["loss"].value.tolist() == [3.0, 2.0, 1.0]
    assert logs.runs[0].counts["damaged"] == 0 and logs.runs[0].counts["cut"] == 0


def test_scalars_written_as_tensors_count_where_their_plugin_says_so(tmp_path):
    writer = EventFileWriter(str(tmp_path))
    for i in range(20):
        summary = scalar_pb("loss", i / 4)
        if i:
            summary.value[0].ClearField("metadata")  # writers name the plugin once a tag
        writer.add_event(Event(wall_time=100.0 + i, step=i, summary=summary))
        other = scalar_pb("not mine", 1.0)
        other.value[0].metadata.plugin_data.plugin_name = "histograms"
        writer.add_event(Event(wall_time=100.0 + i, step=i, summary=other))
    writer.close()
    run = read([tmp_path]).runs[0]
    assert run.series["loss"].value.tolist() == [i / 4 for i in range(20)] and "not mine" not in run.series
    assert run.counts["not_scalar"] == 20


def test_several_values_in_one_summary_and_negative_steps_are_read(tmp_path):
    writer = EventFileWriter(str(tmp_path))
    for i in range(30):
        values = [Summary.Value(tag=f"m{k}", simple_value=i + k / 4) for k in range(5)]
        writer.add_event(Event(wall_time=i, step=i - 10, summary=Summary(value=values)))
    writer.close()
    run = read([tmp_path]).runs[0]
    for k in range(5):
        assert run.series[f"m{k}"].value.tolist() == [i + k / 4 for i in range(30)]
        assert run.series[f"m{k}"].step.tolist() == [i - 10 for i in range(30)]


def test_steps_that_repeat_or_go_back_are_kept_and_said(tmp_path):
    writer = SummaryWriter(tmp_path)
    for i, step in enumerate((0, 10, 20, 20, 10, 20, 30)):
        writer.add_scalar("loss", i / 7, step)
        writer.add_scalar("epoch", min(step, 20), step)  # the same value again is nothing to speak of
    writer.close()
    run = read([tmp_path]).runs[0]
    series = run.series["loss"]
    assert series.step.tolist() == [0, 10, 20, 20, 10, 20, 30]
    assert (series.n_repeated, series.n_back, series.first_back) == (1, 1, (20.0, 10.0))
    assert any("go back" in remark and "from 20 to 10" in remark for remark in run.remarks)
    assert run.series["epoch"].n_repeated == 0 and any("repeat: 'loss' 1×" in remark for remark in run.remarks)


def test_a_restart_continues_the_run_and_folders_are_runs(tmp_path):
    for k, steps in enumerate(((0, 1), (2, 3))):
        writer = SummaryWriter(tmp_path / "a", filename_suffix=f".{k}")
        for step in steps:
            writer.add_scalar("loss", float(step), step)
        writer.close()
    # names begin with the second of the start: two in one second would be ordered by their suffix
    for k, path in enumerate(sorted((tmp_path / "a").iterdir(), key=lambda p: p.name[-1])):
        path.rename(path.with_name(f"events.out.tfevents.{1000 + k}.host"))
    writer = SummaryWriter(tmp_path / "b" / "inner")
    writer.add_scalar("loss", 9.0, 0)
    writer.close()
    runs = {run.name: run for run in read([tmp_path]).runs}
    assert set(runs) == {"a", "b/inner"}
    assert runs["a"].series["loss"].step.tolist() == [0, 1, 2, 3]


def test_settings_of_add_hparams_and_of_the_trainer_become_the_configuration(tmp_path):
    writer = SummaryWriter(tmp_path)
    writer.add_hparams({"lr": 0.1, "on": True, "name": "x"}, {"score": 1.0}, run_name="h")
    writer.add_text("args", json.dumps({"seed": 3, "optim": {"name": "adamw"}}))
    writer.add_scalar("loss", 1.0, 0)
    writer.close()
    (run,) = read([tmp_path]).runs  # the folder "h" holds nothing but settings and what is set against them
    assert dict(run.config) == {"seed": 3, "optim.name": "adamw", "lr": 0.1, "on": True, "name": "x"}
    assert run.series["score"].value.tolist() == [1.0]


def test_the_checksum_is_that_of_tensorboard_at_every_length():
    data = np.random.default_rng(0).integers(0, 256, 6000, dtype=np.uint8).tobytes()
    for length in (0, 1, 2, 7, 8, 63, 64, 65, 1000, 5000):
        assert masked_crc(data[:length]) == masked_crc32c(data[:length])
