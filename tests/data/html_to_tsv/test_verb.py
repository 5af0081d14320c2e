import json
import subprocess
import sys
from pathlib import Path

import pytest

from lit_hass.data.html_to_tsv import Difficulty, make_questions
from lit_hass.data.html_to_tsv.verb import make_data
from lit_hass.errors import UserError
from lit_hass.records import read_questions

ROOT = Path(__file__).resolve().parents[3]


def test_the_file_holds_the_questions(tmp_path: Path) -> None:
    out = tmp_path / "q.jsonl"
    arguments = ["html_to_tsv", "--n", "7", "--seed", "3", "--difficulty", "3x2", "--split", "validation", "--out"]
    assert make_data([*arguments, str(out)]) == 0
    expected = make_questions(7, 3, Difficulty.parse("3x2"), "validation")
    assert [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()] == expected
    assert [q.turns[0] for q in read_questions(out)] == [q["turns"][0] for q in expected]


def test_the_screen_gets_the_same_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_data(["html_to_tsv", "--n", "5"])
    make_data(["html_to_tsv", "--n", "5", "--out", str(tmp_path / "q")])
    assert capsys.readouterr().out.encode() == (tmp_path / "q").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        (["--n", "0"], "--n must be at least 1, found 0"),
        (["--difficulty", "big"], "difficulty 'big' is not of the form"),
        (["--difficulty", "0x2"], "cannot have 1 to 0 rows"),
    ],
)
def test_bad_arguments_are_one_line(arguments: list[str], cause: str) -> None:
    with pytest.raises(UserError, match=cause) as caught:
        make_data(["html_to_tsv", *arguments])
    assert "\n" not in str(caught.value)


def test_the_verb_needs_the_standard_library_only() -> None:
    code = (
        "import sys; from lit_hass.data.html_to_tsv.verb import make_data; make_data(['html_to_tsv', '--n', '1']);"
        "assert not {'torch', 'lightning', 'numpy', 'transformers', 'tokenizers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
