"""What may not be resumed, what is refused before hours are spent, and a hint pass with nothing to ask."""

import json
import shutil

from lit_hass.__main__ import main
from lit_hass.data.commonsense_qa_prompts import build_prompt
from lit_hass.data.commonsense_qa_questions import read_commonsense_qa
from tests.star.test_loop import arguments, lines


def test_other_hint_examples_precision_or_no_key_at_all_are_refused(known, tmp_path, capsys) -> None:
    out = tmp_path / "loop"
    hinted = ("--hints", "true", "--iterations", 1)
    assert main(arguments(known, out, *hinted)) == 0
    shots = tmp_path / "hint_shots.txt"
    question = next(q for q in read_commonsense_qa(known.train) if q.id == known.right[0])
    shots.write_text(f"{build_prompt(question, hint=question.answer)} the answer is 1 ({question.answer}).\n")
    for options, named in (
        (("--data.hint_shots", shots), "hints.shots"),
        (("--trainer.precision", "bf16-mixed"), "precision"),
        (("--hints", "false"), "hints"),
    ):
        assert main(arguments(known, out, *hinted, *options)) == 2
        assert named in capsys.readouterr().err
    # Nobody knows what its iterations were made with.
    (out / "run_key.json").unlink()
    assert main(arguments(known, out, *hinted)) == 2
    assert "no run_key.json" in capsys.readouterr().err
    assert not (out / "run_key.json").exists()


def test_predictions_without_a_key_are_not_taken_for_a_runs_own(known, tmp_path, capsys) -> None:
    out, other = tmp_path / "loop", tmp_path / "other"
    assert main(arguments(known, out, "--iterations", 1)) == 0
    source, place = out / "iter_0" / "validation", other / "iter_0" / "validation"
    assert main(arguments(known, other, "--iterations", 1)) == 0
    shutil.rmtree(other / "iter_0")
    place.mkdir(parents=True)
    shutil.copy(source / "predictions.jsonl", place)
    assert main(arguments(known, other, "--iterations", 1)) == 2
    assert "holds answers (predictions.jsonl)" in capsys.readouterr().err


def test_a_precision_that_does_not_exist_is_refused_before_anything_is_asked(known, tmp_path, capsys) -> None:
    out = tmp_path / "loop"
    assert main(arguments(known, out, "--trainer.precision", "half")) == 2
    assert "trainer.precision" in capsys.readouterr().err and not out.exists()


def test_wrong_answers_that_the_hint_examples_answer_are_not_asked_again(known, tmp_path) -> None:
    rows = [row for row in lines(known.train) if row["id"] in (*known.right, known.wrong[0])]
    path, shots = tmp_path / "questions.jsonl", tmp_path / "hint_shots.txt"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    [wrong] = [q for q in read_commonsense_qa(path) if q.id in known.wrong]
    shots.write_text(f"{build_prompt(wrong, hint=wrong.answer)} the answer is 1 ({wrong.answer}).\n")
    out = tmp_path / "loop"
    options = ("--hints", "true", "--iterations", 1, "--data.questions", path, "--data.hint_shots", shots)
    assert main(arguments(known, out, *options)) == 0
    metrics = json.loads((out / "iter_0" / "metrics.json").read_text())
    assert metrics["kept"] == 8 and "hinted" not in metrics and (out / "iter_0" / "DONE").exists()
