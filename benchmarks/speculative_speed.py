"""The shipped pair against plain decoding, ours and ``transformers.generate``, on its questions, in one process.

    python benchmarks/speculative_speed.py
    python benchmarks/speculative_speed.py --questions 80 --rounds 5 --tree 29,27,1 --trim --threads 1

Every question is answered by all three in turn (greedy, batch 1, stop tokens of the model), the order rotating, so that
a loaded machine hits all alike. Seconds are end to end, prefill and the draft's pass over the prompt included. On a CPU
the ratios are those of processor seconds (of all threads together), which other work hardly touches, and those of wall
time stand beside them, with the machine's load; on any other device they are of wall time. The interval is over
questions, of the median of the rounds: it says how far the ratio would vary with other such questions, and nothing of
what the machine does. The answers must be equal. Then it says what a step costs outside the forwards of base and draft
(tree, verification, cache, choice of tokens), in CPU seconds, beside one single-row forward of the base.

The task is copying: speculation's best case.
"""

import argparse
import math
import os
import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lit_hass.data.prompting import Prompting
from lit_hass.decoding import AutoregressiveDecoder, SpeculativeDecoder, TreeConfig
from lit_hass.decoding.clock import Clocks, device_seconds, read_clocks
from lit_hass.metrics.functional.jackknife import ratio_interval
from lit_hass.models import (
    check_shipped_draft,
    load_base,
    load_draft,
    load_tokenizer,
    own_draft,
    stop_ids,
    tree_of,
)
from lit_hass.pretrained import questions_file
from lit_hass.records import read_questions


class Stopwatch:
    """Adds up the CPU seconds of calls, those inside another watched call counted once."""

    def __init__(self) -> None:
        """Watch nothing yet."""
        self.seconds: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self._inside = False

    def watch(self, owner: Any, name: str) -> None:
        """Time the method ``name`` of ``owner`` from now on."""
        method = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            if self._inside:
                return method(*args, **kwargs)
            self._inside, start = True, time.process_time()
            try:
                return method(*args, **kwargs)
            finally:
                self.seconds[name] += time.process_time() - start
                self.calls[name] += 1
                self._inside = False

        setattr(owner, name, timed)


def compare(methods: dict[str, Callable[[Tensor], Tensor]], prompts: list[Tensor], rounds: int, device: Any) -> None:
    """Time all methods, print the ratios of each round and their medians."""
    names = list(methods)
    tokens = {name: [methods[name](prompt).tolist() for prompt in prompts] for name in names}  # the warm-up
    count = sum(map(len, tokens["hass"]))
    for name in names:
        equal = sum(a == b for a, b in zip(tokens[name], tokens["hass"], strict=True))
        print(f"{name}: {equal} of {len(prompts)} answers equal those with the draft")
    by_processor = device.type == "cpu"
    clock = "processor" if by_processor else "wall"
    pairs = ", ".join(f"{name} / hass" for name in names[:-1])
    heads = [*(f"{name:>10}" for name in names), f"tokens per {clock} second", f"ratio {pairs}"]
    print("round   " + "   ".join([*heads, *(["by wall time"] if by_processor else []), "load"]))
    times = np.zeros((rounds, len(names), len(prompts), 2))  # wall, processor
    for turn in range(rounds):
        for index, prompt in enumerate(prompts):
            shift = (turn + index) % len(names)
            for name in names[shift:] + names[:shift]:
                times[turn, names.index(name), index] = timed(methods[name], prompt, device)
        wall, processor = np.moveaxis(times[turn].sum(axis=1), -1, 0)
        chosen = processor if by_processor else wall
        ratios = ["  ".join(f"{each[i] / each[-1]:.2f}" for i in range(len(names) - 1)) for each in (chosen, wall)]
        speeds = "   ".join(f"{count / seconds:10.1f}" for seconds in chosen)
        print(f"{turn + 1:5d}   {speeds}   {'   '.join(ratios if by_processor else ratios[:1])}   {load()}", flush=True)
    for place, name in enumerate(names[:-1]):
        of = [each.sum(axis=2)[:, place] / each.sum(axis=2)[:, -1] for each in np.moveaxis(times, -1, 0)]
        # Each question's median over the rounds, then the sums over questions.
        both = np.median(times[..., int(by_processor)], axis=0)[[place, -1]].T
        bounds = ratio_interval(both, lambda sums: np.log(sums[0] / sums[1]), both)
        shown = "no interval of so few" if bounds is None else "95% over questions {:.2f} to {:.2f}".format(
            *map(math.exp, bounds)
        )  # fmt: skip
        ratio = both[:, 0].sum() / both[:, 1].sum()
        wall_ratio = f"; by wall time {statistics.median(of[0]):.2f}" if by_processor else ""
        print(f"ratio to {name} by {clock} time: {ratio:.2f} ({shown}; rounds {min(of[int(by_processor)]):.2f} to "
              f"{max(of[int(by_processor)]):.2f}){wall_ratio}")  # fmt: skip


