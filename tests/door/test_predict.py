"""``lit-hass predict`` as a user runs it, in one process."""

import json
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.door.conftest import CONFIG, lines, tokens


def _predict(door, base, questions, *more):
    return door(
        "predict", "-c", CONFIG, "--model.base", base, "--data.questions", questions, "--model.max_new_tokens", 12,
        "--trainer.accelerator", "cpu", *more,
    )  # fmt: skip


RUN = Path("logs/generate_baseline/version_0")


def test_answers_are_those_of_generate(door, tiny_base, questions):
    path = questions(3)
    result = _predict(door, tiny_base, path)
    assert result.status == 0, result.err
    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    for asked, answer in zip(lines(path), lines(RUN / "answers.jsonl"), strict=True):
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": asked["turns"][0]}], add_generation_prompt=True, return_tensors="pt"
        )["input_ids"]
        expected = model.generate(prompt, do_sample=False, max_new_tokens=12)[0, prompt.shape[1] :].tolist()
        choice = answer["choices"][0]
        assert answer["question_id"] == asked["question_id"]
        assert choice["output_ids"] == [expected]
        assert choice["new_tokens"] == [len(expected)] and choice["prompt_tokens"] == [prompt.shape[1]]
        ids = expected[:-1] if expected[-1] == tokenizer.eos_token_id else expected
        assert choice["turns"] == [tokenizer.decode(ids, skip_special_tokens=True)]
        assert choice["stop_reason"] == ["stop" if len(ids) < len(expected) else "length"]
        assert choice["wall_time"][0] == pytest.approx(choice["prefill_time"][0] + choice["decode_time"][0])


def test_the_run_folder_holds_config_statistics_and_tensorboard(door, tiny_base, questions):
    assert _predict(door, tiny_base, questions(3)).status == 0
    assert "max_new_tokens: 12" in (RUN / "config.yaml").read_text()
    statistics = json.loads((RUN / "statistics.json").read_text())
    answers = lines(RUN / "answers.jsonl")
    assert statistics["questions"] == {"total": 3, "answered": 3, "failed": 0}
    assert statistics["new_tokens"]["total"] == sum(a["choices"][0]["new_tokens"][0] for a in answers)
    seconds = sum(a["choices"][0]["wall_time"][0] for a in answers)
    assert statistics["tokens_per_second"]["end_to_end"] == pytest.approx(
        statistics["new_tokens"]["total"] / seconds, rel=1e-6
    )
    assert statistics["exact_match"]["of"] == 3
    board = EventAccumulator(str(RUN), size_guidance={"tensors": 0, "histograms": 0, "scalars": 0})
    board.Reload()
    tags = board.Tags()
    assert [event.step for event in board.Scalars("predict/tokens_per_second")] == [1, 2, 3]
    assert "summary/exact_match" in tags["scalars"]
    assert {"answers/new_tokens", "answers/wall_time", "answers/prompt_tokens"} <= set(tags["histograms"])
    texts = [tag for tag in tags["tensors"] if tag.startswith("answers/")]
    assert len(texts) == 3
    shown = board.Tensors(texts[0])[0].tensor_proto.string_val[0].decode()
    assert "<td>0</td>" in shown and "reference" in shown
    assert not list(RUN.glob("answers.rank*")) and not (RUN / "run.lock").exists()


def test_sampled_answers_do_not_depend_on_the_batch(door, tiny_base, questions):
    path = questions(5)
    sampling = ("--model.sampling.temperature", 0.9, "--data.num_choices", 2)
    assert _predict(door, tiny_base, path, *sampling).status == 0
    assert _predict(door, tiny_base, path, *sampling, "--data.batch_size", 4).status == 0
    assert _predict(door, tiny_base, path, *sampling, "--model.seed", 1).status == 0
    one, batched, other = (tokens(RUN.parent / f"version_{i}" / "answers.jsonl") for i in range(3))
    assert one == batched
    assert all(len(choices) == 2 for choices in one.values())
    assert any(choices[0] != choices[1] for choices in one.values())
    assert one != other
    seeds = [choice["seed"] for a in lines(RUN / "answers.jsonl") for choice in a["choices"]]
    assert len({seed[0] for seed in seeds}) == len(seeds) == 10


def test_later_turns_see_the_models_own_answers(door, tiny_base, questions):
    path = questions(2, turns=["<td>a</td>", "<td>b</td>"], reference=[])
    assert _predict(door, tiny_base, path).status == 0
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_base), AutoTokenizer.from_pretrained(tiny_base)
    for answer in lines(RUN / "answers.jsonl"):
        choice = answer["choices"][0]
        assert len(choice["turns"]) == 2 and choice["exact_match"] == [None, None]
        messages = [
            {"role": "user", "content": "<td>a</td>"},
            {"role": "assistant", "content": choice["turns"][0]},
            {"role": "user", "content": "<td>b</td>"},
        ]
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")["input_ids"]
        expected = model.generate(prompt, do_sample=False, max_new_tokens=12)[0, prompt.shape[1] :].tolist()
        assert choice["output_ids"][1] == expected and choice["prompt_tokens"][1] == prompt.shape[1]


