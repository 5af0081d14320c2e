"""Another layer than the last: its rows are those of plain forwards over the answers, and nothing reads them."""

import json

import pytest

from lit_hass.models import DraftModel, load_base
from tests.callbacks.collapse_runs import CALLBACKS, RUN, arguments, ask, assert_equal, config_file, offline, read
from tests.callbacks.test_collapse_perplexity import arguments as perplexity_arguments
from tests.door.conftest import door  # noqa: F401  # fixtures
from tests.perplexity_bases import make_base, write_text

SETTINGS = "{max_samples_per_class: 4096"
VERSION = ("--trainer.logger.init_args.version", 0)
NEEDS_OUTPUT = {f"unc3/{name}" for name in ("mean", "std", "var", "cov", "cov_abs", "min", "max", "dot_cov_abs")}
NEEDS_OUTPUT |= {
    f"nc3/{name}" for name in ("cos_mean", "dot_mean", "distance_mean", "structure_error", "frobenius")
}  # fmt: skip
NEEDS_OUTPUT |= {f"nc4/{name}" for name in ("agreement", "agreement_class_mean", "linear_accuracy")}

EVALUATE = """
trainer:
  callbacks:
    - {class_path: callbacks.AnswerWriter, init_args: {method: baseline}}
    - {class_path: callbacks.AnswerWriter, init_args: {method: hass}}
    - class_path: tests.callbacks.collapse_dump.CollapseDump
    - {class_path: callbacks.CollapseCollector, init_args: {method: baseline, config: {max_samples_per_class: 4096}}}
    - {class_path: callbacks.CollapseCollector, init_args: {method: hass, config: {max_samples_per_class: 4096}}}
    - {class_path: callbacks.FeatureBuffer, init_args: {method: hass}}
    - {class_path: callbacks.FeatureBuffer, init_args: {method: baseline}}
"""


@pytest.fixture
def draft(tiny_base, tmp_path):
    path = tmp_path / "draft"
    DraftModel.from_base(load_base(tiny_base)).save_pretrained(path)
    return path


def of_layer(folder, layer, text=CALLBACKS):
    return config_file(folder, text.replace(SETTINGS, f"{SETTINGS}, layer: {layer}"))


def with_draft(draft):
    tree = ["--model.tree.total_tokens", 8, "--model.tree.depth", 3, "--model.tree.top_k", 3]
    return ["--model.draft", draft, *tree]


def check(metrics, expected, chunks, layer):
    """All numbers are those of the layer; what the output layer is needed for is null and says why."""
    assert metrics["settings"]["layer"] == layer and metrics["overall_metrics"]["unc3"] is None
    for scope in ("overall", "prompt", "answer"):
        family, undefined = metrics["family"][scope], metrics["undefined"][scope]
        for name in NEEDS_OUTPUT:
            assert family.pop(name) is None and undefined[name] == f"no output layer reads layer {layer}"
        assert not any(name.startswith(("unc3", "nc3", "cka")) for name in family)
    assert_equal(metrics, expected, chunks)
    assert metrics["counts"]["n_rejected"] == metrics["states"]["rejected"]["rows"] == 0
    assert "classifier_cosine" not in metrics["class_quantities"]


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("drafts", [False, True])
def test_metrics_are_those_of_the_layer(door, tiny_base, tmp_path, draft, batch, drafts):  # noqa: F811
    path, more = ask(tmp_path, 5), with_draft(draft) if drafts else []
    result = door(*arguments(tiny_base, path, of_layer(tmp_path, 1), "--data.batch_size", batch, *more))
    assert result.status == 0, result.err
    assert result.err.count("features of layer 1: one more forward over each answer") == 1
    assert ("rejected draft tokens" in result.err) == drafts
    metrics, answers = read(RUN), RUN / "answers.jsonl"
    check(metrics, *offline(tiny_base, path, answers, layer=1), layer=1)
    # The tokens' states are the decoder's.
    states = metrics["states"]
    assert (states["baseline"]["rows"] == 0) == drafts == (states["bonus"]["rows"] > 0)
    with pytest.raises(AssertionError):  # another layer's numbers are others
        assert_equal(metrics, *offline(tiny_base, path, answers, layer=0))


def test_counting_from_the_end(door, tiny_base, tmp_path):  # noqa: F811
    path = ask(tmp_path, 4)
    result = door(*arguments(tiny_base, path, of_layer(tmp_path, -2)))
    assert result.status == 0, result.err
    check(read(RUN), *offline(tiny_base, path, RUN / "answers.jsonl", layer=1), layer=-2)


