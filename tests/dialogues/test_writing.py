"""Dialogues of a random model: exactly once, the same bytes however often it was stopped."""

import gzip
import json
import shutil

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lit_hass.decoding import AutoregressiveDecoder, SamplingConfig, derive_seed
from lit_hass.dialogues import DialogueSettings, user_opening, write_dialogues, writing
from lit_hass.errors import RunError, UserError
from lit_hass.models import load_base, load_tokenizer, stop_ids
from lit_hass.records import read_questions


@pytest.fixture(scope="module")
def base(tmp_path_factory, tsv_tokenizer):
    """A random model that ends its turns soon: its output layer prefers the stop token."""
    folder = tmp_path_factory.mktemp("talker")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tsv_tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.05,
        bos_token_id=None, eos_token_id=tsv_tokenizer.eos_token_id,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    # All features point one way, and so do the output rows of what shall be frequent: ends of turns and of words.
    pieces = {token: tsv_tokenizer.decode([token]) for token in tsv_tokenizer.get_vocab().values()}
    with torch.no_grad():
        model.get_input_embeddings().weight += 0.3
        rows = model.get_output_embeddings().weight
        rows[tsv_tokenizer.eos_token_id] += 0.08
        rows[[token for token, piece in pieces.items() if piece.startswith(" ")]] += 0.06
        rows[[token for token, piece in pieces.items() if "\ufffd" in piece]] -= 0.3
    model.save_pretrained(folder)
    tsv_tokenizer.save_pretrained(folder)
    return str(folder)


def settings(base, **changes):
    chosen = {"n": 12, "batch": 8, "prompt_tokens": 40, "max_new_tokens": 6, "sampling": SamplingConfig(1.0)}
    return DialogueSettings(base=base, **{**chosen, **changes})


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "dialogues.jsonl"
    write_dialogues(settings(base), path)
    return path.read_bytes()


def test_lines_are_questions_with_their_answers(whole, tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_bytes(whole)
    found = read_questions(path)
    assert len(found) == 12 and len({question.turns[0] for question in found}) == 12
    assert all(len(q.turns) == len(q.reference) == 1 and q.reference[0].strip() for q in found)


def test_each_dialogue_is_what_sampling_it_alone_gives(base, whole):
    model, tokenizer = load_base(base), load_tokenizer(base)
    ends = stop_ids(model, tokenizer)
    opening = torch.tensor(user_opening(tokenizer, ends).ids)
    decoder = AutoregressiveDecoder(model)
    for line in whole.decode().splitlines()[::5]:
        row = json.loads(line)
        [asked] = decoder.generate(
            [opening], 40, SamplingConfig(temperature=1.0, top_p=0.95), ends,
            [derive_seed("dialogue", 1, row["question_id"], "prompt")],
        )  # fmt: skip
        assert tokenizer.decode(asked.output_ids, skip_special_tokens=True).strip() == row["turns"][0]
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": row["turns"][0]}], add_generation_prompt=True
        )
        seed = derive_seed("dialogue", 1, row["question_id"], "answer")
        [answer] = decoder.generate([torch.tensor(prompt["input_ids"])], 6, SamplingConfig(1.0), ends, [seed])
        assert tokenizer.decode(answer.output_ids, skip_special_tokens=True) == row["reference"][0]


def test_a_stopped_run_goes_on_to_the_same_bytes(base, whole, tmp_path, monkeypatch):
    path = tmp_path / "d.jsonl"
    real, calls = writing._Writer._answer, []

    def dying(self, *args):
        calls.append(1)
        if len(calls) % 2 == 0:
            raise KeyboardInterrupt
        return real(self, *args)

    monkeypatch.setattr(writing._Writer, "_answer", dying)
    for _ in range(20):
        try:
            write_dialogues(settings(base), path)
            break
        except KeyboardInterrupt:
            assert not path.exists()
            with open(f"{path}.partial", "ab") as file:  # what a kill leaves behind the last whole block
                file.write(b'{"question_id": 3, "tur')
    assert len(calls) > 2 and path.read_bytes() == whole
    assert [entry.name for entry in tmp_path.iterdir()] == ["d.jsonl"]


def test_another_seed_gives_others(base, whole, tmp_path):
    write_dialogues(settings(base, seed=2, n=3), tmp_path / "d.jsonl")
    assert not set((tmp_path / "d.jsonl").read_bytes().splitlines()) & set(whole.splitlines())


def test_prompts_of_a_file_are_answered_once_each(base, tmp_path):
    path = tmp_path / "d.jsonl"
    dropped = write_dialogues(settings(base, n=3, prompts=("a b", "c d", "A  b"), max_new_tokens=5), path)
    assert dropped.get("seen before") == 1
    assert [json.loads(line)["turns"] for line in path.read_text().splitlines()] == [["a b"], ["c d"]]


