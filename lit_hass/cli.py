"""The verbs ``evaluate``, ``fit``, ``validate``, ``test`` and ``predict``: a LightningCLI over modules and data."""

from __future__ import annotations

import logging
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import torch
from lightning.fabric.plugins.collectives.torch_collective import default_pg_timeout
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException

# Short class names on the command line resolve for classes that are already imported.
import callbacks  # noqa: F401
from callbacks.answer_writer import AnswerWriter
from callbacks.correct_data_writer import CorrectDataWriter
from callbacks.shard_writing import ShardWriting
from lit_hass import __version__, data, modules
from lit_hass.checkpoints import AtomicCheckpointIO
from lit_hass.configured import check_verb, option_value, with_hint
from lit_hass.errors import EXIT_OK, RunError, UserError
from lit_hass.logs import quiet_libraries
from lit_hass.models.torch_files import check_lightning_checkpoint
from lit_hass.records import HeldFolder
from lit_hass.records.held_folder import PROBE
from lit_hass.trainer_settings import check_limits, prepare_settings, trainer_error
from lit_hass.tree_arguments import check_tree_arguments

log = logging.getLogger(__name__)

#: What ``evaluate`` begins with; in the package, so that it works from any directory.
EVALUATE = Path(__file__).parent / "evaluate.yaml"

for _package in (data, modules):
    for _name in _package.__all__:
        getattr(_package, _name)

#: How long a rank waits for the others to appear: one of them may have died on its way.
MEETING_TIMEOUT = timedelta(minutes=10)
#: How long it waits once they have met: questions differ in length, so one rank may be done hours before another.
RANK_TIMEOUT = timedelta(days=7)


class _Parser(LightningArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise _user_error(message, ex) from ex


def _user_error(message: str, error: BaseException | None) -> UserError:
    """The reason inside jsonargparse's report, which wraps one error per level and per alternative of a type."""
    seen = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, UserError):
            return error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    noise = ("Subtypes:", "Given value", "Does not validate", "Errors:", "Expected a <class 'NoneType'>")
    lines = [line.strip(" -") for line in message.splitlines()]
    return UserError(" ".join(line for line in lines if line and not line.startswith(noise))[:600])