def test_resuming_a_finished_run_asks_nothing_and_another_run_is_refused(door, tiny_base, questions):
    path = questions(3)
    fixed = ("--trainer.logger.init_args.version", 0)
    assert _predict(door, tiny_base, path, *fixed).status == 0
    before = (RUN / "answers.jsonl").read_bytes()
    assert _predict(door, tiny_base, path, *fixed).status == 0
    assert (RUN / "answers.jsonl").read_bytes() == before
    files = {p: p.read_bytes() for p in RUN.iterdir()}
    refused = _predict(door, tiny_base, path, *fixed, "--model.sampling.temperature", 0.5)
    assert refused.status == 2
    assert "temperature: was 0, now 0.5" in refused.err.replace("0.0", "0")
    assert {p: p.read_bytes() for p in RUN.iterdir()} == files


def test_a_question_that_fails_is_recorded_counted_and_tried_again(door, tiny_base, questions, tmp_path):
    # The second turn's prompt outgrows the context of 512; no check before the run can know it.
    long = "<td>word</td>" * 70
    asked = [
        {"question_id": "a", "turns": ["<td>1</td>"]},
        {"question_id": "b", "turns": [long, long]},
        {"question_id": "c", "turns": ["<td>2</td>"]},
    ]
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(q) + "\n" for q in asked), encoding="utf-8")
    result = _predict(door, tiny_base, path, "--data.batch_size", 3)
    assert result.status == 1
    assert "1 question failed ('b')" in result.err
    a, b, c = lines(RUN / "answers.jsonl")
    assert set(b) == {"question_id", "error", "choices"} and b["choices"] == [] and "turn 2" in b["error"]
    assert a["choices"] and c["choices"]
    assert json.loads((RUN / "statistics.json").read_text())["questions"] == {"total": 3, "answered": 2, "failed": 1}
    again = _predict(door, tiny_base, path, "--data.batch_size", 3, "--trainer.logger.init_args.version", 0)
    assert again.status == 1
    assert [line["question_id"] for line in lines(RUN / "answers.jsonl")] == ["a", "b", "c"]


def test_a_model_that_yields_nan_fails_its_questions_only(door, tiny_base, questions, tmp_path):
    broken = AutoModelForCausalLM.from_pretrained(tiny_base)
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    poison = tokenizer("Z", add_special_tokens=False)["input_ids"][0]
    with torch.no_grad():
        broken.get_input_embeddings().weight[poison] = float("nan")
    broken.save_pretrained(tmp_path / "broken")
    tokenizer.save_pretrained(tmp_path / "broken")
    asked = [{"question_id": i, "turns": ["Z" if i == 2 else f"<td>{i}</td>"]} for i in range(4)]
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(q) + "\n" for q in asked), encoding="utf-8")
    result = _predict(door, tmp_path / "broken", path, "--data.batch_size", 4, "--model.max_new_tokens", 4)
    assert result.status == 1
    errors = {line["question_id"]: line.get("error") for line in lines(RUN / "answers.jsonl")}
    assert errors[2] and errors[0] is errors[1] is errors[3] is None


def test_a_trial_run_leaves_nothing_and_is_no_run_to_resume(door, tiny_base, questions):
    path = questions(5)
    for temperature in (0.0, 0.5):  # the second is not taken for a resume of the first
        result = _predict(
            door, tiny_base, path, "--trainer.fast_dev_run", 2, "--model.sampling.temperature", temperature
        )
        assert result.status == 0, result.err
        assert "2 of 2" in result.out
    assert not list(Path().iterdir())


def test_no_batch_is_no_success(door, tiny_base, questions):
    result = _predict(door, tiny_base, questions(2), "--trainer.limit_predict_batches", 0)
    assert result.status == 1 and "limit_predict_batches" in result.err


def test_a_part_of_the_batches_is_a_run_to_be_completed(door, tiny_base, questions):
    path = questions(3)
    fixed = ("--trainer.logger.init_args.version", 0)
    part = _predict(door, tiny_base, path, *fixed, "--trainer.limit_predict_batches", 1)
    assert part.status == 1 and "2 of 3 questions missing" in part.err
    assert "limit_predict_batches 1 leaves the questions of all further batches" in part.err  # 1 is not 1.0, all
    assert not (RUN / "answers.jsonl").exists()
    whole = _predict(door, tiny_base, path, *fixed, "--trainer.limit_predict_batches", 1.0)
    assert whole.status == 0 and "limit_predict_batches" not in whole.err
    assert len(lines(RUN / "answers.jsonl")) == 3


@pytest.mark.parametrize("logger", ["false", "lightning.pytorch.loggers.CSVLogger"])
def test_other_loggers(door, tiny_base, questions, logger):
    more = ["--trainer.logger.save_dir", "csv"] if "CSV" in logger else []
    result = _predict(door, tiny_base, questions(2), "--trainer.logger", logger, *more)
    assert result.status == 0, result.err
    assert len(list(Path().rglob("answers.jsonl"))) == len(list(Path().rglob("statistics.json"))) == 1
