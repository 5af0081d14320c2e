"""Rationales against `transformers.generate`, batches that change nothing, and memory that is too small."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_hass.data import CommonsenseQADataModule
from lit_hass.data.commonsense_qa_answers import completion_of, loose_answer, strict_answer
from lit_hass.decoding import SamplingConfig
from lit_hass.errors import RunError
from lit_hass.models import load_base
from lit_hass.models.memory_estimate import ModelSizes, estimate_memory
from lit_hass.modules import RationaleModule
from lit_hass.modules.out_of_memory import USABLE, batch_that_fits, is_out_of_memory

ROOT = Path(__file__).resolve().parents[2]


def passed(base: Path, batch_size: int = 8, hints: bool = False, **settings) -> dict[str, object]:
    module = RationaleModule(base=str(base), max_new_tokens=24, **settings)
    data = CommonsenseQADataModule(shots=None, hint_shots=None, hints=hints, batch_size=batch_size, limit=12)
    data.check(module)
    module.configure_model()
    batches = data.batches(data.rows)
    return {one.id: one for i, batch in enumerate(batches) for one in module.predict_step(batch, i)}


def test_predictions_are_those_of_generate(tiny_base) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    data = CommonsenseQADataModule(shots=None, limit=12)
    module = RationaleModule(base=str(tiny_base), max_new_tokens=24)
    data.check(module)
    found = passed(tiny_base)
    for row in data.rows:
        ids = tokenizer(row.prompt, return_tensors="pt")["input_ids"]
        out = model.generate(ids, max_new_tokens=24, do_sample=False)[0, ids.shape[1] :].tolist()
        ended = out[-1] == tokenizer.eos_token_id
        text = tokenizer.decode(out[:-1] if ended else out, skip_special_tokens=True)
        one = found[row.question.id]
        assert one.completion == completion_of(text)[0]
        assert (one.answer, one.loose) == (strict_answer(one.completion), loose_answer(one.completion))
        assert one.cut == (not ended) and one.gen_tokens == len(out) and one.prompt_tokens == ids.shape[1]
        assert one.key == row.question.answer and one.prompt == row.plain_prompt and not one.hinted
        assert one.correct == (one.answer == one.key)


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_batches_change_nothing_and_seed_and_iteration_change_samples(tiny_base, temperature: float) -> None:
    sampling = SamplingConfig(temperature=temperature, top_p=0.9)
    texts = [
        {key: one.completion for key, one in passed(tiny_base, size, sampling=sampling, **more).items()}
        for size, more in ((8, {}), (1, {}), (5, {}), (8, {"seed": 1}), (8, {"iteration": 1}))
    ]
    assert texts[0] == texts[1] == texts[2]
    assert all((other == texts[0]) == (temperature == 0.0) for other in texts[3:])


def test_a_hint_is_fed_and_not_recorded_in_the_training_prompt(tiny_base) -> None:
    plain, hinted = passed(tiny_base), passed(tiny_base, hints=True)
    for key, one in hinted.items():
        assert one.hinted and one.prompt == plain[key].prompt and one.prompt_tokens > plain[key].prompt_tokens


def test_the_count_of_tokens_up_to_the_next_question(tiny_base) -> None:
    module = RationaleModule(base=str(tiny_base))
    module._tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    ids = module._tokenizer("the answer is (A).\n\nQ: what else? and\nQ: more", add_special_tokens=False)["input_ids"]
    n = module._tokens_until(ids, "\nQ:")
    assert "\nQ:" in module._decode_text(ids[:n]) and "\nQ:" not in module._decode_text(ids[: n - 1]) and n < len(ids)


def test_the_resume_key_has_what_decides_and_no_more(tiny_base) -> None:
    def key(**settings):
        return RationaleModule(base=str(tiny_base), **settings).resume_settings()

    assert key() == key(seed=3)  # greedy
    assert len({json.dumps(key(**given), default=str) for given in ({}, {"iteration": 1}, {"max_new_tokens": 9})}) == 3


def test_the_batch_that_fits_is_the_largest_by_formula(tiny_base) -> None:
    model = load_base(tiny_base)
    sizes = ModelSizes.of(model.config, True)

    def total(batch: int) -> int:
        return estimate_memory(sizes, batch, 100, 50, 4, True).total

    memory = int(total(37) / USABLE) + 1
    assert batch_that_fits(model, 64, 100, 50, True, memory) == 37
    assert batch_that_fits(model, 30, 100, 50, True, memory) == 15  # by formula it fits: something else takes the rest
    assert batch_that_fits(model, 64, 100, 50, True, 1000) == 0
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory")) and is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shapes"))


SHORT = """
import resource, sys
import torch
from lit_hass.data import CommonsenseQADataModule
from lit_hass.errors import RunError
from lit_hass.modules import RationaleModule
torch.set_num_threads(1)
module = RationaleModule(base=sys.argv[1], max_new_tokens=8)
data = CommonsenseQADataModule(shots=None, batch_size=4)
data.check(module)
module.configure_model()
[batch, *_] = data.batches(data.rows)
module.predict_step(batch, 0)
wide = type(batch)(batch.rows * 500, batch.input_ids.repeat(500, 1), batch.attention_mask.repeat(500, 1))
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 64 * 2**20,) * 2)
try:
    module.predict_step(wide, 1)
except RunError as error:
    print(error)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the size of a process is read from Linux's /proc")
def test_memory_that_really_runs_out_is_told_with_a_batch_that_fits(tiny_base) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SHORT, str(tiny_base)], env=environment, capture_output=True, text=True, timeout=200
    )
    assert "out of memory with 2000 prompts" in done.stdout, done.stdout + done.stderr[-2000:]
    batch = int(done.stdout.partition("--data.batch_size ")[2].split(".")[0])
    assert 1 <= batch < 2000


def test_other_errors_of_a_batch_are_not_swallowed(tiny_base, monkeypatch) -> None:
    def broken(*args, **kwargs):
        raise RuntimeError("shapes do not fit")

    module = RationaleModule(base=str(tiny_base), max_new_tokens=4)
    data = CommonsenseQADataModule(shots=None)
    data.check(module)
    module.configure_model()
    assert module.decoder is not None
    monkeypatch.setattr(module.decoder, "generate", broken)
    with pytest.raises(RuntimeError, match="shapes do not fit") as raised:
        module.predict_step(data.batches(data.rows)[0], 0)
    assert not isinstance(raised.value, RunError)
