"""Whose a folder is: nothing of anybody else's is written over, and one command writes at a time."""

import json
import resource
import shutil
from pathlib import Path

import pytest
import torch

from lit_hass.checkpoints import AtomicCheckpointIO
from lit_hass.errors import RunError, UserError
from lit_hass.records import FolderLock, HeldFolder, RunFolder
from tests.door.conftest import CONFIG, ROOT, lines
from tests.perplexity_bases import make_base, write_text

PERPLEXITY = ROOT / "configs" / "perplexity.yaml"
TRAIN = ROOT / "configs" / "train_base.yaml"
NO_LOGGER = ("--trainer.logger", "false")


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "text.txt", pages=2)


def scoring(base, text, *more):
    return [
        "test", "-c", PERPLEXITY, "--model.base", base, "--data.path", text, "--data.ladder", "none",
        "--data.window", 32, "--trainer.accelerator", "cpu", *more,
    ]  # fmt: skip


def answering(tiny_base, asked, *more):
    return [
        "predict", "-c", CONFIG, "--model.base", tiny_base, "--data.questions", asked, "--model.max_new_tokens", 3,
        "--trainer.accelerator", "cpu", *more,
    ]  # fmt: skip


def training(tiny_base, *more, steps=2):
    return [
        "fit", "-c", TRAIN, "--data.tokenizer", tiny_base, "--data.tokens_per_batch", 64, "--data.validation", 2,
        "--model.architecture.num_hidden_layers", 1, "--model.architecture.hidden_size", 32,
        "--trainer.max_steps", steps, "--trainer.val_check_interval", 1, "--trainer.limit_val_batches", 1,
        "--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu", *more,
    ]  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def commands(base, text, tiny_base, questions):
    """A small command of each verb that writes a run's folder."""
    asked = questions(1)
    return {
        "test": scoring(base, text),
        "predict": answering(tiny_base, asked),
        "fit": training(tiny_base),
        "validate": ["validate", *training(tiny_base)[1:]],
    }


@pytest.mark.parametrize("verb", ["test", "predict", "fit", "validate"])
def test_a_folder_with_files_of_somebody_else_is_left_alone(door, commands, verb) -> None:
    for folder, naming in (
        (Path(), NO_LOGGER),
        (Path("mine"), (*NO_LOGGER, "--trainer.default_root_dir", "mine")),
        (Path("logs/mine/version_0"), ("--trainer.logger.init_args.name", "mine",
                                       "--trainer.logger.init_args.version", 0)),
    ):  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("config.yaml", "perplexity.json", "statistics.json"):
            (folder / name).write_text("mine: 1\n")
        before = contents(Path())
        result = door(*commands[verb], *naming)
        assert result.status == 2 and result.err.strip().count("\n") == 0, result.err
        assert "no run wrote (config.yaml, " in result.err and "--trainer." in result.err
        assert contents(Path()) == before


def test_without_a_logger_an_empty_folder_is_the_runs_and_a_finished_result_stays(door, base, text) -> None:
    result = door(*scoring(base, text, *NO_LOGGER))
    assert result.status == 0, result.err
    before = contents(Path())
    assert json.loads(before["perplexity.json"]) and json.loads(before["run.json"])["finished"] is True
    again = door(*scoring(base, text, *NO_LOGGER, "--data.window", 16))
    assert again.status == 2 and "holds a finished run" in again.err
    assert contents(Path()) == before


def test_each_verb_has_folders_of_its_own(door, tiny_base, questions, base, text) -> None:
    place = (*NO_LOGGER, "--trainer.default_root_dir", "run")
    assert door(*answering(tiny_base, questions(1), *place)).status == 0
    before = contents(Path("run"))
    result = door(*scoring(base, text, *place))
    assert result.status == 2 and "is the folder of a predict run, not of test" in result.err
    assert contents(Path("run")) == before
    assert door(*answering(tiny_base, questions(1), *place)).status == 0, "a run of the same settings resumes"


@pytest.mark.parametrize("verb", ["test", "predict", "fit", "validate"])
def test_no_two_commands_write_one_folder(door, commands, verb) -> None:
    naming = ("--trainer.logger.init_args.name", "run", "--trainer.logger.init_args.version", 0)
    folder = Path("logs/run/version_0")
    with FolderLock(folder):
        before = contents(folder)
        result = door(*commands[verb], *naming)
        assert result.status == 2 and "another run is writing here" in result.err
        assert contents(folder) == before, "nothing is written before the lock is there"


