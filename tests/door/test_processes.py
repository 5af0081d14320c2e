"""Processes: two ranks, ranks that die, runs that are killed and resumed, Ctrl-C."""

import json
import os
import signal
import socket
from pathlib import Path

import pytest

from tests.door.conftest import CONFIG, ROOT, lines, tokens

RUN = Path("logs/generate_baseline/version_0")
DDP = ("-c", str(ROOT / "configs" / "trainer" / "ddp.yaml"))
#: How torchrun starts two processes of a module.
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "lit_hass")
SAMPLED = ("--model.sampling.temperature", 0.9, "--data.num_choices", 2)


def _args(base, questions, *more):
    return [
        "predict", "-c", CONFIG, "--model.base", base, "--data.questions", questions, "--model.max_new_tokens", 8,
        "--trainer.accelerator", "cpu", *more,
    ]  # fmt: skip


@pytest.fixture
def expected(door, tiny_base):
    """The tokens of an undisturbed run of one process."""

    def run(path, *more):
        assert door(*_args(tiny_base, path, *more)).status == 0
        return tokens(RUN / "answers.jsonl")

    return run


@pytest.mark.ddp
@pytest.mark.parametrize("n", [5, 1])
def test_two_ranks_answer_everything_once(process, tiny_base, questions, expected, tmp_path, n):
    path = questions(n)
    run = process(_args(tiny_base, path, *DDP, *SAMPLED))
    assert run.wait() == 0, run.text()
    answers = tmp_path / RUN / "answers.jsonl"
    assert [line["question_id"] for line in lines(answers)] == list(range(10, 10 + n))
    assert tokens(answers) == expected(path, *SAMPLED)
    statistics = json.loads((tmp_path / RUN / "statistics.json").read_text())
    assert statistics["questions"]["answered"] == n and statistics["devices"] == 2
    assert not list((tmp_path / RUN).glob("answers.rank*"))


@pytest.mark.ddp
def test_options_instead_of_a_file_and_torchrun(process, tiny_base, questions, expected, tmp_path):
    path = questions(3)
    options = ("--trainer.devices", 2, "--trainer.strategy", "ddp")
    run = process(_args(tiny_base, path, *options, "--trainer.logger.init_args.version", 0), launcher=TORCHRUN)
    assert run.wait() == 0, run.text()
    assert tokens(tmp_path / RUN / "answers.jsonl") == expected(path)


@pytest.mark.ddp
@pytest.mark.parametrize(("rank", "how"), [("1", "raise"), ("1", "kill"), ("0", "raise")])
def test_a_rank_that_dies_fails_the_run_which_resumes(process, tiny_base, questions, expected, tmp_path, rank, how):
    path = questions(7)
    args = _args(tiny_base, path, "--trainer.logger.init_args.version", 0)
    dying = ("--model.class_path", "tests.door.dying.DyingModule")
    run = process([*args, *DDP, *dying], DIES=rank, HOW=how)
    assert run.wait() != 0, run.text()
    assert not (tmp_path / RUN / "answers.jsonl").exists(), "a partial file looks like a whole one"
    kept = {
        line["question_id"]: line for shard in (tmp_path / RUN).glob("answers.rank*.jsonl") for line in lines(shard)
    }
    assert kept
    # One process takes up what two had begun.
    again = process(args)
    assert again.wait() == 0, again.text()
    answers = lines(tmp_path / RUN / "answers.jsonl")
    assert [line["question_id"] for line in answers] == list(range(10, 17))
    assert all(line == kept[line["question_id"]] for line in answers if line["question_id"] in kept)
    assert tokens(tmp_path / RUN / "answers.jsonl") == expected(path)


IMPATIENT = ("-m", "tests.door.impatient")


