"""Answering multiple-choice questions with a rationale: `predict_step` over a decoder."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from lit_hass.data.commonsense_qa_answers import NEXT_QUESTION, completion_of, loose_answer, strict_answer
from lit_hass.data.prompt_batches import PromptBatch, PromptRow
from lit_hass.decoding import Generation, SamplingConfig, TreeConfig, derive_seed
from lit_hass.decoding.lean import LeanForward
from lit_hass.errors import RunError
from lit_hass.models import load_tokenizer
from lit_hass.modules.generation import GenerationModule
from lit_hass.modules.out_of_memory import batch_that_fits, is_out_of_memory
from lit_hass.records.predictions import Prediction

log = logging.getLogger(__name__)


class RationaleModule(GenerationModule):
    r"""Let a language model reason about questions and name a choice.

    `predict_step` takes a `PromptBatch` and returns one `Prediction` per row. The completion ends at the first stop
    token or where the model begins another question (``\nQ:``); one that ends at neither is cut. Its answer is the last
    ``answer is ... (E)``; the original scripts' reading, the last lone letter, is recorded beside it.

    As with `GenerationModule`, in float32 a prediction depends on (model, prompt, sampling, seed, iteration, question)
    alone: batches, ranks and a resume change nothing.

    Args:
        base: a `transformers` folder, hub id or shipped name.
        draft: a draft head of that base, which changes the speed and nothing else; None decodes token by token.
        tree: the sizes of the draft's tree; None takes those of the pair, see `GenerationModule`.
        sampling: how tokens are chosen.
        max_new_tokens: limit for each completion (``gen_length``).
        dtype: of the weights, see `GenerationModule`.
        device_map: handed to `transformers`.
        extra_stop_ids: token ids that end a completion, beside those of the tokenizer and the model.
        seed: of the noise of sampled completions.
        iteration: which iteration of the loop the base is of; 0 is the base. Each has noise of its own.
        context: tokens that the base can take, see `GenerationModule`.
    """

    def __init__(
        self,
        base: str = "html_to_tsv",
        draft: str | None = None,
        tree: TreeConfig | None = None,
        sampling: SamplingConfig = SamplingConfig(),
        max_new_tokens: int = 128,
        dtype: str = "auto",
        device_map: str | None = None,
        extra_stop_ids: list[int] | None = None,
        seed: int = 0,
        iteration: int = 0,
        context: int | None = None,
    ) -> None:
        """See the class."""
        super().__init__(
            base, draft, tree, sampling, max_new_tokens, dtype, device_map, extra_stop_ids, seed, warmup=0,
            context=context,
        )  # fmt: skip
        self.iteration = iteration
        self._tokenizer: Any = None

    def configure_model(self) -> None:
        """Load tokenizer, base and decoder, once the input is known to be good."""
        if self.decoder is None:
            self._tokenizer = load_tokenizer(self.base)
        super().configure_model()

    def predict_step(self, batch: PromptBatch, batch_idx: int) -> list[Prediction]:  # type: ignore[override]
        """Answer a batch.

        Raises:
            RunError: the device's memory was too small; says which batch would fit. Or, before the first answer: the
                decoder does not say what its base says.
        """
        if not batch.rows:
            return []
        assert self.decoder is not None
        seeds = [derive_seed(self.seed, self.iteration, int(row.hinted), row.question.id) for row in batch.rows]
        try:
            if not self._proved:
                self._prove(batch.prompts)
            generations = self.decoder.generate(
                batch.prompts, self.max_new_tokens, self.sampling, self._stop_ids, seeds, self.collect_features
            )
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise RunError(self._out_of_memory(batch, error)) from error
        return [self._prediction(row, one) for row, one in zip(batch.rows, generations, strict=True)]

    def _out_of_memory(self, batch: PromptBatch, error: BaseException) -> str:
        assert self.decoder is not None
        rows, longest = batch.input_ids.shape
        forward = self.decoder.forward
        fits = batch_that_fits(forward.model, rows, longest, self.max_new_tokens, isinstance(forward, LeanForward))
        cure = (
            f"by formula {fits} would fit: --data.batch_size {fits}"
            if fits
            else "not even one row fits: lower model.max_new_tokens or take a smaller model"
        )
        return (
            f"out of memory with {rows} prompts of up to {longest} tokens and {self.max_new_tokens} new ones; {cure}. "
            f"What is answered is kept: run it again to go on. ({(str(error) or 'MemoryError').splitlines()[0]})"
        )

    def _prediction(self, row: PromptRow, generation: Generation) -> Prediction:
        ids = generation.output_ids.tolist()
        stopped = generation.stop_reason == "stop"
        text = self._decode_text(ids[:-1] if stopped else ids)
        completion, next_question = completion_of(text)
        answer = strict_answer(completion)
        return Prediction(
            id=row.question.id,
            iter=self.iteration,
            prompt=row.plain_prompt,
            completion=completion,
            answer=answer,
            loose=loose_answer(completion),
            key=row.question.answer,
            correct=answer == row.question.answer,
            hinted=row.hinted,
            prompt_tokens=len(row.ids),
            gen_tokens=self._tokens_until(ids, NEXT_QUESTION) if next_question else len(ids),
            cut=not stopped and not next_question,
            seconds=generation.batch_seconds / generation.batch_rows,
        )

    def _decode_text(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def _tokens_until(self, ids: list[int], text: str) -> int:
        """How many tokens it takes until their text holds ``text``: decoding more never takes it away again."""
        low, high = 1, len(ids)
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if text in self._decode_text(ids[:middle]) else (middle + 1, high)
        return low

    def resume_settings(self) -> dict[str, Any]:
        """What of the model decides the predictions; see ``lit_hass.records.RunKey``."""
        settings = super().resume_settings()
        del settings["strip_answers"]
        return {**settings, "iteration": self.iteration}
