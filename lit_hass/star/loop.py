"""``lit-hass star``: the loop, one folder per iteration."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger

from lit_hass.errors import EXIT_OK, RunError, UserError
from lit_hass.logs import quiet_libraries
from lit_hass.models import context_of_run
from lit_hass.records import HeldFolder, claim, read_object, to_jsonable, write_json, write_text
from lit_hass.records.predictions import Prediction, PredictionFolder, kept_of, write_kept
from lit_hass.reports.rationale_statistics import rates, rationale_summary
from lit_hass.star.passes import on_first_rank, predict_pass, train_on
from lit_hass.star.settings import Settings
from lit_hass.tree_arguments import check_tree_arguments

log = logging.getLogger(__name__)

#: Written last into an iteration's folder: its model is trained.
DONE = "DONE"


def star(args: list[str]) -> int:
    """Run the verb with its arguments; returns the exit status.

    Raises:
        UserError: arguments, files or a folder that cannot be used.
        RunError: nothing was answered correctly, or a pass or a training failed.
    """
    quiet_libraries()
    check_tree_arguments(args)
    settings = Settings(args)
    key = _check(settings)
    if not on_first_rank():
        _run(settings)
        return EXIT_OK
    with HeldFolder(settings.out, "star", "name another --out").take(resumes=True) as held:
        claim(settings.out, key, settings.out.glob("iter_*"))
        write_text(settings.out / "config.yaml", settings.yaml())
        _run(settings)
        held.finish()
    return EXIT_OK


def _check(settings: Settings) -> dict[str, Any]:
    """Refuse what cannot work before anything is made; returns the settings that decide the loop's results."""
    module = settings.module(settings.base, 0)
    module.check()
    train, validation = settings.data("train"), settings.data("validation")
    for data in (train, validation):
        data.check(module)
    if settings.hints:
        settings.all_hinted().check(module)
    shared = {q.stem for q in train.questions} & {q.stem for q in validation.questions}
    if shared:
        raise UserError(
            f"{len(shared)} questions stand in both the training and the validation file (such as {min(shared)!r}): "
            "what is trained on is no test"
        )
    model = module.resume_settings()
    del model["iteration"]
    return {
        "model": model,
        "train": train.resume_settings(),
        "validation": validation.resume_settings(),
        "seed": settings.seed,
        "restart": settings.restart,
        "keep": settings.keep,
        "hints": settings.all_hinted().resume_settings() if settings.hints else None,
        # What the answers of a half-finished training would be otherwise.
        "fit": {k: v for k, v in vars(settings.fit).items() if k != "checkpoint_every"},
        "precision": settings.trainer.precision,
    }


def _run(settings: Settings) -> None:
    for iteration in range(settings.iterations + 1):
        folder = settings.out / f"iter_{iteration}"
        if (folder / DONE).exists() or (iteration == settings.iterations and _is_measured(folder)):
            continue
        base = settings.base if iteration == 0 else str(settings.out / f"iter_{iteration - 1}" / "checkpoint")
        module = settings.module(base, iteration)
        _, validated = predict_pass(settings, folder / "validation", module, settings.data("validation"))
        record: dict[str, Any] = {"iteration": iteration, "validation": validated}
        if on_first_rank():
            for line in rationale_summary(validated)[:1]:
                print(f"iteration {iteration}: {line}", flush=True)
        if iteration < settings.iterations:
            kept = _generate(settings, folder, base, iteration, record)
            if on_first_rank():
                write_kept(PredictionFolder(folder), kept)
            start = settings.base if settings.restart == "base" else base
            record["fit"] = train_on(settings, folder, start, iteration, _longest(settings))
        if on_first_rank():
            _finish(settings, folder, record)
    if on_first_rank():
        _write_summary(settings.out)
        print("\n".join(loop_summary(settings.out)), flush=True)


def _is_measured(folder: Path) -> bool:
    """Whether the last model's accuracy is known already, and need not be shown in TensorBoard once more."""
    return (folder / "metrics.json").exists() and PredictionFolder(folder / "validation").is_finished


