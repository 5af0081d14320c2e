"""Noise that belongs to a place in a sequence, not to a moment in a run.

A sampled token is ``argmax(log p + g)`` with Gumbel noise ``g`` that depends on nothing but the row's seed and the
absolute position of the token. So a sampled answer depends only on model, prompt, settings and seed: neither the
other rows of the batch, nor the order of questions, nor a resumed run, nor the number of tokens that a speculative
decoder looks at in one step can change its noise (the logits are another matter: in half precision their rounding
depends on the shapes of a forward).
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from lit_hass.errors import UserError

_MASK = 2**64 - 1
#: Seeds are smaller than this.
SEED_LIMIT = 2**63


def _splitmix64(x: int) -> int:
    """The output function of splitmix64 (Steele, Lea and Flood, OOPSLA 2014): a bijection of 64-bit integers."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def noise_key(seed: int, position: int) -> int:
    """Mix a seed and a position into the 64-bit seed of that position's generator.

    ``splitmix64(splitmix64(seed) + position)`` modulo 2**64: neighbouring positions and neighbouring seeds give
    unrelated keys, and the positions of one seed never collide. PyTorch's CPU generator uses the low 32 bits of a
    seed only, so there two unrelated places share their noise with probability 2**-32.
    """
    return _splitmix64((_splitmix64(seed) + position) & _MASK)


def gumbel_noise(seed: int, position: int, vocab: int, device: torch.device | str = "cpu") -> Tensor:
    """Draw the Gumbel noise of one position.

    Args:
        seed: The row's seed, ``0 <= seed < 2**63``.
        position: The absolute index of the token to be chosen, prompt included.
        vocab: Number of tokens V.
        device: Where the noise is drawn. Kinds of device have different generators, hence different noise.

    Returns:
        ``[V]`` float64 standard Gumbel variates.
    """
    generator = torch.Generator(device=device).manual_seed(noise_key(seed, position))
    exponential = torch.empty(vocab, dtype=torch.float64, device=device).exponential_(generator=generator)
    # -log of a standard exponential variate is Gumbel; an exact zero would become +inf and win every argmax.
    return exponential.clamp_(min=torch.finfo(torch.float64).tiny).log_().neg_()


def gumbel_rows(seeds: Sequence[int], positions: Sequence[int], vocab: int, device: torch.device | str) -> Tensor:
    """Stack ``gumbel_noise`` of several (seed, position) pairs into ``[R, V]`` float64."""
    pairs = zip(seeds, positions, strict=True)
    return torch.stack([gumbel_noise(seed, position, vocab, device) for seed, position in pairs])


def derive_seed(*parts: int | str) -> int:
    """Derive a row's seed from what identifies it, such as (run seed, question id, choice, turn).

    The same parts give the same seed in every process and on every machine (unlike ``hash``); ``1`` and ``"1"``
    differ, and so do ``("ab", "c")`` and ``("a", "bc")``.

    Returns:
        An integer in ``[0, 2**63)``, from SHA-256.
    """
    text = "\x1f".join(f"{type(part).__name__}:{len(str(part))}:{part}" for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:8], "big") % SEED_LIMIT


def check_seeds(seeds: Sequence[int] | None, count: int) -> list[int]:
    """Return one seed per prompt: the given ones, or 0, 1, 2, ... where none are given.

    Raises:
        UserError: Their number is not ``count``, or one of them is not an integer in ``[0, 2**63)``.
    """
    if seeds is None:
        return list(range(count))
    if len(seeds) != count:
        raise UserError(f"{len(seeds)} seeds for {count} prompts: one seed per prompt is needed")
    for seed in seeds:
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < SEED_LIMIT:
            raise UserError(f"a seed must be an integer in [0, 2**63), got {seed!r}")
    return list(seeds)
