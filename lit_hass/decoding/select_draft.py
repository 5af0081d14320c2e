"""Which forward a draft gets, and whether base, draft and tree go together."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_hass.decoding.draft_forward import DraftForward, ModuleDraft
from lit_hass.decoding.forward import BaseForward
from lit_hass.decoding.lean_draft import LeanDraft
from lit_hass.decoding.tree_config import TreeConfig
from lit_hass.errors import UserError
from lit_hass.models import DraftModel
from lit_hass.numerics import plain_numbers

log = logging.getLogger(__name__)


def check_pair(forward: BaseForward, draft: DraftModel, tree: TreeConfig) -> None:
    """Refuse a draft or a tree that does not fit the base.

    Raises:
        UserError: Widths, vocabularies, dtypes or devices differ, the draft is in training mode, or ``top_k`` exceeds
            the vocabulary.
    """
    config = draft.config
    if draft.training:
        raise UserError("the draft is in training mode: call draft.eval() first")
    if config.hidden_size != forward.hidden_size:
        raise UserError(
            f"the draft reads features of width {config.hidden_size}, the base gives {forward.hidden_size}: "
            "it belongs to another base"
        )
    if config.vocab_size != forward.vocab_size:
        raise UserError(
            f"the draft knows {config.vocab_size} tokens, the base {forward.vocab_size}: it belongs to another base"
        )
    if draft.dtype != forward.dtype:
        raise UserError(f"the draft is in {draft.dtype}, the base in {forward.dtype}: cast it to the base's dtype")
    if draft.device != forward.output_device:
        raise UserError(
            f"the draft lies on {draft.device}, the base's logits on {forward.output_device}: call "
            f'draft.to("{forward.output_device}") first'
        )
    scored = forward.vocab_size
    if draft.vocabulary is not None:
        draft.vocabulary.check(forward.vocab_size)
        scored = len(draft.vocabulary.ids)
    if tree.top_k > scored:
        raise UserError(f"tree.top_k is {tree.top_k}, the vocabulary has {scored} tokens only")


@dataclass(frozen=True)
class DraftScorer:
    """From the draft's features to logits of the tokens that it proposes.

    Attributes:
        logits: The base's output layer, ``[..., H] -> [..., K]`` in float32.
        ids: ``[K]`` int64, which tokens these are; None are all of the base's, in their order.
    """

    logits: Callable[[Tensor], Tensor]
    ids: Tensor | None = None

    @classmethod
    def of(cls, forward: BaseForward, draft: DraftModel) -> "DraftScorer":
        """Take what the draft's vocabulary needs."""
        if draft.vocabulary is None:
            return cls(forward.logits)
        ids = draft.vocabulary.tensor().to(draft.device)
        return cls(forward.logits_of(ids), ids)


@plain_numbers()
def make_draft_forward(draft: DraftModel) -> DraftForward:
    """Return the hand-written forward where the draft's kind allows and its numbers agree, else the module's own.

    Raises:
        UserError: The draft gives NaN.
    """
    if not LeanDraft.fits(draft):
        return ModuleDraft(draft)
    lean = LeanDraft(draft)
    error = _difference(lean, ModuleDraft(draft), draft)
    allowed = max(1e-4, 16 * torch.finfo(draft.dtype).eps)
    if error <= allowed:
        return lean
    log.info("drafting with the module's own forward: the lean one differs by %.1e (allowed %.1e)", error, allowed)
    return ModuleDraft(draft)


@torch.inference_mode()
def _difference(ours: DraftForward, theirs: DraftForward, draft: DraftModel) -> float:
    """Largest relative difference of two forwards over a ragged batch, a step and a tree.

    Raises:
        UserError: The second one gives NaN.
    """
    vocab, width = draft.config.vocab_size, draft.config.hidden_size
    ids = (torch.arange(12, device=draft.device) * 7 + 3).view(2, 6) % vocab
    features = torch.sin(torch.arange(12 * width, device=draft.device).float()).view(2, 6, width).to(draft.dtype)
    results = [_trial(forward, ids, features) for forward in (ours, theirs)]
    if not all(bool(result.isfinite().all()) for result in results[1]):
        raise UserError("the draft gives no finite numbers; its weights are damaged")
    error = max(((a - b).abs().max() / b.abs().max().clamp(min=1e-30)).item() for a, b in zip(*results, strict=True))
    return error if error == error else float("inf")


def _trial(forward: DraftForward, ids: Tensor, features: Tensor) -> list[Tensor]:
    cache = forward.new_cache(2, 16)
    first = forward.feed(ids, features, [6, 4], cache)
    pair = forward.extend(
        ids[:, :2],
        first[:, None].expand(-1, 2, -1),
        cache,
        0,
        cache.starts[:, None].expand(-1, 2),
        torch.eye(2, dtype=torch.bool, device=ids.device).expand(2, -1, -1),
    )
    second = forward.extend(ids[:, :1], pair[:, :1], cache, 2)
    return [first, pair, second]