class _Patience(Callback):
    """From the moment that all ranks have met, they wait for each other as long as a run may take."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Lengthen the timeout of the process group, if there is one."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.distributed_c10d._set_pg_timeout(RANK_TIMEOUT)


class LitHassCLI(LightningCLI):
    """LightningCLI that checks a run's input before it touches a model, a logger or a second process."""

    def __init__(self, args: list[str], verb: str | None = None) -> None:
        """Parse ``args`` (Lightning's verb first) and run the verb, which is ``verb`` to the user."""
        self._verb = verb or args[0]
        self._held: HeldFolder | None = None
        super().__init__(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            parser_class=_Parser,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            trainer_defaults={
                # Our DataModules share out their samples themselves, each exactly once.
                "use_distributed_sampler": False,
                "logger": {
                    "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
                    "init_args": {"save_dir": "logs", "name": "lit_hass", "default_hp_metric": False},
                },
            },
            save_config_kwargs={"overwrite": True},
            parser_kwargs={
                "prog": "lit-hass",
                "version": __version__,
                "default_env": True,
                "env_prefix": "LIT_HASS",
            },
            args=args,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The verbs and the Trainer's parameters that are not options."""
        verbs = LightningCLI.subcommands()
        # Answers are written batch by batch; keeping them all in memory as well helps nobody.
        verbs["predict"] = verbs["predict"] | {"return_predictions"}
        return verbs

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse; a refusal says what to type instead."""
        try:
            super().parse_arguments(parser, args)
        except UserError as error:
            raise with_hint(error, args[0], args[1:]) from error

    def _parse_ckpt_path(self) -> None:
        """Take the checkpoint's hyperparameters, once it is known to be a checkpoint."""
        path = self.config.get(f"{self.config.get('subcommand')}.ckpt_path")
        if path and Path(path).is_file():
            check_lightning_checkpoint(Path(path))
        super()._parse_ckpt_path()

    def before_instantiate_classes(self) -> None:
        """Refuse or complete the Trainer's settings."""
        prepare_settings(str(self.subcommand), self.config[self.subcommand].trainer)

    def instantiate_classes(self) -> None:
        """Make module, DataModule and Trainer; what their constructors refuse is said as they say it."""
        try:
            super().instantiate_classes()
        except (ValueError, TypeError) as error:
            if type(error) in (ValueError, TypeError) and "Does not validate" in str(error):
                raise _user_error(str(error), error) from error
            raise

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make the Trainer; its checkpoints are atomic, and ranks that have met wait as long as a run may take.

        A timeout that the user gave the strategy stays, for both.

        Raises:
            UserError: settings that Lightning or this machine cannot serve.
        """
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except (MisconfigurationException, ValueError, TypeError) as error:
            raise trainer_error(error, self.config[self.subcommand].trainer) from error
        if isinstance(trainer.strategy, DDPStrategy) and trainer.strategy._timeout == default_pg_timeout:
            trainer.strategy._timeout = MEETING_TIMEOUT
            trainer.callbacks.insert(0, _Patience())  # type: ignore[attr-defined]
        if trainer.fast_dev_run:  # type: ignore[attr-defined]  # a trial leaves nothing, and these would save their last
            kept = [one for one in trainer.callbacks if not isinstance(one, Checkpoint)]  # type: ignore[attr-defined]
            trainer.callbacks = kept  # type: ignore[attr-defined]
        if trainer.strategy._checkpoint_io is None:  # none of the user's own
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        # Asked now: a logger that is asked for its folder has chosen one.
        self._named, self._other_folder = _names_its_folder(trainer)
        return trainer

    def _run_subcommand(self, subcommand: str) -> None:
        """Run a verb, and give its folder back however it ends."""
        try:
            super()._run_subcommand(subcommand)
        except RuntimeError as error:
            if not _never_met(error):
                raise
            timeout = getattr(self.trainer.strategy, "_timeout", None) or MEETING_TIMEOUT
            raise RunError(
                f"the processes of this run did not meet within {timeout.total_seconds() / 60:g} minutes: one of them "
                f"ended before, and what it said itself is the cause ({str(error).splitlines()[0]})"
            ) from error
        finally:
            if self._held is not None:
                self._held.release()

    def check(self) -> None:
        """Ask module, data and callbacks whether the run can begin; nothing is loaded or written for it.

        Raises:
            UserError: the first thing that cannot be used.
        """
        if hasattr(self.model, "check_trainer"):
            self.model.check_trainer(self.trainer)
        # A trial of a few batches leaves nothing.
        writes = self.trainer.is_global_zero and not self.trainer.fast_dev_run  # type: ignore[attr-defined]
        if writes:
            self._folder().check(self._resumes)
        if hasattr(self.model, "check"):
            self.model.check()
        if hasattr(self.datamodule, "check"):
            self.datamodule.check(self.model)
        _check_output_folder(self.trainer)
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if hasattr(callback, "check"):
                callback.check(self.trainer, self.model, self.datamodule)
        if writes:
            self._hold()

    def _folder(self) -> HeldFolder:
        """The run's folder, which rank 0 takes."""
        other = self._other_folder
        if self._verb == "fit" and self._named:
            other = f"--ckpt_path last (or FILE) goes on with a training; else {other}"
        return HeldFolder(self.trainer.log_dir or self.trainer.default_root_dir, self._verb, other)

    @property
    def _resumes(self) -> bool:
        # What predict has done it does not do again; a training goes on only where it is told from which checkpoint.
        return self.subcommand == "predict" or self.subcommand == "fit" and bool(self.config.fit.get("ckpt_path"))

    def _hold(self) -> None:
        """Take the run's folder: two commands never write one, and no run writes over what is none's."""
        while self._held is None:
            try:
                self._held = self._folder().take(self._resumes, new=not self._named)
            except FileExistsError:
                self.trainer.logger._version = None  # type: ignore[union-attr]  # another command has just taken it
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, ShardWriting):
                callback.held = self._held.folder

    def before_fit(self) -> None:
        """Check the input."""
        checkpoint = self.config.fit.get("ckpt_path")
        if checkpoint:
            _check_checkpoint(str(checkpoint), self.trainer)
        self.check()

    def before_validate(self) -> None:
        """Check the input."""
        checkpoint = self.config[self.subcommand].get("ckpt_path")
        if checkpoint:
            if self.subcommand != "validate":
                raise UserError(
                    f"{self.subcommand} takes its weights from --model.base (fit exports them as a folder), not from "
                    f"--ckpt_path {checkpoint}"
                )
            _check_checkpoint(str(checkpoint), self.trainer)
        check_limits(str(self.subcommand), self.trainer)
        self.check()

    before_test = before_validate

    def before_predict(self) -> None:
        """Check the input, and that what is predicted will be kept."""
        _check_writers(self.trainer, self.model)
        self.before_validate()

    def _done(self) -> None:
        """Note that the run came to its end (rank 0)."""
        if self._held is None:
            return
        self._held.finish()
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if hasattr(callback, "finish"):
                callback.finish()

    def after_fit(self) -> None:
        """Note that the run came to its end."""
        self._done()

    after_validate = after_test = after_fit

    def predict(self, model: LightningModule, **kwargs: Any) -> None:
        """Run `Trainer.predict` without keeping its outputs."""
        self.trainer.predict(model, return_predictions=False, **kwargs)

    def after_predict(self) -> None:
        """Report a run without an end, and questions that failed: the run is complete, and not a success."""
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if not getattr(callback, "merged", True):
                raise RunError("Lightning ended the run before any question was asked (limit_predict_batches 0?)")
            failed = getattr(callback, "failed_ids", None)
            if failed:
                shown = ", ".join(map(repr, failed[:5])) + (", ..." if len(failed) > 5 else "")
                count = "1 question" if len(failed) == 1 else f"{len(failed)} questions"
                raise RunError(
                    f"{count} failed ({shown}); answers.jsonl says why, and running again with this version tries again"
                )
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if hasattr(callback, "verdict"):
                callback.verdict()
        self._done()


