"""Proof, inside a run, that a decoder says what its base says: against the base's own forward, on a prompt of the run.

Self-tests prove a forward when it is made, on ids that nobody asked about; what is set around a run later, or happens
to the weights, they do not see. And two decoders that share a broken forward agree with each other.
"""

import inspect
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lit_hass.decoding.forward import BaseForward
from lit_hass.decoding.rows import Decoder
from lit_hass.decoding.select_forward import tolerance
from lit_hass.decoding.speculative import SpeculativeDecoder
from lit_hass.errors import RunError, UserError
from lit_hass.numerics import plain_numbers

log = logging.getLogger(__name__)

#: Tokens that are decoded: with a tree of published size they take two steps at least, the second of which reads what
#: the first has committed.
_TOKENS = 16
#: Positions before them whose logits are compared, too.
_BEFORE = 64
#: Rotary embeddings whose frequencies depend on the length.
_BY_LENGTH = ("dynamic", "longrope")
#: Nodes of a tree whose size a run is still to choose.
_NODES = 60


@plain_numbers()
def prove(decoder: Decoder, prompt: Tensor) -> bool:
    """Decode the beginning of an answer, and read it again with the unmodified model.

    The model reads prompt and answer at once, without a cache, a mask or a tree. At each position behind which a token
    was chosen (and at the prompt's last ones) its logits must be those of the decoder, within what rounding explains,
    and the token must be its best. Where rotary frequencies depend on the length, that holds for the first token only.

    Args:
        decoder: Of either kind.
        prompt: ``[n]`` int64; one that the decoder can answer.

    Returns:
        Whether anything was proved: not by a prompt that cannot be answered (it leaves no room, has ids that the model
        does not know, or the model itself yields no finite logits).

    Raises:
        RunError: They differ; says by how much. Nothing that this decoder says can be used.
    """
    forward = decoder.forward
    model, allowed = forward.model, tolerance(forward.dtype)
    if isinstance(decoder, SpeculativeDecoder) and decoder.total_tokens is None:
        decoder = copy(decoder)  # the run's own first answer shall choose the size of its trees
        decoder.tree = decoder.tree.sized(min(_NODES, decoder.tree.candidates + 1))
    try:
        with _collecting(forward):
            answer = decoder.generate([prompt], _TOKENS, collect_features=True)[0]
    except UserError:  # the run will say of this question what is wrong with it
        return False
    except RunError as error:  # no finite logit: is it the model's?
        if not bool(_own_logits(decoder, prompt, 1).isfinite().all()):
            return False
        raise RunError(f"{_what(decoder)}: {error}, where {type(model).__name__} itself yields one. {_CURE}") from error
    if answer.features is None or not len(answer.output_ids):
        return False
    chosen = answer.output_ids[:1] if _turns_by_length(model) else answer.output_ids
    ids = torch.cat((prompt.cpu(), chosen))[:-1]
    count = min(len(chosen) + _BEFORE, len(ids))
    own = _own_logits(decoder, ids, count)
    with torch.inference_mode():
        ours = forward.logits(answer.features.features[: len(ids)][-count:]).to(own.device)
    scale = own.abs().amax(dim=-1).clamp(min=1e-30)
    difference = float(((ours - own).abs().amax(dim=-1) / scale).max())
    chosen = chosen.to(own.device)
    behind = (own.amax(dim=-1) / scale)[-len(chosen) :]
    behind -= own[-len(chosen) :].gather(1, chosen[:, None])[:, 0] / scale[-len(chosen) :]
    # Each of two logits may be off by so much. Not finite is a difference.
    if not difference <= allowed or not float(behind.max()) <= 2 * allowed:
        raise RunError(
            f"{_what(decoder)}: on the first prompt its logits differ by {difference:.1e} of the largest from those of "
            f"{type(model).__name__} itself (allowed {allowed:.1e}), and a token that it chose is "
            f"{float(behind.max()):.1e} behind the model's best. {_CURE}"
        )
    log.debug("%s: proved on the first prompt, largest difference %.1e", _what(decoder), difference)
    return True


@contextmanager
def _collecting(forward: BaseForward) -> Iterator[None]:
    """Have hidden states collected even where they are not what the output layer reads.

    A layer may stand between (BERT's), or they are the logits themselves: here only the forward's own head reads them.
    """
    before = forward.collects
    forward.collects = True
    try:
        yield
    finally:
        forward.collects = before


def _turns_by_length(model: PreTrainedModel) -> bool:
    """Whether a model's rotary frequencies depend on the sequence's length, so that reading at once is another thing.

    Then what it computed of a token stays in its cache as the length was at that time, in ``generate`` as here.
    """
    rope = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    kinds = [rope, *(value for value in rope.values() if isinstance(value, dict))]
    return any(kind.get("rope_type", "default") in _BY_LENGTH for kind in kinds)


_CURE = (
    "Nothing was answered, as no answer would be the base's: look for what this process sets around the run (hooks, "
    "patches, changed weights), and report it if there is nothing"
)


def _what(decoder: Decoder) -> str:
    dtype = str(decoder.forward.dtype).removeprefix("torch.")
    return f"{type(decoder).__name__} ({type(decoder.forward).__name__}, {dtype}, {decoder.forward.device})"


@torch.inference_mode()
def _own_logits(decoder: Decoder, ids: Tensor, count: int) -> Tensor:
    """``[count, V]`` float32, the unmodified model's logits at the last positions of ``[n]`` ids."""
    model = decoder.forward.model
    last = {"logits_to_keep": count} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    logits = model(input_ids=ids[None].to(decoder.forward.device), use_cache=False, **last).logits
    return logits[0, -count:].float()
