import pytest
import torch

from lit_hass.data.batches import IGNORE, TokenBatch, collate
from lit_hass.errors import UserError
from lit_hass.modules.draft_loss import DraftLossConfig, chunk_rows, draft_loss
from lit_hass.modules.draft_rows import DraftRows, trainable
from lit_hass.modules.draft_validation import depth_acceptance
from tests.by_path import load_benchmark

sfold = load_benchmark("sfold_alignment")
VOCAB, WIDTH = 40, 6


def make(steps=3, length=11):
    generator = torch.Generator().manual_seed(5)

    def random(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    weight = random(VOCAB, WIDTH)
    outputs = [random(2, length, WIDTH).requires_grad_() for _ in range(steps)]
    mask = torch.rand(2, length, generator=generator) < 0.6
    return outputs, random(2, length, WIDTH), mask, lambda rows: rows @ weight.T


@pytest.mark.parametrize("chunk", [1, 4, 1024])
@pytest.mark.parametrize(("weights", "top_k"), [((1.0, 0.1, 1.0), 10), ((0.5, 2.0, 0.0), 3), ((0.0, 0.0, 1.0), 40)])
def test_values_and_gradients_are_those_of_the_plain_formulas(chunk, weights, top_k):
    outputs, targets, mask, head = make()
    config = DraftLossConfig(*weights, top_k)
    plain = sfold.plain_loss(outputs, targets, mask.double(), head, weights, top_k)
    expected = torch.autograd.grad(plain, outputs)
    found = draft_loss(outputs, targets, mask, head, config, chunk)
    assert found.total.item() == pytest.approx(plain.item(), rel=1e-12)
    for a, b in zip(expected, torch.autograd.grad(3.0 * found.total, outputs), strict=True):
        assert (3.0 * a - b).abs().max() < 1e-12


def test_each_loss_of_each_step():
    outputs, targets, mask, head = make()
    found = draft_loss(outputs, targets, mask, head, DraftLossConfig())
    parts = {"feature": (1.0, 0.0, 0.0), "soft": (0.0, 1.0, 0.0), "top_k": (0.0, 0.0, 1.0)}
    for name, weights in parts.items():
        for step, output in enumerate(outputs):
            expected = sfold.plain_loss([output], targets, mask.double(), head, weights).item()
            assert getattr(found, name)[step].item() == pytest.approx(expected, rel=1e-12), name
    for step, output in enumerate(outputs):
        right = head(output[mask]).argmax(-1) == head(targets[mask]).argmax(-1)
        assert torch.equal(found.agreement[step], right)


def test_rows_that_do_not_count_get_no_gradient():
    outputs, targets, mask, head = make()
    draft_loss(outputs, targets, mask, head, DraftLossConfig()).total.backward()
    assert all(bool((o.grad[~mask] == 0).all()) and bool((o.grad[mask] != 0).any()) for o in outputs)


def test_the_head_sees_only_rows_that_count():
    outputs, targets, mask, head = make()
    seen = []

    def counted(rows):
        seen.append(rows.shape[0])
        return head(rows)

    draft_loss(outputs, targets, mask, counted, DraftLossConfig(), chunk=5)
    assert max(seen) == 5 and sum(seen) == 4 * int(mask.sum())  # the base once, three steps


def test_no_gradients_without_need():
    outputs, targets, mask, head = make()
    with torch.no_grad():
        assert not draft_loss([o.detach() for o in outputs], targets, mask, head, DraftLossConfig()).total.requires_grad


def test_chunks_are_bounded():
    assert chunk_rows(128_000) * 128_000 <= 2**24 < (chunk_rows(128_000) + 1) * 128_000


@pytest.mark.parametrize(
    "settings", [{"feature_weight": -1.0}, {"top_k": 0}, {"feature_weight": 0, "soft_weight": 0, "top_k_weight": 0}]
)
def test_bad_weights(settings):
    with pytest.raises(UserError, match="model.loss"):
        DraftLossConfig(**settings)


def test_the_mask_is_exact_at_the_borders_of_turns():
    """Row t counts iff token t + 2 is the assistant's."""
    ids = torch.arange(100, 112)[None].repeat(2, 1)
    labels = torch.full_like(ids, IGNORE)
    labels[0, 4:7] = ids[0, 4:7]  # the first answer: tokens 4, 5, 6
    labels[0, 10:12] = ids[0, 10:12]  # the second: 10, 11, to the end
    labels[1, :6] = ids[1, :6]  # from the very first token on; then padding
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    rows = DraftRows.of(TokenBatch(ids, mask, labels), torch.arange(24.0).view(2, 12, 1))
    assert rows.mask[0].nonzero().flatten().tolist() == [2, 3, 4, 8, 9]
    assert rows.mask[1].nonzero().flatten().tolist() == [0, 1, 2, 3]
    assert rows.token_ids[0].tolist() == list(range(101, 111))
    assert rows.features[0, :, 0].tolist() == list(range(10)) and rows.targets[0, :, 0].tolist() == list(range(1, 11))


def test_prompts_are_not_trained():
    batch = collate([([1, 2, 3, 4, 5, 6], 4), ([7, 8, 9], 2), ([7, 8], 1)])
    assert trainable(batch).tolist() == [[False, False, True, True], [True, False, False, False], [False] * 4]


@pytest.mark.parametrize("length", [1, 2])
def test_sequences_too_short_for_a_row(length):
    batch = collate([(list(range(length)), 0)])
    rows = DraftRows.of(batch, torch.zeros(1, length, 4))
    assert rows.mask.numel() == rows.token_ids.numel() == 0


def test_acceptance_by_depth_follows_chains():
    generator = torch.Generator().manual_seed(6)
    mask = torch.rand(3, 9, generator=generator) < 0.8
    agreement = torch.rand(4, int(mask.sum()), generator=generator) < 0.6
    grid = torch.zeros(4, 3, 9, dtype=torch.bool)
    grid[:, mask] = agreement
    reached, accepted = [0] * 4, [0] * 4
    for row in range(3):
        for start in range(9):
            for depth in range(4):
                if start + depth >= 9 or not mask[row, start + depth]:
                    break
                reached[depth] += 1
                if not grid[depth, row, start + depth]:
                    break
                accepted[depth] += 1
    found = depth_acceptance(agreement, mask)
    assert found[0].tolist() == reached and found[1].tolist() == accepted


def test_acceptance_beyond_the_sequence():
    reached, accepted = depth_acceptance(torch.ones(5, 2, dtype=torch.bool), torch.ones(1, 2, dtype=torch.bool))
    assert reached.tolist() == accepted.tolist() == [2, 1, 0, 0, 0]


def test_a_draft_of_fewer_tokens_is_compared_over_these_and_agrees_with_the_bases_own_choice():
    outputs, targets, mask, head = make()
    ids = torch.arange(0, VOCAB, 3)
    plain = sfold.plain_loss(outputs, targets, mask.double(), lambda rows: head(rows)[..., ids], (1.0, 0.1, 1.0), 10)
    choice = head(targets[mask]).argmax(-1)
    columns = torch.full((VOCAB,), -1)
    columns[ids] = torch.arange(len(ids))
    found = draft_loss(
        outputs, targets, mask, lambda rows: head(rows)[..., ids], DraftLossConfig(), 4, best=columns[choice]
    )
    assert found.total.item() == pytest.approx(plain.item(), rel=1e-12)
    for step, output in enumerate(outputs):
        assert torch.equal(found.agreement[step], ids[head(output[mask])[..., ids].argmax(-1)] == choice)
    assert not found.agreement[:, columns[choice] < 0].any()
