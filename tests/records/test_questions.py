import gzip
import json
import logging

import pyarrow
import pytest
from pyarrow import parquet

from lit_hass.errors import UserError
from lit_hass.records import Question, questions_digest, read_questions
from lit_hass.records.questions import question_range

GOOD = '{"question_id": 1, "turns": ["a"]}'


@pytest.fixture
def question_file(tmp_path):
    def write(content):
        path = tmp_path / "questions.jsonl"
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        return path

    return write


def test_mt_bench_line(question_file):
    line = {"question_id": 101, "category": "math", "turns": ["What?", "And?"], "reference": ["A", "B"], "other": [1]}
    path = question_file(json.dumps(line) + "\n")
    assert read_questions(path) == [Question(101, "math", ("What?", "And?"), ("A", "B"))]
    assert read_questions(str(path)) == read_questions(path)


def test_category_and_reference_are_optional(question_file):
    lines = ['{"question_id": "a", "turns": ["x"]}', '{"question_id": 2, "turns": ["y"], "reference": null}']
    assert read_questions(question_file("\n".join(lines))) == [Question("a", None, ("x",)), Question(2, None, ("y",))]


def test_blank_lines_bom_and_windows_line_ends_are_passed_over(question_file):
    content = b"\xef\xbb\xbf\r\n" + GOOD.encode() + b"\r\n  \r\n" + GOOD.replace("1", "2").encode() + b"\r\n\r\n"
    assert [q.question_id for q in read_questions(question_file(content))] == [1, 2]


def test_bom_directly_before_the_first_object(question_file):
    assert len(read_questions(question_file(b"\xef\xbb\xbf" + GOOD.encode()))) == 1


def test_only_newlines_end_a_line(question_file):
    text = "a\u2028b\u2029c\u0085d\x1ce"
    path = question_file(json.dumps({"question_id": 1, "turns": [text]}, ensure_ascii=False).replace("\x1c", "\\u001c"))
    assert read_questions(path)[0].turns == (text,)


def test_one_and_its_string_are_two_questions(question_file):
    path = question_file(GOOD + "\n" + GOOD.replace("1", '"1"'))
    assert [q.question_id for q in read_questions(path)] == [1, "1"]


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ('{"question_id": 2, "turns": ["a"', "not valid JSON"),
        ('{"question_id": 2, "turns": ["a', "Unterminated string"),
        ("{'question_id': 2}", "not valid JSON"),
        ('{"question_id": 2, "turns": ["a"]} {"question_id": 3, "turns": ["a"]}', "Extra data"),
        ("[" * 100_000, "nested too deeply"),
        ('{"question_id": 1' + "0" * 5000 + ', "turns": ["a"]}', "4300"),
        ('[{"question_id": 2, "turns": ["a"]}]', "a JSON object is expected, found an array"),
        ('"text"', "found a string"),
        ("17", "found a number"),
        ("null", "found null"),
        ("true", "found a boolean"),
        ('{"turns": ["a"]}', "question_id is missing"),
        ('{"question_id": null, "turns": ["a"]}', "question_id must be an integer or a non-blank string, found null"),
        ('{"question_id": 1.0, "turns": ["a"]}', "found 1.0"),
        ('{"question_id": true, "turns": ["a"]}', "found true"),
        ('{"question_id": " ", "turns": ["a"]}', 'found " "'),
        ('{"question_id": [1], "turns": ["a"]}', "found \\[1\\]"),
        ('{"question_id": 2}', "turns is missing"),
        ('{"question_id": 2, "turns": []}', "turns is empty"),
        ('{"question_id": 2, "turns": "a"}', 'turns must be a list of strings, found "a"'),
        ('{"question_id": 2, "turns": null}', "turns must be a list of strings, found null"),
        ('{"question_id": 2, "turns": ["a", 3]}', "turns must be a list of strings, its item 2 is 3"),
        ('{"question_id": 2, "turns": ["a", " \\n"]}', "turn 2 of turns is blank"),
        ('{"question_id": 2, "turns": ["\\ud83d"]}', "surrogate"),
        ('{"question_id": 2, "turns": ["a", "b"], "reference": "b"}', 'reference must be a list of strings, found "b"'),
        ('{"question_id": 2, "turns": ["a"], "reference": [true]}', "its item 1 is true"),
        ('{"question_id": 2, "turns": ["a"], "reference": [["b"], []]}', "its item 2 is \\[\\]"),
        ('{"question_id": 2, "turns": ["a"], "reference": [["b", null]]}', "its item 1 is \\["),
        ('{"question_id": 2, "turns": ["a"], "category": {}}', "category must be a string, found {}"),
        ('{"question_id": 2, "turns": ["a"], "category": [["x"]]}', "category must be a string, found"),
        ('{"messages": [{"role": "user"}]}', "a message of messages must have role and content"),
        ('{"messages": [{"role": "system", "content": "x"}, {"role": "user", "content": "y"}]}', "data.system_prompt"),
        ('{"prompt": "a", "completion": "b"}', "question_id is missing; a row is"),
        (GOOD, "question_id 1 was already used on line 1"),
        (b'{"question_id": 2, "turns": ["\xff"]}', "not UTF-8 .byte 0xff at position 31"),
    ],
)
def test_bad_line_is_refused_by_file_line_and_cause(question_file, line, cause):
    line = line if isinstance(line, bytes) else line.encode()
    path = question_file(GOOD.encode() + b"\n\n" + line + b"\n")
    with pytest.raises(UserError, match=cause) as caught:
        read_questions(path)
    assert str(caught.value).startswith(f"{path}:3: ")
    assert "\n" not in str(caught.value)


