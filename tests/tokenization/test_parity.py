"""Ids, pieces, offsets and decoded text are those of transformers' BertTokenizerFast."""

import pytest

from lit_hass.tokenization import WordPieceTokenizer
from tests.tokenization.texts import corpora, random_texts
from tests.tokenization.vocabularies import dense_vocabulary

SETTINGS = {
    "uncased": {},
    "cased": {"lowercase": False},
    "uncased with accents": {"strip_accents": False},
    "cased without accents": {"lowercase": False, "strip_accents": True},
    "no chinese words": {"chinese_chars": False},
    "short words": {"max_chars": 7},
}


@pytest.fixture(scope="module", params=SETTINGS)
def pair(request):
    """Our tokenizer and theirs."""
    own = WordPieceTokenizer(dense_vocabulary(), **SETTINGS[request.param])
    theirs = own.to_hf()
    assert len(theirs) == len(own)
    return own, theirs


@pytest.mark.parametrize("name", corpora())
def test_corpus(pair, name):
    own, theirs = pair
    texts = corpora()[name]
    wanted = [theirs(text, return_offsets_mapping=True) for text in texts]
    assert [own.encode(text) for text in texts] == [w["input_ids"] for w in wanted]
    assert own.encode_batch(texts, False) == theirs(texts, add_special_tokens=False)["input_ids"]
    for text, expected in zip(texts, wanted, strict=True):
        ids, offsets = own.encode_with_offsets(text)
        assert ids == expected["input_ids"]
        assert offsets == expected["offset_mapping"] or _has_ordered_marks(own, text)
        assert own.tokenize(text) == theirs.tokenize(text)
        assert own.decode(ids) == theirs.decode(ids)
        assert own.decode(ids, True) == theirs.decode(ids, skip_special_tokens=True)


def test_corpora_are_neither_all_known_nor_all_unknown(pair):
    own, _ = pair
    stats = own.stats([text for texts in corpora().values() for text in texts])
    assert 0.01 < stats.unknown_rate < 0.35 and stats.overlong > 0 and stats.fertility > 1.5


@pytest.mark.parametrize("n", [4000, pytest.param(20_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("settings", [{}, {"lowercase": False}], ids=["uncased", "cased"])
def test_random_strings(settings, n):
    own = WordPieceTokenizer(dense_vocabulary(), **settings)
    backend = own.to_hf().backend_tokenizer
    texts = random_texts(n, seed=1)
    wanted = [encoding.ids for encoding in backend.encode_batch_fast(texts)]
    assert [i for i, text in enumerate(texts) if own.encode(text) != wanted[i]] == []
    # Caches are full of other strings now; what comes out must not depend on them.
    again = own.encode_batch(texts[: n // 2])
    own.clear_caches()
    assert again == wanted[: n // 2]


def test_random_strings_under_every_setting_with_offsets(pair):
    own, theirs = pair
    differing = 0
    for text in random_texts(1500, seed=2):
        expected = theirs(text, return_offsets_mapping=True)
        ids, offsets = own.encode_with_offsets(text)
        assert ids == own.encode(text) == expected["input_ids"]
        assert own.decode(ids) == theirs.decode(ids)
        if offsets != expected["offset_mapping"]:
            differing += 1
            assert _has_ordered_marks(own, text)
    assert differing < 150


@pytest.mark.parametrize("max_length", [2, 3, 5, 100])
def test_truncation(max_length):
    own = WordPieceTokenizer(dense_vocabulary())
    theirs = own.to_hf()
    for text in corpora()["english"][:8]:
        expected = theirs(text, truncation=True, max_length=max_length, return_offsets_mapping=True)
        assert own.encode(text, max_length=max_length) == expected["input_ids"]
        assert own.encode_with_offsets(text, max_length=max_length) == (
            expected["input_ids"],
            expected["offset_mapping"],
        )
    assert own.encode("a b c", False, max_length=0) == []


def test_words_of_100_and_101_characters():
    own = WordPieceTokenizer([*"[PAD] [UNK] [CLS] [SEP] [MASK] x ##x".split()])
    theirs = own.to_hf()
    for n, expected in ((99, 99), (100, 100), (101, 1)):
        ids = own.encode("x" * n, False)
        assert len(ids) == expected and ids == theirs("x" * n, add_special_tokens=False)["input_ids"]
    assert own.encode("x" * 101, False) == [own.unk_id]


def test_special_tokens_as_ordinary_text():
    own = WordPieceTokenizer(dense_vocabulary())
    theirs = own.to_hf(split_special_tokens=True)
    for text in corpora()["special"]:
        expected = theirs(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert own.encode(text, False, allow_special=False) == expected
    assert own.mask_id in own.encode("a[MASK]b") and own.mask_id not in own.encode("a[MASK]b", allow_special=False)
    assert own.mask_id not in own.encode("a[mask]b")


def _has_ordered_marks(own: WordPieceTokenizer, text: str) -> bool:
    """Whether marks that survive stand beside others: their order is canonical, and theirs then points past them."""
    own.encode(text)
    return not own._table.reordering.isdisjoint(text)
