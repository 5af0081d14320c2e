"""``lit-hass lengths``: what lengths data has, and which limits and batch follow. Without Lightning.

transformers brings torch along with the tokenizer; no weight is read without ``--verify``.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from lit_hass.errors import EXIT_OK, RunError, UserError
from lit_hass.logs import quiet_libraries
from lit_hass.records import to_json
from lit_hass.reports.lengths_files import check_outputs, tokenizer_digest, write_outputs
from lit_hass.reports.lengths_recommendation import (
    Lengths,
    largest_batch,
    parse_bytes,
    recommend_lengths,
)
from lit_hass.reports.lengths_view import print_lengths, print_recommendation
from lit_hass.reports.screen import Screen
from lit_hass.terminal import printable

log = logging.getLogger(__name__)

#: Batch that padding is told for where no memory is given.
_SOME_ROWS = 32


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lit-hass lengths",
        description="Measure the lengths of prompts and answers in tokens, and recommend gen_length, max_length and "
        "the largest batch that fits into memory.",
        epilog="exit status: 0 done; 1 no limit can be recommended (too many answers were cut, or nothing fits); 2 the "
        "input cannot be used",
    )
    add = parser.add_argument
    add("--questions", required=True, metavar="FILE", help="questions in MT-bench's or CommonsenseQA's format, objects "
        "with prompt and completion, or plain text; or a shipped name")  # fmt: skip
    add("--tokenizer", required=True, metavar="PATH", help="folder, hub id or shipped name")
    add("--n-shot", metavar="FILE", help="solved examples that come before each question")
    add("--template", choices=("chat", "plain"), help="of questions in MT-bench's format (default: as predict)")
    add("--system-prompt", help="what the system says first")
    add("--run", metavar="RUN", help="folder of a finished predict run: measure its questions and their answers")
    add("--gen-length", type=int, metavar="N", help="limit of new tokens, where answers are not measured")
    add("--limit", type=int, metavar="N", help="measure so many questions, those that predict --data.limit N asks; or "
        "rows of another file (default: all)")  # fmt: skip
    add("--seed", type=int, default=0, help="of that draw, as data.seed (default: %(default)s)")
    add("--coverage", type=float, default=0.999, metavar="SHARE", help="of texts that keep to the limits (default: "
        "%(default)s)")  # fmt: skip
    add("--model", metavar="PATH", help="model whose memory and context count (default: that of --tokenizer)")
    add("--context", type=int, metavar="N", help="tokens that the model takes, where its configuration names another "
        "context (as model.context; default: the configuration's)")  # fmt: skip
    add("--memory", metavar="SIZE", help="of the device, such as 24GiB; recommends a batch")
    add("--dtype", default="auto", help="of weights and cache (default: auto, which is float32 on a CPU and the "
        "checkpoint's own on a GPU)")  # fmt: skip
    add("--verify", action="store_true", help="run one batch of the worst case")
    add("--out", metavar="FILE", help="YAML for lit-hass predict -c CONFIG -c FILE (fit for what is no question)")
    add("--fit-out", metavar="FILE", help="YAML for lit-hass fit -c CONFIG -c FILE")
    add("--write-json", metavar="FILE", help="set gen_length and max_length in a JSON file, other keys kept")
    add("--overwrite", action="store_true", help="replace --out and --fit-out")
    add("--format", choices=("text", "json"), default="text", help="of what is printed (default: %(default)s)")
    return parser


def lengths(args: list[str]) -> int:
    """Run the verb with its arguments; returns the exit status.

    Raises:
        UserError: the arguments or the files cannot be used.
        RunError: nothing can be recommended; says what to run again, or what would fit.
    """
    options = _parser().parse_args(args)
    if not 0 < options.coverage <= 1:
        raise UserError(f"--coverage must lie above 0 and be at most 1, found {options.coverage}")
    for name, least in (("gen_length", 1), ("limit", 1), ("context", 2)):
        if (value := getattr(options, name)) is not None and value < least:
            raise UserError(f"--{name.replace('_', '-')} must be at least {least}, found {value}")
    memory = None if options.memory is None else parse_bytes(options.memory)
    if options.verify and memory is None:
        raise UserError("--verify runs the batch that fits into --memory, which is not given")
    check_outputs((options.out, options.fit_out), options.overwrite)
    report, samples, config = _measure(options)
    console = Screen()
    if options.format == "text":
        _print(lambda: print_lengths(report, console), console)
        # As it is: a console would expand its tabs and wrap its lines.
        sys.stdout.write(f"longest ({report['original']['id']}):\n{printable(report['original']['text'])}\n\n")
    report["recommendation"] = report["padding"] = report["memory"] = None
    found = _recommend(options, samples, report)
    report["recommendation"] = {
        "prompt_budget": found.prompt,
        "gen_length": found.gen_length,
        "max_length": found.max_length,
        "batch_size": None,
    }
    if memory is not None:
        _fit_into(memory, options, report, found, config)
    prompts = samples.prompts()
    rows = report["recommendation"]["batch_size"] or _SOME_ROWS
    report["padding"] = {
        "batch_size": rows,
        "max_length": prompts.fixed_waste(found.max_length),
        "longest": prompts.fixed_waste(prompts.longest),
        "batches": prompts.batch_waste(rows),
        "sorted": prompts.batch_waste(rows, "sorted"),
    }
    if options.format == "text":
        _print(lambda: print_recommendation(report, console), console)
    else:
        sys.stdout.write(to_json(report, indent=2) + "\n")
        sys.stdout.flush()
    if found.gen_length is None and samples.kind in ("questions", "commonsense_qa") and _wants_files(options):
        raise UserError(
            "no answers to measure: give --run RUN (a finished predict run) or --gen-length N; nothing written"
        )
    for path in write_outputs(report, options.out, options.fit_out, options.write_json):
        log.info("wrote %s", path)
    return EXIT_OK


def _wants_files(options: argparse.Namespace) -> bool:
    return any((options.out, options.fit_out, options.write_json))


def _print(draw: Any, console: Console) -> None:
    """Through sys.stdout, so that a closed pipe is an error like any other."""
    with console.capture() as text:
        draw()
    sys.stdout.write(text.get())
    sys.stdout.flush()


def _measure(options: argparse.Namespace) -> tuple[dict[str, Any], Any, Any]:
    """The report so far, the samples, and the model's configuration (None without a model)."""
    from lit_hass.data.commonsense_qa_questions import SHIPPED, commonsense_qa_file
    from lit_hass.models import check_context, context_length, load_config, load_tokenizer, resolve_base
    from lit_hass.reports.lengths_run import add_run
    from lit_hass.reports.lengths_samples import PromptSettings, file_digest, read_samples

    quiet_libraries()
    source = resolve_base(options.tokenizer)
    tokenizer: Any = load_tokenizer(options.tokenizer)
    config = None
    if options.model is not None:
        config = load_config(options.model)
    elif not Path(source).is_dir() or (Path(source) / "config.json").is_file():
        config = load_config(source)
    elif options.memory is not None:
        raise UserError(f"{source} has no config.json: --memory needs a model, give --model PATH")
    context = options.context if config is None else check_context(config, options.context, "--context")
    settings = PromptSettings(options.template, options.system_prompt, options.n_shot)
    samples = read_samples(options.questions, tokenizer, settings)
    if options.run is not None:
        samples = add_run(samples, options.run)
    if options.limit is not None:
        samples.draw(options.limit, options.seed)
    longest, answers = samples.longest(), samples.answers()
    n = len(samples.rows)
    if n * (1 - options.coverage) < 1 and options.coverage < 1:
        samples.notes.append(f"with {n} prompts, a coverage of {options.coverage:g} is just the longest of them")
    if options.gen_length is not None and answers.n:
        whole = int(answers.ended[: options.gen_length + 1].sum()) / answers.n
        if whole < options.coverage:
            samples.notes.append(
                f"gen_length {options.gen_length} is given by hand: of the {answers.n} answers measured, {whole:.1%} "
                "ended by themselves within it"
            )
    names = {"prompt": samples.prompts(), "answer": answers, "total": samples.totals()}
    shots = options.n_shot
    # "commonsense_qa" names the shipped examples, but only before questions of that schema.
    of_choices = samples.kind == SHIPPED
    shots_file = None if shots is None else commonsense_qa_file(shots, "shots") if of_choices else Path(shots)
    return (
        {
            "file": str(samples.file),
            "file_sha256": file_digest(samples.file),
            "kind": samples.kind,
            "tokenizer": options.tokenizer,
            "tokenizer_sha256": tokenizer_digest(source),
            "n_shot": shots,
            "n_shot_sha256": None if shots_file is None else file_digest(shots_file),
            "shot_tokens": samples.shot_tokens,
            "answers_from": samples.answers_from,
            "limit": samples.limit,
            "coverage": options.coverage,
            "context": context,
            "context_given": options.context is not None,
            "context_of_model": None if config is None else context_length(config),
            "lengths": {name: histogram.summary() for name, histogram in names.items()},
            "original": {
                "max_total": longest.total,
                "max_generated": answers.longest if answers.n else None,
                "id": longest.id,
                "text": longest.prompt + (longest.answer or ""),
            },
            "notes": samples.notes,
        },
        samples,
        config,
    )


