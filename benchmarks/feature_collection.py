"""What collecting features costs: answers with the collector's work, without it, and the work by its parts.

Usage:
    python benchmarks/feature_collection.py [--questions 12] [--rounds 5] [--draft]

Rounds are interleaved, and begin in turn with either side; seconds are CPU seconds of this process. ``on`` is a question
answered with features copied, journalled and folded; ``off`` the same question without; ``off twice`` is off against
itself, which is the noise. What the switch costs when nobody listens is measured as ``off`` against a decoder that
cannot collect at all: that path is the same code with one test of a flag, so the ratio is noise around 1.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

from lit_hass.decoding import AutoregressiveDecoder, SpeculativeDecoder, TreeConfig
from lit_hass.data.prompting import Prompting
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
    sides: dict[str, list[float]] = {name: [] for name in ("off", "off again", "copied", "on")}

    def answer(index: int, collect: bool, durable: DurableFeatures | None, name: int) -> float:
        begin = clock()
        (found,) = decoder.generate(
            [prompts[index]], options.max_new_tokens, stop_ids=stops, collect_features=collect
        )  # fmt: skip
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
    kind = "with a draft" if options.draft else "token by token"
    print(f"{len(prompts)} questions {kind}, {options.rounds} rounds, one thread; CPU seconds a round, medians")
    for name, values in sides.items():
        ratios = [a / b for a, b in zip(values, sides["off"], strict=True)]
        print(f"  {name:10s} {median(values):7.3f}   ratio to off {median(ratios):.3f}  ({min(ratios):.3f} to {max(ratios):.3f})")
    print(f"all metrics of {metrics['total_tokens']} tokens at the end: {end:.2f} s, once")


if __name__ == "__main__":
    main()
