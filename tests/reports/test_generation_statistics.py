import json
import math
import random
import statistics

import pytest

from callbacks.generation_statistics import _print_table
from lit_hass.records import AnswerRecord, ChoiceRecord, TurnRecord, failed_answer, to_json
from lit_hass.reports import distribution, environment, generation_statistics


def turn(tokens=4, prefill=0.5, decode=1.5, rows=1, share=None, match=None, reason="stop", prompt=7) -> TurnRecord:
    share = (prefill + decode) / rows if share is None else share
    ids, wall = list(range(tokens)), prefill + decode
    more = {"prompt_tokens": prompt, "batch_rows": rows, "time_share": share, "exact_match": match}
    return TurnRecord("x", ids, wall, tokens, (), prefill, decode, reason, **more)


def answer(question_id, *choices, memory=None):
    records = [ChoiceRecord.from_turns(i, turns) for i, turns in enumerate(choices)]
    return AnswerRecord(question_id, "m", records, peak_memory=memory).to_dict()


def test_two_plain_answers() -> None:
    summary = generation_statistics(
        [
            answer(1, [turn(tokens=5, prefill=1.0, decode=2.0, match=True)], memory=10),
            answer(2, [turn(tokens=3, prefill=0.5, decode=0.5, match=False, reason="length")], memory=30),
        ],
        {1: "a", 2: "b"},
    )
    assert summary["questions"] == {"total": 2, "answered": 2, "failed": 0}
    assert (summary["choices"], summary["turns"]) == (2, 2)
    assert summary["new_tokens"]["total"] == 8 and summary["new_tokens"]["mean"] == 4
    assert summary["tokens_per_second"]["end_to_end"] == pytest.approx(8 / 4.0)
    assert summary["tokens_per_second"]["decode_only"] == pytest.approx(6 / 2.5)
    assert summary["seconds"] == {"total": 4.0, "prefill": 1.5, "decode": 2.5}
    assert summary["stop_reasons"] == {"stop": 1, "length": 1, "context": 0}
    assert summary["exact_match"] == {
        "matched": 1,
        "of": 2,
        "share": 0.5,
        "by_category": {"a": {"matched": 1, "of": 1, "share": 1.0}, "b": {"matched": 0, "of": 1, "share": 0.0}},
    }
    assert summary["peak_memory_bytes"] == 30
    assert summary["collected_features"] == 0


def test_answers_timed_while_collecting_are_counted() -> None:
    lines = [answer(1, [turn()]), AnswerRecord(2, "m", [], collected_features=True).to_dict()]
    assert generation_statistics(lines)["collected_features"] == 1 and "collected_features" not in lines[0]


def test_a_batch_takes_its_time_once() -> None:
    # four rows read together in 0.4 s; the longest is done after 2.4 s
    rows = [turn(n, 0.4, d, rows=4, share=2.4 / 4) for n, d in ((3, 1.0), (6, 2.0), (1, 0.0), (2, 0.5))]
    summary = generation_statistics([answer(1, rows[:1], rows[1:2]), answer(2, rows[2:3], rows[3:])])
    assert summary["seconds"]["total"] == pytest.approx(2.4)
    assert summary["seconds"]["prefill"] == pytest.approx(0.4)
    assert summary["tokens_per_second"]["end_to_end"] == pytest.approx(12 / 2.4)
    assert summary["tokens_per_second"]["decode_only"] == pytest.approx(8 / 2.0)


