"""The caches: bounded, and without influence on the ids."""

from lit_hass.tokenization import WordPieceTokenizer, matching
from tests.tokenization.texts import corpora, random_texts
from tests.tokenization.vocabularies import dense_vocabulary


def test_full_caches_are_emptied_and_ids_stay_the_same(monkeypatch):
    texts = [*corpora()["english"], *corpora()["korean"], *random_texts(500, seed=5)]
    wanted = WordPieceTokenizer(dense_vocabulary()).encode_batch(texts)
    monkeypatch.setattr(matching, "CACHE_ENTRIES", 7)
    own = WordPieceTokenizer(dense_vocabulary())
    for text, expected in zip(texts, wanted, strict=True):
        assert own.encode(text) == expected
        assert len(own._words) <= 7 and len(own._stretches) <= 7


def test_long_stretches_and_words_are_not_kept():
    own = WordPieceTokenizer(dense_vocabulary())
    own.encode("\u6f22\u5b57" * 1000 + " " + "x" * 5000)
    assert len(own._stretches) == 0 and max(map(len, own._words)) == 1


def test_special_and_plain_text_do_not_share_a_cache():
    own = WordPieceTokenizer(dense_vocabulary())
    plain = own.encode("[MASK]", False, allow_special=False)
    assert own.encode("[MASK]", False) == [own.mask_id] != plain
    assert own.encode("[MASK]", False, allow_special=False) == plain


def test_clearing():
    own = WordPieceTokenizer(dense_vocabulary())
    ids = own.encode("The tree fell [MASK] short")
    assert own._words and own._stretches
    own.clear_caches()
    assert not own._words and not own._stretches and not own._table
    assert own.encode("The tree fell [MASK] short") == ids


def test_clearing_forgets_no_rule():
    # The order of marks is remembered beside the rows: both go, and both come back.
    text = "a\u302e\U0001d165b"
    own = WordPieceTokenizer(dense_vocabulary())
    ids = own.encode(text)
    own.clear_caches()
    assert not own._table.reordering and own.encode(text) == ids == own.to_hf()(text)["input_ids"]
