"""What a Trainer sets: a precision is refused by name, and what gets through all the same changes no number."""

import json
import logging

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from lit_hass.data import PerplexityDataModule
from lit_hass.data.prompting import Prompting
from lit_hass.data.question_datamodule import QuestionBatch, QuestionDataModule
from lit_hass.decoding import SpeculativeDecoder, TreeConfig
from lit_hass.decoding.witness import prove
from lit_hass.errors import RunError, UserError
from lit_hass.models import DraftModel, load_base, load_draft, load_tokenizer
from lit_hass.models.draft_vocabulary import DraftVocabulary
from lit_hass.modules import EvaluationModule, GenerationModule, PerplexityModule
from lit_hass.modules.frozen_base import FrozenBase
from lit_hass.modules.window_scorer import WindowScorer
from lit_hass.records import Question

from ..perplexity_bases import write_text
from ..surroundings import SURROUNDINGS

QUESTIONS = (Question(1, None, ("convert <table>",)), Question("two", None, ("a b c", "and then?")))


@pytest.fixture(scope="module")
def pair(tiny_base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("draft")
    torch.manual_seed(3)
    DraftModel.from_base(load_base(tiny_base)).save_pretrained(folder)
    return str(tiny_base), str(folder)


def ready(pair, **settings) -> EvaluationModule:
    module = EvaluationModule(*pair, TreeConfig(12, 2, 3), max_new_tokens=12, repeats=1, warmup=0, **settings)
    module.configure_model()
    module.on_predict_start()
    return module


def answers(module, tokenizer):
    outcomes = module.predict_step(QuestionBatch(QUESTIONS, 1, Prompting(tokenizer)), 0)
    return [
        (method, turn.generation.output_ids.tolist())
        for outcome in outcomes
        for method, part in outcome.parts.items()
        for choice in part.choices
        for turn in choice
    ]


def trainer(tmp_path, **settings) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(accelerator="cpu", devices=1, default_root_dir=tmp_path, **quiet, **settings)


def question_file(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text("".join(json.dumps({"question_id": i, "turns": [f"row {i}"]}) + "\n" for i in range(2)))
    return str(path)


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("bf16-mixed", "bfloat16"), ("bf16-true", "bfloat16"), ("16-true", "float16"), ("64-true", "float64")],
)
def test_a_precision_is_refused_and_the_right_option_named(pair, tmp_path, precision: str, dtype: str) -> None:
    text = write_text(tmp_path / "text.txt", pages=1)
    runs = {
        "predict": (GenerationModule(*pair), QuestionDataModule(question_file(tmp_path))),
        "test": (PerplexityModule(pair[0]), PerplexityDataModule(str(text), window=32)),
    }
    for verb, (module, data) in runs.items():
        with pytest.raises(UserError, match=rf"trainer.precision {precision} .*--model.dtype {dtype}$"):
            getattr(trainer(tmp_path, precision=precision), verb)(module, datamodule=data)


@pytest.mark.parametrize("around", SURROUNDINGS)
def test_a_predict_step_gives_the_same_answers(pair, tsv_tokenizer, around: str) -> None:
    expected = answers(ready(pair), tsv_tokenizer)
    with SURROUNDINGS[around]():
        assert answers(ready(pair), tsv_tokenizer) == expected


@pytest.mark.parametrize("around", SURROUNDINGS)
def test_likelihoods_do_not_change(tiny_base, tmp_path, around: str) -> None:
    data = PerplexityDataModule(str(write_text(tmp_path / "text.txt", pages=1)), window=32, stride=12)
    data.check(PerplexityModule(str(tiny_base)))
    batch = next(iter(data.test_dataloader()))
    model = load_base(tiny_base)
    expected = WindowScorer(model)(batch)
    early = WindowScorer(model)
    with SURROUNDINGS[around]():
        for scorer in (early, WindowScorer(load_base(tiny_base))):
            found = scorer(batch)
            assert scorer.takes_apart and found.nll.dtype == torch.float32 and found.hidden.dtype == torch.float32
            assert torch.equal(found.nll, expected.nll) and torch.equal(found.hidden, expected.hidden)


