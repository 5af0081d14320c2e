"""The tokens that a draft scores, where these are fewer than the base's.

A draft of a small base spends most of its time in the output layer. Verification is the base's own, so that a draft
which never proposes a rare token loses some acceptance and nothing else.

Source: FR-Spec, arXiv 2502.14856.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_hass.errors import UserError
from lit_hass.records.json_lines import parse_json, read_bytes

#: Beside ``config.json`` and the weights, so that those stay as others read them.
VOCABULARY_FILE = "draft_vocabulary.json"


@dataclass(frozen=True)
class DraftVocabulary:
    """Tokens of the base that a draft scores.

    Args:
        ids: token ids, ascending, each once.
        vocab_size: tokens of the base, V.
        coverage: share of the tokens counted when it was chosen that are in it; None where that is not known.

    Raises:
        UserError: the ids are no subset of the base's.
    """

    ids: tuple[int, ...]
    vocab_size: int
    coverage: float | None = None

    def __post_init__(self) -> None:
        """Check the ids."""
        if not self.ids or list(self.ids) != sorted(set(self.ids)) or self.ids[0] < 0:
            raise UserError("a draft vocabulary is a list of token ids, ascending, each once")
        if self.ids[-1] >= self.vocab_size:
            raise UserError(f"draft vocabulary: token {self.ids[-1]} is not one of the base's {self.vocab_size}")

    @classmethod
    def choose(cls, counts: Tensor, size: int, required: Collection[int]) -> DraftVocabulary:
        """Take the most frequent tokens; of equally frequent ones those of lower id.

        Args:
            counts: ``[V]`` int64, how often the base said each token.
            size: how many to take.
            required: tokens that are taken in any case, such as those that end an answer.

        Raises:
            UserError: ``size`` is beyond the base's vocabulary, or below the number of required tokens.
        """
        if not len(set(required)) <= size <= len(counts) or size < 1:
            raise UserError(
                f"a draft vocabulary of {size} tokens: there are {len(counts)}, and {len(set(required))} are required"
            )
        wanted = counts.clone()
        wanted[list(required)] = torch.iinfo(wanted.dtype).max
        ids = torch.sort(wanted.sort(descending=True, stable=True).indices[:size]).values
        total = int(counts.sum())
        return cls(tuple(ids.tolist()), len(counts), int(counts[ids].sum()) / total if total else None)

    def check(self, vocab_size: int, required: Collection[int] = ()) -> None:
        """Refuse a base that it was not made for.

        Raises:
            UserError: the base has another number of tokens, or a required token is missing.
        """
        if self.vocab_size != vocab_size:
            raise UserError(
                f"the draft vocabulary is of a base with {self.vocab_size} tokens, this one has {vocab_size}"
            )
        missing = sorted(set(required) - set(self.ids))
        if missing:
            raise UserError(f"the draft vocabulary lacks token {missing[0]}, which ends an answer")

    def tensor(self) -> Tensor:
        """``[K]`` int64 ids."""
        return torch.tensor(self.ids)

    def to_json(self) -> str:
        """The content of its file."""
        return json.dumps({"vocab_size": self.vocab_size, "coverage": self.coverage, "ids": list(self.ids)}) + "\n"

    @classmethod
    def read(cls, path: str | Path) -> DraftVocabulary:
        """Read a file that `to_json` wrote, or the one in a folder.

        Raises:
            UserError: it cannot be read or used; names file and cause.
        """
        path = Path(path)
        if path.is_dir():
            path = path / VOCABULARY_FILE
        try:
            content: Any = parse_json(read_bytes(path, "draft vocabulary"))
            ids, vocab_size, coverage = content["ids"], content["vocab_size"], content.get("coverage")
            whole = [vocab_size, *ids]
            if not all(isinstance(entry, int) and not isinstance(entry, bool) for entry in whole):
                raise TypeError("ids and vocab_size must be integers")
            if coverage is not None and not (isinstance(coverage, int | float) and 0 <= coverage <= 1):
                raise TypeError("coverage must be a share or null")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: no draft vocabulary: {type(error).__name__}: {error}") from error
        try:
            return cls(tuple(ids), vocab_size, coverage)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
