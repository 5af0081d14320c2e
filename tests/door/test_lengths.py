"""``lit-hass lengths`` as a user meets it: figures, files that ``predict`` and ``fit`` take, and refusals."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from lit_hass.data.commonsense_qa_prompts import build_prompt, read_shots, shot_stems
from lit_hass.data.commonsense_qa_questions import commonsense_qa_file, read_commonsense_qa
from lit_hass.models import load_tokenizer
from lit_hass.pretrained import questions_file
from lit_hass.records import read_answers, read_questions
from tests.door.conftest import CONFIG, ROOT

RUN = "logs/generate_baseline/version_0"


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    """Questions of which one is longer than the others; two have references."""
    path = tmp_path / "asked.jsonl"
    rows = [{"question_id": i, "turns": [f"<td>{i}</td>" * (1 + 5 * (i == 3))]} for i in range(6)]
    rows[1]["reference"], rows[3]["reference"] = ["1"], ["3\t3\t3\n"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def predict(door, base: Path, questions: Path, new: int, *more):
    args = ("--model.base", base, "--data.questions", questions, "--model.max_new_tokens", new, "--model.warmup", 0)
    return door("predict", "-c", CONFIG, *args, "--trainer.logger.init_args.version", 0, *more)


def report(door, *args) -> dict:
    result = door("lengths", *args, "--format", "json")
    assert result.status == 0, result.err
    return json.loads(result.out)


def test_lengths_are_those_of_predict_and_the_files_are_taken(door, tiny_base, asked, tmp_path):
    # 1: a base that never stops is censored: nothing is recommended, nothing written
    assert predict(door, tiny_base, asked, 5).status == 0
    answers = read_answers(Path(RUN) / "answers.jsonl")
    prompts = [n for a in answers for n in a["choices"][0]["prompt_tokens"]]
    reasons = [a["choices"][0]["stop_reason"] for a in answers]
    common = ("--questions", asked, "--tokenizer", tiny_base)
    result = door("lengths", *common, "--run", RUN, "--out", "l.yaml")
    cut = sum(reason == ["length"] for reason in reasons) / 6
    assert cut > 0.001 and result.status == 1 and not Path("l.yaml").exists()
    assert f"gen_length 5 too small: {cut:.1%} of 6 generations" in result.err
    assert "rerun with gen_length 10 (--model.max_new_tokens 10)" in result.err
    assert f"maximum total tokens: {max(prompts) + 5}" in result.out and "maximum generated tokens: 5" in result.out

    # 2: with a limit given by hand, the prompts are the run's
    found = report(door, *common, "--run", RUN, "--gen-length", 12, "--memory", "1MiB", "--coverage", "0.8")
    assert found["lengths"]["prompt"]["p95"] == max(prompts) and found["lengths"]["prompt"]["mean"] == np.mean(prompts)
    covered = np.quantile(prompts, 0.8, method="inverted_cdf")
    recommended = found["recommendation"]
    assert recommended["prompt_budget"] == -(-covered // 8) * 8
    assert recommended["max_length"] == recommended["prompt_budget"] + 12
    assert 1 <= recommended["batch_size"] <= 6 and found["memory"]["total"] <= 0.9 * 2**20

    # 3: the files: predict takes one, fit the other, cqa.json keeps what is not ours
    Path("cqa.json").write_text('{"zeta": [1], "max_length": 2048, "gen_length": 1024, "model_path": "m"}')
    files = ("--out", "l.yaml", "--fit-out", "f.yaml", "--write-json", "cqa.json")
    result = door("lengths", *common, "--gen-length", 12, "--memory", "1MiB", "--verify", *files)
    assert result.status == 0, result.err
    assert "verified on cpu: a batch of" in result.out
    limits = yaml.safe_load(Path("l.yaml").read_text())
    assert limits["model"]["init_args"]["max_new_tokens"] == 12
    batch = limits["data"]["init_args"]["batch_size"]
    text = Path("l.yaml").read_text()
    assert "tokenizer: " in text and "sha256" in text and "coverage 0.999" in text and "n 6" in text
    whole = json.loads(Path("cqa.json").read_text())
    assert list(whole) == ["zeta", "max_length", "gen_length", "model_path"] and whole["zeta"] == [1]
    assert (whole["gen_length"], whole["max_length"]) == (12, -(-max(prompts) // 8) * 8 + 12)
    assert yaml.safe_load(Path("f.yaml").read_text())["data"]["init_args"] == {"max_length": whole["max_length"]}
    again = ("--model.base", tiny_base, "--data.questions", asked, "--model.warmup", 0)
    result = door("predict", "-c", CONFIG, "-c", "l.yaml", *again, "--trainer.logger.init_args.version", 1)
    assert result.status == 0, result.err
    answers = read_answers(Path(RUN).parent / "version_1/answers.jsonl")
    assert max(n for a in answers for n in a["choices"][0]["new_tokens"]) == 12
    assert answers[0]["choices"][0]["batch_rows"] == [batch]
    # training: the rows of another file, cut to the length that these questions need
    rows = [{"question_id": i, "turns": ["<b>"], "reference": ["x"]} for i in range(40)]
    every, plain = tmp_path / "every.jsonl", tmp_path / "fit.yaml"
    every.write_text("".join(json.dumps(row) + "\n" for row in rows))
    base = str(tiny_base)
    settings = {
        "model": {"class_path": "LanguageModelingModule", "init_args": {"base": base}},
        "data": {
            "class_path": "ConversationDataModule",
            "init_args": {"path": str(every), "tokenizer": base, "validation_share": 0.3},
        },
        "trainer": {"max_steps": 1, "limit_val_batches": 0, "enable_progress_bar": False, "callbacks": []},
    }
    plain.write_text(yaml.safe_dump(settings))
    result = door("fit", "-c", plain, "-c", "f.yaml", "-c", ROOT / "configs" / "callbacks" / "lengths.yaml")
    assert result.status == 0, result.err
    (saved,) = [yaml.safe_load(path.read_text()) for path in Path("logs/lit_hass").rglob("config.yaml")]
    assert saved["data"]["init_args"]["max_length"] == whole["max_length"]
    (written,) = [json.loads(path.read_text()) for path in Path("logs/lit_hass").rglob("lengths.json")]
    assert written["train"]["total"]["count"] == 4


def test_references_are_answers_too(door, tiny_base, asked):
    found = report(door, "--questions", asked, "--tokenizer", tiny_base)
    tokenizer = load_tokenizer(tiny_base)
    expected = [len(tokenizer(t, add_special_tokens=False)["input_ids"]) + 1 for t in ("1", "3\t3\t3\n")]
    assert found["lengths"]["answer"]["count"] == 2 and found["lengths"]["answer"]["max"] == max(expected)
    assert found["answers_from"] == "the references of the question file" and found["memory"] is None
    assert found["original"]["id"] == "3" and found["original"]["text"].endswith("3\t3\t3\n")


def test_multiple_choice_questions_with_examples(door, tiny_base):
    """Prompts are the DataModule's own, questions that the examples answer are left out."""
    args = ("--questions", "commonsense_qa", "--tokenizer", tiny_base, "--n-shot", "commonsense_qa", "--gen-length", 64)
    found = report(door, *args, "--model", "html_to_tsv", "--limit", 20, "--seed", 3)
    shots = read_shots("commonsense_qa")
    questions = [q for q in read_commonsense_qa("commonsense_qa") if q.stem not in shot_stems(shots)]
    tokenizer = load_tokenizer(tiny_base)
    lengths = {len(tokenizer(build_prompt(q, shots))["input_ids"]) for q in questions}
    bare = len(tokenizer(build_prompt(questions[0]))["input_ids"])
    whole = len(tokenizer(build_prompt(questions[0], shots))["input_ids"])
    digest = hashlib.sha256(commonsense_qa_file("commonsense_qa", "shots").read_bytes()).hexdigest()
    assert found["n_shot_sha256"] == digest
    assert found["lengths"]["prompt"]["count"] == 20 and found["lengths"]["prompt"]["max"] in lengths
    assert any("drawn with seed 3" in note for note in found["notes"])
    everything = report(door, *args, "--model", "html_to_tsv")
    assert everything["lengths"]["prompt"]["count"] == len(questions)
    assert everything["lengths"]["prompt"]["max"] == max(lengths)
    assert abs(everything["shot_tokens"] - (whole - bare)) <= 2


