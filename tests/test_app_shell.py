"""The dashboard's frame: opening a model, bad and hostile input, jobs, what is kept, downloads."""

import gc
import http.client
import io
import json
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import streamlit as st
from dashboard_page import DASHBOARD, SAMPLE, page, proved, texts
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.testclient import TestClient
from streamlit.testing.v1 import AppTest

from wisca_app import archive as archives
from wisca_app import cached, downloads, open_model, state, uploads
from wisca_app.archive import Member, archive, archive_bytes
from wisca_core import jobs, storage
from wisca_core.checkpoint import HubSize
from wisca_core.checkpoint.nearby import below
from wisca_core.errors import CheckpointChanged, HubError, UnreadableInput, UnsafeInput
from wisca_core.spreadsheet import csv_bytes

HOSTILE = "![x](http://evil.example/x.png)<script>alert(1)</script>:red[*hi*]"


@pytest.fixture(autouse=True)
def nothing_kept(own_home):
    cached.size_on_hub.clear()
    st.cache_resource.clear()  # a model that was measured in another test counts as measured


@pytest.fixture(scope="session")
def llama(tiny_llama, tmp_path_factory):
    """Two layers, four query heads on two KV heads, bf16, on disk as transformers writes it."""
    return tiny_llama(tmp_path_factory.mktemp("models") / "tiny-llama", n_layers=2)


def button(at: AppTest, label: str):
    return next(b for b in at.button if b.label == label)


def send(at: AppTest, written: str) -> AppTest:
    at.switch_page("views/open.py").run()
    at.text_input(key="written").set_value(written)
    return button(at, "Open").click().run()


# --- opening ----------------------------------------------------------------------------------------------------------


def test_the_first_screen_is_the_bundled_samples_last_checkpoint():
    at = page()
    assert not at.exception
    assert state.sample_checkpoints()[-1].name in texts(at)
    assert not at.query_params


def test_the_modules_are_out_of_reach_of_the_collector_and_what_sessions_leave_is_not():
    at = page()
    frozen = gc.get_freeze_count()
    assert frozen > 100_000  # Streamlit walks through everything else after each redraw
    for _ in range(2):
        at.run()
    assert gc.get_freeze_count() <= frozen  # not once a run: a cycle in what is set aside is never freed


def test_a_path_on_this_machine_opens_and_stands_in_the_address(llama):
    at = send(page(), f"  {llama}  ")
    assert not at.exception
    assert at.query_params["model"] in (str(llama), [str(llama)])
    assert "2 layers" in texts(at) and "4 query heads on 2 KV heads" in texts(at)


def test_the_address_opens_the_model_again(llama):
    assert "4 query heads on 2 KV heads" in texts(page(model=llama))


def test_a_path_that_is_not_there_says_what_to_do_and_keeps_the_open_model(tmp_path):
    at = send(page(), str(tmp_path / "nothing"))
    assert not at.exception
    said = texts(at.main)
    assert "That could not be opened" in said and "There is nothing at this path." in said
    assert "checkpoint-3600 stays open." in said and str(tmp_path / "nothing") in said
    assert at.text_input(key="written").value == str(tmp_path / "nothing")  # to be mended, not written anew
    assert "model" not in at.query_params
    at.button(key="try again").click().run()
    assert not at.exception and "That could not be opened" in texts(at.main)
    at.switch_page("views/inspect.py").run()
    assert "Queries weigh" in at.title[0].value


@pytest.mark.parametrize("content", [b"", b"<html>not weights</html>", b"\xff\xff\xff\xff\xff\xff\xff\x7f{}"])
def test_damaged_weights_give_a_message_and_the_page_lives(tmp_path, content):
    folder = tmp_path / "damaged"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(content)
    at = page(model=folder)
    assert not at.exception
    assert "This page cannot be shown" in texts(at)
    assert at.button(key="open_another") and "model.safetensors" in texts(at)


