"""Plain decoding, one token per forward: the baseline, and the definition of what a speculative decoder must give."""

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lit_hass.decoding.clock import device_seconds
from lit_hass.decoding.forward import BaseForward, KVCache
from lit_hass.decoding.generation import Generation, StopReason, TokenFeatures, TokenState
from lit_hass.decoding.noise import check_seeds, gumbel_rows
from lit_hass.decoding.prompts import check_prompts
from lit_hass.decoding.sampling import GREEDY, PREFIX_PAD, SamplingConfig, choose_tokens, process_logits
from lit_hass.decoding.select_forward import make_forward
from lit_hass.errors import RunError


@dataclass
class _Row:
    """One prompt on its way."""

    index: int
    prompt: Tensor
    seed: int
    limit: int
    tokens: list[int] = field(default_factory=list)
    hidden: list[Tensor] = field(default_factory=list)
    seconds: tuple[float, float] = (0.0, 0.0)
    batch: tuple[int, float] = (1, 0.0)  # rows, seconds

    @property
    def length(self) -> int:
        """Position of the next token."""
        return len(self.prompt) + len(self.tokens)


class AutoregressiveDecoder:
    """Decodes token by token, with the same forward, processors and noise as the speculative decoder.

    In float32, greedy output equals ``transformers.generate(do_sample=False)`` with the same processors and stop
    ids, and every row of a batch gives what it gives alone; in half precision near-ties may turn, because a device
    rounds other shapes otherwise. All state belongs to the call.
    """

    def __init__(self, base: PreTrainedModel | BaseForward) -> None:
        """Choose and test the forward for ``base``, a ``transformers`` model in eval mode (or a ready forward).

        Raises:
            UserError: The model cannot be decoded; see ``make_forward``.
        """
        self.forward = base if isinstance(base, BaseForward) else make_forward(base)

    def generate(
        self,
        prompts: Sequence[Tensor],
        max_new_tokens: int,
        sampling: SamplingConfig = GREEDY,
        stop_ids: Collection[int] = (),
        seeds: Sequence[int] | None = None,
        collect_features: bool = False,
    ) -> list[Generation]:
        """Answer the prompts, all in one batch.

        Args:
            prompts: 1-D int64 tensors of any lengths, on any device.
            max_new_tokens: Limit per prompt; the model's context is another (prompt and answer together).
            sampling: How tokens are chosen.
            stop_ids: The first of these ends an answer, as its last token. Those inside a prompt do not count.
            seeds: One per prompt, for sampling; None means 0, 1, 2, ...
            collect_features: Return the features that decoding computes anyway: one for every token of prompt and
                answer but the last, each with the token that follows it.

        Returns:
            One `Generation` per prompt, in order. The times of a batch's rows all begin with the batch; a model for
            which padding is not exact decodes prompts of different lengths in batches of their own, one after another.

        Raises:
            UserError: A prompt is empty, too long or holds ids outside the vocabulary; seeds do not fit.
            RunError: A row has no finite logit.
        """
        limits = check_prompts(self.forward, prompts, max_new_tokens)
        row_seeds = check_seeds(seeds, len(prompts))
        prompts = [prompt.to("cpu", torch.long) for prompt in prompts]
        rows = [_Row(i, p, s, n) for i, (p, s, n) in enumerate(zip(prompts, row_seeds, limits, strict=True))]
        stop = frozenset(stop_ids)
        for batch in self._batches([row for row in rows if row.limit > 0]):
            with torch.inference_mode():
                _Batch(self.forward, batch, sampling, stop, collect_features).run()
        return [_finish(row, stop, collect_features) for row in rows]

    def _batches(self, rows: list[_Row]) -> list[list[_Row]]:
        if self.forward.pads:
            return [rows] if rows else []
        lengths = sorted({len(row.prompt) for row in rows})
        return [[row for row in rows if len(row.prompt) == length] for length in lengths]


