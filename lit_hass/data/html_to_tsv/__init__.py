"""The benchmark ``html_to_tsv``: an HTML table in, its TSV out.

Standard library only, so that ``lit-hass make-data`` starts at once. The task is defined in `task`.
"""

from lit_hass.data.html_to_tsv.examples import INSTRUCTION, Example, Split, make_example, make_questions, split_of
from lit_hass.data.html_to_tsv.tables import Difficulty
from lit_hass.data.html_to_tsv.task import table_to_tsv

__all__ = (
    "INSTRUCTION",
    "Difficulty",
    "Example",
    "Split",
    "make_example",
    "make_questions",
    "split_of",
    "table_to_tsv",
)