def test_another_runs_partial_file_is_refused(base, tmp_path, monkeypatch):
    path = tmp_path / "d.jsonl"
    monkeypatch.setattr(writing._Writer, "_finish", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_dialogues(settings(base, n=2), path)
    with pytest.raises(UserError, match="seed differ"):
        write_dialogues(settings(base, n=2, seed=9), path)


def test_a_file_that_is_there_stays(base, tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text("mine")
    with pytest.raises(UserError, match="is there already"):
        write_dialogues(settings(base), path)
    assert path.read_text() == "mine"


def test_a_base_that_writes_no_prompts_is_given_up(tiny_base, tmp_path):
    with pytest.raises(RunError, match="instruction-tuned"):
        write_dialogues(settings(str(tiny_base), batch=4, prompt_tokens=3), tmp_path / "d.jsonl")


def test_a_sampled_text_with_special_tokens_inside_is_no_prompt(base, tsv_tokenizer, tmp_path, monkeypatch):
    pad, end = tsv_tokenizer.pad_token_id, tsv_tokenizer.eos_token_id
    words = tsv_tokenizer("1 2 3 4", add_special_tokens=False)["input_ids"]
    real = AutoregressiveDecoder.generate

    def generate(self, prompts, *args, **kwargs):
        found = real(self, prompts, *args, **kwargs)
        if kwargs.get("seeds") and args[0] == 40:  # what is sampled for prompts
            found[0].output_ids = torch.tensor([*words, pad, *words, end])
            found[0].stop_reason = "stop"
        return found

    monkeypatch.setattr(AutoregressiveDecoder, "generate", generate)
    dropped = write_dialogues(settings(base, n=3), tmp_path / "d.jsonl")
    assert pad in tsv_tokenizer.all_special_ids and dropped["special tokens"] >= 1


@pytest.fixture(scope="module")
def dated(base, tmp_path_factory):
    """The same with the date in front of every conversation."""
    folder = shutil.copytree(base, tmp_path_factory.mktemp("dated") / "base")
    template = folder / "chat_template.jinja"
    template.write_text("{{ strftime_now('%d %b %Y') }}" + template.read_text())
    return str(folder)


def test_a_run_of_a_dated_template_does_not_go_on_on_another_day(base, dated, tmp_path, monkeypatch):
    path = tmp_path / "d.jsonl"
    asked, real = [], writing.Prompting.encode
    monkeypatch.setattr(
        writing.Prompting, "encode", lambda self, *args: (asked.append(self.text(*args)), real(self, *args))[1]
    )
    with monkeypatch.context() as patch:
        patch.setattr(writing._Writer, "_finish", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            write_dialogues(settings(dated, n=2, prompts=("a b", "c d"), date="2026-11-27"), path)
    assert asked and all(text.startswith("27 Nov 2026") for text in asked)
    for later in ("2026-11-28", None):  # None is today, when the clock has gone on
        with pytest.raises(UserError, match=r"\(date differ\); go on with --date 2026-11-27, give another --out"):
            write_dialogues(settings(dated, n=2, prompts=("a b", "c d"), date=later), path)
    write_dialogues(settings(dated, n=2, prompts=("a b", "c d"), date="2026-11-27"), path)
    assert len(path.read_text().splitlines()) == 2
    with pytest.raises(UserError, match="no date"):
        settings(dated, date="27.11.2026").key()
    assert settings(base, date="2026-11-27").key() == settings(base).key() and settings(base).key()["date"] is None


def test_the_opening_of_a_sampled_prompt_is_of_the_chosen_day(dated):
    tokenizer = load_tokenizer(dated)
    ids = user_opening(tokenizer, [tokenizer.eos_token_id], "2024-07-26").ids
    assert tokenizer.decode(ids).startswith("26 Jul 2024")


@pytest.mark.parametrize("name", ["q.jsonl", "q.JSONL", "q.jsonl.gz", "q.json.gz"])
def test_prompts_of_a_question_file_are_its_first_turns_however_it_is_packed(tmp_path, name):
    content = b'{"question_id": 1, "turns": ["first of it", "second"]}\n'
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert writing.read_prompts(str(tmp_path / name)) == ("first of it",)


def test_prompts_of_a_text_file_are_its_lines(tmp_path):
    (tmp_path / "p.txt.gz").write_bytes(gzip.compress(b"one\n\n two \n"))
    assert writing.read_prompts(str(tmp_path / "p.txt.gz")) == ("one", "two")
