"""Two gloo ranks find what one process finds, also when one of them has less, or nothing."""

import datetime
import json
import math
import multiprocessing

import pytest
import torch
import torch.distributed as dist

from lit_hass.errors import RunError
from lit_hass.features import CollapseConfig
from lit_hass.features import collapse_metrics as module
from lit_hass.features.class_views import class_means
from tests.features.sequences import make_sequence, new_measurement

QUESTIONS = list(range(9))


def measure(questions, config, folder=None, rank=0, dtype=torch.float32):
    measurement = new_measurement(config, folder=folder, rank=rank)
    for question in questions:
        measurement.add_question([make_sequence(question, length=30 + question, dtype=dtype)])
    return measurement


def _work(rank, store, shares, settings, dtype, fails, pipe):
    torch.set_num_threads(1)
    address = {"init_method": f"file://{store}", "timeout": datetime.timedelta(seconds=120)}
    dist.init_process_group("gloo", rank=rank, world_size=len(shares), **address)
    if fails == rank:

        def broken(*args):
            raise torch.linalg.LinAlgError("did not converge")

        module.agreement_counts = broken
    measurement = measure(shares[rank], CollapseConfig(**settings), f"{store}.{rank}", rank, dtype)
    try:
        metrics = measurement.get_collapse_metrics()
        # Each rank has its own share afterwards.
        mine = measurement.get_collapse_metrics(sync=False)["counts"]["questions"]
        views = [part.tolist() for part in class_means(measurement)]
        pipe.send((metrics, mine, views))
    except RunError as error:
        pipe.send(str(error))
    dist.barrier()
    dist.destroy_process_group()


def ranks(tmp_path, shares, settings, dtype=torch.float32, fails=None):
    """What each rank says."""
    context = multiprocessing.get_context("fork")
    ends = [context.Pipe() for _ in shares]
    started = [
        context.Process(target=_work, args=(rank, tmp_path / "store", shares, settings, dtype, fails, ends[rank][1]))
        for rank in range(len(shares))
    ]
    for process in started:
        process.start()
    found = [end[0].recv() if end[0].poll(150) else None for end in ends]
    for process in started:
        process.join(60)
        assert process.exitcode == 0
    return found


def assert_same(found, expected, where="", tolerance=1e-9):
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for name, value in expected.items():
            assert_same(found[name], value, f"{where}/{name}", tolerance)
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for i, value in enumerate(expected):
            assert_same(found[i], value, f"{where}/{i}", tolerance)
    elif isinstance(expected, float):
        # Eigenvalues that are zero but for rounding have roots that are not.
        assert found is not None and math.isclose(found, expected, rel_tol=tolerance, abs_tol=tolerance), where
    else:
        assert found == expected, (where, found, expected)


SHARES = {"uneven": [QUESTIONS[:6], QUESTIONS[6:]], "empty": [QUESTIONS, []], "first empty": [[], QUESTIONS]}


@pytest.mark.ddp
@pytest.mark.parametrize("keeps", [4096, 3, None])
@pytest.mark.parametrize("shares", SHARES)
def test_two_ranks_are_one_process(tmp_path, shares, keeps):
    settings = {"max_samples_per_class": keeps}
    expected = measure(QUESTIONS, CollapseConfig(**settings), tmp_path / "one")
    views = [part.tolist() for part in class_means(expected)]
    metrics = expected.get_collapse_metrics()
    found = ranks(tmp_path, SHARES[shares], settings)
    assert [mine for _, mine, _ in found] == [len(share) for share in SHARES[shares]]
    for theirs, _, others in found:
        assert_same(theirs, json.loads(json.dumps(metrics)))
        assert_same(others, views)


@pytest.mark.ddp
def test_two_ranks_of_bfloat16(tmp_path):
    settings = {"max_samples_per_class": 4096, "storage_dtype": "bfloat16"}
    expected = measure(QUESTIONS, CollapseConfig(**settings)).get_collapse_metrics()
    for theirs, _, _ in ranks(tmp_path, SHARES["uneven"], settings):
        assert_same(theirs, expected)
    # Statistics see what is stored.
    rounded = measure(QUESTIONS, CollapseConfig(max_samples_per_class=4096)).get_collapse_metrics()
    assert 0 < abs(rounded["overall_metrics"]["svd_entropy"] - expected["overall_metrics"]["svd_entropy"]) < 1e-2


@pytest.mark.ddp
@pytest.mark.parametrize("on_error", ["continue", "raise"])
def test_what_fails_on_one_rank_fails_on_all(tmp_path, on_error):
    settings = {"max_samples_per_class": 4096, "on_error": on_error}
    found = ranks(tmp_path, SHARES["uneven"], settings, fails=1)
    if on_error == "raise":
        assert found[0] == "nc4/overall could not be computed: another rank failed"
        assert "did not converge" in found[1]
        return
    assert_same(found[0][0], found[1][0])
    metrics = found[0][0]
    assert metrics["family"]["overall"]["nc4/nearest_accuracy"] is None
    assert metrics["overall_metrics"]["svd_entropy"] > 0 and metrics["token_metrics"]
    names = {(error["metric"], error["type"]) for error in metrics["errors"]}
    assert ("nc4/overall", "_LinAlgError") in names or ("nc4/overall", "LinAlgError") in names
