"""Whatever moment a run is killed at, and however many ranks take it up again: every row counts once."""

import builtins
import errno
import os
import random
from pathlib import Path

import pytest

import lit_hass.features.durable as durable_module
from lit_hass.errors import RunError, UserError
from lit_hass.features import CollapseConfig
from lit_hass.features.durable import DurableFeatures
from tests.features.sequences import assert_close, expected_values, make_sequence, new_measurement

QUESTIONS = list(range(100, 110))


class Killed(BaseException):
    """No handler of the code may catch it: the process is gone."""


class Disk:
    """Kills, or fails, at one of the calls that change what is on the disk."""

    def __init__(self, monkeypatch, at=None):
        self.calls, self.at, self.dead = 0, at, False
        for owner, name in ((os, "replace"), (os, "fsync"), (os, "truncate"), (Path, "unlink")):
            monkeypatch.setattr(owner, name, self._counted(getattr(owner, name)))

    def _counted(self, real):
        def call(*args, **kwargs):
            self.calls += 1
            if self.dead or self.calls == self.at:
                self.dead = True  # a dead process cleans nothing up
                raise Killed
            return real(*args, **kwargs)

        return call


def sequences_of(question):
    return [make_sequence(question, choice, turn, length=20 + question % 7) for choice in (0, 1) for turn in (0,)]


def all_sequences(questions=QUESTIONS):
    return [sequence for question in questions for sequence in sequences_of(question)]


def run(folder, answered, world=1, config=None, questions=QUESTIONS, unanswered=0):
    """What the callbacks do, on ranks that take turns; returns the ranks' measurements."""
    ranks = [DurableFeatures(folder, r, new_measurement(config, folder=folder, rank=r)) for r in range(world)]
    ranks[0].take_over(answered, world)
    for rank in ranks:
        rank.begin()
    todo = [question for question in questions if question not in answered]
    shares = [todo[r::world] for r in range(world)]
    while any(shares):
        for rank, share in zip(ranks, shares, strict=True):
            batch, share[:] = share[:2], share[2:]
            rank.compact()
            rank.record([(question, sequences_of(question)) for question in batch])
            answered |= set(batch)
    for rank in ranks:
        rank.finish()
    return [rank.measurement for rank in ranks]


def check(measurements, questions=QUESTIONS, tolerance=1e-9):
    first, *others = measurements
    for other in others:
        first.merge(*other.state())
    metrics = first.get_collapse_metrics()
    for scope in ("overall", "prompt", "answer"):
        expected = expected_values(all_sequences(questions), scope)
        if scope == "prompt":  # it keeps no sums for a draft
            expected = {name: value for name, value in expected.items() if not name.startswith("cka/")}
        assert_close(metrics["family"][scope], expected, tolerance)
    assert metrics["counts"]["questions"] == len(questions)
    assert metrics["counts"]["rows_added"] == sum(len(s.token_ids) + len(s.rejected) for s in all_sequences(questions))
    names = [(c["question_id"], c["choice"], c["turn"]) for c in metrics["chunks"]]
    assert names == sorted(sequence.name for sequence in all_sequences(questions))
    return metrics


@pytest.fixture(autouse=True)
def small_journals(monkeypatch):
    monkeypatch.setattr(durable_module, "LEAST_JOURNAL_BYTES", 6000)


KEEPS = {"sample": CollapseConfig(max_samples_per_class=5000), "spill": CollapseConfig(max_samples_per_class=None)}


@pytest.mark.parametrize("keeps", KEEPS)
def test_a_run_that_ends_and_one_that_is_asked_again(tmp_path, keeps):
    answered = set()
    check(run(tmp_path, answered, 2, KEEPS[keeps]))
    assert answered == set(QUESTIONS)
    # With nothing left to ask, and another number of ranks: the same.
    for world in (1, 3, 1):
        check(run(tmp_path, answered, world, KEEPS[keeps]))
    assert not list(tmp_path.glob("*.lit-hass-tmp"))
    assert sorted(path.name for path in tmp_path.glob("rank*.snapshot")) == ["rank0.snapshot"]


