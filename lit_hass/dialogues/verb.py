"""``lit-hass make-data dialogues``: let a base write dialogues to train its draft on."""

from __future__ import annotations

import argparse
import logging

from lit_hass.errors import EXIT_OK

log = logging.getLogger(__name__)


def make_data(args: list[str]) -> int:
    """Run the verb with its arguments; returns the exit status.

    Raises:
        UserError: the arguments, the base or the files cannot be used.
        RunError: the disk is full, or the base writes no prompts.
    """
    parser = argparse.ArgumentParser(
        prog="lit-hass make-data dialogues",
        description="Write dialogues by the base itself: it opens the user's turn of its own chat template, samples "
        "until the turn ends, and answers what passes for a prompt. In the questions' format with references; a "
        "stopped run goes on by the same command.",
    )
    parser.add_argument("--model.base", "--base", dest="base", required=True, help="folder, hub id, name or .gguf file")
    parser.add_argument("--n", type=int, default=1000, help="how many dialogues (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="another seed, other dialogues (default: %(default)s)")
    parser.add_argument("--out", required=True, help="the file to write")
    parser.add_argument(
        "--prompts", metavar="FILE", help="answer these: lines of text, or a question file's first turns"
    )
    parser.add_argument("--temperature", type=float, default=0.0, help="of the answers (default: %(default)s)")
    parser.add_argument("--top-p", type=float, default=1.0, help="of the answers (default: %(default)s)")
    parser.add_argument("--max-new-tokens", type=int, default=256, help="of an answer (default: %(default)s)")
    parser.add_argument(
        "--prompt-tokens", type=int, default=64, help="longer prompts are dropped (default: %(default)s)"
    )
    parser.add_argument("--batch", type=int, default=32, help="dialogues sampled together (default: %(default)s)")
    parser.add_argument("--dtype", default="auto", help="of the base; auto is float32 on a CPU (default: %(default)s)")
    parser.add_argument("--date", help="what a chat template that asks for the date is told (default: today's)")
    options = parser.parse_args(args)
    from lit_hass.decoding import SamplingConfig
    from lit_hass.dialogues.writing import DialogueSettings, read_prompts, write_dialogues

    prompts = None if options.prompts is None else read_prompts(options.prompts)
    settings = DialogueSettings(
        base=options.base,
        n=options.n if prompts is None else min(options.n, len(prompts)),
        seed=options.seed,
        batch=options.batch,
        prompt_tokens=options.prompt_tokens,
        max_new_tokens=options.max_new_tokens,
        sampling=SamplingConfig(temperature=options.temperature, top_p=options.top_p),
        dtype=options.dtype,
        prompts=prompts,
        date=options.date,
    )
    write_dialogues(settings, options.out)
    log.info("wrote %s", options.out)
    return EXIT_OK
