"""From logits to the next token: the settings, the processing in ``transformers``' order, and the choice."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lit_hass.errors import UserError

#: At or below this temperature decoding is greedy (EAGLE's threshold).
GREEDY_TEMPERATURE = 1e-5
#: Fills the right end of rows in a padded matrix of prefixes; never a token.
PREFIX_PAD = -1


@dataclass(frozen=True)
class SamplingConfig:
    """How the next token is chosen; the names, meanings and order of application are those of ``generate``.

    The penalties see the whole sequence, prompt included, as in ``transformers.generate``.

    Attributes:
        temperature: Divides the logits. At or below 1e-5 decoding is greedy, and temperature, ``top_k`` and
            ``top_p`` play no part.
        top_p: Keeps the smallest set of most probable tokens whose probability reaches ``top_p``; 1 is off.
        top_k: Keeps the ``top_k`` most probable tokens (and those tied with the last of them); 0 is off.
        repetition_penalty: Divides positive and multiplies negative logits of tokens already seen; 1 is off.
        no_repeat_ngram_size: Forbids tokens that would complete an n-gram already seen; 0 is off.

    Raises:
        UserError: A value lies outside its range; the message names the field.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0

    def __post_init__(self) -> None:
        """Refuse values that have no meaning."""
        _check(self, "temperature", lambda x: x >= 0, "a finite number >= 0")
        _check(self, "top_p", lambda x: 0 < x <= 1, "a number in (0, 1]")
        _check(self, "repetition_penalty", lambda x: x > 0, "a finite number > 0")
        for name in ("top_k", "no_repeat_ngram_size"):
            if not isinstance(getattr(self, name), int):
                raise UserError(f"sampling.{name} must be a whole number >= 0, got {getattr(self, name)!r}")
            _check(self, name, lambda x: x >= 0, "a whole number >= 0")

    @property
    def greedy(self) -> bool:
        """Whether the most probable token is taken, without any noise."""
        return self.temperature <= GREEDY_TEMPERATURE

    @property
    def needs_prefix(self) -> bool:
        """Whether the tokens before the next one change its distribution beyond the model itself."""
        return self.repetition_penalty != 1.0 or self.no_repeat_ngram_size > 0


def _check(config: SamplingConfig, name: str, valid: Callable[[float], bool], meaning: str) -> None:
    value = getattr(config, name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or not valid(value):
        raise UserError(f"sampling.{name} must be {meaning}, got {value!r}")


#: The default of every decoder.
GREEDY = SamplingConfig()


def process_logits(logits: Tensor, prefixes: Tensor | Sequence[Tensor] | None, sampling: SamplingConfig) -> Tensor:
    """Apply the processors of ``sampling``, equal to ``transformers``' own and in its order.

    Repetition penalty, no-repeat-n-gram, temperature, top-k, top-p. Identities are skipped; in greedy mode the last
    three are skipped too, because they never change the largest logit.

    Args:
        logits: ``[R, V]`` float32, the model's own logits; not modified.
        prefixes: The true tokens before each row's next one, prompt included: R 1-D int64 tensors, or ``[R, n]``
            int64 filled up on the right with ``PREFIX_PAD``. May be None when ``sampling.needs_prefix`` is false.
        sampling: The settings.

    Returns:
        ``[R, V]`` float32 logits of the distribution to draw from, ``-inf`` where a token is excluded.

    Raises:
        ValueError: A penalty is on and ``prefixes`` is None.
    """
    if sampling.needs_prefix:
        if prefixes is None:
            raise ValueError("repetition_penalty and no_repeat_ngram_size need the prefixes of all rows")
        ids = prefixes if isinstance(prefixes, Tensor) else _pad(prefixes)
        ids = ids.to(logits.device)
        if sampling.repetition_penalty != 1.0:
            logits = _repetition_penalty(logits, ids, sampling.repetition_penalty)
        if sampling.no_repeat_ngram_size > 0:
            logits = _ban_repeated_ngrams(logits, ids, sampling.no_repeat_ngram_size)
    if sampling.greedy:
        return logits
    if sampling.temperature != 1.0:
        logits = logits / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        kept = logits.topk(sampling.top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < kept, -math.inf)
    if sampling.top_p < 1.0:
        logits = _top_p(logits, sampling.top_p)
    return logits


def choose_tokens(logits: Tensor, noise: Tensor | None = None) -> Tensor:
    """Take the largest logit of each row, after adding Gumbel noise where there is any.

    ``argmax(log p + g)`` with Gumbel noise ``g`` is a draw from ``p``; the normalising constant of ``log p`` is the
    same for all tokens of a row and is left out.

    Args:
        logits: ``[R, V]`` float32, processed.
        noise: ``[R, V]`` float64, or None for greedy decoding.

    Returns:
        ``[R]`` int64 token ids; -1 for a row without a finite logit (NaN, or every token excluded), so that the
        caller finds broken rows in the tokens themselves, without another device synchronisation.
    """
    scores = logits if noise is None else logits.double() + noise
    values, tokens = scores.max(dim=-1)
    return torch.where(values > -math.inf, tokens, -1)  # NaN compares false


def _pad(prefixes: Sequence[Tensor]) -> Tensor:
    return pad_sequence(list(prefixes), batch_first=True, padding_value=PREFIX_PAD)


def _mark(ids: Tensor, valid: Tensor, vocab: int) -> Tensor:
    """``[R, V]`` bool, true for the tokens of each row of ``ids`` where ``valid``."""
    # A spare column takes what must not count: padding, and ids beyond an output layer smaller than the embedding.
    columns = torch.where(valid, ids.clamp(max=vocab), vocab)
    marked = torch.zeros(ids.shape[0], vocab + 1, dtype=torch.bool, device=ids.device)
    return marked.scatter_(1, columns, True)[:, :vocab]


def _repetition_penalty(logits: Tensor, ids: Tensor, penalty: float) -> Tensor:
    seen = _mark(ids, ids >= 0, logits.shape[-1])
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def _ban_repeated_ngrams(logits: Tensor, ids: Tensor, size: int) -> Tensor:
    if ids.shape[1] < size:
        return logits
    lengths = (ids >= 0).sum(dim=1, keepdim=True)
    suffix = lengths - (size - 1) + torch.arange(size - 1, device=ids.device)  # [R, size - 1]
    context = ids.gather(1, suffix.clamp(min=0))
    windows = ids.unfold(1, size, 1)  # [R, W, size]
    # A window that ends in padding reaches past the row's own prefix. A row shorter than `size` has no other kind.
    matches = (windows[..., :-1] == context[:, None]).all(dim=-1) & (windows[..., -1] >= 0)
    return logits.masked_fill(_mark(windows[..., -1], matches, logits.shape[-1]), -math.inf)


def _top_p(logits: Tensor, top_p: float) -> Tensor:
    ascending, order = logits.sort(dim=-1)
    removed = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - top_p
    removed[..., -1] = False
    return logits.masked_fill(removed.scatter(-1, order, removed), -math.inf)
