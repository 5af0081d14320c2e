"""A text as windows for a test run that computes perplexity by several protocols at once."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence, Set
from dataclasses import replace
from typing import Any, Literal

from lightning.pytorch import LightningDataModule, LightningModule
from transformers import PreTrainedConfig

from lit_hass.data.perplexity_description import describe
from lit_hass.data.perplexity_plan import EvaluationPlan, RecipePlan, WindowBatch
from lit_hass.data.perplexity_protocols import PROTOCOLS, BosPolicy, ProtocolOptions, Recipe
from lit_hass.data.perplexity_sources import Layout, PerplexityText, read_text
from lit_hass.data.perplexity_switches import Rung, ladder
from lit_hass.data.perplexity_tokens import TextTokens
from lit_hass.errors import UserError
from lit_hass.models import context_length, load_config, load_tokenizer, resolve_base

log = logging.getLogger(__name__)

ProtocolName = Literal["wanda", "lm_eval_wikitext", "strided", "document", "llama_cpp"]
#: Rotary positions whose frequencies depend on the longest row of a batch.
_LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")


class PerplexityDataModule(LightningDataModule):
    """One text, and the windows in which each protocol reads it; every window is given to exactly one rank.

    The base of the module that is run (`PerplexityModule`) names the tokenizer, unless one is named here.

    Args:
        path: a shipped text (``invented_pages``), a text file in WikiText's layout, a ``.jsonl`` or ``.parquet`` file,
            or a data set of the hub (``Salesforce/wikitext``).
        protocols: which are run, see `lit_hass.data.perplexity_protocols`.
        window: tokens of a window for all protocols; None is the model's context (llama.cpp: at most 512).
        stride: of ``strided``; None is half a window.
        tail: what becomes of the rest that fills no window: ``drop``, as the originals, or ``score``.
        bos_policy: of ``lm_eval_wikitext``: ``lm_eval_default`` (the present version), ``single`` (before its PR 3347,
            hence most published values), ``eos`` (before its PR 1588), or ``none``.
        document_bos: whether ``document`` puts BOS in front of each text (``add_start_token`` of the original).
        ladder: the two protocols whose difference is explained step by step; ``auto`` takes the first and the last of
            ``protocols``, ``none`` saves the forwards of the steps between.
        allow_longer: allow windows beyond the model's context.
        batch_tokens: tokens read together, with padding; results do not depend on it.
        layout: of the text, see `read_text`.
        subset: of a hub set.
        split: of a hub set.
        column: of a table.
        tokenizer: folder or name, when it is not the base's.

    Attributes:
        text: what was read, after `check`.
        plan: all windows of the run, likewise.
        scored: protocol name -> its plan.
        rungs: the ladder's steps, each with its plan; none without a ladder.
        done: windows that an earlier part of this run has scored, and that are not scored again; a callback sets it.

    Raises:
        UserError: settings that cannot be used; from `check`, a text or a tokenizer that cannot be.
    """

    def __init__(
        self,
        path: str = "invented_pages",
        protocols: list[ProtocolName] = ["wanda", "lm_eval_wikitext"],  # noqa: B006  # read only
        window: int | None = None,
        stride: int | None = None,
        tail: Literal["drop", "score"] = "drop",
        bos_policy: BosPolicy = "lm_eval_default",
        document_bos: bool = True,
        ladder: Literal["auto", "none"] | list[ProtocolName] = "auto",
        allow_longer: bool = False,
        batch_tokens: int = 4096,
        layout: Layout | Literal["auto"] = "auto",
        subset: str | None = None,
        split: str | None = None,
        column: str | None = None,
        tokenizer: str | None = None,
    ) -> None:
        """See the class."""
        super().__init__()
        self.path, self.protocols = path, list(protocols)
        self.window, self.stride, self.tail = window, stride, tail
        self.bos_policy, self.document_bos = bos_policy, document_bos
        self.allow_longer, self.batch_tokens = allow_longer, batch_tokens
        self.layout, self.subset, self.split, self.column = layout, subset, split, column
        self.tokenizer_name = tokenizer
        self._check_settings()
        self.ladder_ends = self._ladder_ends(ladder)
        self.text: PerplexityText | None = None
        self.tokens: TextTokens | None = None
        self.plan: EvaluationPlan | None = None
        self.context: int | None = None
        self.scored: dict[str, RecipePlan] = {}
        self.rungs: list[tuple[Rung, RecipePlan]] = []
        self.done: frozenset[int] = frozenset()

    def _check_settings(self) -> None:
        unknown = [name for name in self.protocols if name not in PROTOCOLS]
        if unknown or not self.protocols:
            raise UserError(f"data.protocols: {unknown or 'none given'}; there are {', '.join(PROTOCOLS)}")
        if len(set(self.protocols)) < len(self.protocols):
            raise UserError("data.protocols names one of them twice")
        if self.window is not None and self.window < 2:
            raise UserError(f"data.window must be at least 2, found {self.window}")
        if self.stride is not None and self.stride < 1:
            raise UserError(f"data.stride must be at least 1, found {self.stride}")
        if self.batch_tokens < 1:
            raise UserError(f"data.batch_tokens must be at least 1, found {self.batch_tokens}")

    def _ladder_ends(self, wanted: str | Sequence[str]) -> tuple[str, str] | None:
        if wanted == "none" or wanted == "auto" and len(self.protocols) < 2:
            return None
        ends = (self.protocols[0], self.protocols[-1]) if wanted == "auto" else tuple(wanted)
        if len(ends) != 2 or ends[0] == ends[1] or any(end not in self.protocols for end in ends):
            raise UserError(f"data.ladder takes two of the protocols {', '.join(self.protocols)}, found {list(ends)}")
        return ends[0], ends[1]

    def check(self, module: LightningModule) -> None:
        """Read the text, tokenise it and plan all windows, before the model is loaded; further calls cost nothing.

        Args:
            module: the one that is run; its ``base`` names tokenizer and context.

        Raises:
            UserError: a text that is empty, not UTF-8 or too short, a window beyond the model's context, a stride
                beyond the window, or a tokenizer without a token that a protocol needs.
        """
        if self.plan is not None:
            return
        base = getattr(module, "base", None)
        tokenizer = self.tokenizer_name or base
        if not isinstance(tokenizer, str):
            raise UserError("the text needs a tokenizer: give --data.tokenizer, or a module with a base")
        config = load_config(resolve_base(base)) if isinstance(base, str) else None
        self.context = None if config is None else context_length(config)
        options = self._options()
        recipes: dict[str, Recipe] = {name: PROTOCOLS[name].recipe(options) for name in self.protocols}
        for name, recipe in recipes.items():
            self._check_window(name, recipe)
        text = read_text(self.path, self.layout, self.subset, self.split, self.column)
        if text.most_windows is not None and "wanda" in recipes:
            recipes["wanda"] = replace(recipes["wanda"], most_windows=text.most_windows)
        tokens = TextTokens(text, load_tokenizer(tokenizer))
        rungs = [] if self.ladder_ends is None else ladder(*(recipes[end] for end in self.ladder_ends))
        for name, recipe in recipes.items():
            self._check_length(name, recipe, tokens)
        plan = EvaluationPlan(
            tokens, [*recipes.values(), *(rung.recipe for rung in rungs)], self.batch_tokens, _by_length(config)
        )
        _check_vocabulary(tokens, plan, config)
        self.scored = dict(zip(recipes, plan.recipes, strict=False))
        self.rungs = list(zip(rungs, plan.recipes[len(recipes) :], strict=True))
        self.text, self.tokens, self.plan = text, tokens, plan
        self._say(recipes)

    def _options(self) -> ProtocolOptions:
        return ProtocolOptions(
            self.window, self.context, self.stride, self.tail, self.bos_policy, self.document_bos
        )  # fmt: skip

    def _check_window(self, name: str, recipe: Recipe) -> None:
        if self.context is not None and recipe.window > self.context and not self.allow_longer:
            raise UserError(
                f"{name}: a window of {recipe.window} is beyond the {self.context} tokens that the model was made for; "
                "choose a smaller data.window, or --data.allow_longer true"
            )
        if recipe.windows == "strided" and (recipe.stride or 1) > recipe.window:
            raise UserError(
                f"{name}: a stride of {recipe.stride} is larger than the window of {recipe.window}, so that tokens "
                "between the windows would be passed over"
            )

    def _check_length(self, name: str, recipe: Recipe, tokens: TextTokens) -> None:
        """Refuse a text in which nothing, or too little, can be scored."""
        try:
            sequences = tokens.sequences(recipe)
        except UserError as error:
            more = {
                "document": "; without BOS: --data.document_bos false",
                "lm_eval_wikitext": "; without a prefix: --data.bos_policy none",
            }
            raise UserError(
                f"{name}: {error}, which the protocol puts in front of a text{more.get(name, '')}"
            ) from error
        length = max(map(len, sequences))
        needed = {"disjoint": 1, "second_half": 2}.get(recipe.windows, 0) * recipe.window
        if recipe.tail == "drop" and length < needed:
            what = "the window" if needed == recipe.window else f"two windows of {recipe.window}, that is"
            remedy = "give more text, a smaller data.window, or --data.tail score"
            raise UserError(f"{name}: the text has {length} tokens, fewer than {what} {needed}; {remedy}")
        if not any(window.scored for sequence in sequences for window in recipe.plan(len(sequence), tokens.bos)):
            raise UserError(
                f"{name}: nothing can be scored in a text of {length} tokens with windows of {recipe.window}"
            )

    def _say(self, recipes: dict[str, Recipe]) -> None:
        assert self.plan is not None and self.text is not None
        own = {w for plan in self.scored.values() for w in plan.windows}
        total = sum(item.window.read for item in self.plan.windows)
        extra = total - sum(self.plan.windows[w].window.read for w in own)
        note = f", {extra} of them for the steps of the ladder (data.ladder none saves these)" if extra else ""
        log.info(
            "%s: %d pages; %s read %d tokens%s", self.text.name, len(self.text.pages), ", ".join(recipes), total, note
        )

    def describe(self) -> dict[str, Any]:
        """Text, tokenizer, protocols and ladder as plain values, after `check`; see `perplexity_description`."""
        return describe(self)

    def resume_settings(self) -> dict[str, Any]:
        """What of the data decides the likelihoods, and which windows there are; not how they are put into batches."""
        assert self.plan is not None, "the settings are known after check() or setup()"
        assert self.text is not None
        about = self.describe()
        # Windows are scored on their way as sums of pages, by number: the same text in other pages is another run.
        starts = json.dumps([self.text.file_starts, self.text.joined_starts])
        return {
            "text": about["text"]["sha256"],
            "layout": self.text.layout,
            "pages": len(self.text.pages),
            "page_starts": hashlib.sha256(starts.encode()).hexdigest()[:16],
            "tokenizer": about["tokenizer"]["sha256"],
            "protocols": {name: planned["card"] for name, planned in about["protocols"].items()},
            "ladder": None if self.ladder_ends is None else list(self.ladder_ends),
            "windows": len(self.plan.windows),
        }

    def prepare_data(self) -> None:
        """Check the input once per machine, before a logger or a model is touched."""
        if self.trainer is not None:
            self.check(self.trainer.lightning_module)

    def setup(self, stage: str) -> None:
        """Read and plan (see `check`)."""
        if self.trainer is not None:
            self.check(self.trainer.lightning_module)

    def test_dataloader(self) -> RankBatches:
        """This rank's batches."""
        assert self.plan is not None
        rank, size = (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)
        if self.done and rank == 0:
            log.info("resuming: %d of %d windows are scored", len(self.done), len(self.plan.windows))
        return RankBatches(self.plan, rank, size, self.done)


