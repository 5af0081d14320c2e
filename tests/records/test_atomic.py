import json
import math
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_hass.errors import RunError, UserError
from lit_hass.records import (
    ensure_writable,
    remove_leftovers,
    to_json,
    to_jsonable,
    write_json,
    write_lines,
    write_text,
)
from lit_hass.records.atomic import TEMPORARY_SUFFIX, encode, write_folder


class Scalar:
    """What numpy and torch scalars look like from here."""

    def __init__(self, value):
        self.value = value

    def item(self):
        return self.value


class Array:
    def __init__(self, values):
        self.values = values

    def tolist(self):
        return self.values


def refuse_constant(name):
    raise AssertionError(f"{name} is no JSON")


def test_every_number_is_finite_or_null(tmp_path):
    obj = {"a": math.nan, "b": [math.inf, {"c": (-math.inf, 1.5)}], "d": Scalar(math.nan), "e": Array([1, math.inf])}
    write_json(tmp_path / "x.json", obj)
    read = json.loads((tmp_path / "x.json").read_text(), parse_constant=refuse_constant)
    assert read == {"a": None, "b": [None, {"c": [None, 1.5]}], "d": None, "e": [1, None]}


def test_numpy_and_torch_values():
    np = pytest.importorskip("numpy")
    torch = pytest.importorskip("torch")
    obj = {
        "f32": np.float32(0.5),
        "i64": np.int64(3),
        "b": np.bool_(True),
        "nan": np.float64("nan"),
        "array": np.array([[1.0, np.inf]]),
        "zero_d": torch.tensor(2.5, dtype=torch.bfloat16),
        "one_d": torch.tensor([7]),
        np.int64(4): "key",
    }
    assert to_jsonable(obj) == {
        "f32": 0.5,
        "i64": 3,
        "b": True,
        "nan": None,
        "array": [[1.0, None]],
        "zero_d": 2.5,
        "one_d": [7],
        "4": "key",
    }


def test_paths_become_strings(tmp_path):
    assert to_jsonable({"p": tmp_path}) == {"p": str(tmp_path)}


def test_what_has_no_json_form_is_named():
    with pytest.raises(TypeError, match=r"a\.b\[1\]: a set cannot be written as JSON"):
        to_jsonable({"a": {"b": [0, {1}]}})
    with pytest.raises(TypeError, match="a tuple cannot be a key"):
        to_jsonable({(1, 2): 0})


def test_keys_that_collide_are_refused():
    with pytest.raises(ValueError, match="both written as '1'"):
        to_jsonable({1: "a", "1": "b"})


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_plain_values_survive_the_round_trip(value):
    assert json.loads(encode(to_json(value)).decode("utf-8")) == value


def test_text_is_utf8_with_its_newlines_as_they_are(tmp_path):
    write_text(tmp_path / "t.txt", "ä\r\n€\u2028\n")
    assert (tmp_path / "t.txt").read_bytes() == "ä\r\n€\u2028\n".encode()
    write_json(tmp_path / "j.json", {"ä": "€"})
    assert (tmp_path / "j.json").read_bytes() == '{\n  "ä": "€"\n}\n'.encode()
    write_lines(tmp_path / "l.txt", iter(["ä", "", "b"]))
    assert (tmp_path / "l.txt").read_bytes() == "ä\n\nb\n".encode()


def test_half_a_surrogate_pair_survives_in_json(tmp_path):
    write_json(tmp_path / "x.json", {"a": "\\\ud83d!"})
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == {"a": "\\\ud83d!"}


def test_parents_are_made_and_nothing_else_stays(tmp_path):
    write_text(tmp_path / "a" / "b" / "t.txt", "x")
    assert os.listdir(tmp_path / "a" / "b") == ["t.txt"]


def test_mode_follows_the_umask(tmp_path):
    old = os.umask(0o022)
    try:
        write_text(tmp_path / "t.txt", "x")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "t.txt").stat().st_mode) == 0o644


def test_a_failing_line_leaves_the_old_file_and_no_rubbish(tmp_path):
    path = tmp_path / "l.txt"
    write_lines(path, ["old"])

    def lines():
        yield "new"
        raise KeyError("broke")

    with pytest.raises(KeyError):
        write_lines(path, lines())
    with pytest.raises(ValueError, match="line 2 holds a line break"):
        write_lines(path, ["a", "b\nc"])
    assert path.read_text() == "old\n"
    assert os.listdir(tmp_path) == ["l.txt"]


def test_unwritable_folder_is_named_with_the_cause(tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("")
    for folder in (blocker, blocker / "below"):
        with pytest.raises(UserError) as caught:
            write_json(folder / "x.json", {})
        assert str(folder) in str(caught.value)
        assert "Not a directory" in str(caught.value) or "File exists" in str(caught.value)
        with pytest.raises(UserError) as caught:
            ensure_writable(folder)
        assert str(folder) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_folder_in_place_of_the_file_is_named(tmp_path):
    (tmp_path / "x.json").mkdir()
    with pytest.raises(UserError, match="x.json"):
        write_json(tmp_path / "x.json", {})
    assert os.listdir(tmp_path) == ["x.json"]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a file system that lets nobody make files")
def test_a_read_only_file_system_is_named_even_for_root():
    with pytest.raises(UserError, match="/proc/self"):
        ensure_writable("/proc/self")


def test_ensure_writable_makes_the_folder_and_leaves_it_empty(tmp_path):
    folder = ensure_writable(tmp_path / "a" / "b")
    assert folder == tmp_path / "a" / "b"
    assert os.listdir(folder) == []


@pytest.mark.skipif(sys.platform == "win32", reason="needs a file size limit")
def test_a_full_disk_is_a_failed_run_and_the_old_file_stays(tmp_path):
    code = """
import resource, sys
from lit_hass.errors import RunError
from lit_hass.records import write_text
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_text(sys.argv[1], "x" * 100_000)
except RunError as error:
    print(error)
"""
    path = tmp_path / "t.txt"
    write_text(path, "old")
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
        timeout=60,
    )
    assert "cannot write t.txt" in done.stdout, done.stderr
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["t.txt"]


