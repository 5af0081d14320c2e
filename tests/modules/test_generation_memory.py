"""A batch too large for the memory ends the run and says which would fit; no question is left out for it."""

import pytest
import torch

from lit_hass.data.prompting import Prompting
from lit_hass.data.question_datamodule import QuestionBatch
from lit_hass.errors import RunError
from lit_hass.modules import GenerationModule
from lit_hass.modules import out_of_memory as hint
from lit_hass.records import Question


def test_a_batch_that_is_too_large(tiny_base, tsv_tokenizer, monkeypatch) -> None:
    module = GenerationModule(str(tiny_base), max_new_tokens=40, warmup=0)
    module.configure_model()
    forward = module.decoder.forward
    plain, asked = forward.new_cache, []

    def new_cache(batch, capacity):
        asked.append(batch)
        # What the allocator itself says when there is not so much.
        return torch.empty(2**50) if batch > 6 else plain(batch, capacity)

    monkeypatch.setattr(forward, "new_cache", new_cache)
    monkeypatch.setattr(hint, "device_memory", lambda device: 600_000)
    questions = tuple(Question(i, None, (f"<td>{i}</td>",)) for i in range(8))
    batch = QuestionBatch(questions, 2, Prompting(tsv_tokenizer))
    with pytest.raises(RunError, match=r"out of memory with 8 questions of up to \d+ tokens \(16 rows\)") as error:
        module.predict_step(batch, 0)
    assert asked == [1, 16], "behind the proof on the first prompt nothing is tried one by one: the run ends"
    said = str(error.value)
    assert "--data.batch_size" in said and "would fit by formula" in said and "allocate" in said
    fits = int(said.split("--data.batch_size ")[1].split()[0])
    assert 1 <= fits < 8
    outcomes = module.predict_step(QuestionBatch(questions[:fits], 2, batch.prompting), 0)
    assert all(outcome.error is None for outcome in outcomes)


def test_other_errors_stay_what_they_are(tiny_base, tsv_tokenizer, monkeypatch) -> None:
    module = GenerationModule(str(tiny_base), max_new_tokens=4, warmup=0)
    module.configure_model()

    def fail(batch, capacity):
        raise RuntimeError("something else")

    monkeypatch.setattr(module.decoder.forward, "new_cache", fail)
    with pytest.raises(RuntimeError, match="something else"):
        module.predict_step(QuestionBatch((Question(1, None, ("x",)),), 1, Prompting(tsv_tokenizer)), 0)