def test_a_run_of_rationales(door, tiny_base, tmp_path):
    """Predictions right and wrong are counted, and the file holds what their DataModule takes."""
    config = tmp_path / "rationales.yaml"
    settings = {
        "model": {"class_path": "RationaleModule", "init_args": {"base": str(tiny_base), "max_new_tokens": 9}},
        "data": {"class_path": "CommonsenseQADataModule", "init_args": {"shots": None, "batch_size": 3, "limit": 7}},
        "trainer": {
            "logger": {
                "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
                "init_args": {"save_dir": "logs", "name": "qa", "version": 0},
            },
            "callbacks": [{"class_path": "CorrectDataWriter"}],
            "enable_progress_bar": False,
        },
    }
    config.write_text(yaml.safe_dump(settings))
    monitor = ROOT / "configs" / "callbacks" / "lengths.yaml"
    result = door("predict", "-c", config, "-c", monitor)
    assert result.status in (0, 1), result.err  # 1 where nothing is correct, which a random model may well achieve
    lines = [json.loads(line) for line in Path("logs/qa/version_0/predictions.jsonl").read_text().splitlines()]
    written = json.loads(Path("logs/qa/version_0/lengths.json").read_text())["all"]
    prompts = sorted((line["prompt_tokens"] for line in lines), reverse=True)
    assert written["prompt"]["count"] == len(lines) == 7 and written["prompt"]["max"] == prompts[0]
    cells = sum(max(batch) * len(batch) for batch in (prompts[:3], prompts[3:6], prompts[6:]))
    assert written["prompt"]["padding_waste"] == pytest.approx(1 - sum(prompts) / cells)
    args = ("--questions", "commonsense_qa", "--tokenizer", tiny_base)
    assert door("lengths", *args, "--run", "logs/qa/version_0", "--out", "l.yaml").status == 1
    result = door(
        "lengths", *args, "--run", "logs/qa/version_0", "--gen-length", 12, "--memory", "2MiB", "--out", "l.yaml"
    )
    assert result.status == 0, result.err
    assert "gen_length 12 is given by hand: of the 7 answers measured" in result.out.replace("\n", " ")
    assert "7 of 44 questions of the file: those of the run" in result.out.replace("\n", " ")
    # the run's own questions, and those that a run with the same limit and seed would ask
    for more in (("--run", "logs/qa/version_0", "--gen-length", 12), ("--limit", 7)):
        figures = report(door, *args, *more)["lengths"]["prompt"]
        assert (figures["count"], figures["mean"], figures["max"]) == (7, np.mean(prompts), max(prompts))
    fewer = door("predict", "-c", config, "--data.limit", 3, "--trainer.logger.init_args.version", 2)
    assert fewer.status in (0, 1), fewer.err
    asked = [json.loads(line) for line in Path("logs/qa/version_2/predictions.jsonl").read_text().splitlines()]
    assert len(asked) == 3 and {one["id"] for one in asked} <= {one["id"] for one in lines}
    for more in ((), ("--run", "logs/qa/version_0"), ("--run", "logs/qa/version_2")):
        figures = report(door, *args, *more, "--limit", 3, "--gen-length", 12)["lengths"]["prompt"]
        assert figures["count"] == 3 and figures["mean"] == np.mean([one["prompt_tokens"] for one in asked])
    found = yaml.safe_load(Path("l.yaml").read_text())
    assert found["model"]["init_args"] == {"max_new_tokens": 12}
    assert set(found["data"]["init_args"]) == {"max_length", "batch_size"}
    result = door("predict", "-c", config, "-c", "l.yaml", "--trainer.logger.init_args.version", 1)
    assert result.status in (0, 1) and "prompt" not in result.err, result.err
    saved = yaml.safe_load(Path("logs/qa/version_1/config.yaml").read_text())
    assert saved["data"]["init_args"]["max_length"] == found["data"]["init_args"]["max_length"]
    assert len(Path("logs/qa/version_1/predictions.jsonl").read_text().splitlines()) == 7


