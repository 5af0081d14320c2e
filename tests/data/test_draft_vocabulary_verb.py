"""``lit-hass draft-vocabulary``: the tokens that a base's answers have most often, counted by hand."""

import json
import shutil
from collections import Counter

import pytest

from lit_hass.data.draft_vocabulary_verb import draft_vocabulary
from lit_hass.errors import UserError
from lit_hass.models import DraftModel, load_base, load_draft
from lit_hass.models.draft_vocabulary import VOCABULARY_FILE, DraftVocabulary

ANSWERS = [["one two", "two"], ["two one two"], ["3 4 3"]]


@pytest.fixture
def questions(tmp_path):
    """Writes a question file; the prompts are long, so that counting their tokens would be seen."""

    def write(answers=ANSWERS, **changes):
        path = tmp_path / "questions.jsonl"
        rows = [
            {"question_id": i, "turns": ["zebra " * 9] * len(given), "reference": given, **changes}
            for i, given in enumerate(answers)
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    return write


def expected(tokenizer, size):
    """The most frequent ids of the answers and of their ends, ties to the lower id; and which share they are."""
    counts = Counter()
    for given in ANSWERS:
        for answer in given:
            counts.update(tokenizer(answer + "<|end|>", add_special_tokens=False)["input_ids"])
    order = sorted(range(len(tokenizer)), key=lambda token: (-counts[token], token))[:size]
    return tuple(sorted(order)), sum(counts[token] for token in order) / counts.total()


@pytest.mark.parametrize("size", [4, 40])
def test_counts_by_hand(questions, tiny_base, tsv_tokenizer, tmp_path, size):
    out = tmp_path / "vocabulary.json"
    args = ["--base", str(tiny_base), "--questions", questions(), "--size", str(size)]
    assert draft_vocabulary([*args, "--out", str(out)]) == 0
    found = DraftVocabulary.read(out)
    ids, coverage = expected(tsv_tokenizer, size)
    assert found.ids == ids and found.coverage == pytest.approx(coverage) and found.vocab_size == len(tsv_tokenizer)
    assert tsv_tokenizer.eos_token_id in ids and (coverage == 1) is (size == 40)


def test_a_draft_uses_what_is_written_into_its_folder(questions, tiny_base, tsv_tokenizer, tmp_path):
    draft = tmp_path / "draft"
    DraftModel.from_base(load_base(tiny_base)).save_pretrained(draft)
    args = ["--base", str(tiny_base), "--questions", questions(), "--size", "20", "--draft", str(draft)]
    assert draft_vocabulary(args) == 0
    assert (draft / VOCABULARY_FILE).exists()
    assert load_draft(draft, load_base(tiny_base)).vocabulary.ids == expected(tsv_tokenizer, 20)[0]


def test_refusals(questions, tiny_base, tmp_path):
    out = tmp_path / "vocabulary.json"

    def refused(path, *more):
        with pytest.raises(UserError) as error:
            draft_vocabulary(["--base", str(tiny_base), "--questions", path, *(more or ("--out", str(out)))])
        assert not out.exists() and "\n" not in str(error.value)
        return str(error.value)

    each = "each turn needs its answer"
    assert f"question 0 has 2 turns and 0 references; {each}" in refused(questions(reference=None))
    assert f"question 0 has 2 turns and 1 references; {each}" in refused(questions(reference=["one"]))
    assert "nothing.jsonl: no such question file" in refused("nothing.jsonl")
    assert "draft vocabulary of" in refused(questions(), "--size", "0", "--out", str(out))
    assert "draft vocabulary of" in refused(questions(), "--size", "100000", "--out", str(out))
    assert "nowhere" in refused(questions(), "--draft", str(tmp_path / "nowhere"))


def test_a_question_that_the_template_refuses_is_named(questions, tiny_base, tmp_path):
    base = shutil.copytree(tiny_base, tmp_path / "strict")
    (base / "chat_template.jinja").write_text("{{ raise_exception('no ' + messages[0]['role']) }}")
    with pytest.raises(UserError, match=r"questions\.jsonl: question 0: .*no user"):
        draft_vocabulary(["--base", str(base), "--questions", questions(), "--out", str(tmp_path / "v.json")])
