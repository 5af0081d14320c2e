"""Perplexity in all its units, per document, with its uncertainty, as one metric of exact sums."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lit_hass.metrics.exact_states import ordinary_tensors
from lit_hass.metrics.functional.perplexity import (
    Estimate,
    bits,
    paired_estimate,
    perplexity,
    ratio_estimate,
)

_SUMS = ("forwarded", "bos_targets", "windows")


def token_nll(hidden: Tensor, head: Callable[[Tensor], Tensor], targets: Tensor, rows: int = 256) -> Tensor:
    """Negative log-likelihood of tokens from hidden states, without the logits of more than ``rows`` of them at a time.

    Args:
        hidden: ``[N, H]``, what the output layer reads.
        head: takes ``[n, H]`` and returns logits ``[n, V]`` with every scaling and cap in them. It must return a tensor
            that is its caller's: it is overwritten where it is float32 and needs no gradient.
        targets: ``[N]`` int64.
        rows: most rows whose logits exist at once.

    Returns:
        ``[N]`` float32: ``logsumexp(logits) - logits[target]`` in float32 whatever the model's dtype is.
    """
    found = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
    for start in range(0, len(targets), rows):
        part = slice(start, start + rows)
        found[part] = _chunk_nll(head(hidden[part]), targets[part])
    return found


def _chunk_nll(logits: Tensor, targets: Tensor) -> Tensor:
    values = logits.float()
    if values.requires_grad:
        return torch.logsumexp(values, -1) - values.gather(1, targets[:, None])[:, 0]
    chosen = values.gather(1, targets[:, None])[:, 0]
    highest = values.amax(-1)
    # In place: the exponentials need no second tensor of the logits' size.
    values.sub_(highest[:, None]).exp_()
    return values.sum(-1).log_().add_(highest).sub_(chosen)


class Perplexity(Metric):
    """Sums of negative log-likelihoods by document, and everything that is published of them.

    float64 sums and int64 counts whatever the precision around them; merged over ranks by addition, so that any
    sharding without repetitions gives the same numbers.

    Args:
        num_documents: D; documents are numbered from 0.
        kwargs: of `torchmetrics.Metric`.

    Attributes:
        nll: ``[D]`` float64, nats.
        tokens: ``[D]`` int64, scored tokens.
        words: ``[D]`` int64, of `add_text`.
        bytes: ``[D]`` int64, likewise.
        nonfinite: ``[D]`` int64, tokens whose value was infinite or no number; these are in the sums all the same.
        forwarded: int64 scalar, tokens that the model read.
        bos_targets: int64 scalar, scored tokens that are BOS.
        windows: int64 scalar.

    Example:
        >>> import torch
        >>> from lit_hass.metrics import Perplexity
        >>> metric = Perplexity(num_documents=2)
        >>> metric.update(torch.tensor([1.0, 3.0, 2.0, 2.0]), torch.tensor([0, 0, 1, 1]))
        >>> metric.add_text(words=[1, 1], bytes=[5, 5])
        >>> result = metric.compute()
        >>> round(result["token_ppl"].item(), 4), round(result["word_ppl"].item(), 4)
        (7.3891, 54.5982)
        >>> result["ln_word_ppl_se"].item()
        0.0
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = False
    nll: Tensor
    tokens: Tensor
    words: Tensor
    bytes: Tensor
    nonfinite: Tensor
    forwarded: Tensor
    bos_targets: Tensor
    windows: Tensor

    def __init__(self, num_documents: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if num_documents < 1:
            raise ValueError(f"num_documents must be at least 1, found {num_documents}")
        self.num_documents = num_documents
        self.add_state("nll", torch.zeros(num_documents, dtype=torch.float64), dist_reduce_fx="sum")
        for name in ("tokens", "words", "bytes", "nonfinite"):
            self.add_state(name, torch.zeros(num_documents, dtype=torch.int64), dist_reduce_fx="sum")
        for name in _SUMS:
            self.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(
        self,
        nll: Tensor,
        documents: Tensor | int = 0,
        forwarded: int = 0,
        bos_targets: int = 0,
        windows: int = 0,
    ) -> None:
        """Add scored tokens.

        Args:
            nll: ``[N]`` floating, of each token, nats.
            documents: ``[N]`` int64, or one number for all of them.
            forwarded: tokens that the model read for them.
            bos_targets: how many of them are BOS.
            windows: in how many windows they were.

        Raises:
            ValueError: shapes or types that do not fit, or a document out of range. Nothing has been added then.
        """
        if nll.ndim != 1 or not nll.is_floating_point():
            raise ValueError(f"nll must be one floating dimension, found {nll.dtype} of shape {list(nll.shape)}")
        with ordinary_tensors():
            values = nll.detach().to(self.nll.device).to(torch.float64)  # in this order for MPS, which has no float64
            owners = torch.as_tensor(documents, device=self.nll.device)
            if owners.is_floating_point() or owners.ndim > 1 or owners.ndim == 1 and len(owners) != len(values):
                raise ValueError(f"documents must be int64 of shape {list(nll.shape)}, found {list(owners.shape)}")
            owners = owners.to(torch.int64).expand(len(values))
            if len(values) and not 0 <= int(owners.min()) <= int(owners.max()) < self.num_documents:
                raise ValueError(f"documents are numbered 0 to {self.num_documents - 1}")
            self.nll = self.nll.index_add(0, owners, values)
            self.tokens = self.tokens.index_add(0, owners, torch.ones_like(owners))
            self.nonfinite = self.nonfinite.index_add(0, owners, (~torch.isfinite(values)).long())
            self.forwarded = self.forwarded + forwarded
            self.bos_targets = self.bos_targets + bos_targets
            self.windows = self.windows + windows

    def update_from_hidden(
        self,
        hidden: Tensor,
        head: Callable[[Tensor], Tensor],
        targets: Tensor,
        documents: Tensor | int = 0,
        rows: int = 256,
        **counts: int,
    ) -> Tensor:
        """Add scored tokens by their hidden states; logits of more than ``rows`` of them never exist.

        Args:
            hidden: ``[N, H]``, see `token_nll`, as ``head``, ``targets`` and ``rows``.
            head: output layer.
            targets: ``[N]`` int64.
            documents: as in `update`.
            rows: see `token_nll`.
            counts: of `update`.

        Returns:
            ``[N]`` float32, their negative log-likelihoods.
        """
        values = token_nll(hidden, head, targets, rows)
        self.update(values, documents, **counts)
        return values

    def add_text(self, words: Sequence[int], bytes: Sequence[int]) -> None:
        """Add the documents' words and bytes; once in all, on one rank, not for each batch.

        Args:
            words: of each document.
            bytes: of each document.
        """
        with ordinary_tensors():
            for name, values in (("words", words), ("bytes", bytes)):
                state = getattr(self, name)
                added = torch.tensor(list(values), dtype=torch.int64, device=state.device)
                if added.shape != state.shape:
                    raise ValueError(f"{name} of {len(added)} documents, where there are {self.num_documents}")
                setattr(self, name, state + added)

    def add_sums(
        self, nll: Sequence[float], tokens: Sequence[int], forwarded: int = 0, bos_targets: int = 0, windows: int = 0
    ) -> None:
        """Add what the scored tokens of each document add up to.

        Args:
            nll: of each document, nats.
            tokens: of each document.
            forwarded: see `update`, as ``bos_targets`` and ``windows``.
            bos_targets: likewise.
            windows: likewise.
        """
        with ordinary_tensors():
            for name, values in (("nll", nll), ("tokens", tokens)):
                state = getattr(self, name)
                added = torch.tensor(list(values), dtype=state.dtype, device=state.device)
                if added.shape != state.shape:
                    raise ValueError(f"{name} of {len(added)} documents, where there are {self.num_documents}")
                setattr(self, name, state + added)
            for name, count in (("forwarded", forwarded), ("bos_targets", bos_targets), ("windows", windows)):
                setattr(self, name, getattr(self, name) + count)
        self._update_count += 1
        self._computed = None

    def compute(self) -> dict[str, Tensor]:
        """Everything as scalars: float64, and int64 for what is counted.

        Returns:
            ``nll``; ``tokens_scored``, ``words``, ``bytes``, ``tokens_forwarded``, ``bos_targets``, ``windows``,
            ``nonfinite``; ``token_ppl``, ``word_ppl``, ``byte_ppl``, ``bits_per_byte``, ``bits_per_token``; the
            standard errors of the logarithms, over documents, ``ln_token_ppl_se``, ``ln_word_ppl_se``,
            ``ln_byte_ppl_se``; ``mean_document_ppl``, the arithmetic mean of the documents' own token perplexities.
            NaN where nothing was counted, or where fewer than two documents give no standard error.
        """
        nll, tokens, words, size = (getattr(self, name).tolist() for name in ("nll", "tokens", "words", "bytes"))
        total = math.fsum(nll)
        own = [perplexity(s, t) for s, t in zip(nll, tokens, strict=True) if t]
        floats = {
            "nll": total,
            "token_ppl": perplexity(total, sum(tokens)),
            "word_ppl": perplexity(total, sum(words)),
            "byte_ppl": perplexity(total, sum(size)),
            "bits_per_byte": bits(total, sum(size)),
            "bits_per_token": bits(total, sum(tokens)),
            "ln_token_ppl_se": ratio_estimate(nll, tokens).standard_error,
            "ln_word_ppl_se": ratio_estimate(nll, words).standard_error if any(words) else math.nan,
            "ln_byte_ppl_se": ratio_estimate(nll, size).standard_error if any(size) else math.nan,
            "mean_document_ppl": sum(own) / len(own) if own else math.nan,
        }
        counts = {
            "tokens_scored": sum(tokens),
            "words": sum(words),
            "bytes": sum(size),
            "tokens_forwarded": int(self.forwarded),
            "bos_targets": int(self.bos_targets),
            "windows": int(self.windows),
            "nonfinite": int(self.nonfinite.sum()),
        }
        result = {name: torch.tensor(value, dtype=torch.float64) for name, value in floats.items()}
        return result | {name: torch.tensor(value, dtype=torch.int64) for name, value in counts.items()}

    def paired_difference(self, other: Perplexity, unit: str = "words") -> Estimate:
        """``ln`` of this perplexity minus that of another model on the same documents, with its standard error.

        Not a collective call: it compares what the two hold here.

        Args:
            other: of another model, the same documents.
            unit: ``words``, ``bytes`` or ``tokens``: what a document weighs.

        Raises:
            ValueError: the documents differ in number or weight.
        """
        weights = getattr(self, unit)
        if weights.shape != getattr(other, unit).shape or not torch.equal(weights.cpu(), getattr(other, unit).cpu()):
            raise ValueError(f"the two have different documents: their {unit} differ")
        return paired_estimate(other.nll.tolist(), self.nll.tolist(), weights.tolist())

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> Perplexity:
        # A module cast to half precision casts its metrics too; a device without float64 (MPS) gets none of it.
        def keep(tensor: Tensor) -> Tensor:
            if fn(torch.empty(0)).device.type == "mps":
                return tensor
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(keep, exclude_state)  # type: ignore[return-value]