def _recommend(options: argparse.Namespace, samples: Any, report: dict[str, Any]) -> Lengths:
    answers = samples.answers()
    return recommend_lengths(
        samples.prompts(),
        answers if answers.n else None,
        options.coverage,
        samples.limit,
        options.gen_length,
        report["context"],
    )


def _fit_into(memory: int, options: argparse.Namespace, report: dict[str, Any], found: Lengths, config: Any) -> None:
    """Add the batch that fits, and the memory it takes."""
    import torch

    from lit_hass.decoding.lean_weights import unsupported_config
    from lit_hass.models import parse_dtype
    from lit_hass.models.memory_estimate import ModelSizes, estimate_memory

    on_cpu = not torch.cuda.is_available()
    dtype: Any = parse_dtype(options.dtype)
    if dtype == "auto":
        stored = getattr(config, "dtype", None)
        dtype = stored if isinstance(stored, torch.dtype) and not on_cpu else torch.float32
    sizes = ModelSizes.of(config, unsupported_config(config) is None)
    answer = found.gen_length or 0
    most = largest_batch(sizes, found.prompt, answer, dtype.itemsize, memory, on_cpu)
    batch = min(most, int(report["lengths"]["prompt"]["count"]))
    estimate = estimate_memory(sizes, batch, found.prompt, answer, dtype.itemsize, on_cpu)
    report["recommendation"]["batch_size"] = batch
    report["memory"] = {
        "model": options.model or options.tokenizer,
        "config_sha256": hashlib.sha256(config.to_json_string(use_diff=False).encode()).hexdigest(),
        "dtype": str(dtype).removeprefix("torch."),
        "budget": memory,
        "largest_batch": most,
        "terms": vars(estimate),
        "total": estimate.total,
    }
    if not options.verify:
        return
    if found.gen_length is None:
        raise UserError("--verify generates answers: give --run RUN or --gen-length N")
    from lit_hass.reports.lengths_verify import run_worst_case

    name = options.model or options.tokenizer
    trial = run_worst_case(name, str(dtype).removeprefix("torch."), batch, found.prompt, found.gen_length)
    report["memory"]["verified"] = {**vars(trial), "text": trial.text()}
    if not trial.batch:
        raise RunError(trial.text())
    report["recommendation"]["batch_size"] = trial.batch
