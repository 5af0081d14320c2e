"""Run a function on several gloo processes of this machine and fail where one of them fails or hangs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# A fresh interpreter that forks: threads of the test process must not be forked with it.
HEAD = """
import sys, warnings, torch, torch.distributed as dist, torch.multiprocessing as mp
warnings.filterwarnings("ignore")
torch.set_num_threads(1)
folder, size = sys.argv[1], int(sys.argv[2])
def main(rank):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=size)
    work(rank)
    dist.barrier()
    dist.destroy_process_group()
"""
TAIL = """
mp.start_processes(main, nprocs=size, start_method="fork")
"""


def run_ranks(code: str, folder: Path, size: int = 2) -> None:
    """Run ``code``, which defines ``work(rank)``; its asserts are the test's."""
    run_script(HEAD + code + TAIL, folder, size)


def run_script(code: str, *arguments: object) -> None:
    """Run a script in a process of its own that can be ended with all its children."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        _, errors = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        _, errors = process.communicate()
        pytest.fail(f"the ranks wait for each other: {errors[-2000:]}")
    assert process.returncode == 0, errors[-4000:]
