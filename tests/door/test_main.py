"""The door itself: help at once, light verbs without heavy imports, exit statuses, one-line errors."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lit_hass import __version__
from lit_hass.__main__ import main

CONFIGS = Path(__file__).parents[2] / "configs"
HEAVY = ("torch", "lightning", "transformers", "torchmetrics", "datasets", "numpy")


def _loaded(*args: str) -> tuple[int, set[str]]:
    """Run ``main(args)`` in a new process; its status and which of the heavy packages it imported."""
    code = (
        "import sys, json\nfrom lit_hass.__main__ import main\n"
        f"status = main({list(args)!r})\n"
        f"print('\\n' + json.dumps([status, [m for m in {HEAVY!r} if m in sys.modules]]))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    status, modules = json.loads(run.stdout.splitlines()[-1])
    return status, set(modules)


@pytest.mark.parametrize(
    "args",
    [("--help",), ("--version",), (), ("make-data", "html_to_tsv", "--n", "2"), ("evaluate", "--help"), ("fit", "-h")],
)
def test_light_verbs_import_nothing_heavy(args):
    assert _loaded(*args) == (0, set())


def test_help_starts_quickly():
    # The promise is under a second on an idle machine. The best of five leaves out what other work costs, and the
    # bound leaves room for a slow one: importing torch alone takes longer than that.
    best = min(_timed() for _ in range(5))
    assert best < 1.0


def _timed() -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "lit_hass", "--help"], check=True, capture_output=True)
    return time.perf_counter() - start


def test_help_names_every_verb(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(verb in text for verb in ("predict", "fit", "validate", "test", "make-data"))


@pytest.mark.parametrize("verb", ["evaluate", "predict"])
def test_every_option_that_a_verb_s_help_names_is_one(verb, capsys):
    assert main([verb, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.count("\n") < 40
    options = re.findall(r"--[a-z_.]+(?= [A-Z])", text)
    values = {"model.dtype": "float32", "data.questions": "html_to_tsv"}
    words = ("base", "draft")
    known = [option for option in options if not option.endswith(".help")]
    assert len(known) > 15
    given = [f"{option}={values.get(option[2:], 'html_to_tsv' if option.endswith(words) else '1')}" for option in known]
    config = [] if verb == "evaluate" else ["-c", str(CONFIGS / "generate_hass.yaml")]
    with pytest.raises(SystemExit) as ended:  # the parser's own way
        main([verb, *config, *given, "--print_config"])
    assert ended.value.code == 0
    assert "top_k: 1" in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["evaluate", "predict", "test", "fit", "validate"])
def test_a_verb_s_help_names_the_option_that_decides_its_numbers_dtype(verb, capsys, monkeypatch, tmp_path):
    """A precision of the Trainer where it is one's to choose, and the weights' dtype where that would be refused."""
    assert main([verb, "--help"]) == 0
    text = capsys.readouterr().out
    trains = verb in ("fit", "validate")
    assert ("--trainer.precision P" in text, "--model.dtype D" in text) == (trains, not trains)
    monkeypatch.chdir(tmp_path)
    configs = {"test": "perplexity", "predict": "generate_baseline"}
    config = ["-c", str(CONFIGS / f"{configs[verb]}.yaml")] if verb in configs else []
    if not trains:
        assert main([verb, *config, "--trainer.precision", "bf16-mixed", "--trainer.accelerator", "cpu"]) == 2
        assert "use --model.dtype bfloat16" in capsys.readouterr().err


def test_what_is_missing_and_what_is_unknown_is_told_with_a_way_on(capsys):
    assert main(["predict"]) == 2
    assert "-c FILE" in capsys.readouterr().err
    assert main(["evaluate", "--nope", "3"]) == 2
    error = capsys.readouterr().err
    assert "--nope" in error and "--print_config" in error


@pytest.mark.parametrize("option", [("-c", "configs/nothere.yaml"), ("--config=configs/nothere.yaml",)])
def test_a_configuration_that_is_not_there_is_refused_at_once(option, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert _loaded("predict", *option) == (2, set())
    assert main(["predict", *option]) == 2
    error = capsys.readouterr().err
    assert "configs/nothere.yaml: no such configuration" in error and str(tmp_path) in error


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"lit-hass {__version__}\n"


def test_unknown_verb_is_a_usage_error(capsys):
    assert main(["pedict"]) == 2
    error = capsys.readouterr().err
    assert "pedict" in error and "predict" in error and error.count("\n") == 1


def test_make_data_writes_what_the_data_gives(tmp_path, capsys):
    out = tmp_path / "new" / "questions.jsonl"
    assert main(["make-data", "html_to_tsv", "--n", "5", "--seed", "3", "--out", str(out)]) == 0
    written = out.read_text(encoding="utf-8")
    capsys.readouterr()
    assert main(["make-data", "html_to_tsv", "--n", "5", "--seed", "3"]) == 0
    assert capsys.readouterr().out == written
    questions = [json.loads(line) for line in written.splitlines()]
    assert [q["question_id"] for q in questions] == [1, 2, 3, 4, 5]
    assert all(set(q) == {"question_id", "category", "turns", "reference"} for q in questions)


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (["--n", "0"], "--n"),
        (["--difficulty", "huge"], "huge"),
        (["--difficulty", "0x3"], "0 rows"),
        (["--out", "/dev/null/x.jsonl"], "/dev/null"),
    ],
)
def test_make_data_refuses_by_name(args, named, capsys):
    assert main(["make-data", "html_to_tsv", *args]) == 2
    error = capsys.readouterr().err
    assert named in error and error.startswith("lit-hass: error:") and error.count("\n") == 1


def test_quiet_and_verbose(tmp_path, capsys):
    out = str(tmp_path / "q.jsonl")
    assert main(["make-data", "html_to_tsv", "--n", "1", "--out", out]) == 0
    assert "wrote 1 questions" in capsys.readouterr().err
    assert main(["make-data", "html_to_tsv", "-q", "--n", "1", "--out", out]) == 0
    assert capsys.readouterr().err == ""


def test_debug_shows_the_traceback():
    command = [sys.executable, "-m", "lit_hass", "make-data", "html_to_tsv", "--n", "0"]
    plain = subprocess.run(command, capture_output=True, text=True)
    debug = subprocess.run([*command, "--debug"], capture_output=True, text=True)
    assert plain.returncode == 2 and "Traceback" not in plain.stderr
    assert debug.returncode != 0 and "Traceback" in debug.stderr and "UserError" in debug.stderr
