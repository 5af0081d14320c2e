"""Collapse metrics of a model's features, from the first row to the numbers; the collector without a Trainer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_hass.errors import RunError, UserError
from lit_hass.features.config import CollapseConfig
from lit_hass.features.extraction import special_ids
from lit_hass.features.other_layers import read_layer
from lit_hass.features.rows import RowBlock
from lit_hass.features.scopes import SCOPES, Sums, add_rows, by_scope, kept_groups, merged, new_sums, stream_groups
from lit_hass.features.sequence_chunks import sequence_chunks
from lit_hass.features.sequences import PROMPT, FeatureSequence
from lit_hass.features.store import FeatureStore
from lit_hass.features.token_text import token_names
from lit_hass.memory_errors import is_out_of_memory
from lit_hass.metrics.accumulator import STATE_NAMES
from lit_hass.metrics.classifier_rows import Classifier

_COUNTS = ("questions", "questions_without_features", "questions_failed", "sequences", "n_left_out_states")


class CollapseMeasurement:
    """Takes features in, keeps memory within bounds, and computes the collapse metrics.

    A `FeatureStore` bounds what is in memory; its rows are folded into two accumulators (`CollapseMetrics`), of the
    prompts' rows and of the others, whose sum is "overall". With several processes each holds its own share and
    `get_collapse_metrics` adds them up. A context manager that lets go of everything.

    Args:
        num_features: d.
        config: see there.
        classifier: the output layer's weight ``[V, d]``, or a function that returns it when it is needed; None leaves
            out NC3, UNC3 and the linear side of NC4.
        special: token ids whose rows are left out of everything but chunks.
        num_classes: V; token ids from V on are an error.
        paired: keep sums for a draft's predictions (linear CKA).
        token_name: gives a token's text for the results.
        folder: for spilled rows; None is `config.spill_dir`.
        rank: of this process.

    Attributes:
        store: the rows that wait, and the sample that is kept.
        sums: the accumulators by scope.
        chunks: entropies along each sequence.
        counts: what else was counted.
        told: values whose being undefined is in the log already.
        whole: False where an error or an interruption came amid an update, so that the sums are of no use any more.

    Example:
        >>> import torch
        >>> from lit_hass.features import CollapseConfig, CollapseMeasurement
        >>> with CollapseMeasurement(3, CollapseConfig(chunks=0), classifier=torch.eye(3)) as measurement:
        ...     measurement.add_batch_features(torch.eye(3).repeat(4, 1), torch.arange(3).repeat(4))
        ...     metrics = measurement.get_collapse_metrics()
        >>> metrics["total_tokens"], round(metrics["overall_metrics"]["svd_entropy"], 4)
        (12, 1.0986)
        >>> metrics["token_metrics"]["0"]["num_samples"]
        4
    """

    def __init__(
        self,
        num_features: int,
        config: CollapseConfig = CollapseConfig(),
        classifier: Classifier | None = None,
        special: Collection[int] = (),
        num_classes: int | None = None,
        paired: bool = False,
        token_name: Callable[[int], str | None] | None = None,
        folder: str | Path | None = None,
        rank: int = 0,
    ) -> None:
        self.num_features, self.config, self.classifier = num_features, config, classifier
        self.special, self.num_classes, self.paired = tuple(sorted({int(i) for i in special})), num_classes, paired
        self.token_name = token_name
        # Rejected rows have no token; the accumulators want one that is not left out.
        self._placeholder = next(i for i in range(len(self.special) + 1) if i not in set(self.special))
        self._states = {STATE_NAMES.index(name) for name in config.states}
        # Without a sample nothing is kept beyond the host's buffer.
        keeps = config.compute_token_metrics or config.compute_class_metrics
        self._began_with = config.deciding_state()
        streams = self._streams if config.compute_overall_metrics else None
        self.store = FeatureStore(num_features, config, self._fold, self._group, keeps, folder, rank, by_scope, streams)
        self._reset()

    @classmethod
    def for_model(
        cls, model: Any, tokenizer: Any = None, config: CollapseConfig = CollapseConfig(), **more: Any
    ) -> CollapseMeasurement:
        """Make one for a `transformers` model: width and classifier are its output layer's; other layers have none.

        Args:
            model: with an output layer.
            tokenizer: names tokens and special ones; None leaves nothing out.
            config: see there.
            more: further arguments of the class.

        Raises:
            UserError: there is no output layer, no such layer, or special tokens are asked for without a tokenizer.
        """
        width, classes, classifier = read_layer(model, config.layer)
        which = config.special_tokens
        if tokenizer is None:
            special = () if isinstance(which, str) else tuple(which)
        else:
            special = special_ids(tokenizer, which)
        settings = {"special": special, "num_classes": classes, "token_name": token_names(tokenizer), **more}
        return cls(width, config, classifier, **settings)

    def clear(self, files: bool = True) -> None:
        """Forget everything and let go of its memory; with ``files`` also delete spilled rows."""
        self.store.clear(files)
        self._began_with = self.config.deciding_state()
        self._reset()

    def _reset(self) -> None:
        self.sums: dict[str, Sums] = {}
        for scope in SCOPES:
            sums = self._new_sums(self.paired and scope == "answer")
            if sums is not None:
                self.sums[scope] = sums
        self.whole = True
        self.chunks, self.told = list[dict[str, Any]](), set[str]()
        self.counts: dict[str, int] = dict.fromkeys(_COUNTS, 0)

    def _new_sums(self, paired: bool) -> Sums | None:
        return new_sums(self.num_features, self.config, self.classifier, self.special, self.num_classes, paired)

    # -- rows -------------------------------------------------------------------------------------------------------

    def add_sequence(self, sequence: FeatureSequence) -> None:
        """Add the rows of one sequence; its device may be any.

        Raises:
            ValueError, RunError: see `check`; nothing has been added then.
        """
        self._check_settings()
        self.check(sequence)
        before = self.store.rows_added
        for block in sequence.blocks(self._states, self._placeholder, self.config.hash_salt):
            paired = block.paired if self.paired else None
            self.store.add_features(block.features, block.token_ids, block.states, block.keys, paired)
        rows = len(sequence.token_ids) + len(sequence.rejected)
        self.counts["n_left_out_states"] += rows - (self.store.rows_added - before)
        self.counts["sequences"] += 1
        if self.config.compute_overall_metrics and self.config.chunks:
            self.chunks.append(sequence_chunks(sequence, self.config))

    def add_question(self, sequences: Sequence[FeatureSequence]) -> None:
        """Add the sequences of one answered question, and count it; without sequences it had no features."""
        for sequence in sequences:
            self.add_sequence(sequence)
        self.counts["questions"] += 1
        self.counts["questions_without_features"] += not sequences

    def add_batch_features(self, features: Tensor, token_ids: Tensor, states: Tensor | None = None) -> None:
        """Add rows as `extract_features` returns them.

        Args:
            features: ``[n, d]`` floating.
            token_ids: ``[n]`` int64.
            states: ``[n]`` int64 codes; None is text that was given (prompt).

        Raises:
            ValueError, RunError: as `add_sequence`.
        """
        if states is None:
            states = torch.full_like(token_ids, PROMPT)
        self._check_settings()
        if self.config.nan_strategy == "error":
            self._refuse_nan(features, f"a batch of {len(features)} rows")
        self.store.add_features(features, token_ids, states)

    def check(self, sequence: FeatureSequence) -> None:
        """Refuse what cannot be added, before any of it is.

        Raises:
            ValueError: a width that does not fit, or settings that were changed.
            RunError: with ``nan_strategy="error"``: a number that is not finite; names the sequence.
        """
        streams = [sequence.features, sequence.rejected, *([sequence.draft_features] if self.paired else [])]
        widths = {x.shape[-1] for x in streams if len(x)}
        if widths - {self.num_features}:
            raise ValueError(f"features of width {sorted(widths)} where {self.num_features} is expected")
        if self.config.nan_strategy == "error":
            for x in streams:
                self._refuse_nan(x, ", ".join(map(str, sequence.name)))

    def _check_settings(self) -> None:
        now = self.config.deciding_state()
        changed = [name for name, value in self._began_with.items() if now[name] != value]
        if changed:
            raise ValueError(f"{', '.join(changed)} decide what is counted already and were changed; clear() first")

    def _refuse_nan(self, rows: Tensor, name: str) -> None:
        stored = rows.to(self.store.storage_dtype(rows.dtype))  # float16 has no room for large numbers
        bad = int((~torch.isfinite(stored).all(1)).sum())
        if bad:
            raise RunError(f"{name}: {bad} feature rows are not finite, and collapse.nan_strategy is error")

    def _fold(self, block: RowBlock) -> None:
        """Add rows of one scope to its accumulator; what the store calls."""
        assert block.states is not None
        scope = "prompt" if int(block.states[0]) == PROMPT else "answer"
        if scope not in self.sums:
            return
        self.whole = False
        try:
            add_rows(self.sums[scope], block)
        except (ValueError, MemoryError, RuntimeError) as error:
            self.whole = isinstance(error, ValueError) or is_out_of_memory(error)  # nothing was added
            raise
        self.whole = True

    def _group(self, block: RowBlock) -> Tensor:
        return kept_groups(block, self.special)

    def _streams(self, block: RowBlock) -> list[Tensor]:
        return stream_groups(block, self.special)

    # -- numbers ------------------------------------------------------------------------------------------------------

    def get_collapse_metrics(self, sync: bool = True, brief: bool = False) -> dict[str, Any]:
        """Return all metrics as plain JSON types; what is undefined is None, and ``undefined`` says why.

        With several processes this is a collective call: all of them make it, and all get the same.

        Args:
            sync: False for this process's share alone; then not collective.
            brief: for a look while the run goes: of `EQUAL_ROWS` only the smallest.
        """
        from lit_hass.features.collapse_metrics import collapse_metrics

        self._check_settings()
        self.store.consolidate()
        return collapse_metrics(self, sync, brief)

    def overall(self) -> Sums | None:
        """Both scopes together, of this process."""
        return merged(lambda: self._new_sums(self.paired), self.sums)

    # -- end and resume -----------------------------------------------------------------------------------------------

    def identity(self) -> dict[str, Any]:
        """What the state depends on; states of another identity are not to be merged."""
        return {
            **self.config.deciding_state(),
            "num_features": self.num_features,
            "special_ids": list(self.special),
            "paired": self.paired,
        }

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that was measured, as tensors and plain JSON values."""
        kept, store = self.store.state()
        tensors = {f"kept.{name}": value for name, value in kept.items()}
        for scope, sums in self.sums.items():
            states: dict[str, Any] = sums.metric_state
            tensors |= {f"{scope}.{name}": value.cpu() for name, value in states.items()}
        # Questions that failed are asked again by a resume, which counts them again.
        counts = {name: value for name, value in self.counts.items() if name != "questions_failed"}
        return tensors, {"store": store, "chunks": self.chunks, "counts": counts, "identity": self.identity()}

    def merge(self, tensors: dict[str, Tensor], plain: dict[str, Any]) -> None:
        """Take in the `state` of another measurement.

        Raises:
            UserError: it was made with other settings; names them.
            RunError: its spilled rows are gone.
        """
        # Earlier versions had the last layer only, and did not say so.
        mine, theirs = self.identity(), {"layer": -1, **plain["identity"]}
        differing = sorted(name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name))
        if differing:
            shown = "; ".join(f"{name}: was {theirs.get(name)!r}, now {mine.get(name)!r}" for name in differing)
            raise UserError(
                f"collected features belong to other collapse settings ({shown}); resume with those, or begin anew"
            )
        self.store.merge(_under("kept", tensors), plain["store"])
        for scope, sums in self.sums.items():
            sums.merge_state({name: value.to(sums.device) for name, value in _under(scope, tensors).items()})
        self.chunks += plain["chunks"]
        for name, value in plain["counts"].items():
            self.counts[name] = self.counts.get(name, 0) + value

    def __enter__(self) -> CollapseMeasurement:
        """Return the measurement."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Let go of everything."""
        self.clear()


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name[len(prefix) + 1 :]: value for name, value in tensors.items() if name.startswith(prefix + ".")}