def test_a_hostile_name_is_shown_letter_by_letter(tmp_path):
    folder = tmp_path / HOSTILE.replace("/", "_")
    folder.mkdir()
    at = page(model=folder)
    assert not at.exception
    assert any("![x](http" in element.value for element in at.text)
    for element in at.markdown:
        unescaped = re.sub(r"\\.", "", element.value)
        assert not set("<!(") & set(unescaped) and ":red[" not in unescaped
    assert not any(element.allow_html for element in at.markdown)


def test_a_sample_button_opens_that_checkpoint():
    first = state.sample_checkpoints()[0]
    at = page("open")
    at.button(key=f"sample {first.name.split('-')[1]}").click().run()
    assert str(first) in str(at.query_params["model"])


def test_opening_another_model_forgets_what_was_selected_in_the_old_one(llama):
    at = page(exclude="decoder.7.self.qk", layers="5-6", granularity="group")
    send(at, str(llama))
    assert "exclude" not in at.query_params and "layers" not in at.query_params
    assert "group" in str(at.query_params["granularity"])


def test_values_of_the_address_that_make_no_sense_fall_back_to_the_default():
    at = page(granularity="<b>", strength="nan", layers="9-2", exact="maybe", exclude="../x", pairs="zz", norm="mean")
    assert not at.exception
    assert not at.query_params


def test_what_was_opened_stands_among_the_recent_and_opens_again(llama, tmp_path):
    at = page(model=llama)
    at.switch_page("views/open.py").run()
    assert "2 layers, 4 query heads on 2 KV heads" in texts(at.main) and "open now" in texts(at.main)
    at.button(key="sample 0").click().run()
    at.switch_page("views/open.py").run()
    assert at.button(key="recent 0").label == "**models0/tiny-llama**" or "tiny" in at.button(key="recent 0").label
    at.button(key="recent 0").click().run()
    assert str(llama) in str(at.query_params["model"]) and "2 layers" in texts(at)


def test_folders_are_walked_down_to_a_model_and_up_again(llama, tmp_path):
    llama = shutil.copytree(llama, tmp_path / "models" / llama.name)  # one neighbour, so that no list is cut
    at = page("open", model=llama)
    assert str(llama.parent) in texts(at.main)
    row = next(b for b in at.main.button if str(b.key).endswith(str(llama)))
    at.button(key="one up").click().run()
    assert at.query_params["folder"] in (str(llama.parent.parent), [str(llama.parent.parent)])
    down = next(b for b in at.main.button if str(b.key).endswith(f" {llama.parent}"))
    at.button(key=down.key).click().run()
    at.button(key=row.key).click().run()
    assert not at.exception and "Queries weigh" in at.title[0].value


def test_the_list_of_a_folder_names_models_adapters_files_and_other_folders(tmp_path):
    for name, files in {
        "whole": ("config.json", "model.safetensors"),
        "lora": ("adapter_config.json", "adapter_model.safetensors"),
        "empty": (),
        ".hidden": ("config.json", "model.safetensors"),
    }.items():
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / file).write_bytes(b"1234")
    (tmp_path / "alone.gguf").write_bytes(b"12")
    (tmp_path / "notes.txt").write_bytes(b"12")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    found = [(near.path.name, near.kind, near.n_files, near.n_bytes) for near in below(tmp_path)]
    assert found == [
        ("lora", "adapter", 1, 4),
        ("whole", "model", 1, 4),
        ("alone.gguf", "file", 1, 2),
        ("empty", "folder", 0, 0),
    ]
    with pytest.raises(UnreadableInput):
        below(tmp_path / "nowhere")


def test_an_upload_is_named_by_its_file(llama):
    folder = uploads.keep([(n, (llama / n).read_bytes()) for n in ("config.json", "model.safetensors")])
    assert open_model.title(str(folder)) == "model.safetensors"


def test_going_back_in_the_browser_takes_the_choices_of_that_address(monkeypatch):
    proved(SAMPLE)
    at = page(granularity="group")
    at.switch_page("views/rescale.py").run()  # a link brings no address along: what was chosen is kept
    assert at.segmented_control(key="granularity").value == "group"
    at.segmented_control(key="granularity").set_value("channel").run()
    assert "channel" in str(at.query_params["granularity"])
    at.session_state["note:written at"] -= 10
    at.query_params["granularity"] = "group"
    at.run()
    assert at.segmented_control(key="granularity").value == "group"
    # an address that lags behind a choice made within a second is not a step back
    at.segmented_control(key="granularity").set_value("tensor").run()
    at.query_params["granularity"] = "group"
    at.run()
    assert at.segmented_control(key="granularity").value == "tensor"


