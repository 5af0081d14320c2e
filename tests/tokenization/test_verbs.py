"""``lit-hass wordpiece train|encode|bench`` as a person uses them."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer, BertTokenizerFast

from lit_hass.tokenization import WordPieceTokenizer, read_vocabulary, train_wordpiece
from tests.door.conftest import door  # noqa: F401  # fixture
from tests.door.test_main import _loaded
from tests.tokenization.texts import corpora

# Every test below runs the door in an empty folder.
pytestmark = pytest.mark.usefixtures("door")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """English and Korean lines, repeated so that pairs are frequent."""
    path = tmp_path / "my.txt"
    lines = [line for name in ("english", "korean") for line in corpora()[name][:-1] if line.strip()]
    path.write_text("\n".join(lines * 3) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def vocab(text, tmp_path) -> Path:
    path = tmp_path / "vocab.txt"
    train_wordpiece([text], 600, out=path)
    return path


def give(monkeypatch, content: bytes) -> None:
    """Put bytes on the standard input."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))


def test_train_encode_and_compare(door, text, monkeypatch):  # noqa: F811
    result = door("wordpiece", "train", text, "--vocab-size", 600, "--out", "new/vocab.txt")
    assert result.status == 0 and "wrote 600 pieces to new/vocab.txt" in result.err and result.out == ""
    pieces = read_vocabulary("new/vocab.txt")
    assert pieces == train_wordpiece([text], 600)

    give(monkeypatch, "The tree fell.\n\nyou are\uc9f1 [MASK]\n".encode())
    result = door("wordpiece", "encode", "--vocab", "new/vocab.txt")
    wanted = BertTokenizerFast(vocab={piece: i for i, piece in enumerate(pieces)})
    rows = [[int(i) for i in line.split()] for line in result.out.splitlines()]
    assert rows == wanted(["The tree fell.", "", "you are\uc9f1 [MASK]"])["input_ids"]

    result = door("wordpiece", "bench", "--text", text, "--vocab", "new/vocab.txt", "--repeats", 2, "--out", "b")
    assert result.status == 0, result.err
    assert all(name in result.out for name in ("own, warm", "own, cold", "HF Rust, batch", "pure Python", "byte BPE"))
    assert {path.name for path in Path("b").iterdir()} == {"bench.json", "bench.md", "bench.png"}


def test_special_tokens_of_another_vocabulary(door, text, monkeypatch):  # noqa: F811
    """Trained, encoded, compared and exported with the tokens of RoBERTa's kind."""
    roles = {"pad": "<pad>", "unk": "<unk>", "cls": "<s>", "sep": "</s>", "mask": "<mask>"}
    tokens = [part for role, token in roles.items() for part in (f"--{role}-token", token)]
    result = door("wordpiece", "train", text, "--vocab-size", 600, "--out", "v.txt", "--hf", "hf", *tokens)
    assert result.status == 0, result.err
    pieces = read_vocabulary("v.txt")
    assert pieces[:5] == list(roles.values()) and len(pieces) == 600
    theirs = BertTokenizerFast(
        vocab={piece: i for i, piece in enumerate(pieces)}, **{f"{role}_token": token for role, token in roles.items()}
    )
    give(monkeypatch, "The tree <mask> fell \uc9f1 [MASK]\n".encode())
    result = door("wordpiece", "encode", "--vocab", "v.txt", *tokens)
    wanted = theirs("The tree <mask> fell \uc9f1 [MASK]")["input_ids"]
    assert [int(i) for i in result.out.split()] == wanted and theirs.mask_token_id in wanted
    saved = AutoTokenizer.from_pretrained("hf")
    assert saved.eos_token == "</s>" and saved("The tree <mask>")["input_ids"] == theirs("The tree <mask>")["input_ids"]
    bench = ("wordpiece", "bench", "--text", text, "--vocab", "v.txt", "--repeats", 1, "--limit", 9, "--out", "b")
    assert door(*bench, *tokens).status == 0
    result = door("wordpiece", "encode", "--vocab", "v.txt")
    assert result.status == 2 and "lacks the special tokens [PAD], [UNK]" in result.err
    result = door("wordpiece", "encode", "--vocab", "v.txt", *tokens, "--sep-token", "<s>")
    assert result.status == 2 and "two special tokens are the same" in result.err


