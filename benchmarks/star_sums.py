"""Does the loop of generating, keeping the correct and training again really teach a model? Sums, on the CPU.

For each seed: a very small base is trained on short sums; 1,000 longer ones are answered, the correct answers are
trained on, three times; and a control is trained on as many of its own answers whether they are right or not. Both are
measured on 500 held-out longer sums, first try, greedy. The figures of all seeds are printed and written as
``star_sums.json``. Everything can be killed and started again.

    python benchmarks/star_sums.py --out logs/star_sums_demo
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

from lit_hass.__main__ import main
from lit_hass.data.commonsense_qa_questions import LABELS
from lit_hass.data.sums import PLACES, carrying, check_digit
from lit_hass.records import write_json
from lit_hass.records.predictions import PredictionFolder

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
#: Digits of what the base is trained on, and of what it is then to learn by itself.
SHORT, LONG = "2-5", "6-7"
ARMS = {"loop": "correct", "control": "unfiltered"}


def run(*args: object) -> None:
    """Run a ``lit-hass`` command."""
    status = main([str(arg) for arg in args])
    if status:
        raise SystemExit(f"lit-hass {' '.join(map(str, args))} ended with status {status}")


def prepare(folder: Path, seed: int) -> Path:
    """Write the data of a seed and train its base; returns the base's folder."""
    data: dict[str, Any] = {
        "short.jsonl": (20_000, SHORT, "train", ["--solved", "--tokenizer", folder / "tokenizer"]),
        "short_validation.jsonl": (200, SHORT, "validation", ["--solved"]),
        "long.jsonl": (1_000, LONG, "train", []),
        "held_out.jsonl": (500, LONG, "test", []),
    }
    for name, (n, digits, split, more) in data.items():
        if not (folder / name).exists():
            run("make-data", "sums", "--n", n, "--digits", digits, "--split", split, "--seed", seed, *more,
                "--out", folder / name)  # fmt: skip
    base = folder / "star_sums_base" / "version_0" / "base"
    if not (base / "model.safetensors").exists():
        run("fit", "-c", CONFIGS / "star_sums_base.yaml", "--seed_everything", seed, "--data.seed", seed,
            "--data.train_file", folder / "short.jsonl", "--data.validation_file", folder / "short_validation.jsonl",
            "--data.tokenizer", folder / "tokenizer", "--trainer.enable_progress_bar", "false",
            "--trainer.logger.init_args.save_dir", folder, "--trainer.logger.init_args.version", 0)  # fmt: skip
    return base


def difference(first: Path, last: Path) -> dict[str, float]:
    """Accuracy of the last minus that of the first on the same questions, with its 95 % interval (paired, normal)."""
    before, after = ({one.id: one.correct for one in PredictionFolder(folder).read()} for folder in (first, last))
    gains = [after[key] - before[key] for key in before]
    n = len(gains)
    mean = sum(gains) / n
    half = 1.96 * math.sqrt(sum((gain - mean) ** 2 for gain in gains) / (n - 1) / n)
    return {"mean": mean, "low": mean - half, "high": mean + half}


def exact_share(folder: Path) -> float:
    """Share of the answers whose whole rationale is right: a model may also name the right choice by luck."""
    predictions = PredictionFolder(folder).read()
    return sum(one.completion == solution(one.prompt) for one in predictions) / len(predictions)


def solution(prompt: str) -> str:
    """The completion that solves a sum's prompt."""
    stem = prompt.removeprefix("Q: ").partition("\n")[0]
    first, second = (
        sum(int(digit) * 10 ** PLACES.index(place) for place, digit in zip(number[::2], number[1::2], strict=True))
        for number in stem.split("+")
    )
    check = check_digit(first + second)
    return f" {carrying(first, second)} Therefore, the answer is {check} ({LABELS[check % 5]})."


def seed_result(out: Path, seed: int, iterations: int) -> dict[str, Any]:
    """Run both arms of a seed and collect their figures."""
    folder = out / f"seed_{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    started = time.process_time()
    base = prepare(folder, seed)
    result: dict[str, Any] = {"seed": seed}
    for arm, keep in ARMS.items():
        run("star", "-c", CONFIGS / "star.yaml", "-c", CONFIGS / "star_sums.yaml", "--out", folder / arm,
            "--keep", keep, "--seed", seed, "--iterations", iterations, "--model.base", base,
            "--data.questions", folder / "long.jsonl", "--validation", folder / "held_out.jsonl")  # fmt: skip
        found = json.loads((folder / arm / "star.json").read_text(encoding="utf-8"))["iterations"][: iterations + 1]
        result[arm] = {
            "accuracy": [one["validation"]["accuracy"] for one in found],
            "interval": [one["validation"]["interval"] for one in found],
            "kept": [one["kept"] for one in found[:-1]],
            "kept_correct_share": [one["kept_correct_share"] for one in found[:-1]],
            "exact_rationale": [exact_share(folder / arm / f"iter_{k}" / "validation") for k in range(iterations + 1)],
            "gain": difference(*(folder / arm / f"iter_{k}" / "validation" for k in (0, iterations))),
        }
    result["cpu_seconds"] = time.process_time() - started
    return result


def show(results: list[dict[str, Any]]) -> None:
    """Print what fell."""
    print("seed  arm      accuracy on 500 held-out sums, iteration 0, 1, ...      gain and its 95% interval")
    for result in results:
        for arm in ARMS:
            found = result[arm]
            series = "  ".join(f"{value:6.1%}" for value in found["accuracy"])
            gain, kept = found["gain"], ", ".join(map(str, found["kept"]))
            interval = f"({gain['low']:+.1%} to {gain['high']:+.1%})"
            print(f"{result['seed']:>4}  {arm:8} {series}   {gain['mean']:+7.1%} {interval}   trained on {kept}")
            exact = "  ".join(f"{value:6.1%}" for value in found["exact_rationale"])
            print(f"{'':14}{exact}   with the whole rationale right")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="logs/star_sums_demo", help="where everything goes; the same folder resumes")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--iterations", type=int, default=3)
    options = parser.parse_args()
    place = Path(options.out)
    everything = []
    for number in options.seeds:
        everything.append(seed_result(place, number, options.iterations))
        write_json(place / f"seed_{number}" / "result.json", everything[-1])
        show(everything)
    write_json(place / "star_sums.json", everything)