@pytest.mark.parametrize("kind", ["blocks", "lines", "completions"])
def test_texts_of_other_kinds(door, tiny_base, tmp_path, kind):
    path = tmp_path / ("x.jsonl" if kind == "completions" else "x.txt")
    long = "Q: Which\nA: is odd?\nOptions:\n(A) a\nA: because so. The answer is (A)."
    match kind:
        case "blocks":
            path.write_text(f"Q: x\nOptions:\n(A) a\nA: short<|end_of_text|>\n\n{long}<|end_of_text|>\n\n")
        case "lines":
            path.write_text("one\n\nthree words here\n")
        case _:
            path.write_text(json.dumps({"prompt": "Q", "completion": " because"}) + "\n")
    found = report(door, "--questions", path, "--tokenizer", tiny_base)
    tokenizer = load_tokenizer(tiny_base)
    count = {"blocks": 2, "lines": 2, "completions": 1}[kind]
    assert found["lengths"]["prompt"]["count"] == count, "an empty last block is no text"
    if kind == "blocks":
        # the answer begins behind the options, whatever the question looks like
        answer = " because so. The answer is (A)."
        assert found["lengths"]["answer"]["max"] == len(tokenizer(answer, add_special_tokens=False)["input_ids"]) + 1
        assert found["original"]["text"] == long
    check_named(door, ("--questions", path, "--tokenizer", tiny_base, "--out", "o.yaml"), "o.yaml")
    key = "block_size" if kind == "lines" else "max_length"  # text that is cut into blocks, or rows
    assert list(yaml.safe_load(Path("o.yaml").read_text())["data"]["init_args"]) == [key]


