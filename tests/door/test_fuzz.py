"""Files of each format, damaged at random: used, or refused in one line that names the file; never anything else."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from lit_hass.__main__ import main
from lit_hass.data.commonsense_qa_prompts import build_prompt
from lit_hass.data.commonsense_qa_questions import read_commonsense_qa, to_row
from lit_hass.errors import UserError
from lit_hass.models.draft_checkpoint import read_draft_config
from lit_hass.models.draft_config import DraftConfig
from lit_hass.models.draft_layouts import refuse_config
from lit_hass.records import RunKey, read_questions, to_json
from lit_hass.records.yaml_files import read_yaml
from lit_hass.reports import compare_runs, comparison_view
from lit_hass.reports import perplexity_compare_view as perplexity_view
from lit_hass.reports.collapse_comparability import comparability
from lit_hass.reports.collapse_run import read_runs
from lit_hass.reports.collapse_view import to_markdown as collapse_markdown
from lit_hass.reports.comparison_page import to_html
from lit_hass.reports.perplexity_compare import compare_perplexity
from lit_hass.reports.report_verb import print_runs
from lit_hass.reports.screen import Screen
from lit_hass.terminal import one_line, printable
from lit_hass.tokenization import WordPieceTokenizer
from lit_hass.tokenization.verb import for_the_person
from tests.door.conftest import CONFIG, ROOT
from tests.door.damage import MANY, broken, damaged, json_files, line_files, lines
from tests.reports.collapse_data import metrics_dict
from tests.reports.perplexity_runs import report_of, write
from tests.reports.run_folders import DRAFT, SETTINGS, line, turn, write_run
from tests.tokenization.vocabularies import SPECIAL

QUESTIONS = [
    {"question_id": 1, "category": "writing", "turns": ["a", "b"], "reference": ["c", "d"]},
    {"question_id": "two", "turns": ["e"]},
]
PLAIN = [line(n, [turn(range(9), 1.5 + n, prefill=0.1, exact_match=True)]) for n in range(3)]
DRAFTED = [line(n, [turn(range(9), 0.5 + n, [3, 2, 1], prefill=0.1, exact_match=True)]) for n in range(3)]
CSQA = [
    {
        "id": f"q{n}",
        "answerKey": "B",
        "question": {
            "question_concept": "c",
            "stem": f"which {n}?",
            "choices": [{"label": label, "text": f"{label} {n}"} for label in "ABCDE"],
        },
    }
    for n in range(2)
]
DRAFT_CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32, "intermediate_size": 48,
    "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 1, "hidden_act": "silu",
    "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
    "rope_scaling": {"type": "linear", "factor": 2.0}, "vocab_size": 100, "bias": True, "head_dim": 8,
    "pad_token_id": 0, "eos_token_id": [1, 2],
}  # fmt: skip


def tried(path: Path, use: Callable[[], Any]) -> Any:
    """What ``use`` gives; where it refuses, the line that a person would see must name the file."""
    try:
        return use()
    except UserError as error:
        shown = one_line(str(error))
        assert path.name in shown and len(shown) <= 2000 and printable(shown) == shown
        assert str(error).count("\n") == 0, error
        return None


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def shown(draw: Callable[[Console], None]) -> str:
    """What a report prints; nothing of it steers the terminal."""
    out = io.StringIO()
    draw(Screen(file=out, width=100))
    assert printable(out.getvalue()) == out.getvalue()
    return out.getvalue()


@MANY
@given(content=line_files(QUESTIONS))
def test_question_files(place: Path, content: bytes) -> None:
    path = place / "questions.jsonl"
    path.write_bytes(content)
    for question in tried(path, lambda: read_questions(path)) or ():
        assert printable(str(question.question_id)) == str(question.question_id)
        assert question.turns and all(turn.strip() for turn in question.turns)


@MANY
@given(content=line_files(DRAFTED))
def test_answer_files(place: Path, content: bytes) -> None:
    baseline, path = place / "plain.jsonl", place / "answers.jsonl"
    baseline.write_bytes(lines(PLAIN))
    path.write_bytes(content)
    found = tried(path, lambda: compare_runs(baseline, path, True))
    if found is not None:
        _all_views(found)
        for run in ("baseline", "hass"):
            share = found["exact_match"][run]["share"]
            assert share is None or 0 <= share <= 1
            speed = found["speed"]["end_to_end"][run]
            assert speed is None or speed >= 0


def _all_views(found: dict[str, Any]) -> None:
    shown(lambda console: comparison_view.print_comparison(found, console))
    for text in (comparison_view.to_markdown(found), to_html(found, b"")):
        assert "<script" not in text
    json.loads(to_json(found))


@st.composite
def keys(draw: st.DrawFn) -> bytes:
    settings = json.loads(json.dumps(SETTINGS))
    settings["model"].update(DRAFT)
    if draw(st.booleans()):  # a key whose hash fits
        settings = draw(damaged(settings))
        text = json.dumps({"settings": settings, "sha256": RunKey(settings).digest})
        return text.encode("utf-8", "replace")
    return draw(json_files({"settings": settings, "sha256": RunKey(settings).digest}))


@pytest.mark.slow
@MANY
@given(content=keys())
def test_run_keys(place: Path, content: bytes) -> None:
    one, other = write_run(place / "one", PLAIN), write_run(place / "other", DRAFTED, DRAFT)
    path = other / "run_key.json"
    path.write_bytes(content)
    # A fault of the answers, too: a tree of depth 0 accepts no 3 tokens.
    found = tried(other, lambda: compare_runs(one, other, True))
    if found is not None:
        _all_views(found)


@pytest.mark.slow
@MANY
@given(content=json_files({"environment": {"packages": {"torch": "2"}}, "devices": 1, "exact_match": {"share": 0.5},
                           "acceptance": {"micro": 2.0, "nodes_per_step": 5}}))  # fmt: skip
def test_statistics(place: Path, content: bytes) -> None:
    one, other = write_run(place / "one", PLAIN), write_run(place / "other", DRAFTED, DRAFT)
    path = other / "statistics.json"
    path.write_bytes(content)
    found = tried(path, lambda: compare_runs(one, other, True))
    if found is not None:
        _all_views(found)
    runs = tried(path, lambda: read_runs([other]))
    if runs is not None:
        text = shown(lambda console: print_runs(runs, console))
        assert "%" not in text.replace("100.0%", "").replace("0.0%", "") or "exact match" in text


@pytest.fixture(scope="module")
def perplexities(place: Path, tiny_base: Path) -> tuple[Path, Path]:
    text = place / "text.txt"
    text.write_text(
        "\n".join(f" = Page {n} = \n \n <td> {n} </td> one two three \n" for n in range(6)), encoding="utf-8"
    )
    for name, level in (("dense", 3.0), ("pruned", 3.2)):
        write(place / name, report_of(tiny_base, text, level, protocols=["wanda", "lm_eval_wikitext"]))
    return place / "dense", place / "pruned"


@MANY
@given(draw=st.data())
def test_perplexity_files(perplexities: tuple[Path, Path], draw: st.DataObject) -> None:
    dense, pruned = perplexities
    path = pruned / "perplexity.json"
    good = path.with_name("good.json")
    if not good.exists():
        good.write_bytes(path.read_bytes())
    path.write_bytes(draw.draw(json_files(json.loads(good.read_bytes()))))
    found = tried(pruned, lambda: compare_perplexity(dense, pruned, True))
    if found is not None:
        shown(lambda console: perplexity_view.print_perplexity_comparison(found, console))
        assert "<script" not in perplexity_view.to_markdown(found)
        json.loads(to_json(found))


@pytest.fixture(scope="module")
def collapse() -> dict[str, Any]:
    metrics = json.loads(to_json(metrics_dict(questions=2)))
    # A few of the tokens and no long spectra: most damage shall hit what is read.
    metrics["token_metrics"] = dict(list(metrics["token_metrics"].items())[:3])
    metrics["spectra"] = {name: values[:3] for name, values in (metrics.get("spectra") or {}).items()}
    return metrics


@pytest.mark.slow
@MANY
@given(draw=st.data())
def test_collapse_files(place: Path, collapse: dict[str, Any], draw: st.DataObject) -> None:
    folder = place / "collapse"
    folder.mkdir(exist_ok=True)
    path = folder / "collapse_metrics.json"
    path.write_bytes(draw.draw(json_files(collapse)))
    runs = tried(path, lambda: read_runs([folder]))
    if runs is not None:
        subjects = [*runs[0].subjects, *runs[0].subjects]
        shown(lambda console: print_runs(runs, console))
        assert "<script" not in collapse_markdown(subjects, comparability(*subjects))


@MANY
@given(content=json_files(DRAFT_CONFIG))
def test_draft_configurations(place: Path, content: bytes) -> None:
    path = place / "draft" / "config.json"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)

    def use() -> None:
        found = read_draft_config(path.parent)
        try:
            refuse_config(found)
            DraftConfig.from_dict(found).llama()
        except UserError as error:  # as `check_draft` names the folder
            raise UserError(f"{path}: {error}") from error

    tried(path, use)


VOCABULARY = "".join(f"{piece}\n" for piece in [*SPECIAL, "a", "b", "##b", "un", "##ab"]).encode()


@MANY
@given(content=broken(VOCABULARY), text=st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
def test_vocabularies(place: Path, content: bytes, text: str) -> None:
    path = place / "vocab.txt"
    path.write_bytes(content)

    def use() -> None:
        with for_the_person():
            own = WordPieceTokenizer(path)
            assert all(0 <= i < len(own.pieces) for i in own.encode(text))

    tried(path, use)


@MANY
@given(content=line_files(CSQA), skip=st.booleans())
def test_commonsense_qa_files(place: Path, content: bytes, skip: bool) -> None:
    path = place / "csqa.jsonl"
    path.write_bytes(content)
    for question in tried(path, lambda: read_commonsense_qa(path, "skip" if skip else "raise")) or ():
        assert build_prompt(question).endswith("\nA:")
        assert to_row(question)["answerKey"] in "ABCDE"


SMALL = "seed_everything: 1\nmodel:\n  class_path: x\n  init_args: {base: y}\ntrainer: {devices: 1}\n"


@pytest.mark.slow
@MANY
@given(content=st.one_of(broken(SMALL.encode()), broken(Path(CONFIG).read_bytes()), st.binary(max_size=60)))
def test_configurations_are_read_or_refused(place: Path, content: bytes) -> None:
    path = place / "fuzz.yaml"
    path.write_bytes(content)
    found = tried(path, lambda: read_yaml(path))
    assert found is None or isinstance(found, dict)


@pytest.mark.slow
# Both fixtures do the same for each input: the one is read empty, the other stays in one folder.
@settings(MANY, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(draw=st.data(), verb=st.sampled_from(["predict", "test", "star"]))
def test_configurations_of_a_verb(
    place: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, draw: st.DataObject, verb: str
) -> None:
    """The parser's own answer to damaged settings; the configuration is printed instead of run."""
    import yaml

    monkeypatch.chdir(place)
    good = {"predict": "generate_hass.yaml", "test": "perplexity.yaml", "star": "star.yaml"}[verb]
    settings = yaml.safe_load((ROOT / "configs" / good).read_text(encoding="utf-8"))
    path = place / "fuzz.yaml"
    # JSON is YAML, and needs no writer that refuses what a person may write.
    path.write_bytes(draw.draw(json_files(settings)))
    capsys.readouterr()
    try:
        status: object = main([verb, "-c", str(path), "--print_config=skip_unset"])
    except SystemExit as error:
        status = error.code
    err = capsys.readouterr().err
    assert status in (0, 2), err
    if status == 2:
        [last] = [each for each in err.splitlines() if each.startswith("lit-hass:")]
        assert last.startswith("lit-hass: error: ") and len(last) < 2100 and printable(last) == last
