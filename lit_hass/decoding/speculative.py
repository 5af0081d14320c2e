"""Speculative decoding: the draft proposes a tree, the base verifies it in one forward, nothing is lost.

Sources: EAGLE (arXiv 2401.15077), EAGLE-2 (arXiv 2406.16858), HASS (arXiv 2408.15766); the acceptance is this
project's own where theirs changes the distribution, see `lit_hass.decoding.verification`.
"""

import logging

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from lit_hass.decoding.clock import device_seconds
from lit_hass.decoding.draft_forward import DraftForward
from lit_hass.decoding.forward import TreeForward
from lit_hass.decoding.generation import TokenState
from lit_hass.decoding.rows import Decoder, Row, RowBatch
from lit_hass.decoding.sampling import SamplingConfig
from lit_hass.decoding.select_draft import DraftScorer, check_pair, make_draft_forward
from lit_hass.decoding.select_forward import make_tree_forward
from lit_hass.decoding.tree import DraftTree, grow_tree, root_only
from lit_hass.decoding.tree_config import TreeConfig
from lit_hass.decoding.tree_size import choose_size
from lit_hass.decoding.verification import NEVER, NodeNoise, accepted_path, choose_at_nodes, drop_useless
from lit_hass.errors import RunError
from lit_hass.models import DraftModel

log = logging.getLogger(__name__)

#: Tokens that each trial decodes at most when a tree's size is chosen by timing; and so few that, where an answer ends
#: before, it says nothing and the trial goes on behind the end.
_TRIAL, _SHORT = 48, 8


class SpeculativeDecoder(Decoder):
    """Decodes with a HASS or EAGLE-2 draft; in float32 its answers are those of `AutoregressiveDecoder`.

    That holds token by token, for greedy decoding and for sampling with equal seeds, with all processors, at any batch
    size, for any draft and any tree. In half precision near-ties may turn, because a forward over a tree rounds
    otherwise than one over a single token.
    """

    def __init__(self, base: PreTrainedModel | TreeForward, draft: DraftModel, tree: TreeConfig = TreeConfig()) -> None:
        """Choose the forwards of both, and test that the base's tree attention is right.

        Args:
            base: A ``transformers`` model in eval mode, or a ready forward.
            draft: Of that base, in eval mode.
            tree: Sizes of the tree; with ``total_tokens = -1`` the first call of `generate` chooses by timing.

        Raises:
            UserError: The base cannot verify trees, or base, draft and tree do not match; says why.
        """
        self.forward: TreeForward = base if isinstance(base, TreeForward) else make_tree_forward(base)
        check_pair(self.forward, draft, tree)
        self.draft = make_draft_forward(draft)
        self.tree = tree
        self._scorer = DraftScorer.of(self.forward, draft)
        self._size: int | None = None

    @property
    def total_tokens(self) -> int | None:
        """Nodes of the tree in use; None where they are still to be chosen by timing."""
        return self._size if self.tree.total_tokens == -1 else self.tree.total_tokens

    def _decode(self, rows: list[Row], sampling: SamplingConfig, stop: frozenset[int], collect: bool) -> None:
        if self.total_tokens is None:
            self._size = choose_size(lambda tree: self._seconds_per_token(tree, rows[0], sampling, stop), self.tree)
            log.info("trees of %d tokens are the fastest here", self._size)
        assert self.total_tokens is not None
        tree = self.tree.sized(self.total_tokens)
        SpeculativeBatch(self.forward, self.draft, self._scorer, tree, rows, sampling, stop, collect).run()

    def _seconds_per_token(self, tree: TreeConfig, like: Row, sampling: SamplingConfig, stop: frozenset[int]) -> float:
        """Decode the row's own first tokens, the same ones for every tree.

        Not beyond the answer's end: what stands there is no text that the draft was made for, and small trees win.
        """
        prompt, room = like.prompt, _TRIAL
        if self.forward.context is not None:  # a trial of a few tokens would favour the tree that drafts nothing
            prompt = prompt[: max(1, self.forward.context - _TRIAL)]
            room = min(_TRIAL, self.forward.context - len(prompt))
        for ends in (stop, frozenset[int]()):
            row = Row(like.index, prompt, like.seed, room)
            SpeculativeBatch(self.forward, self.draft, self._scorer, tree, [row], sampling, ends, False).run()
            if len(row.tokens) >= min(_SHORT, room):
                break
        return row.times[1].wall / max(1, len(row.tokens) - 1)


