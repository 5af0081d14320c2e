"""Plain decoding, one token per forward: the baseline, and the definition of what a speculative decoder must give."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lit_hass.decoding.forward import BaseForward
from lit_hass.decoding.generation import TokenState
from lit_hass.decoding.noise import gumbel_rows
from lit_hass.decoding.rows import Decoder, Row, RowBatch
from lit_hass.decoding.sampling import SamplingConfig, choose_tokens, process_logits
from lit_hass.decoding.select_forward import make_forward
from lit_hass.errors import RunError


class AutoregressiveDecoder(Decoder):
    """Decodes token by token, with the same forward, processors and noise as the speculative decoder.

    In float32, greedy output equals ``transformers.generate(do_sample=False)`` with the same processors and stop
    ids, and every row of a batch gives what it gives alone; in half precision near-ties may turn, because a device
    rounds other shapes otherwise.
    """

    def __init__(self, base: PreTrainedModel | BaseForward) -> None:
        """Choose and test the forward for ``base``, a ``transformers`` model in eval mode (or a ready forward).

        Raises:
            UserError: The model cannot be decoded; see ``make_forward``.
        """
        self.forward = base if isinstance(base, BaseForward) else make_forward(base)

    def _decode(self, rows: list[Row], sampling: SamplingConfig, stop: frozenset[int], collect: bool) -> None:
        _Batch(self.forward, rows, sampling, stop, collect).run()


class _Batch(RowBatch):
    """A batch that gains one token per row and step."""

    _tokens: Tensor  # [B] where the embedding is, each row's last

    def _begin(self) -> None:
        capacity = max(len(row.prompt) + row.limit for row in self.rows)
        self._cache = self.forward.new_cache(len(self.rows), capacity)
        states = self._prefill(self._cache, capacity)
        self._choose(torch.stack([prompt_states[-1] for prompt_states in states]))

    def _step(self) -> None:
        hidden = self.forward.extend(self._tokens[:, None], self._cache)[:, 0]
        if self.collect:
            for index, row in enumerate(self.rows):
                row.hidden.append(hidden[index : index + 1])
        self._choose(hidden)

    def _keep(self, running: list[int]) -> None:
        super()._keep(running)
        self._cache.select(running)
        self._tokens = self._tokens[torch.tensor(running, device=self._tokens.device)]

    def _choose(self, hidden: Tensor) -> None:
        """Choose every row's next token from ``[B, H]``; add it, and keep all as ``[B]`` for the embedding."""
        logits = self.forward.logits(hidden)
        rows, sampling = self.rows, self.sampling
        if self.prefixes is not None:
            logits = process_logits(logits, self.prefixes[:, : max(row.length for row in rows)], sampling)
        elif not sampling.greedy:
            logits = process_logits(logits, None, sampling)
        noise = None
        if not sampling.greedy:
            seeds, places = [row.seed for row in rows], [row.length for row in rows]
            noise = gumbel_rows(seeds, places, logits.shape[-1], logits.device)
        tokens = choose_tokens(logits, noise)
        if self.prefixes is not None:
            columns = torch.tensor([row.length for row in rows], device=tokens.device)
            self.prefixes.scatter_(1, columns[:, None], tokens[:, None])
        for row, token in zip(rows, tokens.tolist(), strict=True):  # the one host synchronisation of the step
            if token < 0:
                raise RunError(
                    f"prompt {row.index}: no finite logit at position {row.length} "
                    "(the model returned NaN, or the processors excluded every token)"
                )
            row.add([token], [TokenState.BASELINE], self.stop)
            row.steps += 1
        self._tokens = tokens.to(self.forward.device)
