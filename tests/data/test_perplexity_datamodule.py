"""Plans of whole runs: protocols, ladders, batches that are dealt to ranks, and what is refused."""

import json
from dataclasses import replace
from itertools import permutations

import pytest
import torch

from lit_hass.data import PerplexityDataModule
from lit_hass.data.perplexity_datamodule import RankBatches
from lit_hass.data.perplexity_protocols import PROTOCOLS, ProtocolOptions
from lit_hass.data.perplexity_switches import ladder
from lit_hass.errors import UserError
from lit_hass.modules import PerplexityModule
from tests.perplexity_bases import make_base, write_text

ALL = list(PROTOCOLS)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("text") / "text.txt")


def checked(base, text, **settings) -> PerplexityDataModule:
    data = PerplexityDataModule(str(text), **settings)
    data.check(PerplexityModule(str(base)))
    return data


def refused(base, text, **settings) -> str:
    with pytest.raises(UserError) as error:
        checked(base, text, **settings)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_ladders_lead_from_one_protocol_to_the_other_by_single_changes() -> None:
    options = ProtocolOptions(window=64, stride=16)
    for one, other in permutations(ALL, 2):
        recipes = [PROTOCOLS[name].recipe(options) for name in (one, other)]
        rungs = ladder(*recipes)
        assert (rungs[0].recipe, rungs[-1].recipe) == tuple(recipes), (one, other)
        # Undone in turn, the same ladder leads back.
        assert [r.recipe for r in ladder(*recipes[::-1])] == [r.recipe for r in rungs][::-1]
        for before, after in zip(rungs, rungs[1:], strict=False):
            changed = {key for key, value in vars(after.recipe).items() if value != getattr(before.recipe, key)}
            allowed = ({"windows", "stride"}, {"special", "prefix"})
            assert len(changed) == 1 or any(changed <= group for group in allowed), (after.switch, changed)


def test_another_window_length_is_a_rung_of_its_own() -> None:
    wanda, harness = (PROTOCOLS[name].recipe(ProtocolOptions(window=64)) for name in ("wanda", "lm_eval_wikitext"))
    assert ladder(wanda, replace(harness, window=32))[1].switch == "window length 64 to 32"


def test_counts_agree_with_each_other(base, text) -> None:
    data = checked(base, text, protocols=ALL, window=32, stride=8)
    for name, plan in data.scored.items():
        windows = [data.plan.windows[i].window for i in plan.windows]
        assert plan.scored == sum(w.scored for w in windows) and plan.forwarded == sum(w.read for w in windows)
        special = plan.recipe.special
        added = {"template": 1, "every_window": 1, "prefix": 0, "both": 3, "none": 0}[
            special
        ]  # 3 pages with a BOS each
        assert plan.scored + plan.unscored + plan.dropped == plan.text_tokens + added, name
    assert data.scored["lm_eval_wikitext"].bos_targets == 3 and data.scored["lm_eval_wikitext"].whole_text
    assert not data.scored["wanda"].bos_targets and not data.scored["wanda"].whole_text


def test_each_window_is_in_one_batch_and_on_one_rank(base, text) -> None:
    data = checked(base, text, protocols=ALL, window=32, stride=8, batch_tokens=100)
    everything = list(range(len(data.plan.windows)))
    for size in (1, 2, 3, len(data.plan.batches) + 2):
        dealt = [RankBatches(data.plan, rank, size) for rank in range(size)]
        assert sorted(i for rank in dealt for batch in rank for i in batch.windows) == everything
        assert all(len(rank) == len(list(rank)) > 0 for rank in dealt)
        assert [batch for rank in dealt for batch in rank.batches if batch == []] == [[]] * max(
            0, size - len(data.plan.batches)
        )
    lengths = [data.plan.windows[batch[0]].window.read for batch in data.plan.batches]
    assert lengths == sorted(lengths, reverse=True)
    assert all(
        len(batch) == 1 or len(batch) * length <= 100 for batch, length in zip(data.plan.batches, lengths, strict=True)
    )


def test_batches_hold_the_windows_tokens(base, text) -> None:
    data = checked(base, text, protocols=["strided", "lm_eval_wikitext"], window=32, stride=8, batch_tokens=100)
    tokens = data.tokens.sequences(data.scored["strided"].recipe)[0]
    seen = []
    for batch in RankBatches(data.plan, 0, 1):
        assert batch.input_ids.shape == (len(batch.windows), max(batch.lengths))
        # An output row predicts the token behind the one that stands there, where that is in the window too.
        flat = batch.input_ids.flatten()
        inside = (batch.positions + 1) % batch.input_ids.shape[1] != 0
        length = torch.tensor(batch.lengths)[batch.owners]
        inside &= batch.positions % batch.input_ids.shape[1] + 1 < length
        assert torch.equal(flat[batch.positions[inside] + 1], batch.targets[inside])
        mine = torch.tensor([any(r == 0 for r, _ in members) for members in batch.members])[batch.owners]
        seen += batch.targets[mine].tolist()
    assert sorted(seen) == sorted(tokens.ids[1:].tolist())


def test_pages_of_streams_are_those_of_the_text(base, text) -> None:
    data = checked(base, text, protocols=["wanda", "llama_cpp"], window=32)
    for name in ("wanda", "llama_cpp"):
        sequence = data.tokens.sequences(data.scored[name].recipe)[0]
        for page, expected in enumerate(data.text.pages):
            found = data.tokens.tokenizer.decode(sequence.ids[1:][sequence.pages[1:] == page])
            assert found.split() == expected.split()


