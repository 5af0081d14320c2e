"""Encoding: our WordPiece against HF's in Rust and transformers' in pure Python. Prints ratios of CPU time.

    python benchmarks/wordpiece_speed.py [--repeats 9]

One thread, one call a line, turns taken, medians; ids only on our side. ``lit-hass wordpiece bench`` does the same with
any text and prints more.
"""

from __future__ import annotations

import argparse

from wordpiece_text import standard_library_text

from lit_hass.tokenization import WordPieceTokenizer, train_wordpiece
from lit_hass.tokenization.bench.contenders import train_bpe
from lit_hass.tokenization.bench.run import run_benchmark
from lit_hass.tokenization.bench.timing import one_thread


def main() -> None:
    """Compare, uncased and cased."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--vocab-size", type=int, default=8000)
    options = parser.parse_args()
    train, texts = standard_library_text()
    with one_thread():
        bpe = train_bpe(train, options.vocab_size)
        for lowercase in (True, False):
            own = WordPieceTokenizer(train_wordpiece(train, options.vocab_size, lowercase=lowercase), lowercase)
            result = run_benchmark(own, bpe, texts, train, options.repeats)
            time = {row["key"]: row["median"] for row in result["rows"]}
            print(f"{'uncased' if lowercase else 'cased'}: same ids on {result['same_ids']} of {len(texts)} lines")
            for key, what, wanted in (
                ("python", "transformers, pure Python", 20),
                ("hf_single", "HF Rust, one by one", 1.5),
                ("hf_batch", "HF Rust, batch", None),
                ("bpe_single", "HF byte-level BPE, one by one", None),
            ):
                ratios = ", ".join(
                    f"{state} {time[key] / time['own_' + state]:.1f}" for state in ("warm", "primed", "cold")
                )
                print(f"  {what}: x our {ratios}" + (f" (wanted: {wanted} or more)" if wanted else ""))


if __name__ == "__main__":
    main()
