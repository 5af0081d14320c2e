"""Which forward a model gets, decided by its kind and proved by numbers."""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lit_hass.decoding.forward import BaseForward, TreeForward
from lit_hass.decoding.hf_forward import HFForward
from lit_hass.decoding.lean import LeanForward
from lit_hass.decoding.lean_weights import unsupported
from lit_hass.decoding.slot_forward import SlotForward
from lit_hass.errors import UserError
from lit_hass.numerics import plain_numbers

log = logging.getLogger(__name__)

_LONG, _SHORT = 8, 5


@plain_numbers()
def make_forward(model: PreTrainedModel) -> BaseForward:
    """Return the fastest forward that reproduces ``model``'s own logits.

    The lean one where the model is of a supported kind and a self-test passes (prompts of unequal length in one
    batch, then a cached step, against the unmodified model), else the model's own.

    Raises:
        UserError: The model is in training mode, or not even its own forward with a cache reproduces its logits.
    """
    if model.training:
        raise UserError("the model is in training mode (dropout would change its answers): call model.eval() first")
    reason = unsupported(model)
    if reason is None:
        lean = LeanForward(model)
        error = max(_errors(lean, [_LONG, _SHORT]))
        if error <= tolerance(model.dtype):
            return lean
        reason = f"the self-test differs by {error:.1e} (allowed {tolerance(model.dtype):.1e})"
    log.info("decoding with the forward of transformers: %s", reason)
    own = HFForward(model)
    error = max(_errors(own, [_LONG]))
    if not error <= tolerance(model.dtype):
        _refuse_nan(model)
        raise UserError(
            f"{type(model).__name__}: cached decoding differs from a full forward by {error:.1e} relative "
            f"(allowed {tolerance(model.dtype):.1e}), so this model cannot be decoded step by step"
        )
    own.pads = max(_errors(own, [_LONG, _SHORT])) <= tolerance(model.dtype)
    if not own.pads:
        log.info("prompts of different lengths are decoded apart: padding changes what this model computes")
    return own


@plain_numbers()
def make_tree_forward(model: PreTrainedModel) -> TreeForward:
    """Return the fastest forward that verifies draft trees on ``model`` as plain forwards of each path would.

    The self-test: prompts of unequal length in one batch, a root with two children; the logits at both children are
    compared with plain forwards of the unmodified model, then one path of each row is committed and the next token's
    logits are compared. The same numbers under a mask that lets the second child see the first must be far off, or
    the test would prove nothing.

    Raises:
        UserError: The model is in training mode, or its trees are wrong; names its type, its attention implementation,
            and both errors.
    """
    if model.training:
        raise UserError("the model is in training mode (dropout would change its answers): call model.eval() first")
    kinds: list[type[TreeForward]] = [SlotForward] if unsupported(model) else [LeanForward, SlotForward]
    for kind in kinds:
        forward = kind(model)
        error, control = tree_errors(forward)
        # In half precision the tolerance may exceed what any mask changes: what proves is the distance of the two.
        if error <= tolerance(model.dtype) and control > max(4 * error, torch.finfo(model.dtype).eps):
            return forward
    _refuse_nan(model)
    raise UserError(
        f"{type(model).__name__} (attention {getattr(model.config, '_attn_implementation', 'eager')}) cannot verify "
        f"draft trees: logits differ from plain forwards by {error:.1e} relative (allowed "
        f"{tolerance(model.dtype):.1e}; a wrong mask gives {control:.1e})"
    )


def _refuse_nan(model: PreTrainedModel) -> None:
    """Name what is wrong with a model that gives no numbers, before anything else is blamed."""
    with torch.inference_mode():
        logits = model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device), use_cache=False).logits
    if not bool(logits.isfinite().all()):
        raise UserError(f"{type(model).__name__}: the model's own logits are not finite; its weights are damaged")


