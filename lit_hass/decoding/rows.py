"""What both decoders share: the rows of a batch, from prompts to what the caller gets."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lit_hass.decoding.clock import Clocks, device_seconds, read_clocks
from lit_hass.decoding.forward import BaseForward, KVCache
from lit_hass.decoding.generation import Generation, StopReason, TokenFeatures, TokenState
from lit_hass.decoding.noise import check_seeds
from lit_hass.decoding.prompts import check_prompts
from lit_hass.decoding.sampling import GREEDY, PREFIX_PAD, SamplingConfig
from lit_hass.errors import UserError
from lit_hass.numerics import plain_numbers


@dataclass
class Row:
    """One prompt on its way.

    Attributes:
        index: Place in the call.
        prompt: ``[n]`` int64 on the CPU.
        seed: Of the noise.
        limit: Tokens that the answer may have.
        tokens: The answer so far.
        states: How each of its tokens came to be there.
        accept_lengths: Accepted draft tokens per step.
        steps: Forwards of the base; without the prompt's where a draft is used.
        hidden: The base's features of prompt and answer, where they are collected.
        rejected: Those of draft nodes that it dropped, likewise.
        drafted: The draft's predictions behind accepted tokens, likewise.
        drafted_rows: The rows of ``hidden`` that these predict.
        times: Until the first token, and from then on.
        draft_seconds: Of the draft's pass over the prompt.
        batch_rows: Rows of its batch.
        batch_time: From the start of that batch until its last row was done.
    """

    index: int
    prompt: Tensor
    seed: int
    limit: int
    tokens: list[int] = field(default_factory=list)
    states: list[int] = field(default_factory=list)
    accept_lengths: list[int] = field(default_factory=list)
    steps: int = 0
    hidden: list[Tensor] = field(default_factory=list)
    rejected: list[Tensor] = field(default_factory=list)
    drafted: list[Tensor] = field(default_factory=list)
    drafted_rows: list[int] = field(default_factory=list)
    times: tuple[Clocks, Clocks] = (Clocks(0.0, 0.0), Clocks(0.0, 0.0))
    draft_seconds: float = 0.0
    batch_rows: int = 1
    batch_time: Clocks = Clocks(0.0, 0.0)

    @property
    def length(self) -> int:
        """Position of the next token."""
        return len(self.prompt) + len(self.tokens)

    def add(self, tokens: Sequence[int], states: Sequence[int], stop: frozenset[int]) -> None:
        """Append tokens up to the first stop token, and up to the limit."""
        for token, state in zip(tokens, states, strict=True):
            if self.done(stop):
                return
            self.tokens.append(token)
            self.states.append(state)

    def done(self, stop: frozenset[int]) -> bool:
        """Whether the answer has ended."""
        return len(self.tokens) == self.limit or bool(self.tokens) and self.tokens[-1] in stop


class Decoder(ABC):
    """Answers prompts; how, is the affair of its kinds. All state belongs to the call.

    Attributes:
        forward: The base's.
    """

    forward: BaseForward

    def generate(
        self,
        prompts: Sequence[Tensor],
        max_new_tokens: int,
        sampling: SamplingConfig = GREEDY,
        stop_ids: Collection[int] = (),
        seeds: Sequence[int] | None = None,
        collect_features: bool = False,
    ) -> list[Generation]:
        """Answer the prompts, all in one batch, in the dtype of the weights (see `plain_numbers`).

        Args:
            prompts: 1-D int64 tensors of any lengths, on any device.
            max_new_tokens: Limit per prompt; the model's context is another (prompt and answer together).
            sampling: How tokens are chosen.
            stop_ids: The first of these ends an answer, as its last token. Those inside a prompt do not count.
            seeds: One per prompt, for sampling; None means 0, 1, 2, ...
            collect_features: Return the features that decoding computes anyway, see `TokenFeatures`.

        Returns:
            One `Generation` per prompt, in order. The times of a batch's rows all begin with the batch; a model for
            which padding is not exact decodes prompts of different lengths in batches of their own, one after another.

        Raises:
            UserError: A prompt is empty, too long or holds ids outside the vocabulary; seeds do not fit; the model has
                no features.
            RunError: A row has no finite logit.
        """
        if collect_features:
            self.check_collects()
        limits = check_prompts(self.forward, prompts, max_new_tokens)
        row_seeds = check_seeds(seeds, len(prompts))
        prompts = [prompt.to("cpu", torch.long) for prompt in prompts]
        rows = [Row(i, p, s, n) for i, (p, s, n) in enumerate(zip(prompts, row_seeds, limits, strict=True))]
        stop = frozenset(stop_ids)
        for batch in self._batches([row for row in rows if row.limit > 0]):
            with plain_numbers(), torch.inference_mode():
                self._decode(batch, sampling, stop, collect_features)
        return [_finish(row, stop, collect_features, max_new_tokens) for row in rows]

    def check_collects(self) -> None:
        """Refuse to collect what are no features.

        Raises:
            UserError: The model's output layer does not read its last hidden states.
        """
        if not self.forward.collects:
            raise UserError(
                f"{type(self.forward.model).__name__}: no features can be collected, as its output layer does not read "
                "its last hidden states; it only answers"
            )

    def _batches(self, rows: list[Row]) -> list[list[Row]]:
        if self.forward.pads:
            return [rows] if rows else []
        if not self.forward.batches:
            return [[row] for row in rows]
        lengths = sorted({len(row.prompt) for row in rows})
        return [[row for row in rows if len(row.prompt) == length] for length in lengths]

    @abstractmethod
    def _decode(self, rows: list[Row], sampling: SamplingConfig, stop: frozenset[int], collect: bool) -> None:
        """Fill in the rows of one batch."""


class RowBatch(ABC):
    """One batch on its way: the rows that are still running, and the tensors that follow them."""

    def __init__(
        self, forward: BaseForward, rows: list[Row], sampling: SamplingConfig, stop: frozenset[int], collect: bool
    ) -> None:
        """Begin with all rows."""
        self.forward, self.rows, self.sampling, self.stop, self.collect = forward, rows, sampling, stop, collect
        self.prefixes: Tensor | None = None  # [B, capacity] beside the logits, only for penalties

    def run(self) -> None:
        """Fill in the rows' tokens, hidden states and times."""
        everyone, device = self.rows, self.forward.device
        device_seconds(device)  # what was submitted before is not the batch's
        start = read_clocks(device)
        self._begin()
        first = read_clocks(device)  # the tokens are on the host, so the device is done
        self._stop_clocks(start, first, first)
        while running := [index for index, row in enumerate(self.rows) if not row.done(self.stop)]:
            if len(running) < len(self.rows):
                self._keep(running)
            self._step()
            self._stop_clocks(start, first, read_clocks(device))
        # The rows that end last; a step ends all of them at once.
        last = max((row.times for row in everyone), key=lambda times: times[1].wall)
        for row in everyone:
            row.batch_rows = len(everyone)
            row.batch_time = Clocks(*(a + b for a, b in zip(*last, strict=True)))

    @abstractmethod
    def _begin(self) -> None:
        """Feed the prompts and add each row's first token."""

    @abstractmethod
    def _step(self) -> None:
        """Add at least one token to each row."""

    def _prefill(self, cache: KVCache, capacity: int) -> list[Tensor]:
        """Feed the prompts; per row the hidden states ``[n, H]``."""
        states = self.forward.prefill([row.prompt for row in self.rows], cache)
        if self.sampling.needs_prefix:
            self.prefixes = torch.full((len(self.rows), capacity), PREFIX_PAD, device=self.forward.output_device)
            for index, row in enumerate(self.rows):
                self.prefixes[index, : len(row.prompt)] = row.prompt
        if self.collect:
            for row, prompt_states in zip(self.rows, states, strict=True):
                row.hidden.append(prompt_states)
        return states

    def _keep(self, running: list[int]) -> None:
        """Remove finished rows, so that the others do not pay for them."""
        self.rows = [self.rows[index] for index in running]
        if self.prefixes is not None:
            self.prefixes = self.prefixes[torch.tensor(running, device=self.prefixes.device)]

    def _stop_clocks(self, start: Clocks, first: Clocks, now: Clocks) -> None:
        for row in self.rows:
            if row.done(self.stop):
                row.times = (first.since(start), now.since(first))


