"""One training step of a draft against the same step written out, in one process.

    python benchmarks/draft_training_step.py
    python benchmarks/draft_training_step.py --width 512 --vocab 32000 --heads 8 --repeats 5
    python benchmarks/draft_training_step.py --device cuda --width 4096 --vocab 128256 --heads 32 --kv-heads 8

A step is forward, loss and backward of S alignment passes over B sequences of L tokens with given features; the base's
own forward is the same for both and left out. The opponent (`sfold_alignment`) has s whole sets of keys in pass s, one
boolean mask over them, and the output layer over all rows. Both are checked to give the same loss and gradients, then
timed in turns, the order reversed in every second pair, so that a loaded machine hits both alike; ratios are per pair.

Memory is the peak of live tensors during a step, weights and gradients of the weights not counted: on a CPU every
tensor that an operation returns is followed (temporaries inside of kernels are not seen), on a GPU it is torch's count.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from sfold_alignment import plain_loss, sfold_passes
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lit_hass.decoding.clock import device_seconds
from lit_hass.models import DraftConfig, DraftModel
from lit_hass.models.draft_alignment import aligned_passes
from lit_hass.modules.draft_loss import DraftLossConfig, chunk_rows, draft_loss

Step = Callable[[], Tensor]


class LiveBytes(TorchDispatchMode):
    """Follows the storages that operations return, and remembers the most bytes that lived at once."""

    def __init__(self, known: list[Tensor]) -> None:
        """Leave out the storages of ``known``."""
        super().__init__()
        self.known = {tensor.untyped_storage()._cdata for tensor in known}
        self.live: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and look at what it returned."""
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.known and storage._cdata not in self.live:
                    self.live[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.live = {key: entry for key, entry in self.live.items() if not entry[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.live.values()))
        return result


class Job:
    """Random weights, features and tokens of one size."""

    def __init__(self, args: argparse.Namespace) -> None:
        """Make them."""
        torch.manual_seed(0)
        device = torch.device(args.device)
        config = DraftConfig(
            hidden_size=args.width,
            intermediate_size=args.width * 5 // 2,
            num_attention_heads=args.heads,
            num_key_value_heads=args.kv_heads or args.heads,
            head_dim=args.width // args.heads,
            vocab_size=args.vocab,
        )
        self.draft = DraftModel(config).to(device)
        self.weight = torch.randn(args.vocab, args.width, device=device) / args.width**0.5
        shape = (args.batch, args.length)
        self.ids = torch.randint(0, args.vocab, shape, device=device)
        self.features, self.targets = (torch.randn(*shape, args.width, device=device) for _ in range(2))
        # Answers stand behind prompts.
        first = args.length - round(args.length * args.trained_share)
        self.mask = (torch.arange(args.length, device=device) >= first).expand(shape)
        self.device = device

    def head(self, rows: Tensor) -> Tensor:
        """The output layer."""
        return rows @ self.weight.T

    def ours(self, steps: int) -> Tensor:
        """The project's step."""
        self.draft.zero_grad()
        passes = list(aligned_passes(self.draft, self.ids, self.features, steps))
        chunk = chunk_rows(self.weight.shape[0])
        loss = draft_loss(passes, self.targets, self.mask, self.head, DraftLossConfig(), chunk).total
        loss.backward()
        return loss.detach()

    def plain(self, steps: int) -> Tensor:
        """The step written out."""
        self.draft.zero_grad()
        passes = sfold_passes(self.draft, self.ids, self.features, steps)
        loss = plain_loss(passes, self.targets, self.mask.float(), self.head)
        loss.backward()
        return loss.detach()

    def peak(self, step: Step) -> float:
        """Peak of live tensors in MiB."""
        self.draft.zero_grad()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            step()
            grads = sum(p.grad.nbytes for p in self.draft.parameters() if p.grad is not None)
            return (torch.cuda.max_memory_allocated() - before - grads) / 2**20
        known = [*self.draft.parameters(), self.weight, self.ids, self.features, self.targets, self.mask]
        with LiveBytes([tensor.detach() for tensor in known]) as tracker:
            step()
        grads = sum(p.grad.nbytes for p in self.draft.parameters() if p.grad is not None)
        return (tracker.peak - grads) / 2**20

    def check(self, steps: int) -> float:
        """Largest difference of the gradients, relative to the largest gradient."""
        found = []
        for step in (self.ours, self.plain):
            step(steps)
            found.append([p.grad.clone() for p in self.draft.parameters() if p.grad is not None])
        scale = max(float(grad.abs().max()) for grad in found[0])
        return max(float((a - b).abs().max()) for a, b in zip(*found, strict=True)) / scale


def seconds(step: Step, device: torch.device) -> tuple[float, float]:
    """Wall and process seconds of one step."""
    cpu, start = time.process_time(), device_seconds(device)
    step()
    return device_seconds(device) - start, time.process_time() - cpu


def versus(job: Job, steps: int, repeats: int) -> None:
    """Time both in turns."""
    ours, plain = partial(job.ours, steps), partial(job.plain, steps)
    print(f"S = {steps}: gradients differ by {job.check(steps):.1e} of the largest")
    rows = []
    for pair in range(repeats):
        order = (ours, plain) if pair % 2 == 0 else (plain, ours)
        taken = {step: seconds(step, job.device) for step in order}
        rows.append((*taken[ours], *taken[plain]))
    wall = [row[0] / row[2] for row in rows]
    cpu = [row[1] / row[3] for row in rows]
    middle = [1000 * statistics.median(column) for column in zip(*rows, strict=True)]
    memory = job.peak(ours), job.peak(plain)
    print(f"  ours     {middle[0]:8.1f} ms   process {middle[1]:8.1f} ms   peak {memory[0]:8.1f} MiB")
    print(f"  plain    {middle[2]:8.1f} ms   process {middle[3]:8.1f} ms   peak {memory[1]:8.1f} MiB")
    print(
        f"  ratio    {statistics.median(wall):8.2f}      process {statistics.median(cpu):8.2f}      "
        f"peak {memory[0] / memory[1]:8.2f}      ({repeats} pairs, time {min(wall):.2f} to {max(wall):.2f})"
    )


def scaling(args: argparse.Namespace, repeats: int) -> None:
    """Time and memory by S and by L."""
    print("  S      L      ms   process ms   ms / S   peak MiB   MiB / (S L) x 1024")
    for length in (args.length, 2 * args.length):
        job = Job(argparse.Namespace(**{**vars(args), "length": length}))
        step_of = {steps: partial(job.ours, steps) for steps in range(1, 6)}
        taken: dict[int, list[tuple[float, float]]] = {steps: [] for steps in step_of}
        for _ in range(repeats):
            for steps, step in step_of.items():  # interleaved
                taken[steps].append(seconds(step, job.device))
        for steps, pairs in taken.items():
            wall, cpu = (1000 * statistics.median(column) for column in zip(*pairs, strict=True))
            peak = job.peak(step_of[steps])
            print(
                f"  {steps}  {length:5d}  {wall:7.1f}  {cpu:9.1f}   {wall / steps:7.1f}   {peak:8.1f}   "
                f"{1024 * peak / steps / length:8.1f}"
            )


def main() -> None:
    """Parse the command line, check, time, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--kv-heads", type=int, help="default: as many as heads")
    parser.add_argument("--vocab", type=int, default=1280)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--trained-share", type=float, default=0.5, help="share of the rows that count")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    job = Job(args)
    size = sum(p.numel() for p in job.draft.parameters() if p.requires_grad) / 1e6
    print(
        f"draft of {size:.2f} M, width {args.width}, {args.heads} heads, vocabulary {args.vocab}, batch {args.batch}, "
        f"L = {args.length}, {args.trained_share:.0%} of the rows count, {args.device}, {args.threads} thread(s)"
    )
    versus(job, args.steps, args.repeats)
    scaling(args, max(3, args.repeats // 3))


if __name__ == "__main__":
    main()
