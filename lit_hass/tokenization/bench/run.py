"""The benchmark: read, train what is missing, take turns, count."""

from __future__ import annotations

import gc
import os
import platform
import statistics
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_hass.tokenization.bench.contenders import Contender, contenders
from lit_hass.tokenization.bench.quality import bpe_quality, cache_bytes, size, wordpiece_quality
from lit_hass.tokenization.bench.timing import take_turns
from lit_hass.tokenization.progress import Show, quiet
from lit_hass.tokenization.tokenizer import WordPieceTokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def run_benchmark(
    own: WordPieceTokenizer,
    bpe: Tokenizer,
    texts: Sequence[str],
    train_texts: Sequence[str],
    repeats: int = 5,
    show: Show = quiet,
) -> dict[str, Any]:
    """Time the contenders on the same texts and count what their vocabularies make of them.

    Args:
        own: our tokenizer.
        bpe: a byte-level BPE of the same vocabulary size.
        texts: what is encoded, one call each.
        train_texts: what the vocabularies were trained on; fills the caches of the primed row.
        repeats: passes of each contender.
        show: shows progress.

    Returns:
        a JSON object: ``texts`` (counts), ``settings``, ``vocabularies`` (see `quality`), ``rows`` (for each contender
        the CPU seconds of its passes, their ``median`` and ``min``, ``megabytes_per_second`` and ``tokens_per_second``
        of the median, ``times_own_warm``: its median over that of our warm pass), ``same_ids`` (texts whose ids are
        ``BertTokenizerFast``'s), ``cache_bytes``, ``environment``.
    """
    all_contenders = contenders(own, bpe, texts, train_texts)
    gc.collect()
    with show("timing", repeats * len(all_contenders)) as progress:
        seconds = take_turns([(c.prepare, c.run) for c in all_contenders], repeats, progress)
    own.clear_caches()
    for text in texts:
        own.encode(text)
    used = cache_bytes(own)
    backend = own.to_hf().backend_tokenizer
    same = sum(own.encode(text) == backend.encode(text).ids for text in texts)
    vocabularies = {"wordpiece": wordpiece_quality(own, texts), "bpe": bpe_quality(bpe, texts)}
    total = size(texts)
    warm = statistics.median(seconds[0])
    rows = [
        _row(c, s, total, vocabularies[c.vocabulary]["tokens"], warm)
        for c, s in zip(all_contenders, seconds, strict=True)
    ]
    return {
        "texts": {"lines": len(texts), "bytes": total, "words": sum(len(text.split()) for text in texts)},
        "settings": {
            "lowercase": own.config.lowercase,
            "strip_accents": own.config.strips_accents,
            "repeats": repeats,
            "clock": "process_time",
            "threads": 1,
        },
        "vocabularies": vocabularies,
        "rows": rows,
        "same_ids": same,
        "cache_bytes": used,
        "environment": environment(),
    }


def _row(contender: Contender, seconds: list[float], size: int, tokens: int, warm: float) -> dict[str, Any]:
    median = statistics.median(seconds)
    return {
        "key": contender.key,
        "name": contender.name,
        "vocabulary": contender.vocabulary,
        "gives": contender.gives,
        "seconds": seconds,
        "median": median,
        "min": min(seconds),
        "megabytes_per_second": size / median / 1e6,
        "tokens_per_second": tokens / median,
        "times_own_warm": median / warm,
    }


def environment() -> dict[str, Any]:
    """Where the times were taken: versions, system, architecture, the processor's model (or None) and its cores."""
    return {
        "python": platform.python_version(),
        "packages": {name: version(name) for name in ("tokenizers", "transformers")},
        "system": platform.system(),
        "machine": platform.machine(),
        "processor": processor(),
        "cpu_count": os.cpu_count(),
    }


def processor(info: Path = Path("/proc/cpuinfo")) -> str | None:
    """The processor's model as the system names it; None where it does not."""
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name" and value.strip():
                return value.strip()
    return platform.processor() or None
