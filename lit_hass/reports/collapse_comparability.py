"""Which figures of two collapse reports may be held against each other, and which may not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lit_hass.reports.collapse_run import CollapseSubject

Level = Literal["comparable", "with care", "not comparable"]
_ORDER: tuple[Level, ...] = ("comparable", "with care", "not comparable")

#: Topics, as `Statement.topic` and the rows of the tables name them.
SPECTRA, NORMALISED, EQUAL_ROWS, CLASSES, TOKENS, CHUNKS, CKA = (
    "SVD entropies, spectra and ranks",
    "SVD entropies over their bound",
    "SVD entropies of equally many rows",
    "GNC2, UNC3 and the other class metrics",
    "entropies per token",
    "entropy along the text",
    "similarity of draft and base (CKA)",
)
#: Settings that decide a topic's figures: with other values they are other quantities.
_DECISIVE = {
    SPECTRA: ("svd_variant", "layer"),
    NORMALISED: ("svd_variant", "layer"),
    EQUAL_ROWS: ("svd_variant", "layer"),
    CLASSES: ("gnc2_reduction", "unc3_reduction", "correction", "cdnv_exponent", "duplicates", "nc4_classes", "layer"),
    TOKENS: ("svd_variant", "layer"),
    CHUNKS: ("svd_variant", "chunks", "chunk_rule", "chunk_rows", "layer"),
    CKA: ("layer",),
}
#: Settings that decide which rows or classes are counted.
_SELECTING = {
    SPECTRA: ("special_tokens", "states"),
    NORMALISED: ("special_tokens", "states"),
    EQUAL_ROWS: ("special_tokens", "states"),
    CLASSES: ("special_tokens", "states", "min_samples_per_token", "max_tokens_to_analyze"),
    TOKENS: ("special_tokens", "states", "min_samples_per_token", "max_tokens_to_analyze", "max_samples_per_class"),
    CHUNKS: ("states",),
    CKA: ("special_tokens", "states"),
}
#: A difference in the number of rows, classes or the length of texts that is worth a word.
_NOTABLE = 1.1


@dataclass(frozen=True)
class Statement:
    """Whether one topic's figures of two subjects are comparable.

    Attributes:
        topic: what it is about.
        level: the verdict.
        reasons: why it is not better.
    """

    topic: str
    level: Level
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        """Say it in a line."""
        why = f": {'; '.join(self.reasons)}" if self.reasons else ""
        return f"{self.topic}: {self.level}{why}"


def comparability(a: CollapseSubject, b: CollapseSubject) -> list[Statement]:
    """Judge every topic of two subjects; that of a draft only where there is one."""
    topics = [SPECTRA, NORMALISED, CLASSES, TOKENS, CHUNKS]
    topics += [EQUAL_ROWS] if _has_equal_rows(a) or _has_equal_rows(b) else []
    topics += [CKA] if _has_draft(a) or _has_draft(b) else []
    return [_statement(topic, a, b) for topic in topics]


def verdict_texts(statements: Sequence[Statement]) -> list[tuple[Level, str]]:
    """Say all of it in few lines: what is comparable in one, and each of the rest with its reasons."""
    good = [statement.topic for statement in statements if statement.level == _ORDER[0]]
    rest = [(statement.level, str(statement)) for statement in statements if statement.level != _ORDER[0]]
    return [*([(_ORDER[0], f"comparable: {'; '.join(good)}")] if good else []), *rest]


def _statement(topic: str, a: CollapseSubject, b: CollapseSubject) -> Statement:
    found: list[tuple[Level, str]] = []
    if not a.settings or not b.settings:
        found.append(("with care", "the settings are not recorded"))
    else:
        found += _of_settings(a, b, _DECISIVE[topic], "not comparable")
        found += _of_settings(a, b, (*_SELECTING[topic], "storage_dtype"), "with care")
    found += _of_meta(topic, a, b)
    found += {
        SPECTRA: _of_rows, NORMALISED: _of_rows, EQUAL_ROWS: _of_drawn, CLASSES: _of_classes, TOKENS: _of_tokens,
        CHUNKS: _of_lengths, CKA: _of_drafts,
    }[topic](a, b)  # fmt: skip
    level = max((level for level, _ in found), key=_ORDER.index, default=_ORDER[0])
    return Statement(topic, level, tuple(reason for _, reason in found))


def _of_settings(
    a: CollapseSubject, b: CollapseSubject, keys: Iterable[str], level: Level
) -> Iterable[tuple[Level, str]]:
    for key in keys:
        if a.settings.get(key) != b.settings.get(key):
            yield level, f"{key} is {_show(a.settings.get(key))} and {_show(b.settings.get(key))}"


def _of_meta(topic: str, a: CollapseSubject, b: CollapseSubject) -> Iterable[tuple[Level, str]]:
    dims = [subject.meta.get("feature_dim") for subject in (a, b)]
    if dims[0] != dims[1]:
        if topic in (SPECTRA, TOKENS, CHUNKS):
            yield "not comparable", f"features of {dims[0]} and {dims[1]} numbers; compare the normalised entropies"
        else:
            yield "with care", f"features of {dims[0]} and {dims[1]} numbers"
    for key, why in (
        ("feature_dtype", "features are {} and {}: half precision alone moves entropies by up to 0.02 nats"),
        ("question_file", "other texts: {} and {}"),
        ("model", "two models: {} and {}"),
    ):
        pair = [subject.meta.get(key) for subject in (a, b)]
        if key == "model":
            # A base's answers with and without a draft are recorded under two names.
            pair = [str(name).removesuffix("-hass") if name is not None else None for name in pair]
        if pair[0] != pair[1]:
            yield "with care", why.format(*map(_show, pair))
    asked = [subject.meta.get("questions") for subject in (a, b)]
    if asked[0] != asked[1]:
        yield "with care", f"texts of {_show(asked[0])} and {_show(asked[1])} questions"


def _of_rows(a: CollapseSubject, b: CollapseSubject) -> Iterable[tuple[Level, str]]:
    rows = [subject.metrics.get("total_tokens") or 0 for subject in (a, b)]
    if _apart(*rows):
        yield "with care", f"{rows[0]} and {rows[1]} rows, and entropies grow with the rows until these are many"


def _of_drawn(a: CollapseSubject, b: CollapseSubject) -> Iterable[tuple[Level, str]]:
    without = [subject.label for subject in (a, b) if not _has_equal_rows(subject)]
    if without:
        yield "not comparable", f"{without[0]} has none"


def _of_classes(a: CollapseSubject, b: CollapseSubject) -> Iterable[tuple[Level, str]]:
    tokens = [subject.metrics.get("token_metrics") or {} for subject in (a, b)]
    if any(subject.metrics.get("token_metrics") is None for subject in (a, b)):
        yield "with care", "which tokens are classes is not recorded (compute_token_metrics is off)"
        return
    named = [{(key, value.get("token")) for key, value in each.items()} for each in tokens]
    shared = len(named[0] & named[1])
    if shared < len(named[0] | named[1]):
        yield "with care", f"classes differ: {shared} tokens in both, of {len(named[0])} and {len(named[1])}"


def _of_tokens(a: CollapseSubject, b: CollapseSubject) -> Iterable[tuple[Level, str]]:
    yield from _of_classes(a, b)
    counts = [subject.analysis["diagnostics"] for subject in (a, b)]
    caps = [each.get("n_kept_cap") for each in counts]
    if caps[0] != caps[1] and any(_is_capped(subject) for subject in (a, b)):
        shown = ("all" if cap is None else f"at most {cap}" for cap in caps)
        yield "not comparable", f"entropies of {' and '.join(shown)} rows of each token, and they grow with the rows"
    left_out = [each.get("classes_left_out") or 0 for each in counts]
    if left_out[0] != left_out[1]:
        yield "with care", f"{left_out[0]} and {left_out[1]} token classes are left out for lack of room"


def _is_capped(subject: CollapseSubject) -> bool:
    tokens = (subject.metrics.get("token_metrics") or {}).values()
    return any(0 < token.get("sampled", token["num_samples"]) < token["num_samples"] for token in tokens)


def _of_lengths(a: CollapseSubject, b: CollapseSubject) -> Iterable[tuple[Level, str]]:
    means = []
    for subject in (a, b):
        lengths = [chunk["length"] for chunk in subject.analysis["chunks"] if chunk["length"]]
        means.append(sum(lengths) / len(lengths) if lengths else 0.0)
    if _apart(*means):
        yield (
            "with care",
            f"texts of {means[0]:.0f} and {means[1]:.0f} tokens on average: compare the normalised entropies",
        )


def _of_drafts(a: CollapseSubject, b: CollapseSubject) -> Iterable[tuple[Level, str]]:
    without = [s.label for s in (a, b) if not _has_draft(s)]
    if without:
        yield "not comparable", f"{without[0]} has no draft"
    elif a.meta.get("draft") != b.meta.get("draft"):
        yield "with care", f"two drafts: {_show(a.meta.get('draft'))} and {_show(b.meta.get('draft'))}"


def _has_equal_rows(subject: CollapseSubject) -> bool:
    return any((subject.metrics.get("equal_rows") or {}).values())


def _has_draft(subject: CollapseSubject) -> bool:
    return subject.value("cka/linear", "answer") is not None


def _apart(one: float, other: float) -> bool:
    return max(one, other) > _NOTABLE * min(one, other)


def _show(value: Any) -> str:
    return "not recorded" if value is None else str(value)
