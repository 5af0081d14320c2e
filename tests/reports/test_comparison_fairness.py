"""Every unfair pair is refused with the differing keys named, and compared when that is asked for."""

import json
from pathlib import Path

import pytest

from lit_hass.errors import UserError
from lit_hass.records import failed_answer
from lit_hass.reports import compare_runs
from tests.reports.run_folders import DRAFT, line, turn, write_run

IDS = [3, 4, 5, 6]
PLAIN = [line(i, [turn(IDS, 2.0, prefill=0.5, prompt_digest="as asked")]) for i in (1, 2, 3)]
DRAFTED = [line(i, [turn(IDS, 1.0, [3], prefill=0.5)]) for i in (1, 2, 3)]
ASKED_OTHERWISE = [line(i, [turn(IDS, 1.0, [3], prefill=0.5, prompt_digest="with a date")]) for i in (1, 2, 3)]
BATCHED = [line(i, [turn(IDS, 1.0, [3], prefill=0.5, batch_rows=3, time_share=0.4)]) for i in (1, 2, 3)]
TWO_TURNS = [line(i, [turn(IDS, 1.0, [3], prefill=0.5)] * 2) for i in (1, 2, 3)]
TWO_CHOICES = [line(i, *[[turn(IDS, 1.0, [3], prefill=0.5)]] * 2) for i in (1, 2, 3)]


def folders(tmp_path: Path, lines=DRAFTED, model=None, baseline_model=None, **settings) -> tuple[Path, Path]:
    one = write_run(tmp_path / "baseline", PLAIN, baseline_model)
    return one, write_run(tmp_path / "hass", lines, {**DRAFT, **(model or {})}, **settings)


def test_a_fair_pair_differs_in_the_draft_only(tmp_path: Path) -> None:
    found = compare_runs(*folders(tmp_path))
    assert found["differences"] == [] and found["headline"] is not None


@pytest.mark.parametrize(
    ("changes", "key", "kind"),
    [
        ({"model": {"temperature": 0.7}}, "model.temperature", "distribution"),
        ({"model": {"repetition_penalty": 1.2}}, "model.repetition_penalty", "distribution"),
        ({"model": {"no_repeat_ngram_size": 3}}, "model.no_repeat_ngram_size", "distribution"),
        ({"model": {"extra_stop_ids": [7]}}, "model.extra_stop_ids", "distribution"),
        ({"model": {"max_new_tokens": 65}}, "model.max_new_tokens", "distribution"),
        ({"model": {"base": "another"}}, "model.base", "distribution"),
        ({"model": {"dtype": "bfloat16"}}, "model.dtype", "distribution"),
        ({"model": {"something_new": 1}}, "model.something_new", "distribution"),
        ({"model": {"attention": "eager"}, "baseline_model": {"attention": "sdpa"}}, "model.attention", "distribution"),
        ({"data": {"date": "2026-11-28"}}, "data.date", "distribution"),
        ({"lines": ASKED_OTHERWISE}, "prompts", "distribution"),
        ({"data": {"template": "plain"}}, "data.template", "distribution"),
        ({"data": {"questions": "other"}}, "data.questions", "distribution"),
        ({"device": "cuda", "model": {"dtype": "float32"}}, "device", "measurement"),
        ({"environment": {"cpu_model": "Another"}}, "machine.cpu_model", "measurement"),
        ({"environment": {"cpu_threads": 2}}, "machine.cpu_threads", "measurement"),
        ({"environment": {"gpus": ["H200"]}}, "machine.gpus", "measurement"),
        ({"environment": {"packages": {"torch": "2.5", "transformers": "5.23.0"}}}, "version of torch", "measurement"),
        ({"devices": 2}, "processes", "measurement"),
        ({"lines": BATCHED}, "batch rows", "measurement"),
        (
            {"lines": [{**DRAFTED[0], "collected_features": True}, *DRAFTED[1:]]},
            "answers timed while features were collected",
            "measurement",
        ),
        ({"lines": DRAFTED[:2]}, "questions in one run only", "completeness"),
        ({"lines": [*DRAFTED[:2], failed_answer(3, "no")]}, "failed questions", "completeness"),
        ({"data": {"question_count": 8}}, "answers of the questions asked", "completeness"),
        ({"lines": TWO_TURNS}, "choices and turns of question 1 and 2 more", "completeness"),
        ({"lines": TWO_CHOICES}, "choices and turns of question 1 and 2 more", "completeness"),
    ],
)
def test_every_difference_is_refused_by_name_and_allowed_by_name(tmp_path: Path, changes, key, kind) -> None:
    runs = folders(tmp_path, **changes)
    with pytest.raises(UserError) as caught:
        compare_runs(*runs)
    message = str(caught.value)
    assert f"{key}: " in message and "--allow-differences" in message and "\n" not in message
    found = compare_runs(*runs, allow_differences=True)
    assert (key, kind) in [(d["key"], d["kind"]) for d in found["differences"]]
    if kind == "distribution":
        assert found["same_distribution"] is False and found["headline"] is None and found["lossless"] is None
    else:
        assert found["same_distribution"] is True and found["headline"] is not None
    assert found["speed"]["end_to_end"]["ratio"] is not None