def _generate(settings: Settings, folder: Path, base: str, iteration: int, record: dict[str, Any]) -> list[Prediction]:
    """Answer the training questions, the wrong ones again with a hint; returns what is to be trained on."""
    data = settings.data("train")
    first, record["train"] = predict_pass(settings, folder / "train", settings.module(base, iteration), data)
    passes = [first]
    wrong = frozenset(one.id for one in first if not one.correct)
    # None may be left: the examples answer them, or their prompts are too long with a hint.
    if settings.hints and wrong & {question.id for question in settings.all_hinted().questions}:
        data = settings.hinted_data(wrong)
        hinted, record["hinted"] = predict_pass(settings, folder / "hinted", settings.module(base, iteration), data)
        passes.append(hinted)
    kept = kept_of(*passes)
    record["kept"] = len(kept)
    if not kept:
        raise RunError(
            f"iteration {iteration}: none of {len(first)} answers is correct and whole ({rates(record['train'])}), so "
            f"there is nothing to train on; {folder / 'train' / 'predictions.jsonl'} shows what was said"
        )
    if settings.keep == "unfiltered":
        kept = _unfiltered(first, len(kept), settings.seed + iteration)
    record["kept_hinted_share"] = sum(one.hinted for one in kept) / len(kept)
    record["kept_correct_share"] = sum(one.correct for one in kept) / len(kept)
    return kept


def _unfiltered(predictions: Sequence[Prediction], count: int, seed: int) -> list[Prediction]:
    """The control: as many answers as would be kept, drawn whether they are right or not."""
    whole = [one for one in predictions if not one.cut]

    def place(one: Prediction) -> bytes:
        return hashlib.sha256(f"{seed}\0{one.id}".encode()).digest()

    chosen = {one.id for one in sorted(whole, key=place)[:count]}
    return [one for one in whole if one.id in chosen]


def _longest(settings: Settings) -> int:
    """Tokens of a completion and its prompt that are trained on: no more than can be asked."""
    limit = settings.namespace.data.init_args.max_length
    return limit or context_of_run(settings.module(settings.base, 0)) or 2**31


def _finish(settings: Settings, folder: Path, record: dict[str, Any]) -> None:
    """Write the iteration's figures, show them in TensorBoard, and mark it as done once its model is there."""
    board = TensorBoardLogger(settings.out, name="tensorboard", version="", default_hp_metric=False)
    board.log_metrics(_scalars(to_jsonable(record)), step=record["iteration"])
    board.finalize("success")
    write_json(folder / "metrics.json", record)
    if "fit" in record:
        write_text(folder / DONE, "")
        (folder / "training.ckpt").unlink(missing_ok=True)
        log.info(
            "iteration %d: trained on %d answers for %d steps; %s",
            record["iteration"], record["kept"], record["fit"]["steps"], folder / "checkpoint",
        )  # fmt: skip
    _write_summary(settings.out)


def _scalars(record: dict[str, Any], prefix: str = "star") -> dict[str, float]:
    found: dict[str, float] = {}
    for name, value in record.items():
        if isinstance(value, dict):
            found |= _scalars(value, f"{prefix}/{name}")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[f"{prefix}/{name}"] = float(value)
    return found


def loop_summary(out: Path) -> list[str]:
    """The figures of all iterations as a table: a line each, then what was gained.

    Args:
        out: the loop's folder, with its ``star.json``.
    """
    rows = (read_object(out / "star.json") or {})["iterations"]
    lines = ["iteration  validation (95 %)             training  kept  hinted among them  trained steps  loss"]
    for row in rows:
        found = row["validation"]
        low, high = found["interval"]
        line = f"{row['iteration']:>9}  {found['accuracy']:6.1%} ({low:.1%} to {high:.1%})".ljust(40)
        if "fit" in row:
            line += f"{row['train']['accuracy']:8.1%} {row['kept']:>5}  {row['kept_hinted_share']:>17.1%}"
            line += f"  {row['fit']['steps']:>13}  {_loss(row['fit']['loss'])}"
        lines.append(line.rstrip())
    return [*lines, f"{out / 'star.json'} has all figures, {out / 'tensorboard'} the curves"]


def _loss(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"


def _write_summary(out: Path) -> None:
    """``star.json``: the figures of all iterations so far."""
    folders = sorted(out.glob("iter_*"), key=lambda path: int(path.name.removeprefix("iter_")))
    files = [folder / "metrics.json" for folder in folders if (folder / "metrics.json").exists()]
    write_json(out / "star.json", {"iterations": [read_object(file) for file in files]})
