"""All protocols of a run as one list of windows, each read once, and as batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from lit_hass.data.perplexity_protocols import Recipe
from lit_hass.data.perplexity_tokens import TextTokens, TokenSequence
from lit_hass.data.perplexity_windows import Window


@dataclass(frozen=True)
class RecipePlan:
    """What one recipe scores.

    Attributes:
        recipe: the settings; unit and mean have no say here.
        windows: indices into the run's windows, in text order.
        documents: how many documents the sums are kept of.
        document_kind: ``pages``, or ``windows`` where the tokenizer does not tell which page a token is of.
        scored: targets.
        forwarded: tokens read.
        dropped: tokens behind the last window (or beyond the cut of a truncated text).
        unscored: tokens that nothing predicts, or that are context only.
        text_tokens: tokens of the text, without special ones.
        bos_targets: scored targets that are BOS.
        empty_documents: texts without a window.
        sequence_tokens: T of each text.
    """

    recipe: Recipe
    windows: tuple[int, ...] = field(repr=False)
    documents: int
    document_kind: str
    scored: int
    forwarded: int
    dropped: int
    unscored: int
    text_tokens: int
    bos_targets: int
    empty_documents: int
    sequence_tokens: tuple[int, ...] = field(repr=False)

    @property
    def whole_text(self) -> bool:
        """Whether all tokens of the pages themselves are scored, so that sums belong to the pages' words and bytes."""
        return self.recipe.text in ("pages", "detokenised") and not self.dropped and not self.unscored


@dataclass(frozen=True)
class PlannedWindow:
    """A window of the run.

    Attributes:
        sequence: index of the token sequence.
        window: what is read and scored.
        members: for each recipe that it belongs to, the recipe's index and the window's place in it.
    """

    sequence: int
    window: Window
    members: tuple[tuple[int, int], ...]


@dataclass  # not frozen: Lightning rebuilds batches under some precisions, and refuses frozen ones
class WindowBatch:
    """Windows to be read together; none where a rank has nothing to do.

    Attributes:
        input_ids: ``[B, S]`` int64, padded on the right with zeros; no mask, because nothing scored sees a pad.
        lengths: tokens of each row.
        positions: ``[N]`` int64 places of the scored outputs in the flattened batch, row by row.
        targets: ``[N]`` int64, the token behind each of them.
        owners: ``[N]`` int64, the row of each of them.
        pages: ``[N]`` int64, the page of each target; -1 where nobody knows it.
        windows: index in the run of each row.
        members: as in `PlannedWindow`, of each row.
    """

    input_ids: Tensor
    lengths: tuple[int, ...]
    positions: Tensor
    targets: Tensor
    owners: Tensor
    pages: Tensor
    windows: tuple[int, ...]
    members: tuple[tuple[tuple[int, int], ...], ...]

    def to(self, device: torch.device | str) -> WindowBatch:
        """The batch on another device (Lightning moves batches by this name)."""
        names = ("input_ids", "positions", "targets", "owners", "pages")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})


