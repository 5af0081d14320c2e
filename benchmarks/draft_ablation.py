"""Does the attention error of the published training code matter, and do the alignment steps?

    python benchmarks/draft_ablation.py
    python benchmarks/draft_ablation.py --base PATH --steps 500 --seeds 3 --folder logs/draft_ablation

Four kinds of training on the benchmark html_to_tsv, each with the same seeds (which decide the draft's first weights
and the data): the causal mask applied, or left out as in the published code (``reference_softmax_leak``); one alignment
step (EAGLE's training) or three. Then each draft proposes greedy chains on the same held-out tables, on the base's own
answers. The acceptance length is accepted + 1, over all steps of all tables, the last step of an answer in full.

A run that is there already, with the same settings, is not run again, so a stopped ablation goes on where it was.
Intervals are Student's t over seeds at 95 %, for another seed is another training; differences are paired by seed. Of
few seeds they are wide, and rightly so.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer, seed_everything
from scipy import stats

from lit_hass.data import HTMLToTSVDataModule
from lit_hass.data.html_to_tsv import Difficulty, make_questions
from lit_hass.data.prompting import Prompting
from lit_hass.decoding.chain import KnownAnswer, chain_acceptance, known_answers
from lit_hass.logs import quiet_libraries
from lit_hass.models import load_base, load_tokenizer, model_digest, stop_ids
from lit_hass.modules import DraftTrainingModule
from lit_hass.modules.frozen_base import FrozenBase
from lit_hass.records.atomic import write_json

#: The kinds of training: alignment steps, and whether the mask is left out.
KINDS = ((3, False), (3, True), (1, False), (1, True))


def name_of(steps: int, leak: bool) -> str:
    """What a kind is called in files and tables."""
    return f"S{steps}_{'leak' if leak else 'masked'}"


def held_out(base: FrozenBase, args: argparse.Namespace) -> list[KnownAnswer]:
    """The base's answers to tables that nothing was trained on."""
    tokenizer = load_tokenizer(args.base)
    questions = make_questions(args.questions, 12345, Difficulty.parse(args.difficulty), "test")
    prompts = [Prompting(tokenizer).encode(question["turns"], []) for question in questions]
    return known_answers(base.decoder, prompts, 512, stop_ids(base.model, tokenizer), args.chain)


def train(steps: int, leak: bool, seed: int, args: argparse.Namespace) -> DraftTrainingModule:
    """Train one draft."""
    seed_everything(seed, verbose=False)
    module = DraftTrainingModule(args.base, steps=steps, reference_softmax_leak=leak)
    data = HTMLToTSVDataModule(tokens_per_batch=args.tokens_per_batch, seed=1000 + seed)
    Trainer(
        max_steps=args.steps,
        accelerator="cpu",
        devices=1,
        gradient_clip_val=0.5,
        gradient_clip_algorithm="value",
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    ).fit(module, datamodule=data)
    return module


def run(
    steps: int, leak: bool, seed: int, args: argparse.Namespace, answers: list[KnownAnswer], base: FrozenBase
) -> Any:
    """Train and measure one draft, or read what an earlier run found."""
    settings = {
        "base": model_digest(args.base),
        "alignment_steps": steps,
        "leak": leak,
        "seed": seed,
        "training_steps": args.steps,
        "tokens_per_batch": args.tokens_per_batch,
        "chain": args.chain,
        "questions": len(answers),
        "difficulty": args.difficulty,
    }
    path = args.folder / f"{name_of(steps, leak)}_seed{seed}.json"
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["settings"] == settings:
            print(f"{path.stem}: there already, {found['acceptance_length']:.3f}", flush=True)
            return found
    start = time.perf_counter()
    module = train(steps, leak, seed, args)
    assert module.draft is not None
    seconds = time.perf_counter() - start
    accepted = chain_acceptance(module.draft.eval().requires_grad_(False), base.head, answers, args.chain)
    flat = np.array([a for row in accepted for a in row])
    reached = [int((flat >= depth).sum()) for depth in range(args.chain + 1)]
    found = {
        "settings": settings,
        "acceptance_length": float(flat.mean() + 1),
        "acceptance_by_depth": [b / a if a else None for a, b in zip(reached, reached[1:], strict=False)],
        "accepted": accepted,
        "training_seconds": seconds,
    }
    module.save_pretrained(args.folder / path.stem)
    write_json(path, found)
    print(f"{path.stem}: {found['acceptance_length']:.3f} ({seconds:.0f} s)", flush=True)
    return found


