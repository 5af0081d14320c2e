"""Training a HASS draft for a base."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lit_hass.data.batches import TokenBatch
from lit_hass.decoding import derive_seed
from lit_hass.decoding.select_draft import DraftScorer
from lit_hass.errors import RunError, UserError
from lit_hass.models import DraftModel, check_base, load_base, load_draft, load_tokenizer, stop_ids
from lit_hass.models.draft_alignment import aligned_passes
from lit_hass.models.draft_vocabulary import DraftVocabulary
from lit_hass.modules.draft_loss import DraftLoss, DraftLossConfig, chunk_rows, draft_loss
from lit_hass.modules.draft_optimizer import draft_optimizer
from lit_hass.modules.draft_rows import DraftRows, trainable, with_noise
from lit_hass.modules.draft_validation import ChainProbe, DraftScores
from lit_hass.modules.feature_cache import FeatureCacheConfig, open_cache
from lit_hass.modules.frozen_base import FrozenBase
from lit_hass.records import ensure_writable

log = logging.getLogger(__name__)

#: So many batches without a single row to train on, from the first on, are taken for a corpus without any.
_BARREN = 100


class DraftTrainingModule(LightningModule):
    """Fit and validate the draft of a frozen base, by harmonised context alignment.

    The base computes its features on the fly. Row t of a sequence has feature t and token t + 1 and is trained iff
    token t + 2 is to be predicted (`TokenBatch.labels`). Each of S alignment steps sees what decoding sees at that
    depth; the losses of all are summed. Features of data that comes again can be kept on disk: ``lit-hass fit -c
    configs/train_draft.yaml ... --model.feature_cache.folder PATH --model.feature_cache.max_gib 20``.

    Validation logs, per loader of the DataModule: ``val/<name>/loss``; ``agreement_<s>``, the share of rows whose
    likeliest token is the base's at step s; ``acceptance_<s>``, the same among chains that were right before; and
    ``acceptance_length``, accepted + 1 of greedy chains on the base's own answers. ``val/acceptance_length`` is the
    mean over the loaders.

    Source: HASS, arXiv 2408.15766; its two stages are ``loss.top_k_weight`` 0, then 1 from the first stage's draft.

    Args:
        base: folder, hub id or shipped name of the base.
        draft: a draft to go on from (second stage); None starts a fresh one.
        draft_settings: fields of `DraftConfig` in which a fresh draft differs from one layer of the base, such as
            ``intermediate_size``.
        draft_vocabulary: file of the tokens that the draft scores (``lit-hass draft-vocabulary``), for it and for its
            losses, which are then several times as cheap; None are all, or those of ``draft``.
        steps: alignment steps S; 1 is plain EAGLE training.
        loss: weights of the losses.
        reference_softmax_leak: train with the published code's attention, whose causal mask is not applied.
        feature_noise: width of uniform noise on the input features, times 512 / tokens of the sequence (published:
            0.2); targets and validation have none.
        lr: highest learning rate.
        betas: of AdamW.
        weight_decay: on matrices; vectors have none.
        warmup_steps: linear warm-up; then ``decay`` down to ``final_lr`` times ``lr`` at ``max_steps``.
        decay: shape of the decay.
        final_lr: share of ``lr`` at the end.
        chain: draft tokens per step of the chain that validation measures.
        validation_prompts: held-out prompts per loader, over all ranks.
        validation_max_new_tokens: limit of the base's answers to them.
        noise_seed: of the feature noise, keyed by batch and rank so that a resumed run draws the same.
        base_dtype: of the base's weights: ``"auto"`` (float32 on a CPU, the checkpoint's own on a GPU) or a name. The
            draft's are float32; use ``trainer.precision`` for mixed precision.
        feature_cache: where features are kept, in the base's dtype; None computes them each time. Sequences batched
            anew are read as their first batch rounded them: as without a cache to about 1e-6, not always to the bit.
    """

    def __init__(
        self,
        base: str = "html_to_tsv",
        draft: str | None = None,
        draft_settings: dict[str, Any] | None = None,
        draft_vocabulary: str | None = None,
        steps: int = 3,
        loss: DraftLossConfig = DraftLossConfig(),
        reference_softmax_leak: bool = False,
        feature_noise: float = 0.0,
        lr: float = 3e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.01,
        warmup_steps: int = 50,
        decay: Literal["cosine", "linear"] = "cosine",
        final_lr: float = 0.03,
        chain: int = 5,
        validation_prompts: int = 40,
        validation_max_new_tokens: int = 256,
        noise_seed: int = 0,
        base_dtype: str = "auto",
        feature_cache: FeatureCacheConfig | None = None,
    ) -> None:
        """See the class."""
        super().__init__()
        # As plain data: checkpoints are read without running code, and a DraftLossConfig would be refused.
        self.save_hyperparameters(ignore=["loss", "feature_cache"])
        self.hparams["loss"] = asdict(loss)
        self.hparams["feature_cache"] = asdict(feature_cache) if feature_cache is not None else None
        if draft is not None and draft_settings:
            raise UserError("model: draft_settings are for a fresh draft; the one that is loaded has its own")
        counts = {"steps": steps, "chain": chain, "validation_prompts": validation_prompts}
        for name, value in counts.items():
            if value < 1:
                raise UserError(f"model.{name} must be at least 1, found {value}")
        if feature_noise < 0:
            raise UserError(f"model.feature_noise must not be negative, found {feature_noise}")
        self.base_name, self.draft_name, self.draft_settings = base, draft, dict(draft_settings or {})
        self.draft_vocabulary = draft_vocabulary
        self.steps, self.loss, self.leak, self.feature_noise = steps, loss, reference_softmax_leak, feature_noise
        self.lr, self.betas, self.weight_decay = lr, betas, weight_decay
        self.warmup_steps, self.decay, self.final_lr = warmup_steps, decay, final_lr
        self.chain, self.validation_prompts = chain, validation_prompts
        self.validation_max_new_tokens = validation_max_new_tokens
        self.noise_seed, self.base_dtype, self.feature_cache = noise_seed, base_dtype, feature_cache
        self.draft: DraftModel | None = None
        self.base: FrozenBase | None = None
        self._scorer: DraftScorer | None = None
        self._stop_ids: tuple[int, ...] = ()
        self._scores: nn.ModuleList | None = None
        self._names: list[str] = []
        self._probes: list[ChainProbe] = []
        self._fertile = False
        self._folder = Path()

    @property
    def tokenizer_source(self) -> str:
        """Whose tokenizer the data must have."""
        return self.base_name

    def check(self) -> None:
        """Refuse a base that cannot be loaded, before anything is loaded, and a cache that cannot be written.

        Raises:
            UserError: names the folder and what it lacks.
        """
        check_base(self.base_name, needs_tokenizer=False)
        if self.draft_vocabulary is not None:
            DraftVocabulary.read(self.draft_vocabulary)
        if self.feature_cache is not None:
            ensure_writable(self.feature_cache.folder)

    def setup(self, stage: str) -> None:
        """Check that the data speaks the base's language.

        Raises:
            UserError: The DataModule's tokenizer is not the base's.
        """
        self.check()
        tokenizer = getattr(getattr(self._trainer, "datamodule", None), "tokenizer", None)
        if tokenizer is None:
            return
        own = load_tokenizer(self.base_name)
        if tokenizer.get_vocab() != own.get_vocab():
            raise UserError(
                f"the data has another tokenizer ({len(tokenizer)} pieces) than the base {self.base_name} "
                f"({len(own)}); give --data.tokenizer {self.base_name}"
            )

    def configure_model(self) -> None:
        """Load the base, and make or load the draft, once the input is known to be good."""
        if self.draft is not None:
            return
        device = self._trainer.strategy.root_device if self._trainer is not None else self.device
        model = load_base(self.base_name, dtype=self.base_dtype, device=device)
        cache = open_cache(self.feature_cache, self.base_name, model, self.global_rank)
        self.base = FrozenBase(model, cache)
        tokenizer = getattr(getattr(self._trainer, "datamodule", None), "tokenizer", None)
        self._stop_ids = stop_ids(model, tokenizer)
        if self.draft_name is None:
            draft = DraftModel.from_base(model, **self.draft_settings)
        else:
            draft = load_draft(self.draft_name, model)
        if self.draft_vocabulary is not None:
            draft.vocabulary = DraftVocabulary.read(self.draft_vocabulary)
        if draft.vocabulary is not None:
            draft.vocabulary.check(draft.config.vocab_size, self._stop_ids)
        self._scorer = self.base.scorer(draft)
        self.draft = draft.float().train().requires_grad_(True)
        self.draft.embed_tokens.requires_grad_(False)
        log.info("%.2f M parameters to train", sum(p.numel() for p in draft.parameters() if p.requires_grad) / 1e6)

    def forward(self, rows: DraftRows, steps: int | None = None) -> DraftLoss:
        """Run the alignment steps over rows (at least one of which counts), and compare with the base."""
        assert self.draft is not None and self.base is not None and self._scorer is not None
        passes = list(aligned_passes(self.draft, rows.token_ids, rows.features, steps or self.steps, self.leak))
        vocabulary = self.draft.vocabulary
        chunk = chunk_rows(self.base.vocab_size if vocabulary is None else len(vocabulary.ids))
        best = None
        if vocabulary is not None and not self.training:  # what training logs is within the draft's own vocabulary
            columns = torch.full((self.base.vocab_size,), -1, device=rows.targets.device)
            columns[self._scorer.ids] = torch.arange(len(vocabulary.ids), device=columns.device)
            wanted = rows.targets[rows.mask].split(chunk_rows(self.base.vocab_size))
            best = columns[torch.cat([self.base.head(part).argmax(-1) for part in wanted])]
        return draft_loss(passes, rows.targets, rows.mask, self._scorer.logits, self.loss, chunk, best)

    def training_step(self, batch: TokenBatch, batch_idx: int) -> Tensor:
        """Sum of the losses of all steps; 0 for a batch without a row to train on."""
        assert self.draft is not None and self.base is not None
        if not bool(trainable(batch).any()):
            self._count_barren()
            # Connected to every weight, so that DDP does not wait for gradients.
            return torch.stack([p.sum() for p in self.draft.parameters() if p.requires_grad]).sum() * 0.0
        self._fertile = True
        rows = DraftRows.of(batch, self.base.features(batch.input_ids, batch.attention_mask.sum(1)))
        if self.feature_noise:
            # Keyed by the batch's number: a resumed run draws what the run would have drawn.
            number = self.trainer.fit_loop.epoch_loop.total_batch_idx
            seed = derive_seed("feature noise", self.noise_seed, number, self.global_rank)
            rows.features = with_noise(rows.features, self.feature_noise, batch.attention_mask.sum(1), seed)
        loss = self(rows)
        if not torch.isfinite(loss.total):
            raise RunError(
                f"the training loss is {loss.total.item()} at step {self.global_step}; the batch is saved as "
                f"{self._save_batch(batch)}. Lower model.lr, or look for numbers in the features that are not finite"
            )
        size = batch.size
        self.log("train/loss", loss.total.detach() / self.steps, prog_bar=True, batch_size=size)
        for name, values in (("feature", loss.feature), ("soft", loss.soft), ("top_k", loss.top_k)):
            self.log(f"train/{name}_loss", values.mean(), batch_size=size)
        for step, right in enumerate(loss.agreement, start=1):
            self.log(f"train/agreement_{step}", right.float().mean(), prog_bar=step == 1, batch_size=size)
        self.log("train/rows_per_batch", float(loss.agreement.shape[1]), batch_size=size)
        return loss.total

    def _count_barren(self) -> None:
        if not self._fertile and self.trainer.fit_loop.epoch_loop.total_batch_idx + 1 >= _BARREN:
            raise UserError(
                f"the first {_BARREN} batches have no token to train on: a token counts if its label is set and two "
                "tokens stand before it"
            )

    def _save_batch(self, batch: TokenBatch) -> Path:
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"bad_batch_step{self.global_step}_rank{self.global_rank}.pt"
        torch.save({name: value.cpu() for name, value in vars(batch).items()}, path)
        return path

    def on_fit_start(self) -> None:
        """Note the run's folder, and keep DDP from syncing buffers in each forward.

        They are constants, and ranks have different numbers of validation batches: one would wait for a broadcast that
        never comes.
        """
        # Asking for it is a collective call, and a loss that is no number may be one rank's alone.
        self._folder = Path(self.trainer.log_dir or self.trainer.default_root_dir)
        wrapped = self.trainer.strategy.model
        if isinstance(wrapped, DistributedDataParallel):
            wrapped.broadcast_buffers = False

    def on_validation_epoch_start(self) -> None:
        """One set of means and one probe per validation loader."""
        data = getattr(self.trainer, "datamodule", None)
        loaders = self.trainer.val_dataloaders
        count = len(loaders) if isinstance(loaders, list) else 1
        self._names = list(getattr(data, "validation_names", None) or map(str, range(count)))[:count]
        if self._scores is None:
            depths = max(self.steps, self.chain)
            self._scores = nn.ModuleList(DraftScores(depths) for _ in self._names).to(self.device)
        if not self._probes:
            # Ranks may have one prompt more than others: the mean goes by steps.
            mine = len(range(self.global_rank, self.validation_prompts, self.trainer.world_size))
            self._probes = [ChainProbe(mine, self.validation_max_new_tokens, self.chain) for _ in self._names]
        for scores in self._scores:
            scores.reset()  # type: ignore[operator]

    def validation_step(self, batch: TokenBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Add a batch to the means, and its prompts to the probe."""
        assert self._scores is not None and self.base is not None
        self._probes[dataloader_idx].collect(batch)
        if not bool(trainable(batch).any()):
            return
        rows = DraftRows.of(batch, self.base.features(batch.input_ids, batch.attention_mask.sum(1)))
        found = self(rows, max(self.steps, self.chain))
        config = self.loss
        loss = config.feature_weight * found.feature + config.soft_weight * found.soft
        loss = (loss + config.top_k_weight * found.top_k)[: self.steps].mean()
        self._scores[dataloader_idx].add(loss, found.agreement, rows.mask)  # type: ignore[operator]

    def on_validation_epoch_end(self) -> None:
        """Measure the chains and log everything; computing the means gathers them from all ranks."""
        assert self._scores is not None and self._scorer is not None
        assert self.base is not None and self.draft is not None
        lengths = []
        for name, scores, probe in zip(self._names, self._scores, self._probes, strict=True):
            steps = probe.measure(self.base, self.draft, self._scorer, self._stop_ids).to(self.device)
            scores.length.update(steps)  # type: ignore[operator,union-attr]
            for key, value in scores.values().items():  # type: ignore[operator]
                self.log(f"val/{name}/{key}", value, sync_dist=True)
                if key == "acceptance_length":
                    lengths.append(value)
        self.log("val/acceptance_length", torch.stack(lengths).mean(), prog_bar=True, sync_dist=True)
        if self.trainer.sanity_checking:
            self._probes = []  # it saw a few batches only

    def teardown(self, stage: str) -> None:
        """Write what the feature cache still has in memory."""
        if self.base is not None and self.base.cache is not None:
            self.base.cache.close()

    def configure_optimizers(self) -> Any:
        """AdamW over the draft; warm-up and decay count optimiser steps."""
        total = self.trainer.estimated_stepping_batches
        shape = (self.lr, self.betas, self.weight_decay, self.warmup_steps, self.decay, self.final_lr)
        return draft_optimizer(self.parameters(), total, *shape)

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype = torch.float16) -> None:
        """Write the draft as a checkpoint that `load_draft` reads."""
        assert self.draft is not None
        self.draft.save_pretrained(folder, dtype)
