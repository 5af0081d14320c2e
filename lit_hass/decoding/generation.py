"""What a decoder returns for one prompt."""

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Literal

from torch import Tensor

StopReason = Literal["stop", "length", "context"]


class TokenState(IntEnum):
    """How the token of a feature row came to be there."""

    #: Given with the prompt.
    PROMPT = 0
    #: Proposed by the draft and accepted by the base.
    ACCEPTED = 1
    #: Proposed by the draft and refused by the base.
    REJECTED = 2
    #: Chosen by the base at the end of a verification step.
    BONUS = 3
    #: Chosen by the base in plain decoding.
    BASELINE = 4


@dataclass
class TokenFeatures:
    """The features of one sequence that decoding computed anyway, on the model's device.

    Attributes:
        features: ``[n, d]`` in the model's dtype: the base's hidden states after the final norm, the vectors that the
            output layer reads, one for each token of prompt and answer but the last.
        token_ids: ``[n]`` int64, the token after each feature's own position: its class in collapse metrics.
        states: ``[n]`` int64 codes of `TokenState`: how the token at the feature's own position came to be there.
        rejected: ``[m, d]``, the base's features at the nodes of draft trees that it verified and dropped. No token was
            committed behind them, so they have no class.
        draft_features: ``[k, d]``, the draft's predictions of the base's features, those from which a token was
            proposed and accepted.
        draft_rows: ``[k]`` int64, the row of ``features`` that each of them predicts.
        first_token: the id at position 0, which is nobody's next token; None where there is no one sequence.
    """

    features: Tensor
    token_ids: Tensor
    states: Tensor
    rejected: Tensor
    draft_features: Tensor
    draft_rows: Tensor
    first_token: int | None = None

    @classmethod
    def without_draft(cls, features: Tensor, token_ids: Tensor, states: Tensor) -> "TokenFeatures":
        """The features of a sequence for which nothing was drafted."""
        none = features[:0]
        return cls(features, token_ids, states, none, none, token_ids[:0])


@dataclass
class Generation:
    """The answer to one prompt and what it cost.

    Attributes:
        output_ids: ``[m]`` int64 on the CPU: new tokens only, cut after the first stop token (which is kept as the
            last one) and at ``max_new_tokens``.
        accept_lengths: Accepted draft tokens of each verification step, without the +1, the last step not cut (with
            ``TreeConfig.trim`` nothing is drafted that would be cut); empty for plain decoding.
        steps: Forwards of the base. Plain decoding: one per new token, the prompt's forward included.
            Speculative decoding: verification steps, the prompt's forward not included.
        stop_reason: ``"stop"`` when the last token is a stop token, ``"length"`` when ``max_new_tokens`` was reached,
            and ``"context"`` when the model's context ended before.
        prefill_seconds: From the start of the batch until the first token was known.
        decode_seconds: From then until this row's last token was known; the sum of both is the row's wall time.
        draft_prefill_seconds: Of the decode seconds, those of the draft's pass over the batch's prompts.
        batch_rows: How many rows were decoded together with this one, itself included.
        batch_seconds: From the start of that batch until its last row was done.
        prefill_processor_seconds: Of the process's processors (all its threads together) in ``prefill_seconds``; 0.0 on
            a device of its own.
        batch_processor_seconds: Likewise in ``batch_seconds``.
        features: What was collected, or None.
    """

    output_ids: Tensor
    stop_reason: StopReason
    accept_lengths: list[int] = field(default_factory=list)
    steps: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    draft_prefill_seconds: float = 0.0
    batch_rows: int = 1
    batch_seconds: float = 0.0
    prefill_processor_seconds: float = 0.0
    batch_processor_seconds: float = 0.0
    features: TokenFeatures | None = None
