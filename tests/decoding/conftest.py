"""Fixtures of the decoding tests."""

import functools

import pytest
import torch

from lit_hass.decoding import AutoregressiveDecoder

from .tiny_models import build


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Tiny matrices are slower on several threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def decoders():
    """Return a function from the name of a family to a decoder, each built once."""
    return functools.lru_cache(maxsize=None)(lambda family: AutoregressiveDecoder(build(family)))
