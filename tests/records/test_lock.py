import errno
import json
import os
import subprocess
import sys

import pytest

from lit_hass.errors import UserError
from lit_hass.records import FolderLock, lock
from lit_hass.records.atomic import TEMPORARY_SUFFIX

posix = pytest.mark.skipif(sys.platform == "win32", reason="needs flock")
HOLD = """
import sys
from lit_hass.records import FolderLock
with FolderLock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.readline()
"""


@posix
def test_a_second_process_is_refused_and_told_who_holds_it(tmp_path, spawn):
    holder = spawn(HOLD, tmp_path / "run")
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=f"another run is writing here .process {holder.pid} on ") as caught:
        FolderLock(tmp_path / "run").acquire()
    assert str(tmp_path / "run") in str(caught.value)
    assert "delete" not in str(caught.value)
    holder.communicate("\n", timeout=30)
    assert holder.returncode == 0
    assert os.listdir(tmp_path / "run") == []
    with FolderLock(tmp_path / "run"):
        pass


@posix
def test_a_killed_holder_blocks_nobody(tmp_path, spawn):
    holder = spawn(HOLD, tmp_path)
    assert holder.stdout.readline() == "held\n"
    holder.kill()
    holder.wait()
    assert json.loads((tmp_path / "run.lock").read_text())["pid"] == holder.pid
    with FolderLock(tmp_path):
        assert json.loads((tmp_path / "run.lock").read_text())["pid"] == os.getpid()
    assert os.listdir(tmp_path) == []


@posix
def test_never_two_holders_among_processes_that_compete(tmp_path, spawn):
    code = """
import os, sys, time
from pathlib import Path
from lit_hass.errors import UserError
from lit_hass.records import FolderLock
folder, end = Path(sys.argv[1]), time.monotonic() + 1.5
taken = 0
while time.monotonic() < end:
    try:
        with FolderLock(folder / "run"):
            # Fails if another process is inside; FileExistsError makes the exit status 1.
            os.close(os.open(folder / "inside", os.O_CREAT | os.O_EXCL))
            taken += 1
            os.unlink(folder / "inside")
    except UserError:
        pass
print(taken)
"""
    processes = [spawn(code, tmp_path) for _ in range(3)]
    results = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], results
    assert all(int(out) > 0 for out, _ in results)


def test_the_same_process_cannot_take_it_twice(tmp_path):
    with FolderLock(tmp_path) as first:
        with pytest.raises(UserError, match=f"process {os.getpid()} on"):
            FolderLock(tmp_path).acquire()
        with pytest.raises(RuntimeError, match="held by this object already"):
            first.acquire()
        # The refused attempts have not loosened it.
        with pytest.raises(UserError):
            FolderLock(tmp_path).acquire()


def test_released_by_an_error_and_twice(tmp_path):
    held = FolderLock(tmp_path)
    with pytest.raises(KeyError), held:
        raise KeyError
    held.release()
    with held:
        assert (tmp_path / "run.lock").exists()
    assert not (tmp_path / "run.lock").exists()


@posix
def test_a_forked_child_does_not_release_it(tmp_path, spawn):
    code = """
import os, sys
from lit_hass.errors import UserError
from lit_hass.records import FolderLock
held = FolderLock(sys.argv[1]).acquire()
child = os.fork()
if child == 0:
    held.release()
    os._exit(0)
os.waitpid(child, 0)
assert os.path.exists(held.path)
try:
    FolderLock(sys.argv[1]).acquire()
except UserError as error:
    print(error)
"""
    out, err = spawn(code, tmp_path).communicate(timeout=30)
    assert "another run is writing here" in out, err


@posix
def test_a_lock_file_removed_by_its_holder_meanwhile_is_no_lock(tmp_path, monkeypatch):
    path = tmp_path / "run.lock"
    path.write_text("")
    flock = lock.fcntl.flock
    calls = []

    def remove_first(descriptor, operation):
        if not calls:
            path.unlink()
        calls.append(operation)
        flock(descriptor, operation)

    monkeypatch.setattr(lock.fcntl, "flock", remove_first)
    with FolderLock(tmp_path):
        assert len(calls) == 2
        monkeypatch.undo()
        with pytest.raises(UserError):
            FolderLock(tmp_path).acquire()


def test_taking_it_clears_the_rubbish_of_killed_runs(tmp_path):
    (tmp_path / f".answers.jsonl.1{TEMPORARY_SUFFIX}").write_text("half")
    (tmp_path / "answers.jsonl").write_text("whole")
    with FolderLock(tmp_path):
        assert sorted(os.listdir(tmp_path)) == ["answers.jsonl", "run.lock"]


def test_unwritable_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write into folder"):
        FolderLock(tmp_path / "file").acquire()
    (tmp_path / "run.lock").mkdir()
    with pytest.raises(UserError, match="run.lock: cannot be locked: Is a directory"):
        FolderLock(tmp_path).acquire()


@pytest.fixture(params=["no fcntl", "no flock here"])
def without_flock(request, monkeypatch):
    if request.param == "no fcntl":
        monkeypatch.setattr(lock, "fcntl", None)
    else:

        def refuse(descriptor, operation):
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(lock.fcntl, "flock", refuse)


def test_without_flock_the_existence_of_the_file_is_the_lock(tmp_path, without_flock):
    with FolderLock(tmp_path):
        with pytest.raises(UserError, match=f"process {os.getpid()} on .*; if that run is dead, delete .*run.lock"):
            FolderLock(tmp_path).acquire()
        assert (tmp_path / "run.lock").exists()
    assert os.listdir(tmp_path) == []
    with FolderLock(tmp_path):
        pass


@posix
def test_other_lock_errors_are_not_taken_for_a_missing_flock(tmp_path, monkeypatch):
    def broken(descriptor, operation):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(lock.fcntl, "flock", broken)
    with pytest.raises(UserError, match="cannot be locked: Input/output error"):
        FolderLock(tmp_path).acquire()


@posix
def test_worker_programs_started_meanwhile_do_not_keep_it(tmp_path):
    with FolderLock(tmp_path):
        worker = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, close_fds=False)
    try:
        with FolderLock(tmp_path):
            assert worker.poll() is None
    finally:
        worker.communicate(b"\n")


def test_a_lock_that_cannot_be_noted_is_given_back(tmp_path, monkeypatch):
    def full(descriptor, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(UserError, match="cannot be locked: No space left on device"):
            FolderLock(tmp_path).acquire()
    assert os.listdir(tmp_path) == []
    with FolderLock(tmp_path):
        pass
