"""The texts that tests compare on: sentences of our own in many scripts, hard cases, and random strings.

What cannot be seen in an editor is written with escapes.
"""

import random
from pathlib import Path

CORPORA = Path(__file__).parent / "corpora"

EMOJI = [
    "great \U0001f44d\U0001f3fd, thanks \U0001f64f",
    "family \U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 walks\U0001f6b6\u200d\u2640\ufe0f",
    "flags \U0001f1f0\U0001f1f7\U0001f1ef\U0001f1f5",
    "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
    "\u2764\ufe0f\u200d\U0001f525 love :) <3 \u263a\ufe0e",
    "1\ufe0f\u20e3 keycap #\ufe0f\u20e3",
    "\U0001f937\U0001f3ff\u200d\u2642\ufe0f\U0001f937\U0001f3ff\u200d\u2642\ufe0f",
]
COMBINING = [
    "e\u0301cole, re\u0301sume\u0301, n\u0303 A\u030a",
    "Z\u0351\u036b\u0343\u034c\u0327a\u0321\u031b\u0300l\u0334go\u0488 text",
    "a\u0315\u0300\u05ae\u0062 order \u0344",
    # Marks that are not dropped and whose order is canonical: Hangul tone marks, musical stems.
    "a\u302f\u302eb a\u302e\U0001d165b \U0001d165\u302ex \U0001d16d\U0001d165",
    "a\u302e\u200d\U0001d165b",
    "\u1100\u1161\u11a8 \uac01 \u1112\u1161\u11ab\uae00 \ud55c\u302e",
    "\u0915\u093c \u0958 \u0928\u093c \u0929",
    "\u0130stanbul I\u0307 i\u0307 \u0131",
    "\u1e9b\u0323 \u212b \u2126 \ufb1d\u05bc",
    "\u0301starts with a mark",
    "\u0e19\u0e49\u0e33 \u0e19\u0e4d\u0e49\u0e32",
]
CONTROL = [
    "nul\x00inside be\x07ll es\x1bcape de\x7flete",
    "vertical\x0btab form\x0cfeed file\x1csep group\x1dsep rec\x1eord unit\x1funit next\x85line",
    "crlf\r\nand cr\rand\nlf\ttab",
    "zero\u200bwidth soft\u00adhyphen bom\ufefffront \ufeffstart word\u2060joiner",
    "nbsp\u00a0here narrow\u202fspace em\u2003space ideographic\u3000space ogham\u1680space",
    "line\u2028separator paragraph\u2029separator mongolian\u180evowel",
    "left\u200eright\u200fmarks \u202aembedding\u202c \u2066isolate\u2069",
    "replace\ufffdment private\ue000use \U0010fffdplane",
    "unassigned\u0378here \U000e0fff noncharacter\uffff \ufdd0",
    "\x00\x01\x02", "\u200b", "\u00ad \ufeff",
]  # fmt: skip
LONG = ["x" * 99, "x" * 100, "x" * 101, "y" * 1000, "\uac00" * 33, "\uac00" * 34, "\u00e9" * 100, "e\u0301" * 101]
LITERAL_SPECIAL = [
    "[MASK]", "[mask]", "a[MASK]b", "[CLS][SEP]", "x [UNK] y", "[PAD][PAD] z", "[[MASK]]", "[ MASK ]", "[MASK",
    "\u0301[MASK]\u0301", "[MA\u200bSK]", "[UNK]ing", "un[MASK]able [MASK].",
]  # fmt: skip
BLANK = ["", " ", "   ", "\n", "\t \r\n", "\u00a0\u3000", "a", " a ", "a  b", "\n\na\n"]

HARD = {
    "emoji": EMOJI,
    "combining": COMBINING,
    "control": CONTROL,
    "long": LONG,
    "special": LITERAL_SPECIAL,
    "blank": BLANK,
}


def corpora() -> dict[str, list[str]]:
    """Name -> texts: one a line of each file, the whole file, and the hard cases."""
    found = dict(HARD)
    for path in sorted(CORPORA.glob("*.txt")):
        text = path.read_text(encoding="utf-8")
        found[path.stem] = [*text.splitlines(), text]
    return found


#: Ranges that random strings draw from; each is as likely as another.
SCRIPTS = (
    (0x61, 0x7A), (0x41, 0x5A), (0x20, 0x40), (0x20, 0x20), (0x5B, 0x60), (0xC0, 0x24F), (0x370, 0x3FF),
    (0x400, 0x52F), (0x300, 0x36F), (0x590, 0x6FF), (0x900, 0x97F), (0xE00, 0xE7F), (0x1100, 0x11FF),
    (0xAC00, 0xD7A3), (0x3040, 0x30FF), (0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x2B820, 0x2B9FF), (0x2000, 0x206F),
    (0x1F300, 0x1F64F), (0x1E00, 0x1FFF), (0xFB00, 0xFFEF), (0x0, 0x1F), (0x7F, 0xA0), (0x302A, 0x302F),
    (0x1D150, 0x1D180), (0xE000, 0xE010), (0x10400, 0x1044F), (0x1AB0, 0x1AFF), (0x1DC0, 0x1DFF),
)  # fmt: skip


def random_texts(n: int, seed: int, longest: int = 40) -> list[str]:
    """Strings of mixed scripts: each takes a few scripts and draws characters from them, with some special tokens."""
    draw = random.Random(seed)
    texts = []
    for _ in range(n):
        scripts = draw.sample(SCRIPTS, draw.randint(1, 5))
        text = "".join(chr(draw.randint(*draw.choice(scripts))) for _ in range(draw.randint(0, longest)))
        if draw.random() < 0.05:
            at = draw.randint(0, len(text))
            text = text[:at] + draw.choice(["[MASK]", "[UNK]", "[CLS]", "[mask]", " [SEP] "]) + text[at:]
        texts.append(text)
    return texts