@pytest.mark.ddp
@pytest.mark.parametrize("given", [False, True], ids=["own", "given"])
def test_a_rank_whose_rank_0_never_comes_does_not_wait_for_days(process, tiny_base, questions, given):
    """Rank 0 has started rank 1 and is gone before they have met, as by a kill or for lack of memory."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    alone = {"LOCAL_RANK": "1", "NODE_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    named = ("--trainer.strategy", "DDPStrategy", "--trainer.strategy.timeout", "0:00:03") if given else ()
    args = _args(tiny_base, questions(3), *DDP, *named)
    run = process(args, launcher=IMPATIENT, MEETING="600" if given else "3", MASTER_PORT=str(port), **alone)
    assert run.wait(120) == 1, run.text()
    assert "did not meet within 0.05 minutes: one of them ended before" in run.text()
    assert "Traceback" not in run.text()


@pytest.mark.slow
@pytest.mark.ddp
def test_ranks_that_have_met_wait_for_longer_than_that(process, tiny_base, questions, tmp_path):
    run = process(
        [*_args(tiny_base, questions(3), *DDP), "--model.class_path", "tests.door.impatient.SlowModule"],
        launcher=IMPATIENT, MEETING="60", WAITS="75",
    )  # fmt: skip
    assert run.wait(300) == 0, run.text()
    assert len(lines(tmp_path / RUN / "answers.jsonl")) == 3


def test_a_killed_run_resumes_with_nothing_lost(process, tiny_base, questions, expected, tmp_path):
    path = questions(30)
    args = _args(tiny_base, path, *SAMPLED, "--trainer.logger.init_args.version", 0)
    shard = tmp_path / RUN / "answers.rank0.jsonl"
    seen = 0
    for wanted in (3, 12):
        run = process(args)
        run.wait_for(lambda wanted=wanted: shard.exists() and shard.read_bytes().count(b"\n") >= wanted)
        run.kill()
        written = [json.loads(line) for line in shard.read_bytes().split(b"\n")[:-1]]
        assert len(written) >= max(wanted, seen)
        seen = len(written)
    last = process(args)
    assert last.wait() == 0, last.text()
    answers = lines(tmp_path / RUN / "answers.jsonl")
    assert [line["question_id"] for line in answers] == list(range(10, 40))
    assert [line for line in answers if line in written] == sorted(written, key=lambda line: line["question_id"])
    assert tokens(tmp_path / RUN / "answers.jsonl") == expected(path, *SAMPLED)
    assert json.loads((tmp_path / RUN / "statistics.json").read_text())["questions"]["answered"] == 30


def test_two_runs_never_share_a_folder(process, tiny_base, questions, tmp_path):
    path = questions(30)
    args = _args(tiny_base, path, "--trainer.logger.init_args.version", 0)
    first = process(args)
    first.wait_for(lambda: (tmp_path / RUN / "answers.rank0.jsonl").exists())
    os.kill(first.process.pid, signal.SIGSTOP)  # still there, however slow this machine is
    second = process(args)
    assert second.wait() == 2
    assert str(first.process.pid) in second.text()
    os.kill(first.process.pid, signal.SIGCONT)
    assert first.wait() == 0, first.text()
    assert len(lines(tmp_path / RUN / "answers.jsonl")) == 30


def test_ctrl_c_ends_in_order_and_resumes(process, tiny_base, questions, tmp_path):
    path = questions(400)
    args = _args(tiny_base, path, "--trainer.logger.init_args.version", 0)
    run = process(args)
    shard = tmp_path / RUN / "answers.rank0.jsonl"
    run.wait_for(lambda: shard.exists() and shard.read_bytes().count(b"\n") >= 2)
    os.kill(run.process.pid, signal.SIGINT)
    assert run.wait() == 130, run.text()
    assert "interrupted" in run.text() and "Traceback" not in run.text()
    assert not (tmp_path / RUN / "answers.jsonl").exists() and not (tmp_path / RUN / "run.lock").exists()
    again = process(args)
    assert again.wait() == 0, again.text()
    assert len(lines(tmp_path / RUN / "answers.jsonl")) == 400


def test_sigterm_ends_at_once_and_resumes(process, tiny_base, questions, tmp_path):
    path = questions(30)
    args = _args(tiny_base, path, "--trainer.logger.init_args.version", 0)
    run = process(args)
    shard = tmp_path / RUN / "answers.rank0.jsonl"
    run.wait_for(lambda: shard.exists() and shard.read_bytes().count(b"\n") >= 2)
    os.kill(run.process.pid, signal.SIGTERM)
    assert run.wait() == -signal.SIGTERM, run.text()
    assert not (tmp_path / RUN / "answers.jsonl").exists()
    again = process(args)
    assert again.wait() == 0, again.text()
    assert len(lines(tmp_path / RUN / "answers.jsonl")) == 30


#: Starts the door with an output whose reader is gone.
CLOSED_PIPE = (
    "import subprocess, sys\n"
    "door = subprocess.Popen([sys.executable, '-m', 'lit_hass', *sys.argv[1:]], stdout=subprocess.PIPE)\n"
    "door.stdout.close()\n"
    "sys.exit(door.wait())"
)


def test_a_reader_that_has_seen_enough_loses_no_file(process, tiny_base, questions, tmp_path):
    run = process(_args(tiny_base, questions(2)), launcher=["-c", CLOSED_PIPE])
    assert run.wait() == 0, run.text()
    assert (tmp_path / RUN / "answers.jsonl").exists() and (tmp_path / RUN / "statistics.json").exists()