def test_formats(door, vocab, tmp_path):  # noqa: F811
    source = tmp_path / "in.txt"
    source.write_bytes("The \u00c9cole [MASK]\r\nx".encode())
    own = WordPieceTokenizer(vocab)
    lines = ["The \u00c9cole [MASK]", "x"]
    pieces = door("wordpiece", "encode", "--vocab", vocab, source, "--format", "pieces", "--no-special-tokens").out
    assert pieces.splitlines() == [" ".join(own.tokenize(line)) for line in lines]
    rows = [
        json.loads(row)
        for row in door("wordpiece", "encode", "--vocab", vocab, source, "--format", "json").out.splitlines()
    ]
    for row, line in zip(rows, lines, strict=True):
        ids, offsets = own.encode_with_offsets(line)
        assert row == {"ids": ids, "pieces": [own.pieces[i] for i in ids], "offsets": [list(o) for o in offsets]}
    plain = door("wordpiece", "encode", "--vocab", vocab, source, "--plain", "--max-length", 5).out.splitlines()
    assert [list(map(int, row.split())) for row in plain] == [
        own.encode(line, max_length=5, allow_special=False) for line in lines
    ]


def test_settings_reach_the_tokenizer(door, text, tmp_path):  # noqa: F811
    result = door("wordpiece", "train", text, "--vocab-size", 700, "--cased", "--out", "v.txt", "--score", "pmi")
    assert result.status == 0
    assert read_vocabulary("v.txt") == train_wordpiece([text], 700, "pmi", lowercase=False)
    result = door("wordpiece", "train", text, "--vocab-size", 700, "--keep-accents", "--out", "k.txt")
    assert read_vocabulary("k.txt") == train_wordpiece([text], 700, strip_accents=False)
    (tmp_path / "in.txt").write_text("The Tree", encoding="utf-8")
    cased = door("wordpiece", "encode", "--vocab", "v.txt", "--cased", tmp_path / "in.txt")
    assert "capitals" not in cased.err
    assert [int(i) for i in cased.out.split()] == WordPieceTokenizer("v.txt", lowercase=False).encode("The Tree")
    assert "--cased" in door("wordpiece", "encode", "--vocab", "v.txt", tmp_path / "in.txt").err
    uncased = door("wordpiece", "encode", "--vocab", "k.txt", "--cased", tmp_path / "in.txt")
    assert "no piece has a capital" in uncased.err and "no piece" not in cased.err


def test_transformers_folder(door, text):  # noqa: F811
    assert door("wordpiece", "train", text, "--vocab-size", 600, "--cased", "--hf", "folder").status == 0
    loaded = AutoTokenizer.from_pretrained("folder")
    own = WordPieceTokenizer("vocab.txt", lowercase=False)
    assert len(loaded) == 600 and loaded.eos_token_id == own.sep_id and loaded.pad_token_id == own.pad_id
    for line in corpora()["english"]:
        assert loaded(line)["input_ids"] == own.encode(line)


def test_a_language_model_trains_with_the_vocabulary(door, text):  # noqa: F811
    from tests.door.conftest import ROOT

    assert door("wordpiece", "train", text, "--vocab-size", 600, "--cased", "--hf", "wordpiece").status == 0
    configs = ["-c", ROOT / "configs/train_base.yaml", "-c", ROOT / "configs/data/wordpiece.yaml"]
    small = ["--model.architecture.num_hidden_layers", 1, "--model.architecture.hidden_size", 32]
    steps = ["--trainer.max_steps", 2, "--trainer.val_check_interval", 1, "--trainer.enable_progress_bar", "false"]
    data = ["--data.train_files", f"[{text}]", "--data.block_size", 16, "--trainer.limit_val_batches", 1]
    result = door("fit", *configs, *small, *steps, *data)
    assert result.status == 0, result.err
    [base] = Path("logs/train_wordpiece").glob("version_*/base")
    exported = AutoTokenizer.from_pretrained(base)
    line = corpora()["english"][0]
    assert exported(line)["input_ids"] == WordPieceTokenizer("vocab.txt", lowercase=False).encode(line)


