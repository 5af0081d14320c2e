"""What cannot be used is refused by name; the cases of the vocabulary, the text, the settings and the training."""

import pickle
from pathlib import Path

import pytest
from transformers import BertTokenizerFast

from lit_hass.tokenization import SpecialTokens, WordPieceTokenizer, read_vocabulary, train_wordpiece
from tests.tokenization.vocabularies import SPECIAL

GOOD = [*SPECIAL, "a", "b", "##b"]


@pytest.fixture
def own() -> WordPieceTokenizer:
    return WordPieceTokenizer(GOOD)


@pytest.fixture
def vocab(tmp_path: Path):
    """``vocab(bytes)`` writes a vocabulary file."""

    def write(content: bytes) -> Path:
        path = tmp_path / "vocab.txt"
        path.write_bytes(content)
        return path

    return write


def lines(*pieces: str) -> bytes:
    return "".join(piece + "\n" for piece in pieces).encode()


def test_missing_vocabulary_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.txt"):
        WordPieceTokenizer(tmp_path / "nowhere.txt")
    with pytest.raises(FileNotFoundError, match="nowhere.txt"):
        WordPieceTokenizer.from_file(str(tmp_path / "nowhere.txt"))
    with pytest.raises(IsADirectoryError, match="folder"):
        WordPieceTokenizer(tmp_path)


def test_missing_special_tokens_are_all_named(vocab):
    with pytest.raises(ValueError, match=r"vocab.txt: .*\[UNK\], \[MASK\]$"):
        WordPieceTokenizer(vocab(lines("[PAD]", "[CLS]", "[SEP]", "a")))
    with pytest.raises(ValueError, match=r"<unk>"):
        WordPieceTokenizer(GOOD, special_tokens=SpecialTokens(unk="<unk>"))


@pytest.mark.parametrize(
    "extra",
    [
        ["a", "c", "##b"],
        ["", "c", "", "c", "d"],
        [" ", "a\r", "\t", "c \u3000\x85", "a  ", "e\x1c"],
        ["  leads", "\u3000x", "c", "", "a", "[MASK]"],
    ],
)
def test_blank_repeated_and_padded_lines_are_read_as_theirs(vocab, extra, tmp_path, caplog):
    """Ids, decoded text and a copy of the file are those of ``BertTokenizerFast``."""
    path = vocab(lines(*GOOD, *extra))
    theirs = BertTokenizerFast.from_pretrained(path.parent)
    with caplog.at_level("WARNING", "lit_hass"):
        own = WordPieceTokenizer(path)
    unused = len(GOOD + extra) - len(set(theirs.get_vocab()) - {""})
    assert f"{unused} lines are blank or repeated below" in caplog.text if unused else not caplog.text
    assert own.vocab == theirs.get_vocab() and own.to_hf().get_vocab() == own.vocab
    own.save(tmp_path / "again.txt")
    for each in (own, pickle.loads(pickle.dumps(own)), WordPieceTokenizer(tmp_path / "again.txt")):
        for text in ("a b ab abb c cd d leads x e [MASK]", " \u3000 ", "a\x1c c"):
            assert each.encode(text) == theirs(text)["input_ids"]
            assert each.encode_with_offsets(text)[1] == theirs(text, return_offsets_mapping=True)["offset_mapping"]
        for i in range(len(own)):
            assert each.decode([5, i, 6, 5]) == theirs.decode([5, i, 6, 5])
    assert own.to_hf()("a ab c")["input_ids"] == own.encode("a ab c")


def test_empty_vocabulary(vocab):
    with pytest.raises(ValueError, match="vocab.txt: the vocabulary is empty"):
        WordPieceTokenizer(vocab(b""))
    with pytest.raises(ValueError, match="empty"):
        WordPieceTokenizer([])


def test_vocabulary_that_is_not_utf8(vocab):
    with pytest.raises(ValueError, match=r"vocab.txt:6: not UTF-8 \(.* at byte 32\)"):
        WordPieceTokenizer(vocab(lines(*SPECIAL) + b"a\xff\n"))


def test_crlf_last_line_without_end_and_byte_order_mark_are_read(vocab):
    assert read_vocabulary(vocab("\ufeff[PAD]\r\n[UNK]\r\na\u2028b\r\nc".encode())) == [
        "[PAD]",
        "[UNK]",
        "a\u2028b",
        "c",
    ]