# --- hub --------------------------------------------------------------------------------------------------------------


def test_a_model_of_the_hub_shows_its_size_and_is_not_fetched_before_the_button(monkeypatch):
    size = HubSize(
        "hub:some/model", "c0ffee", 2_100_000_000, (("model.safetensors", 2_099_999_000), ("config.json", 1000))
    )
    monkeypatch.setattr(cached, "hub_size", lambda model: size)
    at = send(page(), "hub:some/model")
    assert not at.exception
    assert "2.1 GB in 2 files" in texts(at)
    assert not jobs.every()
    started = []
    job = jobs.start("sleep", {"steps": 1000, "seconds": 0.05}, "stands in for the download")
    monkeypatch.setattr(open_model, "start_measuring", lambda model: started.append(model) or job)
    assert "stays open" not in texts(at)
    button(at, "Download and open").click().run().run()
    assert not at.exception
    assert started == ["hub:some/model"] and "hub:some/model" in str(at.query_params["model"])


def test_an_address_with_a_hub_model_asks_before_it_downloads(monkeypatch):
    monkeypatch.setattr(
        cached, "hub_size", lambda model: HubSize(model, "c0ffee", 5_000_000, (("model.safetensors", 5_000_000),))
    )
    monkeypatch.setattr(cached, "open_model", lambda model: pytest.fail("nothing may be fetched"))
    at = page(model="hub:some/model")
    assert not at.exception
    assert "Download this model?" in texts(at) and "5.0 MB in 1 file" in texts(at)
    assert not jobs.every()


def test_a_malformed_hub_id_is_refused_with_words():
    at = send(page(), "hub:../x")
    assert not at.exception
    assert "not a hub id" in texts(at)
    with pytest.raises(HubError):
        cached.size_on_hub("hub:../x")


# --- measuring as a job, what is kept ---------------------------------------------------------------------------------


def test_a_big_model_is_measured_by_a_job_and_the_page_goes_on_when_it_is_done(llama, monkeypatch):
    monkeypatch.setattr(cached, "JOB_BYTES", 0)
    at = page(model=llama)
    assert not at.exception
    assert "Measuring the weights" in texts(at)
    (job,) = jobs.every()
    assert job.kind == "measure" and job.arguments == {"model": str(llama)}
    at.run()
    assert len(jobs.every()) == 1, "looking again must not start it again"
    assert jobs.wait(job.id, 60).state == "done"
    at.run()
    assert not at.exception
    assert "Measuring the weights" not in texts(at)


def test_a_job_that_failed_says_why_and_can_be_started_again(llama, monkeypatch):
    monkeypatch.setattr(cached, "JOB_BYTES", 0)
    monkeypatch.setattr(open_model, "latest", lambda kind, **arguments: _failed_job(llama))
    at = page(model=llama)
    assert not at.exception
    assert "Measuring did not finish" in texts(at) and HOSTILE in [element.value for element in at.text]
    assert button(at, "Measure again")


def _failed_job(model: Path) -> jobs.Job:
    error = {"class": "X", "message": HOSTILE}
    return jobs.Job(id="1", kind="measure", title="t", state="failed", created=0.0, error=error, folder=model)


def test_a_running_job_shows_its_title_as_text_and_can_be_cancelled():
    job = jobs.start("sleep", {"steps": 1000, "seconds": 0.05}, HOSTILE)
    at = page()
    assert HOSTILE in [element.value for element in at.text]
    at.button(key=f"sidebar cancel {job.id}").click().run()
    assert jobs.wait(job.id, 20).state == "cancelled"
    at.run()
    assert HOSTILE not in [element.value for element in at.text]


