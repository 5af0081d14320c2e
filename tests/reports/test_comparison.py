"""Figures of a comparison against sums written out by hand and loops over the files."""

import json
import random
from pathlib import Path

import pytest

from lit_hass.reports import compare_runs
from tests.reports.run_folders import DRAFT, accepted_in, line, lines_of, turn, write_lines_to, write_run


def pair(tmp_path: Path, baseline, hass, model=None, draft=DRAFT, **settings) -> tuple[Path, Path]:
    one = write_run(tmp_path / "baseline", baseline, model, **settings)
    return one, write_run(tmp_path / "hass", hass, {**(model or {}), **draft}, **settings)


def compare(tmp_path: Path, baseline, hass, allow=False, **settings):
    return compare_runs(*pair(tmp_path, baseline, hass, **settings), allow_differences=allow)


A, B, C = [1, 2, 3, 4], [5, 6, 7, 8, 9, 10], [11, 12]
PLAIN = [line("a", [turn(A, 2.0, prefill=0.5)]), line("b", [turn(B, 4.0, prefill=1.0)])]
DRAFTED = [
    line("a", [turn(A, 0.5, [2], prefill=0.25)]),
    line("b", [turn(B, 1.5, [3, 0], prefill=1.0)]),
]


def test_by_hand(tmp_path: Path) -> None:
    found = compare(tmp_path, PLAIN, DRAFTED)
    speed = found["speed"]
    assert speed["end_to_end"]["hass"] == 10 / 2.0 and speed["end_to_end"]["baseline"] == pytest.approx(10 / 6)
    assert speed["end_to_end"]["ratio"] == pytest.approx(3.0) == found["headline"]["speedup"]
    # 3 + 5 later tokens
    assert (
        speed["decode_only"]["ratio"]
        == pytest.approx((8 / 0.75) / (8 / 4.5))
        == found["headline"]["decode_only_speedup"]
    )
    assert found["headline"]["interval"] is None and any("2 questions have no interval" in n for n in found["notes"])
    assert found["headline"]["clock"] == "wall" and speed["processor"] is None and found["load"]["hass"] is None
    assert found["acceptance"]["baseline"] is None
    acceptance = found["acceptance"]["hass"]
    assert acceptance["micro"] == pytest.approx(5 / 3 + 1) and acceptance["mean_of_questions"] == pytest.approx(2.75)
    assert acceptance["node_acceptance_rate"] == pytest.approx(5 / 30) and acceptance["tokens_per_step"] == 10 / 3
    cost = found["cost_model"]
    assert cost["step_seconds"] == pytest.approx(0.75 / 3) and cost["token_seconds"] == pytest.approx(4.5 / 8)
    assert cost["tau_break_even"] == pytest.approx(0.25 / 0.5625)
    assert cost["predicted_speedup"] == pytest.approx((8 / 3) * 0.5625 / 0.25)
    assert found["lossless"] is True and found["same_distribution"] is True and found["differences"] == []
    assert found["joined"] == {"questions": 2, "choices": 2, "turns": 2}
    assert found["agreement"]["identical_turn_share"] == found["agreement"]["identical_token_share"] == 1.0
    assert [q["speedup"] for q in found["questions"]] == pytest.approx([4.0, 4 / 1.5])
    assert json.loads(json.dumps(found, allow_nan=False)) == found


