"""Two perplexity runs, such as a dense and a pruned model's: the same protocol only, document by document."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from typing import Any

from lit_hass.errors import UserError
from lit_hass.metrics.functional.jackknife import FEWEST_UNITS
from lit_hass.metrics.functional.perplexity import exp, paired_estimate, perplexity
from lit_hass.reports.perplexity_files import read_perplexity
from lit_hass.reports.perplexity_rows import UNIT_NAMES, number

_UNITS = {"token": "tokens", "word": "words", "byte": "bytes"}
#: What may change a likelihood without changing a setting.
_PACKAGES = ("torch", "transformers", "tokenizers")
_EXPONENT_NOTE = (
    "Equal exponents mean that the gap between the two protocols is one of method, and none that the second model "
    "brought; the gap in percent is no test of that, for it grows with the perplexity."
)


def compare_perplexity(
    one: str | os.PathLike[str], other: str | os.PathLike[str], allow_differences: bool = False
) -> dict[str, Any]:
    """Compare two runs.

    Args:
        one: folder of the first run, or its ``perplexity.json``: what is compared to.
        other: of the second.
        allow_differences: compare protocols whose settings differ, and models whose tokenizers do; the differences are
            in the result, and of other tokenizers only words and bytes are compared.

    Returns:
        ``runs``, ``differences``, ``protocols`` (by name and unit: both numbers, their ratio, its logarithm with the
        paired standard error over documents, 95 % interval), ``exponents``, ``notes``.

    Raises:
        UserError: a run cannot be read; the texts differ; no protocol is in both runs, in which case the message says
            what each number would be in the other's unit; or settings differ and that is not allowed.
    """
    (a, lines_a), (b, lines_b) = read_perplexity(one), read_perplexity(other)
    if a["text"]["sha256"] != b["text"]["sha256"]:
        raise UserError(
            f"{one} and {other} are of different texts ({a['text']['name']}, {b['text']['name']}), which nothing makes "
            "comparable"
        )
    names = [name for name in a["protocols"] if name in b["protocols"]]
    if not names:
        raise UserError(f"{one} and {other} have no protocol in common; {_conversions(a, b)}")
    differences = list(_differences(a, b, names))
    if differences and not allow_differences:
        raise UserError(
            f"{one} and {other} are not comparable: {'; '.join(differences)} (--allow-differences compares them all "
            "the same)"
        )
    same_tokens = a["tokenizer"]["sha256"] == b["tokenizer"]["sha256"]
    protocols = {
        name: _protocol(
            a["protocols"][name], b["protocols"][name], lines_a.get(name, []), lines_b.get(name, []), same_tokens
        )
        for name in names
    }
    return {
        "runs": {"one": _about(one, a), "other": _about(other, b)},
        "differences": differences,
        "protocols": protocols,
        "exponents": list(_exponents(a, b)),
        "notes": list(_notes(a, b, protocols, same_tokens)),
    }


def _about(path: str | os.PathLike[str], report: dict[str, Any]) -> dict[str, Any]:
    return {"path": str(path), "model": report["model"], "text": report["text"]["name"]}


def _differences(a: dict[str, Any], b: dict[str, Any], names: Sequence[str]) -> Iterator[str]:
    if a["tokenizer"]["sha256"] != b["tokenizer"]["sha256"]:
        sizes = f"{a['tokenizer']['vocabulary']:,} and {b['tokenizer']['vocabulary']:,} tokens"
        yield f"the tokenizers differ ({sizes}), so token perplexities are of different things"
    for name in names:
        one, other = (report["protocols"][name] for report in (a, b))
        if one["fingerprint"] == other["fingerprint"]:
            continue
        for key in sorted({*one["card"], *other["card"]}):
            values = [protocol["card"].get(key) for protocol in (one, other)]
            if values[0] != values[1]:
                yield f"{name}: {key} {values[0]} against {values[1]}"


def _protocol(
    a: dict[str, Any],
    b: dict[str, Any],
    lines_a: Sequence[dict[str, Any]],
    lines_b: Sequence[dict[str, Any]],
    same_tokens: bool,
) -> dict[str, Any]:
    units = {}
    for unit, weight in _UNITS.items():
        if unit == "token" and not same_tokens:
            continue
        one, other = a[f"{unit}_ppl"], b[f"{unit}_ppl"]
        if one is None or other is None:
            continue
        units[unit] = {"one": one, "other": other, **_paired(lines_a, lines_b, weight, one, other)}
    original = [p["printed"].get("original", True) for p in (a, b)]
    return {
        "units": units,
        "printed": a["printed"]["unit"],
        "original": original,
        "same_settings": a["fingerprint"] == b["fingerprint"],
    }


def _paired(
    lines_a: Sequence[dict[str, Any]], lines_b: Sequence[dict[str, Any]], weight: str, one: float, other: float
) -> dict[str, Any]:
    """Ratio of two perplexities and its uncertainty; without pairs the ratio alone, and why."""
    ratio = {"ln_ratio": math.log(other) - math.log(one), "ratio": other / one, "change": other / one - 1}
    weights: list[list[Any]] = [[line.get(weight) for line in lines] for lines in (lines_a, lines_b)]
    sums = [[line["nll"] for line in lines] for lines in (lines_a, lines_b)]
    missing = {"se": None, "interval": None, "documents": len(weights[0])}
    if weights[0] != weights[1] or None in weights[0]:
        return {**ratio, **missing, "undefined": "the runs' documents cannot be paired"}
    if None in sums[0] or None in sums[1]:
        return {**ratio, **missing, "undefined": "a document has no finite likelihood"}
    estimate = paired_estimate(sums[0], sums[1], weights[0])
    if math.isnan(estimate.standard_error):
        return {**ratio, **missing, "undefined": "fewer than two documents"}
    ratio = {"ln_ratio": estimate.mean, "ratio": exp(estimate.mean), "change": exp(estimate.mean) - 1}
    bounds = estimate.interval
    return {
        **ratio,
        "se": estimate.standard_error,
        "interval": None if bounds is None else list(bounds),
        "documents": estimate.documents,
        "undefined": None if bounds else f"{estimate.documents} documents are too few ({FEWEST_UNITS} at least)",
    }


def _exponents(a: dict[str, Any], b: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """``ln`` of the word perplexity over ``ln`` of the token perplexity, of both models."""
    pairs = {(gap["from"], gap["to"]): gap for gap in b["gaps"]}
    for gap in a["gaps"]:
        match = pairs.get((gap["from"], gap["to"]))
        if match is not None:
            yield {
                "from": gap["from"],
                "to": gap["to"],
                "one": gap["effective_exponent"],
                "other": match["effective_exponent"],
                "tokens_per_word": gap["tokens_per_word"],
                "gap_one": exp(gap["ln_ratio"]) - 1,
                "gap_other": exp(match["ln_ratio"]) - 1,
            }


def _notes(a: dict[str, Any], b: dict[str, Any], protocols: dict[str, Any], same_tokens: bool) -> Iterator[str]:
    for report, which in ((a, "first"), (b, "second")):
        alone = [name for name in report["protocols"] if name not in protocols]
        if alone:
            yield f"only the {which} run has {', '.join(alone)}"
    if a["model"].get("dtype") != b["model"].get("dtype"):
        yield f"the weights are {a['model'].get('dtype')} and {b['model'].get('dtype')}"
    kinds = [report["model"].get("attention") for report in (a, b)]
    if None not in kinds and kinds[0] != kinds[1]:
        yield f"attention is computed by {kinds[0]} and by {kinds[1]}, which round differently"
    packages = [(report.get("environment") or {}).get("packages") or {} for report in (a, b)]
    for name in _PACKAGES:
        versions = [found.get(name) for found in packages]
        if None not in versions and versions[0] != versions[1]:
            yield f"the runs were made with {name} {versions[0]} and {versions[1]}"
    if a["model"].get("digest") == b["model"].get("digest"):
        yield "both runs are of the same model"
    if not same_tokens:
        yield "token perplexities are not compared: the tokenizers differ"
    for name in protocols:
        pair = [report["protocols"][name] for report in (a, b)]
        if any(p.get("document_kind") == "windows" for p in pair):
            yield (
                f"the interval of {name} is over windows, which follow one another in one text and are no independent "
                "samples: it is likely too narrow"
            )
        if all(p["printed"]["unit"] == "mean_text_ppl" for p in pair):
            values = " and ".join(number(p["printed"]["value"]) for p in pair)
            yield f"{name} prints means of the texts' PPL, {values}; the pairs above are of its token perplexity"
        for unit in ("word", "byte"):
            if any(p[f"{unit}_ppl"] is None and p["whole_text"] for p in pair):
                yield f"{name} / {unit} is not compared: the perplexity of a run is beyond float64"
    if any(True for _ in _exponents(a, b)):
        yield _EXPONENT_NOTE


def _conversions(a: dict[str, Any], b: dict[str, Any]) -> str:
    """What each printed number would be in the other's unit, as far as the unit alone goes."""
    parts = []
    for report, against in ((a, b), (b, a)):
        for name, protocol in report["protocols"].items():
            for other in against["protocols"].values():
                found = _converted(name, protocol, other)
                if found and found not in parts:
                    parts.append(found)
    return "; ".join(parts) or "none of their numbers can be converted"


def _converted(name: str, protocol: dict[str, Any], other: dict[str, Any]) -> str | None:
    value, unit = protocol["printed"]["value"], protocol["printed"]["unit"]
    wanted = other["printed"]["unit"]
    if value is None or protocol["token_ppl"] is None:
        return None
    shown = f"{name} {number(value)} ({UNIT_NAMES[unit]})"
    if wanted == "word_ppl" and unit != "word_ppl":
        # The exponent is that of the text form in which words are counted: the other's.
        words = perplexity(math.log(protocol["token_ppl"]) * other["tokens_per_word"], 1)
        return f"{shown} would be {number(words)} per word (exponent T/W {number(other['tokens_per_word'])})"
    if wanted == "token_ppl" and unit == "word_ppl":
        return f"{shown} is {number(protocol['token_ppl'])} per token"
    if wanted == unit:
        return f"{shown} has the unit already, but other windows or another text form"
    return f"{shown} is {number(protocol['token_ppl'])} per token, as one mean over all tokens"