def test_nothing_else_is_named(tmp_path: Path) -> None:
    found = compare_runs(*folders(tmp_path, model={"max_new_tokens": 65}), allow_differences=True)
    assert found["differences"] == [{"key": "model.max_new_tokens", "baseline": 64, "hass": 65, "kind": "distribution"}]


def test_greedy_runs_do_not_depend_on_settings_of_sampling(tmp_path: Path) -> None:
    assert compare_runs(*folders(tmp_path, model={"temperature": 1e-6, "top_p": 0.9, "top_k": 5}))["lossless"] is True
    sampled = {"temperature": 0.5, "seed": 0}
    with pytest.raises(UserError, match=r"model.top_p: 1.0 against 0.9"):
        compare_runs(*folders(tmp_path, model={**sampled, "top_p": 0.9}, baseline_model=sampled))


def test_a_name_of_the_same_dtype_is_no_difference(tmp_path: Path) -> None:
    assert compare_runs(*folders(tmp_path, model={"dtype": "float32"}))["differences"] == []
    assert compare_runs(*folders(tmp_path, model={"dtype": "torch.float32"}))["lossless"] is True


def test_the_penalties_of_the_original_baseline_are_known_by_name(tmp_path: Path) -> None:
    penalties = {"repetition_penalty": 1.1, "no_repeat_ngram_size": 3}
    found = compare_runs(*folders(tmp_path, baseline_model=penalties), allow_differences=True)
    assert found["runs"]["baseline"]["preset"] == "original" and found["runs"]["hass"]["preset"] is None
    (note,) = [note for note in found["notes"] if "preset" in note]
    assert "not like for like" in note and "trigram" in note and "see the prompt" in note
    assert found["headline"] is None and found["same_distribution"] is False
    # alike in both, it is a fair pair
    both = compare_runs(*folders(tmp_path, model=penalties, baseline_model=penalties))
    assert both["headline"] is not None and not any("preset" in note for note in both["notes"])


def test_an_unfinished_resume_is_refused(tmp_path: Path) -> None:
    one, other = folders(tmp_path)
    (other / "answers.rank0.jsonl").write_text(json.dumps(DRAFTED[0]) + "\n", encoding="utf-8")
    with pytest.raises(UserError, match="finished: true against false"):
        compare_runs(one, other)
    (other / "answers.jsonl").unlink()
    with pytest.raises(UserError, match="unmerged"):
        compare_runs(one, other, allow_differences=True)


def test_unknown_settings_are_refused_and_give_no_headline(tmp_path: Path) -> None:
    one, other = folders(tmp_path)
    (other / "run_key.json").unlink()
    with pytest.raises(UserError, match=r"settings: recorded against not recorded \(no run_key.json\)"):
        compare_runs(one, other)
    found = compare_runs(one, other, allow_differences=True)
    assert found["same_distribution"] is None and found["headline"] is None
    assert found["speed"]["end_to_end"]["ratio"] == pytest.approx(2.0)


