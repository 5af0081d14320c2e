"""Features in the outcomes: who gets them, and that nothing is timed meanwhile without saying so."""

import pytest
import torch
from transformers import BertConfig, BertLMHeadModel

from lit_hass.data.prompting import Prompting
from lit_hass.data.question_datamodule import QuestionBatch
from lit_hass.decoding import TreeConfig
from lit_hass.errors import UserError
from lit_hass.models import load_base, load_tokenizer
from lit_hass.modules import EvaluationModule, GenerationModule
from lit_hass.records import Question

QUESTIONS = (
    Question(1, None, ("<table><tr><td>a</td><td>b</td></tr></table>",)),
    Question("two", None, ("<table><tr><td>1</td></tr></table>", "<table><tr><td>2</td></tr></table>")),
)


def ready(kind, **arguments):
    module = kind("html_to_tsv", **{"draft": "html_to_tsv", "max_new_tokens": 10, "warmup": 1, **arguments})
    module.configure_model()
    module.on_predict_start()
    return module


@pytest.fixture(scope="module")
def batch() -> QuestionBatch:
    return QuestionBatch(QUESTIONS, 1, Prompting(load_tokenizer("html_to_tsv")))


def test_evaluate_collects_in_a_pass_of_its_own(batch, monkeypatch) -> None:
    module = ready(EvaluationModule, repeats=2, tree=TreeConfig(10, 3, 3))
    passes, run = [], EvaluationModule._run

    def recorded(self, asked):
        outcomes = run(self, asked)
        turns = [turn for o in outcomes for turn in o.choices[0]]
        passes.append((self.collect_features, {id(turn.generation) for turn in turns}))
        return outcomes

    monkeypatch.setattr(EvaluationModule, "_run", recorded)
    plain = module.predict_step(batch, 0)
    assert [collecting for collecting, _ in passes] == [False] * 4
    assert all(t.generation.features is None for o in plain for part in o.parts.values() for t in part.choices[0])
    passes.clear()
    module.collect_features = True
    outcomes = module.predict_step(batch, 1)
    assert [collecting for collecting, _ in passes] == [False] * 4 + [True] * 2 and module.collect_features
    base = load_base("html_to_tsv")
    for outcome, before in zip(outcomes, plain, strict=True):
        for method, part in outcome.parts.items():
            assert not part.collected_features
            history: list[str] = []
            for index, turn in enumerate(part.choices[0]):
                assert (
                    turn.generation.output_ids.tolist()
                    == before.parts[method].choices[0][index].generation.output_ids.tolist()
                )
                assert len(turn.wall_times) == 2
                ids = batch.prompting.encode(part.question.turns[: index + 1], history)
                whole = torch.cat((ids, turn.generation.output_ids))
                with torch.no_grad():
                    hidden = base.model(input_ids=whole[None]).last_hidden_state[0]
                found = turn.generation.features
                torch.testing.assert_close(found.features, hidden[:-1], rtol=1e-3, atol=1e-3)
                assert found.token_ids.tolist() == whole[1:].tolist()
                assert bool(len(found.draft_features)) == (method == "hass")
                history.append(turn.text)


def test_times_taken_while_collecting_say_so(batch) -> None:
    module = ready(GenerationModule)
    assert not any(outcome.collected_features for outcome in module.predict_step(batch, 0))
    module.collect_features = True
    outcomes = module.predict_step(batch, 1)
    assert all(outcome.collected_features for outcome in outcomes)
    assert all(turn.generation.features is not None for o in outcomes for turn in o.choices[0])


def test_what_has_no_features_is_refused_at_once_and_not_question_by_question(tmp_path, tsv_tokenizer) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
    BertLMHeadModel(BertConfig(vocab_size=len(tsv_tokenizer), is_decoder=True, **sizes)).save_pretrained(tmp_path)
    tsv_tokenizer.save_pretrained(tmp_path)
    module = GenerationModule(str(tmp_path), max_new_tokens=4, warmup=0)
    module.configure_model()
    module.on_predict_start()
    batch = QuestionBatch(QUESTIONS, 1, Prompting(tsv_tokenizer))
    for _ in range(2):
        module.collect_features = True
        with pytest.raises(UserError, match="BertLMHeadModel: no features can be collected"):
            module.predict_step(batch, 0)
        module.collect_features = False
        assert all(outcome.error is None for outcome in module.predict_step(batch, 0)) and module._proved