def test_truncated_last_line_is_refused_at_every_offset(question_file):
    last = GOOD.replace("1", "2").encode()
    for length in range(1, len(last)):
        with pytest.raises(UserError, match=":2: not valid JSON"):
            read_questions(question_file(GOOD.encode() + b"\n" + last[:length]))


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xef\xbb\xbf"])
def test_file_without_questions_is_refused(question_file, content):
    with pytest.raises(UserError, match="holds no questions"):
        read_questions(question_file(content))


def test_utf16_is_refused(question_file):
    with pytest.raises(UserError, match=":1: not UTF-8"):
        read_questions(question_file(GOOD.encode("utf-16")))


def test_missing_file_and_directory_are_refused(tmp_path):
    with pytest.raises(UserError, match="gone.jsonl: no such question file"):
        read_questions(tmp_path / "gone.jsonl")
    with pytest.raises(UserError, match="is a directory, not a question file"):
        read_questions(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be read: Not a directory"):
        read_questions(tmp_path / "file" / "x")


@pytest.mark.parametrize(
    ("begin", "end", "ids"),
    [(None, None, [0, 1, 2, 3, 4]), (0, 2, [0, 1]), (3, None, [3, 4]), (None, 1, [0]), (4, 5, [4]), (1, 3, [1, 2])],
)
def test_selection_is_half_open_on_positions(begin, end, ids, caplog):
    assert list(range(*question_range(5, begin, end))) == ids
    assert not caplog.records


def test_end_beyond_the_last_is_cut_with_a_warning(caplog):
    with caplog.at_level(logging.WARNING):
        assert question_range(5, 3, 80) == (3, 5)
    assert "question_end 80 is beyond the last question; all 5 from 3 on are taken" in caplog.text


@pytest.mark.parametrize(
    ("begin", "end", "cause"),
    [
        (-1, None, "question_begin must not be negative, found -1"),
        (0, -2, "question_end must not be negative, found -2"),
        (3, 2, "question_end 2 must be greater than question_begin 3"),
        (2, 2, "question_end 2 must be greater than question_begin 2"),
        (5, None, "question_begin 5 is beyond the last question .5 questions"),
        (9, 20, "question_begin 9 is beyond"),
    ],
)
def test_bad_selection_is_refused(begin, end, cause):
    with pytest.raises(UserError, match=cause):
        question_range(5, begin, end)


def test_digest_is_of_content_and_order_only(question_file):
    spaced = '{ "turns": ["a"],  "extra": 1, "question_id": 1}\n\n'
    same = questions_digest(read_questions(question_file(GOOD)))
    assert same == questions_digest(read_questions(question_file(spaced)))
    assert len(same) == 64
    variants = [
        [Question(1, None, ("a",))],
        [Question("1", None, ("a",))],
        [Question(1, "c", ("a",))],
        [Question(1, None, ("a", "b"))],
        [Question(1, None, ("ab",))],
        [Question(1, None, ("a",), ("r",))],
        [Question(1, None, ("a",)), Question(2, None, ("b",))],
        [Question(2, None, ("b",)), Question(1, None, ("a",))],
    ]
    assert len({questions_digest(v) for v in variants}) == len(variants)


def test_references_and_categories_as_benchmarks_have_them(question_file):
    """Spec-Bench's rows of retrieval have lists of accepted answers; others have numbers, and several categories."""
    rows = [
        {"reference": [["Bonn", "Bonn am Rhein"]], "category": ["qa", "rag"]},
        {"reference": [["Bonn"]], "category": 7},
        {"reference": [18, "x"], "turns": ["a", "b"]},
        {"reference": 2.5},
        {"reference": "four"},
        {"reference": [[]]},
    ]
    lines = [json.dumps({"question_id": i, "turns": ["a"]} | row) for i, row in enumerate(rows)]
    found = read_questions(question_file("\n".join(lines)))
    assert [q.reference for q in found] == [("Bonn",), ("Bonn",), ("18", "x"), ("2.5",), ("four",), ()]
    assert [q.category for q in found] == ["qa, rag", "7", None, None, None, None]
    assert found[0].accepts(0) == ("Bonn", "Bonn am Rhein") and found[0].accepts(1) == ()
    assert found[2].accepts(1) == ("x",) and found[5].accepts(0) == ()
    # what is accepted is a part of what the questions say; the digest of a question without is as it was
    assert questions_digest(found[:1]) != questions_digest(found[1:2])
    assert questions_digest([Question(1, None, ("a",), ("b",))]) == DIGEST


#: SHA-256 of ``[[1,null,["a"],["b"]]]``.
DIGEST = "74549f5859e8b2066a9e67f4a8373c8c25b4bdc305b691722d5c596dfefe783b"


def test_rows_outside_of_the_selection_do_not_stop_a_run(question_file, caplog):
    path = question_file("\n".join([GOOD, GOOD.replace("1", "2"), "{broken", '{"question_id": 9, "turns": []}']))
    with caplog.at_level("WARNING", "lit_hass"):
        assert [q.question_id for q in read_questions(path, 0, 2)] == [1, 2]
    assert "2 rows outside of the selection cannot be used, the first: line 3: not valid JSON" in caplog.text
    for begin, end in ((None, None), (1, 3), (2, None)):
        with pytest.raises(UserError, match=":3: not valid JSON"):
            read_questions(path, begin, end)
    with pytest.raises(UserError, match="question_begin 4 is beyond the last question"):
        read_questions(path, 4)


def say(*messages, keys=("conversations", "from", "value")):
    name, role, content = keys
    return {name: [{role: who, content: said} for who, said in messages]}


HUB = ("messages", "role", "content")


CHATS = {
    "ShareGPT": [
        say(("human", "a"), ("gpt", "b"), ("human", "c"), ("gpt", "d")) | {"id": "x"},
        say(("gpt", "earlier"), ("human", "a"), ("gpt", "b"), ("human", "unanswered")) | {"id": "x"},
        say(),
        say(("human", "a"), ("human", "b")),
        say(("system", " "), ("human", "a")),
    ],
    "messages": [
        say(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), keys=HUB),
        say(("user", "a"), ("assistant", "b"), ("user", "unanswered"), keys=HUB),
    ],
}  # fmt: skip


