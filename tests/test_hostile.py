"""What strangers' files can do at worst: a named error, quickly, with the process alive."""

import json
import os
import random
import re
import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
from dashboard_page import page, texts
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect
from streamlit.runtime.memory_uploaded_file_manager import MemoryUploadedFileManager
from streamlit.runtime.uploaded_file_manager import UploadedFileRec
from tokenizers import Tokenizer, models

from wisca_app import gate
from wisca_app.figures.words import markdown_text
from wisca_core import apart, untrusted
from wisca_core.checkpoint import open_checkpoint
from wisca_core.comparison import folder
from wisca_core.comparison.data import check_text
from wisca_core.comparison.spec import DataSpec
from wisca_core.comparison.spec_reading import load_spec, spec_from
from wisca_core.equivalence import tokenizer
from wisca_core.errors import PlanMismatch, SpecError, UnreadableInput
from wisca_core.evaluation import seeds
from wisca_core.evaluation.tasks import _items as evaluated_items
from wisca_core.model import open_model
from wisca_core.patterns import store
from wisca_core.planning.plan import load_plan, undo_plan
from wisca_core.runs import collect, read, recognise
from wisca_core.training import telemetry
from wisca_core.trajectories import find_checkpoints
from wisca_core.untrusted import parse_yaml, read_regular

# --- logs -------------------------------------------------------------------------------------------------------------


def _nested_aliases(n: int) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, n)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    "text",
    [
        _nested_aliases(12),
        "a0: &a0 {x: 1}\n" + "".join(f"a{i + 1}: &a{i + 1} {{<<: [*a{i}, *a{i}, *a{i}]}}\n" for i in range(30)),
        "x: &a [*a, *a]",
        "[" * 200_000,
        "- " * 100_000,
        "x: !!python/object/apply:os.system ['true']",
        "x: " + "9" * 6000,
    ],
)
def test_settings_that_unfold_without_end_are_passed_over_and_the_table_is_read(tmp_path, text):
    (tmp_path / "metrics.csv").write_text("step,loss\n1,2.5\n")
    (tmp_path / "hparams.yaml").write_text(text)
    (run,) = read([tmp_path]).runs
    assert run.series["loss"].value.tolist() == [2.5] and not run.config
    assert any("settings are passed over" in remark for remark in run.remarks)


def test_settings_with_aliases_that_stand_for_little_are_read(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,loss\n1,2.5\n")
    (tmp_path / "hparams.yaml").write_text(
        "base: &b {lr: 0.1, n: [1, 2]}\nother: {<<: *b, lr: 0.2}\nhuge: 1" + ":59" * 3000
    )
    (run,) = read([tmp_path]).runs
    assert run.config["other.lr"] == 0.2 and run.config["other.n"] == "[1, 2]" and run.config["huge"] == np.inf
    assert parse_yaml(b"a: [1, {b: 2}]", "x") == {"a": [1, {"b": 2}]}


def test_parquet_with_nanoseconds_days_spans_and_categories_is_read(tmp_path):
    when = pd.to_datetime(["2026-01-01T00:00:00.123456789", "2026-01-01T00:00:02.5"])
    table = pd.DataFrame(
        {"step": [1, 2], "timestamp": when, "took": pd.to_timedelta([1.5, 2.5], "s"), "run": pd.Categorical(["a", "b"])}
    )
    table.to_parquet(tmp_path / "history.parquet")
    first, second = read([tmp_path / "history.parquet"]).runs
    assert (first.name, second.name) == ("a", "b") and first.series["took"].value.tolist() == [1.5]
    assert second.series["took"].wall_time[0] == when[1].timestamp()


@pytest.mark.parametrize(
    "columns, why",
    [
        (
            {"note": pa.DictionaryArray.from_arrays(pa.array(np.zeros(65536, np.int32)), ["x" * (1 << 20)])},
            "MB of memory",
        ),
        ({f"c{i}": np.zeros(1_000_000) for i in range(40)}, "unpacks to over 200 times"),
    ],
)
def test_parquet_that_unpacks_to_any_size_takes_only_the_process_it_is_read_in(tmp_path, columns, why):
    n = len(next(iter(columns.values())))
    bomb = tmp_path / "bomb.parquet"
    pa.parquet.write_table(pa.table({"step": np.zeros(n)} | columns), bomb, compression="zstd")
    assert bomb.stat().st_size < 2_000_000
    with pytest.raises(UnreadableInput, match=f"bomb.parquet: .*{why}"):
        read([bomb])
    pd.DataFrame({"step": [1], "loss": [2.0]}).to_parquet(tmp_path / "fine.parquet")
    assert read([tmp_path / "fine.parquet"]).runs[0].series["loss"].value.tolist() == [2.0]


# --- paths, specs, plans, configs -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["", "a\0b", "/tmp/" + "x" * 256, "/" + "a/" * 2100, "~nobody-of-that-name/x", "\ud800"]
)
def test_what_can_be_no_path_is_named_wherever_a_path_is_taken(text, tmp_path):
    for takes in (
        open_checkpoint,
        lambda path: read([path]),
        load_spec,
        folder.read,
        find_checkpoints,
        seeds.is_comparison,
    ):
        with pytest.raises(UnreadableInput):
            takes(text)
    with pytest.raises(UnreadableInput, match="data.path|is no path"):
        check_text(replace(spec_from({}), data=DataSpec(source="text", path=text)))