@pytest.mark.parametrize("seed", range(4))
def test_against_loops_over_the_files(tmp_path: Path, seed: int) -> None:
    """Many choices, turns and differing answers; every figure again from the raw lines."""
    rng = random.Random(seed)
    plain, drafted = [], []
    for number in range(15):
        talks = ([], [])
        for _ in range(2):
            turns = ([], [])
            for _ in range(rng.randint(1, 3)):
                ids = [rng.randint(0, 9) for _ in range(rng.randint(1, 30))]
                other = ids[: rng.randint(1, len(ids))] + [rng.randint(0, 9)] if rng.random() < 0.3 else ids
                match = rng.choice((True, False, None))
                turns[0].append(turn(ids, rng.uniform(0.5, 2), prefill=0.1, exact_match=match))
                accepted = accepted_in(rng, len(other))
                turns[1].append(
                    turn(
                        other, rng.uniform(0.1, 1), accepted, 0.05, exact_match=None if match is None else other == ids
                    )
                )
            for talk, each in zip(talks, turns, strict=True):
                talk.append(each)
        plain.append(line(number, *talks[0]))
        drafted.append(line(number, *talks[1]))
    shuffled = drafted[::-1]
    one, other = pair(tmp_path, plain, drafted, data={"num_choices": 2})
    write_lines_to(other / "answers.jsonl", shuffled)  # rows are joined by id, not by place
    found = compare_runs(one, other)
    files = [{a["question_id"]: a for a in lines_of(path / "answers.jsonl")} for path in (one, other)]

    def total(file, value):
        return sum(value(c, i) for a in file.values() for c in a["choices"] for i in range(len(c["turns"])))

    n, t = zip(
        *((total(f, lambda c, i: c["new_tokens"][i]), total(f, lambda c, i: c["wall_time"][i])) for f in files),
        strict=True,
    )
    assert found["speed"]["end_to_end"]["ratio"] == pytest.approx((n[1] / t[1]) / (n[0] / t[0]))
    later = [total(f, lambda c, i: c["new_tokens"][i] - 1) for f in files]
    decode = [total(f, lambda c, i: c["decode_time"][i]) for f in files]
    ratio = (later[1] / decode[1]) / (later[0] / decode[0])
    assert found["speed"]["decode_only"]["ratio"] == pytest.approx(ratio)
    low, high = found["speed"]["decode_only"]["interval"]
    assert low < ratio < high
    same, tokens, longest, turns, first = 0, 0, 0, 0, []
    matched = [0, 0, 0]
    for number in range(15):
        for c in range(2):
            choices = [f[number]["choices"][c] for f in files]
            parted = False
            for i in range(len(choices[0]["turns"])):
                x, y = (choice["output_ids"][i] for choice in choices)
                turns, same = turns + 1, same + (x == y)
                longest += max(len(x), len(y))
                tokens += sum(p == q for p, q in zip(x, y, strict=False))
                if x != y:
                    index = 0
                    while index < min(len(x), len(y)) and x[index] == y[index]:
                        index += 1
                    first.append((number, c, i, index, parted))
                    parted = True
                judged = [choice["exact_match"][i] for choice in choices]
                if None not in judged:
                    matched = [matched[0] + 1, matched[1] + judged[0], matched[2] + judged[1]]
    agreement = found["agreement"]
    assert agreement["turns"] == turns and agreement["identical_turns"] == same < turns
    assert agreement["identical_token_share"] == pytest.approx(tokens / longest)
    keys = ("question_id", "choice", "turn", "index", "follows")
    assert [tuple(d[key] for key in keys) for d in agreement["divergences"]] == first
    assert found["lossless"] is False and any("NOT LOSSLESS" in note for note in found["notes"])
    match = found["exact_match"]
    assert [match["of"], match["baseline"]["matched"], match["hass"]["matched"]] == matched
    assert match["both"] + match["baseline_only"] == match["baseline"]["matched"]
    flat = [a for answer in drafted for c in answer["choices"] for a in c["accept_length"]]
    assert found["acceptance"]["hass"]["micro"] == pytest.approx(sum(flat) / len(flat) + 1)
    assert found["cost_model"]["step_seconds"] == pytest.approx(decode[1] / len(flat))


def test_a_batch_counts_its_seconds_once(tmp_path: Path) -> None:
    rows = {"batch_rows": 2}
    plain = [line(i, [turn(A, 2.0, prefill=0.5, time_share=1.0, **rows)]) for i in (1, 2)]
    hass = [line(i, [turn(A, 1.0, [3], prefill=0.5, time_share=0.5, **rows)]) for i in (1, 2)]
    found = compare(tmp_path, plain, hass)
    assert found["speed"]["end_to_end"]["hass"] == pytest.approx(8 / 1.0)
    assert found["speed"]["decode_only"]["hass"] == pytest.approx(6 / 0.5)
    assert any("decoded together" in note for note in found["notes"])


def with_repeats(lines, *repeats):
    for answer, each in zip(lines, repeats, strict=True):
        answer["choices"][0]["wall_times"] = [each]
    return lines


def test_repetitions_give_medians_and_their_spread(tmp_path: Path) -> None:
    plain = with_repeats(json.loads(json.dumps(PLAIN)), [2.0, 3.0, 2.5], [4.0, 9.0, 4.5])
    hass = with_repeats(json.loads(json.dumps(DRAFTED)), [0.5, 0.75, 0.5], [1.5, 1.5, 3.0])
    found = compare(tmp_path, plain, hass)
    assert found["speed"]["end_to_end"]["ratio"] == pytest.approx((2.5 + 4.5) / (0.5 + 1.5))
    assert found["speed"]["decode_only"]["ratio"] == pytest.approx((7.0 - 1.5) / (2.0 - 1.25))
    repeats = found["speed"]["repeats"]
    assert repeats["count"] == 3 and repeats["speedups"] == pytest.approx([6 / 2, 12 / 2.25, 7 / 3.5])
    assert repeats["baseline_spread"] == pytest.approx((1 / 2.5 + 5 / 4.5) / 2)
    assert repeats["hass_spread"] == pytest.approx((0.25 / 0.5 + 1.5 / 1.5) / 2)


