"""What ``lit-hass star`` can be told."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from jsonargparse import ActionConfigFile, ArgumentParser, Namespace

from lit_hass.configured import with_hint
from lit_hass.data.commonsense_qa_datamodule import CommonsenseQADataModule
from lit_hass.errors import UserError
from lit_hass.models import check_shipped_draft, resolve_draft
from lit_hass.modules.rationale import RationaleModule

Restart = Literal["base", "previous"]
Keep = Literal["correct", "unfiltered"]
Precision = Literal["64-true", "32-true", "16-true", "bf16-true", "16-mixed", "bf16-mixed"]


@dataclass
class FitSettings:
    """How each iteration is trained (AdamW, the loss on completions only).

    Args:
        steps: optimiser steps of the first iteration.
        growth: each further iteration has so many times the steps of the one before (the paper: 1.2).
        lr: highest learning rate.
        warmup_steps: of the learning rate; a cosine follows.
        final_lr: share of ``lr`` at the end.
        weight_decay: on matrices.
        batch_size: completions per step on each device.
        checkpoint_every: steps between checkpoints, from which a killed fit goes on.
        dtype: of the weights on disk.
    """

    steps: int = 200
    growth: float = 1.0
    lr: float = 1e-5
    warmup_steps: int = 20
    final_lr: float = 0.05
    weight_decay: float = 0.05
    batch_size: int = 8
    checkpoint_every: int = 100
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        for name in ("steps", "batch_size", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise UserError(f"fit.{name} must be at least 1, found {getattr(self, name)}")
        if self.growth <= 0 or self.lr < 0:
            raise UserError(f"fit.growth must be positive and fit.lr not negative, found {self.growth} and {self.lr}")

    def steps_of(self, iteration: int) -> int:
        """Steps of the training that follows on the pass of this iteration (0 is the base's)."""
        return max(1, round(self.steps * self.growth**iteration))


@dataclass
class TrainerSettings:
    """Where the passes and the trainings run, as in Lightning's Trainer.

    Args:
        accelerator: such as ``cpu``, ``gpu`` or ``auto``.
        devices: how many.
        strategy: ``auto`` or ``ddp``.
        precision: of the training.
    """

    accelerator: str = "auto"
    devices: int = 1
    strategy: str = "auto"
    precision: Precision = "32-true"

    def __post_init__(self) -> None:
        """Refuse a strategy whose processes share memory."""
        if "spawn" in self.strategy:
            raise UserError("trainer.strategy ddp_spawn is refused: use ddp")


class _Parser(ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        while ex is not None and not isinstance(ex, UserError):
            ex = ex.__cause__ or ex.__context__  # type: ignore[assignment]
        raise ex or UserError(" ".join(message.split())[:600])


def make_parser() -> ArgumentParser:
    """The parser of the verb's arguments."""
    parser = _Parser(
        prog="lit-hass star",
        description="Generate rationales, keep the correct ones, train on them, and again (STaR).",
    )
    parser.add_argument("-c", "--config", action=ActionConfigFile, help="a YAML file, any number of times")
    parser.add_argument("--out", type=str, default="logs/star", help="the loop's folder; naming it again resumes it")
    parser.add_argument("--iterations", type=int, default=3, help="how often to train")
    parser.add_argument("--seed", type=int, default=0, help="of sampling, of the order of training, of the control")
    parser.add_argument(
        "--restart", type=Restart, default="base", help="which weights each training begins with (the paper: base)"
    )
    parser.add_argument(
        "--keep", type=Keep, default="correct", help="unfiltered is the control: as many answers, right or wrong"
    )
    parser.add_argument("--hints", type=bool, default=True, help="ask again with a hint what was answered wrongly")
    parser.add_argument(
        "--validation", type=str | None, default=None, help="question file to validate on; null takes a share of data"
    )
    parser.add_class_arguments(FitSettings, "fit")
    parser.add_class_arguments(TrainerSettings, "trainer")
    for kind, name in ((RationaleModule, "model"), (CommonsenseQADataModule, "data")):
        parser.add_subclass_arguments(kind, name, skip=_OURS[name])
        parser.set_defaults({name: {"class_path": f"{kind.__module__}.{kind.__name__}"}})
    return parser


#: Parameters that the loop sets itself.
_OURS: dict[str, set[str]] = {"model": {"iteration", "seed"}, "data": {"hints", "part"}}


class Settings:
    """The parsed arguments, and what is made of them.

    Args:
        args: the command line behind the verb.

    Raises:
        UserError: an argument that cannot be used.
    """

    def __init__(self, args: list[str]) -> None:
        """Parse."""
        self.parser = make_parser()
        try:
            self.namespace: Namespace = self.parser.parse_args(args)
        except UserError as error:
            raise with_hint(error, "star", args) from error
        space = self.namespace
        if space.iterations < 1:
            raise UserError(f"--iterations must be at least 1, found {space.iterations}")
        self.out = Path(space.out).expanduser()
        self.iterations: int = space.iterations
        self.seed: int = space.seed
        self.restart: Restart = space.restart
        self.keep: Keep = space.keep
        self.hints: bool = space.hints
        self.validation: str | None = space.validation
        made = self.parser.instantiate(space)
        self.fit: FitSettings = made.fit
        self.trainer: TrainerSettings = made.trainer
        self.base: str = made.model.base
        # The draft and the tree of the base are those of what is trained from it, whose folders have other names.
        self._pair: dict[str, Any] = {}
        if made.model.draft is not None:
            check_shipped_draft(self.base, made.model.draft)
            self._pair = {"draft": str(resolve_draft(made.model.draft)), "tree": asdict(made.model.tree)}
        self._data: dict[str, CommonsenseQADataModule] = {}

    def module(self, base: str, iteration: int) -> RationaleModule:
        """The module of one pass."""
        made = self._make("model", base=base, **self._pair)
        made.iteration, made.seed = iteration, self.seed
        return made

    def data(self, part: Literal["train", "validation"]) -> CommonsenseQADataModule:
        """The questions of an unhinted pass: one object, read once, for all iterations."""
        if part not in self._data:
            data: CommonsenseQADataModule = self._make("data")
            if self.validation is None:
                data.part = part
            elif part == "validation":
                data.question_name = self.validation
            self._data[part] = data
        return self._data[part]

    def hinted_data(self, only: frozenset[str] | None = None) -> CommonsenseQADataModule:
        """The training questions with their answers as hints; ``only`` those with these ids (None: all)."""
        data: CommonsenseQADataModule = self._make("data")
        data.part = self.data("train").part
        data.only = only
        data.ask_with_hints()
        return data

    def all_hinted(self) -> CommonsenseQADataModule:
        """All training questions with hints: one object, read once, which tells what can be asked so."""
        if "hinted" not in self._data:
            self._data["hinted"] = self.hinted_data()
        return self._data["hinted"]

    def _make(self, name: str, **changed: Any) -> Any:
        space = self.namespace[name].clone()
        for key, value in changed.items():
            space.init_args[key] = value
        parser = ArgumentParser()
        kind = RationaleModule if name == "model" else CommonsenseQADataModule
        parser.add_subclass_arguments(kind, name, skip=_OURS[name])
        return parser.instantiate(parser.parse_object({name: space}))[name]

    def yaml(self) -> str:
        """All settings, as ``lit-hass star -c`` takes them."""
        return self.parser.dump(self.namespace)
