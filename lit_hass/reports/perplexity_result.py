"""A perplexity run as one document: every protocol in every unit, the ladder, what to beware of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lit_hass.metrics.functional.perplexity import (
    Estimate,
    bits,
    perplexity,
    ratio,
    ratio_estimate,
    unit_gap,
)
from lit_hass.reports.perplexity_ladder import climb
from lit_hass.reports.perplexity_warnings import HALF, HALF_SOFTMAX, warnings

#: What each protocol's original prints.
PRINTED = {"token": "token_ppl", "word": "word_ppl"}


def perplexity_report(
    description: dict[str, Any],
    outcomes: Sequence[dict[str, Any]],
    model: dict[str, Any],
    environment: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Put a run's numbers together.

    Args:
        description: of `lit_hass.data.perplexity_description.describe`.
        outcomes: of each recipe of the plan: ``nll``, the counts of `lit_hass.metrics.Perplexity.compute`,
            ``document_nll`` and ``document_tokens``.
        model: what was run: ``base``, ``digest``, ``dtype``, ``device``, ``parameters``, ``zero_weights``.
        environment: machine and versions.

    Returns:
        ``protocols``, ``ladder`` (a list of rungs) and ``ladder_summary``, ``gaps``, ``text``, ``tokenizer``,
        ``model``, ``warnings``, ``environment``; numbers that do not exist are NaN (null in JSON). A protocol's
        ``printed`` is the number in the unit that its original prints; ``original`` in it says whether the original
        prints just this number, which it does not where it takes the softmax in half precision.

    Raises:
        RunError: the ladder's parts do not add up, or counts differ from the plan's.
    """
    protocols = {
        name: _protocol(
            planned, outcomes[planned["plan"]], description, not (name in HALF_SOFTMAX and model.get("dtype") in HALF)
        )
        for name, planned in description["protocols"].items()
    }
    rungs, summary = climb(description["ladder"], outcomes, protocols)
    report = {
        "protocols": protocols,
        "ladder": rungs,
        "ladder_summary": summary,
        "gaps": list(_gaps(protocols)),
        "text": description["text"],
        "tokenizer": description["tokenizer"],
        "model": {**model, "context": description["context"]},
        "environment": environment,
    }
    return {**report, "warnings": warnings(report)}


def _protocol(
    planned: dict[str, Any], outcome: dict[str, Any], description: dict[str, Any], original: bool
) -> dict[str, Any]:
    nll, scored = outcome["nll"], outcome["tokens_scored"]
    # The text's own counts, also where tokens could not be assigned to pages.
    words, size = description["text"]["words"], description["text"]["bytes"]
    whole, paged = planned["whole_text"], planned["document_kind"] == "pages"
    per_token = nll / scored if scored else math.nan
    # As if the tokens that were not scored were as hard as those that were.
    expected = per_token * planned["text_tokens"]
    documents = description["documents"] if paged else []
    sure = {
        unit: _estimate(outcome, weights)
        for unit, weights in {
            "token": outcome["document_tokens"],
            "word": [page["words"] for page in documents] if whole else [],
            "byte": [page["bytes"] for page in documents] if whole else [],
        }.items()
    }
    mean = planned["card"]["mean"] == "texts"
    found: dict[str, Any] = {
        "about": planned["about"],
        "nll": nll,
        **{name: outcome[name] for name in ("tokens_scored", "tokens_forwarded")},
        **{name: planned[name] for name in ("tokens_dropped", "tokens_unscored", "text_tokens")},
        "words": words,
        "bytes": size,
        **{name: outcome[name] for name in ("bos_targets", "windows", "nonfinite")},
        "token_ppl": perplexity(nll, scored),
        "word_ppl": perplexity(nll, words) if whole else None,
        "byte_ppl": perplexity(nll, size) if whole else None,
        "bits_per_byte": bits(nll, size) if whole else None,
        "bits_per_token": bits(nll, scored),
        "word_ppl_est": None if whole else perplexity(expected, words),
        "byte_ppl_est": None if whole else perplexity(expected, size),
        "bits_per_byte_est": None if whole else bits(expected, size),
        **{f"ln_{unit}_ppl_se": estimate and estimate.standard_error for unit, estimate in sure.items()},
        **{f"{unit}_ppl_interval": estimate and estimate.interval for unit, estimate in sure.items()},
        "mean_text_ppl": outcome["mean_document_ppl"] if mean else None,
        "tokens_per_word": ratio(scored if whole else planned["text_tokens"], words),
        "tokens_per_byte": ratio(scored if whole else planned["text_tokens"], size),
        "whole_text": whole,
        "documents": sum(tokens > 0 for tokens in outcome["document_tokens"]),
        "document_kind": planned["document_kind"],
        "empty_documents": planned["empty_documents"],
        "longest_text": planned["longest_text"],
        "card": planned["card"],
        "fingerprint": planned["fingerprint"],
    }
    unit = "mean_text_ppl" if mean else PRINTED[planned["card"]["unit"]]
    if not mean and found[unit] is None:  # such as words where the first token of each page has no score
        unit += "_est"
    return {**found, "printed": {"unit": unit, "value": found[unit], "original": original}}


def _estimate(outcome: dict[str, Any], weights: Sequence[int]) -> Estimate | None:
    return ratio_estimate(outcome["document_nll"], weights) if any(weights) else None


def _gaps(protocols: dict[str, dict[str, Any]]) -> Any:
    """Between each protocol that prints per token and each that prints per word: how much of it is the unit."""
    for one, a in protocols.items():
        for other, b in protocols.items():
            numbers = (a["token_ppl"], b["word_ppl"])
            if a["printed"]["unit"] != "token_ppl" or b["printed"]["unit"] != "word_ppl":
                continue
            if not all(value is not None and 0 < value < math.inf for value in numbers):
                continue
            parts = unit_gap(*numbers, b["tokens_per_word"])
            yield {
                "from": one,
                "to": other,
                "ln_ratio": parts.total,
                "unit": parts.unit,
                "rest": parts.rest,
                "unit_share": ratio(parts.unit, parts.total),
                "tokens_per_word": b["tokens_per_word"],
                "unit_alone": perplexity(math.log(numbers[0]) * b["tokens_per_word"], 1),
                "effective_exponent": ratio(math.log(numbers[1]), math.log(numbers[0])),
            }
