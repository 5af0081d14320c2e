"""What collecting features costs: answers with the collector's work, without it, and the work by its parts.

Usage:
    python benchmarks/feature_collection.py [--questions 12] [--rounds 5] [--draft]

Rounds are interleaved, and begin in turn with each side; seconds are CPU seconds of this process. ``on`` is a question
answered with its features copied, journalled and folded into all statistics; ``copied`` only has the decoder hand them
over; ``off`` is without, and ``off again`` the same once more, which is the noise.

What the switch costs when nobody listens cannot be told from that noise: it is a test of a flag a step, and the note
of each token's state. ``bookkeeping`` is the decoder's whole `Row.add` for as many tokens, timed alone, which does that
and more: an upper bound.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

from lit_hass.data.prompting import Prompting
from lit_hass.decoding import AutoregressiveDecoder, SpeculativeDecoder, TokenState, TreeConfig
from lit_hass.decoding.rows import Row
from lit_hass.features import CollapseConfig, CollapseMeasurement, FeatureSequence
from lit_hass.features.durable import DurableFeatures
from lit_hass.models import load_base, load_draft, load_tokenizer, stop_ids
from lit_hass.pretrained import questions_file
from lit_hass.records import read_questions


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--questions", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--draft", action="store_true", help="decode with the shipped draft")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, tokenizer = load_base("html_to_tsv"), load_tokenizer("html_to_tsv")
    if options.draft:
        tree = TreeConfig(29, 27, 1, trim=True)
        decoder: AutoregressiveDecoder | SpeculativeDecoder = SpeculativeDecoder(
            model, load_draft("html_to_tsv", model), tree
        )
    else:
        decoder = AutoregressiveDecoder(model)
    prompting = Prompting(tokenizer)
    questions = read_questions(questions_file("html_to_tsv"))[: options.questions]
    prompts = [prompting.encode(question.turns[:1], ()) for question in questions]
    stops = stop_ids(model, tokenizer)
    clock = time.process_time
    produced: dict[int, int] = {}
    sides: dict[str, list[float]] = {name: [] for name in ("off", "off again", "copied", "on")}

    def answer(index: int, collect: bool, durable: DurableFeatures | None, name: int) -> float:
        begin = clock()
        (found,) = decoder.generate(
            [prompts[index]], options.max_new_tokens, stop_ids=stops, collect_features=collect
        )  # fmt: skip
        if not collect:
            produced[index] = len(found.output_ids)
        if durable is not None:
            durable.record([(name, [FeatureSequence.of((name, 0, 0), found.features)])])
            durable.compact()
        return clock() - begin

    with tempfile.TemporaryDirectory() as folder:
        measurement = CollapseMeasurement.for_model(model, tokenizer, CollapseConfig(), paired=options.draft)
        durable = DurableFeatures(Path(folder), 0, measurement)
        durable.take_over(set(), 1)
        durable.begin()
        how = {"off": (False, None), "off again": (False, None), "copied": (True, None), "on": (True, durable)}
        for index in range(len(prompts)):
            answer(index, True, None, 0)
        for turn in range(options.rounds):
            seconds = dict.fromkeys(sides, 0.0)
            names = list(sides)
            for index in range(len(prompts)):
                names = names[1:] + names[:1]
                for name in names:
                    seconds[name] += answer(index, *how[name], name=turn * len(prompts) + index)
            for name, value in seconds.items():
                sides[name].append(value)
        begin = clock()
        metrics = measurement.get_collapse_metrics()
        end = clock() - begin
        durable.close()
    tokens = sum(produced.values())
    kind = "with a draft" if options.draft else "token by token"
    print(f"{len(prompts)} questions {kind}, {tokens} tokens, {options.rounds} rounds, one thread")
    print("CPU seconds a round, medians")
    for name, values in sides.items():
        ratios = [a / b for a, b in zip(values, sides["off"], strict=True)]
        spread = f"({min(ratios):.3f} to {max(ratios):.3f})"
        print(f"  {name:10s} {median(values):7.3f}   ratio to off {median(ratios):.3f}  {spread}")
    spent = bookkeeping(tokens)
    print(f"bookkeeping while off: at most {spent * 1e3:.2f} ms a round, {spent / median(sides['off']):.4%} of off")
    print(f"all metrics of {metrics['total_tokens']} tokens at the end: {end:.2f} s, once")


def bookkeeping(tokens: int, repeats: int = 20) -> float:
    """CPU seconds of noting so many tokens and their states, with a test of the switch each."""
    switch, state = False, TokenState.BASELINE
    begin = time.process_time()
    for _ in range(repeats):
        row = Row(0, torch.zeros(1, dtype=torch.int64), 0, tokens + 1)
        for token in range(tokens):
            row.add([token], [state], frozenset())
            if switch:
                raise AssertionError
    return (time.process_time() - begin) / repeats


if __name__ == "__main__":
    main()
