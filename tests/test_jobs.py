"""Jobs as folders and real processes: nothing here replaces the worker."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from wisca_core import jobs, storage
from wisca_core.errors import BadOption, Cancelled, OutputRefused
from wisca_core.jobs import worker
from wisca_core.progress import FolderProgress, silent


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("WISCA_HOME", str(tmp_path / "kept"))
    yield tmp_path / "kept"
    for job in jobs.every():
        if storage.is_held(job.folder / "lock"):
            jobs.cancel(job.id, kill_after=0)


def sleeping(steps: int = 1000, seconds: float = 0.02, **options) -> jobs.Job:
    return jobs.start("sleep", {"steps": steps, "seconds": seconds}, "a test", **options)


def until(condition, seconds: float = 10.0):
    """The first true value of ``condition()``."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.01)
    raise AssertionError("it never happened")


def counting(id: str, more_than: float = 0) -> jobs.Job:
    return until(lambda: (job := jobs.read(id)).state == "running" and job.done > more_than and job)


def worker_pid(job: jobs.Job) -> int:
    return until(lambda: (text := (job.folder / "lock").read_text()) and json.loads(text)["pid"])


def kill_9(job: jobs.Job) -> None:
    os.kill(worker_pid(job), signal.SIGKILL)
    until(lambda: not storage.is_held(job.folder / "lock"))


# --- the course of a job ----------------------------------------------------------------------------------------------


def test_a_job_shows_progress_and_ends_with_its_result():
    job = sleeping(40, 0.02)
    assert job.state == "queued" and job.is_active and job.result is None and job.finished is None
    first = counting(job.id)
    assert first.step == "counting" and first.total == 40 and first.started >= first.created
    later = counting(job.id, more_than=first.done)
    assert later.updated > first.updated
    done = jobs.wait(job.id, 10)
    assert (done.state, done.done, done.total, done.result, done.error) == ("done", 40, 40, {"counted": 40}, None)
    assert done.created <= done.started <= done.finished <= time.time()
    assert done.arguments == {"steps": 40, "seconds": 0.02} and done.title == "a test" and done.kind == "sleep"
    assert (done.folder / "log.txt").read_text() == "counting to 40\n"
    assert jobs.every() == [done]


def test_a_named_error_fails_the_job_with_its_own_words():
    failed = jobs.wait(sleeping(-3).id, 10)
    assert failed.state == "failed" and failed.result is None
    assert failed.error == {"class": "BadOption", "message": "steps is -3; expected 0 or more."}


def test_an_unexpected_error_shows_its_last_line_and_keeps_the_trace_in_the_log():
    failed = jobs.wait(jobs.start("sleep", {"steps": 1}, "no seconds").id, 10)
    assert failed.state == "failed" and failed.error["class"] == "KeyError"
    assert failed.error["message"].startswith("KeyError: 'seconds' (unexpected;")
    assert "Traceback" not in failed.error["message"]
    assert "Traceback" in (failed.folder / "log.txt").read_text()


def test_an_unknown_kind_and_bad_arguments_start_nothing():
    with pytest.raises(BadOption, match="'os:system'.*sleep"):
        jobs.start("os:system", {}, "no")
    with pytest.raises(TypeError):
        jobs.start("sleep", {"steps": object()}, "no")
    assert os.listdir(storage.folder("jobs")) == []


def test_cancel_stops_at_the_next_progress_call():
    job = counting(sleeping().id)
    assert jobs.cancel(job.id).state in ("running", "cancelled")
    stopped = jobs.wait(job.id, 5)
    assert stopped.state == "cancelled" and stopped.error["class"] == "Cancelled" and stopped.finished
    assert stopped.error["message"] == "cancelled during: counting. Nothing was left behind."
    assert jobs.cancel(job.id) == stopped


def test_cancel_with_force_interrupts_work_that_does_not_listen():
    job = sleeping(2, 60)
    until(lambda: jobs.read(job.id).step == "counting")
    started = time.monotonic()
    stopped = jobs.cancel(job.id, kill_after=0.2)
    assert stopped.state == "cancelled" and "SIGTERM" in stopped.error["message"]
    assert 0.2 <= time.monotonic() - started < 3


