import json
import shutil
from types import SimpleNamespace

import pytest
from lightning.pytorch import LightningModule

from lit_hass.data import QuestionDataModule
from lit_hass.errors import UserError
from lit_hass.records import AnswerRecord, ChoiceRecord, ShardWriter, TurnRecord, failed_answer


class Answering(LightningModule):
    def __init__(self, base) -> None:
        super().__init__()
        self.base = None if base is None else str(base)


@pytest.fixture
def file(tmp_path):
    def write(*turns: str):
        path = tmp_path / "questions.jsonl"
        lines = [json.dumps({"question_id": i, "turns": [turn]}) for i, turn in enumerate(turns, start=1)]
        path.write_text("\n".join(lines), encoding="utf-8")
        return str(path)

    return write


def refused(data: QuestionDataModule, base) -> str:
    with pytest.raises(UserError) as caught:
        data.check(Answering(base))
    message = str(caught.value)
    assert "\n" not in message and data.questions == []
    return message


@pytest.mark.parametrize(
    ("begin", "end", "cause"),
    [
        (3, None, "question_begin 3 is beyond the last question (3 questions, counted from 0)"),
        (-1, None, "question_begin must not be negative, found -1"),
        (2, 1, "question_end 1 must be greater than question_begin 2"),
        (None, 0, "question_end 0 must be greater than question_begin 0"),
    ],
)
def test_a_bad_selection(file, tiny_base, begin, end, cause: str) -> None:
    assert refused(QuestionDataModule(file("a", "b", "c"), begin, end), tiny_base) == cause


def test_a_prompt_that_fills_the_context(file, tiny_base, tsv_tokenizer) -> None:
    # 512 is the context; <|user|> and <|assistant|> take two
    path = file("fits", ";" * 510, "x")
    message = refused(QuestionDataModule(path), tiny_base)
    assert message == (
        f"{path}:2: question 2 has a prompt of 512 tokens, which leaves no room in the model's context of 512 "
        "(--model.context, if the model takes more)"
    )
    QuestionDataModule(file(";" * 509)).check(Answering(tiny_base))


def test_a_folder_without_a_tokenizer(file, tiny_base, tmp_path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(tiny_base, bare)
    (bare / "tokenizer.json").unlink()
    message = refused(QuestionDataModule(file("a")), bare)
    assert message.startswith(f"{bare}: no tokenizer; looked for")
    QuestionDataModule(file("a"), tokenizer=str(tiny_base)).check(Answering(bare))


def test_an_unknown_file(tiny_base) -> None:
    message = refused(QuestionDataModule("nowhere.jsonl"), tiny_base)
    assert message.startswith("nowhere.jsonl: no such question file; shipped benchmarks:")


def test_a_broken_line(tiny_base, tmp_path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text('{"question_id": 1, "turns": ["a"]}\n{"question_id": 2, "turns": "b"}\n', encoding="utf-8")
    assert refused(QuestionDataModule(str(path)), tiny_base).startswith(f"{path}:2: turns must be a list of strings")


def test_a_module_without_a_base(file) -> None:
    assert "give --data.tokenizer" in refused(QuestionDataModule(file("a")), None)


def test_an_unknown_base(file, tmp_path) -> None:
    assert refused(QuestionDataModule(file("a")), tmp_path / "no").startswith(f"{tmp_path / 'no'}: no such folder")


def test_a_template_that_does_not_fit(file, tiny_base) -> None:
    assert "chat template refuses" in refused(QuestionDataModule(file("a"), system_prompt="S"), tiny_base)
    assert "lacks {turn}" in refused(QuestionDataModule(file("a"), template="plain", plain_template="x"), tiny_base)


@pytest.mark.parametrize("name", ["num_choices", "batch_size"])
@pytest.mark.parametrize("value", [0, -2])
def test_counts_below_one(name: str, value: int) -> None:
    with pytest.raises(UserError, match=f"^data.{name} must be at least 1, found {value}$"):
        QuestionDataModule(**{name: value})


def ready(path, base, rank=0, world=1, folder=None, **arguments):
    data = QuestionDataModule(path, **arguments)
    data.check(Answering(base))
    data.trainer = SimpleNamespace(
        global_rank=rank,
        world_size=world,
        log_dir=folder,
        fast_dev_run=0,
        is_global_zero=rank == 0,
        lightning_module=None,
        strategy=SimpleNamespace(broadcast=lambda value: value),
    )
    return data


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_each_question_is_on_one_rank(file, tiny_base, world: int) -> None:
    path = file(*"abcde")
    found = []
    for rank in range(world):
        batches = list(ready(path, tiny_base, rank, world, batch_size=2).predict_dataloader())
        assert batches  # Lightning skips the hooks of a loop without batches, and other ranks wait in them
        found += [q.question_id for batch in batches for q in batch.questions]
        assert all(len(batch.questions) <= 2 and batch.num_choices == 1 for batch in batches)
    assert sorted(found) == [1, 2, 3, 4, 5]


def test_selected_questions_keep_their_ids(file, tiny_base) -> None:
    data = ready(file(*"abcde"), tiny_base, question_begin=1, question_end=3)
    assert data.question_ids == [2, 3]


def test_answered_questions_are_left_out_and_failed_ones_are_not(file, tiny_base, tmp_path) -> None:
    turn = TurnRecord("x", [1], 0.1, 1)
    with ShardWriter(tmp_path, 0) as shard:
        shard.write([AnswerRecord(i, "m", [ChoiceRecord.from_turns(0, [turn])]).to_dict() for i in (1, 3)])
        shard.write([failed_answer(4, "no")])
    data = ready(file(*"abcd"), tiny_base, folder=str(tmp_path))
    assert [q.question_id for batch in data.predict_dataloader() for q in batch.questions] == [2, 4]


def test_the_resume_settings_follow_what_decides_the_answers(file, tiny_base, tmp_path) -> None:
    path = file("a", "b")
    first = ready(path, tiny_base).resume_settings()
    moved = tmp_path / "other.jsonl"
    shutil.copy(path, moved)
    assert ready(str(moved), tiny_base, batch_size=3).resume_settings() == first
    tokenizer = tmp_path / "tokenizer"
    shutil.copytree(tiny_base, tokenizer)
    (tokenizer / "more.json").write_text("{}")
    others = [
        ready(path, tiny_base, num_choices=2),
        ready(path, tiny_base, question_end=1),
        ready(path, tiny_base, template="plain"),
        ready(path, tiny_base, tokenizer=str(tiny_base)),
        ready(path, tiny_base, tokenizer=str(tokenizer)),
    ]
    settings = [json.dumps(other.resume_settings(), sort_keys=True) for other in others]
    assert len({json.dumps(first, sort_keys=True), *settings}) == 6
