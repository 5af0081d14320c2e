"""Runs with a collector, and what their metrics must be: plain `transformers` forwards over the recorded tokens."""

import json
import math
import random
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_hass.metrics import CollapseMetrics
from lit_hass.metrics.functional import chunk_entropies
from tests.door.conftest import CONFIG, ROOT, lines
from tests.features.plain_metrics import assert_plain, plain_metrics

RUN = Path("logs/generate_baseline/version_0")

#: What a pseudo-inverse makes of two forwards' rounding (transformers normalises in float32 whatever the dtype).
AMPLIFIED = {"nc1/pinv": 100}

CALLBACKS = """
trainer:
  callbacks+:
    - class_path: tests.callbacks.collapse_dump.CollapseDump
    - class_path: callbacks.CollapseCollector
      init_args: {config: {max_samples_per_class: 4096}}
    - class_path: callbacks.FeatureBuffer
"""


def config_file(folder: Path, text: str = CALLBACKS) -> Path:
    path = folder / "collapse.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def arguments(base, questions, callbacks, *more):
    return [
        "predict", "-c", CONFIG, "-c", str(callbacks), "--model.base", base, "--data.questions", questions,
        "--model.max_new_tokens", 9, "--model.dtype", "float64", "--trainer.accelerator", "cpu", *more,
    ]  # fmt: skip


def ask(folder: Path, n: int) -> Path:
    """A file of n questions whose prompts differ: spectra of all but equal rows are nothing but rounding."""
    words = "alpha beta gamma delta ham eggs tea 12 7.5 <td> </td> <tr> </tr> & - blue green London Paris".split()
    chance = random.Random(3)
    path = folder / f"asked{n}.jsonl"
    texts = [" ".join(chance.choices(words, k=14)) for _ in range(n)]
    objects = [{"question_id": 10 + i, "turns": [text]} for i, text in enumerate(texts)]
    path.write_text("".join(json.dumps(each) + "\n" for each in objects), encoding="utf-8")
    return path


def offline(base, questions, answers, turns=1, layer=-1):
    """Metrics of the rows of every recorded answer, by one plain forward each; and their chunks.

    By scope: the values of a metric that got all rows at once, its details, and values by nothing but numpy. Of another
    layer than the last without what needs the output layer.
    """
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64)
    special = {*tokenizer.all_special_ids}
    special |= {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    head = model.get_output_embeddings().weight.detach() if layer == -1 else None
    scopes = {
        name: CollapseMetrics(model.config.hidden_size, head, keep_rows=True, ignore_ids=special)
        for name in ("overall", "prompt", "answer")
    }
    chunks: dict = {}
    rows: dict = {"overall": [], "prompt": [], "answer": []}
    asked = {question["question_id"]: question for question in lines(questions)}
    for answer in lines(answers):
        for choice in answer["choices"]:
            messages = []
            for turn in range(turns):
                messages.append({"role": "user", "content": asked[answer["question_id"]]["turns"][turn]})
                prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
                messages.append({"role": "assistant", "content": choice["turns"][turn]})
                ids = torch.tensor([[*prompt, *choice["output_ids"][turn]]])
                with torch.no_grad():
                    hidden = model(ids, output_hidden_states=True).hidden_states[layer][0, :-1]
                n, targets = len(prompt), ids[0, 1:]
                for scope, part in (("overall", slice(None)), ("prompt", slice(n)), ("answer", slice(n, None))):
                    rows[scope].append((hidden[part], targets[part]))
                mine = hidden[n:] if len(hidden) > n else hidden
                chunks[answer["question_id"], choice["index"], turn] = chunk_entropies(mine)
    found = {}
    for name, metric in scopes.items():
        features, ids = (torch.cat(part) for part in zip(*rows[name], strict=True))
        metric.update(features, ids)
        plain = plain_metrics(features, ids, head, special)
        found[name] = (metric.compute(), metric.compute_details(), plain)
    return found, chunks


def assert_equal(metrics, expected, chunks, tolerance=1e-6):
    """Every number of every scope; the features' float32 noise is far below the tolerance."""
    compared = 0
    for scope, (values, _, plain) in expected.items():
        assert_plain(metrics, scope, plain, tolerance)
        found = metrics["family"][scope]
        assert {name for name in found if not name.startswith(("cka/", "svd_entropy/"))} == {
            name for name in values if not name.startswith("svd_entropy/")
        }
        for name, value in values.items():
            ours, theirs = found[name], float(value)
            if theirs != theirs:
                assert ours is None, (scope, name, ours)
                continue
            # The rounding of a mean near zero is amplified by the coefficient of variation once more.
            own = abs(theirs) if "cov" in name else 1
            allowed = tolerance * AMPLIFIED.get(name, 1) * max(1, abs(theirs)) * max(1, own)
            assert abs(ours - theirs) <= allowed, (scope, name, ours, theirs)
            compared += 1
    details = expected["overall"][1]
    assert metrics["total_tokens"] == details["n_rows"]
    assert metrics["counts"]["classes_seen"] == details["classes_seen"]
    tokens = metrics["token_metrics"]
    assert list(map(int, tokens)) == details["classes"]["ids"].tolist()
    for one, count, value in zip(
        tokens.values(), details["classes"]["counts"].tolist(), details["classes"]["entropies"].tolist(), strict=True
    ):
        assert one["num_samples"] == one["sampled"] == count and abs(one["svd_entropy"] - value) < tolerance
    assert len(metrics["chunks"]) == len(chunks)
    for chunk in metrics["chunks"]:
        theirs = chunks[chunk["question_id"], chunk["choice"], chunk["turn"]]
        assert chunk["pattern"] == theirs.pattern
        ours = [math.nan if value is None else value for value in chunk["entropies"]]  # a stretch of one row has none
        assert torch.allclose(
            torch.tensor(ours), torch.tensor(theirs.entropies), rtol=0, atol=tolerance, equal_nan=True
        )
    assert compared > 100


def read(run: Path):
    return json.loads((run / "dump.json").read_text())


__all__ = ("CALLBACKS", "ROOT", "RUN", "arguments", "ask", "assert_equal", "config_file", "offline", "read")
