"""What makes two runs an unfair pair."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from lit_hass.records import QuestionId
from lit_hass.reports.comparison_run import ComparedRun

#: Up to here decoding is greedy, and these settings play no part.
_GREEDY_TEMPERATURE = 1e-5
_OF_SAMPLING = ("temperature", "top_p", "top_k")
#: Settings that make a run what it is (draft, tree), or that are judged by themselves (dtype) or not at all (seed).
_NOT_COMPARED = frozenset({"draft", "tree", "dtype", "seed"})
#: Settings that say which questions were asked: judged by the answers themselves.
_OF_QUESTIONS = frozenset({"questions", "question_count", "first_question", "last_question", "num_choices", "prompts"})
_OF_MACHINE = ("system", "machine", "cpu_model", "cpu_count", "cpu_threads", "gpus")
_PACKAGES = ("torch", "transformers")
#: What earlier versions did not write into ``run_key.json``, or by another rule: digests of a model's files.
_NEW, _DIGESTS = frozenset({"model.attention", "data.date"}), frozenset({"model.base", "data.tokenizer"})


@dataclass(frozen=True)
class Difference:
    """Something that a comparison should not have between its runs.

    Attributes:
        key: its name.
        baseline: what the baseline has.
        hass: what the other has.
        kind: ``"distribution"``: the runs do not draw from the same distribution; ``"measurement"``: they were not
            measured alike; ``"completeness"``: they do not hold the same answers; ``"unknown"``: nobody wrote down
            whether they are alike.
    """

    key: str
    baseline: Any
    hass: Any
    kind: Literal["distribution", "measurement", "completeness", "unknown"]

    def __str__(self) -> str:
        """Say it in a few words."""
        return f"{self.key}: {_show(self.baseline)} against {_show(self.hass)}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def is_greedy(run: ComparedRun) -> bool:
    """Whether the most probable token was taken, as far as the settings are known."""
    temperature = run.model.get("temperature")
    return temperature is not None and temperature <= _GREEDY_TEMPERATURE


def find_differences(baseline: ComparedRun, hass: ComparedRun) -> list[Difference]:
    """List all that makes the pair unfair, the weightiest first; empty for a fair one."""
    return [
        *_of_distribution(baseline, hass),
        *_of_completeness(baseline, hass),
        *_of_measurement(baseline, hass),
    ]


def _of_distribution(baseline: ComparedRun, hass: ComparedRun) -> Iterable[Difference]:
    if baseline.settings is None or hass.settings is None:
        said = [_recorded(run.settings, "run_key.json") for run in (baseline, hass)]
        yield Difference("settings", said[0], said[1], "unknown")
        return
    ignored = _NOT_COMPARED | (set(_OF_SAMPLING) if is_greedy(baseline) and is_greedy(hass) else set())
    # Each key of a version that wrote attention down has it.
    earlier = ["attention" not in run.model for run in (baseline, hass)]
    apart = earlier[0] != earlier[1]
    yield from map(_unknown(earlier) if apart else _as_it_is, _unequal("model", baseline.model, hass.model, ignored))
    if baseline.dtype != hass.dtype:
        yield Difference("model.dtype", baseline.dtype, hass.dtype, "distribution")
    data = [(run.settings or {}).get("data") or {} for run in (baseline, hass)]
    yield from map(_unknown(earlier) if apart else _as_it_is, _unequal("data", data[0], data[1], _OF_QUESTIONS))
    same_ids = [a["question_id"] for a in baseline.answers] == [a["question_id"] for a in hass.answers]
    if same_ids and data[0].get("questions") != data[1].get("questions"):
        yield Difference("data.questions", data[0].get("questions"), data[1].get("questions"), "distribution")
    other = [i for i, answer in baseline.answered.items() if i in hass.answered and _asked(answer, hass.answered[i])]
    if other:
        yield Difference("prompts", "as they are", f"others for {_few(other)}", "distribution")


def _as_it_is(difference: Difference) -> Difference:
    return difference


def _unknown(earlier: Sequence[bool]) -> Callable[[Difference], Difference]:
    """Takes for unknown what the run of an earlier version left out, and digests that were made by two rules."""

    def judged(found: Difference) -> Difference:
        said = [found.baseline, found.hass]
        was = earlier.index(True)
        if found.key in _NEW and said[was] is None:
            said[was] = "not recorded"
        elif found.key in _DIGESTS and None not in said:
            said[was] = f"{said[was]} (by an earlier version's rule)"
        else:
            return found
        return Difference(found.key, said[0], said[1], "unknown")

    return judged


def unknown_distribution(differences: Iterable[Difference]) -> list[str]:
    """The keys that may make two distributions of one, and of which nobody knows whether they are equal."""
    return [d.key for d in differences if d.kind == "unknown" and d.key in {"settings", *_NEW, *_DIGESTS}]


def _asked(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether a question was put in other tokens, as far as the answers tell; later turns differ by earlier answers."""
    choices = {choice["index"]: choice for choice in other["choices"]}
    for mine in one["choices"]:
        theirs = choices.get(mine["index"], {})
        digests = [choice.get("prompt_digest") or () for choice in (mine, theirs)]
        for turn, pair in enumerate(zip(*digests, strict=False)):
            if None not in pair and pair[0] != pair[1]:
                return True
            if mine["turns"][turn] != theirs["turns"][turn]:
                break
    return False


