"""`ResourceSampler` against what the system and the machine itself say."""

import sys
import time
import types

import pynvml
import pytest
import torch

from lit_hass.metrics.resources import ResourceSampler, host_peak_memory

CPU = torch.device("cpu")


def test_memory_that_is_taken_is_seen() -> None:
    sampler = ResourceSampler(CPU)
    before = sampler.sample()["host_bytes"]
    ballast = torch.ones(64 * 2**20, dtype=torch.uint8)  # written, so that it is resident
    found = sampler.sample()
    assert found["host_bytes"] - before > 56 * 2**20
    assert found["host_peak_bytes"] >= found["host_bytes"]
    del ballast
    assert sampler.sample()["host_peak_bytes"] >= found["host_bytes"]
    assert sampler.summary()["host"]["peak_bytes"] >= found["host_bytes"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_peak_is_the_systems(tmp_path) -> None:
    with open("/proc/self/status", encoding="utf-8") as status:
        peak = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
    assert host_peak_memory() == pytest.approx(peak, rel=0.05)


def test_processor_time_is_that_of_this_process() -> None:
    sampler = ResourceSampler(CPU)
    time.sleep(0.3)
    assert sampler.sample()["cpus"] < 0.7
    busy = ResourceSampler(CPU)
    spent, end = time.process_time(), time.process_time() + 0.3
    while time.process_time() < end:
        pass
    found = busy.summary()
    assert found["host"]["mean_cpus"] * found["seconds"] == pytest.approx(time.process_time() - spent, abs=0.06)
    assert found["samples"] == 1 and found["device"]["mean_utilization"] is None


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED), "Not Supported"),
        (pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND), "NVML Shared Library Not Found"),
        (RuntimeError("cuda driver can't be loaded"), "cuda driver can't be loaded"),
    ],
)
def test_a_gpu_that_does_not_tell_its_utilisation(monkeypatch: pytest.MonkeyPatch, error, reason) -> None:
    """The device's side is stood in for: what is tested is that a silent driver is a reason, and is asked once."""
    calls = []

    def utilization(device):
        calls.append(device)
        raise error

    properties = types.SimpleNamespace(total_memory=80)
    fakes = {"max_memory_allocated": 7, "memory_reserved": 9, "memory_allocated": 5, "get_device_name": "a GPU"}
    for name, value in fakes.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "utilization", utilization)
    sampler = ResourceSampler(torch.device("cuda", 0))
    first = sampler.sample()
    assert first["device_peak_bytes"] == 7 and first["device_reserved_bytes"] == 9 and "device_utilization" not in first
    found = sampler.summary()["device"]
    assert found["utilization_unknown"] == reason and found["mean_utilization"] is None and len(calls) == 1
    assert (found["name"], found["total_bytes"], found["current_bytes"]) == ("a GPU", 80, 5)


def test_errors_that_are_not_the_drivers_are_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(device):
        raise KeyError("ours")

    sampler = ResourceSampler(torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "utilization", broken)
    with pytest.raises(KeyError):
        sampler._look_at_gpu()


def test_what_cannot_be_asked_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "utilization", pytest.fail)
    monkeypatch.setitem(sys.modules, "pynvml", None)  # as where it is not installed
    monkeypatch.setattr("lit_hass.metrics.resources.find_spec", lambda name: None)
    assert ResourceSampler(torch.device("cuda", 0)).utilization_reason == "nvidia-ml-py is not installed"
    monkeypatch.setattr(torch.version, "hip", "6.4")
    sampler = ResourceSampler(torch.device("cuda", 0))
    assert sampler.utilization_reason == "read on NVIDIA's GPUs only" and sampler._look_at_gpu() is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_the_driver_is_really_asked() -> None:
    """Without a GPU the real call fails, and says why."""
    sampler = ResourceSampler(torch.device("cuda", 0))
    assert sampler.utilization_reason is None and sampler._look_at_gpu() is None
    assert sampler.utilization_reason


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_memory_of_a_gpu() -> None:
    sampler = ResourceSampler(torch.device("cuda", 0))
    ballast = torch.ones(2**26, dtype=torch.uint8, device="cuda")
    found = sampler.sample()
    assert found["device_peak_bytes"] >= found["device_bytes"] >= ballast.numel()
    del ballast
    assert sampler.summary()["device"]["peak_bytes"] >= 2**26