def timed(answer: Callable[[Tensor], Tensor], prompt: Tensor, device: Any) -> Clocks:
    """What one answer takes."""
    device_seconds(device)
    start = read_clocks(device)
    answer(prompt)
    device_seconds(device)
    return read_clocks(device).since(start)


def load() -> str:
    """Processes of the machine that run or wait for a processor, over the last minute."""
    return f"{os.getloadavg()[0]:.1f} on {os.cpu_count()}" if hasattr(os, "getloadavg") else "unknown"


def main() -> None:
    """Parse the command line, time, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="html_to_tsv")
    parser.add_argument("--draft", help="default: the one that is shipped with the base")
    parser.add_argument("--questions", type=int, default=80)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tree", help="total_tokens,depth,top_k (default: the shipped pair's own, else 60,5,10)")
    parser.add_argument("--trim", action="store_true", help="draft nothing behind a stop token")
    parser.add_argument("--max-new-tokens", type=int, default=512)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.draft = args.draft or own_draft(args.base)
    if args.draft is None:
        parser.error(f"none is shipped with {args.base}: give --draft")
    check_shipped_draft(args.base, args.draft)
    base = load_base(args.base, device=args.device)
    tokenizer = load_tokenizer(args.base)
    if args.tree:
        total_tokens, depth, top_k = map(int, args.tree.split(","))
        tree = TreeConfig(total_tokens, depth, top_k)
    else:
        tree = TreeConfig(**(tree_of(args.base, args.draft) or {}))
    tree = replace(tree, trim=args.trim)
    hass = SpeculativeDecoder(base, load_draft(args.draft, base), tree)
    plain = AutoregressiveDecoder(base)
    questions = read_questions(questions_file("html_to_tsv"))[: args.questions]
    prompts = [Prompting(tokenizer).encode(question.turns[:1], []) for question in questions]
    stop = sorted(stop_ids(base, tokenizer))

    def generate(prompt: Tensor) -> Tensor:
        ids = prompt[None].to(base.device)
        out = base.generate(  # type: ignore[operator]
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=args.max_new_tokens,
            do_sample=False,
            eos_token_id=stop,
            pad_token_id=0,
        )
        return out[0, len(prompt) :].cpu()

    print(f"{base.dtype}, {base.device}, {args.threads} thread(s), {len(prompts)} questions, batch 1, {tree}")
    compare(
        {
            "generate": generate,
            "plain": lambda prompt: plain.generate([prompt], args.max_new_tokens, stop_ids=stop)[0].output_ids,
            "hass": lambda prompt: hass.generate([prompt], args.max_new_tokens, stop_ids=stop)[0].output_ids,
        },
        prompts,
        args.rounds,
        base.device,
    )
    watch = Stopwatch()
    for owner, names in ((hass.forward, ("prefill", "verify", "logits")), (hass.draft, ("feed", "extend"))):
        for name in names:
            watch.watch(owner, name)
    start = time.process_time()
    done = [hass.generate([prompt], args.max_new_tokens, stop_ids=stop)[0] for prompt in prompts]
    total = time.process_time() - start
    steps = sum(answer.steps for answer in done)
    accepted = [a for answer in done for a in answer.accept_lengths]
    watch.watch(plain.forward, "extend")
    before = Counter(watch.calls), Counter(watch.seconds)
    for prompt in prompts:
        plain.generate([prompt], args.max_new_tokens, stop_ids=stop)
    row = (watch.seconds["extend"] - before[1]["extend"]) / (watch.calls["extend"] - before[0]["extend"])
    outside = (total - sum(before[1].values())) / steps
    print(f"acceptance length {sum(accepted) / len(accepted) + 1:.2f} over {len(accepted)} steps")
    print(f"CPU ms of a step: {(total - before[1]['prefill']) / steps * 1e3:.2f}, of which outside forwards "
          f"{outside * 1e3:.2f}; one row of the base {row * 1e3:.2f}")  # fmt: skip


if __name__ == "__main__":
    main()
