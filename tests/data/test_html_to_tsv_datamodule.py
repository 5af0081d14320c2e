import functools
from itertools import islice
from types import SimpleNamespace

import pytest
import torch

from lit_hass.data import HTMLToTSVDataModule, html_to_tsv_datamodule
from lit_hass.data.batches import IGNORE
from lit_hass.data.html_to_tsv import Difficulty, make_example
from lit_hass.data.html_to_tsv_datamodule import Stage, encode_dialogue
from lit_hass.data.prompting import Prompting
from lit_hass.errors import UserError

STAGES = [Stage("2x2-plain", 0.1), Stage("3x3", 0.25), Stage("4x4", 1.0)]


@pytest.fixture
def make(tiny_base):
    """A DataModule as a Trainer at this place would see it."""

    def build(rank=0, world=1, step=0, max_steps=100, accumulate=1, **arguments):
        data = HTMLToTSVDataModule(**{"tokenizer": str(tiny_base), "tokens_per_batch": 256, **arguments})
        data.setup("fit")
        data.trainer = SimpleNamespace(
            global_rank=rank,
            world_size=world,
            global_step=step,
            max_steps=max_steps,
            accumulate_grad_batches=accumulate,
        )
        return data

    return build


def take(data, count):
    return list(islice(iter(data.train_dataloader()), count))


def texts(data, batches):
    return [
        data.tokenizer.decode(ids[mask.bool()])
        for batch in batches
        for ids, mask in zip(batch.input_ids, batch.attention_mask, strict=True)
    ]


def same(a, b):
    return all(torch.equal(getattr(a, k), getattr(b, k)) for k in ("input_ids", "attention_mask", "labels"))


def test_the_answer_alone_is_scored(make) -> None:
    data = make()
    example = make_example("train", 0, 0, Difficulty(4, 4))
    ids, asked = data.encode("train", 0, Difficulty(4, 4))
    assert data.tokenizer.decode(ids[:asked]) == f"<|user|>{example.question}<|assistant|>"
    assert data.tokenizer.decode(ids[asked:]) == f"{example.tsv}<|end|>"
    for batch in take(data, 3):
        for row, labels in zip(batch.input_ids, batch.labels, strict=True):
            scored = labels != IGNORE
            assert torch.equal(row[scored], labels[scored])
            text = data.tokenizer.decode(row[scored])
            assert text.endswith("<|end|>") and "<|assistant|>" not in text


@pytest.mark.parametrize("stop", [1, 5, 8, 13])
def test_a_resumed_stream_goes_on_with_the_very_batch(make, stop: int) -> None:
    whole = take(make(), 20)
    rest = take(make(step=stop), 20 - stop)
    assert all(same(a, b) for a, b in zip(whole[stop:], rest, strict=True))


def test_a_resumed_stream_counts_accumulated_batches(make) -> None:
    whole = take(make(accumulate=3), 12)
    rest = take(make(accumulate=3, step=2), 6)
    assert all(same(a, b) for a, b in zip(whole[6:], rest, strict=True))


def test_ranks_are_disjoint_and_nothing_repeats(make) -> None:
    seen: list[str] = []
    for rank in range(3):
        data = make(rank=rank, world=3)
        seen += texts(data, take(data, 20))
    assert len(seen) > 100
    numbers = len(seen) - len(set(seen))
    assert numbers <= 0.01 * len(seen)  # two small tables may say the same; the same example never comes twice


def test_the_same_example_is_never_drawn_twice(make, monkeypatch) -> None:
    drawn: list[tuple] = []
    for rank in range(2):
        data = make(rank=rank, world=2)
        encode = data.encode
        monkeypatch.setattr(data, "encode", lambda *a, encode=encode: (drawn.append(a[:2]), encode(*a))[1])
        take(data, 24)
    assert len(drawn) == len(set(drawn)) > 80
    assert {split for split, _ in drawn} == {"train"}


def test_other_seeds_are_other_batches(make) -> None:
    assert not same(take(make(), 1)[0], take(make(seed=1), 1)[0])


def test_batches_have_about_the_tokens_asked_for(make) -> None:
    batches = take(make(tokens_per_batch=1024), 32)
    padded = torch.tensor([b.input_ids.numel() for b in batches], dtype=torch.float64)
    real = torch.tensor([b.attention_mask.sum() for b in batches], dtype=torch.float64)
    assert 0.9 * 1024 < real.mean() < 1.1 * 1024
    assert 0.6 * 1024 < real.min() and real.max() < 1.6 * 1024
    assert real.sum() / padded.sum() > 0.85


def test_batches_smaller_than_an_example_hold_one(make) -> None:
    assert all(b.size >= 1 for b in take(make(tokens_per_batch=1), 10))


@pytest.mark.parametrize(
    ("step", "size"), [(0, (2, 2)), (9, (2, 2)), (10, (3, 3)), (24, (3, 3)), (25, (4, 4)), (99, (4, 4)), (150, (4, 4))]
)
def test_stages_end_where_they_say(make, step: int, size: tuple[int, int]) -> None:
    difficulty = make(curriculum=STAGES).stage_at(step, 100)
    assert (difficulty.max_rows, difficulty.max_columns, difficulty.styles) == (*size, size != (2, 2))


