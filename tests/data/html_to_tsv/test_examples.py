import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lit_hass.data.html_to_tsv import (
    INSTRUCTION,
    Difficulty,
    make_example,
    make_questions,
    split_of,
    table_to_tsv,
)

ROOT = Path(__file__).resolve().parents[3]

#: sha256 over question and reference, each with a NUL behind it, of make_questions(200, 1, 4x4).
DIGEST = "381bb0560d3efc0c31f892592db484904bb0f36c31934713389baeb38d2f557c"
DIGEST_CODE = """
import hashlib
from lit_hass.data.html_to_tsv import Difficulty, make_questions
digest = hashlib.sha256()
for q in make_questions(200, 1, Difficulty.parse("4x4")):
    digest.update((q["turns"][0] + "\\0" + q["reference"][0] + "\\0").encode())
print(digest.hexdigest())
"""


@pytest.mark.parametrize(
    ("address", "html", "tsv"),
    [
        (
            ("train", 0, 0, "2x2-plain"),
            "<table><tr><td>22</td><td>91,064</td></tr></table>",
            "22\t91,064",
        ),
        (
            ("validation", 0, 3, "4x4"),
            "<table>\n<tr><td>Tomas</td><td>SD-603</td><td>398 kW</td><td>paid</td></tr>\n</table>",
            "Tomas\tSD-603\t398 kW\tpaid",
        ),
        (
            ("test", 7, 12, "3x3"),
            "<table><tr><td> paint&#39;s wine </td><td>  </td><td> 07/02/2028 </td></tr></table>",
            "paint's wine\t\t07/02/2028",
        ),
        (
            ("test", 1, 0, "6x5"),
            "<table>\n\t<thead>\n\t\t<tr><th>Customer</th><th>Part</th><th>Name</th></tr>\n\t</thead>\n\t<tbody>\n"
            "\t\t<tr><td>Moreau, W.</td><td>soft tin</td><td>Alice</td></tr>\n"
            "\t\t<tr><td>Smith, C.</td><td>soft glass</td><td>Ines</td></tr>\n"
            "\t\t<tr><td>Peters, B.</td><td>dry wood</td><td>Carla</td></tr>\n"
            "\t\t<tr><td>Fouquaixwem, R.</td><td>light wire</td><td><b>Alice</b></td></tr>\n\t</tbody>\n</table>",
            "Customer\tPart\tName\nMoreau, W.\tsoft tin\tAlice\nSmith, C.\tsoft glass\tInes\n"
            "Peters, B.\tdry wood\tCarla\nFouquaixwem, R.\tlight wire\tAlice",
        ),
    ],
)
def test_examples_are_fixed_for_ever(address, html: str, tsv: str) -> None:
    split, seed, index, difficulty = address
    example = make_example(split, seed, index, Difficulty.parse(difficulty))
    assert (example.html, example.tsv) == (html, tsv)
    assert example.question == INSTRUCTION + html == "Convert this HTML table to TSV:\n" + html


@pytest.mark.parametrize("hash_seed", ["0", "12345"])
def test_questions_are_fixed_for_ever_in_any_process(hash_seed: str) -> None:
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", DIGEST_CODE], capture_output=True, text=True, env=environment)
    assert done.stderr == "" and done.stdout.strip() == DIGEST


@pytest.mark.parametrize("difficulty", ["1x1", "1x1-plain", "2x2-plain", "3x3", "4x4", "6x5", "9x2"])
def test_every_html_says_its_tsv_and_respects_the_size(difficulty: str) -> None:
    limits = Difficulty.parse(difficulty)
    shapes = set()
    for i in range(600):
        split = ("train", "validation", "test")[i % 3]
        example = make_example(split, i % 5, i, limits)
        assert table_to_tsv(example.html) == example.tsv
        lines = example.tsv.split("\n")
        assert len(lines) == example.rows and {line.count("\t") + 1 for line in lines} == {example.columns}
        assert 1 <= example.rows <= limits.max_rows and 1 <= example.columns <= limits.max_columns
        assert "\r" not in example.tsv and "\u00a0" not in example.tsv and example.tsv.strip("\t\n")
        shapes.add((example.rows, example.columns))
    assert len(shapes) == limits.max_rows * limits.max_columns  # every size occurs


def test_least_sizes_are_respected() -> None:
    limits = Difficulty(max_rows=5, max_columns=4, min_rows=5, min_columns=3)
    shapes = {(e.rows, e.columns) for e in (make_example("test", 0, i, limits) for i in range(100))}
    assert shapes == {(5, 3), (5, 4)}


def test_an_example_does_not_depend_on_what_was_drawn_before() -> None:
    limits = Difficulty()
    forward = [make_example("train", 0, i, limits) for i in range(20)]
    backward = [make_example("train", 0, i, limits) for i in reversed(range(20))][::-1]
    assert forward == backward
    assert make_example("train", 1, 0, limits) != forward[0]


def test_splits_share_no_table_across_seeds_and_difficulties() -> None:
    tables = {
        split: {
            make_example(split, seed, i, Difficulty.parse(difficulty)).tsv
            for seed in range(2)
            for difficulty in ("1x1", "2x2-plain", "4x4")
            for i in range(200)
        }
        for split in ("train", "validation", "test")
    }
    assert all(split_of(tsv) == split for split, group in tables.items() for tsv in group)
    assert not tables["train"] & tables["validation"]
    assert not tables["train"] & tables["test"]
    assert not tables["validation"] & tables["test"]


def test_split_of_is_a_hash_of_the_content() -> None:
    counts = {"train": 0, "validation": 0, "test": 0}
    for i in range(4000):
        text = f"table {i}"
        bucket = hashlib.sha256(text.encode()).digest()[0] % 16
        expected = {14: "validation", 15: "test"}.get(bucket, "train")
        assert split_of(text) == expected
        counts[expected] += 1
    assert all(counts.values())


def test_questions_are_in_the_format_and_hold_no_table_twice() -> None:
    questions = make_questions(300, 5, Difficulty.parse("2x2-plain"), "validation")
    assert [q["question_id"] for q in questions] == list(range(1, 301))
    assert len({q["reference"][0] for q in questions}) == 300
    for q in questions:
        assert set(q) == {"question_id", "category", "turns", "reference"} and len(q["turns"]) == 1
        html = q["turns"][0].removeprefix(INSTRUCTION)
        assert table_to_tsv(html) == q["reference"][0]
        lines = q["reference"][0].split("\n")
        assert q["category"] == f"{len(lines)}x{lines[0].count(chr(9)) + 1}"
        assert split_of(q["reference"][0]) == "validation"
    assert make_questions(10, 5, Difficulty.parse("2x2-plain"), "validation") == questions[:10]


def test_too_few_different_tables_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from lit_hass.data.html_to_tsv import tables

    monkeypatch.setattr(tables, "KINDS", (("status", 1),))  # 12 different cells
    with pytest.raises(ValueError, match="fewer than 13 different tables"):
        make_questions(13, 0, Difficulty.parse("1x1-plain"), "train")
