"""Chains of draft tokens, and how many of them the base would have accepted where its own answer is known."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lit_hass.decoding.autoregressive import AutoregressiveDecoder
from lit_hass.models import DraftCache, DraftModel
from lit_hass.numerics import plain_numbers


@dataclass(frozen=True)
class KnownAnswer:
    """A prompt and the base's own greedy answer, with what the base would go on to say.

    Attributes:
        token_ids: ``[m]`` int64: prompt, answer, and some tokens more.
        features: ``[m - 1, H]``, the base's feature of every token but the last.
        prompt_length: Tokens of the prompt, at least 1.
        answer_length: Tokens of the answer, its stop token included.
    """

    token_ids: Tensor
    features: Tensor
    prompt_length: int
    answer_length: int


def known_answers(
    decoder: AutoregressiveDecoder,
    prompts: Sequence[Tensor],
    max_new_tokens: int,
    stop_ids: Collection[int],
    beyond: int,
) -> list[KnownAnswer]:
    """Let the base answer greedily, once; then any number of drafts can be measured without it.

    Args:
        decoder: Of the base.
        prompts: 1-D int64 tensors.
        max_new_tokens: Limit of each answer.
        stop_ids: What ends an answer.
        beyond: Tokens to go on for behind the end, so that the last step of a chain of this many counts in full.

    Raises:
        UserError: A prompt cannot be decoded.
    """
    answers = decoder.generate(prompts, max_new_tokens, stop_ids=stop_ids)
    wholes = [torch.cat((p.cpu(), a.output_ids)) for p, a in zip(prompts, answers, strict=True)]
    known = []
    for prompt, answer, whole, more in zip(
        prompts, answers, wholes, decoder.generate(wholes, beyond + 1, collect_features=True), strict=True
    ):
        if more.features is None or len(answer.output_ids) < 2:
            continue  # no room in the context, or an answer that takes no step
        ids = torch.cat((whole, more.output_ids))
        known.append(KnownAnswer(ids, more.features.features, len(prompt), len(answer.output_ids)))
    return known


@plain_numbers()
@torch.no_grad()
def draft_chain(
    draft: DraftModel,
    head: Callable[[Tensor], Tensor],
    cache: DraftCache,
    token_ids: Tensor,
    features: Tensor,
    counts: Sequence[int],
    length: int,
    ids: Tensor | None = None,
) -> Tensor:
    """Feed the rows that are new since the last step, then draft greedily.

    Args:
        draft: In eval mode.
        head: The base's output layer, ``[B, H] -> [B, V]``.
        cache: Holds the rows before; gains ``counts`` rows.
        token_ids: ``[B, T]`` int64, the token behind each new feature, padded on the right; the last one of a row is
            the root.
        features: ``[B, T, H]`` of the base, padded alike.
        counts: New rows of each row of the batch, 1 .. T.
        length: Tokens to draft, at least 1.
        ids: ``[K]`` int64, the tokens that the head's columns are; None are all.

    Returns:
        ``[B, length]`` int64, the tokens behind the root.
    """
    output = draft(token_ids, features, cache=cache)
    cache.commit(counts)
    last = torch.tensor(counts, device=output.device) - 1
    feature = output[torch.arange(len(counts), device=output.device), last][:, None]  # [B, 1, H]
    tokens: list[Tensor] = []
    while True:
        best = head(feature[:, 0]).argmax(-1)
        tokens.append(best if ids is None else ids[best])
        if len(tokens) == length:
            return torch.stack(tokens, dim=1)
        feature = draft(tokens[-1][:, None], feature, cache=cache, offset=len(tokens) - 1)


def chain_acceptance(
    draft: DraftModel,
    head: Callable[[Tensor], Tensor],
    answers: Sequence[KnownAnswer],
    length: int,
    ids: Tensor | None = None,
) -> list[list[int]]:
    """Walk through known answers as greedy decoding with chains of ``length`` draft tokens would.

    This is ``TreeConfig(length + 1, length - 1, 1)``: each step accepts the drafted tokens up to the first that is not
    the base's, and commits one token more. No forward of the base is needed, as its greedy answer is known.

    Args:
        draft: In eval mode, on any device.
        head: The base's output layer.
        answers: Of `known_answers` with ``beyond >= length``.
        length: Tokens per chain.
        ids: ``[K]`` int64, the tokens that the head's columns are; None are all.

    Returns:
        Per answer the accepted tokens of each step, without the +1; the last step is not cut at the answer's end.
    """
    steps: list[list[int]] = [[] for _ in answers]
    if not answers:
        return steps
    running = list(range(len(answers)))
    roots = [answer.prompt_length for answer in answers]  # position of the token that is known but not yet fed
    texts = [answer.token_ids.tolist() for answer in answers]
    cache = draft.new_cache(len(answers), 2 * max(len(row) for row in texts) + length)
    while running:
        spans = [(i, start, roots[i]) for i, start in zip(running, cache.lengths, strict=True)]
        tokens = [answers[i].token_ids[start + 1 : end + 1] for i, start, end in spans]
        features = [answers[i].features[start:end] for i, start, end in spans]
        drafted = draft_chain(
            draft,
            head,
            cache,
            pad_sequence(tokens, batch_first=True).to(draft.device),
            pad_sequence(features, batch_first=True).to(draft.device),
            [end - start for _, start, end in spans],
            length,
            ids,
        ).tolist()
        for i, proposal in zip(running, drafted, strict=True):
            truth = texts[i][roots[i] + 1 : roots[i] + 1 + length]
            accepted = 0
            while accepted < len(truth) and proposal[accepted] == truth[accepted]:
                accepted += 1
            steps[i].append(accepted)
            roots[i] += accepted + 1
        # A root that is the answer's last token needs no step.
        left = [k for k, i in enumerate(running) if roots[i] < answers[i].prompt_length + answers[i].answer_length - 1]
        if len(left) < len(running):
            cache.select(left)
            running = [running[k] for k in left]
    return steps