def test_pipes_and_devices_in_place_of_files_are_refused_and_never_waited_for(tmp_path, small_model):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero", tmp_path):
        for takes in (
            load_spec,
            load_plan,
            undo_plan,
            lambda path: read_regular(path, 100),
            telemetry.read,
            evaluated_items,
        ):
            with pytest.raises(UnreadableInput, match="regular file|no file"):
                takes(Path(path))
    model = open_model(small_model("llama"))
    kept = store.place(model.checkpoint, model.sites.sites)
    kept.unlink(missing_ok=True)
    os.mkfifo(kept)  # in place of a kept measurement: it is measured again
    assert store.cached_patterns(model.checkpoint, model.sites) is None
    assert store.measured_patterns(model.checkpoint, model.sites).rows
    assert kept.is_file()


@pytest.mark.parametrize(
    "text",
    [
        "name = " + "[" * 60 + "]" * 60 + "\n",
        "a." * 5000 + "b = 1",
        "steps = " + "9" * 401,
        "name = " + "[" * 5000 + "]" * 5000,
    ],
)
def test_specs_that_nest_or_count_without_end_are_refused(tmp_path, text):
    (tmp_path / "spec.toml").write_text(f'format = "wisca-comparison"\nversion = 1\n{text}\n')
    with pytest.raises((UnreadableInput, SpecError)):
        load_spec(tmp_path / "spec.toml")
    deep: list = []
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(SpecError, match="a list that cannot be shown was given"):
        spec_from({"name": deep})


@pytest.mark.parametrize(
    "change",
    [
        {"factors": [10**400]},
        {"factors": ["9" * 401]},
        {"factors": [5e-324]},
        {"site": ["decoder.0.self.qk"]},
        {"site": {"a": 1}},
        {"factors": 1},
    ],
)
def test_a_plan_of_a_stranger_that_is_none_is_refused_before_it_is_used(tmp_path, change):
    site = {"site": "decoder.0.self.qk", "factors": [2.0]} | change
    options = {
        "pairs": ["qk"],
        "granularity": "tensor",
        "norm": "l1",
        "strength": 1,
        "layers": [],
        "exact": False,
        "exclude": [],
    }
    plan = {
        "options": options,
        "bit_identical": False,
        "fingerprint": "0",
        "tensors": [],
        "sites": [site],
        "refusals": [],
    }
    text = json.dumps({"format": "wisca-plan", "version": 1, **plan})
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises((PlanMismatch, UnreadableInput), match="plan.json"):
        load_plan(tmp_path / "plan.json")


