"""The folder of everything kept between runs: where it is, what it refuses, what cleaning may and may not touch."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from wisca_core import storage
from wisca_core.errors import BadOption, OutputRefused, UnreadableInput, UnsafeInput


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch) -> Path:
    path = tmp_path / "kept"
    monkeypatch.setenv("WISCA_HOME", str(path))
    return path


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_home_and_its_folders_are_created_for_their_owner_only(own_home):
    assert storage.home() == own_home and mode(own_home) == 0o700
    for name in ("jobs", "measurements", "proofs", "comparisons", "exports", "uploads"):
        assert storage.folder(name) == own_home / name
        assert mode(own_home / name) == 0o700


def test_home_defaults_to_the_user_data_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("WISCA_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    assert storage.home().name == "wisca" and tmp_path in storage.home().parents


def test_home_that_is_a_file_is_refused_by_name(own_home):
    own_home.write_text("x")
    with pytest.raises(BadOption, match=f"{own_home}.*a file is in its place"):
        storage.home()


def test_other_folders_and_linked_folders_are_refused(own_home, tmp_path):
    with pytest.raises(BadOption, match="'secrets'.*jobs, measurements"):
        storage.folder("secrets")
    (tmp_path / "outside").mkdir()
    storage.home()
    (own_home / "exports").symlink_to(tmp_path / "outside")
    with pytest.raises(UnsafeInput, match="exports is a link to .*outside"):
        storage.clean(["exports"])


# --- JSON -------------------------------------------------------------------------------------------------------------


def test_json_begins_with_format_and_version_and_comes_back(tmp_path):
    path = tmp_path / "plan.json"
    payload = {"strength": 0.5, "layers": [0, 1], "name": "Größe", "nothing": None, "odd": os.fsdecode(b"a\xff")}
    storage.write_json(path, "wisca-plan", 1, payload)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[:4] == ["{", '"format": "wisca-plan",', '"version": 1,', '"strength": 0.5,']
    assert '"name": "Größe",' in lines
    assert json.loads(path.read_text(encoding="utf-8")) == {"format": "wisca-plan", "version": 1, **payload}
    assert storage.read_json(path, "wisca-plan", 1) == payload
    assert os.listdir(tmp_path) == ["plan.json"]


def test_newer_and_older_versions_are_refused_by_number(tmp_path):
    path = tmp_path / "plan.json"
    storage.write_json(path, "wisca-plan", 3, {})
    with pytest.raises(UnreadableInput, match=f"{path} is wisca-plan version 3, newer than version 2.*Update wisca"):
        storage.read_json(path, "wisca-plan", 2)
    with pytest.raises(UnreadableInput, match=f"{path} is wisca-plan version 3, older than version 4"):
        storage.read_json(path, "wisca-plan", 4)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b'{"format": "wisca-plan", "version": 1, "a": [1,', "damaged or was cut short"),
        (b'{"format": "wisca-plan", "a": "\xff"}', "UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"format": "wisca-plan", "version": 1, "a": ' + b"9" * 5_000 + b"}", "not a wisca-plan file"),
        (b'{"format": "wisca-plan", "version": 1, "a": NaN}', "NaN is not JSON"),
        (b'{"format": "wisca-plan", "version": 1, "a": 1, "a": 2}', "'a' is there more than once"),
        (b'["wisca-plan", 1]', 'no "format"'),
        (b'{"format": "wisca-report", "version": 1}', "'wisca-report'; expected 'wisca-plan'"),
        (b'{"format": "wisca-plan"}', 'no usable "version"'),
        (b'{"format": "wisca-plan", "version": true}', 'no usable "version"'),
        (b'{"format": "wisca-plan", "version": 0}', 'no usable "version"'),
    ],
)
def test_what_is_not_our_json_is_refused_naming_the_file(tmp_path, content, words):
    path = tmp_path / "plan.json"
    path.write_bytes(content)
    with pytest.raises(UnreadableInput) as caught:
        storage.read_json(path, "wisca-plan", 1)
    assert str(path) in str(caught.value) and words in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(path))


def test_missing_files_folders_and_fifos_are_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for name, words in (("missing", "does not exist"), (".", "not a regular file"), ("fifo", "not a regular file")):
        with pytest.raises(UnreadableInput, match=words):
            storage.read_json(tmp_path / name, "wisca-plan", 1)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "plan.json"
    storage.write_json(path, "wisca-plan", 1, {"a": 1})

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(OutputRefused, match=f"{path} cannot be written: the disk is full"):
            storage.write_json(path, "wisca-plan", 1, {"a": 2})
    with pytest.raises(ValueError):
        storage.write_json(path, "wisca-plan", 1, {"a": float("nan")})
    with pytest.raises(OutputRefused, match="no such file or directory"):
        storage.write_json(tmp_path / "missing" / "plan.json", "wisca-plan", 1, {})
    assert storage.read_json(path, "wisca-plan", 1) == {"a": 1}
    assert os.listdir(tmp_path) == ["plan.json"]


# --- locks ------------------------------------------------------------------------------------------------------------


def test_a_lock_is_held_until_its_holder_is_killed(tmp_path):
    lock = tmp_path / "lock"
    assert not storage.is_held(lock) and not lock.exists()
    code = "import sys, time; from pathlib import Path; from wisca_core import storage; " + (
        "storage.take_lock(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(lock)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        assert storage.is_held(lock)
        assert storage.take_lock(lock, patience=0.05) is None
        with pytest.raises(OutputRefused, match="held by another process"), storage.hold_lock(lock, patience=0.05):
            raise AssertionError("entered")
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    assert not storage.is_held(lock)
    with storage.hold_lock(lock, patience=0):
        assert storage.is_held(lock)
    assert not storage.is_held(lock)


def test_whoever_only_asks_is_not_taken_for_the_holder(tmp_path):
    lock = tmp_path / "lock"
    lock.touch()
    asking = os.open(lock, os.O_RDONLY)
    fcntl.flock(asking, fcntl.LOCK_SH)  # what is_held does for an instant in another process
    assert not storage.is_held(lock)
    os.close(asking)


# --- sizes and cleaning -----------------------------------------------------------------------------------------------


def test_sizes_count_files_and_never_follow_links(own_home, tmp_path):
    (tmp_path / "big").write_bytes(bytes(10_000))
    (storage.folder("proofs") / "a").write_bytes(bytes(3))
    (storage.folder("exports") / "model").mkdir()
    (own_home / "exports" / "model" / "w").write_bytes(bytes(40))
    (own_home / "exports" / "model" / "link").symlink_to(tmp_path / "big")
    (own_home / "exports" / "up").symlink_to(tmp_path)
    nothing = dict.fromkeys(("jobs", "measurements", "comparisons", "uploads", "sites"), 0)
    assert storage.sizes() == nothing | {"proofs": 3, "exports": 40}
    assert list(storage.sizes()) == list(storage.FOLDERS)


def test_clean_frees_the_named_folders_and_removes_links_not_their_targets(own_home, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_bytes(bytes(10))
    (storage.folder("exports") / "model").mkdir()
    (own_home / "exports" / "model" / "w").write_bytes(bytes(40))
    (own_home / "exports" / "model" / "inner").symlink_to(outside)
    (own_home / "exports" / "link").symlink_to(outside)
    (storage.folder("jobs") / "linked").symlink_to(outside)
    (storage.folder("proofs") / "p.json").write_bytes(bytes(5))
    assert storage.clean(["exports", "jobs", "exports"]) == 40
    assert (outside / "kept").read_bytes() == bytes(10)
    assert os.listdir(own_home / "exports") == [] and os.listdir(own_home / "jobs") == []
    assert storage.sizes()["proofs"] == 5
    with pytest.raises(BadOption, match="'everything'"):
        storage.clean(["proofs", "everything"])
    assert storage.sizes()["proofs"] == 5


def test_clean_keeps_a_running_job_and_whatever_its_arguments_name(own_home):
    for name in ("running", "ended"):
        (storage.folder("jobs") / name).mkdir()
        (own_home / "jobs" / name / "lock").touch()
        (own_home / "jobs" / name / "log.txt").write_bytes(bytes(7))
    arguments = {
        "model": str(storage.folder("uploads") / "mine" / "w"),
        "out": [str(storage.folder("exports") / "out")],
    }
    storage.write_json(own_home / "jobs" / "running" / "spec.json", "wisca-job", 1, {"arguments": arguments})
    for name in ("uploads/mine", "uploads/other", "exports/.out.partial", "exports/older"):
        (own_home / name).mkdir()
        (own_home / name / "w").write_bytes(bytes(100))
        age(own_home / name, 3600)
    descriptor = storage.take_lock(own_home / "jobs" / "running" / "lock")
    try:
        assert storage.clean(storage.FOLDERS) == 7 + 100 + 100
        assert os.listdir(own_home / "jobs") == ["running"]
        assert (own_home / "jobs" / "running" / "log.txt").read_bytes() == bytes(7)
        assert os.listdir(own_home / "uploads") == ["mine"] and os.listdir(own_home / "exports") == [".out.partial"]
        assert storage.remove_entry(own_home / "jobs" / "running") is None
    finally:
        os.close(descriptor)
    storage.clean(storage.FOLDERS)
    assert set(storage.sizes().values()) == {0}


def test_clean_leaves_young_files_beside_their_final_name(own_home):
    for name, seconds in ((".young", 60), (".old", 3600)):
        (storage.folder("measurements") / name).write_bytes(bytes(9))
        age(own_home / "measurements" / name, seconds)
    assert storage.clean(["measurements"]) == 9
    assert os.listdir(own_home / "measurements") == [".young"]


def test_a_folder_of_ours_is_never_named_to_the_person():
    with pytest.raises(UnreadableInput) as told, storage.workplace("the miniature") as place:
        raise UnreadableInput(f"{place}/base does not load; see {place}/base-0/model.safetensors, {place}.")
    assert str(told.value) == "the miniature does not load; see model.safetensors of the miniature, the miniature."
    assert not place.exists()
