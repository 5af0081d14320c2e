"""What a reader must know before comparing a perplexity with another one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from lit_hass.metrics.functional.jackknife import FEWEST_UNITS

#: Of the WikiText-2 raw test split: what everybody evaluates on.
WIKITEXT2_TEST = {"pages": 62, "words": 241_335, "bytes": 1_290_527}
HALF = ("bfloat16", "float16")
#: The protocols whose originals take the softmax in the model's own dtype.
HALF_SOFTMAX = ("wanda", "lm_eval_wikitext")


def warnings(report: dict[str, Any]) -> list[dict[str, str]]:
    """Find what makes a run's numbers differ from others, or from what they seem to be.

    Args:
        report: of `perplexity_report`, without its warnings.

    Returns:
        Objects with ``code``, ``protocol`` (or ``""``) and ``text``: what it is with its number, and the remedy.
    """
    found = list(_of_text(report)) + list(_of_model(report))
    for name, protocol in report["protocols"].items():
        found += [(code, name, text) for code, text in _of_protocol(name, protocol, report)]
    return [{"code": code, "protocol": name, "text": text} for code, name, text in found]


def _of_text(report: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    text = report["text"]
    share = text["unk_words"] / text["words"] if text["words"] else 0.0
    if share > 0.001:
        yield (
            "unk_text", "",
            f"{text['unk_words']} of the words are <unk> ({share:.1%}): this is the word-level version of the text, "
            "whose numbers are comparable with no paper's; use the raw version",
        )  # fmt: skip
    name = text["name"].lower()
    called = "wikitext" in name or "wiki.test" in name
    if "wikitext-103" in name:
        yield ("wikitext_103", "", "this is WikiText-103; papers evaluate on WikiText-2 (wikitext-2-raw-v1)")
    elif called and text["split"] in (None, "test"):
        wrong = {key: text[key] for key, value in WIKITEXT2_TEST.items() if text[key] != value}
        if wrong:
            expected = ", ".join(f"{WIKITEXT2_TEST[key]} {key} (here {value})" for key, value in wrong.items())
            yield (
                "not_wikitext_2", "",
                f"the WikiText-2 raw test split has {expected}: another split, version or WikiText-103?",
            )  # fmt: skip
    if text["pages_starting_with_prefix"]:
        yield (
            "starts_with_prefix", "",
            f"{text['pages_starting_with_prefix']} pages begin with the prefix token as it is written, so that no "
            "special token was added to them (as the harness does)",
        )  # fmt: skip
    if text["layout"] == "wikitext" and not text["titles"]:
        yield (
            "one_page", "",
            "the text is one page (a line ` = Title = ` begins another): there is no standard error over documents",
        )  # fmt: skip


def _of_model(report: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    dtype = report["model"].get("dtype")
    if dtype in HALF:
        yield (
            "half_precision", "",
            f"weights and logits are {dtype}; the loss is taken in float32 here. Wanda's script and "
            "lm-evaluation-harness take it in the model's dtype and print another number (in bfloat16 by 1.2 % and "
            "0.95 % on the reference text), so that theirs stand in ( ) and not in [ ]; --model.dtype float32 gives "
            "what both print in float32",
        )  # fmt: skip


def _of_protocol(name: str, protocol: dict[str, Any], report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    card, context = protocol["card"], report["model"]["context"]
    if card["special"] == "both" and protocol["bos_targets"]:
        effect = _bos_effect(report)
        yield (
            "double_bos",
            f"{protocol['bos_targets']} BOS tokens are scored behind the prefix BOS{effect}; versions before the "
            "harness's PR 3347 scored none: --data.bos_policy single",
        )
    if context is not None and card["window"] > context:
        yield (
            "beyond_context",
            f"windows of {card['window']} are beyond the {context} tokens the model was made for; the number says more "
            "of that than of the model",
        )
    elif context is not None and card["window"] < context and card["windows"] != "second_half":
        yield (
            "short_window",
            f"windows of {card['window']} are shorter than the model's context of {context}, at which papers evaluate; "
            "a shorter window gives a higher number",
        )
    # Rolling windows read so many tokens, and their last target is behind them.
    filled = card["window"] + (card["windows"] == "rolling")
    if protocol["longest_text"] < filled and not card["truncate"]:
        yield (
            "short_text",
            f"no text fills a window of {card['window']}: the longest has {protocol['longest_text']} tokens",
        )
    total = protocol["text_tokens"]
    if protocol["tokens_dropped"] and total:
        share = protocol["tokens_dropped"] / total
        remedy = "" if card["truncate"] or card["most_windows"] else "; --data.tail score scores them"
        where = "behind the last full window"
        if card["truncate"]:
            where = "beyond the cut of each text"
        elif card["most_windows"]:
            where = f"beyond the {card['most_windows']} windows that this corpus is evaluated on"
        if share > 0.01:
            yield (
                "dropped",
                f"{protocol['tokens_dropped']} tokens {where} are not scored ({share:.1%} of the text){remedy}",
            )
    if protocol["empty_documents"]:
        yield (
            "empty_documents",
            f"{protocol['empty_documents']} documents have nothing to score; their words and bytes count all the same, "
            "which lowers word and byte perplexity (as in the harness)",
        )
    if protocol["document_kind"] == "windows":
        yield (
            "windows_as_documents",
            "the tokenizer does not tell where a token stands in the text, so standard errors and intervals are over "
            "windows, not pages; windows of one text are no independent samples, and intervals likely too narrow",
        )
    elif 1 < protocol["documents"] < FEWEST_UNITS:
        yield (
            "few_documents",
            f"{protocol['documents']} documents are too few for an interval ({FEWEST_UNITS} at least)",
        )
    if card["mean"] == "texts":
        yield "mean_of_texts", "the mean of the texts' own perplexities is comparable with no other protocol's number"
    if not math.isfinite(protocol["nll"]) or protocol["token_ppl"] == math.inf:
        yield "not_finite", f"the perplexity is no finite number (nll {protocol['nll']})"
    if protocol["word_ppl"] == math.inf:
        yield "overflow", "the word perplexity is beyond float64; its logarithm is nll / words"


def _bos_effect(report: dict[str, Any]) -> str:
    """What the second BOS does to ln PPL, where a ladder has measured it."""
    step = next((r for r in report["ladder"] if "BOS as first target" in r["switch"]), None)
    if step is None or step["contribution"] is None:
        return ""
    sign = -1 if step["switch"].startswith("undone") else 1
    return f" ({sign * step['contribution']:+.4f} in ln of the token perplexity)"
