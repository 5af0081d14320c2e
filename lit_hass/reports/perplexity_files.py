"""What a perplexity run leaves in its folder, and reading it back."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lit_hass.errors import UserError
from lit_hass.records import ensure_writable, read_object, read_objects, to_json, write_json, write_lines, write_text
from lit_hass.records.atomic import write_bytes
from lit_hass.reports.perplexity_rows import UNIT_NAMES
from lit_hass.reports.perplexity_view import to_markdown

RESULT, DOCUMENTS, PAGE, PICTURE = (
    "perplexity.json", "perplexity_documents.jsonl", "perplexity.md", "perplexity_ladder.png"
)  # fmt: skip
#: All of them, whether a run has each or not.
FILES = (RESULT, DOCUMENTS, PAGE, PICTURE)


def write_perplexity(
    folder: str | os.PathLike[str],
    report: dict[str, Any],
    description: dict[str, Any],
    outcomes: Sequence[dict[str, Any]],
) -> list[Path]:
    """Write a run's result, each file atomically; ``perplexity.json``, which says that there is one, comes last.

    Args:
        folder: made if need be.
        report: of `lit_hass.reports.perplexity_result.perplexity_report`.
        description: as for that.
        outcomes: as for that.

    Returns:
        The files: ``perplexity_documents.jsonl`` (nats and scored tokens of each document by protocol, which paired
        comparisons need), ``perplexity.md``, ``perplexity_ladder.png`` where there is a ladder, ``perplexity.json``.

    Raises:
        UserError: the folder cannot be written to.
        RunError: the disk is full or failed.
    """
    from lit_hass.reports.perplexity_plot import ladder_figure, to_png

    folder = ensure_writable(folder)
    figure = ladder_figure(report)
    write_lines(folder / DOCUMENTS, map(to_json, _document_lines(description, outcomes)))
    if figure is not None:
        write_bytes(folder / PICTURE, to_png(figure))
    write_text(folder / PAGE, to_markdown(report, None if figure is None else PICTURE))
    write_json(folder / RESULT, report)
    names = (DOCUMENTS, PICTURE, PAGE, RESULT)
    return [folder / name for name in names if name != PICTURE or figure is not None]


def _document_lines(description: dict[str, Any], outcomes: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for name, planned in description["protocols"].items():
        outcome = outcomes[planned["plan"]]
        paged = planned["document_kind"] == "pages"
        for index, (nll, tokens) in enumerate(zip(outcome["document_nll"], outcome["document_tokens"], strict=True)):
            page = description["documents"][index] if paged else {}
            yield {
                "protocol": name,
                planned["document_kind"].removesuffix("s"): index,
                "nll": nll,
                "tokens": tokens,
                **page,
            }


def is_perplexity_run(path: str | os.PathLike[str]) -> bool:
    """Whether a path is the folder of a perplexity run, or its ``perplexity.json``."""
    path = Path(path)
    return path.name == RESULT and path.is_file() or (path / RESULT).is_file()


def _number(holder: dict[str, Any], *names: str) -> bool:
    """Whether all of these are there, as numbers or as null (what JSON has for one that is not finite)."""
    return all(name in holder and isinstance(holder[name], int | float | None) for name in names)


def _is_report(report: Any) -> bool:
    """Whether something read from a file has what a comparison looks at."""
    parts = ("protocols", "text", "tokenizer", "model")
    if not isinstance(report, dict) or not all(isinstance(report.get(name), dict) for name in parts):
        return False
    environment = report.get("environment") or {}
    if not isinstance(environment, dict) or not isinstance(environment.get("packages") or {}, dict):
        return False
    text, tokenizer, gaps = report["text"], report["tokenizer"], report.get("gaps")
    if not {"sha256", "name"} <= text.keys() or "base" not in report["model"] or "sha256" not in tokenizer:
        return False
    if not isinstance(tokenizer.get("vocabulary"), int) or not isinstance(gaps, list):
        return False
    numbers = ("effective_exponent", "tokens_per_word", "ln_ratio")
    if not all(isinstance(gap, dict) and {"from", "to"} <= gap.keys() and _number(gap, *numbers) for gap in gaps):
        return False
    return all(isinstance(protocol, dict) and _is_protocol(protocol) for protocol in report["protocols"].values())


def _is_protocol(protocol: dict[str, Any]) -> bool:
    units = ("token_ppl", "word_ppl", "byte_ppl")
    printed, card = protocol.get("printed"), protocol.get("card")
    return (
        _number(protocol, "nll", *units, "tokens_per_word")
        and isinstance(protocol.get("whole_text"), bool)
        and isinstance(printed, dict)
        and printed.get("unit") in UNIT_NAMES
        and _number(printed, "value")
        and isinstance(card, dict)
        and "fingerprint" in protocol
    )


def read_perplexity(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """Read a run back.

    Args:
        path: its folder, or ``perplexity.json`` in it.

    Returns:
        The report, and by protocol the lines of its documents.

    Raises:
        UserError: a file is missing or broken, or the two are not of one run; names the file.
    """
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    file = folder / RESULT
    report = read_object(file)
    if report is None or not _is_report(report):
        raise UserError(f"{file}: is no result of a perplexity run")
    documents: dict[str, list[dict[str, Any]]] = {}
    for line, entry in read_objects(folder / DOCUMENTS, "file of documents"):
        counts = [entry.get("tokens"), *(entry[unit] for unit in ("words", "bytes") if unit in entry)]
        if "protocol" not in entry or not _number(entry, "nll") or not all(isinstance(n, int) for n in counts):
            raise UserError(f"{folder / DOCUMENTS}:{line}: needs protocol, nll and tokens, and numbers in them")
        documents.setdefault(str(entry["protocol"]), []).append(entry)
    for name, protocol in report["protocols"].items():
        sums = [entry["nll"] for entry in documents.get(name, [])]
        total = protocol.get("nll")
        known = total is not None and all(isinstance(nll, int | float) for nll in sums)
        if known and not math.isclose(math.fsum(sums), total, rel_tol=1e-9, abs_tol=1e-9):
            raise UserError(f"{folder / DOCUMENTS}: does not add up to the {name} of {RESULT}")
    return report, documents