class RankBatches:
    """Every ``size``-th batch of a plan, from ``rank`` on, but for windows that are ``done``.

    Not a `torch.utils.data.DataLoader`, so that Lightning cannot put a sampler on top that pads the ranks with
    repetitions. A rank without a batch gets one without windows: Lightning skips every hook of an empty loop, and the
    other ranks would wait for this one.
    """

    def __init__(self, plan: EvaluationPlan, rank: int, size: int, done: Set[int] = frozenset()) -> None:
        self.plan = plan
        # A batch is scored whole or not at all, so those that are left are the batches of an undisturbed run.
        todo = [[window for window in batch if window not in done] for batch in plan.batches]
        self.batches = [batch for batch in todo if batch][rank::size] or [[]]

    def __len__(self) -> int:
        """How many batches."""
        return len(self.batches)

    def __iter__(self) -> Iterator[WindowBatch]:
        """Make them one by one."""
        return map(self.plan.batch, self.batches)


def _by_length(config: PreTrainedConfig | None) -> bool:
    """Whether windows of different lengths must not share a batch."""
    if config is None:
        return False
    rope: Any = getattr(config.get_text_config(), "rope_parameters", None) or {}
    kinds = [rope, *(value for value in rope.values() if isinstance(value, dict))]
    return any(kind.get("rope_type") in _LENGTH_DEPENDENT_ROPE for kind in kinds)


def _check_vocabulary(tokens: TextTokens, plan: EvaluationPlan, config: PreTrainedConfig | None) -> None:
    size = None if config is None else getattr(config.get_text_config(), "vocab_size", None)
    if size is not None and plan.largest_id >= size:
        raise UserError(
            f"the tokenizer gives id {plan.largest_id}, and the model has {size} tokens: they do not belong together"
        )
