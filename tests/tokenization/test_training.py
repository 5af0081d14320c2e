"""Training against a plain formulation that recounts everything at every merge, and against HF's trainer."""

import ast
import logging
import math
import os
import random
import subprocess
import sys
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_hass.tokenization import WordPieceTokenizer, read_vocabulary, train_wordpiece, word_counts
from lit_hass.tokenization.characters import CharacterTable
from lit_hass.tokenization.config import WordPieceConfig
from tests.tokenization.texts import corpora
from tests.tokenization.vocabularies import SPECIAL

WORDS = st.lists(st.text("abc", min_size=1, max_size=7), min_size=1, max_size=12)


def plain_training(texts: list[str], vocab_size: int, score: str, min_frequency: int) -> list[str]:
    """The algorithm as it is written down, O(corpus) a merge."""
    words = Counter(word for text in texts for word in CharacterTable(WordPieceConfig()).words(text))
    split = {word: [word[0], *("##" + c for c in word[1:])] for word in words}
    characters = {c for word in words for c in word} | {"##" + c for word in words for c in word[1:]}
    pieces = [*SPECIAL, *sorted(characters)]
    while len(pieces) < vocab_size:
        pairs: Counter[tuple[str, str]] = Counter()
        units: Counter[str] = Counter()
        for word, count in words.items():
            for unit in split[word]:
                units[unit] += count
            for pair in zip(split[word], split[word][1:], strict=False):
                pairs[pair] += count
        scores = {}
        for (a, b), count in pairs.items():
            if count < min_frequency:
                continue
            if score == "frequency":
                scores[a, b] = Fraction(count)
            elif score == "likelihood":
                scores[a, b] = Fraction(count, units[a] * units[b])
            else:
                value = count * math.log(count * units.total() / (units[a] * units[b]))
                # Equal scores reach us by different roundings.
                scores[a, b] = float(f"{value:.10g}")
        if not scores or (score == "pmi" and max(scores.values()) <= 0):
            break
        best = min(scores, key=lambda pair: (-scores[pair], pair))
        new = best[0] + best[1].removeprefix("##")
        for word, symbols in split.items():
            merged, i = [], 0
            while i < len(symbols):
                if tuple(symbols[i : i + 2]) == best:
                    merged.append(new)
                    i += 2
                else:
                    merged.append(symbols[i])
                    i += 1
            split[word] = merged
        if new not in pieces:
            pieces.append(new)
    return pieces


@pytest.mark.parametrize("score", ["frequency", "pmi", "likelihood"])
@pytest.mark.parametrize("min_frequency", [1, 2])
def test_equals_the_plain_algorithm_on_sentences(score, min_frequency):
    texts = [*corpora()["english"][:12], *corpora()["korean"][:5]]
    trained = train_wordpiece(texts, 420, score, min_frequency)
    assert trained == plain_training(texts, 420, score, min_frequency)
    assert len(trained) == len(set(trained))


@pytest.mark.parametrize("score", ["frequency", "pmi", "likelihood"])
@settings(max_examples=80, deadline=None)
@given(words=WORDS, min_frequency=st.integers(1, 3))
def test_equals_the_plain_algorithm_on_few_letters(score, words, min_frequency):
    # Three letters make runs such as aaaa, overlaps, and strings that come from two pairs.
    texts = [" ".join(words)]
    assert train_wordpiece(texts, 40, score, min_frequency) == plain_training(texts, 40, score, min_frequency)


def test_order_of_texts_leaves_no_trace(tmp_path: Path):
    texts = [text for texts in corpora().values() for text in texts]
    first = train_wordpiece(texts, 3000, out=tmp_path / "a.txt")
    shuffled = random.Random(0).sample(texts, len(texts))
    assert train_wordpiece(shuffled, 3000, out=tmp_path / "b.txt") == first
    assert train_wordpiece([" ".join(texts)], 3000) == first
    assert (tmp_path / "a.txt").read_bytes() == (tmp_path / "b.txt").read_bytes()
    assert read_vocabulary(tmp_path / "a.txt") == first


def test_hash_seed_leaves_no_trace(tmp_path: Path):
    source = tmp_path / "text.txt"
    source.write_text("\n".join(corpora()["english"] + corpora()["korean"]), encoding="utf-8")
    outputs = set()
    for seed in ("1", "2", "3"):
        code = (
            "from pathlib import Path; from lit_hass.tokenization import train_wordpiece as t; "
            f"print([t([Path({str(source)!r})], 500, s) for s in ('frequency', 'pmi', 'likelihood')])"
        )
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONIOENCODING": "utf-8"}
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, env=environment)
        outputs.add(run.stdout)
    assert len(outputs) == 1


def test_every_seen_character_is_known_wherever_it_stands():
    texts = [text for name in ("english", "korean", "arabic", "hindi", "thai") for text in corpora()[name]]
    own = WordPieceTokenizer(train_wordpiece(texts, 2000))
    assert own.stats(texts).unknown - own.stats(texts).overlong == 0
    seen = {c for text in texts for word in own._table.words(text) for c in word}
    assert all(own.unk_id not in own.encode(c, False) for c in seen)
    assert own.pieces[:5] == SPECIAL


def test_files_in_blocks_are_texts(tmp_path: Path, monkeypatch):
    texts = [text for name in ("english", "korean", "chinese", "thai") for text in corpora()[name][:-1]]
    wanted = train_wordpiece(texts, 1500)
    source, crlf = tmp_path / "lines.txt", tmp_path / "crlf.txt"
    source.write_text("\n".join(texts), encoding="utf-8", newline="")
    crlf.write_text("\r\n".join(texts), encoding="utf-8", newline="")
    assert train_wordpiece([source], 1500) == wanted
    # Blocks of a few bytes cut everywhere they may; few stretches are kept at a time.
    monkeypatch.setattr(word_counts, "BLOCK", 11)
    monkeypatch.setattr(word_counts, "_MOST_STRETCHES", 5)
    assert train_wordpiece([source], 1500) == wanted
    assert train_wordpiece([crlf], 1500) == wanted
    sizes = []
    word_counts.count_words([source], WordPieceConfig(), progress=sizes.append)
    assert sizes[-1] == source.stat().st_size and sizes == sorted(sizes) and len(sizes) > 100


