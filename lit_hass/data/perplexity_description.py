"""What a perplexity run evaluates, as plain values: for reports, and for telling whether two runs are comparable."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from lit_hass.data.perplexity_protocols import PROTOCOLS
from lit_hass.data.perplexity_text import is_title

if TYPE_CHECKING:
    from lit_hass.data.perplexity_datamodule import PerplexityDataModule
    from lit_hass.data.perplexity_plan import RecipePlan

#: Changes when a protocol of the same settings scores something else than before.
_RULES = 1


def describe(data: PerplexityDataModule) -> dict[str, Any]:
    """Describe text, tokenizer, protocols and ladder of a DataModule that has been checked.

    Returns:
        ``text``, ``tokenizer``, ``context``, ``documents`` (title, words and bytes of each page); ``protocols``: by
        name what was planned, with ``plan``, the index into the run's recipes; ``ladder``: None, or ``from``, ``to``
        and ``rungs``, of which those that score the very same tokens as the rung before them, in the same unit and
        mean, are left out.
    """
    assert data.text is not None and data.tokens is not None and data.plan is not None
    text = data.text
    words, sizes = text.words, text.bytes
    return {
        "text": text.describe() | {"pages_starting_with_prefix": len(data.tokens.starts_with_prefix)},
        "tokenizer": _tokenizer(data.tokens.tokenizer, data.tokens.template),
        "context": data.context,
        "documents": [
            {"title": _title(page), "words": words[i], "bytes": sizes[i]} for i, page in enumerate(text.pages)
        ],
        "protocols": {
            name: {"about": PROTOCOLS[name].about, "plan": index, **_planned(name, plan)}
            for index, (name, plan) in enumerate(data.scored.items())
        },
        "ladder": _ladder(data),
    }


def _planned(name: str, plan: RecipePlan) -> dict[str, Any]:
    settings = plan.recipe.settings()
    card = {"protocol": name, "rules": _RULES, "logsumexp": "float32", "exact": True, **settings}
    return {
        "card": card,
        "fingerprint": hashlib.sha256(json.dumps(card, sort_keys=True).encode()).hexdigest()[:16],
        "tokens_dropped": plan.dropped,
        "tokens_unscored": plan.unscored,
        "text_tokens": plan.text_tokens,
        "longest_text": max(plan.sequence_tokens, default=0),
        "empty_documents": plan.empty_documents,
        "document_kind": plan.document_kind,
        "whole_text": plan.whole_text,
        "planned": {
            "tokens_scored": plan.scored,
            "tokens_forwarded": plan.forwarded,
            "bos_targets": plan.bos_targets,
            "windows": len(plan.windows),
        },
    }


def _ladder(data: PerplexityDataModule) -> dict[str, Any] | None:
    assert data.plan is not None
    if data.ladder_ends is None:
        return None
    first = len(data.scored)
    rungs: list[dict[str, Any]] = []
    for index, (rung, plan) in enumerate(data.rungs):
        known = {"mean": rung.recipe.mean, "unit": rung.recipe.unit}
        if index:
            same = data.plan.same_windows(first + index, rungs[-1]["plan"])
            if same and known == {name: rungs[-1][name] for name in known}:
                continue
        sizes = {"text_tokens": plan.text_tokens, "whole_text": plan.whole_text}
        rungs.append({"switch": rung.switch, "plan": first + index, **sizes, **known})
    return {"from": data.ladder_ends[0], "to": data.ladder_ends[1], "rungs": rungs}


def _tokenizer(tokenizer: Any, template: tuple[list[int], list[int]]) -> dict[str, Any]:
    if tokenizer.is_fast:
        content = tokenizer.backend_tokenizer.to_str()
    else:
        content = json.dumps(sorted(tokenizer.get_vocab().items()))
    special = {name: getattr(tokenizer, f"{name}_id") for name in ("bos_token", "eos_token")}
    return {
        "sha256": hashlib.sha256(json.dumps([content, special, template]).encode()).hexdigest(),
        "vocabulary": len(tokenizer),
        "bos_token_id": special["bos_token"],
        "eos_token_id": special["eos_token"],
        "adds_before": template[0],
        "adds_behind": template[1],
        "tells_offsets": bool(tokenizer.is_fast),
    }


def _title(page: str) -> str | None:
    line = next((line for line in page.split("\n") if line.strip()), "")
    return line.strip().strip("=").strip() if is_title(line) else None
