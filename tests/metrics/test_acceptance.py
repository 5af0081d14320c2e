"""Acceptance length and throughput: against plain loops, over updates, precisions and two processes."""

import itertools
import json
import math
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lit_hass.errors import UserError
from lit_hass.metrics.acceptance import AcceptanceLength
from lit_hass.metrics.functional.acceptance import (
    acceptance_by_depth,
    accepted_histogram,
    node_acceptance_rate,
    tau_micro,
    tau_original,
    tokens_per_step,
)
from lit_hass.metrics.throughput import Throughput

ROOT = Path(__file__).resolve().parents[2]


def draw(seed: int, questions: int = 40) -> list[list[list[int]]]:
    """Questions of 1 to 3 turns of 0 to 12 steps; the first has no step at all."""
    rng = random.Random(seed)
    drawn = [
        [[rng.randint(0, 6) for _ in range(rng.randint(0, 12))] for _ in range(rng.randint(1, 3))]
        for _ in range(questions - 1)
    ]
    return [[[]], *drawn]


def test_by_hand() -> None:
    steps = [0, 2, 2, 5]
    assert tau_micro(steps) == pytest.approx(9 / 4 + 1)
    # 3 of 4 steps had depth 1 accepted, all those depth 2, 1 of 3 depth 3, that one depths 4 and 5
    assert acceptance_by_depth(steps) == pytest.approx([3 / 4, 1, 1 / 3, 1, 1])
    assert accepted_histogram(steps) == [1, 0, 2, 0, 0, 1]
    assert node_acceptance_rate(steps, 10) == pytest.approx(9 / 40)
    assert tokens_per_step(11, 4) == 2.75
    assert tau_original([[1, 3], [], [6]]) == (pytest.approx((2 + 6) / 2 + 1), 1)
    assert acceptance_by_depth([0, 0]) == [0.0] and tau_micro([0, 0]) == 1.0


@pytest.mark.parametrize("seed", range(5))
def test_against_loops(seed: int) -> None:
    questions = draw(seed)
    flat = [a for question in questions for turn in question for a in turn]
    count, total = 0, 0
    for a in flat:
        count, total = count + 1, total + a + 1
    assert tau_micro(flat) == pytest.approx(total / count)
    means = []
    for question in questions:
        steps = list(itertools.chain(*question))
        if steps:
            means.append(sum(steps) / len(steps) + 1)
    value, left_out = tau_original([list(itertools.chain(*question)) for question in questions])
    assert value == pytest.approx(sum(means) / len(means)) and left_out == len(questions) - len(means) > 0
    for d, share in enumerate(acceptance_by_depth(flat), start=1):
        got_there = [a for a in flat if a >= d - 1]
        assert share == pytest.approx(sum(a >= d for a in got_there) / len(got_there))
    assert len(acceptance_by_depth(flat)) == max(flat)
    # chained, the shares give the mean again
    chained = 1 + sum(math.prod(acceptance_by_depth(flat)[:d]) for d in range(1, max(flat) + 1))
    assert chained == pytest.approx(tau_micro(flat))


def test_nothing_is_undefined_and_not_zero() -> None:
    assert math.isnan(tau_micro([])) and math.isnan(tokens_per_step(1, 0)) and math.isnan(node_acceptance_rate([], 5))
    assert math.isnan(node_acceptance_rate([0, 0], 0))
    value, left_out = tau_original([[], []])
    assert math.isnan(value) and left_out == 2
    assert acceptance_by_depth([]) == [] and accepted_histogram([]) == []


@pytest.mark.parametrize("bad", [[-1], [1.5], [1, None], [[1], [2]], [True]])
def test_what_is_no_count_is_refused(bad) -> None:
    for function in (tau_micro, acceptance_by_depth, accepted_histogram):
        with pytest.raises(ValueError, match="whole numbers"):
            function(bad)


def test_functions_need_no_torch() -> None:
    code = "import sys, lit_hass.metrics.functional.acceptance; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("seed", range(3))