def test_cancel_with_force_kills_what_cannot_answer(monkeypatch):
    monkeypatch.setattr("wisca_core.jobs.control.TERM_SECONDS", 0.3)
    job = counting(sleeping().id)
    os.kill(worker_pid(job), signal.SIGSTOP)
    stopped = jobs.cancel(job.id, kill_after=0)
    assert stopped.state == "cancelled" and "ended without a last word" in stopped.error["message"]
    assert not storage.is_held(job.folder / "lock")


def test_cancel_never_signals_a_stored_number_whose_lock_is_free(monkeypatch):
    job = counting(sleeping().id)
    kill_9(job)
    calls = []
    monkeypatch.setattr(os, "killpg", lambda *call: calls.append(call))
    assert jobs.cancel(job.id, kill_after=0).state == "lost"
    assert calls == []


def test_cancel_does_not_signal_a_worker_that_ended_while_it_waited(monkeypatch):
    job = counting(sleeping().id)
    calls = []
    monkeypatch.setattr(os, "killpg", lambda *call: calls.append(call))

    def ends_just_after_the_look(lock, patience):
        if storage.is_held(lock):
            kill_9(job)
        return False

    monkeypatch.setattr("wisca_core.jobs.control._is_free", ends_just_after_the_look)
    assert jobs.cancel(job.id, kill_after=0).state == "cancelled"
    assert calls == []


def test_a_job_killed_by_the_system_is_lost_and_can_be_removed():
    job = counting(sleeping().id)
    kill_9(job)
    lost = jobs.read(job.id)
    assert lost.state == "lost" and not lost.is_active and lost.error["class"] == "Lost"
    message = lost.error["message"]
    assert "ended without a word during: counting" in message and "Start it again" in message
    assert lost.done >= job.done and jobs.wait(job.id, 0) == lost
    n_bytes = sum(path.stat().st_size for path in job.folder.iterdir())
    assert jobs.remove(job.id) == n_bytes
    assert jobs.every() == []
    with pytest.raises(BadOption, match="there is no job"):
        jobs.read(job.id)


def test_a_job_outlives_the_process_that_started_it():
    code = "from wisca_core import jobs; print(jobs.start('sleep', {'steps': 25, 'seconds': 0.02}, 'an orphan').id)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    id = ended.stdout.strip()
    assert counting(id).title == "an orphan"
    assert jobs.wait(id, 10).result == {"counted": 25}


def test_a_job_leads_its_own_session_and_its_server_can_be_killed_with_its_group():
    code = (
        "import time; from wisca_core import jobs; "
        "print(jobs.start('sleep', {'steps': 1000, 'seconds': 0.02}, 'served').id, flush=True); time.sleep(60)"
    )
    server = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True)
    id = server.stdout.readline().strip()
    counting(id)
    os.killpg(server.pid, signal.SIGKILL)
    server.wait()
    server.stdout.close()
    seen = jobs.read(id)
    assert seen.state == "running"
    counting(id, more_than=seen.done)
    assert os.getsid(worker_pid(seen)) == worker_pid(seen) != os.getsid(0)


def test_a_module_in_the_current_folder_is_not_imported_by_the_worker(tmp_path, monkeypatch):
    (tmp_path / "fcntl.py").write_text("open('imported', 'w')")
    (tmp_path / "platformdirs.py").write_text("open('imported', 'w')")
    monkeypatch.chdir(tmp_path)
    assert jobs.wait(sleeping(1, 0).id, 10).state == "done"
    assert not (tmp_path / "imported").exists()


# --- one at a time ----------------------------------------------------------------------------------------------------


def test_a_second_job_with_the_same_key_is_refused_naming_the_first():
    first = sleeping(exclusive="/out")
    with pytest.raises(OutputRefused, match=rf"job {first.id} \(a test\) is already working on /out"):
        sleeping(exclusive="/out")
    other = sleeping(exclusive="/elsewhere")
    assert {job.id for job in jobs.every()} == {first.id, other.id}
    kill_9(first)
    assert sleeping(exclusive="/out").exclusive == "/out"


