"""Chains and trees of many sizes on the shipped pair: acceptance length, and tokens per second against plain decoding.

    python benchmarks/draft_trees.py
    python benchmarks/draft_trees.py --difficulty 6x5 --temperature 1.0 --questions 24

Each tree's answers are timed beside plain decoding of the same question, in turn. At temperature 0 on easy tables the
draft is nearly always right, so that chains win; sampling and harder tables tell trees from chains.
"""

import argparse
import statistics

import torch

from lit_hass.data.html_to_tsv import Difficulty, make_questions
from lit_hass.data.prompting import Prompting
from lit_hass.decoding import AutoregressiveDecoder, SamplingConfig, SpeculativeDecoder, TreeConfig
from lit_hass.models import load_base, load_draft, load_tokenizer, stop_ids

TREES = (
    (6, 4, 1), (9, 7, 1), (11, 9, 1), (13, 11, 1), (17, 15, 1), (21, 19, 1), (29, 27, 1),
    (10, 5, 2), (16, 7, 2), (20, 9, 2), (16, 5, 4), (24, 7, 4), (32, 6, 8), (60, 5, 10),
)  # fmt: skip


def main() -> None:
    """Parse the command line, time, print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="html_to_tsv")
    parser.add_argument("--draft", default="html_to_tsv")
    parser.add_argument("--difficulty", default="4x4")
    parser.add_argument("--questions", type=int, default=24)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--trim", action="store_true", help="draft nothing behind a stop token")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    base = load_base(args.base)
    tokenizer, draft = load_tokenizer(args.base), load_draft(args.draft, base)
    stop = stop_ids(base, tokenizer)
    sampling = SamplingConfig(args.temperature)
    plain = AutoregressiveDecoder(base)
    questions = make_questions(args.questions, 4242, Difficulty.parse(args.difficulty), "test")
    prompts = [Prompting(tokenizer).encode(question["turns"], []) for question in questions]
    decoders = {tree: SpeculativeDecoder(plain.forward, draft, TreeConfig(*tree, trim=args.trim)) for tree in TREES}
    print(f"{args.difficulty}, temperature {args.temperature}, {len(prompts)} questions, {args.threads} thread(s)\n")
    print("| total_tokens, depth, top_k | acceptance length | of at most | x plain decoding (median, min) |")
    print("|---|---|---|---|")
    for tree, decoder in decoders.items():
        ratios, accepted = [], []
        for turn in range(args.rounds + 1):
            seconds = [0.0, 0.0]
            for index, prompt in enumerate(prompts):
                for kind in (0, 1) if (turn + index) % 2 else (1, 0):
                    method = (plain, decoder)[kind]
                    [answer] = method.generate([prompt], 512, sampling, stop, [index])
                    seconds[kind] += answer.prefill_seconds + answer.decode_seconds
                    if kind and not turn:
                        accepted += answer.accept_lengths
            if turn:  # the first round warms up
                ratios.append(seconds[0] / seconds[1])
        length = sum(accepted) / len(accepted) + 1
        most = min(tree[1] + 2, tree[0])
        shown = f"{statistics.median(ratios):.2f}, {min(ratios):.2f}"
        print(f"| {', '.join(map(str, tree))} | {length:.2f} | {most} | {shown} |", flush=True)


if __name__ == "__main__":
    main()