def test_the_metric_over_many_updates_equals_the_functions(seed: int) -> None:
    questions = draw(seed)
    micro, original, rate = (AcceptanceLength(d) for d in ("micro", "original", "tokens_per_step"))
    for number, question in enumerate(questions):
        tokens = [sum(turn) + len(turn) for turn in question]
        micro.update(question)
        original.update(question, groups=[number] * len(question))
        rate.update(question, new_tokens=tokens)
    flat = [a for question in questions for turn in question for a in turn]
    assert micro.compute().item() == pytest.approx(tau_micro(flat), abs=1e-12)
    value, left_out = tau_original([list(itertools.chain(*question)) for question in questions])
    assert original.compute().item() == pytest.approx(value, abs=1e-12) and original.left_out.item() == left_out
    assert rate.compute().item() == pytest.approx(tau_micro(flat), abs=1e-12)
    assert micro.compute().dtype == torch.float64 and micro.count.dtype == torch.int64
    whole = AcceptanceLength("original")
    turns = [(turn, number) for number, question in enumerate(questions) for turn in question]
    whole.update([turn for turn, _ in turns], groups=[number for _, number in turns])
    assert whole.compute().item() == pytest.approx(value, abs=1e-12)
    micro.reset()
    assert math.isnan(micro.compute().item())


def test_the_metric_refuses_by_name() -> None:
    with pytest.raises(UserError, match="AcceptanceLength.definition.*'macro'"):
        AcceptanceLength("macro")
    with pytest.raises(ValueError, match="groups"):
        AcceptanceLength("original").update([[1]])
    with pytest.raises(ValueError, match="new_tokens"):
        AcceptanceLength("tokens_per_step").update([[1]])
    with pytest.raises(ValueError, match="2 entries for 1 turns"):
        AcceptanceLength().update([[1]], groups=[1, 2])
    with pytest.raises(ValueError, match="negative"):
        AcceptanceLength().update([[1, -1]])


def test_throughput_is_a_ratio_of_sums() -> None:
    metric = Throughput()
    assert math.isnan(metric.compute().item())
    for tokens, seconds in ((10, 0.5), (1, 0.25), (0, 0.0)):
        metric.update(tokens, seconds)
    assert metric.compute().item() == 11 / 0.75 and metric.seconds.dtype == torch.float64
    for bad in ((-1, 1.0), (1, -1.0), (1, math.nan), (1, math.inf)):
        with pytest.raises(ValueError, match="not negative"):
            metric.update(*bad)


def test_half_precision_and_inference_mode_leave_the_sums_alone() -> None:
    speed, length = Throughput(), AcceptanceLength("original")
    module = torch.nn.ModuleList([speed, length])
    module.to(torch.bfloat16)
    with torch.inference_mode():
        speed.update(1001, 1 / 3)
        length.update([[1, 2, 2]], groups=[0])
    module.half()
    speed.update(1, 1 / 3)
    length.update([[0]], groups=[0])
    assert speed.compute().item() == pytest.approx(1002 * 3 / 2, abs=1e-9)
    assert length.compute().item() == pytest.approx((5 / 3 + 0) / 2 + 1, abs=1e-12)


TWO_RANKS = """
import json, sys
import torch
import torch.distributed as dist
from lit_hass.metrics.acceptance import AcceptanceLength
from lit_hass.metrics.throughput import Throughput
torch.set_num_threads(1)
rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
metrics = [AcceptanceLength("micro"), AcceptanceLength("original"), Throughput()]
for number, question in enumerate([[[3, 1], [0]], [[2]], [[]]] if rank == 0 else []):
    metrics[0].update(question)
    metrics[1].update(question, groups=[number] * len(question))
    metrics[2].update(7, 0.5)
values = [metric.compute().item() for metric in metrics]
metrics[0].update([[9]] if rank == 1 else [])  # after a sync the own share goes on
values.append(metrics[0].compute().item())
print(json.dumps([*values, int(metrics[1].left_out)]))
dist.destroy_process_group()
"""


@pytest.mark.ddp
def test_two_processes_one_of_them_without_anything(tmp_path: Path) -> None:
    command = [sys.executable, "-c", TWO_RANKS]
    ranks = [
        subprocess.Popen([*command, str(r), str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=ROOT) for r in (0, 1)
    ]
    said = [json.loads(rank.communicate(timeout=120)[0].splitlines()[-1]) for rank in ranks]
    micro = tau_micro([3, 1, 0, 2])
    assert said[0][:4] == pytest.approx([micro, (4 / 3 + 2) / 2 + 1, 14.0, tau_micro([3, 1, 0, 2, 9])])
    assert said[0][:4] == said[1][:4]
    assert [each[4] for each in said] == [1, 0]  # the own share again
