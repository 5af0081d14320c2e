"""The metric against float64 formulas, over ranks, in low precision, and where nothing is defined."""

import math
import pickle

import pytest
import torch
from torch import nn

from lit_hass.metrics import Perplexity
from lit_hass.metrics.functional.perplexity import Estimate, paired_estimate, perplexity, ratio_estimate, unit_gap
from lit_hass.metrics.perplexity import token_nll
from tests.metrics.ranks import run_ranks


def test_units() -> None:
    metric = Perplexity(2)
    metric.update(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0, 1, 1]), forwarded=5, bos_targets=1, windows=2)
    metric.add_text(words=[1, 1], bytes=[4, 8])
    found = {name: value.item() for name, value in metric.compute().items()}
    assert found["token_ppl"] == pytest.approx(math.exp(2)) and found["word_ppl"] == pytest.approx(math.exp(3))
    assert found["byte_ppl"] == pytest.approx(math.exp(0.5))
    assert found["bits_per_byte"] == pytest.approx(0.5 / math.log(2))
    assert found["bits_per_token"] == pytest.approx(2 / math.log(2))
    assert found["mean_document_ppl"] == pytest.approx((math.exp(1) + math.exp(2.5)) / 2)
    assert [found[name] for name in ("tokens_scored", "tokens_forwarded", "bos_targets", "windows")] == [3, 5, 1, 2]


def test_documents_added_up_elsewhere_count_as_their_tokens_do() -> None:
    one, other = Perplexity(2), Perplexity(2)
    one.update(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0, 1, 1]), forwarded=5, bos_targets=1, windows=2)
    other.compute()  # what was computed before does not stay
    other.add_sums([1.0, 5.0], [1, 2], forwarded=5, bos_targets=1, windows=2)
    for name, value in one.compute().items():
        assert torch.equal(other.compute()[name], value) or bool(value.isnan()), name
    with pytest.raises(ValueError, match="1 documents, where there are 2"):
        other.add_sums([1.0], [1])


def test_standard_error_is_that_of_a_ratio() -> None:
    torch.manual_seed(0)
    weights = torch.randint(50, 500, (40,)).double()
    sums = weights * (2 + 0.3 * torch.randn(40, dtype=torch.float64))
    estimate = ratio_estimate(sums.tolist(), weights.tolist())
    drawn = torch.randint(0, 40, (20_000, 40))
    bootstrap = (sums[drawn].sum(1) / weights[drawn].sum(1)).std()
    assert estimate.standard_error == pytest.approx(float(bootstrap), rel=0.05)
    # The jackknife is another formula for the same.
    leave = (sums.sum() - sums) / (weights.sum() - weights)
    jackknife = math.sqrt(39 / 40 * float(((leave - leave.mean()) ** 2).sum()))
    assert estimate.standard_error == pytest.approx(jackknife, rel=0.05)


def test_paired_difference_cancels_what_both_models_share() -> None:
    torch.manual_seed(0)
    hard = torch.rand(30, dtype=torch.float64) * 300
    one, other = Perplexity(30), Perplexity(30)
    for metric, extra in ((one, 1.0), (other, 1.01)):
        metric.update(hard * extra, torch.arange(30))
        metric.add_text([100] * 30, [500] * 30)
    found = other.paired_difference(one)
    assert found.mean == pytest.approx(0.01 * float(hard.sum()) / 3000)
    assert found.standard_error < 0.02 * ratio_estimate(hard.tolist(), [100] * 30).standard_error
    with pytest.raises(ValueError, match="different documents"):
        Perplexity(29).paired_difference(one)


def test_what_is_not_defined_is_nan() -> None:
    empty = {name: value.item() for name, value in Perplexity(3).compute().items()}
    assert all(math.isnan(empty[name]) for name in ("token_ppl", "word_ppl", "bits_per_byte", "ln_token_ppl_se"))
    assert math.isnan(ratio_estimate([5.0], [2.0]).standard_error)
    assert paired_estimate([], [], []).documents == 0 and math.isnan(perplexity(1.0, 0))
    assert perplexity(1e6, 2) == math.inf  # e to the 500,000; the sum stays known
    assert Estimate(0.0, 0.0, 2).interval is None


def test_infinite_tokens_are_counted_and_stay_in_the_sum() -> None:
    metric = Perplexity(2)
    metric.update(torch.tensor([1.0, math.inf, math.nan]), torch.tensor([0, 0, 1]))
    found = metric.compute()
    assert found["nonfinite"] == 2 and not torch.isfinite(found["nll"])


def test_published_gap() -> None:
    """Wanda 6.31 and lm-eval 11.22 of one pruned Llama-2-7B: 322,149 tokens and 241,335 words."""
    exponent = 322_149 / 241_335
    gap = unit_gap(6.31, 11.22, exponent)
    assert gap.unit / gap.total == pytest.approx(1.07, abs=0.005) and gap.unit + gap.rest == pytest.approx(gap.total)
    assert perplexity(math.log(6.31) * exponent, 1) == pytest.approx(11.69, abs=0.005)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_token_nll_is_the_float32_loss(dtype, rows: int) -> None:
    torch.manual_seed(0)
    hidden, targets = torch.randn(50, 16).to(dtype), torch.randint(0, 90, (50,))
    head = nn.Linear(16, 90, bias=False).to(dtype)
    with torch.no_grad():
        logits = head(hidden)
        expected = nn.functional.cross_entropy(logits.double(), targets, reduction="none")
        found = token_nll(hidden, head, targets, rows)
    assert found.dtype == torch.float32
    # Products of fewer rows may be rounded otherwise in half precision.
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-6 if dtype == torch.float32 else 0.02)


