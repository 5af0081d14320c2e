import json
import os
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lit_hass.errors import RunError, UserError
from lit_hass.records import (
    RunFolder,
    ShardWriter,
    claim,
    completed_ids,
    failed_answer,
    merge_shards,
    read_answers,
    to_json,
)
from lit_hass.records.shards import drop_torn_end


def write(folder, rank, *answers):
    with ShardWriter(folder, rank) as writer:
        writer.write(answers)


def ids(path):
    return [answer["question_id"] for answer in read_answers(path)]


def texts(path):
    return {a["question_id"]: a["choices"][0]["turns"][0] if a["choices"] else a["error"] for a in read_answers(path)}


# ---- writing


def test_every_write_is_on_disk_when_it_returns(tmp_path, answer, monkeypatch):
    synced = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda d: (synced.append(os.fstat(d).st_size), fsync(d)))
    path = tmp_path / "answers.rank3.jsonl"
    with ShardWriter(tmp_path, 3) as writer:
        for i in range(3):
            writer.write([answer(2 * i), answer(2 * i + 1)])
            assert path.read_bytes().count(b"\n") == 2 * (i + 1)
            assert synced[-1] == path.stat().st_size


def test_a_rank_with_nothing_to_do_leaves_nothing(tmp_path):
    with ShardWriter(tmp_path / "run", 0) as writer:
        writer.write([])
    assert os.listdir(tmp_path / "run") == []


def test_numbers_that_are_not_finite_become_null(tmp_path, answer):
    line = answer(1)
    line["choices"][0]["wall_time"] = [float("nan")]
    write(tmp_path, 0, line)
    assert '"wall_time": [null]' in (tmp_path / "answers.rank0.jsonl").read_text()
    assert completed_ids(tmp_path) == {1}


def test_what_is_no_answer_is_refused_before_anything_is_written(tmp_path, answer):
    with ShardWriter(tmp_path, 0) as writer:
        with pytest.raises(ValueError, match="choices is empty"):
            writer.write([answer(1), {**answer(2), "choices": []}])
        writer.write([answer(3)])
    assert completed_ids(tmp_path) == {3}


def test_a_closed_writer_refuses(tmp_path, answer):
    writer = ShardWriter(tmp_path, 0)
    writer.write([answer(1)])
    writer.close()
    writer.close()
    with pytest.raises(ValueError, match="was closed"):
        writer.write([answer(2)])
    with pytest.raises(ValueError, match="must not be negative"):
        ShardWriter(tmp_path, -1)


def test_unwritable_folder_is_refused_on_opening(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write into folder"):
        ShardWriter(tmp_path / "file" / "run", 0)
    (tmp_path / "answers.rank0.jsonl").mkdir()
    with pytest.raises(UserError, match="cannot write answers.rank0.jsonl into folder"):
        ShardWriter(tmp_path, 0)


@pytest.mark.skipif(sys.platform == "win32", reason="needs links")
@pytest.mark.parametrize("hard", [False, True])
def test_a_shard_that_is_a_link_is_neither_cut_nor_written_to(tmp_path, answer, hard):
    elsewhere, folder = tmp_path / "kept.jsonl", tmp_path / "run"
    write(folder, 0, answer(1))
    shard = RunFolder(folder).shard(0)
    shard.rename(elsewhere)
    with elsewhere.open("a") as file:
        file.write('{"torn')
    before = elsewhere.read_bytes()
    link = shard.hardlink_to if hard else shard.symlink_to
    writer = ShardWriter(folder, 0)  # opens the file with the first line
    link(elsewhere)
    for refused in (
        lambda: ShardWriter(folder, 0),
        lambda: drop_torn_end(shard),
        lambda: writer.write([answer(2)]),
        lambda: claim(folder, {}),
    ):
        with pytest.raises(UserError, match="rank0.jsonl: .* link.*put a copy in its place"):
            refused()
        assert elsewhere.read_bytes() == before
    shard.unlink()
    shard.symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="symbolic link"):
        writer.write([answer(2)])
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="needs a file size limit")
def test_a_full_disk_spoils_neither_the_lines_before_nor_the_next(tmp_path, answer, spawn):
    code = """
import json, resource, sys
from lit_hass.errors import RunError
from lit_hass.records import ShardWriter
small, big, late = json.loads(sys.argv[2])
writer = ShardWriter(sys.argv[1], 0)
writer.write([small])
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))
try:
    writer.write([big])
except RunError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
writer.write([late])
"""
    process = spawn(code, tmp_path, json.dumps([answer(1), answer(2, "x" * 9000), answer(3)]))
    out, err = process.communicate(timeout=60)
    assert "cannot write answers.rank0.jsonl" in out, err
    path = tmp_path / "answers.rank0.jsonl"
    assert path.read_text() == "".join(to_json(answer(i)) + "\n" for i in (1, 3))


