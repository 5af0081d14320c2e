"""Each bad input gets one line that names it, status 2, and leaves nothing behind."""

import json
import shutil
from pathlib import Path

import pytest

from tests.door.conftest import CONFIG

GOOD = {"question_id": 1, "turns": ["<td>1</td>"]}


def _lines(*objects: object) -> str:
    return "".join((o if isinstance(o, str) else json.dumps(o)) + "\n" for o in objects)


FILES = {
    "malformed": (_lines(GOOD, "{question_id: 2}"), ":2:"),
    "truncated": (_lines(GOOD) + '{"question_id": 2, "turns": ["<td>', ":2:"),
    "duplicate id": (_lines(GOOD, {**GOOD, "turns": ["x"]}), "already used on line 1"),
    "missing id": (_lines(GOOD, {"turns": ["x"]}), "question_id is missing"),
    "empty turn": (_lines({"question_id": 1, "turns": ["x", "  "]}), "turn 2 of turns is blank"),
    "no turns": (_lines({"question_id": 1, "turns": []}), "turns is empty"),
    "no questions": ("\n", "no questions"),
    "too long": (_lines(GOOD, {"question_id": 7, "turns": ["<td>x</td>" * 300]}), "question 7"),
}


@pytest.mark.parametrize("name", FILES)
def test_question_files(door, tiny_base, tmp_path, name):
    content, named = FILES[name]
    path = tmp_path / "bad.jsonl"
    path.write_text(content, encoding="utf-8")
    _refused(door("predict", "-c", CONFIG, "--model.base", tiny_base, "--data.questions", path), "bad.jsonl", named)


@pytest.mark.parametrize(
    ("option", "value", "named"),
    [
        ("--data.questions", "missing.jsonl", "missing.jsonl"),
        ("--data.question_begin", "80", "question_begin 80"),
        ("--data.question_begin", "-1", "question_begin"),
        ("--data.question_end", "0", "question_end 0"),
        ("--data.num_choices", "0", "num_choices"),
        ("--data.batch_size", "0", "batch_size"),
        ("--data.template", "alpaca", "alpaca"),
        ("--data.template", "plain --data.plain_template Q", "{turn}"),
        ("--data.system_prompt", "Be_kind", "system"),
        ("--model.base", "no/such-model", "no/such-model"),
        ("--model.max_new_tokens", "0", "max_new_tokens"),
        ("--model.sampling.temperature", "-1", "sampling.temperature"),
        ("--model.sampling.temperature", "warm", "warm"),
        ("--model.sampling.top_p", "0", "sampling.top_p"),
        ("--model.dtype", "float7", "float7"),
        ("--model.colour", "red", "colour"),
        ("--trainer.devicse", "2", "devicse"),
        ("--trainer.strategy", "ddp_spawn", "ddp_spawn"),
        ("--trainer.logger.init_args.save_dir", "/dev/null/logs", "/dev/null"),
        ("-c", "missing.yaml", "missing.yaml"),
    ],
)
def test_settings(door, tiny_base, option, value, named):
    base = [] if option == "--model.base" else ["--model.base", tiny_base]
    _refused(door("predict", "-c", CONFIG, *base, option, *value.split(" ")), named)


def test_end_before_begin(door, tiny_base):
    more = ("--data.question_begin", 5, "--data.question_end", 2)
    _refused(door("predict", "-c", CONFIG, "--model.base", tiny_base, *more), "question_end 2", "question_begin 5")


@pytest.mark.parametrize(
    ("lost", "named"),
    [
        (["model.safetensors"], "no weights"),
        (["tokenizer.json"], "no tokenizer"),
        (["config.json"], "config.json"),
    ],
)
def test_model_folders(door, tiny_base, tmp_path, lost, named):
    folder = tmp_path / "model"
    shutil.copytree(tiny_base, folder)
    for name in lost:
        (folder / name).unlink()
    _refused(door("predict", "-c", CONFIG, "--model.base", folder), str(folder), named)


def test_damaged_weights(door, tiny_base, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_base, folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    _refused(door("predict", "-c", CONFIG, "--model.base", folder), "model.safetensors")


def test_a_tokenizer_without_a_chat_template(door, tiny_base, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_base, folder)
    (folder / "chat_template.jinja").unlink()
    _refused(door("predict", "-c", CONFIG, "--model.base", folder), "no chat template", "--data.template plain")


def test_statistics_without_answers(door, tiny_base, questions):
    result = door(
        "predict", "-c", CONFIG, "--model.base", tiny_base, "--data.questions", questions(1),
        "--trainer.callbacks", '[{"class_path": "callbacks.GenerationStatistics"}]',
    )  # fmt: skip
    assert result.status == 2 and "callbacks.AnswerWriter" in result.err


def _refused(result, *named):
    message = result.err.strip()
    assert result.status == 2, result.err
    assert message.startswith("lit-hass: error: ") and "\n" not in message, message
    for text in named:
        assert text in message, message
    assert not list(Path().iterdir()), "something was left behind"