def test_a_failed_sync_is_reported(tmp_path, monkeypatch):
    def broken(descriptor):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(RunError, match="Input/output error"):
        write_text(tmp_path / "t.txt", "x")
    assert os.listdir(tmp_path) == []


def test_file_and_folder_are_synced_around_the_replace(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, os.replace

    def kind(descriptor):
        return "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"

    monkeypatch.setattr(os, "fsync", lambda d: (events.append(kind(d)), fsync(d)))
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append("replace"), replace(a, b)))
    write_text(tmp_path / "t.txt", "x")
    assert events == ["file", "replace", "folder"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_killed_while_writing_in_a_loop_the_file_is_always_whole(tmp_path, spawn):
    code = """
import sys
from lit_hass.records import write_json
i = 0
while True:
    i += 1
    write_json(sys.argv[1], {"i": i, "fill": ["x" * 100] * 200})
    if i == 1:
        print("ready", flush=True)
"""
    path = tmp_path / "x.json"
    for delay in (0.0, 0.01, 0.02):
        process = spawn(code, path)
        assert process.stdout.readline() == "ready\n"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=delay)
        process.kill()
        process.wait()
        assert len(json.loads(path.read_text())["fill"]) == 200
    remove_leftovers(tmp_path)
    assert os.listdir(tmp_path) == ["x.json"]


def test_leftovers_are_removed_and_nothing_else(tmp_path):
    left = tmp_path / f".answers.jsonl.0123{TEMPORARY_SUFFIX}"
    for path in (left, tmp_path / "answers.jsonl", tmp_path / ".hidden", tmp_path / f"kept{TEMPORARY_SUFFIX}"):
        path.write_text("x")
    assert remove_leftovers(tmp_path) == [left.name]
    assert sorted(os.listdir(tmp_path)) == [".hidden", "answers.jsonl", f"kept{TEMPORARY_SUFFIX}"]


def _files(content):
    def write(folder):
        (folder / "below").mkdir(parents=True)
        (folder / "a.txt").write_text(content)
        (folder / "below" / "b.txt").write_text(content)

    return write


def test_a_folder_is_synced_file_by_file_before_it_takes_its_name(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda d: (events.append(os.fstat(d).st_ino), fsync(d)))
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append("replace"), replace(a, b)))
    write_folder(tmp_path / "x", _files("new"))
    inodes = {path.stat().st_ino for path in (tmp_path / "x").rglob("*.txt")}
    assert inodes <= set(events[: events.index("replace")]) and events[-1] == tmp_path.stat().st_ino
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize("number, kind", [(28, RunError), (13, UserError)])
def test_half_a_folder_does_not_stay_and_the_old_one_does(tmp_path, number, kind):
    write_folder(tmp_path / "x", _files("old"))

    def full(folder):
        _files("new")(folder)
        raise OSError(number, os.strerror(number))

    with pytest.raises(kind, match=f"cannot write x into folder .*: {os.strerror(number)}"):
        write_folder(tmp_path / "x", full)
    with pytest.raises(KeyboardInterrupt):
        write_folder(tmp_path / "x", lambda folder: (_files("new")(folder), (_ for _ in ()).throw(KeyboardInterrupt)))
    assert os.listdir(tmp_path) == ["x"] and (tmp_path / "x" / "a.txt").read_text() == "old"


def test_the_old_folder_is_there_until_the_new_one_has_the_name(tmp_path, monkeypatch):
    """At every step of the file system one of the two is whole, under its name or as the one put aside."""
    write_folder(tmp_path / "x", _files("old"))
    replace = os.replace

    def failing(source, target):
        kept = [path for path in tmp_path.iterdir() if "unfinished" not in path.name]
        assert any((path / "below" / "b.txt").exists() for path in kept)
        if "unfinished" in str(source):
            raise OSError(5, "Input/output error")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", failing)
        with pytest.raises(RunError, match="Input/output error"):
            write_folder(tmp_path / "x", _files("new"))
    assert os.listdir(tmp_path) == ["x"] and (tmp_path / "x" / "a.txt").read_text() == "old"
    os.rename(tmp_path / "x", tmp_path / ".x.old")  # killed between the renames
    with pytest.raises(UserError):
        write_folder(tmp_path / "x", lambda folder: (_ for _ in ()).throw(OSError(13, "no")))
    assert os.listdir(tmp_path) == ["x"] and (tmp_path / "x" / "a.txt").read_text() == "old"
    write_folder(tmp_path / "x", _files("new"))
    assert os.listdir(tmp_path) == ["x"] and (tmp_path / "x" / "below" / "b.txt").read_text() == "new"
