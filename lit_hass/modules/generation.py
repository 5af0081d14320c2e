"""Answering questions: `predict_step` over a decoder, with a draft or without."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from transformers import PreTrainedModel

from lit_hass.data.question_datamodule import QuestionBatch
from lit_hass.decoding import (
    AutoregressiveDecoder,
    Decoder,
    Generation,
    SamplingConfig,
    SpeculativeDecoder,
    TreeConfig,
    derive_seed,
)
from lit_hass.decoding.generate_settings import processors_of_generate
from lit_hass.decoding.lean import LeanForward
from lit_hass.decoding.witness import prove
from lit_hass.errors import RunError, UserError
from lit_hass.models import (
    attention_kind,
    check_base,
    check_context,
    check_draft,
    check_shipped_draft,
    context_of_run,
    dtype_setting,
    load_base,
    load_config,
    load_draft,
    load_tokenizer,
    model_digest,
    parse_dtype,
    resolve_draft,
    stop_ids,
    tree_of,
)
from lit_hass.modules.conversation import Conversation, QuestionOutcome, TurnOutcome
from lit_hass.modules.memory import peak_memory, reset_peak_memory
from lit_hass.modules.out_of_memory import batch_that_fits, is_out_of_memory
from lit_hass.modules.threads import choose_threads
from lit_hass.modules.trainer_precision import refuse_trainer_precision
from lit_hass.records import prompts_digest

log = logging.getLogger(__name__)


class GenerationModule(LightningModule):
    """Answer questions with a language model, and with a draft head where one is given.

    `predict_step` takes a `QuestionBatch` and returns one `QuestionOutcome` per question; what becomes of them is for
    callbacks to decide. In float32 nothing of a run decides an answer but (model, prompt, sampling, seed, question,
    choice, turn): batch size, number of ranks and a resume do not. In half precision the batch size may turn a near-tie
    of two tokens, because a device rounds other shapes otherwise; the noise of sampling is the same there too.

    Args:
        base: a `transformers` folder, hub id or shipped name (``html_to_tsv``).
        draft: an EAGLE-1, EAGLE-2 or HASS checkpoint of that base (folder, hub id or shipped name); None decodes token
            by token.
        tree: the sizes of the draft's tree; None takes those that belong to a shipped pair, and the published ones
            (60, 5, 10) with any other draft.
        sampling: how tokens are chosen.
        max_new_tokens: limit for each answer.
        dtype: of the weights: ``"auto"`` (float32 on a CPU, the checkpoint's own on a GPU) or a name.
        device_map: handed to `transformers`, such as ``"auto"`` to spread a large model over the GPUs of one process.
        extra_stop_ids: token ids that end an answer, beside those of the tokenizer and the model.
        seed: of the noise of sampled answers.
        warmup: full generations of the first question before the run, timed by nobody.
        strip_answers: remove white space at both ends of the answers' text, in the records and in what the next turn
            sees (the original scripts do). Matches with references are made on the text before that.
        model_id: name in the answer records; None takes the base's last path component, and says ``-hass`` where a
            draft is used.
        context: tokens that the base can take, prompt and answer together; None takes what its configuration says (see
            `lit_hass.models.context_length`).

    Attributes:
        collect_features: the one switch that a callback sets to have `TokenFeatures` in the outcomes. Outcomes that
            were timed meanwhile say so.
    """

    def __init__(
        self,
        base: str = "html_to_tsv",
        draft: str | None = None,
        tree: TreeConfig | None = None,
        sampling: SamplingConfig = SamplingConfig(),
        max_new_tokens: int = 512,
        dtype: str = "auto",
        device_map: str | None = None,
        extra_stop_ids: list[int] | None = None,
        seed: int = 0,
        warmup: int = 3,
        strip_answers: bool = True,
        model_id: str | None = None,
        context: int | None = None,
    ) -> None:
        """See the class."""
        super().__init__()
        if max_new_tokens < 1:
            raise UserError(f"model.max_new_tokens must be at least 1, found {max_new_tokens}")
        if warmup < 0:
            raise UserError(f"model.warmup must not be negative, found {warmup}")
        self.base, self.sampling, self.max_new_tokens = base, sampling, max_new_tokens
        self.draft = draft
        self.tree = tree or TreeConfig(**((draft and tree_of(base, draft)) or {}))
        self.base_dtype, self.device_map = dtype, device_map
        self.extra_stop_ids = tuple(extra_stop_ids or ())
        self.seed, self.warmup, self.strip_answers = seed, warmup, strip_answers
        self.model_id = model_id or base.rstrip("/").rsplit("/", 1)[-1] + ("-hass" if draft else "")
        self.context = context
        self.collect_features = False
        # Not a submodule: Lightning would move and cast it, and a model spread over devices must stay as it is.
        self.decoder: Decoder | None = None
        self._stop_ids: tuple[int, ...] = ()
        self._context: int | None = None
        self._warm = False
        self._proved: bool | None = None  # None before a prompt was tried

    def check(self) -> None:
        """Refuse a base or a draft that cannot be loaded, before anything is loaded.

        Raises:
            UserError: names the folder and what it lacks, or a dtype that does not exist.
        """
        parse_dtype(self.base_dtype)
        check_base(self.base)
        context_of_run(self)
        if self.draft is not None:
            check_shipped_draft(self.base, self.draft)
            check_draft(self.draft, self.base)

    def check_trainer(self, trainer: Any) -> None:
        """Refuse a Trainer whose precision the answers would not have; see `refuse_trainer_precision`."""
        refuse_trainer_precision(trainer)

    def setup(self, stage: str) -> None:
        """Check Trainer and base before the model is built."""
        self.check_trainer(self._trainer)
        self.check()

    def configure_model(self) -> None:
        """Load the base and make its decoder, once the input is known to be good."""
        if self.decoder is not None:
            return
        device = None if self.device_map else self.device
        model = load_base(self.base, dtype=self.base_dtype, device=device, device_map=self.device_map)
        self._stop_ids = tuple(sorted({*stop_ids(model, load_tokenizer(self.base)), *self.extra_stop_ids}))
        self._context = check_context(model.config, self.context)
        choose_threads(model)
        if unlike := processors_of_generate(model, self.sampling):
            log.warning(
                "%s: its generation config has %s, which generate() would apply and this run does not; what "
                "model.sampling has the same name for can be set there",
                self.base, ", ".join(f"{name} {value}" for name, value in unlike.items()),
            )  # fmt: skip
        self._make_decoders(model)
        for decoder in self._all_decoders():
            decoder.forward.context = self._context
        log.info(
            "loaded %s: %.1f M parameters, %s on %s; answers end at %s",
            self.base, sum(p.numel() for p in model.parameters()) / 1e6, model.dtype, model.device, self._stop_ids,
        )  # fmt: skip

    def _make_decoders(self, model: PreTrainedModel) -> None:
        if self.draft is None:
            self.decoder = AutoregressiveDecoder(model)
        else:
            self.decoder = SpeculativeDecoder(model, load_draft(self.draft, model), self.tree)

    def _all_decoders(self) -> Sequence[Decoder]:
        return () if self.decoder is None else (self.decoder,)

    def on_predict_start(self) -> None:
        """Each run proves its decoders and warms up anew."""
        self._warm, self._proved = self.warmup == 0, None

    def on_predict_end(self) -> None:
        """Say so where nothing of the run could prove its decoders."""
        if self._proved is False:
            log.warning(
                "%s: no prompt of this run could be answered so that its decoder could be compared with the base's own "
                "forward: nothing shows here that its answers are the base's", self.base,
            )  # fmt: skip

    def predict_step(self, batch: QuestionBatch, batch_idx: int) -> list[QuestionOutcome]:
        """Answer all turns and choices of a batch of questions.

        A question that fails (its prompt outgrows the context in a later turn, or the model yields no number) has an
        ``error`` in its outcome; the others of the batch go on.

        Raises:
            RunError: memory was short, or before the first answer: the decoder does not say what its base says.
            UserError: a callback wants features, and the base has none to collect.
        """
        if not batch.questions:
            return []
        self._prove_on(batch)
        if not self._warm:
            self._warm_up(batch)
        return self._run(batch)

    def _prove_on(self, batch: QuestionBatch) -> None:
        """Before the first answer, compare all decoders with the base's own forward on the batch's first prompt.

        What a callback wants collected and no prompt could give is refused, once, and not question by question.
        """
        if self.collect_features:
            for decoder in self._all_decoders():
                decoder.check_collects()
        if self._proved:
            return
        try:
            self._prove([batch.prompting.encode(question.turns[:1], []) for question in batch.questions])
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise RunError(self._too_large(batch, error)) from error

    def _prove(self, prompts: Sequence[torch.Tensor]) -> None:
        """The first prompt that can prove anything counts; where none can, the next batch is asked."""
        fitting = [p for p in prompts if len(p) and (self._context is None or len(p) < self._context)]
        self._proved = all(any(prove(decoder, prompt) for prompt in fitting) for decoder in self._all_decoders())

    def _run(self, batch: QuestionBatch) -> list[QuestionOutcome]:
        """Answer a batch with the present decoder."""
        reset_peak_memory(self.device)
        try:
            outcomes = self._answer(batch)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise RunError(self._too_large(batch, error)) from error
        except (RunError, UserError) as error:
            # One row without a finite logit, or with ids that the model does not have, stops its batch. Asking again
            # one by one leaves only the culprit failed.
            outcomes = [self._answer_alone(batch, i, error) for i in range(len(batch.questions))]
        memory = peak_memory(self.device)
        for outcome in outcomes:
            outcome.peak_memory = memory
            outcome.collected_features = self.collect_features
        return outcomes

    def _too_large(self, batch: QuestionBatch, error: BaseException) -> str:
        """What to say when memory was short for a batch: a question is never left out for that."""
        assert self.decoder is not None
        prompts = [batch.prompting.encode(question.turns[:1], []) for question in batch.questions]
        rows, longest = len(prompts) * batch.num_choices, max(map(len, prompts))
        forward = self.decoder.forward
        own = isinstance(forward, LeanForward)
        fits = batch_that_fits(forward.model, rows, longest, self.max_new_tokens, own) // batch.num_choices
        cure = f"--data.batch_size {fits} would fit by formula" if fits else "not even one question fits by formula"
        return (
            f"out of memory with {len(prompts)} questions of up to {longest} tokens ({rows} rows) and "
            f"{self.max_new_tokens} new tokens each; {cure}. What is answered is kept: run again with this version. "
            f"({(str(error) or 'MemoryError').splitlines()[0]})"
        )

    def _warm_up(self, batch: QuestionBatch) -> None:
        """Generate the first question's answers and throw them away."""
        first = QuestionBatch(batch.questions[:1], 1, batch.prompting)
        collecting, self.collect_features = self.collect_features, False
        try:
            for _ in range(self.warmup):
                self._answer(first)
        except (RunError, UserError):
            log.info("the warm-up failed; the run itself will say why")
        finally:
            self.collect_features = collecting
        self._warm = True

    def _answer_alone(self, batch: QuestionBatch, index: int, error: RunError | UserError) -> QuestionOutcome:
        if len(batch.questions) == 1:
            return QuestionOutcome(batch.questions[0], error=str(error))
        alone = QuestionBatch(batch.questions[index : index + 1], batch.num_choices, batch.prompting)
        try:
            return self._answer(alone)[0]
        except (RunError, UserError) as own:
            return QuestionOutcome(batch.questions[index], error=str(own))

    def _answer(self, batch: QuestionBatch) -> list[QuestionOutcome]:
        talks = [Conversation(q, choice) for q in batch.questions for choice in range(batch.num_choices)]
        for turn in range(max(len(question.turns) for question in batch.questions)):
            asked = [talk for talk in talks if talk.error is None and turn < len(talk.question.turns)]
            prompts = []
            for talk in list(asked):
                prompt = batch.prompting.encode(talk.question.turns[: turn + 1], talk.answers)
                if self._context is not None and len(prompt) >= self._context:
                    talk.error = (
                        f"turn {turn + 1} has a prompt of {len(prompt)} tokens, which leaves no room in the model's "
                        f"context of {self._context}"
                    )
                    asked.remove(talk)
                else:
                    prompts.append(prompt)
            if asked:
                self._decode(batch, turn, asked, prompts)
        return [
            QuestionOutcome.of([talk for talk in talks if talk.question is question]) for question in batch.questions
        ]

    def _decode(self, batch: QuestionBatch, turn: int, asked: list[Conversation], prompts: list[torch.Tensor]) -> None:
        assert self.decoder is not None
        seeds = [derive_seed(self.seed, talk.question.question_id, talk.choice, turn) for talk in asked]
        generations = self.decoder.generate(
            prompts, self.max_new_tokens, self.sampling, self._stop_ids, seeds, self.collect_features
        )
        for talk, prompt, seed, generation in zip(asked, prompts, seeds, generations, strict=True):
            raw = batch.prompting.decode(self._without_stop(generation))
            text = raw.strip() if self.strip_answers else raw
            talk.answers.append(text)
            on_cpu = generation.batch_processor_seconds > 0
            talk.turns.append(
                TurnOutcome(
                    text=text,
                    raw_text=raw,
                    generation=generation,
                    prompt_tokens=len(prompt),
                    prompt_digest=prompts_digest([prompt.tolist()]),
                    seed=None if self.sampling.greedy else seed,
                    batch_rows=generation.batch_rows,
                    time_share=generation.batch_seconds / generation.batch_rows,
                    text_tokens=batch.prompting.count(text),
                    processor_share=generation.batch_processor_seconds / generation.batch_rows if on_cpu else None,
                    processor_prefill_share=(
                        generation.prefill_processor_seconds / generation.batch_rows if on_cpu else None
                    ),
                )
            )

    def _without_stop(self, generation: Generation) -> list[int]:
        ids = generation.output_ids.tolist()
        return ids[:-1] if generation.stop_reason == "stop" else ids

    def resume_settings(self) -> dict[str, Any]:
        """What of the model decides the answers; see ``lit_hass.records.RunKey``."""
        sampling = self.sampling
        return {
            "base": model_digest(self.base),
            "draft": None if self.draft is None else model_digest(resolve_draft(self.draft)),
            "tree": None if self.draft is None else vars(self.tree),
            "dtype": dtype_setting(self.base, self.base_dtype, self.device_map),
            "attention": attention_kind(load_config(self.base)),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "repetition_penalty": sampling.repetition_penalty,
            "no_repeat_ngram_size": sampling.no_repeat_ngram_size,
            # Greedy answers do not depend on the seed, so another seed is no other run.
            "seed": None if sampling.greedy else self.seed,
            "max_new_tokens": self.max_new_tokens,
            "extra_stop_ids": sorted(self.extra_stop_ids),
            "strip_answers": self.strip_answers,
            **({} if self.context is None else {"context": self.context}),
        }