def _finish(row: Row, stop: frozenset[int], collect: bool, wanted: int) -> Generation:
    """Turn a row into what the caller gets."""
    prefill, decode = row.times
    limit: StopReason = "length" if row.limit == wanted else "context"
    reason = "stop" if row.tokens and row.tokens[-1] in stop else limit
    return Generation(
        output_ids=torch.tensor(row.tokens, dtype=torch.long),
        stop_reason=reason,
        accept_lengths=row.accept_lengths,
        steps=row.steps,
        prefill_seconds=prefill.wall,
        decode_seconds=decode.wall,
        draft_prefill_seconds=row.draft_seconds,
        batch_rows=row.batch_rows,
        batch_seconds=row.batch_time.wall,
        prefill_processor_seconds=prefill.processor,
        batch_processor_seconds=row.batch_time.processor,
        features=_features(row) if collect else None,
    )


def _features(row: Row) -> TokenFeatures | None:
    if not row.hidden:
        return None
    token_ids = torch.cat((row.prompt[1:], torch.tensor(row.tokens, dtype=torch.long)))
    states = torch.tensor([TokenState.PROMPT] * len(row.prompt) + row.states[:-1])
    # Cut, because the last step of a draft may go beyond the end; and copied outside of inference mode, so that the
    # caller may compute gradients through what reads them.
    features = torch.cat(row.hidden)[: len(token_ids)].clone()
    none, device = features[:0], features.device
    # The last row predicts the last token, so that nothing was predicted from a row behind it either.
    drafted_rows = [index for index in row.drafted_rows if index < len(token_ids)]
    return TokenFeatures(
        features,
        token_ids.to(device),
        states.to(device),
        rejected=torch.cat((none, *row.rejected)).clone(),
        draft_features=torch.cat((none, *row.drafted))[: len(drafted_rows)].clone(),
        draft_rows=torch.tensor(drafted_rows, dtype=torch.long, device=device),
        first_token=int(row.prompt[0]),
    )