@pytest.mark.parametrize("keeps", KEEPS)
@pytest.mark.parametrize("count", [5, pytest.param(None, marks=pytest.mark.slow)])
def test_a_kill_at_any_change_of_the_disk(tmp_path, monkeypatch, keeps, count):
    """Places of a run of two ranks (all of them: slow), each followed by a kill at a random place of the resume."""
    chance = random.Random(1)
    with monkeypatch.context() as patch:
        disk = Disk(patch)
        run(tmp_path / "whole", set(), 2, KEEPS[keeps])
        places = disk.calls
    assert places > 50
    for at in chance.sample(range(1, places + 1), count or places):
        folder, answered, kills = tmp_path / str(at), set(), 0
        for world, place in ((2, at), (chance.choice((1, 3)), chance.randint(1, 40)), (2, chance.randint(1, 12))):
            with monkeypatch.context() as patch:
                disk = Disk(patch, place)
                try:
                    run(folder, answered, world, KEEPS[keeps])
                except Killed:
                    kills += 1
        assert kills, at
        check(run(folder, answered, chance.choice((1, 2, 3)), KEEPS[keeps]))


def test_an_entry_without_an_answer_is_dropped(tmp_path):
    one = DurableFeatures(tmp_path, 0, new_measurement())
    one.take_over(set(), 1)
    one.begin()
    one.record([(question, sequences_of(question)) for question in QUESTIONS[:3]])
    one.close()
    # The third question's answer never came; all three are asked again but for two.
    check(run(tmp_path, set(QUESTIONS[:2])))


def test_a_torn_entry_is_dropped(tmp_path):
    one = DurableFeatures(tmp_path, 0, new_measurement())
    one.take_over(set(), 1)
    one.begin()
    one.record([(question, sequences_of(question)) for question in QUESTIONS[:3]])
    one.close()
    journal = tmp_path / "rank0.journal"
    content = journal.read_bytes()
    for cut in (1, 700):
        journal.write_bytes(content[:-cut])
        measurement = new_measurement()
        DurableFeatures(tmp_path, 0, measurement).take_over(set(QUESTIONS[:2]), 1)
        assert measurement.counts["questions"] == 2
        (tmp_path / "rank0.snapshot").unlink()


@pytest.mark.parametrize("damage", ["gone", "cut"])
@pytest.mark.parametrize("name", ["rank0.journal", "rank1.journal", "rank0.snapshot", "rank1.snapshot", "ranks.json"])
def test_a_damaged_file_is_named(tmp_path, name, damage):
    answered = set()
    ranks = [DurableFeatures(tmp_path, r, new_measurement()) for r in range(2)]
    ranks[0].take_over(answered, 2)
    for rank, durable in enumerate(ranks):
        durable.begin()
        mine = QUESTIONS[rank::2]
        durable.record([(question, sequences_of(question)) for question in mine[:4]])
        durable.compact()
        durable.record([(question, sequences_of(question)) for question in mine[4:]])
        answered |= set(mine)
        durable.close()
    assert (tmp_path / "rank1.snapshot").exists()
    files = {path: path.read_bytes() for path in tmp_path.iterdir()}
    path = tmp_path / name
    if damage == "cut":
        path.write_bytes(path.read_bytes()[: len(files[path]) // 2])
    else:
        path.unlink()
    measurement = new_measurement()
    if (name, damage) == ("ranks.json", "gone"):
        DurableFeatures(tmp_path, 0, measurement).take_over(answered, 1)  # the other files suffice
        return
    with pytest.raises(RunError) as error:
        DurableFeatures(tmp_path, 0, measurement).take_over(answered, 1)
    assert name in str(error.value)
    # Put back, the run goes on.
    for file, content in files.items():
        file.write_bytes(content)
    check(run(tmp_path, answered))


@pytest.mark.parametrize("name", ["kept.rank0.rows", "kept.rank0.index"])
def test_a_damaged_spill_shard_is_named(tmp_path, name):
    answered = set()
    run(tmp_path, answered, 1, KEEPS["spill"])
    path = tmp_path / name
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], None):
        path.unlink() if damaged is None else path.write_bytes(damaged)
        with pytest.raises(RunError, match=name):
            run(tmp_path, answered, 1, KEEPS["spill"])
    path.write_bytes(content)
    check(run(tmp_path, answered, 1, KEEPS["spill"]))