def test_a_version_that_another_command_takes_meanwhile_is_passed_over(door, base, text, monkeypatch) -> None:
    take = HeldFolder.take

    def slow(self, *args, **options):
        theirs = Path("logs/perplexity/version_0")
        if not theirs.exists():
            theirs.mkdir(parents=True)
        return take(self, *args, **options)

    monkeypatch.setattr(HeldFolder, "take", slow)
    assert door(*scoring(base, text)).status == 0
    assert not list(Path("logs/perplexity/version_0").iterdir())
    assert Path("logs/perplexity/version_1/perplexity.json").exists()


def test_a_refused_run_leaves_no_folder(tmp_path) -> None:
    held = HeldFolder(tmp_path / "logs" / "run", "test", "").take(resumes=False)
    held.release()
    assert not list(tmp_path.iterdir())
    with HeldFolder(tmp_path / "logs" / "run", "test", "").take(resumes=False) as held:
        (held.folder / "perplexity.json").write_text("{}")
    assert sorted(path.name for path in held.folder.iterdir()) == ["perplexity.json", "run.json"]


def test_a_damaged_mark_proves_nothing(tmp_path) -> None:
    for content in ("{}", "[]", '{"verb": 3, "finished": true}', "{"):
        RunFolder(tmp_path).mark.write_text(content)
        with pytest.raises(UserError, match="run.json"):
            HeldFolder(tmp_path, "test", "").check(resumes=True)


def test_folders_from_before_there_were_marks_are_gone_on_with(tmp_path) -> None:
    evaluated, fitted = tmp_path / "evaluated", tmp_path / "fitted"
    for part in ("baseline", "hass"):
        (evaluated / part).mkdir(parents=True)
        (evaluated / part / "run_key.json").write_text("{}")
    (fitted / "checkpoints").mkdir(parents=True)
    (fitted / "checkpoints" / "last.ckpt").touch()
    for folder in (evaluated, fitted):
        (folder / "config.yaml").touch()
    HeldFolder(evaluated, "evaluate", "").check(resumes=True)
    HeldFolder(fitted, "fit", "").check(resumes=True)
    for folder, verb, resumes in (
        (fitted, "evaluate", True), (evaluated, "fit", True), (evaluated, "predict", True), (fitted, "test", False),
    ):  # fmt: skip
        with pytest.raises(UserError, match="no run wrote"):
            HeldFolder(folder, verb, "").check(resumes)
    with pytest.raises(UserError, match="checkpoints of a run that was stopped; here"):
        HeldFolder(fitted, "fit", "here").check(resumes=False)


def test_a_lock_that_is_a_link_is_not_followed(tmp_path) -> None:
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.lock").symlink_to(tmp_path / "precious")
    with pytest.raises(UserError, match="cannot be locked"):
        FolderLock(tmp_path / "run").acquire()
    assert (tmp_path / "precious").read_text() == "mine"


def test_what_predict_answers_is_kept_or_refused(door, tiny_base, questions) -> None:
    bar = '[{"class_path": "callbacks.GenerationProgressBar"}]'
    result = door(*answering(tiny_base, questions(1), "--trainer.callbacks", bar))
    assert result.status == 2 and "callbacks.AnswerWriter" in result.err and not Path("logs").exists()
    only = '[{"class_path": "callbacks.AnswerWriter", "init_args": {"method": "baseline"}}]'
    result = door("evaluate", "--trainer.callbacks", only)
    assert result.status == 2 and "callbacks.AnswerWriter with method hass" in result.err


FIT_RUN = Path("logs/train_base/version_0")
NAMED = ("--trainer.logger.init_args.version", 0)