def check_named(door, args, name: str) -> None:
    """Write a file of limits, and have the command that its first line names take it."""
    result = door("lengths", *args)
    assert result.status == 0, result.err
    command = Path(name).read_text().splitlines()[0].rpartition("   lit-hass ")[2]
    whole = [str(ROOT / part) if part.startswith("configs/") else part for part in command.split()]
    taken = door(*[name if part == "THIS_FILE" else part for part in whole], "--print_config")
    assert taken.status == 0, taken.err
    loaded = yaml.safe_load(taken.out)
    for part, settings in yaml.safe_load(Path(name).read_text()).items():
        assert settings["init_args"].items() <= loaded[part]["init_args"].items()
        assert settings.get("class_path", loaded[part]["class_path"]) == loaded[part]["class_path"]


@pytest.mark.parametrize("kind", ["html_to_tsv", "commonsense_qa"])
def test_limits_load_in_the_configurations_that_they_name(door, tiny_base, kind):
    args = ("--questions", kind, "--tokenizer", tiny_base, "--gen-length", 8, "--memory", "1GiB", "--coverage", 0.5)
    check_named(door, (*args, "--out", "o.yaml"), "o.yaml")
    check_named(door, (*args, "--fit-out", "f.yaml"), "f.yaml")


def test_a_context_that_is_given_is_reckoned_with_and_said(door, tiny_base, questions):
    """The configuration names 512 tokens; the model's rotary positions go on behind."""
    args = ("--questions", questions(2, reference=None), "--tokenizer", tiny_base, "--gen-length", 600)
    why = "the model's context: 1024, given by --context; its configuration says 512"
    refused = door("lengths", *args, "--out", "o.yaml")
    assert refused.status == 2 and "leaves no room for a prompt in the model's context of 512" in refused.err
    result = door("lengths", *args, "--context", 1024, "--out", "o.yaml")
    assert result.status == 0 and f"({why})" in " ".join(result.out.split()), result.err
    assert f"# {why}\n" in Path("o.yaml").read_text()
    # predict, too, is told, so that it takes the limits
    assert yaml.safe_load(Path("o.yaml").read_text())["model"]["init_args"] == {"max_new_tokens": 600, "context": 1024}
    check_named(door, (*args, "--context", 1024, "--overwrite", "--out", "o.yaml"), "o.yaml")
    found = report(door, *args, "--context", 1024)
    assert (found["context"], found["context_given"], found["context_of_model"]) == (1024, True, 512)
    own = report(door, *args[:-1], 8)
    assert (own["context"], own["context_given"], own["context_of_model"]) == (512, False, 512)
    assert door("lengths", *args[:-1], 8, "--overwrite", "--out", "o.yaml").status == 0
    assert yaml.safe_load(Path("o.yaml").read_text()) == {"model": {"init_args": {"max_new_tokens": 8}}}
    assert "the model's context" not in Path("o.yaml").read_text()


@pytest.mark.parametrize(
    ("args", "status", "message"),
    [
        (["--coverage", "1.5"], 2, "--coverage"),
        (["--limit", "0"], 2, "--limit must be at least 1"),
        (["--gen-length", "-1"], 2, "--gen-length must be at least 1"),
        (["--memory", "many"], 2, "--memory 'many' is no size"),
        (["--verify"], 2, "--verify runs the batch that fits into --memory"),
        (["--run", "nowhere"], 2, "nowhere: is not the folder of a run"),
        (["--n-shot", "none.txt"], 2, "none.txt: no such n-shot file"),
        (["--gen-length", "511"], 1, "more than the model's context of 512"),
        (["--gen-length", "600"], 2, "leaves no room for a prompt in the model's context of 512"),
        (["--gen-length", "511"], 1, "--context N where it takes more than its configuration says"),
        (["--context", "1"], 2, "--context must be at least 2"),
        (["--gen-length", "60", "--context", "60"], 2, "leaves no room for a prompt in the model's context of 60"),
        (["--gen-length", "8", "--memory", "20KiB"], 1, "one row of"),
        (["--gen-length", "8", "--memory", "1GiB", "--dtype", "float7"], 2, "unknown dtype"),
        (["--out", "there.yaml"], 2, "there.yaml: exists; give --overwrite"),
        (["--gen-length", "8", "--write-json", "list.json"], 2, "list.json: a JSON object is expected"),
        (["--gen-length", "8", "--write-json", "bad.json"], 2, "bad.json: not readable as JSON"),
        (["--model", "nothing/here/at/all"], 2, "no such folder"),
    ],
)
def test_refusals(door, tiny_base, questions, args, status, message):
    Path("there.yaml").write_text("old")
    Path("list.json").write_text("[1]")
    Path("bad.json").write_text("{")
    path = questions(2, reference=None)
    result = door("lengths", "--questions", path, "--tokenizer", tiny_base, *args)
    assert result.status == status and message in result.err, result.err
    assert len(result.err.splitlines()) == 1 and Path("there.yaml").read_text() == "old"