class EvaluationPlan:
    """Which windows a run reads, for which recipes, in which batches.

    Windows that several recipes have in common are read once. Batches are made of all windows before they are dealt to
    ranks, so that what is computed does not depend on the number of ranks.

    Args:
        tokens: of the text.
        recipes: those that are scored; equal ones, but for mean and unit, share a plan.
        batch_tokens: tokens of a batch with its padding; a longer window is a batch of its own.
        equal_lengths: only windows of one length share a batch (for models whose positions depend on the longest row).

    Attributes:
        recipes: a plan of each recipe, in order.
        windows: all windows of the run.
        bos: the tokenizer's BOS; None where it has none.
        batches: their indices, the longest windows first, so that a lack of memory shows at once.

    Raises:
        UserError: a recipe needs a special token that the tokenizer does not have.
    """

    def __init__(
        self, tokens: TextTokens, recipes: Sequence[Recipe], batch_tokens: int, equal_lengths: bool = False
    ) -> None:
        self._sequences: list[TokenSequence] = []
        self._interned: dict[bytes, int] = {}
        self.bos: int | None = tokens.tokenizer.bos_token_id
        # Of each window, in which recipes it is, and at which place.
        members: dict[tuple[int, Window], list[tuple[int, int]]] = {}
        order: dict[tuple[int, Window], int] = {}
        self.recipes: list[RecipePlan] = []
        for index, recipe in enumerate(recipes):
            self.recipes.append(self._plan(index, recipe, tokens, members, order))
        self.windows = [PlannedWindow(*key, tuple(found)) for key, found in members.items()]
        self.batches = _batches(self.windows, batch_tokens, equal_lengths)

    def _plan(
        self,
        index: int,
        recipe: Recipe,
        tokens: TextTokens,
        members: dict[tuple[int, Window], list[tuple[int, int]]],
        order: dict[tuple[int, Window], int],
    ) -> RecipePlan:
        windows: list[int] = []
        counts = {"scored": 0, "forwarded": 0, "dropped": 0, "unscored": 0, "bos_targets": 0, "empty_documents": 0}
        sequences = tokens.sequences(recipe)
        for sequence in sequences:
            place = self._intern(sequence)
            planned = recipe.plan(len(sequence), tokens.bos)
            for window in planned:
                key = (place, window)
                order.setdefault(key, len(order))
                members.setdefault(key, []).append((index, len(windows)))
                windows.append(order[key])
                counts["scored"] += window.scored
                counts["forwarded"] += window.read
                if self.bos is not None:
                    targets = sequence.ids[window.targets.start : window.targets.stop]
                    counts["bos_targets"] += int((targets == self.bos).sum())
            counts["empty_documents"] += not planned
            # A prefix is no text, so nothing of the text is missing where it is not scored or not even read.
            special = 1 if recipe.special in ("prefix", "both") else 0
            read = planned[-1].stop + 1 if planned else special
            counts["dropped"] += len(sequence) - read
            counts["unscored"] += read - sum(window.scored for window in planned) - special
        paged = all(sequence.pages is not None for sequence in sequences)
        return RecipePlan(
            recipe,
            tuple(windows),
            len(tokens.text.pages) if paged else max(len(windows), 1),
            "pages" if paged else "windows",
            text_tokens=sum(sequence.text_tokens for sequence in sequences),
            sequence_tokens=tuple(map(len, sequences)),
            **counts,
        )

    def _intern(self, sequence: TokenSequence) -> int:
        if sequence.key not in self._interned:
            self._interned[sequence.key] = len(self._sequences)
            self._sequences.append(sequence)
        return self._interned[sequence.key]

    @property
    def largest_id(self) -> int:
        """The largest token id in any sequence; -1 without one."""
        return max((int(sequence.ids.max()) for sequence in self._sequences if len(sequence)), default=-1)

    def same_windows(self, one: int, other: int) -> bool:
        """Whether two recipes score the same tokens in the same windows."""
        return self.recipes[one].windows == self.recipes[other].windows

    def batch(self, indices: Sequence[int]) -> WindowBatch:
        """Put windows into tensors."""
        chosen = [self.windows[i] for i in indices]
        width = max((item.window.read for item in chosen), default=0)
        ids = torch.zeros(len(chosen), width, dtype=torch.int64)
        parts: dict[str, list[Tensor]] = {name: [] for name in ("positions", "targets", "owners", "pages")}
        for row, item in enumerate(chosen):
            window, sequence = item.window, self._sequences[item.sequence]
            ids[row, : window.read] = sequence.ids[window.start : window.stop]
            if window.first is not None:
                ids[row, 0] = window.first
            targets = slice(window.targets.start, window.targets.stop)
            begin = row * width + window.read - window.scored
            parts["positions"].append(torch.arange(begin, begin + window.scored))
            parts["targets"].append(sequence.ids[targets])
            parts["owners"].append(torch.full((window.scored,), row))
            unknown = torch.full((window.scored,), -1)
            parts["pages"].append(unknown if sequence.pages is None else sequence.pages[targets])
        empty = [torch.zeros(0, dtype=torch.int64)]
        tensors: Mapping[str, Tensor] = {name: torch.cat(found or empty) for name, found in parts.items()}
        return WindowBatch(
            ids,
            tuple(item.window.read for item in chosen),
            **tensors,
            windows=tuple(indices),
            members=tuple(item.members for item in chosen),
        )


def _batches(windows: Sequence[PlannedWindow], batch_tokens: int, equal_lengths: bool) -> list[list[int]]:
    """Group windows of similar length, longest first; of equal ones those of the first recipe come first."""
    batches: list[list[int]] = []
    width = 0
    for index in sorted(range(len(windows)), key=lambda i: (-windows[i].window.read, windows[i].members[0], i)):
        length = windows[index].window.read
        fits = batches and width * (len(batches[-1]) + 1) <= batch_tokens and (length == width or not equal_lengths)
        if fits:
            batches[-1].append(index)
        else:
            batches.append([index])
            width = length
    return batches