def test_per_sentence(door, text):  # noqa: F811
    result = door(
        "wordpiece", "bench", "--text", text, "--train-text", text, "--vocab-size", 600, "--per-sentence", "--limit", 3,
        "--repeats", 1,
    )  # fmt: skip
    assert result.status == 0, result.err
    assert result.out.count("Sentence: ") == result.out.count("This tokenizer is ") == 3
    assert (
        result.out.count("Average so far: ")
        == result.out.count("WordPiece ids: [")
        == result.out.count("BPE ids: [")
        == 3
    )
    assert "Sentence: The tree fell unexpectedly short." in result.out
    assert "3 of the 3 timed lines are in the training text" in result.out
    assert "  3 lines" not in result.out and "\n3 lines, " in result.out


@pytest.mark.parametrize("verb", [(), ("--help",), ("train", "--help"), ("encode", "--help"), ("bench", "--help")])
def test_help(door, verb):  # noqa: F811
    result = door("wordpiece", *verb)
    assert result.status == 0 and "usage: lit-hass wordpiece" in result.out


def test_encoding_imports_nothing_heavy(vocab, tmp_path):
    source = tmp_path / "in.txt"
    source.write_text("The tree\n", encoding="utf-8")
    assert _loaded("wordpiece", "encode", "--vocab", str(vocab), str(source)) == (0, set())
    status, heavy = _loaded("wordpiece", "train", str(source), "--vocab-size", "40", "--out", str(tmp_path / "v.txt"))
    assert status == 0 and not heavy & {"torch", "lightning", "transformers", "datasets"}


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (["what"], "'what'"),
        (["train", "nowhere.txt"], "nowhere.txt: no such file"),
        (["train", "."], ".: a folder"),
        (["train", "TEXT", "--vocab-size", "10"], "vocab_size 10 is below"),
        (["train", "EMPTY"], "corpus is empty"),
        (["train", "BAD"], "bad.txt:2: not UTF-8 (invalid start byte at byte 4)"),
        (["train", "TEXT", "--out", "/dev/null/v.txt", "--vocab-size", "600"], "/dev/null"),
        (["train", "TEXT", "--out", "."], ".: a folder; name a file"),
        (["train", "TEXT", "--vocab-size", "600", "--hf", "TEXT"], "is no folder"),
        (["bench", "--text", "TEXT", "--vocab-size", "600", "--out", "/dev/null/x"], "/dev/null is no folder"),
        (["train", "TEXT", "--min-frequency", "0"], "min_frequency"),
        (["train", "TEXT", "--max-chars", "0"], "max_chars"),
        (["encode", "--vocab", "nowhere.txt", "TEXT"], "nowhere.txt: no such vocabulary file"),
        (["encode", "--vocab", "WORDS", "TEXT"], "lacks the special tokens [PAD], [UNK]"),
        (["encode", "--vocab", "BAD", "TEXT"], "bad.txt:2: not UTF-8"),
        (["encode", "--vocab", "EMPTY", "TEXT"], "empty.txt: the vocabulary is empty"),
        (["encode", "--vocab", "VOCAB", "nowhere.txt"], "nowhere.txt: no such file"),
        (["encode", "--vocab", "VOCAB", "BAD"], "bad.txt:2: not UTF-8"),
        (["encode", "--vocab", "VOCAB", "TEXT", "--max-length", "1"], "my.txt:1: max_length must be at least the 2"),
        (["bench", "--text", "nowhere.txt"], "nowhere.txt: no such file"),
        (["bench", "--text", "EMPTY"], "too few lines"),
        (["bench", "--text", "TEXT", "--repeats", "0"], "--repeats"),
        (["bench", "--text", "TEXT", "--limit", "0"], "--limit"),
        (["bench", "--text", "TEXT", "--vocab", "VOCAB", "--vocab-size", "600"], "either --vocab or --vocab-size"),
        (["bench", "--text", "TEXT", "--vocab", "SMALL"], "too small to compare"),
        (["bench", "--text", "TEXT", "--vocab-size", "0"], "vocab_size 0 is below"),
        (["bench", "--text", "TEXT", "--vocab", ""], ".: a folder"),
        (["bench", "--text", "TEXT", "--train-text", "EMPTY"], "empty.txt: no line"),
        (["train", "TEXT", "--out", "TEXT", "--vocab-size", "600"], "my.txt: --out would replace the text"),
    ],
)
def test_refused_in_one_line(door, text, vocab, tmp_path, args, named):  # noqa: F811
    files = {
        "TEXT": text,
        "VOCAB": vocab,
        **{n: tmp_path / f"{n.lower()}.txt" for n in ("EMPTY", "BAD", "SMALL", "WORDS")},
    }
    files["EMPTY"].write_bytes(b"\n")
    files["WORDS"].write_text("one\ntwo\n", encoding="utf-8")
    files["BAD"].write_bytes(b"abc\n\xff\n")
    files["SMALL"].write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n", encoding="utf-8")
    before = sorted(path.name for path in tmp_path.rglob("*"))
    result = door("wordpiece", *(files.get(arg, arg) for arg in args))
    assert result.status == 2, result.err
    errors = [line for line in result.err.splitlines() if line.startswith("lit-hass: error:")]
    assert len(errors) == 1 and named in errors[0] and "Traceback" not in result.err
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_text_that_is_not_utf8_on_the_standard_input(door, vocab, monkeypatch):  # noqa: F811
    give(monkeypatch, b"fine\nb\xff\n")
    result = door("wordpiece", "encode", "--vocab", vocab, "-")
    assert result.status == 2 and "standard input:2: not UTF-8 (invalid start byte at byte 6)" in result.err
    give(monkeypatch, b"fine\nb\xff\n")
    assert door("wordpiece", "encode", "--vocab", vocab, "-", "--errors", "ignore").status == 0