def test_cleaning_removes_what_can_be_made_again_and_leaves_exports(own_home):
    export = storage.folder("exports") / "mine"
    export.mkdir()
    (export / "model.safetensors").write_bytes(b"x" * 1000)
    (storage.folder("proofs") / "old.json").write_text("{}")
    at = page("open")
    at.button(key="clean").click().run()
    assert not at.exception
    assert (export / "model.safetensors").exists()
    assert not (storage.folder("proofs") / "old.json").exists()


# --- uploads ----------------------------------------------------------------------------------------------------------


def test_an_upload_becomes_a_folder_of_its_own_that_opens(llama):
    names = ("config.json", "model.safetensors")
    folder = uploads.keep([(name, (llama / name).read_bytes()) for name in names])
    assert folder.parent == storage.folder("uploads")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert len(cached.model(str(folder)).sites.sites) == 4


@pytest.mark.parametrize("name", ["../x.json", "/etc/x.json", ".hidden.json", "x.sh", "a\nb.json", "", "modeling.py"])
def test_an_upload_with_a_name_that_leads_elsewhere_is_refused_whole(name):
    with pytest.raises(UnsafeInput):
        uploads.keep([("config.json", b"{}"), (name, b"")])
    assert not list(storage.folder("uploads").iterdir())


# --- downloads --------------------------------------------------------------------------------------------------------


@pytest.fixture
def exported(tmp_path):
    folder = tmp_path / "balanced"
    (folder / "deep").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(os.urandom(9_000_001))
    (folder / "deep" / "tokenizer ü.json").write_text("{}")
    (folder / "empty.txt").touch()
    (folder / downloads.REPORT).write_text(json.dumps({"format": "wisca-report"}))
    (tmp_path / "secret").write_text("secret")
    (folder / "link").symlink_to(tmp_path / "secret")
    return folder


@pytest.fixture
def client():
    # the same routes and middleware as app/main.py, without Streamlit's own server around them
    from wisca_app.main import HOSTS

    server = Starlette(routes=downloads.ROUTES, middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=HOSTS)])
    return TestClient(server, base_url="http://127.0.0.1:8501")


def test_the_archive_holds_the_folder_byte_for_byte(client, exported):
    answer = client.get(downloads.address(downloads.link(exported)))
    assert answer.status_code == 200
    assert int(answer.headers["content-length"]) == len(answer.content)
    assert (
        "attachment" in answer.headers["content-disposition"]
        and "balanced.zip" in answer.headers["content-disposition"]
    )
    with zipfile.ZipFile(io.BytesIO(answer.content)) as zipped:
        assert zipped.testzip() is None
        assert sorted(zipped.namelist()) == [
            f"balanced/{n}" for n in ("deep/tokenizer ü.json", "empty.txt", "model.safetensors", downloads.REPORT)
        ]
        for info in zipped.infolist():
            assert info.compress_type == zipfile.ZIP_STORED
            assert zipped.read(info) == (exported.parent / info.filename).read_bytes()


def test_one_file_comes_alone_and_in_ranges(client, exported):
    address = downloads.address(downloads.link(exported), "model.safetensors")
    content = (exported / "model.safetensors").read_bytes()
    assert client.get(address).content == content
    part = client.get(address, headers={"range": "bytes=100-199"})
    assert part.status_code == 206 and part.content == content[100:200]
    assert client.get(downloads.address(downloads.link(exported), "deep/tokenizer ü.json")).content == b"{}"


@pytest.mark.parametrize("token", ["", "x", "A" * 43, "..", "%2e%2e"])
def test_a_token_that_was_never_given_opens_nothing(client, exported, token):
    downloads.link(exported)
    assert client.get(f"/download/{token}").status_code == 404
    assert client.get(f"/download/{token}/model.safetensors").status_code == 404


@pytest.mark.parametrize(
    "name",
    [
        "../secret",
        "..%2fsecret",
        "%2e%2e/secret",
        "deep/../../secret",
        "/etc/passwd",
        "%2fetc%2fpasswd",
        "link",
        "deep",
        "",
    ],
)
def test_no_name_leads_out_of_the_export(client, exported, name):
    answer = client.get(f"/download/{downloads.link(exported)}/{name}")
    assert answer.status_code == 404 and b"secret" != answer.content


