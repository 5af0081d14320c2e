"""`GenerationStatistics` on a run that drafts: TensorBoard, ``statistics.json`` and the table."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks import AnswerWriter, GenerationStatistics
from lit_hass.data import QuestionDataModule
from lit_hass.decoding import TreeConfig
from lit_hass.modules import GenerationModule
from lit_hass.records import RunFolder, read_answers
from lit_hass.reports import generation_statistics


class AsIfDrafted(GenerationModule):
    """Plain decoding, recorded as steps that had 2, 1, 0, 2, ... tokens accepted."""

    def configure_model(self) -> None:
        super().configure_model()
        self.draft, self.tree = "a draft", TreeConfig(11, 9, 1)
        plain = self.decoder

        class Decoder:
            forward = plain.forward

            def generate(self, *args, **kwargs):
                return [self.marked(g) for g in plain.generate(*args, **kwargs)]

            def marked(self, generation):
                accepted, left = [], len(generation.output_ids) - 1
                while left > 0:
                    accepted.append(2 - len(accepted) % 3)
                    left -= accepted[-1] + 1
                return replace(generation, accept_lengths=accepted, steps=len(accepted))

        self.decoder = Decoder()


@pytest.mark.parametrize("kind", [AsIfDrafted, GenerationModule])
def test_acceptance_is_logged_where_there_is_any(kind, tiny_base: Path, tmp_path: Path, capsys) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join(json.dumps({"question_id": i, "turns": [f"<td>{i}</td>"]}) for i in range(3)))
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        logger=TensorBoardLogger(tmp_path, "run", 0, default_hp_metric=False),
        callbacks=[AnswerWriter(), GenerationStatistics(samples=0)],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    module = kind(str(tiny_base), max_new_tokens=8, warmup=0)
    trainer.predict(module, datamodule=QuestionDataModule(str(path)), return_predictions=False)
    folder = RunFolder(tmp_path / "run" / "version_0")
    written = json.loads(folder.statistics.read_text(encoding="utf-8"))
    board = EventAccumulator(str(folder.path)).Reload()
    table = capsys.readouterr().out
    if kind is GenerationModule:
        assert written["acceptance"] is None and "acceptance" not in table
        assert not any("acceptance" in tag for tag in board.Tags()["scalars"])
        return
    answers = read_answers(folder.answers)
    expected = generation_statistics(answers, nodes_per_step=10)["acceptance"]
    assert written["acceptance"] == expected and expected["steps"] > 3
    assert written["acceptance"]["nodes_per_step"] == 10 and 0 < expected["node_acceptance_rate"] < 1
    (summary,) = board.Scalars("summary/acceptance_length")
    assert summary.value == pytest.approx(expected["micro"], rel=1e-6)
    each = [event.value for event in board.Scalars("predict/acceptance_length")]
    steps = [answer["choices"][0]["accept_length"] for answer in answers]
    assert each == pytest.approx([sum(a) / len(a) + 1 for a in steps], rel=1e-6)
    assert f"{expected['micro']:.2f} tokens a step" in " ".join(table.split())
    assert "answers/accept_length" in board.Tags()["histograms"]