def test_no_answers_no_files(door, tiny_base, questions):
    path = questions(2, reference=None)
    result = door("lengths", "--questions", path, "--tokenizer", tiny_base, "--out", "o.yaml")
    assert result.status == 2 and "no answers to measure: give --run RUN" in result.err
    assert not Path("o.yaml").exists() and "maximum generated tokens: no answers" in result.out


def test_broken_questions_are_named_by_line(door, tiny_base, tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text('{"question_id": 1, "turns": ["a"]}\n{"question_id": 2, "turns": []}\n')
    result = door("lengths", "--questions", path, "--tokenizer", tiny_base)
    assert result.status == 2 and f"{path}:2: turns is empty" in result.err
    row = {"id": "a", "answerKey": "F", "question": {"stem": "s", "choices": []}}
    path.write_text(json.dumps(row) + "\n")
    assert f"{path}:1: " in door("lengths", "--questions", path, "--tokenizer", tiny_base).err
    path.write_text("")
    assert "holds no questions" in door("lengths", "--questions", path, "--tokenizer", tiny_base).err
    path.write_text("not json\n")
    assert f"{path}:1: not valid JSON" in door("lengths", "--questions", path, "--tokenizer", tiny_base).err


def test_a_run_of_something_else_is_refused(door, tiny_base, asked, questions):
    assert predict(door, tiny_base, asked, 3).status == 0
    other = questions(2)
    result = door("lengths", "--questions", other, "--tokenizer", tiny_base, "--run", RUN)
    assert result.status == 2 and "none of its 6 answers is to a question" in result.err
    result = door("lengths", "--questions", asked, "--tokenizer", tiny_base, "--run", RUN, "--template", "plain")
    assert result.status == 2 and "give the run's own --tokenizer" in result.err
    result = door("lengths", "--questions", asked, "--tokenizer", tiny_base, "--run", Path(RUN).parent)
    assert result.status == 2 and "holds the runs version_0; name one of them" in result.err


def test_the_shipped_questions_by_name(door):
    found = report(door, "--questions", "html_to_tsv", "--tokenizer", "html_to_tsv", "--coverage", "1")
    assert found["lengths"]["prompt"]["count"] == len(read_questions(questions_file("html_to_tsv")))
    assert found["recommendation"]["gen_length"] >= found["lengths"]["answer"]["max"]
    assert found["padding"]["sorted"] < found["padding"]["batches"] < found["padding"]["max_length"]


# tests/star counts the answers of two ranks of another module in every run.
@pytest.mark.slow
@pytest.mark.ddp
def test_two_ranks_count_what_one_counts(process, tiny_base, asked, tmp_path):
    monitor = ROOT / "configs" / "callbacks" / "lengths.yaml"
    found = []
    for version, more in enumerate(((), ("--trainer.devices", 2, "--trainer.strategy", "ddp"))):
        args = ["predict", "-c", CONFIG, "-c", monitor, "--model.base", tiny_base, "--data.questions", asked]
        args += ["--model.max_new_tokens", 5, "--model.warmup", 0, "--trainer.accelerator", "cpu"]
        run = process([*args, "--trainer.logger.init_args.version", version, *more])
        assert run.wait() == 0, run.text()
        found.append(json.loads((tmp_path / f"logs/generate_baseline/version_{version}/lengths.json").read_text()))
    assert found[0] == found[1] and found[0]["all"]["answer"]["count"] == 6


def test_the_verb_needs_no_lightning(questions):
    code = (
        "import sys; from lit_hass.__main__ import main\n"
        f"status = main(['lengths', '--questions', {str(questions(2))!r}, '--tokenizer', 'html_to_tsv'])\n"
        "assert status == 0 and not {'lightning', 'torchmetrics'} & set(sys.modules), 'a heavy import'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
