"""``lit-hass draft-vocabulary``: choose the tokens that a draft scores, by how often the base says them."""

from __future__ import annotations

import argparse
import logging

from lit_hass.errors import EXIT_OK, UserError

log = logging.getLogger(__name__)


def draft_vocabulary(args: list[str]) -> int:
    """Run the verb with its arguments; returns the exit status.

    Raises:
        UserError: the arguments or the files cannot be used.
    """
    parser = argparse.ArgumentParser(
        prog="lit-hass draft-vocabulary",
        description="Choose the most frequent tokens of a base's answers; a draft that scores only these is faster, "
        "and the answers stay the base's own.",
    )
    parser.add_argument("--model.base", "--base", dest="base", required=True, help="folder, hub id, name or .gguf file")
    parser.add_argument("--data.path", "--questions", dest="path", required=True, help="question file with references")
    parser.add_argument("--size", type=int, default=8192, help="how many tokens (default: %(default)s)")
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--out", help="the file to write, for --model.draft_vocabulary of a training")
    target.add_argument("--draft", metavar="FOLDER", help="write it into the folder of this draft, which then uses it")
    options = parser.parse_args(args)
    import torch

    from lit_hass.data.conversation_datamodule import encode_named, read_conversations
    from lit_hass.data.prompting import Prompting
    from lit_hass.models import check_draft, load_config, load_tokenizer, resolve_draft, stop_ids
    from lit_hass.models.draft_vocabulary import VOCABULARY_FILE, DraftVocabulary
    from lit_hass.records.atomic import write_text

    if options.draft is not None:
        check_draft(options.draft, options.base)
        out = str(resolve_draft(options.draft) / VOCABULARY_FILE)
    else:
        out = options.out
    tokenizer = load_tokenizer(options.base)
    prompting = Prompting(tokenizer)
    counts = torch.zeros(load_config(options.base).get_text_config().vocab_size, dtype=torch.long)
    for question in read_conversations(options.path):
        ids, spoken, _ = encode_named(prompting, question, options.path)
        said = torch.tensor(ids)[torch.tensor(spoken, dtype=torch.bool)]
        counts += torch.bincount(said, minlength=len(counts))[: len(counts)]
    total = int(counts.sum())
    if not total:
        raise UserError(f"{options.path}: no token of an answer, so none is frequent")
    vocabulary = DraftVocabulary.choose(counts, options.size, stop_ids(options.base, tokenizer))
    write_text(out, vocabulary.to_json())
    log.info(
        "%d of %d tokens, which are %.2f%% of the %d in the answers of %s; wrote %s",
        options.size, len(counts), 100 * (vocabulary.coverage or 0.0), total, options.path, out,
    )  # fmt: skip
    return EXIT_OK
