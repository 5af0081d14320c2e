"""Exact match of a finished run on ``html_to_tsv``, by what the tables look like.

    lit-hass make-data html_to_tsv --n 500 --seed 7 --difficulty 6x5 --out questions.jsonl
    lit-hass predict -c configs/generate_baseline.yaml --data.questions questions.jsonl --data.batch_size 16
    python benchmarks/html_to_tsv_styles.py questions.jsonl logs/generate_baseline/version_0

A table counts in every row whose feature its HTML has. The interval is Wilson's, at 95 %.
"""

import argparse
import math
import re
from collections.abc import Callable

from lit_hass.records import RunFolder, read_questions

#: What to look for in the HTML of a question (and, where HTML cannot tell, in its TSV).
FEATURES: dict[str, Callable[[str, str], bool]] = {
    "all tables": lambda html, tsv: True,
    "one line": lambda html, tsv: "\n" not in html,
    "line per row or cell": lambda html, tsv: "\n" in html,
    "CRLF line ends": lambda html, tsv: "\r\n" in html,
    "indented by spaces": lambda html, tsv: "\n  " in html,
    "indented by tabs": lambda html, tsv: "\n\t" in html,
    "thead and tbody": lambda html, tsv: "<tbody" in html,
    "header cells": lambda html, tsv: "<th" in html.replace("<thead", ""),
    "attributes": lambda html, tsv: re.search(r"<(table|tr|td|th) ", html) is not None,
    "inline tags": lambda html, tsv: re.search(r"<(b|i|em|strong|span|code|small|u|a)[ >]", html) is not None,
    "nested inline tags": lambda html, tsv: re.search(r"<(b|i|em|strong|span|code|small|u)><\w+>", html) is not None,
    "links": lambda html, tsv: "<a href" in html,
    "<br>": lambda html, tsv: "<br>" in html,
    "named entities": lambda html, tsv: re.search(r"&[a-z]+;", html.replace("&nbsp;", "")) is not None,
    "numeric entities": lambda html, tsv: "&#" in html,
    "&nbsp;": lambda html, tsv: "&nbsp;" in html,
    "padded cells": lambda html, tsv: re.search(r"<t[dh][^>]*>\s|\s</t[dh]>", html) is not None,
    "empty cells": lambda html, tsv: any("" in row.split("\t") for row in tsv.split("\n")),
}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("questions")
    parser.add_argument("run")
    options = parser.parse_args()
    right = {
        answer["question_id"]: all(choice["exact_match"] == [True] for choice in answer["choices"])
        for answer in RunFolder(options.run).read_answers()
    }
    questions = [question for question in read_questions(options.questions) if question.question_id in right]
    print("| tables with | n | exact match | 95 % interval |\n|---|---|---|---|")
    for name, has in FEATURES.items():
        hits = [
            right[question.question_id]
            for question in questions
            if has(question.turns[0].partition("\n")[2], question.reference[0])
        ]
        if hits:
            low, high = wilson(sum(hits), len(hits))
            print(f"| {name} | {len(hits)} | {sum(hits) / len(hits):.1%} | {low:.1%} to {high:.1%} |")


def wilson(k: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval of ``k`` successes in ``n`` trials."""
    p, z2 = k / n, z * z
    centre, half = p + z2 / (2 * n), z * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return max(0.0, (centre - half) / (1 + z2 / n)), min(1.0, (centre + half) / (1 + z2 / n))


if __name__ == "__main__":
    main()
