import subprocess
import sys
from pathlib import Path

import pytest

from lit_hass import records
from lit_hass.errors import UserError
from lit_hass.records import RunFolder, ShardWriter, failed_answer, merge_shards


def test_names():
    run = RunFolder("runs/a")
    names = (run.answers, run.statistics, run.config, run.key, run.lock, run.shard(12))
    assert [p.as_posix() for p in names] == [
        "runs/a/answers.jsonl",
        "runs/a/statistics.json",
        "runs/a/config.yaml",
        "runs/a/run_key.json",
        "runs/a/run.lock",
        "runs/a/answers.rank12.jsonl",
    ]


def test_shards_are_listed_by_rank(tmp_path):
    for rank in (10, 2, 0):
        RunFolder(tmp_path).shard(rank).touch()
    (tmp_path / "answers.rankx.jsonl").touch()
    assert [p.name for p in RunFolder(tmp_path).shards()] == [f"answers.rank{r}.jsonl" for r in (0, 2, 10)]
    assert RunFolder(tmp_path / "not there").shards() == []


def test_a_run_from_nothing_to_finished_to_resumed(tmp_path, answer):
    run = RunFolder(tmp_path)
    assert not run.is_finished
    with pytest.raises(UserError, match="is not the folder of a run, it has no answers.jsonl"):
        run.read_answers()
    with ShardWriter(tmp_path, 0) as writer:
        writer.write([failed_answer("b", "e"), answer("a")])
    assert not run.is_finished
    with pytest.raises(UserError, match=r"has no answers.jsonl yet, only 1 unmerged shard\(s\)"):
        run.read_answers()
    merge_shards(tmp_path, ["a", "b"])
    assert run.is_finished
    assert run.read_answers() == [answer("a"), failed_answer("b", "e")]
    assert run.failed_ids() == ["b"]
    with ShardWriter(tmp_path, 0) as writer:
        writer.write([answer("b")])
    assert not run.is_finished
    # Still the merged answers, which are whole.
    assert run.failed_ids() == ["b"]
    merge_shards(tmp_path, ["a", "b"])
    assert run.is_finished and run.failed_ids() == []


def test_the_exports_are_there_and_sorted():
    assert list(records.__all__) == sorted(records.__all__)
    assert all(hasattr(records, name) for name in records.__all__)


def test_importing_needs_the_standard_library_alone():
    root = Path(__file__).resolve().parents[2]
    code = (
        "import sys; before = set(sys.modules); import lit_hass.records;"
        "print(sorted({n.partition('.')[0] for n in set(sys.modules) - before} - sys.stdlib_module_names))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "['lit_hass']"
