import json
import shutil

import pytest
import torch
from lightning.pytorch import Trainer
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_hass.data.prompting import Prompting
from lit_hass.data.question_datamodule import QuestionBatch, QuestionDataModule
from lit_hass.decoding import SamplingConfig, TreeConfig
from lit_hass.errors import UserError
from lit_hass.models import DraftModel, load_base, load_config
from lit_hass.modules import GenerationModule
from lit_hass.records import Question

ONE = Question(1, None, ("convert <table>",))
TWO = Question("two", None, ("a b c", "and then?", "more"))


@pytest.fixture(scope="module")
def prompting(tsv_tokenizer):
    return Prompting(tsv_tokenizer)


def ready(base, **arguments) -> GenerationModule:
    module = GenerationModule(str(base), **{"max_new_tokens": 12, "warmup": 0, **arguments})
    module.configure_model()
    module.on_predict_start()
    return module


def answers(outcomes):
    return {
        o.question.question_id: [[t.generation.output_ids.tolist() for t in turns] for turns in o.choices]
        for o in outcomes
    }


def test_greedy_answers_are_transformers_own(tiny_base, prompting) -> None:
    outcomes = ready(tiny_base).predict_step(QuestionBatch((ONE, TWO), 1, prompting), 0)
    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    for outcome in outcomes:
        talk = []
        for said, turn in zip(outcome.question.turns, outcome.choices[0], strict=True):
            talk.append({"role": "user", "content": said})
            text = tokenizer.apply_chat_template(talk, add_generation_prompt=True, tokenize=False)
            ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")
            out = model.generate(**ids, do_sample=False, max_new_tokens=12)[0, ids["input_ids"].shape[1] :]
            assert turn.generation.output_ids.tolist() == out.tolist()
            assert turn.prompt_tokens == ids["input_ids"].shape[1] and turn.seed is None
            raw = tokenizer.decode(out, skip_special_tokens=True)
            assert (turn.raw_text, turn.text) == (raw, raw.strip())
            talk.append({"role": "assistant", "content": turn.text})


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_answers_do_not_depend_on_the_batch(tiny_base, prompting, temperature: float) -> None:
    module = ready(tiny_base, sampling=SamplingConfig(temperature))
    together = answers(module.predict_step(QuestionBatch((ONE, TWO), 2, prompting), 0))
    alone = {}
    for question in (TWO, ONE):
        alone |= answers(module.predict_step(QuestionBatch((question,), 2, prompting), 0))
    assert together == alone
    differ = together[1][0] != together[1][1]
    assert differ == (temperature > 0)


def test_another_seed_is_another_sample_and_the_same_seed_is_not(tiny_base, prompting) -> None:
    batch = QuestionBatch((ONE,), 1, prompting)
    sampling = SamplingConfig(1.0)
    first, again, other = (ready(tiny_base, sampling=sampling, seed=s).predict_step(batch, 0) for s in (0, 0, 1))
    assert answers(first) == answers(again) != answers(other)
    assert first[0].choices[0][0].seed is not None


def test_times_are_shared_by_the_batch(tiny_base, prompting) -> None:
    outcome, other = ready(tiny_base).predict_step(QuestionBatch((ONE, TWO), 3, prompting), 0)
    first = [choice[0] for o in (outcome, other) for choice in o.choices]
    assert {t.batch_rows for t in first} == {6}
    longest = max(t.generation.prefill_seconds + t.generation.decode_seconds for t in first)
    assert sum(t.time_share for t in first) == pytest.approx(longest)
    assert {choice[1].batch_rows for choice in other.choices} == {3}


def test_a_turn_that_outgrows_the_context_fails_its_question_alone(tiny_base, prompting) -> None:
    long = Question(3, None, ("a", ";" * 600))
    outcomes = ready(tiny_base).predict_step(QuestionBatch((ONE, long), 1, prompting), 0)
    assert outcomes[0].error is None and len(outcomes[0].choices) == 1
    assert outcomes[1].choices == []
    assert outcomes[1].error.startswith("choice 0: turn 2 has a prompt of 6")
    assert "context of 512" in outcomes[1].error