def test_against_brute_force() -> None:
    rng = random.Random(0)
    answers, categories = [], {}
    flat, failed, choices = [], 0, 0
    for number in range(60):
        categories[number] = rng.choice(("x", "y", None))
        if rng.random() < 0.2:
            answers.append(failed_answer(number, "no"))
            failed += 1
            continue
        talks = []
        for _ in range(rng.randint(1, 3)):
            talk = [
                turn(
                    tokens=rng.randint(1, 40),
                    prefill=rng.random(),
                    decode=rng.random() * 3,
                    rows=rng.randint(1, 4),
                    match=rng.choice((True, False, None)),
                    reason=rng.choice(("stop", "length")),
                    prompt=rng.randint(1, 99),
                )
                for _ in range(rng.randint(1, 3))
            ]
            talks.append(talk)
            flat += [(number, t) for t in talk]
        choices += len(talks)
        answers.append(answer(number, *talks))
    summary = generation_statistics(answers, categories)
    tokens = [len(t.output_ids) for _, t in flat]
    seconds = math.fsum(t.time_share for _, t in flat)
    prefill = math.fsum(t.prefill_time / t.batch_rows for _, t in flat)
    assert summary["questions"] == {"total": 60, "answered": 60 - failed, "failed": failed} and failed
    assert (summary["choices"], summary["turns"]) == (choices, len(flat))
    assert summary["new_tokens"]["total"] == sum(tokens)
    assert summary["new_tokens"]["mean"] == pytest.approx(statistics.fmean(tokens))
    assert summary["new_tokens"]["p50"] == statistics.median(tokens)
    assert (summary["new_tokens"]["min"], summary["new_tokens"]["max"]) == (min(tokens), max(tokens))
    assert summary["prompt_tokens"]["mean"] == pytest.approx(statistics.fmean(t.prompt_tokens for _, t in flat))
    assert summary["wall_time"]["max"] == max(t.wall_time for _, t in flat)
    assert summary["tokens_per_second"]["end_to_end"] == pytest.approx(sum(tokens) / seconds)
    rate = (sum(tokens) - len(tokens)) / (seconds - prefill)
    assert summary["tokens_per_second"]["decode_only"] == pytest.approx(rate)
    assert summary["stop_reasons"]["length"] == sum(t.stop_reason == "length" for _, t in flat)
    for category in ("x", "y"):
        judged = [t.exact_match for n, t in flat if categories[n] == category and t.exact_match is not None]
        found = summary["exact_match"]["by_category"][category]
        assert (found["matched"], found["of"]) == (sum(judged), len(judged))
        assert found["share"] == pytest.approx(sum(judged) / len(judged))
    judged = [t.exact_match for _, t in flat if t.exact_match is not None]
    assert summary["exact_match"]["share"] == pytest.approx(sum(judged) / len(judged))
    assert set(summary["exact_match"]["by_category"]) == {"x", "y"}


def test_without_references_the_share_is_undefined() -> None:
    summary = generation_statistics([answer(1, [turn()])], {1: "a"})
    assert summary["exact_match"]["of"] == 0 and math.isnan(summary["exact_match"]["share"])
    assert math.isnan(summary["exact_match"]["by_category"]["a"]["share"])


def test_answers_of_one_token_have_no_decoding_speed() -> None:
    # three rows whose shares do not add up exactly in binary
    rows = [turn(1, 0.1, 0.0, rows=3, share=0.1 / 3 * (1 + 1e-15)) for _ in range(3)]
    summary = generation_statistics([answer(1, *[[row] for row in rows])])
    assert math.isnan(summary["tokens_per_second"]["decode_only"])
    assert summary["tokens_per_second"]["end_to_end"] == pytest.approx(30)


@pytest.mark.parametrize("answers", [[], [failed_answer(1, "no"), failed_answer(2, "no")]])
def test_nothing_answered_is_undefined_and_not_zero(answers) -> None:
    summary = generation_statistics(answers)
    assert summary["questions"]["failed"] == len(answers) and summary["turns"] == 0
    assert summary["new_tokens"]["total"] == 0 and math.isnan(summary["new_tokens"]["mean"])
    assert all(math.isnan(v) for v in summary["tokens_per_second"].values())
    assert summary["peak_memory_bytes"] is None
    written = json.loads(to_json(summary))
    assert written["tokens_per_second"] == {"end_to_end": None, "decode_only": None}


def test_distribution_of_known_values() -> None:
    found = distribution(range(101))
    assert found == {"mean": 50, "min": 0, "p50": 50, "p90": 90, "p99": 99, "max": 100}
    assert all(math.isnan(v) for v in distribution([]).values())


def test_the_environment_is_ready_for_json() -> None:
    found = json.loads(to_json(environment()))
    assert set(found["packages"]) >= {"torch", "transformers", "lightning"} and found["packages"]["torch"]
    assert found["cpu_threads"] >= 1 and isinstance(found["gpus"], list)


def test_the_table_says_when_the_context_was_the_limit(capsys) -> None:
    found = [answer(i, [turn(reason=reason)]) for i, reason in enumerate(("stop", "length", "context", "context"))]
    summary = generation_statistics(found)
    assert summary["stop_reasons"] == {"stop": 1, "length": 1, "context": 2}
    _print_table({**summary, "devices": 1})
    printed = " ".join(capsys.readouterr().out.split())
    assert "cut by a limit 1 of 4 answers 2 of 4 answers by the model's context, not by max_new_tokens" in printed
