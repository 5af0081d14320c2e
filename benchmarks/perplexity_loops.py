"""Scoring windows by their needed rows against the loops of the original scripts: time, memory, and the same numbers.

Two opponents, both in their authors' own way: Wanda's loop (one window a batch, logits of the whole window,
cross-entropy over a shifted copy), and full-logits rolling evaluation (log-softmax over every row of a window, of which
the scored ones are taken, with the greedy tokens beside them, as lm-evaluation-harness does).

    python benchmarks/perplexity_loops.py [--rounds 3] [--tokens 4096]

A random Llama of hidden size 256, 4 layers and a vocabulary of 32,000 on one CPU thread. Times are CPU seconds of this
process, the two taking turns; memory is the most that tensors occupied beyond the model during one pass, which the
allocator of PyTorch's profiler reports.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from lit_hass.data.perplexity_plan import WindowBatch
from lit_hass.data.perplexity_windows import Window, disjoint_windows, rolling_windows
from lit_hass.modules.window_scorer import WindowScorer

VOCABULARY = 32_000


def make_model() -> PreTrainedModel:
    """The random Llama."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=256, intermediate_size=688, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=8, max_position_embeddings=4096, attn_implementation="sdpa",
    )  # fmt: skip
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def wanda_loop(model: PreTrainedModel, ids: Tensor, length: int) -> float:
    """Mean loss of the windows' losses, as the original's ``eval_ppl_wikitext`` takes it, batch 1."""
    losses = []
    with torch.no_grad():
        for i in range(len(ids) // length):
            inputs = ids[None, i * length : (i + 1) * length]
            logits = model(inputs, use_cache=False).logits
            shifted = logits[:, :-1, :].contiguous()
            loss = nn.CrossEntropyLoss()(shifted.reshape(-1, shifted.size(-1)), inputs[:, 1:].reshape(-1))
            losses.append(loss.float() * length)
    return float(torch.stack(losses).sum() / (len(losses) * length))


def rolling_loop(model: PreTrainedModel, ids: Tensor, length: int, size: int = 2) -> float:
    """Sum of the losses with the logits of whole windows, windows of one length together, as the harness does."""
    windows = rolling_windows(len(ids), length)
    total = 0.0
    with torch.no_grad():
        for i in range(0, len(windows), size):
            chosen = windows[i : i + size]
            inputs = torch.stack([ids[window.start : window.stop] for window in chosen])
            scores = nn.functional.log_softmax(model(inputs, use_cache=False).logits, dim=-1)
            for row, window in zip(scores, chosen, strict=True):
                mine = row[-window.scored :]
                targets = ids[window.stop - window.scored + 1 : window.stop + 1]
                mine.argmax(-1).eq(targets).all()  # the harness asks too whether decoding would write them
                total -= float(mine.gather(1, targets[:, None]).sum())
    return total


def ours(scorer: WindowScorer, ids: Tensor, windows: list[Window], size: int) -> float:
    """Sum of the losses of the same windows by their scored rows."""
    total = 0.0
    for i in range(0, len(windows), size):
        chosen = windows[i : i + size]
        total += float(scorer(make_batch(ids, chosen)).nll.double().sum())
    return total


def make_batch(ids: Tensor, windows: list[Window]) -> WindowBatch:
    """Windows of one length as a batch."""
    width = windows[0].read
    rows = [torch.arange(r * width + width - w.scored, (r + 1) * width) for r, w in enumerate(windows)]
    targets = [ids[w.stop - w.scored + 1 : w.stop + 1] for w in windows]
    return WindowBatch(
        torch.stack([ids[w.start : w.stop] for w in windows]), (width,) * len(windows), torch.cat(rows),
        torch.cat(targets), torch.repeat_interleave(torch.tensor([w.scored for w in windows])),
        torch.zeros(sum(w.scored for w in windows), dtype=torch.long), tuple(range(len(windows))),
        tuple(((0, i),) for i in range(len(windows))),
    )  # fmt: skip


def peak_bytes(action: Callable[[], object]) -> int:
    """The most that tensors made by an action occupied at once."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        action()
    now = most = 0
    for event in found.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


def contest(name: str, theirs: Callable[[], float], mine: Callable[[], float], rounds: int, wanted: float) -> None:
    """Time both in turn, measure both, and print the ratios."""
    values = (theirs(), mine())
    times: list[list[float]] = [[], []]
    for _ in range(rounds):
        for taken, action in zip(times, (theirs, mine), strict=True):
            start = time.process_time()
            action()
            taken.append(time.process_time() - start)
    memory = [peak_bytes(action) / 2**20 for action in (theirs, mine)]
    ratios = sorted(a / b for a, b in zip(*times, strict=True))
    print(f"{name}: mean loss {values[0]:.9f} theirs, {values[1]:.9f} ours (relative {values[1] / values[0] - 1:+.1e})")
    print(
        f"  CPU seconds {statistics.median(times[0]):.2f} theirs, {statistics.median(times[1]):.2f} ours: "
        f"{statistics.median(ratios):.2f}x faster (rounds {', '.join(f'{r:.2f}' for r in ratios)}; wanted {wanted})"
    )
    print(f"  transient MiB {memory[0]:.0f} theirs, {memory[1]:.0f} ours: 1/{memory[0] / memory[1]:.1f} (wanted 1/5)")


def main() -> None:
    """Run both contests."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=4096, help="of the stream; whole windows are best")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, scorer = (model := make_model()), WindowScorer(model)
    ids = torch.randint(0, VOCABULARY, (options.tokens,), generator=torch.Generator().manual_seed(1))
    windows = disjoint_windows(len(ids), 2048)
    count = sum(window.scored for window in windows)
    contest(
        "Wanda's loop, windows of 2048, batch 1", lambda: wanda_loop(model, ids, 2048),
        lambda: ours(scorer, ids, windows, 1) / count, options.rounds, 1.1,
    )  # fmt: skip
    # A page that ends one third into a window: its last window reads a full history and scores the rest.
    rest = ids[: len(ids) - 683]
    rolling = rolling_windows(len(rest), 1024)
    contest(
        "full-logits rolling evaluation, windows of 1024, batch 2",
        lambda: rolling_loop(model, rest, 1024) / (len(rest) - 1),
        lambda: ours(scorer, rest, rolling, 2) / (len(rest) - 1), options.rounds, 1.4,
    )  # fmt: skip


if __name__ == "__main__":
    main()
