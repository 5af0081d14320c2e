"""A chat template that writes the date: no run mixes two days, and no comparison does without a word."""

import json
import shutil
from pathlib import Path

import pytest

from lit_hass.data.prompting import Prompting
from lit_hass.models import load_tokenizer
from tests.door.conftest import CONFIG, lines

RUN = Path("logs/generate_baseline")
TEMPLATE = (
    "Today: {{ strftime_now('%d %b %Y') }}\n"
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}<|assistant|>"
)


@pytest.fixture
def dated(tiny_base, tmp_path) -> Path:
    """`tiny_base` with a template like that of Llama 3.2."""
    base = shutil.copytree(tiny_base, tmp_path / "dated")
    (base / "chat_template.jinja").write_text(TEMPLATE)
    assert Prompting(load_tokenizer(base), date="2024-07-26").text(["x"], []).startswith("Today: 26 Jul 2024\n")
    return base


def test_another_day_is_another_run(door, questions, dated) -> None:
    def predict(day: str, *more: object):
        settings = ("--model.base", dated, "--model.max_new_tokens", 4, "--model.warmup", 0, "--data.date", day)
        return door(
            "predict", "-c", CONFIG, "--data.questions", questions(3), "--trainer.accelerator", "cpu", *settings, *more
        )

    assert predict("2026-11-27").status == 0
    shard = RUN / "version_0" / "answers.jsonl"  # as a run that was killed before its last question leaves it
    shard.rename(shard.with_name("answers.rank0.jsonl"))
    kept = shard.with_name("answers.rank0.jsonl").read_text().splitlines(keepends=True)[:2]
    shard.with_name("answers.rank0.jsonl").write_text("".join(kept))
    refused = predict("2026-11-28", "--trainer.logger.init_args.version", 0)
    assert refused.status == 2 and 'data.date: was "2026-11-27", now "2026-11-28"' in refused.err
    assert "data.prompts: was" in refused.err
    resumed = predict("2026-11-27", "--trainer.logger.init_args.version", 0)
    assert resumed.status == 0, resumed.err
    # All of one day: the ids are those of the text that a person would write down.
    tokenizer = load_tokenizer(dated)
    for answer, question in zip(lines(RUN / "version_0" / "answers.jsonl"), lines(questions(3)), strict=True):
        text = f"Today: 27 Nov 2026\n<|user|>{question['turns'][0]}<|assistant|>"
        assert answer["choices"][0]["prompt_tokens"] == [len(tokenizer(text, add_special_tokens=False)["input_ids"])]
    # Against a run of the next day: the day is named, and nobody says lossless or not.
    assert predict("2026-11-28").status == 0
    runs = [str(RUN / f"version_{version}") for version in (0, 1)]
    unfair = door("compare", *runs)
    assert unfair.status == 2 and "data.date: 2026-11-27 against 2026-11-28" in unfair.err
    forced = door("compare", *runs, "--allow-differences")
    assert "NOT LOSSLESS" not in forced.out
    digests = [[a["choices"][0]["prompt_digest"] for a in lines(Path(run) / "answers.jsonl")] for run in runs]
    assert all(one != other for one, other in zip(*digests, strict=True))
    key = json.loads((Path(runs[0]) / "run_key.json").read_text())["settings"]["data"]
    assert key["date"] == "2026-11-27" and len(key["prompts"]) == 16