def test_answers_without_features_and_features_without_answers_are_refused(tmp_path):
    with pytest.raises(RunError, match="begun without feature collection"):
        run(tmp_path / "new", {100, 101})
    answered = set()
    run(tmp_path / "run", answered)
    with pytest.raises(RunError, match="have no answer .109"):
        run(tmp_path / "run", answered - {109})


def test_other_settings_are_refused_by_name(tmp_path):
    answered = set()
    run(tmp_path, answered)
    with pytest.raises(UserError, match="chunks: was 5, now 4; max_samples_per_class: was 5000, now 3"):
        run(tmp_path, answered, config=CollapseConfig(max_samples_per_class=3, chunks=4))
    # What decides no sums may change.
    check(run(tmp_path, answered, config=CollapseConfig(max_samples_per_class=5000, max_buffer_size=7, save_every=3)))


def full_disk(monkeypatch, owner, name, suffix):
    real = getattr(owner, name)

    def call(path, *args, **kwargs):
        if str(path).endswith(suffix) and args[:1] != ("rb",):  # what is there can be read
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(owner, name, call)


def test_a_full_disk_while_spilling_goes_on_with_a_sample(tmp_path, monkeypatch):
    config = CollapseConfig(max_samples_per_class=None, max_buffer_size=100)
    answered = set()
    with monkeypatch.context() as patch:
        # Half of the questions are on the disk when it is full.
        run(tmp_path, answered, 1, config, QUESTIONS[:6])
        full_disk(patch, builtins, "open", ".rows")
        metrics = check(run(tmp_path, answered, 1, config))
    assert metrics["counts"]["spill_disabled"] == "No space left on device"
    assert not list(tmp_path.glob("kept.*"))
    again = check(run(tmp_path, answered, 1, config))
    assert again["counts"]["spill_disabled"] == "No space left on device" and again["counts"]["n_kept_cap"] == 256


def test_a_full_disk_before_an_answer_ends_the_run_and_resumes(tmp_path, monkeypatch):
    one = DurableFeatures(tmp_path, 0, new_measurement())
    one.take_over(set(), 1)
    one.begin()
    one.record([(100, sequences_of(100))])

    class Full:
        def __init__(self, file):
            self.file = file

        def write(self, content):
            self.file.write(content[:50])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def __getattr__(self, name):
            return getattr(self.file, name)

    one._journal._file = Full(one._journal._file)
    with pytest.raises(RunError, match="cannot write rank0.journal into folder .*No space left"):
        one.record([(101, sequences_of(101))])
    one.close()
    check(run(tmp_path, {100}))


@pytest.mark.parametrize("on_error", ["continue", "raise"])
def test_a_disk_too_full_for_a_snapshot(tmp_path, monkeypatch, on_error):
    config = CollapseConfig(max_samples_per_class=5000, on_error=on_error)
    one = DurableFeatures(tmp_path, 0, new_measurement(config))
    one.take_over(set(), 1)
    one.begin()
    one.record([(question, sequences_of(question)) for question in QUESTIONS])

    def full(*args, **kwargs):
        raise RunError("cannot write rank0.snapshot: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(durable_module, "write_snapshot", full)
        if on_error == "raise":
            with pytest.raises(RunError, match="No space"):
                one.compact()
        else:
            one.compact()
    one.close()
    check(run(tmp_path, set(QUESTIONS), config=config))