def test_without_a_number_of_steps_the_last_stage_holds(make) -> None:
    assert make(curriculum=STAGES).stage_at(0, -1) == Difficulty(4, 4)


def test_the_stream_follows_the_curriculum(make) -> None:
    data = make(curriculum=STAGES, max_steps=160)
    batches = take(data, 40)
    assert not any('="' in text or "\n</" in text for text in texts(data, batches[:16]))  # plain for 10 %
    assert any('="' in text or "\n</" in text for text in texts(data, batches[16:]))


@pytest.mark.parametrize("world", [1, 3])
def test_each_validation_table_is_there_once_in_all(make, world: int) -> None:
    found: dict[int, list[str]] = {0: [], 1: []}
    for rank in range(world):
        data = make(rank=rank, world=world, validation=25, validation_difficulties=["3x3", "4x4"])
        for i, loader in enumerate(data.val_dataloader()):
            found[i] += texts(data, loader)
            assert all(b.input_ids.numel() <= 4 * 256 or b.size == 1 for b in loader)
    for i, size in enumerate((3, 4)):
        expected = [make_example("validation", 0, n, Difficulty(size, size)) for n in range(25)]
        wanted = [f"<|user|>{e.question}<|assistant|>{e.tsv}<|end|>" for e in expected]
        assert sorted(found[i]) == sorted(wanted)


def test_fewer_tables_than_ranks_are_refused(make) -> None:
    with pytest.raises(UserError, match="data.validation 2 leaves some of the 3 ranks without a table"):
        make(world=3, validation=2).val_dataloader()


def test_a_tokenizer_is_trained_when_none_is_named(monkeypatch) -> None:
    # 20,000 tables take ten seconds; the training itself is tested with the tokenizer.
    fewer = functools.partial(html_to_tsv_datamodule.train_tokenizer, examples=200)
    monkeypatch.setattr(html_to_tsv_datamodule, "train_tokenizer", fewer)
    data = HTMLToTSVDataModule(vocab_size=300)
    data.setup("fit")
    assert len(data.tokenizer) == 300
    kept = data.tokenizer
    data.setup("validate")
    assert data.tokenizer is kept


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        ({"curriculum": [Stage("4x4", 0.5)]}, r"stages end at \[0.5\]; they must rise to 1.0"),
        ({"curriculum": [Stage("4x4", 0.5), Stage("2x2", 0.2), Stage("4x4", 1.0)]}, "must rise"),
        ({"curriculum": [Stage("huge", 1.0)]}, "data: difficulty 'huge'"),
        ({"validation_difficulties": ["4by4"]}, "data: difficulty '4by4'"),
        ({"validation": 0}, "data.validation must be at least 1, found 0"),
        ({"tokens_per_batch": 0}, "data.tokens_per_batch must be at least 1, found 0"),
    ],
)
def test_bad_settings_are_refused(arguments, cause: str) -> None:
    with pytest.raises(UserError, match=cause):
        HTMLToTSVDataModule(**arguments)


def test_a_tokenizer_without_a_chat_template_is_refused(tsv_tokenizer, tmp_path) -> None:
    tsv_tokenizer.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="no chat template"):
        HTMLToTSVDataModule(tokenizer=str(tmp_path)).setup("fit")


def test_a_template_that_hides_the_prompt_is_refused(tmp_path, tsv_tokenizer) -> None:
    from transformers import AutoTokenizer

    tsv_tokenizer.save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.chat_template = "{{ messages[-1]['content'] }}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    with pytest.raises(UserError, match="does not put the answer behind the generation prompt"):
        encode_dialogue(Prompting(tokenizer), "question", "answer")


def test_a_dated_template_is_told_one_day_and_no_time_however_long_a_run_takes(tsv_tokenizer, tmp_path, caplog) -> None:
    tsv_tokenizer.save_pretrained(tmp_path)
    dated = "{{ strftime_now('%Y-%m-%d %H:%M:%S %f') }}\n" + tsv_tokenizer.chat_template
    (tmp_path / "chat_template.jinja").write_text(dated)
    data = HTMLToTSVDataModule(tokenizer=str(tmp_path))
    data.setup("fit")
    day = data.prompting.day
    assert any(f"writes the date into every dialogue, here {day}" in m for m in caplog.messages)
    rows = [data.encode("train", 0, Difficulty(2, 2)) for _ in range(2)]
    head = data.tokenizer.decode(rows[0][0]).split("\n")[0]
    assert rows[0] == rows[1] and head == f"{day} 00:00:00 000000"
    data.prompting = Prompting(data.tokenizer, date="2024-07-26")
    assert data.tokenizer.decode(data.encode("train", 0, Difficulty(2, 2))[0]).startswith("2024-07-26 00:00:00")


def test_a_template_that_refuses_a_dialogue_is_a_user_error(tsv_tokenizer, tmp_path) -> None:
    tsv_tokenizer.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ raise_exception('no dialogues here') }}")
    with pytest.raises(UserError, match="chat template refuses the conversation: no dialogues here"):
        HTMLToTSVDataModule(tokenizer=str(tmp_path)).setup("fit")
