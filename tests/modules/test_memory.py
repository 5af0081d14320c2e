import resource
import sys

import pytest
import torch

from lit_hass.modules.memory import peak_memory, reset_peak_memory


@pytest.mark.skipif(sys.platform != "linux", reason="the unit differs elsewhere")
def test_the_peak_of_a_cpu_run_is_the_process_s_in_bytes() -> None:
    device = torch.device("cpu")
    reset_peak_memory(device)
    before = peak_memory(device)
    block = torch.ones(1 << 26)  # 256 MiB, touched
    after = peak_memory(device)
    assert after == resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert after >= before and after >= block.numel() * 4