def test_a_model_that_yields_no_number_fails_the_question(tiny_base, prompting) -> None:
    module = ready(tiny_base)
    letter = prompting.tokenizer("q", add_special_tokens=False)["input_ids"]
    with torch.no_grad():  # prompts with a q, and no others
        model = module.decoder.forward.model
        model.get_input_embeddings().weight[letter[0]] = float("nan")
    culprit = Question("bad", None, ("q",))
    fine = Question("good", None, ("1 2",))
    outcomes = module.predict_step(QuestionBatch((fine, culprit), 1, prompting), 0)
    assert outcomes[0].error is None and outcomes[0].question is fine
    assert outcomes[1].error is not None and "\n" not in outcomes[1].error


def test_a_rank_with_nothing_to_do_answers_nothing(tiny_base, prompting) -> None:
    module = ready(tiny_base, warmup=2)
    assert module.predict_step(QuestionBatch((), 1, prompting), 0) == []


def test_collecting_is_one_switch_and_does_not_change_answers(tiny_base, prompting) -> None:
    module = ready(tiny_base, warmup=1)
    batch = QuestionBatch((ONE,), 1, prompting)
    without = module.predict_step(batch, 0)
    module.collect_features = True
    with_features = module.predict_step(batch, 0)
    assert answers(without) == answers(with_features)
    assert without[0].choices[0][0].generation.features is None
    features = with_features[0].choices[0][0].generation.features
    assert features.features.shape[1] == 32 and len(features.token_ids) == len(features.features)


def test_extra_stop_ids_end_answers(tiny_base, prompting) -> None:
    batch = QuestionBatch((ONE,), 1, prompting)
    ids = answers(ready(tiny_base).predict_step(batch, 0))[1][0][0]
    turn = ready(tiny_base, extra_stop_ids=[ids[4]]).predict_step(batch, 0)[0].choices[0][0]
    assert turn.generation.output_ids.tolist() == ids[: ids.index(ids[4]) + 1]
    assert turn.generation.stop_reason == "stop"
    assert turn.raw_text == prompting.decode(ids[: ids.index(ids[4])])


