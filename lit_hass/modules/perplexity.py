"""Perplexity of a base model on a text, by several protocols in one run."""

from __future__ import annotations

import logging
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torchmetrics import Metric

from lit_hass.data.perplexity_datamodule import PerplexityDataModule
from lit_hass.data.perplexity_plan import EvaluationPlan, WindowBatch
from lit_hass.decoding import TokenFeatures, TokenState
from lit_hass.errors import RunError, UserError
from lit_hass.metrics import Perplexity
from lit_hass.metrics.exact_states import ordinary_tensors
from lit_hass.models import check_base, load_base, model_digest, parse_dtype
from lit_hass.modules.threads import choose_threads
from lit_hass.modules.trainer_precision import refuse_trainer_precision
from lit_hass.modules.window_scorer import ScoredWindows, WindowScorer

log = logging.getLogger(__name__)


class PerplexityModule(LightningModule):
    """Score the windows of a `PerplexityDataModule` with a language model.

    `test_step` returns a dict:

    =====================  ======================================================================================
    ``"nll"``              ``[N]`` float32, nats of each scored token of the batch
    ``"targets"``          ``[N]`` int64, these tokens
    ``"windows"``          indices of the windows in the run's plan, one per row of the batch
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
        self._seen = _SeenWindows(0)
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
        self.metrics = nn.ModuleList(Perplexity(recipe.documents) for recipe in plan.recipes)
        self._seen = _SeenWindows(len(plan.windows))

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

    def on_test_start(self) -> None:
        """Begin with empty sums; the text's own counts enter them once, on rank 0."""
        data, plan = self._data()
        assert data.text is not None
        if self.collect_features and not (self.scorer and self.scorer.takes_apart):
            raise UserError(f"{self.base}: the features of this kind of model cannot be collected")
        self._seen.reset()
        self.outcomes = []
        for metric, recipe in zip(self.metrics, plan.recipes, strict=True):
            assert isinstance(metric, Perplexity)
            metric.reset()
            if self.global_rank == 0 and recipe.document_kind == "pages":
                metric.add_text(data.text.words, data.text.bytes)

    def test_step(self, batch: WindowBatch, batch_idx: int) -> dict[str, Any]:
        """Score a batch of windows and add it to the sums of every recipe that has them.

        Raises:
            RunError: a token's likelihood is no number; names protocol, window and document.
        """
        assert self.scorer is not None
        scored = self.scorer(batch)
        nll = scored.nll.to(batch.targets.device)  # a model spread over devices leaves them on its last one
        self._refuse_nan(batch, nll)
        for recipe in sorted({index for members in batch.members for index, _ in members}):
            self._add(recipe, batch, nll)
        self._seen.update(batch.windows)
        first = batch.members[0][0][0] if batch.members else None
        return {
            "nll": nll,
            "targets": batch.targets,
            "windows": batch.windows,
            "running": None if first is None else (self._names[first], self._running(first)),
            "features": self._features(batch, scored) if self.collect_features else None,
            "feature_windows": self._feature_windows(batch) if self.collect_features else None,
        }

    def _add(self, recipe: int, batch: WindowBatch, values: Tensor) -> None:
        """Add the rows of a batch that belong to a recipe to its sums."""
        places = [dict(members).get(recipe) for members in batch.members]
        rows = [i for i, place in enumerate(places) if place is not None]
        mine = torch.tensor([place is not None for place in places], device=values.device)[batch.owners]
        metric: Any = self.metrics[recipe]
        _, plan = self._data()
        if plan.recipes[recipe].document_kind == "pages":
            documents = batch.pages
        else:  # windows are the documents
            place_of_row = torch.tensor([-1 if place is None else place for place in places], device=values.device)
            documents = place_of_row[batch.owners]
        targets = batch.targets[mine]
        bos = plan.bos
        metric.update(
            values[mine],
            documents[mine],
            forwarded=sum(batch.lengths[i] for i in rows),
            bos_targets=0 if bos is None else int((targets == bos).sum()),
            windows=len(rows),
        )

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

    def _running(self, recipe: int) -> float:
        metric: Any = self.metrics[recipe]
        return float(torch.exp(metric.nll.sum() / metric.tokens.sum()))

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
        """Check that every window was scored once, merge the sums over ranks, and log them.

        Raises:
            RunError: windows are missing, because the run was told to stop early.
        """
        data, plan = self._data()
        counts = self._seen.compute()
        if self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        missing, repeated = int((counts == 0).sum()), int((counts > 1).sum())
        if missing or repeated:
            raise RunError(
                f"{missing} of {len(plan.windows)} windows were not scored and {repeated} more than once, so there is "
                "no result (trainer.limit_test_batches?)"
            )
        self.outcomes = [_merged(metric) for metric in self.metrics]
        units = ("token_ppl", "word_ppl", "byte_ppl", "bits_per_byte")
        for name, recipe, outcome in zip(data.scored, plan.recipes, self.outcomes, strict=False):
            exact = units if recipe.whole_text else units[:1]
            self.log_dict({f"ppl/{name}/{unit}": outcome[unit] for unit in exact})

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


def _merged(metric: Any) -> dict[str, Any]:
    """What all ranks together found, as plain numbers, with the sums of each document; a collective call."""
    result = {name: value.item() for name, value in metric.compute().items()}
    with metric.sync_context():
        return result | {"document_nll": metric.nll.tolist(), "document_tokens": metric.tokens.tolist()}


class _SeenWindows(Metric):
    """How often each window was scored, over all ranks."""

    full_state_update = False
    counts: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.add_state("counts", torch.zeros(max(size, 1), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, windows: tuple[int, ...]) -> None:
        with ordinary_tensors():
            seen = torch.tensor(windows, dtype=torch.int64, device=self.counts.device)
            self.counts = self.counts.index_add(0, seen, torch.ones_like(seen))

    def compute(self) -> Tensor:
        return self.counts