def test_of_many_that_start_at_once_exactly_one_gets_the_key():
    code = (
        "import sys; from wisca_core import jobs; from wisca_core.errors import OutputRefused; sys.stdin.readline()\n"
        "try: print(jobs.start('sleep', {'steps': 1000, 'seconds': 0.02}, 'racer', exclusive='/out').id)\n"
        "except OutputRefused as error: print('refused', error)"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    racers = [subprocess.Popen([sys.executable, "-c", code], **pipes) for _ in range(5)]
    time.sleep(0.3)
    for racer in racers:
        racer.stdin.write("go\n")
        racer.stdin.flush()
    said = [racer.communicate(timeout=30)[0] for racer in racers]
    assert sorted(text.startswith("refused job ") for text in said) == [False, True, True, True, True], said
    assert len(jobs.every()) == 1


# --- reading ----------------------------------------------------------------------------------------------------------


def test_a_status_is_never_seen_half_written_nor_a_live_job_as_lost():
    job = sleeping(25, 0.02)
    seen, wrong, stop = set(), [], threading.Event()

    def hammer():
        while not stop.is_set():
            found = jobs.read(job.id)
            seen.add(found.state)
            if found.state not in ("queued", "running", "done"):
                wrong.append(found)

    readers = [threading.Thread(target=hammer) for _ in range(2)]
    for reader in readers:
        reader.start()
    # Writes of its own, far more often than a worker makes them.
    other = job.folder.parent / "busy"
    other.mkdir()
    spec = {"kind": "sleep", "title": "busy", "created": 1, "arguments": {}, "exclusive": None}
    storage.write_json(other / "spec.json", "wisca-job", 1, spec)
    descriptor = storage.take_lock(other / "lock")
    progress = FolderProgress(other)
    try:
        while jobs.read(job.id).is_active:
            progress._write()
            assert jobs.read("busy").state == "running"
    finally:
        stop.set()
        for reader in readers:
            reader.join()
        os.close(descriptor)
    assert wrong == [] and {"running"} <= seen <= {"queued", "running", "done"}
    assert jobs.read(job.id).state == "done"


def test_a_job_that_ends_between_two_looks_is_done_not_lost(monkeypatch):
    folder = storage.folder("jobs") / "ending"
    folder.mkdir()
    spec = {"kind": "sleep", "title": "ending", "created": 1, "arguments": {}, "exclusive": None}
    storage.write_json(folder / "spec.json", "wisca-job", 1, spec)
    storage.write_json(folder / "result.json", "wisca-job-result", 1, {"result": {"a": 1}})
    progress = FolderProgress(folder)
    monkeypatch.setattr(storage, "is_held", lambda lock: not progress.finish("done"))
    assert jobs.read("ending").state == "done"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("status.json", b"", "status.json is not a wisca-job-status file: it is empty"),
        ("status.json", b'{"format": "wisca-job-status", "version": 1, "state": "done"', "cut short"),
        ("status.json", b'{"format": "wisca-job-status", "version": 1, "state": "flying"}', "'flying'"),
        ("status.json", b'{"format": "wisca-job-status", "version": 1, "state": ["done"]}', "does not belong there"),
        ("status.json", b'{"format": "wisca-job-status", "version": 1, "state": "failed"}', "'error'"),
        ("status.json", b'{"format": "wisca-job-status", "version": 9}', "version 9, newer"),
        ("status.json", None, "does not exist"),
        ("spec.json", b"\x00\xff", "not text"),
        ("spec.json", None, "does not exist"),
        ("result.json", b'{"format": "wisca-job-result", "version": 1, "result": 5}', "not an object"),
        ("result.json", None, "does not exist"),
    ],
)
def test_damaged_folders_are_listed_as_damaged_and_can_be_removed(own_home, name, content, words):
    folder = storage.folder("jobs") / "hurt"
    folder.mkdir()
    spec = {"kind": "sleep", "title": "hurt", "created": 5.0, "arguments": {}, "exclusive": None}
    storage.write_json(folder / "spec.json", "wisca-job", 1, spec)
    storage.write_json(folder / "result.json", "wisca-job-result", 1, {"result": {"a": 1}})
    assert FolderProgress(folder).finish("done")
    assert jobs.read("hurt").result == {"a": 1}
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    (job,) = jobs.every()
    assert job.state == "damaged" and job.id == "hurt" and words in job.error["message"], job.error
    assert jobs.cancel("hurt").state == "damaged"
    assert jobs.remove("hurt") > 0 and jobs.every() == []


def test_a_damaged_status_of_a_live_worker_heals_and_protects_the_folder():
    job = counting(sleeping().id)
    os.kill(worker_pid(job), signal.SIGSTOP)
    (job.folder / "status.json").write_text("{")
    assert jobs.read(job.id).state == "damaged"
    with pytest.raises(BadOption, match="still running"):
        jobs.remove(job.id)
    os.kill(worker_pid(job), signal.SIGCONT)
    until(lambda: jobs.read(job.id).state == "running")
    (job.folder / "spec.json").write_text("{")
    assert jobs.cancel(job.id, kill_after=5).state == "damaged"
    assert not storage.is_held(job.folder / "lock")