def _unequal(name: str, one: dict[str, Any], other: dict[str, Any], ignored: Iterable[str]) -> Iterable[Difference]:
    for key in sorted((one.keys() | other.keys()) - set(ignored)):
        if one.get(key) != other.get(key):
            yield Difference(f"{name}.{key}", one.get(key), other.get(key), "distribution")


def _of_completeness(baseline: ComparedRun, hass: ComparedRun) -> Iterable[Difference]:
    runs = (baseline, hass)
    if not all(run.finished for run in runs):
        yield Difference("finished", baseline.finished, hass.finished, "completeness")
    asked = [((run.settings or {}).get("data") or {}).get("question_count") for run in runs]
    if any(count is not None and count != len(run.answers) for count, run in zip(asked, runs, strict=True)):
        said = [f"{len(run.answers)} of {'unknown' if n is None else n}" for n, run in zip(asked, runs, strict=True)]
        yield Difference("answers of the questions asked", said[0], said[1], "completeness")
    ids = [{answer["question_id"]: None for answer in run.answers} for run in runs]
    if ids[0].keys() != ids[1].keys():
        only = [[i for i in ids[a] if i not in ids[b]] for a, b in ((0, 1), (1, 0))]
        yield Difference("questions in one run only", _few(only[0]), _few(only[1]), "completeness")
    if baseline.failed or hass.failed:
        yield Difference("failed questions", _few(baseline.failed), _few(hass.failed), "completeness")
    shapes = [{i: _shape(answer) for i, answer in run.answered.items()} for run in runs]
    unlike = [i for i in shapes[0] if i in shapes[1] and shapes[0][i] != shapes[1][i]]
    if unlike:
        first = [shape[unlike[0]] for shape in shapes]
        where = f"choices and turns of question {unlike[0]!r}"
        where += f" and {len(unlike) - 1} more" if len(unlike) > 1 else ""
        yield Difference(where, first[0], first[1], "completeness")


def _shape(answer: dict[str, Any]) -> dict[int, int]:
    """Choice -> number of turns."""
    return {choice["index"]: len(choice["turns"]) for choice in sorted(answer["choices"], key=lambda c: c["index"])}


def _few(ids: list[QuestionId]) -> str:
    if not ids:
        return "none"
    return ", ".join(map(repr, ids[:5])) + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")


def _of_measurement(baseline: ComparedRun, hass: ComparedRun) -> Iterable[Difference]:
    one, other = baseline.environment, hass.environment
    if one is None or other is None:
        said = [_recorded(environment, "statistics.json") for environment in (one, other)]
        yield Difference("environment", said[0], said[1], "unknown")
    copied = [sum(bool(answer.get("collected_features")) for answer in run.answers) for run in (baseline, hass)]
    if any(copied):
        yield Difference("answers timed while features were collected", copied[0], copied[1], "measurement")
    facts = [_measured(run, with_machine=one is not None and other is not None) for run in (baseline, hass)]
    for key in facts[0]:
        pair = [fact[key] for fact in facts]
        if pair[0] != pair[1]:
            pair = ["not recorded" if value is None else value for value in pair]
            yield Difference(key, pair[0], pair[1], "measurement")


def _measured(run: ComparedRun, with_machine: bool) -> dict[str, Any]:
    """How a run was measured, by name; None where nobody wrote it down."""
    facts = {"batch rows": run.batch_rows, "device": (run.settings or {}).get("device")}
    if with_machine:
        environment = run.environment or {}
        facts |= {f"machine.{key}": environment.get(key) for key in _OF_MACHINE}
        facts |= {f"version of {name}": (environment.get("packages") or {}).get(name) for name in _PACKAGES}
        facts["processes"] = (run.statistics or {}).get("devices")
    return facts


def _recorded(value: object, file: str) -> str:
    return f"not recorded (no {file})" if value is None else "recorded"


def _show(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:28]}...{text[-29:]}"
