"""What a run leaves on disk: questions in, answers out, atomically, resumable, one run per folder.

Standard library only, but for reading parquet tables.
"""

from lit_hass.records.answer_files import iter_intact, parse_answer, read_answers
from lit_hass.records.answers import AnswerRecord, ChoiceRecord, TurnRecord, failed_answer, is_failed
from lit_hass.records.atomic import (
    ensure_writable,
    remove_leftovers,
    to_json,
    to_jsonable,
    write_json,
    write_lines,
    write_text,
)
from lit_hass.records.held_folder import HeldFolder, read_mark
from lit_hass.records.json_lines import QuestionId, read_object, read_objects
from lit_hass.records.lock import FolderLock
from lit_hass.records.questions import Question, prompts_digest, questions_digest, read_questions
from lit_hass.records.run_folder import RunFolder
from lit_hass.records.run_key import RunKey, SavedKey, claim, read_key
from lit_hass.records.shards import ShardWriter, completed_ids, merge_shards

__all__ = (
    "AnswerRecord",
    "ChoiceRecord",
    "FolderLock",
    "HeldFolder",
    "Question",
    "QuestionId",
    "RunFolder",
    "RunKey",
    "SavedKey",
    "ShardWriter",
    "TurnRecord",
    "claim",
    "completed_ids",
    "ensure_writable",
    "failed_answer",
    "is_failed",
    "iter_intact",
    "merge_shards",
    "parse_answer",
    "prompts_digest",
    "questions_digest",
    "read_answers",
    "read_key",
    "read_mark",
    "read_object",
    "read_objects",
    "read_questions",
    "remove_leftovers",
    "to_json",
    "to_jsonable",
    "write_json",
    "write_lines",
    "write_text",
)
