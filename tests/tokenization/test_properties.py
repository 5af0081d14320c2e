"""What holds for every text: encoding, offsets and decoding fit each other."""

import pickle
import time
import unicodedata

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lit_hass.tokenization import WordPieceTokenizer
from lit_hass.tokenization.characters import PythonRules, rules
from lit_hass.tokenization.config import WordPieceConfig
from tests.tokenization.texts import SCRIPTS
from tests.tokenization.vocabularies import SPECIAL, dense_vocabulary

CASES = {
    "uncased": WordPieceTokenizer(dense_vocabulary()),
    "cased": WordPieceTokenizer(dense_vocabulary(), lowercase=False),
    "python tables": WordPieceTokenizer(dense_vocabulary(), tables="python"),
}
# Characters of a few scripts meet each other more often than those of all Unicode do.
NEAR = st.sampled_from(SCRIPTS).flatmap(lambda r: st.characters(min_codepoint=r[0], max_codepoint=r[1]))
TEXTS = st.one_of(
    st.text(max_size=60),
    st.text(NEAR, max_size=60),
    st.lists(st.sampled_from([*SPECIAL, " ", "\n", "the", "\u302e", "\u0301", "\U0001d165", "a", "\uac01"])).map(
        "".join
    ),
)
MANY = settings(max_examples=120, deadline=None)
every = pytest.mark.parametrize("own", CASES.values(), ids=CASES)


def plain_ids(own: WordPieceTokenizer, text: str) -> list[int]:
    """Encode without caches, table or regular expression: split at special tokens, plain passes, longest match."""
    ids, rest = [], text
    while rest:
        places = [(rest.find(token), token) for token in SPECIAL if token in rest]
        at, token = min(places, default=(len(rest), ""))
        for word in rules(own.config).words(rest[:at]):
            ids += plain_match(own, word)
        ids += [own.vocab[token]] if token else []
        rest = rest[at + len(token) :]
    return ids


def plain_match(own: WordPieceTokenizer, word: str) -> list[int]:
    """The longest match, looked for piece by piece in the whole vocabulary."""
    ids: list[int] = []
    start = 0
    while start < len(word):
        prefix = "##" if start else ""
        ends = [end for end in range(start + 1, len(word) + 1) if prefix + word[start:end] in own.vocab]
        if not ends or len(word) > own.config.max_chars:
            return [own.unk_id]
        ids.append(own.vocab[prefix + word[start : ends[-1]]])
        start = ends[-1]
    return ids


@every
@MANY
@given(text=TEXTS)
@example(text="[MASK]\u0301[MASK]")
@example(text="a\u302e\u0301\U0001d165 a\u302e\u200d\U0001d165")
def test_ids_are_those_of_the_plain_algorithm(own, text):
    assert own.encode(text, False) == plain_ids(own, text)
    assert own.encode(text) == [own.cls_id, *plain_ids(own, text), own.sep_id]


@MANY
@given(text=TEXTS)
def test_ids_are_theirs(text):
    for own in (CASES["uncased"], CASES["cased"]):
        backend = THEIRS[own.config.lowercase]
        assert own.encode(text) == backend.encode(text).ids


THEIRS = {own.config.lowercase: own.to_hf().backend_tokenizer for own in (CASES["uncased"], CASES["cased"])}


@every
@MANY
@given(text=TEXTS)
def test_offsets_name_the_characters_that_became_the_piece(own, text):
    ids, offsets = own.encode_with_offsets(text, False)
    assert ids == own.encode(text, False)
    for i, (start, end) in zip(ids, offsets, strict=True):
        assert 0 <= start < end <= len(text)
        if i == own.unk_id:
            continue
        piece = own.pieces[i]
        if piece in SPECIAL:
            assert text[start:end] == piece
            continue
        # What stands there, normalised on its own, has the piece's characters (a character that was taken apart may
        # have given more, and marks between may have moved).
        made = "".join(rules(own.config).words(text[start:end]))
        assert not set(piece.removeprefix("##")) - set(made)
        # Nothing at either end is there for nothing.
        for edge in (text[start], text[end - 1]):
            assert "".join(rules(own.config).words(edge))


@every
@MANY
@given(text=TEXTS)
def test_offsets_go_forward_and_leave_nothing_out(own, text):
    ids, offsets = own.encode_with_offsets(text, False)
    covered = {i for start, end in offsets for i in range(start, end)}
    for i, character in enumerate(text):
        if i not in covered:  # white space and what is dropped
            assert rules(own.config).words(character) == []
    if own._table.reordering.isdisjoint(text):
        assert offsets == sorted(offsets)


