import pytest
import torch

from lit_hass.models import load_base
from lit_hass.modules.threads import choose_threads


@pytest.mark.parametrize(("said", "expected"), [(None, 1), ("2", 2)])
def test_a_small_model_runs_on_one_thread(tiny_base, monkeypatch, said, expected):
    if said is None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    else:
        monkeypatch.setenv("OMP_NUM_THREADS", said)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        choose_threads(load_base(tiny_base))
        assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)