def test_unknown_machine_is_refused_but_has_a_headline(tmp_path: Path) -> None:
    one, other = folders(tmp_path)
    (one / "statistics.json").unlink()
    with pytest.raises(UserError, match=r"environment: not recorded"):
        compare_runs(one, other)
    assert compare_runs(one, other, allow_differences=True)["headline"] is not None


def test_an_edited_key_proves_nothing(tmp_path: Path) -> None:
    one, other = folders(tmp_path)
    text = (other / "run_key.json").read_text(encoding="utf-8")
    (other / "run_key.json").write_text(text.replace('"max_new_tokens": 64', '"max_new_tokens": 32'), encoding="utf-8")
    with pytest.raises(UserError, match="hash does not fit"):
        compare_runs(one, other, allow_differences=True)


def test_only_what_both_answered_is_counted(tmp_path: Path) -> None:
    lines = [DRAFTED[0], failed_answer(2, "no"), DRAFTED[2]]
    found = compare_runs(*folders(tmp_path, lines=lines), allow_differences=True)
    assert found["joined"]["questions"] == 2 and [q["question_id"] for q in found["questions"]] == [1, 3]
    assert found["speed"]["end_to_end"]["baseline"] == pytest.approx(8 / 4.0)
    assert found["runs"]["hass"]["failed"] == 1
    turns = compare_runs(*folders(tmp_path, lines=TWO_TURNS), allow_differences=True)
    assert turns["joined"]["turns"] == 3 and turns["speed"]["end_to_end"]["hass"] == pytest.approx(12 / 3.0)


def test_later_prompts_count_as_far_as_the_answers_before_are_the_same(tmp_path: Path) -> None:
    def run(name: str, text: str, digest: str):
        turns = [turn(IDS, 2.0, prompt_digest="first", text=text), turn(IDS, 2.0, prompt_digest=digest)]
        return write_run(tmp_path / name, [line(1, turns)], DRAFT if name != "one" else None)

    one = run("one", "same", "a")
    keys = [
        [difference["key"] for difference in compare_runs(one, run(name, text, digest), True)["differences"]]
        for name, text, digest in (("alike", "same", "a"), ("unlike", "same", "b"), ("parted", "other", "b"))
    ]
    assert keys == [[], ["prompts"], []]


def test_answers_that_the_context_ended_are_told(tmp_path: Path) -> None:
    """It is no limit that anybody set."""
    cut = [line(i, [turn(IDS, 1.0, [3], prefill=0.5, stop_reason="context" if i < 3 else "length")]) for i in (1, 2, 3)]
    told = [note for note in compare_runs(*folders(tmp_path, cut))["notes"] if "context" in note]
    assert len(told) == 1 and told[0].startswith("2 answers of the second run were ended by the model's context")


@pytest.mark.parametrize("old", ["baseline", "hass"])
def test_a_run_of_an_earlier_version_is_unknown_and_not_another_base(tmp_path: Path, old: str) -> None:
    """Its key has neither attention nor date, and its digests are of another rule."""
    new = {"attention": "sdpa", "base": "0123456789abcdef"}
    one = write_run(tmp_path / "baseline", PLAIN, None if old == "baseline" else new)
    other = write_run(tmp_path / "hass", DRAFTED, {**DRAFT, **({} if old == "hass" else new)})
    with pytest.raises(UserError, match=r"model\.base: .*7d3aa6687cf3ba10 \(by an earlier version's rule\)") as caught:
        compare_runs(one, other)
    assert "model.attention: " in str(caught.value) and "not recorded" in str(caught.value)
    found = compare_runs(one, other, allow_differences=True)
    assert {d["key"]: d["kind"] for d in found["differences"]} == {
        "model.base": "unknown",
        "model.attention": "unknown",
    }
    assert found["same_distribution"] is found["headline"] is found["lossless"] is None
    [note] = [note for note in found["notes"] if "earlier version" in note]
    assert "digests are of another rule" in note and not any("NOT LOSSLESS" in each for each in found["notes"])
    # What an earlier version did write down still makes another run of it.
    write_run(tmp_path / old, PLAIN if old == "baseline" else DRAFTED, {"max_new_tokens": 65})
    assert compare_runs(one, other, allow_differences=True)["same_distribution"] is False
