"""The main job: every question answered with the draft and without it, in turn, in one process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedModel

from lit_hass.data.question_datamodule import QuestionBatch
from lit_hass.decoding import AutoregressiveDecoder, Decoder, SamplingConfig, SpeculativeDecoder, TreeConfig
from lit_hass.decoding.divergence import first_divergence, top_two_gap
from lit_hass.errors import UserError
from lit_hass.models import load_draft, own_draft
from lit_hass.modules.conversation import QuestionOutcome, TurnOutcome
from lit_hass.modules.generation import GenerationModule

#: What is compared, by the names of the run folder's parts.
BASELINE, HASS = "baseline", "hass"


@dataclass
class EvaluationOutcome:
    """What both methods made of one question.

    Attributes:
        parts: outcome by method.
    """

    parts: dict[str, QuestionOutcome]

    def to(self, device: object) -> EvaluationOutcome:
        """Stay as it is; see `QuestionOutcome.to`."""
        return self


class EvaluationModule(GenerationModule):
    """Answer questions with a base alone and with its draft, under equal conditions.

    Both methods share the base's weights, its hand-written forward where there is one, processors, stop tokens and
    noise. For each batch both run in turn, ``repeats`` times, and who begins alternates: what else the machine does
    hits both alike. Of a turn's repeats the one with the median time is recorded (on a CPU that of the processor, which
    other work hardly touches, else wall time), with the seconds of all. Where a callback asks for features, both
    methods answer once more for them, untimed.

    Args:
        base: see `GenerationModule`.
        draft: likewise; None takes the one that is shipped with the base, and there must be one.
        tree: likewise.
        sampling: of both methods.
        max_new_tokens: likewise.
        dtype: likewise.
        device_map: likewise.
        extra_stop_ids: likewise.
        seed: likewise.
        warmup: generations of the first question by each method before the run, not recorded.
        repeats: how often each method answers each question.
        strip_answers: see `GenerationModule`.
        model_id: likewise.
        context: likewise.
    """

    #: Names of the parts that `predict_step` returns; each is written into a folder of its own.
    methods = (BASELINE, HASS)

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
        warmup: int = 1,
        repeats: int = 3,
        strip_answers: bool = True,
        model_id: str | None = None,
        context: int | None = None,
    ) -> None:
        """See the class."""
        draft = draft or own_draft(base)
        if not draft:
            raise UserError(
                f"model.draft is needed to compare a base with its draft, and none is shipped with {base}: give "
                "--model.draft one of that base (predict answers without one)"
            )
        if repeats < 1:
            raise UserError(f"model.repeats must be at least 1, found {repeats}")
        super().__init__(
            base, draft, tree, sampling, max_new_tokens, dtype, device_map, extra_stop_ids, seed, warmup, strip_answers,
            model_id or base.rstrip("/").rsplit("/", 1)[-1], context,
        )  # fmt: skip
        self.repeats = repeats
        self._decoders: dict[str, Decoder] = {}
        self._begins = 0

    def _make_decoders(self, model: PreTrainedModel) -> None:
        assert self.draft is not None
        hass = SpeculativeDecoder(model, load_draft(self.draft, model), self.tree)
        self._decoders = {BASELINE: AutoregressiveDecoder(model), HASS: hass}
        self.decoder = hass

    def _all_decoders(self) -> Sequence[Decoder]:
        return tuple(self._decoders.values())

    def predict_step(self, batch: QuestionBatch, batch_idx: int) -> list[EvaluationOutcome]:  # type: ignore[override]
        """Answer a batch of questions with both methods; a question fails for each by itself."""
        if not batch.questions:
            return []
        self._prove_on(batch)
        if not self._warm:
            for decoder in self._decoders.values():
                self.decoder = decoder
                self._warm_up(batch)
        # Nothing is timed while features are copied.
        collecting, self.collect_features = self.collect_features, False
        try:
            parts = self._measure(batch)
        finally:
            self.collect_features = collecting
        if collecting:
            self._collect(batch, parts)
        for baseline, hass in zip(parts[BASELINE], parts[HASS], strict=True):
            self._measure_gaps(batch, baseline, hass)
        return [
            EvaluationOutcome(dict(zip(self.methods, outcomes, strict=True)))
            for outcomes in zip(*(parts[method] for method in self.methods), strict=True)
        ]

    def _measure(self, batch: QuestionBatch) -> dict[str, list[QuestionOutcome]]:
        """Answer with both methods in turn, `repeats` times, and take each turn's median."""
        runs: dict[str, list[list[QuestionOutcome]]] = {method: [] for method in self.methods}
        for _ in range(self.repeats):
            order = self.methods if self._begins % 2 == 0 else self.methods[::-1]
            self._begins += 1
            for method in order:
                self.decoder = self._decoders[method]
                runs[method].append(self._run(batch))
        return {method: [_median(tries) for tries in zip(*runs[method], strict=True)] for method in self.methods}

    def _collect(self, batch: QuestionBatch, parts: dict[str, list[QuestionOutcome]]) -> None:
        """Answer once more by each method, untimed, for the features."""
        for method in self.methods:
            self.decoder = self._decoders[method]
            for measured, collected in zip(parts[method], self._run(batch), strict=True):
                if measured.error is not None or collected.error is not None:
                    continue
                for ours, again in zip(measured.choices, collected.choices, strict=True):
                    for turn, same in zip(ours, again, strict=True):
                        # The same tokens, wherever the device computes the same numbers twice; and if it does not, the
                        # features still are those of their own tokens.
                        turn.generation = replace(turn.generation, features=same.generation.features)

    def _measure_gaps(self, batch: QuestionBatch, baseline: QuestionOutcome, hass: QuestionOutcome) -> None:
        """Where answers part, note how far the base's best token is ahead of the second there."""
        forward = self._decoders[BASELINE].forward
        for ours, theirs in zip(hass.choices, baseline.choices, strict=False):
            for turn, (our, their) in enumerate(zip(ours, theirs, strict=True)):
                place = first_divergence(our.generation.output_ids, their.generation.output_ids)
                if place is None:
                    continue
                history = [earlier.text for earlier in ours[:turn]]
                if history != [earlier.text for earlier in theirs[:turn]]:
                    continue  # they answer different prompts since an earlier turn
                prompt = batch.prompting.encode(hass.question.turns[: turn + 1], history)
                ids = torch.cat((prompt, our.generation.output_ids[:place]))
                our.divergence_gap = their.divergence_gap = top_two_gap(forward, ids, self.sampling, our.seed)

    def resume_settings(self, method: str | None = None) -> dict[str, Any]:
        """What decides the answers of one method; see `GenerationModule.resume_settings`."""
        settings = super().resume_settings()
        return {**settings, "draft": None, "tree": None} if method == BASELINE else settings

    def model_name(self, method: str) -> str:
        """``model_id`` of one method's answers."""
        return self.model_id if method == BASELINE else f"{self.model_id}-hass"


def _median(tries: Sequence[QuestionOutcome]) -> QuestionOutcome:
    """Of several runs of one question, the turns with the median time, each with the seconds of all runs."""
    failed = next((outcome for outcome in tries if outcome.error is not None), None)
    if failed is not None:
        return failed
    choices = [
        [_median_turn(repeats) for repeats in zip(*(outcome.choices[index] for outcome in tries), strict=True)]
        for index in range(len(tries[0].choices))
    ]
    peaks = [outcome.peak_memory for outcome in tries if outcome.peak_memory is not None]
    return replace(tries[0], choices=choices, peak_memory=max(peaks, default=None))


def _median_turn(repeats: Sequence[TurnOutcome]) -> TurnOutcome:
    wall = [turn.generation.prefill_seconds + turn.generation.decode_seconds for turn in repeats]
    processor = [turn.processor_share for turn in repeats if turn.processor_share is not None]
    seconds = processor if len(processor) == len(wall) else wall
    middle = sorted(range(len(seconds)), key=seconds.__getitem__)[(len(seconds) - 1) // 2]
    return replace(repeats[middle], wall_times=wall, processor_times=processor)
