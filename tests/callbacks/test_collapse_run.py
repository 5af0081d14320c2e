"""A run's collapse metrics are those of plain forwards over its answers, whatever the batch and however it ended."""

import json

import pytest

from lit_hass.models import DraftModel, load_base
from tests.callbacks.collapse_runs import RUN, arguments, ask, assert_equal, config_file, offline, read
from tests.door.conftest import door, lines, process  # noqa: F401  # fixtures


@pytest.fixture
def draft(tiny_base, tmp_path):
    path = tmp_path / "draft"
    DraftModel.from_base(load_base(tiny_base)).save_pretrained(path)
    return path


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("drafts", [False, True])
def test_metrics_are_those_of_plain_forwards(door, tiny_base, tmp_path, draft, batch, drafts):  # noqa: F811
    path = ask(tmp_path, 6)
    more = ["--model.draft", draft, "--model.tree.total_tokens", 8, "--model.tree.depth", 3, "--model.tree.top_k", 3]
    args = arguments(tiny_base, path, config_file(tmp_path), "--data.batch_size", batch, *(more if drafts else []))
    result = door(*args)
    assert result.status == 0, result.err
    metrics = read(RUN)
    expected, chunks = offline(tiny_base, path, RUN / "answers.jsonl")
    assert_equal(metrics, expected, chunks)
    states = metrics["states"]
    counts = metrics["counts"]
    assert counts["questions"] == 6 and counts["questions_without_features"] == counts["questions_failed"] == 0
    assert metrics["meta"]["draft"] == (str(draft) if drafts else None)
    assert (states["baseline"]["rows"] == 0) == drafts and (states["bonus"]["rows"] > 0) == drafts
    assert (states["rejected"]["rows"] > 0) == drafts == (counts["n_rejected"] > 0)
    assert counts["rows_added"] == sum(
        counts[name] for name in ("rows_in_statistics", "n_special", "n_ignored", "n_nonfinite", "n_dropped_rows")
    )
    assert len(metrics["class_means"][0]) == 3
    assert len(metrics["class_quantities"]["norm"]) == counts["classes_eligible"]
    json.dumps(metrics, allow_nan=False)