# ---- torn ends


def test_torn_last_line_at_every_offset(tmp_path, answer):
    path = tmp_path / "answers.rank0.jsonl"
    whole = to_json(answer(1)).encode() + b"\n"
    last = to_json(answer(2, "ü€\u2028")).encode() + b"\n"
    for length in range(len(last) + 1):
        path.write_bytes(whole + last[:length])
        expected = {1, 2} if length == len(last) else {1}
        # A reader must say the same before and after the writer has mended its file: ranks start in any order.
        assert completed_ids(tmp_path) == expected
        writer = ShardWriter(tmp_path, 0)
        assert path.read_bytes() == (whole + last if length == len(last) else whole)
        assert completed_ids(tmp_path) == expected
        writer.write([answer(2, "again")])
        writer.close()
        assert completed_ids(tmp_path) == {1, 2}


@pytest.mark.parametrize(
    "tail", [b"\0" * 64, b"\0" * 64 + b"\n", b'{"question_id": 2, "cho\n', b"\n", b"17\n", b"\xff\n"]
)
def test_last_line_that_is_no_object_is_dropped(tmp_path, answer, tail):
    path = tmp_path / "answers.rank0.jsonl"
    whole = to_json(answer(1)).encode() + b"\n"
    path.write_bytes(whole + tail)
    assert drop_torn_end(path) == len(tail)
    assert path.read_bytes() == whole
    assert drop_torn_end(path) == 0


@pytest.mark.parametrize("content", [b"", b"{", b"\n", b"{}", b"x\n"])
def test_a_shard_of_nothing_but_a_torn_end(tmp_path, content):
    path = tmp_path / "answers.rank0.jsonl"
    path.write_bytes(content)
    assert drop_torn_end(path) == len(content)
    assert path.read_bytes() == b""


def test_the_torn_end_of_another_rank_is_passed_over_and_left(tmp_path, answer):
    write(tmp_path, 1, answer(1))
    other = tmp_path / "answers.rank1.jsonl"
    other.write_bytes(other.read_bytes() + b'{"question_id": 2')
    before = other.read_bytes()
    write(tmp_path, 0, answer(2))
    assert other.read_bytes() == before
    assert ids(merge_shards(tmp_path, [1, 2])) == [1, 2]


# ---- what is done


def test_completed_are_the_answered_of_all_ranks_and_the_merged_file(tmp_path, answer):
    assert completed_ids(tmp_path / "not there") == set()
    write(tmp_path, 0, answer(1), failed_answer(2, "e"))
    write(tmp_path, 11, answer("1"), answer(5))
    assert completed_ids(tmp_path) == {1, "1", 5}
    merge_shards(tmp_path, [1, 2, "1", 5])
    assert completed_ids(tmp_path) == {1, "1", 5}
    write(tmp_path, 0, answer(2))
    assert completed_ids(tmp_path) == {1, 2, "1", 5}


def test_other_files_are_no_shards(tmp_path, answer):
    for name in ("answers.rank.jsonl", "answers.rank0.jsonl.bak", "xanswers.rank0.jsonl", "answers.rank-1.jsonl"):
        (tmp_path / name).write_text(to_json(answer(1)) + "\n")
    assert completed_ids(tmp_path) == set()


def test_a_broken_merged_file_is_named(tmp_path, answer):
    (tmp_path / "answers.jsonl").write_text(to_json(answer(1)) + "\n{\n")
    with pytest.raises(UserError, match="answers.jsonl:2: not valid JSON"):
        completed_ids(tmp_path)


# ---- merging


def test_merge_is_in_question_order_and_removes_the_shards(tmp_path, answer):
    write(tmp_path, 0, answer(3), answer("1"))
    write(tmp_path, 1, answer(1), failed_answer(2, "e"))
    path = merge_shards(tmp_path, ["1", 1, 2, 3])
    assert path == tmp_path / "answers.jsonl"
    assert ids(path) == ["1", 1, 2, 3]
    assert os.listdir(tmp_path) == ["answers.jsonl"]