@pytest.mark.parametrize("around", SURROUNDINGS)
def test_what_a_frozen_base_says_of_rows_does_not_change(tiny_base, around: str) -> None:
    base = FrozenBase(load_base(tiny_base))
    draft = DraftModel.from_base(base.model)
    some = DraftModel.from_base(base.model)
    some.vocabulary = DraftVocabulary(tuple(range(5, 200, 3)), draft.config.vocab_size)
    rows = torch.randn(40, 32, generator=torch.Generator().manual_seed(1))
    expected = rows @ base.model.lm_head.weight.detach().T
    with SURROUNDINGS[around](), torch.no_grad():
        found = base.head(rows)
        assert found.dtype == torch.float32 and torch.allclose(found, expected, rtol=1e-5, atol=1e-5)
        assert torch.equal(base.scorer(draft).logits(rows), found)
        part = base.scorer(some)
        assert torch.allclose(part.logits(rows), expected[:, part.ids], rtol=1e-5, atol=1e-5)
    leaf = rows.clone().requires_grad_()
    base.head(leaf).sum().backward()
    assert torch.allclose(leaf.grad, base.model.lm_head.weight.sum(0).expand(40, -1), rtol=1e-4, atol=1e-4)


class Steering(Callback):
    """Adds to a layer's output, as activation steering does: the hand-written forward does not see it."""

    def on_predict_start(self, trainer, module) -> None:
        forward = module.decoder.forward
        forward.model.base_model.layers[0].register_forward_hook(lambda _m, _i, output: output + 1.0)


def test_a_run_whose_answers_are_not_the_base_s_ends_before_the_first(pair, tmp_path) -> None:
    seen = []

    class Seen(Callback):
        def on_predict_batch_end(self, *args) -> None:
            seen.append(args)

    for module in (GenerationModule(pair[0], warmup=0, max_new_tokens=4), ready(pair)):
        with pytest.raises(RunError, match=r"LeanForward, float32, cpu\): on the first prompt its logits differ by"):
            trainer(tmp_path, callbacks=[Steering(), Seen()]).predict(
                module, datamodule=QuestionDataModule(question_file(tmp_path))
            )
        assert not seen


def test_what_is_broken_behind_the_prompt_is_found_too() -> None:
    base, tokenizer = load_base("html_to_tsv"), load_tokenizer("html_to_tsv")
    asked = [{"role": "user", "content": "Convert this HTML table to TSV:\n<table><tr><td>a 7</td></tr></table>"}]
    text = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    prompt = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])
    decoder = SpeculativeDecoder(base, load_draft("html_to_tsv", base), TreeConfig(12, 2, 3))
    assert prove(decoder, prompt)
    # The path that was accepted is not moved to where it belongs: only later tokens see that.
    forward = decoder.forward
    keep = forward.keep
    forward.keep = lambda paths, counts, cache: keep(None, counts, cache)
    with pytest.raises(RunError, match="differ"):
        prove(decoder, prompt)


def test_a_prompt_on_which_the_model_yields_no_number_proves_nothing(pair, tsv_tokenizer) -> None:
    module = ready(pair)
    letter = tsv_tokenizer("q", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        module.decoder.forward.model.get_input_embeddings().weight[letter[0]] = float("nan")
    questions = (Question("bad", None, ("q",)), Question("good", None, ("1 2",)))
    outcomes = module.predict_step(QuestionBatch(questions, 1, Prompting(tsv_tokenizer)), 0)
    assert [part.error is None for outcome in outcomes for part in outcome.parts.values()] == [False, False, True, True]
    assert module._proved


class Broken(Callback):
    """Weights of which no prompt makes a number."""

    def on_predict_start(self, trainer, module) -> None:
        with torch.no_grad():
            module.decoder.forward.model.get_input_embeddings().weight.fill_(float("nan"))


@pytest.mark.parametrize("broken", [True, False])
def test_a_run_that_could_prove_nothing_says_so(pair, tmp_path, caplog, broken: bool) -> None:
    with caplog.at_level(logging.WARNING):
        trainer(tmp_path, callbacks=[Broken()] if broken else []).predict(
            GenerationModule(pair[0], warmup=0, max_new_tokens=4),
            datamodule=QuestionDataModule(question_file(tmp_path)),
        )
    assert caplog.text.count("nothing shows here that its answers are the base's") == broken


def test_the_proof_leaves_the_choice_of_a_tree_s_size_to_the_run(pair, tsv_tokenizer) -> None:
    base = load_base(pair[0])
    decoder = SpeculativeDecoder(base, load_draft(pair[1], base), TreeConfig(-1, 2, 3))
    assert prove(decoder, torch.tensor(tsv_tokenizer("1 2 3")["input_ids"])) and decoder.total_tokens is None