class _Batch:
    """One batch on its way: the rows that are still running, and the tensors that follow them."""

    def __init__(
        self, forward: BaseForward, rows: list[_Row], sampling: SamplingConfig, stop: frozenset[int], collect: bool
    ) -> None:
        self.forward, self.rows, self.sampling, self.stop, self.collect = forward, rows, sampling, stop, collect
        self.prefixes: Tensor | None = None  # [B, capacity] on the device, only for penalties

    def run(self) -> None:
        """Fill in the rows' tokens, hidden states and seconds."""
        forward, everyone = self.forward, self.rows
        start = device_seconds(forward.device)
        capacity = max(len(row.prompt) + row.limit for row in self.rows)
        cache = forward.new_cache(len(self.rows), capacity)
        states = forward.prefill([row.prompt for row in self.rows], cache)
        if self.sampling.needs_prefix:
            self.prefixes = torch.full((len(self.rows), capacity), PREFIX_PAD, device=forward.device)
            for index, row in enumerate(self.rows):
                self.prefixes[index, : len(row.prompt)] = row.prompt
        if self.collect:
            for row, prompt_states in zip(self.rows, states, strict=True):
                row.hidden.append(prompt_states)
        tokens = self._choose(torch.stack([prompt_states[-1] for prompt_states in states]))
        del states
        first = time.perf_counter()  # the tokens are on the host, so the device is done
        running = self._running(start, first)
        while running:
            if len(running) < len(self.rows):
                tokens = self._keep(running, tokens, cache)
            hidden = forward.extend(tokens[:, None], cache)[:, 0]
            if self.collect:
                for index, row in enumerate(self.rows):
                    row.hidden.append(hidden[index : index + 1])
            tokens = self._choose(hidden)
            running = self._running(start, first)
        seconds = max(sum(row.seconds) for row in everyone)
        for row in everyone:
            row.batch = (len(everyone), seconds)

    def _choose(self, hidden: Tensor) -> Tensor:
        """Choose every row's next token from ``[B, H]``; note it, and return all as ``[B]`` on the device."""
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
            columns = torch.tensor([row.length for row in rows], device=self.prefixes.device)
            self.prefixes.scatter_(1, columns[:, None], tokens[:, None].to(self.prefixes.device))
        for row, token in zip(rows, tokens.tolist(), strict=True):  # the one host synchronisation of the step
            if token < 0:
                raise RunError(
                    f"prompt {row.index}: no finite logit at position {row.length} "
                    "(the model returned NaN, or the processors excluded every token)"
                )
            row.tokens.append(token)
        return tokens.to(self.forward.device)

    def _running(self, start: float, first: float) -> list[int]:
        """Indices of the rows that need another token; stop the clock of the others."""
        now = first if len(self.rows[0].tokens) == 1 else time.perf_counter()
        running = []
        for index, row in enumerate(self.rows):
            if row.tokens[-1] in self.stop or len(row.tokens) == row.limit:
                row.seconds = (first - start, now - first)
            else:
                running.append(index)
        return running

    def _keep(self, running: list[int], tokens: Tensor, cache: KVCache) -> Tensor:
        """Remove finished rows, so that the others do not pay for them."""
        self.rows = [self.rows[index] for index in running]
        cache.select(running)
        index = torch.tensor(running, device=tokens.device)
        if self.prefixes is not None:
            self.prefixes = self.prefixes[index.to(self.prefixes.device)]
        return tokens[index]


def _finish(row: _Row, stop: frozenset[int], collect: bool) -> Generation:
    """Turn a row into what the caller gets."""
    reason: StopReason = "stop" if row.tokens and row.tokens[-1] in stop else "length"
    return Generation(
        output_ids=torch.tensor(row.tokens, dtype=torch.long),
        stop_reason=reason,
        steps=len(row.tokens),
        prefill_seconds=row.seconds[0],
        decode_seconds=row.seconds[1],
        batch_rows=row.batch[0],
        batch_seconds=row.batch[1],
        features=_features(row) if collect else None,
    )


def _features(row: _Row) -> TokenFeatures | None:
    if not row.hidden:
        return None
    # Copied outside of inference mode, so that the caller may compute gradients through what reads them.
    features = torch.cat(row.hidden).clone()
    token_ids = torch.cat((row.prompt[1:], torch.tensor(row.tokens, dtype=torch.long)))
    states = torch.full_like(token_ids, TokenState.BASELINE)
    states[: len(row.prompt) - 1] = TokenState.PROMPT
    return TokenFeatures(features, token_ids.to(features.device), states.to(features.device))