class SpeculativeBatch(RowBatch):
    """A batch whose rows advance at their own pace."""

    forward: TreeForward

    def __init__(
        self,
        forward: TreeForward,
        draft: DraftForward,
        scorer: DraftScorer,
        tree: TreeConfig,
        rows: list[Row],
        sampling: SamplingConfig,
        stop: frozenset[int],
        collect: bool,
    ) -> None:
        """Begin with all rows."""
        super().__init__(forward, rows, sampling, stop, collect)
        self._draft, self._scorer, self._tree = draft, scorer, tree
        self._noise = None
        if not sampling.greedy:
            self._noise = [NodeNoise(row.seed, forward.vocab_size, forward.output_device) for row in rows]

    def _begin(self) -> None:
        rows, tree = self.rows, self._tree
        capacity = max(len(row.prompt) + row.limit for row in rows) + max(tree.nodes + 1, tree.depth + 2)
        self._cache = self.forward.new_cache(len(rows), capacity)
        states = self._prefill(self._cache, capacity)
        last = torch.stack([prompt_states[-1:] for prompt_states in states])
        # The first token's choice is that of a tree of one node, the prompt's last token.
        ends = torch.tensor([int(row.prompt[-1]) for row in rows], device=last.device)
        lengths = [row.length - 1 for row in rows]
        tokens = self._choose(last, root_only(ends), torch.tensor(lengths, device=last.device), lengths)[:, 0]
        for row, token in zip(rows, tokens.tolist(), strict=True):
            row.add([token], [TokenState.BONUS], self.stop)
            self._check(row, token)
        self._roots = tokens
        self._prompt_states: list[Tensor] | None = states

    def _step(self) -> None:
        forward, rows = self.forward, self.rows
        tree = self._grow()
        starts = torch.tensor(self._cache.lengths, device=forward.output_device)
        # Only token ids and their places go where the embedding is.
        ids, depths, visible = (part.to(forward.device) for part in (tree.tokens, tree.depths, tree.visible))
        hidden = forward.verify(ids, depths, visible, self._cache)
        targets = self._choose(hidden, tree, starts, self._cache.lengths)
        if forward.context is not None and max(self._cache.lengths) + tree.levels >= forward.context:
            # A node outside the context has no meaning: nothing may follow its parent but the base's own choice.
            inside = starts[:, None] + tree.depths < forward.context
            tree.tokens = torch.where(inside, tree.tokens, NEVER)
        if self._tree.trim:
            drop_useless(tree, self._rooms(), self.stop)
        path, counts = accepted_path(tree, targets)
        tokens = targets if tree.chain else targets.gather(1, path)
        broken = tree.broken if tree.broken is not None else torch.zeros_like(counts, dtype=torch.bool)
        # The one host synchronisation of the step.
        told = torch.cat((counts[:, None], broken[:, None].long(), tokens), dim=1).tolist()
        lengths = [row[0] for row in told]
        for row, (count, nan, *chosen) in zip(rows, told, strict=True):
            if nan:
                raise RunError(f"prompt {row.index}: the draft returned NaN in step {row.steps + 1}")
            row.accept_lengths.append(count - 1)
            row.steps += 1
            before = len(row.tokens)
            row.add(chosen[:count], [TokenState.ACCEPTED] * (count - 1) + [TokenState.BONUS], self.stop)
            self._check(row, min(row.tokens[before:], default=0))
        width = max(lengths)
        path, tokens = path[:, :width], tokens[:, :width]
        if tree.chain:
            verified = hidden[:, :width]
        else:
            verified = hidden.gather(1, path[..., None].expand(-1, -1, hidden.shape[-1]))
        if self.prefixes is not None:
            self._remember(tree, path, starts, lengths)
        if self.collect:
            self._collect(tree, path, hidden, verified, lengths)
        forward.keep(None if tree.chain else path, lengths, self._cache)
        self._roots = tokens.gather(1, counts[:, None] - 1)[:, 0]
        self._news = (tokens, verified, lengths)

    def _grow(self) -> DraftTree:
        """Feed the draft what was committed since its last pass, then let it propose."""
        if self._tree.nodes == 0:
            return root_only(self._roots)
        if self._prompt_states is not None:
            feature = self._read_prompt(self._prompt_states)
            self._prompt_states = None
        else:
            tokens, features, counts = self._news
            feature = self._draft.feed(tokens, features, counts, self._draft_cache)
        trims = self._tree.trim
        return grow_tree(
            self._draft,
            self._scorer.logits,
            self._draft_cache,
            feature,
            self._roots,
            self._tree,
            stop=self.stop if trims else (),
            room=max(self._rooms()) if trims else None,
            collect=self.collect,
            ids=self._scorer.ids,
        )

    def _rooms(self) -> list[int]:
        """Draft tokens that each row can still use: all that it may have but the base's own at the end."""
        return [row.limit - len(row.tokens) - 1 for row in self.rows]

    def _read_prompt(self, states: list[Tensor]) -> Tensor:
        """The draft's pass over the prompts; it comes after the first token, so decoding pays for it."""
        start = device_seconds(self.forward.output_device)
        capacity = max(len(row.prompt) + row.limit for row in self.rows) + self._tree.slots + self._tree.depth + 2
        self._draft_cache = self._draft.new_cache(len(self.rows), capacity)
        device = states[0].device
        behind = [
            torch.cat((row.prompt[1:].to(device), root[None])) for row, root in zip(self.rows, self._roots, strict=True)
        ]
        # Ids that have an embedding but no logit are unknown to the draft: any other does, drafts need not be right.
        ids = pad_sequence(behind, batch_first=True).clamp_(max=self.forward.vocab_size - 1)
        feature = self._draft.feed(
            ids,
            pad_sequence(states, batch_first=True),
            [len(row.prompt) for row in self.rows],
            self._draft_cache,
        )
        seconds = device_seconds(self.forward.output_device) - start
        for row in self.rows:
            row.draft_seconds = seconds
        return feature

    def _choose(self, hidden: Tensor, tree: DraftTree, starts: Tensor, lengths: list[int]) -> Tensor:
        """The base's token ``[B, T]`` behind each node."""
        logits = self.forward.logits(hidden)
        return choose_at_nodes(logits, tree, starts, self.prefixes, self._noise, lengths, self.sampling)

    def _collect(self, tree: DraftTree, path: Tensor, hidden: Tensor, verified: Tensor, lengths: list[int]) -> None:
        """Keep copies of the rows' features: a view would keep the whole tree's alive."""
        on_path = torch.zeros_like(tree.tokens, dtype=torch.bool)
        inside = torch.arange(path.shape[1], device=path.device) < torch.tensor(lengths, device=path.device)[:, None]
        on_path.scatter_(1, torch.where(inside, path, 0), True)
        dropped = ~on_path & (tree.tokens != NEVER)
        dropped[:, 0] = False
        for index, (row, count) in enumerate(zip(self.rows, lengths, strict=True)):
            row.hidden.append(verified[index, :count].clone())
            row.rejected.append(hidden[index, dropped[index]])
            if tree.features is not None:
                row.drafted.append(tree.features[index, path[index, 1:count]])
                start = int(self._cache.lengths[index])
                row.drafted_rows += range(start, start + count - 1)

    def _remember(self, tree: DraftTree, path: Tensor, starts: Tensor, lengths: list[int]) -> None:
        """Write the committed tokens into the rows' prefixes."""
        assert self.prefixes is not None
        for index, count in enumerate(lengths):
            place = int(self._cache.lengths[index])
            self.prefixes[index, place : place + count] = tree.tokens[index, path[index, :count]]

    def _keep(self, running: list[int]) -> None:
        super()._keep(running)
        self._cache.select(running)
        index = torch.tensor(running, device=self._roots.device)
        self._roots = self._roots[index]
        if self._noise is not None:
            self._noise = [self._noise[row] for row in running]
        if self._prompt_states is not None:
            self._prompt_states = [self._prompt_states[row] for row in running]
        else:
            tokens, features, counts = self._news
            self._news = tokens[index], features[index], [counts[row] for row in running]
            if self._tree.nodes:
                self._draft_cache.select(running)

    def _check(self, row: Row, token: int) -> None:
        if token < 0:
            raise RunError(
                f"prompt {row.index}: no finite logit in step {row.steps} near position {row.length - 1} "
                "(the model returned NaN, or the processors excluded every token)"
            )