def test_extreme_logits() -> None:
    logits = torch.tensor([[0.0, 200.0], [0.0, -9e4], [1e38, 0.0]])
    found = token_nll(torch.arange(3)[:, None].float(), lambda rows: logits[rows[:, 0].long()], torch.tensor([0, 0, 0]))
    assert found.tolist() == [200.0, 0.0, 0.0]


def test_gradients_pass_where_they_are_wanted() -> None:
    hidden = torch.randn(4, 8, requires_grad=True)
    found = token_nll(hidden, nn.Linear(8, 9), torch.tensor([1, 2, 3, 4]))
    found.sum().backward()
    assert hidden.grad is not None and bool(hidden.grad.abs().sum() > 0)


def test_update_from_hidden_needs_no_more_than_its_rows() -> None:
    most = []

    def head(rows):
        most.append(len(rows))
        return rows @ torch.eye(8)

    metric = Perplexity()
    values = metric.update_from_hidden(torch.randn(20, 8), head, torch.zeros(20, dtype=torch.long), rows=6, windows=1)
    assert max(most) == 6 and sum(most) == 20 and metric.compute()["nll"] == pytest.approx(float(values.double().sum()))


@pytest.mark.parametrize("cast", [torch.bfloat16, torch.float16, torch.float64])
def test_states_keep_their_precision(cast) -> None:
    module = nn.ModuleDict({"metric": Perplexity(2), "layer": nn.Linear(2, 2)})
    module.to(cast)
    metric = module["metric"]
    metric.update(torch.full((100_000,), 0.1, dtype=torch.float64), torch.zeros(100_000, dtype=torch.long))
    module.to(cast)
    assert metric.nll.dtype == torch.float64 and metric.tokens.dtype == torch.int64 == metric.forwarded.dtype
    metric.reset()
    assert metric.nll.dtype == torch.float64 and metric.compute()["tokens_scored"] == 0
    assert metric.to("meta").nll.device.type == "meta"


def test_counts_beyond_float32() -> None:
    metric = Perplexity()
    metric.tokens = torch.tensor([2**24])
    metric.update(torch.tensor([0.5]))
    assert metric.compute()["tokens_scored"] == 2**24 + 1


def test_contract() -> None:
    one, other, both = Perplexity(2), Perplexity(2), Perplexity(2)
    for metric, values in ((one, [1.0, 2.0]), (other, [3.0, 5.0])):
        for target in (metric, both):
            target.update(torch.tensor(values), torch.tensor([0, 1]))
    one.merge_state(other)
    found, expected = ({k: v.item() for k, v in metric.compute().items()} for metric in (one, both))
    assert found == pytest.approx(expected, nan_ok=True)
    again = pickle.loads(pickle.dumps(one))
    assert again.compute()["nll"] == 11.0 and one.clone().compute()["nll"] == 11.0
    with torch.inference_mode():
        one.update(torch.tensor([1.0]), 1)
    one.update(torch.tensor([1.0]), 0)
    one.nll.add_(1)  # an inference tensor would refuse that
    assert one.compute()["tokens_scored"] == 6


@pytest.mark.parametrize(
    ("nll", "documents", "named"),
    [
        (torch.zeros(2, 2), 0, "one floating"),
        (torch.zeros(2, dtype=torch.long), 0, "one floating"),
        (torch.zeros(2), torch.zeros(3, dtype=torch.long), "documents"),
        (torch.zeros(2), torch.zeros(2), "documents"),
        (torch.zeros(2), torch.tensor([0, 2]), "numbered"),
        (torch.zeros(2), -1, "numbered"),
    ],
)
def test_bad_input_adds_nothing(nll, documents, named) -> None:
    metric = Perplexity(2)
    with pytest.raises(ValueError, match=named):
        metric.update(nll, documents)
    assert int(metric.tokens.sum()) == 0
    with pytest.raises(ValueError, match="3 documents"):
        metric.add_text([1, 2, 3], [1, 2, 3])
    with pytest.raises(ValueError, match="at least 1"):
        Perplexity(0)


def test_two_ranks_and_an_empty_one(tmp_path) -> None:
    code = """
from lit_hass.metrics import Perplexity
def work(rank):
    torch.manual_seed(0)
    values, owners = torch.rand(1001, dtype=torch.float64), torch.randint(0, 5, (1001,))
    whole, mine, alone = Perplexity(5, sync_on_compute=False), Perplexity(5), Perplexity(5)
    whole.update(values, owners, forwarded=1001, windows=3)
    mine.update(values[rank::2], owners[rank::2], forwarded=501 - rank, windows=2 - rank)
    if rank == 0:
        alone.update(values, owners, forwarded=1001, windows=3)
        mine.add_text([1] * 5, [2] * 5); alone.add_text([1] * 5, [2] * 5)
    whole.add_text([1] * 5, [2] * 5)
    expected = whole.compute()
    for metric in (mine, alone):
        found = metric.compute()
        for name, value in expected.items():
            if value.dtype == torch.int64: assert found[name] == value, name
            else: torch.testing.assert_close(found[name], value, rtol=1e-12, atol=0, equal_nan=True)
"""
    run_ranks(code, tmp_path)