def test_a_config_with_a_key_of_no_name_is_refused(tmp_path, edited_config):
    with pytest.raises(UnreadableInput, match="config.json: has a key without a name"):
        open_checkpoint(edited_config({"": 5}))


@pytest.fixture
def edited_config(tmp_path, small_model):
    def edited(changes: dict) -> Path:
        place = tmp_path / "edited"
        shutil.copytree(small_model("llama"), place)
        config = json.loads((place / "config.json").read_text())
        (place / "config.json").write_text(json.dumps(config | changes))
        return place

    return edited


def test_addresses_with_paths_that_cannot_be_are_pages_that_say_so(own_home):
    long, nobody = "/" + "x" * 300, "~nobody-of-that-name/x"
    for view, name, text in (
        ("", "model", long),
        ("runs", "logs", nobody),
        ("runs", "checkpoints", long),
        ("open", "folder", long),
        ("evaluate", "model", nobody),
    ):
        at = page(view, **{name: text})
        assert not at.exception and texts(at.main)


# --- the dashboard's door ---------------------------------------------------------------------------------------------


@pytest.fixture
def door():
    async def echo(socket):
        await socket.accept()
        await socket.send_text("in")
        await socket.close()

    routes = [WebSocketRoute("/stream", echo), Route("/file", lambda request: PlainTextResponse("content"))]
    return TestClient(Starlette(routes=routes, middleware=[Middleware(gate.Gate)]), base_url="http://127.0.0.1:8501")


def test_only_pages_of_this_very_server_talk_to_it(door):
    for origin in (None, "http://127.0.0.1:8501"):
        headers = {"origin": origin} if origin else {}
        assert door.get("/file", headers=headers).text == "content"
        with door.websocket_connect("ws://127.0.0.1:8501/stream", headers=headers) as socket:
            assert socket.receive_text() == "in"
    for origin in (
        "http://127.0.0.1:3000",
        "http://localhost:8501",
        "http://evil.example",
        "null",
        "http://[",
        "file://127.0.0.1:8501",
    ):
        assert door.get("/file", headers={"origin": origin}).status_code == 403
        with (
            pytest.raises(WebSocketDisconnect),
            door.websocket_connect("ws://127.0.0.1:8501/stream", headers={"origin": origin}),
        ):
            pass


def test_what_a_closed_page_uploaded_is_forgotten_once_it_cannot_come_back(monkeypatch):
    files = MemoryUploadedFileManager("/upload")
    for session in ("open", "closed", "back"):
        files.add_file(session, UploadedFileRec("1", "a.csv", "text/csv", b"x" * 100))
    active = {"open"}
    server = SimpleNamespace(uploaded_file_mgr=files, is_active_session=active.__contains__)
    monkeypatch.setattr(gate.runtime, "get_instance", lambda: server)
    closed = gate._closed_sessions()
    active.add("back")
    gate.forget(closed)
    assert set(files.file_storage) == {"open", "back"}


def test_a_bare_address_in_a_name_is_no_link():
    for name in ("http://evil.example", "HTTPS://evil.example", "www.evil.example", "a@evil.example"):
        shown = markdown_text(name).replace("\\", "")
        assert not re.search(r"(?i)https?://|www\.|\w@", shown) and shown.replace("\u2060", "") == name


def test_a_whole_disk_is_no_folder_of_logs_and_nothing_in_it_is_opened(tmp_path, monkeypatch):
    monkeypatch.setattr(recognise, "MOST_ENTRIES", 50)
    for number in range(60):
        (tmp_path / f"{number}.csv").write_text("step,loss\n1,2\n")
    monkeypatch.setattr(recognise, "_kind", lambda *_: pytest.fail("opened"))
    with pytest.raises(UnreadableInput, match="more than 50 entries"):
        read([tmp_path])
    with pytest.raises(UnreadableInput, match="the whole disk"):
        read(["/"])


# --- tokenizers -------------------------------------------------------------------------------------------------------