def test_a_training_is_gone_on_with_or_begun_elsewhere(door, tiny_base) -> None:
    assert door(*training(tiny_base)).status == 0
    before = contents(FIT_RUN)
    assert {"base/model.safetensors", "checkpoints/last.ckpt"} <= before.keys()
    result = door(*training(tiny_base, *NAMED))
    assert result.status == 2 and "finished run; --ckpt_path last (or FILE) goes on" in result.err
    assert contents(FIT_RUN) == before
    # One that was killed has no end, and something to go on from.
    mark = RunFolder(FIT_RUN).mark
    mark.write_text(mark.read_text().replace("true", "false"))
    result = door(*training(tiny_base, *NAMED))
    assert result.status == 2 and "checkpoints of a run that was stopped; --ckpt_path last" in result.err
    result = door(*training(tiny_base, *NAMED, "--ckpt_path", "last", steps=4))
    assert result.status == 0, result.err
    assert torch.load(FIT_RUN / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 4
    mark.unlink()  # as before there were marks
    assert door(*training(tiny_base, *NAMED)).status == 2
    assert door(*training(tiny_base, *NAMED, "--ckpt_path", "last", steps=5)).status == 0 and mark.exists()
    assert not list(FIT_RUN.rglob("*-v1*")) and not list(FIT_RUN.rglob(".*"))
    # Without a checkpoint there is nothing to lose.
    shutil.rmtree(FIT_RUN / "checkpoints")
    shutil.rmtree(FIT_RUN / "base")
    mark.write_text(mark.read_text().replace("true", "false"))
    assert door(*training(tiny_base, *NAMED)).status == 0


def test_a_trial_run_of_a_training_writes_nothing(door, tiny_base) -> None:
    result = door(*training(tiny_base, "--trainer.fast_dev_run", "true"))
    assert result.status == 0, result.err
    assert not contents(Path())


@pytest.fixture
def full_disk():
    """``full_disk(bytes)``: from now on no file of this process may grow beyond that."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_the_last_checkpoint(door, tiny_base, full_disk) -> None:
    assert door(*training(tiny_base)).status == 0
    last = FIT_RUN / "checkpoints" / "last.ckpt"
    before = last.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    full_disk(len(before) // 2)
    result = door(*training(tiny_base, *NAMED, "--ckpt_path", "last", steps=4))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert result.status == 1 and "cannot write" in result.err and "File too large" in result.err, result.err
    assert last.read_bytes() == before and not list(last.parent.glob(".*"))
    result = door(*training(tiny_base, *NAMED, "--ckpt_path", "last", steps=4))
    assert result.status == 0, result.err
    assert torch.load(last, weights_only=True)["global_step"] == 4


def test_a_checkpoint_is_written_beside_the_old_one_and_nowhere_else(tmp_path, monkeypatch, full_disk) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    path = tmp_path / "checkpoints" / "last.ckpt"
    writer = AtomicCheckpointIO()
    writer.save_checkpoint({"step": 1}, path)
    assert writer.load_checkpoint(path)["step"] == 1
    full_disk(100_000)
    with pytest.raises(RunError, match="cannot write last.ckpt into folder .*: File too large"):
        writer.save_checkpoint({"step": 2, "weights": torch.zeros(100_000)}, path)
    assert writer.load_checkpoint(path)["step"] == 1 and [one.name for one in path.parent.iterdir()] == ["last.ckpt"]


def test_exported_models_go_below_the_runs_folder(door, tiny_base) -> None:
    result = door(*training(tiny_base, "--trainer.callbacks.folder", "../../mine"))
    assert result.status == 2 and "name below the run's folder" in result.err and not list(Path().iterdir())


def test_answers_of_a_shard_that_is_a_link_are_refused(door, tiny_base, questions, tmp_path) -> None:
    asked = questions(2)
    part = answering(tiny_base, asked, *NAMED, "--trainer.limit_predict_batches", 1)
    assert door(*part).status == 1
    shard = Path("logs/generate_baseline/version_0/answers.rank0.jsonl")
    elsewhere = tmp_path / "kept.jsonl"
    shard.rename(elsewhere)
    elsewhere.write_text(elsewhere.read_text() + '{"half')
    before = elsewhere.read_bytes()
    for link in (shard.symlink_to, shard.hardlink_to):
        link(elsewhere)
        result = door(*answering(tiny_base, asked, *NAMED))
        assert result.status == 2 and "link" in result.err and "put a copy in its place" in result.err
        assert elsewhere.read_bytes() == before
        shard.unlink()
    shutil.copy(elsewhere, shard)
    assert door(*answering(tiny_base, asked, *NAMED)).status == 0
    assert len(lines(shard.with_name("answers.jsonl"))) == 2