def test_without_repetitions_in_both_there_is_no_spread(tmp_path: Path) -> None:
    plain = with_repeats(json.loads(json.dumps(PLAIN)), [2.0, 3.0, 2.5], [4.0, 9.0, 4.5])
    assert compare(tmp_path, plain, DRAFTED)["speed"]["repeats"] is None
    once = [with_repeats(json.loads(json.dumps(lines)), [2.0], [3.0]) for lines in (PLAIN, DRAFTED)]
    assert compare(tmp_path / "once", *once)["speed"]["repeats"] is None


def test_the_gap_at_a_divergence_is_passed_on(tmp_path: Path) -> None:
    hass = json.loads(json.dumps(DRAFTED))
    choice = hass[1]["choices"][0]
    choice["output_ids"][0] = [5, 6, 1, 8, 9, 10]
    choice["divergence_gap"] = [0.0125]
    found = compare(tmp_path, PLAIN, hass)
    (divergence,) = found["agreement"]["divergences"]
    assert (divergence["index"], divergence["baseline_token"], divergence["hass_token"]) == (2, 7, 1)
    assert divergence["gap"] == 0.0125 and divergence["follows"] is False
    assert found["lossless"] is False and found["questions"][1]["identical"] is False


def differing(lines):
    changed = json.loads(json.dumps(lines))
    changed[0]["choices"][0]["output_ids"][0][2] = 99
    return changed


@pytest.mark.parametrize(
    ("model", "draft", "verdict", "why"),
    [
        ({}, DRAFT, False, None),
        ({"dtype": "fp32"}, DRAFT, False, None),
        ({"temperature": 0.7, "seed": 3}, DRAFT, False, None),
        ({"temperature": 0.7, "seed": 3}, {**DRAFT, "seed": 4}, None, "different seeds"),
        ({"dtype": "bfloat16"}, DRAFT, None, "bfloat16 rounding"),
    ],
)
def test_differing_tokens_are_a_loss_where_they_had_to_be_equal(tmp_path, model, draft, verdict, why) -> None:
    found = compare(tmp_path, PLAIN, differing(DRAFTED), model=model, draft=draft)
    assert found["lossless"] is verdict
    assert why is None or any(why in note for note in found["notes"])
    assert found["headline"] is not None


def test_unknown_dtype_of_a_gpu_gives_no_verdict(tmp_path: Path) -> None:
    found = compare(tmp_path, PLAIN, differing(DRAFTED), device="cuda")
    assert found["lossless"] is None and any("dtype" in note for note in found["notes"])
    assert compare(tmp_path, PLAIN, differing(DRAFTED), model={"dtype": "float32"}, device="cuda")["lossless"] is False


def test_one_question_has_no_interval(tmp_path: Path) -> None:
    found = compare(tmp_path, PLAIN[:1], DRAFTED[:1])
    assert found["headline"]["speedup"] == 4.0 and found["headline"]["interval"] is None


def test_answers_of_one_token_have_no_decoding_speed(tmp_path: Path) -> None:
    found = compare(tmp_path, [line(1, [turn([2], 1.0, prefill=1.0)])], [line(1, [turn([2], 0.5, [], prefill=0.5)])])
    assert found["speed"]["decode_only"]["ratio"] is None and found["cost_model"]["tau_break_even"] is None
    assert found["cost_model"]["tau"] is None and found["acceptance"]["hass"] is None
    assert found["speed"]["end_to_end"]["ratio"] == 2.0


def test_below_break_even_is_said(tmp_path: Path) -> None:
    slow = [line("a", [turn(A, 9.0, [0, 0, 0], prefill=0.25)]), line("b", [turn(B, 9.0, [0] * 5, prefill=1.0)])]
    found = compare(tmp_path, PLAIN, slow)
    assert found["speed"]["end_to_end"]["ratio"] < 1 and any("below what pays" in note for note in found["notes"])


def test_drafting_nothing_is_no_reason_for_a_smaller_tree(tmp_path: Path) -> None:
    steps = [line("a", [turn(A, 9.0, [0] * 4, prefill=0.25)]), line("b", [turn(B, 9.0, [0] * 5, prefill=1.0)])]
    nothing = {**DRAFT, "tree": {"total_tokens": 1, "depth": 9, "top_k": 1}}
    notes = compare(tmp_path, PLAIN, steps, draft=nothing)["notes"]
    assert any("nothing is drafted" in note for note in notes) and not any("smaller tree" in note for note in notes)