@every
@MANY
@given(text=TEXTS)
def test_decoding_gives_the_normalised_words_back(own, text):
    ids = own.encode(text, False, allow_special=False)
    words = rules(own.config).words(text)
    if own.unk_id not in ids:
        assert own.decode(ids, clean_up=False) == " ".join(words)
        # and encoding them again changes nothing
        assert own.encode(" ".join(words), False, allow_special=False) == ids


@every
@MANY
@given(text=TEXTS, other=TEXTS)
def test_a_blank_separates(own, text, other):
    assert own.encode(f"{text} {other}", False) == own.encode(text, False) + own.encode(other, False)


@every
@MANY
@given(texts=st.lists(TEXTS, max_size=4), max_length=st.integers(2, 20))
def test_batches_and_truncation(own, texts, max_length):
    whole = own.encode_batch(texts)
    assert whole == [own.encode(text) for text in texts]
    cut = own.encode_batch(texts, max_length=max_length)
    assert all(len(c) <= max_length for c in cut)
    assert cut == [w if len(w) <= max_length else [*w[: max_length - 1], own.sep_id] for w in whole]


@MANY
@given(text=st.text(st.characters(categories=["Ll", "Lu", "Nd"], max_codepoint=0x24F), max_size=80))
def test_latin_text_comes_back_but_for_case_and_accents(text):
    own = WordPieceTokenizer(
        [*SPECIAL, *(p + chr(c) for c in range(0x61, 0x250) for p in ("", "##") if not chr(c).isspace())]
    )
    ids = own.encode(text, False)
    bare = "".join(c for c in unicodedata.normalize("NFD", text) if unicodedata.category(c) != "Mn")
    if own.unk_id not in ids:
        assert own.decode(ids) == "".join(c.lower() for c in bare)


@every
def test_pickled_copy_gives_the_same_ids(own):
    copy = pickle.loads(pickle.dumps(own))
    assert copy.config == own.config and copy.special_tokens == own.special_tokens
    text = "The tree fell [MASK] \uac01 short."
    assert copy.encode(text) == own.encode(text)


def test_decoding_tensors_and_arrays():
    own = CASES["uncased"]
    ids = own.encode("The tree fell [MASK]")
    for these in (ids, tuple(ids), iter(ids), torch.tensor(ids), np.array(ids)):
        assert own.decode(these, skip_special_tokens=True) == own.decode(own.encode("The tree fell", False))
    with pytest.raises(TypeError):
        own.decode("ab")
    with pytest.raises(TypeError):
        own.decode([1.5])


#: A letter, two marks that are taken off, two of different classes that stay, one of a third class that stays.
MARKS = "a\u0301\u0323\U0001d165\U0001d16d\u302e"


@pytest.mark.parametrize("tables", ["bert", "python"])
@MANY
@given(text=st.text(st.sampled_from(MARKS), max_size=60))
def test_marks_that_were_put_in_order_keep_their_places_in_the_text(tables, text):
    """Canonical ordering as the standard words it: neighbours change places while the first one's class is higher."""
    own = WordPieceTokenizer([*SPECIAL, *MARKS, *("##" + c for c in MARKS)], tables=tables)
    made = [(c, i) for i, c in enumerate(text)]
    for end in range(len(made), 1, -1):
        for at in range(end - 1):
            first, second = (unicodedata.combining(c) for c, _ in made[at : at + 2])
            if first > second > 0:
                made[at : at + 2] = made[at + 1], made[at]
    kept = [(c, (i, i + 1)) for c, i in made if unicodedata.category(c) != "Mn"]
    ids, spans = own.encode_with_offsets(text, False)
    assert [(own.pieces[i].removeprefix("##"), span) for i, span in zip(ids, spans, strict=True)] == kept


@MANY
@given(text=TEXTS)
def test_python_rules_decompose_as_unicode_says(text):
    config = WordPieceConfig(lowercase=False, strip_accents=True, chinese_chars=False)
    whole = unicodedata.normalize("NFD", text)
    kept = "".join(c for c in whole if unicodedata.category(c) != "Mn")
    assert PythonRules(config).words(text) == PythonRules(WordPieceConfig(False, False, False)).words(kept)


@pytest.mark.parametrize("tables", ["bert", "python"])
@pytest.mark.parametrize("method", ["encode", "encode_with_offsets"])
def test_marks_of_two_classes_in_turn_take_time_in_proportion(tables, method):
    """Eight times the text took sixty-four times the time; here it may take twenty times."""
    own = WordPieceTokenizer(dense_vocabulary(), tables=tables)

    def seconds(n: int) -> float:
        text, best = "\U0001d165\U0001d16d" * n, float("inf")
        for _ in range(3):
            own.clear_caches()
            began = time.process_time()
            getattr(own, method)(text)
            best = min(best, time.process_time() - began)
        return best

    assert seconds(16_000) < 20 * seconds(2_000)
