"""Which forward a model gets, decided by its kind and proved by numbers."""

import contextlib
import logging
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lit_hass.decoding.forward import BaseForward, TreeForward
from lit_hass.decoding.hf_forward import HFForward
from lit_hass.decoding.lean import LeanForward
from lit_hass.decoding.lean_weights import unsupported
from lit_hass.decoding.slot_forward import SlotForward
from lit_hass.decoding.whole_forward import WholeForward
from lit_hass.errors import UserError
from lit_hass.memory_errors import is_out_of_memory
from lit_hass.numerics import plain_numbers

log = logging.getLogger(__name__)

_LONG, _SHORT = 8, 5


@plain_numbers()
def make_forward(model: PreTrainedModel) -> BaseForward:
    """Return the fastest forward that reproduces ``model``'s own logits.

    A self-test decides (prompts in one batch, cached steps with and without all rows, against the unmodified model). In
    this order: the lean one where the model is of a supported kind; the model's own with a cache, told the positions;
    counting them itself; with a cache that it makes itself; and its forward over whole sequences without any cache.

    Raises:
        UserError: The model is in training mode, or not even its forwards over whole sequences agree with each other.
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
    parts: HFForward | None = None
    for settings in ({}, {"positions": False}, {"positions": False, "own_cache": True}):
        own, reason = take_apart(model, **settings)
        parts = parts or own
        if own is None or (reason := _failure(own, [_LONG])) is not None:
            continue
        own.pads = _failure(own, [_LONG, _SHORT]) is None
        own.batches = own.pads or _failure(own, [_LONG, _LONG]) is None
        if not own.pads:
            log.info("prompts of different lengths are decoded apart: padding changes what this model computes")
        return own
    with _trial() as trial:
        _refuse_nan(model)
        whole = WholeForward(model, parts)
    if trial.error is not None:
        stops = f"{type(model).__name__} cannot be decoded: its own forward stops with {trial.failure}"
        raise trial.error if isinstance(trial.error, UserError) else UserError(stops) from trial.error
    if (different := _failure(whole, [_LONG])) is not None:
        raise UserError(
            f"{type(model).__name__} cannot be decoded token by token: its forwards over a sequence and over its "
            f"beginning disagree ({different}), so it is not causal"
        )
    log.warning(
        "%s: each token takes a forward over the whole sequence, which is slow: its cache cannot be used (%s)",
        type(model).__name__, reason,
    )  # fmt: skip
    return whole


def take_apart(model: PreTrainedModel, **settings: bool) -> tuple[HFForward | None, str | None]:
    """Make a forward of a model's decoder and output layer, or tell why that cannot be.

    Args:
        model: In eval mode.
        **settings: See `HFForward`.
    """
    with _trial() as trial:
        return HFForward(model, **settings), None
    return None, trial.failure


def _failure(forward: BaseForward, lengths: list[int]) -> str | None:
    """What a self-test finds wrong: that the numbers differ, or that the model's code stops with an error."""
    with _trial() as trial:
        error, allowed = max(_errors(forward, lengths)), tolerance(forward.model.dtype)
        if not error <= allowed:
            raise UserError(f"logits differ by {error:.1e} relative, allowed {allowed:.1e}")
    return trial.failure


class _Trial:
    """What came of something that is tried on a model whose code nobody here knows: an error of it is a finding."""

    error: Exception | None = None

    @property
    def failure(self) -> str | None:
        """What went wrong, in a line."""
        if self.error is None or isinstance(self.error, UserError):
            return None if self.error is None else str(self.error)
        return f"{type(self.error).__name__}: {' '.join(str(self.error).split())[:200]}"


@contextlib.contextmanager
def _trial() -> Iterator[_Trial]:
    trial = _Trial()
    try:
        yield trial
    except Exception as error:
        if is_out_of_memory(error):
            raise
        trial.error = error


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
        with _trial() as trial:
            forward = kind(model)
            error, control = tree_errors(forward)
        if trial.error is not None:
            reason = f"{type(model).__name__} cannot verify draft trees: {trial.failure}"
            raise trial.error if isinstance(trial.error, UserError) else UserError(reason) from trial.error
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
    """Relative difference of logits: per row after the prompt and a cached step, of the last row after one more."""
    rows = [(torch.arange(n + 2) * 7 + 3 * n + i) % forward.embedding_size for i, n in enumerate(lengths)]
    with torch.inference_mode():
        cache = forward.new_cache(len(rows), max(lengths) + 2)
        prompt = forward.prefill([row[:-2] for row in rows], cache)
        found = [forward.logits(torch.stack([hidden[-1] for hidden in prompt]))]
        step = torch.stack([row[-2:-1] for row in rows]).to(forward.device)
        found.append(forward.logits(forward.extend(step, cache)[:, -1]))
        if len(rows) > 1:
            cache.select([len(rows) - 1])
        last = forward.logits(forward.extend(rows[-1][None, -1:].to(forward.device), cache)[:, -1])
        errors = []
        for index, row in enumerate(rows):
            expected = forward.model(input_ids=row[None].to(forward.device), use_cache=False).logits[0, -3:].float()
            errors += [_relative(logits[index], expected[place]) for place, logits in enumerate(found)]
    return [*errors, _relative(last[0], expected[2])]


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