def test_another_host_name_is_refused(client, exported):
    address = downloads.address(downloads.link(exported))
    assert client.get(address, headers={"host": "evil.example"}).status_code == 400
    assert client.get(address, headers={"host": "localhost:8501"}).status_code == 200


def test_asking_for_the_headers_reads_no_weights(client, exported, monkeypatch):
    monkeypatch.setattr(downloads, "archive", lambda entries: pytest.fail("the archive was read"))
    assert int(client.head(downloads.address(downloads.link(exported))).headers["content-length"]) > 9_000_001


def test_tokens_are_long_one_for_each_folder_and_only_for_finished_exports(tmp_path, exported):
    assert downloads.link(exported) == downloads.link(exported / ".." / "balanced")
    assert len(downloads.link(exported)) >= 43
    with pytest.raises(UnreadableInput):
        downloads.link(tmp_path)


def test_a_removed_export_is_gone_for_its_link_too(client, exported):
    address = downloads.address(downloads.link(exported))
    (exported / downloads.REPORT).unlink()
    assert client.get(address).status_code == 404


@pytest.fixture
def server(tmp_path):
    """The port of the real thing: ``streamlit run app/main.py`` from another folder."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "streamlit",
        "run",
        str(DASHBOARD.with_name("main.py")),
        "--server.port",
        str(port),
    ]
    running = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 60
        while _status(port, "/_stcore/health") != 200:
            assert running.poll() is None and time.monotonic() < until, "the server did not start"
            time.sleep(0.2)
        yield port
    finally:
        running.terminate()
        running.wait(20)


def _status(port: int, path: str, host: str = "127.0.0.1", at: str = "127.0.0.1") -> int:
    connection = http.client.HTTPConnection(at, port, timeout=5)
    try:
        connection.request("GET", path, headers={"Host": host})
        return connection.getresponse().status
    except OSError:
        return 0
    finally:
        connection.close()


def test_the_real_server_listens_here_only_knows_its_name_and_serves_the_download_routes(server):
    assert _status(server, "/") == 200
    assert _status(server, "/", host="evil.example") == 400
    assert _status(server, "/_stcore/stream", host="evil.example") == 400
    assert _status(server, "/download/" + "A" * 43) == 404
    elsewhere = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)} - {"127.0.0.1"}
    assert all(_status(server, "/", at=address) == 0 for address in elsewhere if not address.startswith("127."))


def _members(tmp_path, contents: list[bytes]) -> list[Member]:
    out = []
    for number, content in enumerate(contents):
        path = tmp_path / f"{number}.bin"
        path.write_bytes(content)
        out.append(Member(path.name, path, len(content), 1_700_000_000.0))
    return out


@pytest.mark.parametrize("limit", [1, 50, 1000])
def test_archives_over_the_old_limits_carry_zip64_records(tmp_path, monkeypatch, limit):
    monkeypatch.setattr(archives, "LIMIT", limit)
    contents = [b"a" * 10, b"b" * 400, b"", b"c" * 2000]
    members = _members(tmp_path, contents)
    written = b"".join(archive(members))
    assert len(written) == archive_bytes(members)
    assert b"PK\x06\x06" in written
    with zipfile.ZipFile(io.BytesIO(written)) as zipped:
        assert zipped.testzip() is None
        assert [zipped.read(member.name) for member in members] == contents


def test_a_file_that_shrinks_while_it_is_sent_ends_the_archive_with_an_error(tmp_path):
    (member,) = _members(tmp_path, [b"a" * 10])
    with pytest.raises(CheckpointChanged):
        b"".join(archive([Member(member.name, member.path, 11, member.mtime)]))


def test_cells_that_a_spreadsheet_would_run_are_disarmed():
    import pandas as pd

    table = pd.DataFrame({"=name": ["=1+1", "+x", "-y", "@z", "plain"], "value": [-1.5, 0.1, 2, 3, 4]})
    lines = csv_bytes(table).decode().splitlines()
    assert lines == ["'=name,value", "'=1+1,-1.5", "'+x,0.1", "'-y,2.0", "'@z,3.0", "plain,4.0"]