def test_closed_standard_input(door, vocab, monkeypatch):  # noqa: F811
    monkeypatch.setattr(sys, "stdin", None)
    result = door("wordpiece", "encode", "--vocab", vocab)
    assert result.status == 2 and "lit-hass: error: standard input: closed" in result.err


def test_a_line_of_the_text_may_be_the_name_of_a_file(door, text):  # noqa: F811
    Path("here.txt").write_text("")
    lines = [*text.read_text(encoding="utf-8").splitlines(), "here.txt"]
    text.write_text("\n".join(lines * 2), encoding="utf-8")
    assert door("wordpiece", "bench", "--text", text, "--vocab-size", 600, "--repeats", 1, "--limit", 2).status == 0


def test_a_full_disk_is_a_failed_run(door, text):  # noqa: F811
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    run = subprocess.run(
        [sys.executable, "-m", "lit_hass", "wordpiece", "encode", "--vocab", str(text.parent / "v.txt"), str(text)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 2 and "v.txt" in run.stderr
    train_wordpiece([text], 600, out=text.parent / "v.txt")
    with open("/dev/full", "w") as full:
        run = subprocess.run(
            [sys.executable, "-m", "lit_hass", "wordpiece", "encode", "--vocab", str(text.parent / "v.txt"), str(text)],
            stdout=full, stderr=-1, text=True,
        )  # fmt: skip
    assert run.returncode == 1 and "No space left" in run.stderr