def test_trimmed_trees_are_named(tmp_path: Path) -> None:
    for trim in (True, False):
        tree = {**DRAFT["tree"], "trim": trim}
        notes = compare(tmp_path / str(trim), PLAIN, DRAFTED, draft={**DRAFT, "tree": tree})["notes"]
        assert any("trimmed" in note for note in notes) is trim


def test_nodes_are_no_more_than_there_are_candidates(tmp_path: Path) -> None:
    wide = {**DRAFT, "tree": {"total_tokens": 60, "depth": 4, "top_k": 1}}
    found = compare(tmp_path, PLAIN, DRAFTED, draft=wide)["acceptance"]["hass"]
    assert found["nodes_per_step"] == 5 and found["node_acceptance_rate"] == pytest.approx(5 / 15)


def test_swapped_runs_are_noticed(tmp_path: Path) -> None:
    one, other = pair(tmp_path, PLAIN, DRAFTED)
    assert any("swapped" in note for note in compare_runs(other, one)["notes"])
    assert not any("swapped" in note for note in compare_runs(one, other)["notes"])


def spent(seconds: float, prefill: float, repeats: list[float]) -> dict:
    """What the processors did for a turn, beside a wall clock that says something else."""
    return {"processor_time": seconds, "processor_prefill_time": prefill, "processor_times": repeats}


def test_processor_time_is_the_headline_where_all_answers_know_it(tmp_path: Path) -> None:
    """The wall clock of the second run ran three times as long, because of other work; the processors did not."""
    once = [0.9, 1.0, 1.2]
    plain = [line(i, [turn(A, 1.0 + i, prefill=0.5, **spent(1.0, 0.4, once))]) for i in range(6)]
    hass = [line(i, [turn(A, 3.0, [3], prefill=0.5, **spent(0.25, 0.1, [0.3, 0.25, 0.2]))]) for i in range(6)]
    for answer in plain + hass:
        answer["load"] = 5.5
    found = compare(tmp_path, plain, hass)
    headline, speed = found["headline"], found["speed"]
    assert headline["clock"] == "processor" and headline["speedup"] == pytest.approx(4.0)
    assert headline["decode_only_speedup"] == pytest.approx((1.0 - 0.4) / (0.25 - 0.1))
    assert headline["interval"] == pytest.approx((4.0, 4.0)) and speed["processor"]["end_to_end"]["hass"] == 16
    assert speed["end_to_end"]["ratio"] == pytest.approx(21 / 18)
    assert speed["repeats"]["speedups"] == pytest.approx([3.0, 4.0, 6.0])
    assert found["cost_model"]["step_seconds"] == pytest.approx(0.15)
    assert [q["speedup"] for q in found["questions"]] == pytest.approx([4.0] * 6)
    assert found["load"]["hass"] == {"mean": 5.5, "max": 5.5, "processors": 2, "threads": 1}
    assert any("load of the machine was 5.5" in note and "other work" in note for note in found["notes"])
    for folder in ("baseline", "hass"):  # what nobody wrote down of the machine is not said
        (tmp_path / folder / "statistics.json").unlink()
    unknown = compare_runs(tmp_path / "baseline", tmp_path / "hass", allow_differences=True)
    [note] = [note for note in unknown["notes"] if "the load of" in note]
    assert note == "the load of the machine was 5.5 on average, at most 5.5, this run included."
    del hass[2]["choices"][0]["processor_time"]
    assert compare(tmp_path / "lost", plain, hass)["headline"]["clock"] == "wall"


def test_categories_of_few_questions_have_no_interval(tmp_path: Path) -> None:
    plain = [line(i, [turn(A, 2.0 + 0.1 * i, prefill=0.5)]) for i in range(9)]
    hass = [line(i, [turn(A, 0.5 + 0.05 * i, [3], prefill=0.25)]) for i in range(9)]
    one, other = pair(tmp_path, plain, hass)
    found = compare_runs(one, other, categories={i: "large" if i < 6 else "small" for i in range(9)})
    assert found["headline"]["interval"] is not None and found["categories"]["large"]["interval"] is not None
    assert found["categories"]["small"]["interval"] is None and found["categories"]["small"]["speedup"] is not None
    assert any("fewer than 5 questions have no interval: small." in note for note in found["notes"])
    assert any("intervals are over questions" in note for note in found["notes"])