def _tokenizer(folder: Path, **changed) -> Path:
    plain = models.BPE(vocab={chr(33 + i): i for i in range(90)}, merges=[])
    content = json.loads(Tokenizer(plain).to_str())
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(content | changed))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    return folder


def test_a_tokenizer_that_panics_takes_all_memory_or_waits_on_a_pipe_is_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizer, "MEMORY_BYTES", 300_000_000)
    longer = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 50}
    for name, why, changed in (
        ("panics", "PanicException", {"pre_tokenizer": {"type": "FixedLength", "length": 0}}),
        ("grows", "SIGABRT|MB of memory", {"normalizer": {"type": "Sequence", "normalizers": [longer] * 8}}),
    ):
        folder = _tokenizer(tmp_path / name, **changed)
        with pytest.raises(UnreadableInput, match=why):
            tokenizer.tokenizer_of(folder)
    sound = _tokenizer(tmp_path / "sound")
    assert len(tokenizer.text_ids(sound, 10)) == 10 and tokenizer.tokenizer_of(sound)("a")["input_ids"] == [64]
    os.mkfifo(sound / "special_tokens_map.json")
    with pytest.raises(UnreadableInput, match="special_tokens_map.json: not a regular file"):
        tokenizer.tokenizer_of(sound)


# --- the process apart ------------------------------------------------------------------------------------------------


def test_a_process_apart_that_hangs_or_dies_is_named_and_the_next_one_answers(monkeypatch, tmp_path):
    (tmp_path / "strangers.py").write_text(
        "import os, signal\n"
        "def ends(how):\n"
        "    yield b'first'\n"
        "    while how == 'hangs':\n"
        "        pass\n"
        "    os.kill(os.getpid(), signal.SIGABRT) if how == 'aborts' else os._exit(0)\n"
        "def who(_):\n"
        "    yield str(os.getpid()).encode()\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    while apart._idle:
        apart._idle.pop()[1].end()
    for how, why in (("hangs", "took over"), ("aborts", "SIGABRT"), ("exits", "ended the process")):
        answer = apart.pieces("strangers:ends", how, "that file", cpu_seconds=0.3)
        assert next(answer) == b"first"
        with pytest.raises(UnreadableInput, match=f"^that file: .*{why}"):
            next(answer)
    once, again = (b"".join(apart.pieces("strangers:who", None, "that file")) for _ in range(2))
    assert once == again != str(os.getpid()).encode()  # kept for the next file


# --- sizes ------------------------------------------------------------------------------------------------------------


def test_values_of_a_json_are_counted_piece_by_piece_as_in_the_whole(monkeypatch):
    choose = random.Random(0)
    texts_of_signs = [bytes(choose.choice(b'"\\[]{},ab') for _ in range(choose.randrange(60))) for _ in range(1000)]
    whole = [untrusted.check_json_values(raw, "x") for raw in texts_of_signs]
    for n_bytes in (1, 7):
        monkeypatch.setattr(untrusted, "_PIECE_BYTES", n_bytes)
        assert [untrusted.check_json_values(raw, "x") for raw in texts_of_signs] == whole
    assert untrusted.check_json_values(b'{"a[": ["\\"]"], "b', "x") == b"{[]"


def test_logs_of_any_number_of_runs_are_read_as_far_as_the_first(tmp_path, monkeypatch):
    monkeypatch.setattr(collect, "MOST_RUNS", 3)
    with sqlite3.connect(tmp_path / "project.db") as base:
        base.execute(
            "create table metrics (id integer primary key, timestamp text, run_name text, step int, metrics text)"
        )
        base.execute("create table configs (id integer primary key, run_name text, config text, created_at text)")
        for number in range(9):
            row = ("2026-01-01", f"r{number}", 1, '{"loss": 1.0}')
            base.execute("insert into metrics (timestamp, run_name, step, metrics) values (?, ?, ?, ?)", row)
    base.close()
    runs = read([tmp_path / "project.db"]).runs
    assert [run.name for run in runs] == ["project/r0", "project/r1", "project/r2"]
    assert any("more than 3 runs in one log" in remark for remark in runs[0].remarks)
