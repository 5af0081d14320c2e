"""Training a vocabulary: ours against HF's trainer in Rust. Prints ratios of CPU time, fertility and unknown pieces.

    python benchmarks/wordpiece_training.py [--repeats 5]

The text is 1 MB of docstrings; both have one thread and take turns. Fertility and unknown pieces are counted on text
that neither has seen.
"""

from __future__ import annotations

import argparse
import statistics

from wordpiece_text import standard_library_text

from lit_hass.tokenization import WordPieceTokenizer, train_wordpiece
from lit_hass.tokenization.bench.timing import one_thread, take_turns

MEGABYTE = 1_000_000


def main() -> None:
    """Compare, uncased and cased."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--vocab-size", type=int, default=8000)
    options = parser.parse_args()
    lines, held_out = standard_library_text()
    train, size = [], 0
    for line in lines:
        if size >= MEGABYTE:
            break
        train.append(line)
        size += len(line.encode("utf-8")) + 1
    with one_thread():
        for lowercase in (True, False):
            compare(train, held_out, options.vocab_size, lowercase, options.repeats)


def compare(train: list[str], held_out: list[str], vocab_size: int, lowercase: bool, repeats: int) -> None:
    """Train both in turn, and print what their vocabularies make of the held-out text."""
    from tokenizers import BertWordPieceTokenizer

    found: dict[str, list[str]] = {}
    rust: list[BertWordPieceTokenizer] = []

    def theirs() -> None:
        trained = BertWordPieceTokenizer(lowercase=lowercase)
        # Its default of 1000 characters would drop some of larger alphabets.
        trained.train_from_iterator(train, vocab_size=vocab_size, limit_alphabet=10**6, show_progress=False)
        rust[:] = [trained]  # asked for its pieces later: that is no training

    actions = [(lambda: None, theirs)]
    for score in ("frequency", "pmi", "likelihood"):

        def ours(score: str = score) -> None:
            found[score] = train_wordpiece(train, vocab_size, score, lowercase=lowercase)  # type: ignore[arg-type]

        actions.append((lambda: None, ours))
    medians = [statistics.median(times) for times in take_turns(actions, repeats)]
    print(
        f"{'uncased' if lowercase else 'cased'}, {sum(len(t.encode()) + 1 for t in train)} bytes, {vocab_size} pieces"
    )
    ids = rust[0].get_vocab()
    vocabularies = {"HF": sorted(ids, key=ids.__getitem__), **found}
    for (name, pieces), seconds in zip(vocabularies.items(), medians, strict=True):
        stats = WordPieceTokenizer(pieces, lowercase).stats(held_out)
        print(
            f"  {name}: {seconds:.2f} s, {seconds / medians[0]:.2f} times HF's; fertility {stats.fertility:.4f}, "
            f"{stats.unknown} unknown"
        )


if __name__ == "__main__":
    main()