@pytest.mark.parametrize("array", [False, True])
@pytest.mark.parametrize("kind", CHATS)
def test_conversations_of_other_formats(tmp_path, kind, array, caplog):
    rows = CHATS[kind]
    path = tmp_path / "talks.json"
    path.write_text(json.dumps(rows, indent=1) if array else "".join(json.dumps(row) + "\n" for row in rows))
    with caplog.at_level("WARNING", "lit_hass"):
        asked, taught = read_questions(path), read_questions(path, answered=True)
    first = Question(1, None, ("a", "c"), ("b", "d"))
    assert asked[:2] == [first, Question(2, None, ("a", "unanswered"), ("b",))]
    assert taught == [first, Question(2, None, ("a",), ("b",))]
    if kind == "ShareGPT":
        assert asked[2:] == [Question(5, None, ("a",))]
        assert "2 rows hold no conversation, the first: line 3: nobody asks anything" in caplog.text
        assert "3 rows hold no conversation, the first: line 3: nobody answers anything" in caplog.text


def test_alpaca(tmp_path):
    path = tmp_path / "alpaca.json"
    rows = [
        {"instruction": "Name it.", "input": "a sea", "output": "Baltic"},
        {"instruction": "Say no.", "input": "", "output": ""},
    ]
    path.write_text(json.dumps(rows))
    assert read_questions(path) == [
        Question(1, None, ("Name it.\n\na sea",), ("Baltic",)), Question(2, None, ("Say no.",))
    ]  # fmt: skip
    assert [q.question_id for q in read_questions(path, answered=True)] == [1]