def totals(runs: list[Any]) -> np.ndarray:
    """Per seed and table the tokens committed and the steps: ``[seeds, tables, 2]``."""
    return np.array([[[sum(row) + len(row), len(row)] for row in found["accepted"]] for found in runs], dtype=float)


def lengths(counts: np.ndarray) -> np.ndarray:
    """Per seed, tokens / steps over all tables: ``[seeds]``."""
    sums = counts.sum(1)
    return sums[:, 0] / sums[:, 1]


def interval(values: np.ndarray) -> tuple[float, float]:
    """Of the mean over seeds ``[S]``; NaN of one seed."""
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values) if len(values) > 1 else np.nan
    return float(values.mean() - half), float(values.mean() + half)


def report(found: dict[str, list[Any]], args: argparse.Namespace) -> str:
    """Write the summary and return it as a markdown table."""
    by_seed = {kind: lengths(totals(runs)) for kind, runs in found.items()}
    summary: dict[str, Any] = {"kinds": {}, "differences": {}, "chain": args.chain, "training_steps": args.steps}
    lines = [
        f"Acceptance length of greedy chains of {args.chain} (at most {args.chain + 1}) on {args.questions} held-out "
        f"tables ({args.difficulty}) after {args.steps} training steps, {args.seeds} seeds.",
        "",
        "| training | acceptance length | 95 % interval | per seed |",
        "|---|---|---|---|",
    ]
    for kind, values in by_seed.items():
        mean, (low, high) = float(values.mean()), interval(values)
        each = [run["acceptance_length"] for run in found[kind]]
        summary["kinds"][kind] = {"mean": mean, "interval": [low, high], "per_seed": each}
        lines.append(f"| {kind} | {mean:.3f} | {low:.3f} to {high:.3f} | {', '.join(f'{x:.3f}' for x in each)} |")
    lines += ["", "| difference | mean | 95 % interval |", "|---|---|---|"]
    for a, b in (
        ("S3_masked", "S3_leak"),
        ("S1_masked", "S1_leak"),
        ("S3_masked", "S1_masked"),
        ("S3_leak", "S1_leak"),
    ):
        gains = by_seed[a] - by_seed[b]
        mean, (low, high) = float(gains.mean()), interval(gains)
        summary["differences"][f"{a} - {b}"] = {"mean": mean, "interval": [low, high]}
        lines.append(f"| {a} - {b} | {mean:+.3f} | {low:+.3f} to {high:+.3f} |")
    write_json(args.folder / "ablation.json", summary)
    return "\n".join(lines)


def main() -> None:
    """Parse the command line, run what is missing, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="html_to_tsv")
    parser.add_argument("--folder", type=Path, default=Path("logs/draft_ablation"))
    parser.add_argument("--steps", type=int, default=500, help="optimiser steps of each run")
    parser.add_argument("--tokens-per-batch", type=int, default=1024)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--chain", type=int, default=8)
    parser.add_argument("--questions", type=int, default=60)
    parser.add_argument("--difficulty", default="4x4")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    quiet_libraries()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    args.folder.mkdir(parents=True, exist_ok=True)
    base = FrozenBase(load_base(args.base))
    answers = held_out(base, args)
    found: dict[str, list[Any]] = {name_of(*kind): [] for kind in KINDS}
    for seed in range(args.seeds):  # seed by seed, so that a stopped ablation has whole comparisons
        for kind in KINDS:
            found[name_of(*kind)].append(run(*kind, seed, args, answers, base))
    print("\n" + report(found, args))


if __name__ == "__main__":
    main()