def test_embeddings(door, tiny_base, tmp_path):  # noqa: F811
    path = ask(tmp_path, 4)
    result = door(*arguments(tiny_base, path, of_layer(tmp_path, 0)))
    assert result.status == 0, result.err
    metrics, (expected, _) = read(RUN), offline(tiny_base, path, RUN / "answers.jsonl", layer=0)
    # Equal rows of several classes are as near to one class mean as to another, so that rounding decides much else.
    for scope, (_, _, plain) in expected.items():
        for name in ("svd_entropy/overall", "nc1/within_trace", "nc1/between_trace", "nc2/norm_mean"):
            assert metrics["family"][scope][name] == pytest.approx(plain[name], rel=1e-6), (scope, name)
    tokens = expected["overall"][2]["tokens"]
    assert {int(token): one["num_samples"] for token, one in metrics["token_metrics"].items()} == {
        token: rows for token, (rows, _) in tokens.items()
    }


def test_both_methods_of_evaluate(door, tiny_base, tmp_path, draft):  # noqa: F811
    path = ask(tmp_path, 4)
    result = door(
        "evaluate", "-c", of_layer(tmp_path, 1, EVALUATE), "--model.base", tiny_base, *with_draft(draft),
        "--model.max_new_tokens", 9, "--model.dtype", "float64", "--model.repeats", 1, "--data.questions", path,
        "--trainer.accelerator", "cpu",
    )  # fmt: skip
    assert result.status == 0, result.err
    run = RUN.parents[1] / "evaluate" / "version_0"
    for method in ("baseline", "hass"):
        folder = run / method
        check(read(folder), *offline(tiny_base, path, folder / "answers.jsonl", layer=1), layer=1)


@pytest.mark.parametrize(
    ("layer", "message"), [(3, "has 3 hidden states"), (-4, "has 3 hidden states"), (2, "the last of the base's 3")]
)
def test_a_layer_that_is_not_there_is_refused_before_anything_is_written(
    door,  # noqa: F811
    tiny_base,
    tmp_path,
    layer,
    message,
):
    result = door(*arguments(tiny_base, ask(tmp_path, 2), of_layer(tmp_path, layer)))
    assert result.status == 2 and message in result.err and f"collapse.layer is {layer}" in result.err
    assert "Traceback" not in result.err and not RUN.parents[1].exists()


def test_windows_of_a_text_have_the_last_layer_only(door, tmp_path):  # noqa: F811
    base, text = make_base(tmp_path / "base"), write_text(tmp_path / "text.txt", pages=1)
    args = perplexity_arguments(base, text, tmp_path)
    of_layer(tmp_path, 1)
    result = door(*args[:3], "-c", tmp_path / "collapse.yaml", *args[5:])
    assert result.status == 2 and "PerplexityModule gives features of the last layer (-1) only" in result.err


STOPS = "    - class_path: tests.callbacks.collapse_stop.Stop\n      init_args: {batch: 2}\n"


def test_a_resume_with_another_layer_is_refused(door, tiny_base, tmp_path):  # noqa: F811
    path = ask(tmp_path, 6)
    # The first stops where features are in the journal alone, which does not say of which layer.
    stopped = door(*arguments(tiny_base, path, of_layer(tmp_path, 1, CALLBACKS + STOPS), *VERSION))
    assert stopped.status == 1 and "told to fail" in stopped.err
    answers = (RUN / "answers.jsonl").read_bytes() if (RUN / "answers.jsonl").exists() else None
    for layer in (-1, 0):
        result = door(*arguments(tiny_base, path, of_layer(tmp_path, layer), *VERSION))
        assert result.status == 2 and f"of collapse.layer 1, now it is {layer}" in result.err, result.err
    if answers is not None:
        assert (RUN / "answers.jsonl").read_bytes() == answers
    result = door(*arguments(tiny_base, path, of_layer(tmp_path, 1), *VERSION))
    assert result.status == 0, result.err
    check(read(RUN), *offline(tiny_base, path, RUN / "answers.jsonl", layer=1), layer=1)


def test_a_folder_of_an_earlier_version_is_of_the_last_layer(door, tiny_base, tmp_path):  # noqa: F811
    path = ask(tmp_path, 4)
    args = arguments(tiny_base, path, config_file(tmp_path), *VERSION)
    assert door(*args).status == 0
    marker = RUN / "features" / "ranks.json"
    marked = json.loads(marker.read_text())
    assert marked.pop("layer") == -1
    marker.write_text(json.dumps(marked))
    result = door(*args)
    assert result.status == 0, result.err
    assert_equal(read(RUN), *offline(tiny_base, path, RUN / "answers.jsonl"))
