"""How certain the base was where two of its answers part."""

import torch
from torch import Tensor

from lit_hass.decoding.forward import BaseForward
from lit_hass.decoding.noise import gumbel_noise
from lit_hass.decoding.sampling import SamplingConfig, process_logits
from lit_hass.numerics import plain_numbers


def first_divergence(ours: Tensor, theirs: Tensor) -> int | None:
    """The first position at which two 1-D answers differ, or None where they are the same."""
    shared = min(len(ours), len(theirs))
    different = (ours[:shared] != theirs[:shared]).nonzero()
    if len(different):
        return int(different[0])
    return None if len(ours) == len(theirs) else shared


@plain_numbers()
@torch.inference_mode()
def top_two_gap(forward: BaseForward, ids: Tensor, sampling: SamplingConfig, seed: int | None = None) -> float:
    """How far the best token behind a sequence is ahead of the second one, in the scores that choose it.

    In half precision a small gap (a few units of the logits' last place) is a near-tie, which kernels for different
    shapes may round either way; a large one means that something is wrong.

    Args:
        forward: Of the base.
        ids: ``[n]`` int64, prompt and the answer up to where two answers part.
        sampling: Of both answers.
        seed: Of their noise, which counts like the logits where they are sampled; not used for greedy decoding.

    Returns:
        A number >= 0: of logits after penalties, or, sampled, of processed logits plus noise. Infinite where the
        processors leave one token.
    """
    cache = forward.new_cache(1, len(ids))
    hidden = forward.prefill([ids], cache)[0][-1:]
    logits = process_logits(forward.logits(hidden), [ids] if sampling.needs_prefix else None, sampling)
    if not sampling.greedy and seed is not None:
        logits = logits.double() + gumbel_noise(seed, len(ids), logits.shape[-1], logits.device)
    best, second = logits[0].topk(2).values.tolist()
    return best - second
