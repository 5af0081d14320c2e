"""A run killed at any moment and resumed ends with every question exactly once."""

import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lit_hass.records import (
    RunFolder,
    ShardWriter,
    claim,
    completed_ids,
    merge_shards,
    read_answers,
    remove_leftovers,
)


def write(folder, rank, *answers):
    with ShardWriter(folder, rank) as writer:
        writer.write(answers)


def ids(path):
    return [answer["question_id"] for answer in read_answers(path)]


# Runs as a command does them, each in a fork: killed before its n-th disk operation for n = 1, 2, ..., then resumed.
# One line a kill: status of the killed run, ids answered before the resume, ids the resume asked, status of the resume.
KILL_AND_RESUME = """
import itertools, json, os, signal, sys
from lit_hass.records import FolderLock, ShardWriter, claim, completed_ids, merge_shards
root, order, template = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])

def run(folder, kill):
    counter = itertools.count(1)
    def step():
        if next(counter) == kill:
            os.kill(os.getpid(), signal.SIGKILL)
    def audit(event, args):
        if event in ("open", "os.rename", "os.remove", "os.mkdir", "os.truncate") and str(args[0]).startswith(folder):
            step()
    fsync = os.fsync
    os.fsync = lambda descriptor: (step(), fsync(descriptor), step())
    sys.addaudithook(audit)
    with FolderLock(folder):
        claim(folder, {"seed": 1})
        done = completed_ids(folder)
        todo = [i for i in order if i not in done]
        for rank in range(2):
            with ShardWriter(folder, rank) as writer:
                for i in todo[rank::2]:
                    writer.write([{**template, "question_id": i}])
        merge_shards(folder, order)
    return todo

def fork(folder, kill):
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, json.dumps(run(folder, kill)).encode())
        os._exit(0)
    os.close(writing)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with open(reading) as pipe:
        return status, pipe.read()

for kill in itertools.count(1):
    folder = f"{root}/run{kill}"
    status, _ = fork(folder, kill)
    answered = list(completed_ids(folder))
    again, asked = fork(folder, 0)
    print(json.dumps([status, answered, json.loads(asked), again]), flush=True)
    if status == 0:
        break
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_killed_before_every_single_disk_operation_then_resumed(tmp_path, answer, spawn):
    order = [0, 1, "1", 3]
    process = spawn(KILL_AND_RESUME, tmp_path, json.dumps(order), json.dumps(answer(0)))
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    *killed, whole = [json.loads(line) for line in out.splitlines()]
    assert whole == [0, whole[1], [], 0]
    assert len(killed) > 30
    assert {len(answered) for _, answered, _, _ in killed} == {0, 1, 2, 3, 4}
    for number, (status, answered, asked, again) in enumerate(killed, start=1):
        assert (status, again) == (-signal.SIGKILL, 0), err
        assert asked == [i for i in order if i not in answered]
        folder = tmp_path / f"run{number}"
        assert ids(folder / "answers.jsonl") == order
        assert sorted(os.listdir(folder)) == ["answers.jsonl", "run_key.json"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_killed_again_and_again_while_writing(tmp_path, answer, spawn):
    code = """
import json, sys
from lit_hass.records import ShardWriter, completed_ids
folder, template = sys.argv[1], json.loads(sys.argv[2])
done = completed_ids(folder)
with ShardWriter(folder, len(done) % 2) as writer:
    print("ready", flush=True)
    for i in range(1_000_000):
        if i not in done:
            writer.write([{**template, "question_id": i}])
"""
    template = json.dumps(answer(0, "x" * 20_000))
    kept = set()
    for _ in range(4):
        process = spawn(code, tmp_path, template)
        assert process.stdout.readline() == "ready\n"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=0.05)
        process.kill()
        process.wait()
        now = completed_ids(tmp_path)
        assert kept <= now
        kept = now
    order = list(range(max(kept) + 1))
    assert len(order) > 4
    # Every shard that was torn is mended by its own writer, and no question was lost or asked twice.
    for rank in range(2):
        write(tmp_path, rank)
    lines = [line for shard in RunFolder(tmp_path).shards() for line in shard.read_bytes().splitlines()]
    assert sorted(json.loads(line)["question_id"] for line in lines) == order
    assert ids(merge_shards(tmp_path, order)) == order


class Killed(BaseException):
    pass


def test_killed_between_replace_and_removal_of_each_shard(tmp_path, answer, monkeypatch):
    order = list(range(6))
    for survive in itertools.count():
        folder = tmp_path / str(survive)
        claim(folder, {})
        for rank in range(3):
            write(folder, rank, answer(2 * rank), answer(2 * rank + 1))
        removed = []
        unlink = Path.unlink

        def die(path, missing_ok=False, limit=survive, removed=removed, unlink=unlink):
            if "rank" in path.name:
                if len(removed) == limit:
                    raise Killed
                removed.append(path)
            unlink(path, missing_ok=missing_ok)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", die)
            if survive == 3:
                merge_shards(folder, order)
                break
            with pytest.raises(Killed):
                merge_shards(folder, order)
        assert len(RunFolder(folder).shards()) == 3 - survive
        assert not RunFolder(folder).is_finished
        assert completed_ids(folder) == set(order)
        assert ids(merge_shards(folder, order)) == order
        assert RunFolder(folder).is_finished
        assert remove_leftovers(folder) == []