def test_jobs_are_listed_newest_first_and_foreign_things_do_no_harm(tmp_path):
    ids = [sleeping(0, 0).id for _ in range(3)]
    (storage.folder("jobs") / "a file").touch()
    (storage.folder("jobs") / "a link").symlink_to(tmp_path)
    listed = [job.id for job in jobs.every()]
    assert [id for id in listed if id in ids] == ids[::-1]
    assert set(listed) == {*ids, "a link"} and jobs.read("a link").state == "damaged"
    assert jobs.remove("a link") == 0 and tmp_path.is_dir()


@pytest.mark.parametrize("id", ["", ".", "..", "../jobs", "/etc", "a/b", ".hidden", "nul\0", "not there"])
def test_ids_cannot_leave_the_folder_of_jobs(id):
    for function in (jobs.read, jobs.cancel, jobs.remove):
        with pytest.raises(BadOption):
            function(id)


def test_sizes_count_jobs_and_clean_keeps_running_ones():
    running = counting(sleeping().id)
    ended = sleeping(0, 0)
    assert jobs.wait(ended.id, 10).state == "done"
    until(lambda: not storage.is_held(ended.folder / "lock"))
    n_bytes = sum(path.stat().st_size for path in ended.folder.iterdir())
    assert storage.sizes()["jobs"] > n_bytes
    with pytest.raises(BadOption, match="still running"):
        jobs.remove(running.id)
    assert storage.clean(["jobs"]) == n_bytes
    assert [job.id for job in jobs.every()] == [running.id]
    counting(running.id, more_than=running.done)


# --- progress ---------------------------------------------------------------------------------------------------------


def test_progress_writes_seldom_and_a_new_step_at_once(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    progress = FolderProgress(tmp_path)

    def told():
        found = storage.read_json(tmp_path / "status.json", "wisca-job-status", 1)
        return found["step"], found["done"]

    progress("reading", 1, 10)
    assert told() == ("reading", 1)
    now[0] += 0.19
    progress("reading", 2, 10)
    assert told() == ("reading", 1)
    now[0] += 0.02
    progress("reading", 3, 10)
    assert told() == ("reading", 3)
    now[0] += 0.03
    progress("writing", 0, float("nan"))
    assert told() == ("writing", 0)


def test_a_full_disk_does_not_stop_the_work(tmp_path, monkeypatch):
    progress = FolderProgress(tmp_path)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        progress("reading", 1, 2)
        timer = threading.Timer(0.3, patch.undo)
        timer.start()
        assert progress.finish("done"), "the last word was not tried again"
        timer.join()
    assert storage.read_json(tmp_path / "status.json", "wisca-job-status", 1)["state"] == "done"


def test_a_finished_result_waits_for_a_full_disk(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        timer = threading.Timer(0.3, patch.undo)
        timer.start()
        worker._keep(tmp_path / "result.json", {"a": 1})
        timer.join()
    assert storage.read_json(tmp_path / "result.json", "wisca-job-result", 1) == {"result": {"a": 1}}


def test_progress_raises_cancelled_for_the_marker_and_for_a_removed_folder(tmp_path):
    (tmp_path / "job").mkdir()
    progress = FolderProgress(tmp_path / "job")
    progress("reading", 1, 2)
    (tmp_path / "job" / "cancel").touch()
    time.sleep(0.11)
    with pytest.raises(Cancelled, match="cancelled during: reading"):
        progress("reading", 2, 2)
    storage.remove_entry(tmp_path / "job")
    time.sleep(0.11)
    with pytest.raises(Cancelled, match="folder was removed"):
        progress("reading", 2, 2)
    assert silent("reading", 1, 2) is None


def test_starting_and_reading_do_not_import_the_slow_libraries():
    code = "import sys, wisca_core.jobs.worker; print(sorted({'torch', 'transformers', 'pandas'} & set(sys.modules)))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert ended.stdout.strip() == "[]"


def test_the_worker_refuses_to_run_without_its_lock():
    command = [sys.executable, "-m", "wisca_core.jobs.worker", str(Path("/nowhere"))]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert ended.returncode == 2 and "usage" in ended.stderr