def _never_met(error: RuntimeError) -> bool:
    """Whether an error is that of processes which wait for each other, and have no process group yet."""
    distributed = torch.distributed
    return distributed.is_available() and not distributed.is_initialized() and isinstance(error, distributed.DistError)


def _check_checkpoint(path: str, trainer: Trainer) -> None:
    """Refuse a checkpoint that is not there; Lightning would begin anew for ``last``, and build a model first else."""
    if path == "last":
        places = [getattr(callback, "dirpath", None) for callback in trainer.checkpoint_callbacks]
        folders = [Path(place) for place in places if place]
        folder = getattr(trainer.logger, "log_dir", None)
        folders += [Path(folder) / "checkpoints"] if folder else []
        if not any(found for place in folders for found in place.glob("last*.ckpt")):
            raise UserError(
                f"no last checkpoint in {', '.join(map(str, folders)) or 'any folder'}; name the run's version too "
                "(--trainer.logger.init_args.version N --ckpt_path last), or the checkpoint's own path"
            )
    elif path not in ("best", "hpc", "registry") and "://" not in path and not Path(path).exists():
        raise UserError(f"{path}: no such checkpoint")


def _check_writers(trainer: Trainer, module: LightningModule) -> None:
    """Refuse a predict run whose answers, or those of one of its methods, nobody would keep."""
    written: set[str | None] = set()
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, AnswerWriter):
            written.add(callback.method)
        elif isinstance(callback, CorrectDataWriter) or _is_foreign_writer(callback):
            return
    for method in getattr(module, "methods", (None,)):
        if method not in written:
            which = "" if method is None else f" with method {method}"
            raise UserError(
                f"nothing would keep the answers: add callbacks.AnswerWriter{which} to trainer.callbacks "
                "(callbacks.CorrectDataWriter for a RationaleModule)"
            )


def _is_foreign_writer(callback: Callback) -> bool:
    """Whether a callback of somebody else takes what each batch gives."""
    kind = type(callback)
    ours = kind.__module__.partition(".")[0] in ("callbacks", "lit_hass", "lightning")
    return not ours and kind.on_predict_batch_end is not Callback.on_predict_batch_end


def _names_its_folder(trainer: Trainer) -> tuple[bool, str]:
    """Whether the command line decides which folder the run writes into, and how another one is named."""
    logger: Any = trainer.logger
    if logger is None:
        return True, "name a new or empty one: --trainer.default_root_dir FOLDER"
    if isinstance(logger, TensorBoardLogger | CSVLogger):
        named = logger._version is not None
        return named, "name another --trainer.logger.init_args.version, or none, which begins a new one"
    return True, "name a new or empty one: --trainer.logger.init_args.save_dir FOLDER"


def _check_output_folder(trainer: Trainer) -> None:
    """Refuse a place where no folder can be made, before anything is made."""
    for logger in trainer.loggers:
        place = Path(getattr(logger, "log_dir", None) or logger.save_dir or trainer.default_root_dir).absolute()
        while not place.exists():
            place = place.parent
        try:
            # Asking for permissions is not enough: root has them all, and a file system may still refuse.
            with tempfile.TemporaryDirectory(prefix=PROBE, dir=place):
                pass
        except OSError as error:
            raise UserError(f"cannot write into {logger.save_dir}: {place}: {error.strerror or error}") from error


def main(args: list[str]) -> int:
    """Run a LightningCLI verb; ``args[0]`` is the verb.

    Raises:
        UserError: input or settings that cannot be used.
        RunError: the run, or one of its samples, failed.
    """
    quiet_libraries()
    verb = args[0]
    check_verb(verb, args[1:])
    check_tree_arguments(args)
    if verb == "evaluate":  # a predict run of a module of its own
        args = ["predict", "-c", str(EVALUATE), *args[1:]]
    try:
        LitHassCLI(args, verb)
    except MisconfigurationException as error:  # settings that Lightning refuses once the run begins
        raise UserError(" ".join(str(error).split())) from error
    except RuntimeError as error:
        if not str(error).startswith("Error(s) in loading state_dict"):
            raise
        path = option_value(args, "--ckpt_path")
        raise UserError(f"{path}: a checkpoint of another model: {' '.join(str(error).split())}") from error
    return EXIT_OK
