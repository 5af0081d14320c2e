"""Perplexity of a base model on a text, by several protocols in one run."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lit_hass.data.perplexity_datamodule import PerplexityDataModule
from lit_hass.data.perplexity_plan import EvaluationPlan, RecipePlan, WindowBatch
from lit_hass.decoding import TokenFeatures, TokenState
from lit_hass.errors import RunError, UserError
from lit_hass.metrics import Perplexity
from lit_hass.metrics.exact_states import ordinary_tensors
from lit_hass.metrics.functional.perplexity import perplexity
from lit_hass.models import (
    attention_kind,
    check_base,
    dtype_setting,
    load_base,
    load_config,
    model_digest,
    parse_dtype,
)
from lit_hass.modules.threads import choose_threads
from lit_hass.modules.trainer_precision import refuse_trainer_precision
from lit_hass.modules.window_scorer import ScoredWindows, WindowScorer
from lit_hass.records.scored_windows import ScoredBatch, WindowSum

log = logging.getLogger(__name__)


class PerplexityModule(LightningModule):
    """Score the windows of a `PerplexityDataModule` with a language model.

    `test_step` returns a dict:

    =====================  ======================================================================================
    ``"nll"``              ``[N]`` float32, nats of each scored token of the batch
    ``"targets"``          ``[N]`` int64, these tokens
    ``"windows"``          indices of the windows in the run's plan, one per row of the batch
    ``"scored"``           a `lit_hass.records.scored_windows.ScoredBatch`: what the tokens of each window add up to
    ``"running"``          ``(name, token perplexity so far)`` of the protocol that the batch belongs to, of this rank
    ``"features"``         with ``collect_features``: a `lit_hass.decoding.TokenFeatures`, else None. ``features
                           [n, d]`` are the hidden states behind the final norm that the output layer reads,
                           ``token_ids [n]`` the token behind each, ``states [n]`` all ``TokenState.PROMPT``. They are
                           of the first protocol's windows alone, so that over a run each scored token comes once; n
                           may be 0.
    ``"feature_windows"``  with ``collect_features``: ``[n]`` int64, the index of each feature's window in the plan
    =====================  ======================================================================================

    Args:
        base: a `transformers` folder, hub id or shipped name (``html_to_tsv``); any decoder-only model.
        dtype: of the weights: ``"auto"`` (float32 on a CPU, the checkpoint's own on a GPU) or a name. The loss is
            computed in float32 whatever it is.
        device_map: handed to `transformers`, such as ``"auto"`` to spread a large model over the GPUs of one process.
        head_rows: scored rows whose logits exist at a time; None chooses by vocabulary and device.

    Attributes:
        collect_features: the one switch that a callback sets to have ``"features"`` in the outputs.
        metrics: one `Perplexity` per recipe of the plan, in its order.
        earlier: batches that an earlier part of this run has scored; a callback sets it on rank 0 when the test starts.
        outcomes: after a test run, on every rank: of each recipe of the plan `Perplexity.compute` as plain numbers,
            with ``document_nll`` and ``document_tokens``, the sums of each document.
    """

    def __init__(
        self,
        base: str = "html_to_tsv",
        dtype: str = "auto",
        device_map: str | None = None,
        head_rows: int | None = None,
    ) -> None:
        """See the class."""
        super().__init__()
        if head_rows is not None and head_rows < 1:
            raise UserError(f"model.head_rows must be at least 1, found {head_rows}")
        self.base, self.base_dtype, self.device_map, self.head_rows = base, dtype, device_map, head_rows
        self.collect_features = False
        # Not a submodule: Lightning would move and cast it, and a model spread over devices must stay as it is.
        self.scorer: WindowScorer | None = None
        self.metrics = nn.ModuleList()
        self.outcomes: list[dict[str, Any]] = []
        self.earlier: Sequence[ScoredBatch] = ()
        self._scored: list[ScoredBatch] = []
        self._totals: dict[int, tuple[float, int]] = {}
        self._names: list[str] = []

    def check(self) -> None:
        """Refuse a base that cannot be loaded, before anything is loaded.

        Raises:
            UserError: names the folder and what it lacks, or a dtype that does not exist.
        """
        parse_dtype(self.base_dtype)
        check_base(self.base)

    def check_trainer(self, trainer: Any) -> None:
        """Refuse a Trainer whose precision the likelihoods would not have; see `refuse_trainer_precision`."""
        refuse_trainer_precision(trainer)

    def setup(self, stage: str) -> None:
        """Make a metric for each recipe of the plan.

        Raises:
            UserError: the base cannot be used, there is no `PerplexityDataModule`, or the Trainer has a precision.
        """
        self.check_trainer(self.trainer)
        self.check()
        data, plan = self._data()
        self._names = [*data.scored, *(f"ladder step {i}" for i in range(len(data.rungs)))]
        # Every rank adds up what all have scored, so there is nothing to exchange between them.
        self.metrics = nn.ModuleList(Perplexity(recipe.documents, sync_on_compute=False) for recipe in plan.recipes)

    def _data(self) -> tuple[PerplexityDataModule, EvaluationPlan]:
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, PerplexityDataModule) or data.plan is None:
            raise UserError("PerplexityModule runs on a PerplexityDataModule")
        return data, data.plan

    def configure_model(self) -> None:
        """Load the base, once the input is known to be good."""
        if self.scorer is not None:
            return
        device = None if self.device_map else self.device
        model = load_base(self.base, dtype=self.base_dtype, device=device, device_map=self.device_map)
        choose_threads(model)
        self.scorer = WindowScorer(model, self.head_rows)
        log.info(
            "loaded %s: %.1f M parameters, %s on %s",
            self.base, sum(p.numel() for p in model.parameters()) / 1e6, model.dtype, model.device,
        )  # fmt: skip

    def resume_settings(self) -> dict[str, Any]:
        """What of the model decides its likelihoods; see ``lit_hass.records.RunKey``."""
        return {
            "base": model_digest(self.base),
            "dtype": dtype_setting(self.base, self.base_dtype, self.device_map),
            "attention": attention_kind(load_config(self.base)),
        }

    def on_test_start(self) -> None:
        """Begin with empty sums."""
        if self.collect_features and not (self.scorer and self.scorer.takes_apart):
            raise UserError(f"{self.base}: the features of this kind of model cannot be collected")
        self._scored, self._totals, self.outcomes = [], {}, []

    def test_step(self, batch: WindowBatch, batch_idx: int) -> dict[str, Any]:
        """Score a batch of windows.

        Raises:
            RunError: a token's likelihood is no number; names protocol, window and document.
        """
        assert self.scorer is not None
        scored = self.scorer(batch)
        nll = scored.nll.to(batch.targets.device)  # a model spread over devices leaves them on its last one
        self._refuse_nan(batch, nll)
        scored_batch = ScoredBatch(batch.windows, tuple(window_sums(batch, nll)))
        self._scored.append(scored_batch)
        self._count_running(batch, scored_batch.sums)
        first = batch.members[0][0][0] if batch.members else None
        return {
            "nll": nll,
            "targets": batch.targets,
            "windows": batch.windows,
            "scored": scored_batch,
            "running": None if first is None else (self._names[first], self._running(first)),
            "features": self._features(batch, scored) if self.collect_features else None,
            "feature_windows": self._feature_windows(batch) if self.collect_features else None,
        }

    def _refuse_nan(self, batch: WindowBatch, nll: Tensor) -> None:
        bad = ~torch.isfinite(nll)
        if not bool(bad.any()):
            return
        place = int(torch.nonzero(bad)[0])
        row, page = int(batch.owners[place]), int(batch.pages[place])
        recipe, window = batch.members[row][0]
        where = "" if page < 0 else f", page {page + 1}"
        raise RunError(
            f"{self._names[recipe]}: window {window + 1}{where}: {int(bad[batch.owners == row].sum())} of its tokens "
            f"have the likelihood {float(nll[place])} (the first is token id {int(batch.targets[place])}): the model "
            "yields no usable logits there; in half precision try --model.dtype float32"
        )

    def _count_running(self, batch: WindowBatch, sums: Iterable[WindowSum]) -> None:
        members = dict(zip(batch.windows, batch.members, strict=True))
        for found in sums:
            for recipe, _ in members[found.window]:
                nll, tokens = self._totals.get(recipe, (0.0, 0))
                self._totals[recipe] = nll + found.nll, tokens + found.tokens

    def _running(self, recipe: int) -> float:
        return perplexity(*self._totals[recipe])

    def _of_first(self, batch: WindowBatch, device: torch.device) -> Tensor:
        """Which of the batch's scored tokens are of the first protocol's windows."""
        first = [any(recipe == 0 for recipe, _ in members) for members in batch.members]
        return torch.tensor(first, dtype=torch.bool, device=device)[batch.owners.to(device)]

    def _feature_windows(self, batch: WindowBatch) -> Tensor:
        owners = batch.owners[self._of_first(batch, batch.owners.device)]
        return torch.tensor(batch.windows, dtype=torch.int64, device=owners.device)[owners]

    def _features(self, batch: WindowBatch, scored: ScoredWindows) -> TokenFeatures:
        if scored.hidden is None:  # found out with the first window
            raise RunError(f"{self.base}: the features of this kind of model cannot be collected")
        mine = self._of_first(batch, scored.hidden.device)
        with ordinary_tensors():  # so that what reads them may change them or compute gradients through them
            features = scored.hidden[mine].clone()
            token_ids = batch.targets.to(mine.device)[mine].clone()
            states = torch.full_like(token_ids, int(TokenState.PROMPT))
            return TokenFeatures.without_draft(features, token_ids, states)

    def on_test_epoch_end(self) -> None:
        """Check that every window was scored once, add up what all ranks have scored, and log it.

        The sums are taken in the text's order, whoever has scored a window, and when: the result of a run that was
        stopped and resumed, or of another number of ranks, is the same to the last bit.

        Raises:
            RunError: windows are missing, because the run was told to stop early.
        """
        data, plan = self._data()
        assert data.text is not None
        scored = self._of_all_ranks([*self.earlier, *self._scored])
        self.earlier = ()
        if self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        counts = Counter(window for batch in scored for window in batch.windows)
        missing, repeated = len(plan.windows) - len(counts), sum(count > 1 for count in counts.values())
        if missing or repeated:
            raise RunError(
                f"{missing} of {len(plan.windows)} windows were not scored and {repeated} more than once, so there is "
                "no result (trainer.limit_test_batches?)"
            )
        sums: dict[int, list[WindowSum]] = {}
        for found in (found for batch in scored for found in batch.sums):
            sums.setdefault(found.window, []).append(found)
        for metric, recipe in zip(self.metrics, plan.recipes, strict=True):
            assert isinstance(metric, Perplexity)
            metric.reset()
            if recipe.document_kind == "pages":
                metric.add_text(data.text.words, data.text.bytes)
            _add_up(metric, recipe, sums)
        self.outcomes = [_outcome(metric) for metric in self.metrics]
        units = ("token_ppl", "word_ppl", "byte_ppl", "bits_per_byte")
        for name, recipe, outcome in zip(data.scored, plan.recipes, self.outcomes, strict=False):
            exact = units if recipe.whole_text else units[:1]
            self.log_dict({f"ppl/{name}/{unit}": outcome[unit] for unit in exact})

    def _of_all_ranks(self, mine: list[ScoredBatch]) -> list[ScoredBatch]:
        """What all ranks hold; a collective call."""
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return mine
        parts: list[list[ScoredBatch]] = [[]] * self.trainer.world_size
        torch.distributed.all_gather_object(parts, mine)
        return [batch for part in parts for batch in part]

    def describe_model(self) -> dict[str, Any]:
        """What a report says of the model."""
        assert self.scorer is not None
        model = self.scorer.model
        weights = [p for p in model.parameters() if p.device.type != "meta"]
        matrices = [p for p in weights if p.ndim > 1]
        zeros = sum(p.numel() - int(p.count_nonzero()) for p in matrices)
        return {
            "base": self.base,
            "digest": model_digest(self.base),
            "class": type(model).__name__,
            "parameters": sum(p.numel() for p in model.parameters()),
            "zero_weights": zeros / max(sum(p.numel() for p in matrices), 1),
            "dtype": str(model.dtype).removeprefix("torch."),
            "attention": getattr(model.config, "_attn_implementation", None),
            "device": str(model.device),
            "vocabulary": int(model.config.get_text_config().vocab_size),
        }


def window_sums(batch: WindowBatch, nll: Tensor) -> list[WindowSum]:
    """Add up a batch's values by window and page, in float64 and in the order of the tokens.

    Args:
        batch: which windows and pages the values are of.
        nll: ``[N]``, nats of each scored token.
    """
    # On the host, where sums are taken in the same order each time (and where there is float64 in any case).
    keys = torch.stack((batch.owners, batch.pages), dim=1).cpu()
    values = nll.detach().cpu().to(torch.float64)
    found, places, counts = keys.unique(dim=0, return_inverse=True, return_counts=True)
    sums = torch.zeros(len(found), dtype=torch.float64).index_add(0, places, values)
    rows = zip(found.tolist(), sums.tolist(), counts.tolist(), strict=True)
    return [WindowSum(batch.windows[row], page, total, count) for (row, page), total, count in rows]


def _add_up(metric: Perplexity, recipe: RecipePlan, sums: dict[int, list[WindowSum]]) -> None:
    """Add the windows of a recipe to its metric."""
    nll, tokens = [0.0] * recipe.documents, [0] * recipe.documents
    for place, window in enumerate(recipe.windows):
        for found in sums.get(window, ()):
            document = found.page if recipe.document_kind == "pages" else place
            nll[document] += found.nll
            tokens[document] += found.tokens
    if sum(tokens) != recipe.scored:
        raise RunError(f"{sum(tokens)} tokens were scored where {recipe.scored} were planned; begin a new run")
    metric.add_sums(nll, tokens, recipe.forwarded, recipe.bos_targets, len(recipe.windows))


def _outcome(metric: Any) -> dict[str, Any]:
    """What was found, as plain numbers, with the sums of each document."""
    result = {name: value.item() for name, value in metric.compute().items()}
    return result | {"document_nll": metric.nll.tolist(), "document_tokens": metric.tokens.tolist()}