def test_missing_questions_are_counted_and_nothing_is_touched(tmp_path, answer):
    write(tmp_path, 0, *(answer(i) for i in range(3)))
    with pytest.raises(RunError) as caught:
        merge_shards(tmp_path, list(range(10)))
    message = str(caught.value)
    assert "7 of 10 questions missing (first ids 3, 4, 5, 6, 7, ...)" in message
    assert message.endswith("run the same command with this run's version to resume")
    assert os.listdir(tmp_path) == ["answers.rank0.jsonl"]
    with pytest.raises(RunError, match=r"1 of 4 questions missing \(first ids '2'\)"):
        merge_shards(tmp_path, [0, 1, 2, "2"])


def test_answers_to_foreign_questions_are_refused(tmp_path, answer):
    write(tmp_path, 0, answer(1), answer(2), answer(3))
    with pytest.raises(RunError, match=r"2 answers to questions that are not in this run \(first ids 2, 3\)"):
        merge_shards(tmp_path, [1])
    assert os.listdir(tmp_path) == ["answers.rank0.jsonl"]


def test_bad_order_is_refused(tmp_path, answer):
    write(tmp_path, 0, answer(1))
    for order in ([1, 1], []):
        with pytest.raises(ValueError, match="order"):
            merge_shards(tmp_path, order)


def test_an_answer_beats_a_failure_in_any_order(tmp_path, answer):
    write(tmp_path, 0, answer(1, "a"), failed_answer(2, "e"), failed_answer(1, "e"))
    write(tmp_path, 1, failed_answer(1, "e"), answer(2, "b"))
    assert texts(merge_shards(tmp_path, [1, 2])) == {1: "a", 2: "b"}


def test_the_last_written_answer_counts(tmp_path, answer):
    write(tmp_path, 0, answer(1, "older", tstamp=5.0), answer(2, "newer", tstamp=9.0), answer(3, "x"), answer(3, "y"))
    write(tmp_path, 1, answer(1, "newer", tstamp=6.0), answer(2, "older", tstamp=8.0))
    assert texts(merge_shards(tmp_path, [1, 2, 3])) == {1: "newer", 2: "newer", 3: "y"}


def test_the_last_written_failure_counts(tmp_path):
    write(tmp_path, 1, failed_answer(1, "older"))
    write(tmp_path, 0, failed_answer(1, "newer"))
    os.utime(tmp_path / "answers.rank1.jsonl", ns=(0, 0))
    assert texts(merge_shards(tmp_path, [1])) == {1: "newer"}


def test_merging_again_changes_nothing(tmp_path, answer):
    write(tmp_path, 0, answer(1), answer(2))
    path = merge_shards(tmp_path, [1, 2])
    os.utime(path, ns=(7, 7))
    before = path.stat()
    with ShardWriter(tmp_path, 0):
        assert merge_shards(tmp_path, [1, 2]) == path
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, 7)


def test_failures_of_a_finished_folder_are_retried_alone(tmp_path, answer):
    order = [1, 2, 3]
    write(tmp_path, 0, answer(1, "first"), failed_answer(2, "e"), failed_answer(3, "e"))
    merge_shards(tmp_path, order)
    todo = [i for i in order if i not in completed_ids(tmp_path)]
    assert todo == [2, 3]
    write(tmp_path, 1, answer(2, "second"), failed_answer(3, "again"))
    assert texts(merge_shards(tmp_path, order)) == {1: "first", 2: "second", 3: "again"}
    assert completed_ids(tmp_path) == {1, 2}


LINES = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5), st.booleans()), max_size=25)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=LINES, data=st.data())
def test_any_history_of_ranks_merges_to_each_question_once(tmp_path_factory, answer, lines, data):
    folder = tmp_path_factory.mktemp("run")
    answered, seen = set(), set()
    for tstamp, (rank, question, ok) in enumerate(lines):
        write(folder, rank, answer(question, tstamp=float(tstamp)) if ok else failed_answer(question, "e"))
        seen.add(question)
        answered |= {question} if ok else set()
    assert completed_ids(folder) == answered
    order = data.draw(st.permutations(range(6)))
    if seen != set(order):
        with pytest.raises(RunError, match=f"{6 - len(seen)} of 6 questions missing"):
            merge_shards(folder, order)
        write(folder, 0, *(answer(q) for q in order if q not in seen))
        answered |= set(order) - seen
    path = merge_shards(folder, order)
    assert ids(path) == order
    assert {a["question_id"] for a in read_answers(path) if a["choices"]} == answered