def test_predict_through_a_trainer(tiny_base, tmp_path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text("\n".join(json.dumps({"question_id": i, "turns": [f"row {i}"]}) for i in range(3)))
    trainer = Trainer(accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, default_root_dir=tmp_path)
    module = GenerationModule(str(tiny_base), max_new_tokens=3, warmup=1)
    outcomes = trainer.predict(module, datamodule=QuestionDataModule(str(path), batch_size=2))
    assert [[o.question.question_id for o in batch] for batch in outcomes] == [[0, 1], [2]]


@pytest.mark.parametrize(("name", "value"), [("max_new_tokens", 0), ("warmup", -1)])
def test_bad_settings_are_refused(name: str, value: int) -> None:
    with pytest.raises(UserError, match=f"model.{name} must .*found {value}"):
        GenerationModule(**{name: value})


def test_a_base_that_is_not_there_is_refused_before_anything_is_loaded(tmp_path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        GenerationModule(str(tmp_path / "none")).check()


def test_resume_settings_hold_what_decides_the_answers_and_no_more(tiny_base) -> None:
    def settings(**arguments):
        return GenerationModule(str(tiny_base), **arguments).resume_settings()

    assert settings() == settings(warmup=0) == settings(seed=5) == settings(model_id="x")
    warm = SamplingConfig(0.5)
    changed = [
        settings(sampling=warm),
        settings(sampling=warm, seed=5),
        settings(sampling=SamplingConfig(0.5, top_p=0.9)),
        settings(max_new_tokens=7),
        settings(dtype="bfloat16"),
        settings(dtype="float32"),
        settings(extra_stop_ids=[3]),
        settings(strip_answers=False),
        settings(),
    ]
    assert len({json.dumps(s, sort_keys=True) for s in changed}) == len(changed)
    assert settings(dtype="bf16") == settings(dtype="bfloat16") and settings()["attention"] == "sdpa"
    # Spread over devices, a base has its own dtype where there is a GPU, wherever the run itself is.
    spread = settings(device_map="auto")["dtype"]
    assert spread == str(load_config(tiny_base).dtype if torch.cuda.is_available() else torch.float32)[6:]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_draft_changes_no_answer(tiny_base, prompting, tmp_path, temperature: float) -> None:
    torch.manual_seed(5)
    DraftModel.from_base(load_base(tiny_base)).save_pretrained(tmp_path / "draft")
    batch = QuestionBatch((ONE, TWO), 2, prompting)
    settings = {"sampling": SamplingConfig(temperature, repetition_penalty=1.1)}
    plain = ready(tiny_base, **settings).predict_step(batch, 0)
    module = ready(tiny_base, draft=str(tmp_path / "draft"), tree=TreeConfig(12, 3, 3), **settings)
    drafted = module.predict_step(batch, 0)
    assert answers(drafted) == answers(plain)
    for outcome in drafted:
        for turn in (turn for turns in outcome.choices for turn in turns):
            generation = turn.generation
            assert generation.steps == len(generation.accept_lengths) > 0
            assert len(generation.output_ids) <= 1 + sum(a + 1 for a in generation.accept_lengths)
    assert module.resume_settings()["tree"]["top_k"] == 3 and module.model_id.endswith("-hass")
    assert ready(tiny_base).resume_settings()["draft"] is None


def test_what_generate_would_do_to_the_logits_is_said(tiny_base, tmp_path, caplog) -> None:
    base = shutil.copytree(tiny_base, tmp_path / "base")
    config = json.loads((base / "generation_config.json").read_text())
    (base / "generation_config.json").write_text(
        json.dumps({**config, "repetition_penalty": 1.3, "suppress_tokens": [7], "temperature": 0.6, "do_sample": True})
    )
    ready(base)
    (said,) = [record.getMessage() for record in caplog.records if "generate()" in record.getMessage()]
    assert "repetition_penalty 1.3, suppress_tokens [7], which" in said and "temperature" not in said
    # And it is so: with what is named, and not without, these are the answers of generate.
    model = AutoModelForCausalLM.from_pretrained(base)
    ids = torch.tensor([AutoTokenizer.from_pretrained(base)("1 2 3 1 2 3")["input_ids"]])
    theirs = model.generate(ids, do_sample=False, max_new_tokens=12, suppress_tokens=None)[0, ids.shape[1] :].tolist()
    decoder = ready(base).decoder
    assert decoder.generate([ids[0]], 12)[0].output_ids.tolist() != theirs
    found = decoder.generate([ids[0]], 12, SamplingConfig(repetition_penalty=1.3))[0].output_ids.tolist()
    assert found[: len(theirs)] == theirs
    caplog.clear()
    ready(base, sampling=SamplingConfig(repetition_penalty=1.3))
    assert "repetition_penalty" not in caplog.text and "suppress_tokens [7]" in caplog.text
    caplog.clear()
    ready(tiny_base)
    assert "generate()" not in caplog.text


def test_the_context_is_a_setting(tiny_base, prompting) -> None:
    """It ends answers, leaves no room for a longer prompt, and another one is another run."""
    whole = ready(tiny_base, max_new_tokens=30).predict_step(QuestionBatch((ONE,), 1, prompting), 0)[0].choices[0][0]
    module = ready(tiny_base, max_new_tokens=30, context=whole.prompt_tokens + 9)
    (turn,) = module.predict_step(QuestionBatch((ONE,), 1, prompting), 0)[0].choices[0]
    assert turn.generation.output_ids.tolist() == whole.generation.output_ids.tolist()[:9]
    assert (turn.generation.stop_reason, whole.generation.stop_reason) == ("context", "length")
    assert module.resume_settings()["context"] == whole.prompt_tokens + 9
    assert "context" not in ready(tiny_base).resume_settings()
    small = ready(tiny_base, context=whole.prompt_tokens)
    assert "no room in the model's context" in small.predict_step(QuestionBatch((ONE,), 1, prompting), 0)[0].error


def test_a_wrong_context_is_refused_before_anything_is_loaded(tiny_base) -> None:
    with pytest.raises(UserError, match="model.context must be at least 2"):
        GenerationModule(str(tiny_base), context=1).check()