def test_compressed_files_arrays_and_tables(tmp_path):
    rows = [{"question_id": i, "turns": [f"t{i}"]} for i in range(3)]
    expected = [Question(i, None, (f"t{i}",)) for i in range(3)]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    (tmp_path / "q.jsonl.gz").write_bytes(gzip.compress(lines, mtime=0))
    (tmp_path / "q.json").write_bytes(b"\xef\xbb\xbf\n" + json.dumps(rows).encode() + b"\n")
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "q.parquet")
    for name in ("q.jsonl.gz", "q.json", "q.parquet"):
        assert read_questions(tmp_path / name) == expected
    assert [q.line for q in read_questions(tmp_path / "q.json")] == [1, 2, 3]


@pytest.mark.parametrize(
    ("name", "content", "cause"),
    [
        ("q.json", b'[{"question_id": 1,\n"turns": ["a"]},]', ":2: not valid JSON: Expecting value"),
        ("q.json", b'[{"question_id": 1, "turns": ["a"]}\n\n', ":3: not valid JSON: the array of objects does not end"),
        ("q.json", b'[{"question_id": 1, "turns": ["a"]} {}]', ":1: not valid JSON: the array of objects does not end"),
        ("q.json", b'[\n{"question_id": 1, "turns": ["a"]}]x', ":2: not valid JSON: the array of objects does not end"),
        ("q.json", b'[{"question_id": 1, "turns": ["a"]}, 4]', ":2: a JSON object is expected, found a number"),
        ("q.json", b'[\n{"\xff": 1}]', ":2: not UTF-8"),
        ("q.json", b"[ ]", "holds no questions"),
        ("q.json", b"[" * 100_000, "nested too deeply"),
        ("q.jsonl.gz", GOOD.encode(), "cannot be decompressed"),
        ("q.jsonl.gz", gzip.compress(GOOD.encode(), mtime=0)[:-9], "cannot be decompressed"),
        ("q.parquet", b"PAR1", "cannot be read as parquet"),
    ],
)
def test_broken_arrays_and_tables_are_refused(tmp_path, name, content, cause):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError) as refused:
        read_questions(path)
    assert cause in str(refused.value) and "\n" not in str(refused.value)
    with pytest.raises(UserError, match="no such question file"):
        read_questions(tmp_path / "gone.parquet")
