"""The benchmark's result for people: tables for the screen and for Markdown."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

Row = tuple[str, ...]

_SPEED = ("", "computes", "MB/s", "tokens/s", "time", "median ms", "min ms")
_VOCABULARY = ("", "pieces", "tokens", "fertility", "bytes/token", "unknown", "exact round trip")
_NAMES = {"wordpiece": "WordPiece (own and HF)", "bpe": "byte-level BPE"}


def speed_rows(result: dict[str, Any]) -> list[Row]:
    """A row for each contender; "time" is how many times as long as ours with warm caches."""
    return [
        (
            row["name"],
            row["gives"],
            f"{row['megabytes_per_second']:.2f}",
            f"{row['tokens_per_second']:,.0f}",
            f"{row['times_own_warm']:.1f}x",
            f"{1000 * row['median']:,.2f}",
            f"{1000 * row['min']:,.2f}",
        )
        for row in result["rows"]
    ]


def vocabulary_rows(result: dict[str, Any]) -> list[Row]:
    """A row for each vocabulary."""
    return [
        (
            _NAMES[name],
            f"{counts['vocab_size']:,}",
            f"{counts['tokens']:,}",
            _number(counts["fertility"], "{:.3f}"),
            _number(counts["bytes_per_token"], "{:.2f}"),
            f"{counts['unknown']} ({_number(counts['unknown_rate'], '{:.3%}')})",
            _number(counts["round_trip_rate"], "{:.1%}"),
        )
        for name, counts in result["vocabularies"].items()
    ]


def notes(result: dict[str, Any]) -> list[str]:
    """What the tables do not say themselves."""
    texts, settings, where = result["texts"], result["settings"], result["environment"]
    by_key = {row["key"]: row["median"] for row in result["rows"]}
    states = [key for key in ("own_warm", "own_primed", "own_cold") if key in by_key]

    def ratios(key: str) -> str:
        return ", ".join(f"{by_key[key] / by_key[own]:.1f} ({own.removeprefix('own_')})" for own in states)

    python = "this version of transformers has no tokenizer in pure Python."
    if "python" in by_key:
        python = f"pure Python takes {ratios('python')} times as long."
    lines = [
        f"{texts['lines']:,} lines, {texts['bytes']:,} bytes, {texts['words']:,} words; "
        f"{'lower-case' if settings['lowercase'] else 'cased'}; passes of each, in turn: {settings['repeats']}; "
        "medians of CPU time, one thread, one call a line but for batches.",
        f"Ids equal BertTokenizerFast's on {result['same_ids']:,} of {texts['lines']:,} lines. "
        f"Caches hold {result['cache_bytes'] / 1e6:.1f} MB.",
        "warm: this text was seen before; primed: only the training text was; cold: nothing was, the caches are "
        "emptied before each pass. HF's BPE caches words, too, and is warm; its WordPiece keeps nothing.",
        f"HF Rust, one by one, takes {ratios('hf_single')} times as long as ours; {python}",
        f"Python {where['python']}, "
        + ", ".join(f"{name} {number}" for name, number in where["packages"].items())
        + f"; {where['system']} {where['machine']}, {where['processor'] or 'processor unknown'}, cores: "
        f"{where['cpu_count']}.",
    ]
    return [*lines, *result.get("notes", [])]


def print_result(result: dict[str, Any], console: Console) -> None:
    """Print both tables and the notes."""
    for header, rows in ((_SPEED, speed_rows(result)), (_VOCABULARY, vocabulary_rows(result))):
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for i, name in enumerate(header):
            table.add_column(name, justify="left" if i == 0 or name == "computes" else "right", no_wrap=True)
        for row in rows:
            table.add_row(*row)
        console.print(table)
    for note in notes(result):
        console.print(note, highlight=False)


def to_markdown(result: dict[str, Any]) -> str:
    """Both tables and the notes as Markdown."""
    parts = []
    for header, rows in ((_SPEED, speed_rows(result)), (_VOCABULARY, vocabulary_rows(result))):
        aligned = ["---" if i == 0 or name == "computes" else "---:" for i, name in enumerate(header)]
        table = [header, aligned, *rows]
        parts.append("\n".join("| " + " | ".join(row) + " |" for row in table))
    return "\n\n".join([*parts, "\n".join(f"* {note}" for note in notes(result))]) + "\n"


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)