@pytest.mark.parametrize(
    ("pieces", "error", "words"),
    [
        ([*GOOD, 7], TypeError, ":9: expected str, got int"),
        ([*GOOD, "c\nd"], ValueError, ":9: a line break"),
        ([*GOOD, "a"], ValueError, ":9: .*'a'.* line 6"),
        ([*GOOD, " "], ValueError, ":9: a blank line"),
        ([*GOOD, "c "], ValueError, ":9: white space around the piece 'c '"),
        ([*GOOD, "\ud800"], ValueError, ":9: half a surrogate"),
        ({piece: 2 * i for i, piece in enumerate(GOOD)}, ValueError, "ids of 8 pieces must be 0 to 7"),
    ],
)
def test_pieces_in_memory(pieces, error, words):
    with pytest.raises(error, match=words):
        WordPieceTokenizer(pieces)


@pytest.mark.parametrize("method", ["encode", "encode_with_offsets", "tokenize"])
@pytest.mark.parametrize(("value", "name"), [(None, "NoneType"), (b"ab", "bytes"), (7, "int"), (["a"], "list")])
def test_text_of_another_type(own, method, value, name):
    with pytest.raises(TypeError, match=f"expected str, got {name}"):
        getattr(own, method)(value)


def test_batch_of_another_type(own):
    with pytest.raises(TypeError, match="several texts, got one str"):
        own.encode_batch("ab")
    with pytest.raises(TypeError, match="text 1: expected str, got bytes"):
        own.encode_batch(["a", b"b"])
    with pytest.raises(ValueError, match="text 2: not valid Unicode at position 1"):
        own.encode_batch(["a", "b", "c\udc00"])
    for one in ("ab", b"ab"):
        with pytest.raises(TypeError, match="several texts"):
            own.stats(one)
    for value in (None, b"ab"):
        with pytest.raises(TypeError, match="text 1: expected str, got"):
            own.stats(["a", value])


@pytest.mark.parametrize("method", ["encode", "encode_with_offsets", "tokenize"])
@pytest.mark.parametrize(("text", "at"), [("a\ud800", 1), ("\udfff", 0), ("x" * 200 + " \udc00b", 201)])
def test_half_a_surrogate_pair(own, method, text, at):
    with pytest.raises(ValueError, match=f"not valid Unicode at position {at}: "):
        getattr(own, method)(text)
    # and it stays refused
    with pytest.raises(ValueError, match=f"not valid Unicode at position {at}: "):
        getattr(own, method)(text)
    with pytest.raises(ValueError, match=f"text 1: not valid Unicode at position {at}: "):
        own.stats(["a", text])


@pytest.mark.parametrize("method", ["encode", "encode_with_offsets"])
def test_max_length_below_the_special_tokens(own, method):
    for max_length in (1, 0, -1):
        with pytest.raises(ValueError, match="max_length must be at least the 2 special tokens"):
            getattr(own, method)("a", max_length=max_length)
    with pytest.raises(ValueError, match="max_length"):
        getattr(own, method)("a", False, max_length=-1)


@pytest.mark.parametrize("text", ["", " ", "\n\t", "\u200b", "\x00"])
def test_nothing_to_encode(own, text):
    assert own.encode(text) == [own.cls_id, own.sep_id] and own.encode(text, False) == []
    assert own.encode_with_offsets(text) == ([own.cls_id, own.sep_id], [(0, 0), (0, 0)])
    assert own.tokenize(text) == [] and own.decode([]) == ""


def test_statistics_of_nothing_and_of_overlong_words(own):
    nothing = own.stats([])
    assert nothing.fertility is None and nothing.unknown_rate is None and nothing.bytes_per_token is None
    counted = own.stats(["a " + "b" * 101 + " ab", "z"])
    assert (counted.words, counted.unknown, counted.overlong) == (4, 2, 1)
    assert (counted.texts, counted.pieces, counted.stretches, counted.bytes) == (2, 5, 4, 107)


@pytest.mark.parametrize("i", [-1, 8, 10**6])
def test_id_outside_the_vocabulary(own, i):
    with pytest.raises(IndexError, match=f"id {i} is not in the vocabulary of 8"):
        own.decode([5, i])


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"max_chars": 0}, "max_chars"), ({"tables": "rust"}, "tables must be one of bert, python")],
)
def test_settings(settings, words):
    with pytest.raises(ValueError, match=words):
        WordPieceTokenizer(GOOD, **settings)


