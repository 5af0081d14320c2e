import json
import os

import pytest

from lit_hass.errors import UserError
from lit_hass.records import RunKey, SavedKey, claim, failed_answer, read_key, to_json
from lit_hass.records.run_key import library_versions

SETTINGS = {
    "model": {"base": "html_to_tsv", "draft": None, "max_new_tokens": 128},
    "tree": {"total_tokens": 60, "top_k": 10},
    "temperature": 0.0,
    "stop": [2, 3],
}


def test_a_new_folder_gets_the_key_and_the_same_settings_resume(tmp_path):
    folder = tmp_path / "runs" / "a"
    key = claim(folder, SETTINGS)
    assert os.listdir(folder) == ["run_key.json"]
    saved = json.loads((folder / "run_key.json").read_text())
    assert saved == {"settings": SETTINGS, "sha256": key.digest, "versions": library_versions()}
    before = (folder / "run_key.json").stat().st_ino
    again = claim(folder, SETTINGS)
    assert isinstance(again, SavedKey) and again.digest == key.digest
    assert (folder / "run_key.json").stat().st_ino == before
    assert read_key(folder).settings == SETTINGS


def test_resuming_needs_no_equal_spelling(tmp_path):
    claim(tmp_path, SETTINGS)
    claim(tmp_path, {"stop": (2, 3), "temperature": 0, **{k: SETTINGS[k] for k in ("tree", "model")}})


def test_differing_settings_are_named(tmp_path):
    claim(tmp_path, SETTINGS)
    other = json.loads(json.dumps(SETTINGS))
    other["model"]["draft"] = "html_to_tsv"
    other["tree"]["top_k"] = 8
    other["temperature"] = 0.7
    del other["stop"]
    other["seed"] = 1
    with pytest.raises(UserError) as caught:
        claim(tmp_path, other)
    message = str(caught.value)
    assert (
        'model.draft: was null, now "html_to_tsv"; seed: was not set, now 1; stop: was [2, 3], now not set; '
        "temperature: was 0.0, now 0.7; tree.top_k: was 10, now 8)" in message
    )
    assert str(tmp_path) in message and "\n" not in message
    assert "base" not in message and "total_tokens" not in message
    assert read_key(tmp_path).settings == SETTINGS


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": 1}, {"a": True}),
        ({"a": 0}, {"a": False}),
        ({"a": 1}, {"a": "1"}),
        ({"a": None}, {}),
        ({"a": {}}, {}),
        ({"a": [1, 2]}, {"a": [2, 1]}),
        ({"a": 1.0}, {"a": 1.5}),
        ({"a": {"b": 1}}, {"a": [1]}),
        ({"a": "é"}, {"a": "e"}),
    ],
)
def test_different_settings_have_different_keys_and_a_named_difference(one, other):
    assert RunKey(one).digest != RunKey(other).digest
    assert RunKey(one).differences(RunKey(other))
    assert RunKey(one).differences(RunKey(one)) == []


def test_long_values_are_cut_in_the_message():
    (line,) = RunKey({"a": "x" * 500 + "1"}).differences(RunKey({"a": "x" * 500 + "2"}))
    assert len(line) < 200
    assert 'x1", now' in line and line.endswith('x2"')


def test_digest_does_not_depend_on_order_and_is_stable():
    assert RunKey({"a": 1, "b": {"c": 2, "d": 3}}).digest == RunKey({"b": {"d": 3, "c": 2}, "a": 1}).digest
    # printf '{"a":1}' | sha256sum: keys of existing folders must stay valid.
    assert RunKey({"a": 1.0}).digest == "015abd7f5cc57a2dd94b7590f04ad8084273905ee33ec5cebeae62276a97f862"


@pytest.mark.parametrize("name", ["answers.jsonl", "answers.rank2.jsonl"])
def test_answers_without_a_key_are_refused(tmp_path, name):
    (tmp_path / name).write_text(to_json(failed_answer(1, "e")) + "\n")
    with pytest.raises(UserError, match=f"holds answers .{name}. but no run_key.json"):
        claim(tmp_path, SETTINGS)
    assert os.listdir(tmp_path) == [name]


def test_foreign_files_do_not_matter(tmp_path):
    for name in ("config.yaml", "events.out.tfevents.1", "run.lock"):
        (tmp_path / name).write_text("")
    claim(tmp_path, SETTINGS)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"settings": 3, "sha256": ""}', '{"settings": {}}', "\udcff"]
)
def test_a_damaged_key_is_refused(tmp_path, content):
    (tmp_path / "run_key.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match="is not a run key"):
        claim(tmp_path, SETTINGS)


def test_an_edited_key_is_refused(tmp_path):
    claim(tmp_path, SETTINGS)
    path = tmp_path / "run_key.json"
    path.write_text(path.read_text().replace("128", "256"))
    with pytest.raises(UserError, match="hash does not fit"):
        read_key(tmp_path)


def test_folder_without_a_key(tmp_path):
    assert read_key(tmp_path) is None
    assert read_key(tmp_path / "not there") is None


def test_unwritable_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write into folder"):
        claim(tmp_path / "file" / "run", SETTINGS)


def test_other_versions_are_told_and_no_refusal(tmp_path, caplog):
    claim(tmp_path, SETTINGS)
    path = tmp_path / "run_key.json"
    claim(tmp_path, SETTINGS)
    assert caplog.text == ""
    saved = json.loads(path.read_text())
    path.write_text(json.dumps({**saved, "versions": {**saved["versions"], "torch": "2.0.1"}}))
    now = saved["versions"]["torch"]
    claim(tmp_path, SETTINGS)
    assert f"torch 2.0.1, now {now}" in caplog.text and "transformers" not in caplog.text
    caplog.clear()
    path.write_text(json.dumps({"settings": saved["settings"], "sha256": saved["sha256"]}))  # of an older version
    claim(tmp_path, SETTINGS)
    assert caplog.text == ""
