"""GNC2 over all pairs of 20,000 classes: tiles of products against a grid of differences; time and peak memory.

OMP_NUM_THREADS=1 python benchmarks/collapse_gnc2.py
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import torch
from collapse_timing import interleaved, report

from lit_hass.metrics.functional import gnc2_statistics

CLASSES, WIDTH, TILE, SAMPLED = 20000, 256, 32, 6


def difference_rows(unit: torch.Tensor, grid: torch.Tensor, starts: list[int]) -> None:
    """Fill some tile rows of the grid by the formula, ln(1 / norm(u - u')), from all differences of a tile."""
    for i in starts:
        for j in range(0, len(unit), TILE):
            difference = unit[i : i + TILE, None] - unit[None, j : j + TILE]
            grid[: difference.shape[0], j : j + TILE] = -difference.norm(dim=2).log()


def compare() -> None:
    """Compare; the grid's time is that of 6 of its 625 tile rows, times 625 / 6."""
    means = torch.randn(CLASSES, WIDTH)
    unit = torch.nn.functional.normalize(means - means.mean(0))
    starts = list(range(0, CLASSES, CLASSES // SAMPLED // TILE * TILE))[:SAMPLED]
    grid = torch.empty(TILE, CLASSES)
    ours, some = interleaved([lambda: gnc2_statistics(means), lambda: difference_rows(unit, grid, starts)], repeats=3)
    theirs = some * (CLASSES / TILE) / SAMPLED
    report(f"GNC2 of {CLASSES} classes, d {WIDTH}", ours, theirs, "grid of differences (extrapolated)", 15)
    print(f"  a grid of one triangle only would be {theirs / 2 / ours:.1f} times slower")
    few = means[:300].double()
    distances = torch.nn.functional.normalize(few - few.mean(0))
    exact = -torch.pdist(distances).log()
    found = gnc2_statistics(few, tile_dtype=torch.float32).moments
    print(f"  300 classes: mean off by {found.mean - float(exact.mean()):.1e}, ", end="")
    print(f"variance by {found.reduced('var') - float(exact.var()):.1e}")


def peak(classes: int) -> None:
    """Print how much the memory of this process grew at most, in MiB (Linux: the kernel's own high-water mark)."""
    gnc2_statistics(torch.randn(64, WIDTH), tile_dtype=torch.float32)
    means = torch.randn(classes, WIDTH)
    Path("/proc/self/clear_refs").write_text("5")  # the mark starts again from what is held now
    before = resident("VmRSS")
    gnc2_statistics(means)
    print(f"{(resident('VmHWM') - before) / 1024:.0f}")


def resident(name: str) -> int:
    """Return a line of the process's status, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


if __name__ == "__main__":
    torch.manual_seed(0)
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peak", type=int, metavar="CLASSES", help="only print by how many MiB memory grows, at most")
    wanted = parser.parse_args().peak
    if wanted:
        peak(wanted)
    else:
        compare()
        for classes in (5000, 10000, 20000):
            command = [sys.executable, __file__, "--peak", str(classes)]
            grown = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
            print(f"{classes} classes: memory grew by {grown} MiB, a float32 grid is {classes**2 * 4 / 2**20:.0f} MiB")