def test_special_tokens():
    with pytest.raises(ValueError, match="white space"):
        SpecialTokens(mask="[MA SK]")
    with pytest.raises(ValueError, match="the same"):
        SpecialTokens(mask="[SEP]")
    with pytest.raises(TypeError, match="NoneType"):
        SpecialTokens(pad=None)


@pytest.mark.parametrize("texts", [[], [""], [" \n\t", "\u200b"], ["x" * 101]])
def test_empty_corpus(texts):
    with pytest.raises(ValueError, match="corpus is empty"):
        train_wordpiece(texts)


def test_empty_file(tmp_path):
    (tmp_path / "empty.txt").write_bytes(b"\n\n")
    with pytest.raises(ValueError, match="corpus is empty"):
        train_wordpiece([tmp_path / "empty.txt"])


def test_vocab_size_below_the_alphabet_names_the_minimum():
    with pytest.raises(ValueError, match="at least 10$"):
        train_wordpiece(["abc"], 9)
    assert train_wordpiece(["abc"], 10) == [*SPECIAL, "##b", "##c", "a", "b", "c"]


@pytest.mark.parametrize(
    ("texts", "settings", "error", "words"),
    [
        ("one text", {}, TypeError, "got one str"),
        (Path("x.txt"), {}, TypeError, "got one"),
        ([b"ab"], {}, TypeError, "text 0: expected str or Path, got bytes"),
        (["a", None], {}, TypeError, "text 1: expected str or Path, got NoneType"),
        (["a", "b\ud800"], {}, ValueError, "text 1: not valid Unicode at position 1"),
        (["a"], {"score": "best"}, ValueError, "score must be one of frequency, pmi, likelihood"),
        (["a"], {"min_frequency": 0}, ValueError, "min_frequency"),
        (["a"], {"errors": "what"}, ValueError, "errors must be one of"),
        ([Path("/nowhere/at/all.txt")], {}, FileNotFoundError, "/nowhere/at/all.txt"),
    ],
)
def test_training_refuses(texts, settings, error, words):
    with pytest.raises(error, match=words):
        train_wordpiece(texts, 100, **settings)


def test_name_of_a_file_instead_of_its_path(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("abc abc", encoding="utf-8")
    with pytest.raises(ValueError, match="is a file; give pathlib.Path"):
        train_wordpiece([str(path)], 100)
    assert "abc" in train_wordpiece([path], 100)
    with pytest.raises(ValueError, match="is a file; give pathlib.Path"):
        train_wordpiece([path, str(path)], 100)
    # A text of many lines may well have one that is the name of some file here.
    assert "abc" in train_wordpiece([str(path), "abc abc"], 100)
    assert "abc" in train_wordpiece(["abc abc", str(path)], 100)


def test_text_file_that_is_not_utf8(tmp_path, monkeypatch):
    from lit_hass.tokenization import word_counts

    path = tmp_path / "text.txt"
    path.write_bytes("good line \u00e9\nanother one\n".encode() + b"bad \xff\xfe line\n")
    for block in (1 << 20, 4):
        monkeypatch.setattr(word_counts, "BLOCK", block)
        with pytest.raises(ValueError, match=r"text.txt:3: not UTF-8 \(.* at byte 29\)"):
            train_wordpiece([path], 100)
        assert "\ufffd" not in "".join(train_wordpiece([path], 100, errors="replace"))
        assert "bad" in train_wordpiece([path, "bad bad"], 100, errors="ignore")


def test_vocabulary_that_cannot_be_written(tmp_path, own):
    with pytest.raises(OSError):
        own.save(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        own.save(tmp_path / "file" / "vocab.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_training_refuses_an_unwritable_file_before_it_reads(tmp_path):
    def never():
        raise AssertionError("read")
        yield

    (tmp_path / "file").write_text("")
    for out in (tmp_path, tmp_path / "file" / "deep" / "vocab.txt"):
        with pytest.raises(OSError, match="folder"):
            train_wordpiece(never(), 100, out=out)


def test_saving_replaces_the_file_whole(tmp_path, own):
    path = tmp_path / "new" / "vocab.txt"
    own.save(path)
    own.save(path)
    assert path.read_bytes() == lines(*GOOD) and [p.name for p in path.parent.iterdir()] == ["vocab.txt"]
    assert WordPieceTokenizer(path).pieces == GOOD
