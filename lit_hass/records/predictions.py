"""Generated rationales on their way: every one in ``predictions.jsonl``, the ones worth training on beside it.

As with answers (`lit_hass.records.shards`), each rank appends to a shard of its own, and one rank merges them when
every question is done; a folder that was killed at any moment is read back whole.
"""

import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from lit_hass.errors import RunError, UserError
from lit_hass.records.answer_files import iter_intact
from lit_hass.records.atomic import sync_folder, to_json, write_lines, write_text
from lit_hass.records.json_lines import read_objects
from lit_hass.records.shards import ShardWriter

log = logging.getLogger(__name__)

#: Ends a block of ``correct_data.txt``.
END_OF_TEXT = "<|end_of_text|>"

_NAME = "predictions"
_SHARD = re.compile(rf"{_NAME}\.rank(\d+)\.jsonl")


@dataclass(frozen=True)
class Prediction:
    """One question, what a model made of it, and whether that is right.

    Attributes:
        id: of the question.
        iter: which iteration of the loop the model is of; 0 is the base.
        prompt: the question without shots and without a hint: what is trained on.
        completion: the rationale and the answer, up to the end or to where the model began another question.
        answer: the label that it names, strictly read; None where it names none.
        loose: the label by the original scripts' reading; decides nothing.
        key: the right label.
        correct: whether ``answer`` is ``key``.
        hinted: whether the prompt told the right answer; such a prediction is no answer of the model's.
        prompt_tokens: length of the prompt as it was fed, shots and hint included.
        gen_tokens: length of the completion, with the token or text that ended it.
        cut: whether the limit ended it.
        seconds: wall time of its batch divided by the batch's rows.
    """

    id: str
    iter: int
    prompt: str
    completion: str
    answer: str | None
    loose: str | None
    key: str
    correct: bool
    hinted: bool
    prompt_tokens: int
    gen_tokens: int
    cut: bool
    seconds: float

    @property
    def kept(self) -> bool:
        """Whether it is worth training on: right, and not cut."""
        return self.correct and not self.cut

    def to_dict(self) -> dict[str, Any]:
        """Its line of ``predictions.jsonl``."""
        return asdict(self)


_OPTIONAL = {"answer", "loose"}
_TYPES = {
    **dict.fromkeys(("id", "prompt", "completion", "answer", "loose", "key"), (str,)),
    **dict.fromkeys(("iter", "prompt_tokens", "gen_tokens"), (int,)),
    **dict.fromkeys(("correct", "hinted", "cut"), (bool,)),
    "seconds": (int, float),
}


def parse_prediction(obj: Mapping[str, Any]) -> Prediction:
    """Check one line and give it its type; unknown keys are passed over.

    Raises:
        ValueError: the object is no prediction; the message is the cause.
    """
    values: dict[str, Any] = {}
    for field in fields(Prediction):
        value = obj.get(field.name)
        is_number = isinstance(value, bool) and bool not in _TYPES[field.name]
        if (value is None and field.name not in _OPTIONAL) or is_number:
            raise ValueError(f"{field.name} is missing or has the wrong type")
        if value is not None and not isinstance(value, _TYPES[field.name]):
            raise ValueError(f"{field.name} has the wrong type")
        values[field.name] = value
    return Prediction(**values)


