"""The tokenizer of the shipped models: byte-level BPE over a split that makes copying learnable.

What must come out of a cell is what stood in it, so a word should be the same tokens after ``>``, after a tab and
after a space. The usual GPT-2 split glues the space to the word and digits to each other; here tags, attribute
starts, entities, words, groups of up to two digits, line breaks with their indent and single marks stand alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lit_hass.data.html_to_tsv.examples import make_example
from lit_hass.data.html_to_tsv.tables import Difficulty

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, USER, ASSISTANT, END = "<|pad|>", "<|user|>", "<|assistant|>", "<|end|>"

#: Alternatives of the split, in order of precedence (Oniguruma syntax).
SPLIT_PATTERN = "|".join(
    (
        r"</?[A-Za-z]+[0-9]?>",  # a tag without attributes
        r"<[A-Za-z]+",  # the start of one with attributes
        r' [a-z]+="',  # an attribute
        r'">',
        r"&#?[A-Za-z0-9]+;",  # an entity
        r"[^\W\d_]+",  # a word
        r"[0-9]{1,2}",
        r"\r?\n[ \t]*(?=<)",  # a line break with its indent, inside HTML
        r"\r?\n",
        r"\t",
        r" +",
        r".",
    )
)

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}<|user|>{{ message['content'] }}"
    "{% elif message['role'] == 'assistant' %}<|assistant|>{{ message['content'] }}<|end|>"
    "{% else %}{{ raise_exception('this model knows the roles user and assistant only, not ' + message['role']) }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def train_tokenizer(
    vocab_size: int = 1280, examples: int = 20_000, seed: int = 0, difficulty: Difficulty | None = None
) -> PreTrainedTokenizerFast:
    """Train the tokenizer on questions and answers of the training split.

    Args:
        vocab_size: pieces in all, 256 bytes and 4 special tokens among them.
        examples: how many tables to read.
        seed: of the tables.
        difficulty: of the tables, up to 4 x 4 in all styles if not given.

    Returns:
        a fast tokenizer with a chat template; its end-of-sequence token ends every answer. The same arguments give
        the same tokenizer.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, USER, ASSISTANT, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    chosen = difficulty or Difficulty(4, 4)
    texts = (make_example("train", seed, i, chosen) for i in range(examples))
    tokenizer.train_from_iterator((text for e in texts for text in (e.question, e.tsv)), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
