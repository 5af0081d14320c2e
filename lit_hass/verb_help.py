"""What ``lit-hass VERB --help`` says of the LightningCLI verbs: the options that are asked for, on one screen.

The parser's own help lists every option of the Trainer, some 500 lines; ``--help-all`` prints it.
"""

from __future__ import annotations

_RUN = """\
  -c FILE                    a configuration; any number of times, later ones win, and options win over all
  --trainer.logger.init_args.version N
                             run folder version_N; one that is there is resumed
  --trainer.accelerator cpu|gpu, --trainer.devices N
  --seed_everything N        the run's seed
  --print_config=skip_unset  print the whole configuration, every key of which is an option, and end
  --model.help CLASS, --data.help CLASS
                             the options of a module or a DataModule
  --help-all                 every option of the Trainer too
"""

#: Of verbs that train, or validate what is trained; the others compute in ``model.dtype`` and refuse any other.
_PRECISION = "  --trainer.precision P      of training: 32-true, bf16-mixed, ...\n"

_ANSWERING = """\
  --model.base PATH          base model: a folder, a hub id, or a shipped name (html_to_tsv)
  --model.draft PATH         EAGLE-1/2 or HASS checkpoint{draft}
  --model.tree.total_tokens N, --model.tree.depth N, --model.tree.top_k N
                             the draft tree, in the published meaning
  --model.max_new_tokens N   where an answer ends
  --model.sampling.temperature T, --model.sampling.top_p P, --model.sampling.top_k K
  --model.dtype D            auto, float32, bfloat16 or float16
  --data.questions FILE      MT-bench's format, one object a line; or a shipped name
  --data.question_begin N, --data.question_end N
                             a part of the questions{part}
  --data.batch_size N        questions decoded together
"""

_TEXTS = {
    "evaluate": (
        "Answer questions with a base and with its draft, in turn, and compare: speed, losslessness, collapse.\n"
        "Without any option: the shipped models and 16 of their questions.",
        _ANSWERING.format(draft="", part=" (null takes all; 16 by default)")
        + "  --model.repeats N          how often each answer is timed\n",
        "lit-hass evaluate --model.base BASE --model.draft DRAFT --data.questions FILE",
    ),
    "predict": (
        "Answer questions with a model; answers.jsonl and statistics.json are in the run's folder.",
        _ANSWERING.format(draft=" (configs/generate_hass.yaml)", part=""),
        "lit-hass predict -c configs/generate_baseline.yaml --model.base BASE --data.questions FILE",
    ),
    "fit": (
        "Train a base model or a draft; the configuration says which.",
        "  --trainer.max_steps N      optimiser steps\n"
        + _PRECISION
        + "  --ckpt_path last           go on with a stopped training (and name its version)\n",
        "lit-hass fit -c configs/train_draft.yaml --model.base BASE --data ConversationDataModule --data.path FILE",
    ),
    "test": (
        "Measure a model, such as its perplexity by every protocol.",
        "  --model.base PATH          base model: a folder, a hub id, or a shipped name\n"
        "  --model.dtype D            auto, float32, bfloat16 or float16\n"
        "  --data.path FILE           the text\n",
        "lit-hass test -c configs/perplexity.yaml --model.base BASE --data.path FILE",
    ),
    "validate": (
        "Validate a module on its DataModule.",
        "  --ckpt_path FILE           weights to validate\n" + _PRECISION,
        "lit-hass validate -c configs/train_draft.yaml",
    ),
}


def verb_help(verb: str) -> str:
    """The one-screen help of a LightningCLI verb."""
    summary, options, example = _TEXTS[verb]
    return f"usage: lit-hass {verb} [-c FILE] [OPTION ...]\n\n{summary}\n\n{options}{_RUN}\ntry:\n  {example}\n"