class PredictionFolder:
    """The folder of one pass over the questions. Making the object touches nothing on disk.

    Args:
        path: the folder, there or not.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Name the folder."""
        self.path = Path(path)

    @property
    def predictions(self) -> Path:
        """All predictions, in the order of the questions."""
        return self.path / "predictions.jsonl"

    @property
    def correct(self) -> Path:
        """Those worth training on, same keys."""
        return self.path / "correct.jsonl"

    @property
    def correct_data(self) -> Path:
        """The same in the original scripts' text format."""
        return self.path / "correct_data.txt"

    @property
    def metrics(self) -> Path:
        """Accuracy, rates and lengths of the pass."""
        return self.path / "metrics.json"

    def shards(self) -> list[Path]:
        """The shards that are there, whatever number of ranks wrote them, by rank."""
        if not self.path.is_dir():
            return []
        found = [(int(m[1]), p) for p in self.path.iterdir() if (m := _SHARD.fullmatch(p.name))]
        return [path for _, path in sorted(found)]

    def files(self) -> list[Path]:
        """All files of a pass, there or not."""
        return [self.predictions, self.correct, self.correct_data, self.metrics, *self.shards()]

    @property
    def is_finished(self) -> bool:
        """Whether the pass was merged and nothing is left beside the merged file."""
        return self.predictions.is_file() and not self.shards()

    def writer(self, rank: int) -> ShardWriter:
        """What appends one rank's predictions; see `ShardWriter`."""
        return ShardWriter(self.path, rank, _NAME, parse_prediction)

    def completed(self) -> dict[str, Prediction]:
        """Everything that was predicted here so far, by id."""
        found: dict[str, Prediction] = {}
        shards = self.shards()
        merged = [parse_prediction(obj) for _, obj in self._lines()] if self.predictions.exists() else []
        for one in merged:
            found[one.id] = one
        for shard in shards:
            for obj in iter_intact(shard, parse_prediction):  # type: ignore[arg-type]
                # What two ranks predicted, one before a kill and one after, is the same.
                found.setdefault(obj["id"], parse_prediction(obj))
        return found

    def read(self) -> list[Prediction]:
        """The merged predictions.

        Raises:
            UserError: the file is not there or broken; names file and line.
        """
        return [parse_prediction(obj) for _, obj in self._lines()]

    def _lines(self) -> Iterable[tuple[int, dict[str, Any]]]:
        for number, obj in read_objects(self.predictions, "prediction file"):
            try:
                parse_prediction(obj)
            except ValueError as error:
                raise UserError(f"{self.predictions}:{number}: {error}") from error
            yield number, obj

    def merge(self, order: Sequence[str]) -> list[Prediction]:
        """Merge all shards and write what is kept beside; for rank 0, after all ranks have closed theirs.

        Args:
            order: the ids of all questions, in the order wanted.

        Raises:
            RunError: questions are missing, or predictions belong to no question; everything is left as it is.
        """
        found = self.completed()
        missing = [key for key in order if key not in found]
        foreign = sorted(found.keys() - set(order))
        for ids, cause in ((missing, "questions missing"), (foreign, "predictions of questions not in this run")):
            if ids:
                raise RunError(f"{self.path}: {len(ids)} of {len(order)} {cause} (such as {ids[0]!r}); run it again")
        predictions = [found[key] for key in order]
        write_lines(self.predictions, (to_json(one.to_dict()) for one in predictions))
        write_kept(self, kept_of(predictions))
        for shard in self.shards():
            shard.unlink(missing_ok=True)
        sync_folder(self.path)
        return predictions


def kept_of(*passes: Iterable[Prediction]) -> list[Prediction]:
    """What is worth training on in one or several passes: one prediction per question, that of the first pass first."""
    kept: dict[str, Prediction] = {}
    for predictions in passes:
        for one in predictions:
            if one.kept:
                kept.setdefault(one.id, one)
    return list(kept.values())


def write_kept(folder: PredictionFolder, kept: Sequence[Prediction]) -> int:
    """Write ``correct.jsonl`` and ``correct_data.txt``, whole and anew.

    Returns:
        how many blocks the text file lacks, because their text holds its delimiter; said in a warning, too.
    """
    write_lines(folder.correct, (to_json(one.to_dict()) for one in kept))
    blocks = [one.prompt + one.completion for one in kept]
    whole = [block for block in blocks if END_OF_TEXT not in block]
    write_text(folder.correct_data, "".join(f"{block}{END_OF_TEXT}\n\n" for block in whole))
    lost = len(blocks) - len(whole)
    if lost:
        log.warning(
            "%s lacks %d of %d answers, whose text holds %s; %s has them",
            folder.correct_data, lost, len(blocks), END_OF_TEXT, folder.correct.name,
        )  # fmt: skip
    return lost
