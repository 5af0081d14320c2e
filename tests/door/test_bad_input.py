"""Each bad input gets one line that names it, status 2, and leaves nothing behind."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.door.conftest import CONFIG, ROOT

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
        ("--model.colour", "red", "GenerationModule has no such option"),
        ("--trainer.barebones", "true", "enable_progress_bar false"),
        ("--trainer.strategy", "fsdp", "--trainer.strategy ddp"),
        ("--trainer.devices", "-1", "--trainer.devices 1"),
        ("--ckpt_path", "some.ckpt", "--model.base"),
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


CONFIGS = ROOT / "configs"


@pytest.mark.parametrize(
    ("verb", "config", "named"),
    [
        ("test", "generate_baseline.yaml", "lit-hass predict -c"),
        ("validate", "generate_baseline.yaml", "lit-hass predict -c"),
        ("fit", "generate_baseline.yaml", "lit-hass predict -c"),
        ("evaluate", "generate_baseline.yaml", "lit-hass predict -c"),
        ("predict", "perplexity.yaml", "lit-hass test -c"),
        ("validate", "perplexity.yaml", "lit-hass test -c"),
        ("predict", "train_draft.yaml", "lit-hass fit -c"),
        ("test", "train_base.yaml", "lit-hass fit -c"),
    ],
)
def test_a_verb_with_the_configuration_of_another_is_told_which(door, verb, config, named):
    _refused(door(verb, "-c", CONFIGS / config), f"{named} {CONFIGS / config}")


@pytest.mark.parametrize("verb", ["predict", "test", "fit", "validate"])
@pytest.mark.parametrize("options", [(), ("--model.base", "html_to_tsv"), ("--data.path", "x")])
def test_without_a_configuration_one_is_named(door, verb, options):
    result = door(verb, *options)
    _refused(result, "-c configs/")
    named = result.err.split("-c configs/")[1].split()[0].rstrip(".,;")
    assert (CONFIGS / named).is_file()


def test_options_may_stand_before_the_configuration_that_they_change(door, tiny_base, questions):
    before = ("--model.base", tiny_base, "--data.batch_size", 2, "--trainer.enable_progress_bar", "false")
    result = door("predict", *before, "-c", CONFIG, "--data.questions", questions(2), "--model.max_new_tokens", 3)
    assert result.status == 0, result.err
    assert "answering" not in result.err  # the configuration's own progress bar
    saved = Path("logs/generate_baseline/version_0/config.yaml").read_text(encoding="utf-8")
    assert "batch_size: 2" in saved and str(tiny_base) in saved


def test_an_option_of_another_datamodule_is_told_with_its_owner(door):
    # What a person types who wants to train on a file of their own.
    result = door("fit", "-c", CONFIGS / "train_draft.yaml", "--data.path", "mine.jsonl")
    _refused(result, "--data ConversationDataModule --data.path")
    more = ("--data", "ConversationDataModule", "--data.path", "mine.jsonl")
    _refused(door("fit", "-c", CONFIGS / "train_draft.yaml", *more), "mine.jsonl: no such question file")


def test_torchrun_on_two_machines_is_told_of_num_nodes(door, tiny_base, monkeypatch):
    known = {
        "TORCHELASTIC_RUN_ID": "x",
        "GROUP_WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "1",
        "WORLD_SIZE": "2",
        "RANK": "0",
    }
    for name, value in known.items():
        monkeypatch.setenv(name, value)
    _refused(door("predict", "-c", CONFIG, "--model.base", tiny_base), "--trainer.num_nodes 2", "--trainer.devices 1")


def test_a_share_of_the_batches_that_is_none(door, tiny_base, questions):
    more = ("--data.questions", questions(1), "--trainer.limit_predict_batches", 0.5)
    result = door("predict", "-c", CONFIG, "--model.base", tiny_base, *more)
    assert result.status == 2 and "--data.question_end" in result.err
    assert result.err.splitlines()[-1].startswith("lit-hass: error: You requested to check 0.5 of the")


def test_a_part_of_the_windows_is_no_perplexity(door):
    _refused(door("test", "-c", CONFIGS / "perplexity.yaml", "--trainer.limit_test_batches", 0.5), "limit_test_batches")


YAML = {
    "not UTF-8": (b"seed_everything: 1\nmodel: \xff\n", "bad.yaml:2: not UTF-8"),
    "nested": (b"model: " + b"[" * 20_000 + b"]" * 20_000, "bad.yaml: not usable YAML: nested too deeply"),
    "digits": (b"seed_everything: " + b"1" * 5000, "bad.yaml: not usable YAML"),
    "a list": (b"- 1\n", "bad.yaml: a configuration has keys and values"),
    "syntax": (b"seed_everything: 1\nmodel: [1\n", "bad.yaml:3: not valid YAML"),
    "control character": (b"a: 1\nb: \x00\n", "bad.yaml: not usable YAML"),
    "wrong type": (b"model: {class_path: 5}\n", "bad.yaml"),
}


@pytest.mark.parametrize("verb", ["predict", "star"])
@pytest.mark.parametrize("name", YAML)
def test_configurations(door, tmp_path, verb, name):
    content, named = YAML[name]
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    _refused(door(verb, "-c", path), named)


def _checkpoints(folder: Path) -> None:
    torch.save(
        {"state_dict": {"a": torch.ones(100_000)}, "pytorch-lightning_version": "2.6.0"}, folder / "foreign.ckpt"
    )
    (folder / "cut.ckpt").write_bytes((folder / "foreign.ckpt").read_bytes()[:5000])
    (folder / "text.ckpt").write_text("hello\n")
    (folder / "empty.ckpt").write_bytes(b"")
    torch.save([1, 2], folder / "list.ckpt")
    torch.save({"model": {}}, folder / "other.ckpt")


@pytest.mark.parametrize("verb", ["fit", "validate"])
@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("cut", "cut short"),
        ("text", "damaged"),
        ("empty", "damaged"),
        ("list", "no checkpoint that fit wrote"),
        ("other", "no checkpoint that fit wrote: it has no pytorch-lightning_version and no state_dict"),
        ("missing", "no such checkpoint"),
    ],
)
def test_checkpoints(door, tmp_path, verb, name, named):
    _checkpoints(tmp_path)
    _refused(
        door(verb, "-c", CONFIGS / "train_draft.yaml", "--ckpt_path", tmp_path / f"{name}.ckpt"), f"{name}.ckpt", named
    )


def test_a_checkpoint_of_another_model(door, tiny_base, tmp_path):
    _checkpoints(tmp_path)
    more = ("--model.base", tiny_base, "--trainer.max_steps", 1, "--trainer.logger", "false")
    result = door("fit", "-c", CONFIGS / "train_draft.yaml", *more, "--trainer.callbacks", "null",
                  "--ckpt_path", tmp_path / "foreign.ckpt")  # fmt: skip
    last = result.err.splitlines()[-1]
    assert result.status == 2 and last.startswith(
        f"lit-hass: error: {tmp_path / 'foreign.ckpt'}: a checkpoint of another"
    )


def test_what_is_printed_of_files_cannot_steer_the_terminal(door, tmp_path):
    path = tmp_path / "q\u001b[2J.jsonl"
    path.write_text(json.dumps({"question_id": "\u001b]0;title\u0007", "turns": ["x"]}), encoding="utf-8")
    result = door("predict", "-c", CONFIG, "--data.questions", path)
    _refused(result, r"q\x1b[2J.jsonl:1: question_id holds \x1b")
    assert "\u001b" not in result.err
    path = tmp_path / "long.jsonl"
    path.write_text(json.dumps({"question_id": "m" * 2**20, "turns": ["x"]}), encoding="utf-8")
    result = door("predict", "-c", CONFIG, "--data.questions", path)
    _refused(result, "long.jsonl:1: question_id has 1048576 characters")
    assert len(result.err) < 3000
