"""Every YAML under configs/ is parsed, instantiated and run for a step or two."""

import json
from pathlib import Path

import pytest
import yaml

from lit_hass.models import DraftModel, load_base
from tests.door.conftest import ROOT, door, questions  # noqa: F401  # fixtures

CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
#: Configs that only add to another one, and to which.
PARTS = {
    "callbacks/lengths.yaml": "generate_baseline.yaml",
    "callbacks/collapse.yaml": "generate_hass.yaml",
    "callbacks/resources.yaml": "generate_baseline.yaml",
    "trainer/ddp.yaml": "generate_baseline.yaml",
    "trainer/debug.yaml": "generate_baseline.yaml",
    "model/sampling.yaml": "generate_baseline.yaml",
    "model/original_baseline.yaml": "generate_baseline.yaml",
    "data/text.yaml": "train_base.yaml",
    "data/wordpiece.yaml": "train_base.yaml",
    "star_sums.yaml": "star.yaml",
    "train_base_refine.yaml": "train_base.yaml",
    "train_draft_refine.yaml": "train_draft.yaml",
    "train_base_drill.yaml": "train_base.yaml",
}
#: A training run small enough for a test; what it checks is that the file's own keys are accepted and run.
SMALL_FIT = (
    "--trainer.max_steps", 2, "--trainer.val_check_interval", 1, "--trainer.limit_val_batches", 1,
    "--trainer.enable_progress_bar", "false",
)  # fmt: skip


def _name(path: Path) -> str:
    return path.relative_to(ROOT / "configs").as_posix()


@pytest.mark.parametrize("path", CONFIGS, ids=_name)
def test_config(door, questions, tiny_base, path, tmp_path):  # noqa: F811
    name = _name(path)
    files = ["-c", ROOT / "configs" / PARTS[name], "-c", path] if name in PARTS else ["-c", path]
    whole = yaml.safe_load(Path(files[1]).read_text())
    module = whole["model"]["class_path"].rsplit(".", 1)[-1]
    match module:
        case "GenerationModule":
            more = ["--model.base", tiny_base, "--model.max_new_tokens", 3, "--data.questions", questions(2)]
            # One process here: two are tested where processes are tested.
            more += ["--trainer.devices", 1]
            if whole["model"]["init_args"].get("draft"):
                DraftModel.from_base(load_base(tiny_base)).save_pretrained(tmp_path / "draft")
                more += ["--model.draft", tmp_path / "draft"]
            result = door("predict", *files, *more)
        case "EvaluationModule":
            draft = tmp_path / "draft"
            DraftModel.from_base(load_base(tiny_base)).save_pretrained(draft)
            more = ["--model.base", tiny_base, "--model.draft", draft, "--model.max_new_tokens", 3]
            result = door("evaluate", *files, *more, "--data.questions", questions(2), "--model.repeats", 1)
        case "LanguageModelingModule":
            more = list(SMALL_FIT)
            if name in ("data/text.yaml", "data/wordpiece.yaml"):
                text = tmp_path / "text.txt"
                text.write_text("one two three four five six seven eight nine ten\n" * 80, encoding="utf-8")
                more += ["--data.train_files", f"[{text}]", "--data.tokenizer", tiny_base, "--data.block_size", 16]
            elif name in ("star_sums_base.yaml", "train_rationale.yaml"):
                rows = tmp_path / "rows.jsonl"
                rows.write_text('{"prompt": "Q: a", "completion": " b"}\n' * 4, encoding="utf-8")
                more += ["--data.tokenizer", tiny_base, "--data.train_file", rows, "--data.validation_file", rows]
            else:
                more += ["--data.tokenizer", tiny_base, "--data.tokens_per_batch", 64, "--data.validation", 2]
            if name in ("train_base_refine.yaml", "train_base_drill.yaml", "train_rationale.yaml"):
                more += ["--model.base", tiny_base]
            else:
                more += ["--model.architecture.num_hidden_layers", 1, "--model.architecture.hidden_size", 32]
            result = door("fit", *files, *more)
        case "DraftTrainingModule":
            more = [*SMALL_FIT, "--model.base", tiny_base, "--model.validation_max_new_tokens", 8]
            more += ["--model.validation_prompts", 2]
            if name == "train_draft_smollm2.yaml":
                talks = [{"question_id": i, "turns": ["a"], "reference": ["b c"]} for i in range(40)]
                (tmp_path / "talks.jsonl").write_text("".join(json.dumps(talk) + "\n" for talk in talks))
                more += ["--data.path", tmp_path / "talks.jsonl", "--data.validation_share", 0.3]
            else:
                more += ["--data.tokens_per_batch", 64, "--data.validation", 2]
            if name == "train_draft_refine.yaml":
                DraftModel.from_base(load_base(tiny_base)).save_pretrained(tmp_path / "draft")
                more += ["--model.draft", tmp_path / "draft"]
            result = door("fit", *files, *more)
        case "RationaleModule":
            more = ["--model.base", tiny_base, "--model.max_new_tokens", 8, "--data.limit", 4]
            if name == "rationale.yaml":
                result = door("predict", *files, *more)
            else:
                for part, digits in (("train", "2-3"), ("test", "4-5")):
                    door("make-data", "sums", "--n", 4, "--split", part, "--digits", digits, "--out", f"{part}.jsonl")
                more += ["--data.questions", "train.jsonl", "--validation", "test.jsonl", "--data.shots", "null"]
                result = door("star", *files, *more, "--hints", "false", "--out", tmp_path / "loop")
                # A random model has nothing right: the files were accepted, and the loop came to its end.
                assert "so there is nothing to train on" in result.err and result.status == 1
                return
        case "PerplexityModule":
            result = door("test", *files, "--model.base", tiny_base, "--data.window", 64)
        case _:
            pytest.fail(f"no small run is known for {module}")
    assert result.status == 0, result.err


@pytest.mark.parametrize("path", [path for path in CONFIGS if "ModelCheckpoint" in path.read_text()], ids=_name)
def test_checkpoints_keep_their_names_when_a_run_is_resumed(path):
    """Lightning would write ``last-v1.ckpt`` beside the one that ``--ckpt_path last`` of a third start takes."""
    callbacks = yaml.safe_load(path.read_text())["trainer"]["callbacks"]
    saving = [callback["init_args"] for callback in callbacks if callback["class_path"].endswith("ModelCheckpoint")]
    assert saving and all(args.get("enable_version_counter") is False for args in saving)


def test_every_key_of_a_config_is_explained():
    """Each setting of the data and the model has a comment, or speaks for itself in the class's docstring."""
    for path in CONFIGS:
        assert path.read_text(encoding="utf-8").lstrip().startswith("#"), f"{path}: says nothing of its purpose"
