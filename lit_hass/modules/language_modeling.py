"""Training and validating a language model."""

from __future__ import annotations

import copy
import logging
import math
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torchmetrics import MeanMetric
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from lit_hass.data.batches import IGNORE, TokenBatch
from lit_hass.errors import RunError, UserError
from lit_hass.models import check_base, find_decoder, load_base

log = logging.getLogger(__name__)


class LanguageModelingModule(LightningModule):
    """Fit and validate a causal language model, from scratch or from a base.

    Validation logs, per loader of the DataModule, ``val/<name>/loss`` (nats per scored token), ``token_accuracy`` and
    ``exact_match``. Exact match is the share of sequences whose every scored token is the model's argmax given the
    true tokens before it: that is so exactly when greedy decoding would write the reference to the end, because up to
    a first difference both read the same tokens. ``val/exact_match`` is their mean over the loaders.
    ``val/selection`` is what the best checkpoint is chosen by, the higher the better: that mean, or for data without
    answers to match (``validates_by = "loss"`` of the DataModule) the negative mean loss.

    Args:
        architecture: a ``transformers`` config as a mapping with ``model_type``, for training from scratch; the
            vocabulary size is the tokenizer's. One of ``architecture`` and ``base`` is given.
        base: folder, hub id or shipped name of a model to go on from.
        lr: highest learning rate.
        betas: of AdamW.
        weight_decay: on matrices; vectors (norms, biases) have none.
        warmup_steps: linear warm-up, then a cosine down to ``final_lr`` times ``lr`` at ``max_steps``.
        final_lr: share of ``lr`` at the end.
        embedding_std: standard deviation of the embeddings at the start (from scratch only).
        weight_std: of all other matrices.
        head_from_embeddings: start an untied lm_head as a copy of the embeddings (copying text then needs only the
            right attention, not a second code for the same words).
        gradient_checkpointing: recompute activations in the backward pass (less memory, more time).
    """

    def __init__(
        self,
        architecture: dict[str, Any] | None = None,
        base: str | None = None,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.98),
        weight_decay: float = 0.05,
        warmup_steps: int = 100,
        final_lr: float = 0.05,
        embedding_std: float = 0.1,
        weight_std: float = 0.03,
        head_from_embeddings: bool = True,
        gradient_checkpointing: bool = False,
    ) -> None:
        """See the class."""
        super().__init__()
        if (architecture is None) == (base is None):
            raise UserError("model: give either architecture (to train from scratch) or base (to go on from a model)")
        self.save_hyperparameters()
        self.lr, self.betas, self.weight_decay = lr, betas, weight_decay
        self.warmup_steps, self.final_lr = warmup_steps, final_lr
        self.model: PreTrainedModel | None = None
        self._scores: nn.ModuleList | None = None
        self._names: list[str] = []
        self._plain_head = True

    def check(self) -> None:
        """Refuse a base that cannot be loaded, before anything is loaded.

        Raises:
            UserError: names the folder and what it lacks.
        """
        base = self.hparams["base"]
        if base is not None:
            check_base(base, needs_tokenizer=False)

    def configure_model(self) -> None:
        """Build or load the model, once, after the data is known to be good."""
        if self.model is not None:
            return
        hp: Any = self.hparams
        if hp.base is not None:
            self.model = load_base(hp.base).requires_grad_(True).train()
        else:
            self.model = self._from_scratch(dict(hp.architecture))
        self._plain_head = _has_plain_head(self.model)
        if hp.gradient_checkpointing:
            self.model.gradient_checkpointing_enable()
        log.info("%.2f M parameters", sum(p.numel() for p in self.model.parameters()) / 1e6)

    def _from_scratch(self, architecture: dict[str, Any]) -> PreTrainedModel:
        hp: Any = self.hparams
        tokenizer = self._tokenizer()
        try:
            model_type = architecture.pop("model_type")
            config = AutoConfig.for_model(
                model_type,
                vocab_size=len(tokenizer),
                pad_token_id=tokenizer.pad_token_id,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                **architecture,
            )
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
        except KeyError as error:
            raise UserError(f"model.architecture: {error} is missing") from error
        except (ArithmeticError, StrictDataclassError, TypeError, ValueError) as error:
            raise UserError(f"model.architecture: {' '.join(str(error).split())}") from error
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                nn.init.normal_(parameter, std=hp.weight_std)
        if not _is_causal(model):
            raise UserError(f"model.architecture: {model_type} sees the tokens it is to predict, it is no decoder")
        embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
        nn.init.normal_(embedding.weight, std=hp.embedding_std)
        if hp.head_from_embeddings and head.weight is not embedding.weight:
            with torch.no_grad():
                head.weight.copy_(embedding.weight)
        return model

    def _tokenizer(self) -> Any:
        tokenizer = getattr(getattr(self._trainer, "datamodule", None), "tokenizer", None)
        if tokenizer is None:
            raise UserError("training needs a DataModule with a tokenizer")
        return tokenizer

    def forward(self, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        """Logits ``[N, V]`` (float32) and targets ``[N]`` (int64) of the N scored positions, row by row."""
        assert self.model is not None
        scored = batch.labels[:, 1:] != IGNORE
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "use_cache": False}
        if not self._plain_head:
            return self.model(**inputs).logits[:, :-1][scored].float(), batch.labels[:, 1:][scored]
        # Only the scored rows go through the head: prompts are most of the tokens and their logits are not needed.
        decoder = find_decoder(self.model)[1](**inputs)
        head = self.model.get_output_embeddings()
        return head(decoder.last_hidden_state[:, :-1][scored]).float(), batch.labels[:, 1:][scored]

    def training_step(self, batch: TokenBatch, batch_idx: int) -> Tensor:
        """Mean cross-entropy of the scored tokens."""
        logits, targets = self(batch)
        loss = F.cross_entropy(logits, targets)
        if not torch.isfinite(loss):
            raise RunError(f"the training loss is {loss.item()} at step {self.global_step}; lower model.lr")
        with torch.no_grad():
            accuracy = (logits.argmax(-1) == targets).float().mean()
        self.log("train/loss", loss, batch_size=batch.size, prog_bar=True)
        self.log("train/token_accuracy", accuracy, batch_size=batch.size, prog_bar=True)
        self.log("train/tokens_per_batch", float(batch.attention_mask.sum()), batch_size=batch.size)
        return loss

    def on_fit_start(self) -> None:
        """Keep DDP from syncing buffers in each forward.

        A language model's buffers are constants, and ranks have different numbers of validation batches: one would wait
        for a broadcast that never comes.
        """
        wrapped = self.trainer.strategy.model
        if isinstance(wrapped, DistributedDataParallel):
            wrapped.broadcast_buffers = False

    def on_validation_epoch_start(self) -> None:
        """One set of means per validation loader; they sync over ranks by weight."""
        data = getattr(self.trainer, "datamodule", None)
        loaders = self.trainer.val_dataloaders
        count = len(loaders) if isinstance(loaders, list) else 1
        self._names = list(getattr(data, "validation_names", None) or map(str, range(count)))[:count]
        if self._scores is None:
            self._scores = nn.ModuleList(
                nn.ModuleDict({k: MeanMetric() for k in ("loss", "token_accuracy", "exact_match")}) for _ in self._names
            ).to(self.device)
        for scores in self._scores:
            for metric in scores.values():  # type: ignore[operator,union-attr]
                metric.reset()

    def validation_step(self, batch: TokenBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Add a batch to the means."""
        assert self._scores is not None
        logits, targets = self(batch)
        right = logits.argmax(-1) == targets
        owner = torch.nonzero(batch.labels[:, 1:] != IGNORE)[:, 0]
        # Named, as everywhere here: under some precisions of a Trainer new tensors are bfloat16, which counts to 256.
        none = torch.zeros(batch.size, dtype=torch.float32, device=owner.device)
        wrong = none.index_add_(0, owner, (~right).float())
        scores: Any = self._scores[dataloader_idx]
        scores["loss"].update(F.cross_entropy(logits, targets, reduction="none"))
        scores["token_accuracy"].update(right.float())
        scores["exact_match"].update((wrong == 0).float())

    def on_validation_epoch_end(self) -> None:
        """Log the means; `MeanMetric.compute` gathers them from all ranks."""
        assert self._scores is not None
        matches, losses = [], []
        for name, scores in zip(self._names, self._scores, strict=True):
            for key, metric in scores.items():  # type: ignore[operator,union-attr]
                value = metric.compute()
                self.log(f"val/{name}/{key}", value)
                if key == "exact_match":
                    matches.append(value)
                elif key == "loss":
                    losses.append(value)
        match, loss = torch.stack(matches).mean(), torch.stack(losses).mean()
        by_loss = getattr(getattr(self.trainer, "datamodule", None), "validates_by", None) == "loss"
        self.log("val/exact_match", match, prog_bar=not by_loss)
        self.log("val/selection", -loss if by_loss else match, prog_bar=by_loss)

    def configure_optimizers(self) -> Any:
        """AdamW with warm-up and cosine."""
        matrices = [p for p in self.parameters() if p.requires_grad and p.ndim >= 2]
        vectors = [p for p in self.parameters() if p.requires_grad and p.ndim < 2]
        optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": self.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
            lr=self.lr,
            betas=self.betas,
            # Lightning refuses to clip the gradients of a fused optimiser in mixed precision.
            fused="mixed" not in str(self.trainer.precision),
        )
        total = self.trainer.estimated_stepping_batches
        if total < 1 or math.isinf(total):
            raise UserError("trainer.max_steps is needed: the data is endless, and the learning rate follows it")

        def share(step: int) -> float:
            if step < self.warmup_steps:
                return (step + 1) / self.warmup_steps
            done = min(1.0, (step - self.warmup_steps) / max(1, total - self.warmup_steps))
            return self.final_lr + (1 - self.final_lr) * 0.5 * (1 + math.cos(math.pi * done))

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype = torch.float16) -> None:
        """Write the model and its tokenizer as a ``transformers`` folder.

        Raises:
            RunError: a weight is too large for ``dtype``.
        """
        assert self.model is not None
        # A copy, because transformers writes the dtype of the parameters it finds into the config.
        stored: Any = copy.deepcopy(self.model)
        stored.to(dtype)
        for name, parameter in stored.named_parameters():
            if not torch.isfinite(parameter).all():
                raise RunError(f"{name} has values that are not finite in {str(dtype).removeprefix('torch.')}")
        stored.save_pretrained(folder)
        for weights in Path(folder).glob("*.safetensors"):
            shutil.copymode(Path(folder) / "config.json", weights)  # else nobody but the owner can read them
        self._tokenizer().save_pretrained(folder)


def _is_causal(model: PreTrainedModel) -> bool:
    """Whether a logit depends on no later token (an encoder's does; trained so, it would learn to look it up)."""
    ids = torch.arange(4)[None] % model.config.get_text_config().vocab_size
    other = ids.clone()
    other[0, -1] = 0
    training = model.training
    model.eval()
    with torch.no_grad():
        first, second = (model(input_ids=x).logits[0, :-1] for x in (ids, other))
    model.train(training)
    return torch.allclose(first, second, rtol=1e-4, atol=1e-5)


def _has_plain_head(model: PreTrainedModel) -> bool:
    """Whether the logits are the output layer's, nothing behind it (Gemma 2 caps them, Granite scales them)."""
    # Several ids: that of padding may have an embedding of zeros, hence logits that no cap changes.
    embedding: Any = model.get_input_embeddings()
    ids = torch.arange(4, device=model.device)[None] % len(embedding.weight)
    training = model.training
    model.eval()  # without dropout, so that two forwards agree and no random number is drawn
    with torch.no_grad():
        whole = model(input_ids=ids, use_cache=False).logits
        states = find_decoder(model)[1](input_ids=ids, use_cache=False).last_hidden_state
        layer: Any = model.get_output_embeddings()
        if states.shape[-1] != layer.weight.shape[1]:
            return False
        head = layer(states)
    model.train(training)
    # As strict as rounding lets: a cap changes the small logits of an untrained model by little.
    return bool((whole - head).abs().max() <= 16 * torch.finfo(head.dtype).eps * whole.abs().max())