def test_lightning_cannot_put_a_sampler_on_the_batches(base, text) -> None:
    from torch.utils.data import DataLoader

    assert not isinstance(checked(base, text, window=32).test_dataloader(), DataLoader)


def test_bos_policies(base, text) -> None:
    found = {
        policy: checked(base, text, protocols=["lm_eval_wikitext"], window=32, bos_policy=policy)
        for policy in ("lm_eval_default", "single", "eos", "none")
    }
    plans = {policy: data.scored["lm_eval_wikitext"] for policy, data in found.items()}
    assert [plans[p].bos_targets for p in plans] == [3, 0, 0, 0]
    assert plans["lm_eval_default"].scored == plans["single"].scored + 3 == plans["none"].scored + 6
    first = {p: int(d.tokens.sequences(plans[p].recipe)[0].ids[0]) for p, d in found.items()}
    assert first["single"] == 0 and first["eos"] == 1 and plans["none"].unscored == 3 and not plans["none"].whole_text


def test_a_page_that_begins_with_bos_gets_no_second_one(base, tmp_path) -> None:
    path = tmp_path / "pages.jsonl"
    path.write_text('{"text": "<s> one two three\\nfour"}\n{"text": "five six\\nseven"}\n{"text": ""}\n')
    data = checked(base, path, protocols=["lm_eval_wikitext"], window=32)
    assert data.scored["lm_eval_wikitext"].bos_targets == 3  # one is written in the text, two come from the tokenizer
    assert data.describe()["text"]["pages_starting_with_prefix"] == 1
    bare = checked(base, path, protocols=["lm_eval_wikitext"], window=32, bos_policy="single")
    assert bare.scored["lm_eval_wikitext"].empty_documents == 1


def test_tokenizers_without_special_tokens(tmp_path, text) -> None:
    base = make_base(tmp_path / "eos", bos=False)
    data = checked(base, text, protocols=["wanda", "lm_eval_wikitext", "llama_cpp"], window=32)
    assert int(data.tokens.sequences(data.scored["lm_eval_wikitext"].recipe)[0].ids[0]) == 1  # EOS is the prefix
    assert "document" in (message := refused(base, text, protocols=["document"], window=32)) and "no BOS" in message
    assert checked(base, text, protocols=["document"], window=32, document_bos=False)
    bare = make_base(tmp_path / "bare", bos=False, eos=False)
    assert "neither BOS nor EOS" in refused(bare, text, protocols=["lm_eval_wikitext"], window=32)
    assert "no EOS" in refused(bare, text, protocols=["lm_eval_wikitext"], window=32, bos_policy="eos")
    assert checked(bare, text, protocols=["wanda", "strided", "llama_cpp"], window=32)


def test_bad_settings(base, text, tmp_path) -> None:
    assert "window of 65 is beyond the 64" in refused(base, text, window=65)
    assert checked(base, text, window=65, allow_longer=True)
    assert checked(base, text).scored["wanda"].recipe.window == 64  # the model's context
    assert "stride of 33" in refused(base, text, protocols=["strided"], window=32, stride=33)
    assert "at least 2" in refused(base, text, window=1)
    assert "no_such" in refused(base, text, protocols=["no_such"])
    assert "twice" in refused(base, text, protocols=["wanda", "wanda"])
    assert "none given" in refused(base, text, protocols=[])
    assert "data.ladder" in refused(base, text, ladder=["wanda", "strided"])
    assert "stride must be" in refused(base, text, stride=0)
    other = make_base(tmp_path / "small", vocab_size=300)
    assert "do not belong together" in refused(other, text, window=32)


def test_text_shorter_than_a_window(base, tmp_path) -> None:
    path = tmp_path / "short.txt"
    path.write_text(" = A = \n \n ab ab . \n")
    message = refused(base, path, protocols=["wanda"], window=64)
    assert "fewer than the window 64" in message and "tail score" in message
    tokens = len(checked(base, path, protocols=["wanda"], window=64, tail="score").plan.windows)
    assert tokens == 1
    assert "two windows of 32" in refused(base, path, protocols=["llama_cpp"], window=32)
    assert checked(base, path, protocols=["lm_eval_wikitext"], window=64)


def test_only_models_of_one_length_share_a_batch_where_positions_depend_on_it(tmp_path, text) -> None:
    base = make_base(tmp_path / "dynamic", rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4})
    data = checked(base, text, window=32, batch_tokens=10_000)
    for batch in data.plan.batches:
        assert len({data.plan.windows[i].window.read for i in batch}) == 1


def test_the_same_words_in_other_pages_are_another_run(base, tmp_path):
    """A shard names pages by number, so it must not go on where the numbers mean other pages."""

    def settings(name, *rows):
        path = tmp_path / name
        path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows), encoding="utf-8")
        return checked(base, path, layout="documents", window=8).resume_settings()

    words = "one two three four five six seven eight nine ten eleven twelve"
    one = settings("a.jsonl", words, words, words + "\n\n" + words)
    other = settings("b.jsonl", words, words + "\n\n" + words, words)
    fewer = settings("c.jsonl", words + "\n\n" + words, words + "\n\n" + words)
    assert one["text"] == other["text"] == fewer["text"] and one["pages"] == other["pages"] == 3 != fewer["pages"]
    assert one != other and {name for name in one if one[name] != other[name]} >= {"page_starts"}
    assert settings("a.jsonl", words, words, words + "\n\n" + words) == one