def tolerance(dtype: torch.dtype) -> float:
    """Largest accepted difference of logits, relative to the largest logit."""
    return max(1e-4, 16 * torch.finfo(dtype).eps)


def _errors(forward: BaseForward, lengths: list[int]) -> list[float]:
    """Relative difference of logits, per row after the prompt and per row after one cached step."""
    rows = [(torch.arange(n + 1) * 7 + 3 * n) % forward.embedding_size for n in lengths]
    with torch.inference_mode():
        cache = forward.new_cache(len(rows), max(lengths) + 1)
        prompt = forward.prefill([row[:-1] for row in rows], cache)
        first = forward.logits(torch.stack([hidden[-1] for hidden in prompt]))
        step = torch.stack([row[-1:] for row in rows]).to(forward.device)
        second = forward.logits(forward.extend(step, cache)[:, -1])
        errors = []
        for index, row in enumerate(rows):
            expected = forward.model(input_ids=row[None].to(forward.device), use_cache=False).logits[0, -2:].float()
            errors += [_relative(first[index], expected[0]), _relative(second[index], expected[1])]
    return errors


def tree_errors(forward: TreeForward) -> tuple[float, float]:
    """Largest relative difference of tree logits from plain forwards, with the right mask and with a wrong one."""
    return _tree_error(forward, wrong=False), _tree_error(forward, wrong=True)


def _tree_error(forward: TreeForward, wrong: bool) -> float:
    prompts = [(torch.arange(n) * 7 + 3 * n + 1) % forward.embedding_size for n in (_LONG, _SHORT)]
    nodes = [[(11 * n + 5 * k + 2) % forward.embedding_size for k in range(4)] for n in (_LONG, _SHORT)]
    rows = len(prompts)
    # The root (0) with children 1 and 2; node 3 hangs on node 2.
    visible = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [1, int(wrong), 1, 0], [1, int(wrong), 1, 1]]).bool()
    depths = torch.tensor([0, 1, 1, 2])
    paths = [[0, 2, 3], [0, 1]]
    device = forward.device
    with torch.inference_mode():
        cache = forward.new_cache(rows, _LONG + 8)
        forward.prefill(prompts, cache)
        hidden = forward.verify(
            torch.tensor(nodes, device=device),
            depths.expand(rows, -1).to(device),
            visible.expand(rows, -1, -1).to(device),
            cache,
        )
        got = [
            (_own(forward, p, t, path), forward.logits(hidden[b, path[-1]]))
            for b, (p, t) in enumerate(zip(prompts, nodes, strict=True))
            for path in ([0], [0, 1], [0, 2], [0, 2, 3])
        ]
        forward.keep(torch.tensor([[0, 2, 3], [0, 1, 1]], device=device), [3, 2], cache)
        step = torch.tensor([[nodes[0][1]], [nodes[1][2]]], device=device)
        one = torch.ones(rows, 1, 1, dtype=torch.bool, device=device)
        after = forward.verify(step, torch.zeros(rows, 1, dtype=torch.long, device=device), one, cache)
        for b, path in enumerate(paths):
            whole = [nodes[b][i] for i in path] + [int(step[b, 0])]
            got.append((_own(forward, prompts[b], whole, range(len(whole))), forward.logits(after[b, 0])))
        return max(_relative(ours, expected) for expected, ours in got)


def _own(forward: BaseForward, prompt: Tensor, tokens: Sequence[int], path: Sequence[int]) -> Tensor:
    """The unmodified model's logits behind a prompt and some tokens."""
    ids = torch.cat((prompt, torch.tensor([tokens[i] for i in path])))
    return forward.model(input_ids=ids[None].to(forward.device), use_cache=False).logits[0, -1].float()


def _relative(logits: Tensor, expected: Tensor) -> float:
    scale = expected.abs().max().clamp(min=1e-30)
    error = ((logits - expected.to(logits.device)).abs().max() / scale.to(logits.device)).item()
    return error if error == error else float("inf")