def test_a_file_that_is_one_line_without_blanks_is_read_in_blocks(tmp_path: Path, monkeypatch):
    sentence = "\u6f22\u5b57\u3001\u304b\u306a\u30ab\u30ca\u3002minified,text.a/b\uff0c" + "\u3042" * 40 + ","
    source = tmp_path / "line.txt"
    source.write_text(sentence * 50, encoding="utf-8")
    wanted = word_counts.count_words([sentence * 50], WordPieceConfig())
    monkeypatch.setattr(word_counts, "BLOCK", 200)
    sizes = [size for _, size in word_counts.read_blocks(source)]
    assert sum(sizes) == source.stat().st_size and max(sizes) < 600
    counts = word_counts.count_words([source], WordPieceConfig())
    assert counts == wanted and counts["\u6f22"] == counts["minified"] == 50
    # Nothing to cut at: the file is one block, and its word too long. No byte is searched twice.
    searched = []
    end = word_counts._end
    monkeypatch.setattr(word_counts, "_end", lambda block: searched.append(len(block)) or end(block))
    source.write_text("x" * 5000 + " y", encoding="utf-8")
    assert word_counts.count_words([source], WordPieceConfig()) == {"y": 1}
    assert sum(searched) == source.stat().st_size
    assert word_counts.count_words([source], WordPieceConfig(max_chars=5000)) == {"x" * 5000: 1, "y": 1}


def test_long_stretches_are_not_kept(monkeypatch):
    kept = []
    monkeypatch.setattr(word_counts, "_to_words", lambda stretches, *_: kept.append(len(stretches)))
    texts = ["".join(corpora()["chinese"][:-1])] * 3
    counts = word_counts.count_words(texts, WordPieceConfig())
    assert kept == [0] and counts["\u7684"] % 3 == 0 and counts["\u7684"] > 0
    word_counts.count_words(corpora()["english"], WordPieceConfig())
    assert kept[-1] > 50


def test_settings_are_the_tokenizers():
    cased = train_wordpiece(["Stra\u00dfe STRASSE \u00c9cole Stra\u00dfe"], 60, lowercase=False)
    assert "Stra\u00dfe" in cased and "\u00c9" in cased
    uncased = train_wordpiece(["Stra\u00dfe STRASSE \u00c9cole Stra\u00dfe"], 60)
    assert "stra\u00dfe" in uncased and "\u00e9" not in uncased and "e" in uncased
    korean = ["\uac01\uac01 \uac01\uac01"]
    assert "\u1100" in train_wordpiece(korean, 30) and "\uac01" in train_wordpiece(korean, 30, strip_accents=False)
    assert train_wordpiece(["abcdefgh abc abc"], 30, max_chars=3)[5:] == ["##b", "##c", "a", "b", "c", "##bc", "abc"]


def test_fewer_pieces_than_asked_for():
    assert train_wordpiece(["ab ab"], 100) == [*SPECIAL, "##b", "a", "b", "ab"]


def test_large_alphabet_is_told(caplog):
    # The door's loggers hand nothing on once configured, so the handler is set at the module's own.
    logger = logging.getLogger("lit_hass.tokenization.training")
    logger.addHandler(caplog.handler)
    try:
        train_wordpiece(corpora()["chinese"], 300)
        assert "of 300 pieces, more than half" in caplog.text
        caplog.clear()
        train_wordpiece(corpora()["english"], 600)
        assert "more than half" not in caplog.text
    finally:
        logger.removeHandler(caplog.handler)


def test_held_out_fertility_is_that_of_the_rust_trainer():
    """Within 1 %, and not more unknown pieces; its vocabulary differs from run to run, so it is not compared."""
    from tokenizers import BertWordPieceTokenizer

    train, held_out = standard_library_text()
    for lowercase in (True, False):
        theirs = BertWordPieceTokenizer(lowercase=lowercase)
        theirs.train_from_iterator(train, vocab_size=3000, min_frequency=2, limit_alphabet=10**6, show_progress=False)
        own = WordPieceTokenizer(train_wordpiece(train, 3000, lowercase=lowercase), lowercase=lowercase)
        other = WordPieceTokenizer(theirs.get_vocab(), lowercase=lowercase)
        ours, wanted = own.stats(held_out), other.stats(held_out)
        assert len(own) == len(other) == 3000 and ours.words > 20_000
        assert ours.fertility <= 1.01 * wanted.fertility
        assert ours.unknown <= wanted.unknown


def standard_library_text() -> tuple[list[str], list[str]]:
    """Docstrings of some large modules: English prose that every Python has; (to train on, held out)."""
    names = ["argparse", "decimal", "doctest", "inspect", "logging/__init__", "pathlib", "pickle", "random",
             "statistics", "subprocess", "tarfile", "threading", "turtle", "typing", "unittest/case", "zipfile",
             "email/message", "difflib", "datetime", "heapq"]  # fmt: skip
    folder = Path(os.__file__).parent
    docs = []
    for name in names:
        path = folder / f"{name}.py"
        if path.is_file():
            nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
            docs.append([ast.get_docstring(node) or "" for node in nodes if isinstance(node, kinds)])
    return [doc for one in docs[::2] for doc in one], [doc for one in docs[1::2] for doc in one]
