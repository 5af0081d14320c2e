"""Settings that mean nothing are refused by name, and the originals are the defaults."""

import dataclasses
import subprocess
import sys

import pytest

from lit_hass.errors import UserError
from lit_hass.features import CollapseConfig

BAD = [
    ("save_every", 0), ("save_every", 1.5), ("save_every", True), ("max_buffer_size", -1), ("device", ""),
    ("device", None), ("min_samples_per_token", 0), ("max_tokens_to_analyze", 0), ("compute_token_metrics", "yes"),
    ("compute_overall_metrics", 1), ("compute_class_metrics", None), ("svd_variant", "c"), ("gnc2_reduction", "sum"),
    ("unc3_reduction", "CoV"), ("correction", 2), ("cdnv_exponent", 0), ("cdnv_exponent", float("nan")),
    ("nc4_classes", "all"), ("chunks", -1), ("chunk_rule", "split"), ("chunk_rows", "all"), ("special_tokens", "none"),
    ("special_tokens", [-1]), ("special_tokens", [True]), ("duplicates", "drop"), ("nan_strategy", "skip"),
    ("max_samples_per_class", 1), ("on_error", "stop"), ("hash_salt", "x"), ("states", []), ("states", ["draft"]),
    ("states", ["bonus", "bonus"]), ("layer", "last"), ("layer", True), ("storage_dtype", "int8"), ("device_bytes", 0),
    ("host_bytes", 1000), ("disk_bytes", -1),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), BAD, ids=[f"{name}={value!r}" for name, value in BAD])
def test_nonsense_is_refused_by_name(name, value):
    with pytest.raises(UserError, match=f"collapse.{name} must"):
        CollapseConfig(**{name: value})


def test_the_original_settings_keep_names_and_defaults():
    original = {
        "save_every": 1024, "max_buffer_size": 10000, "device": "cpu", "min_samples_per_token": 2,
        "max_tokens_to_analyze": None, "compute_token_metrics": True, "compute_overall_metrics": True,
        "compute_class_metrics": True,
    }  # fmt: skip
    config = CollapseConfig()
    assert {name: getattr(config, name) for name in original} == original
    assert set(config.as_dict()) == {field.name for field in dataclasses.fields(CollapseConfig)}
    assert CollapseConfig(**config.as_dict()).as_dict() == config.as_dict()


def test_every_setting_is_explained():
    for field in dataclasses.fields(CollapseConfig):
        assert f"\n        {field.name}: " in CollapseConfig.__doc__, field.name


def test_it_costs_no_torch():
    command = "import sys, lit_hass.features.config; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", command], check=False).returncode == 0
