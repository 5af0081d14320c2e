"""Which module and DataModule a command line names, and what to type where they do not go with the verb."""

from __future__ import annotations

import inspect
import re
from itertools import pairwise
from typing import Any, Literal

from lightning.pytorch import LightningDataModule, LightningModule

from lit_hass import data, modules
from lit_hass.errors import UserError
from lit_hass.records.yaml_files import read_yaml
from lit_hass.verb_arguments import configuration_files

Part = Literal["model", "data"]

_PACKAGES: dict[str, Any] = {"model": modules, "data": data}
_BASES = {"model": LightningModule, "data": LightningDataModule}
#: What a module and a DataModule must have for a verb, beside the base classes' own.
_NEEDED = {
    "fit": ("training_step", "train_dataloader"),
    "validate": ("validation_step", "val_dataloader"),
    "test": ("test_step", "test_dataloader"),
    "predict": ("predict_step", "predict_dataloader"),
}
#: A configuration for each verb.
_EXAMPLES = {
    "fit": "configs/train_draft.yaml (or train_base.yaml, train_rationale.yaml)",
    "validate": "configs/train_draft.yaml (the configuration of the fit)",
    "test": "configs/perplexity.yaml",
    "predict": "configs/generate_baseline.yaml (or generate_hass.yaml, rationale.yaml)",
    "star": "configs/star.yaml",
}


def named_class(args: list[str], part: Part) -> type | None:
    """The class of the module or DataModule that files and options name last; None where they name none of ours."""
    name: object = None
    for path in configuration_files(args):
        said = read_yaml(path).get(part)
        name = (said.get("class_path", name) if isinstance(said, dict) else said) or name
    name = option_value(args, f"--{part}", f"--{part}.class_path") or name
    found = getattr(_PACKAGES[part], str(name).rpartition(".")[2], None)
    return found if isinstance(found, type) and issubclass(found, _BASES[part]) else None


def option_value(args: list[str], *options: str) -> str | None:
    """What the last of these options says, as ``--option VALUE`` or ``--option=VALUE``; None without one."""
    found = None
    for arg, following in pairwise([*args, ""]):
        option, equals, value = arg.partition("=")
        if option in options:
            found = value if equals else following
    return found


def check_verb(verb: str, args: list[str]) -> None:
    """Refuse a module or DataModule that has nothing for a verb, and say which verb is meant.

    Args:
        verb: as it was typed.
        args: everything behind it.

    Raises:
        UserError: see above.
    """
    module, loaded = named_class(args, "model"), named_class(args, "data")
    files = " and ".join(configuration_files(args)[-1:]) or "the module"
    if verb == "evaluate":
        if module is not None and not issubclass(module, modules.EvaluationModule):
            raise UserError(
                f"evaluate compares a base with its draft, and {files} names {module.__name__}: "
                f"{_way(module, loaded, args) or 'leave the module out'}"
            )
        return
    for found, base, needed in zip((module, loaded), _BASES.values(), _NEEDED[verb], strict=True):
        if found is not None and getattr(found, needed, None) is getattr(base, needed, None):
            way = _way(module, loaded, args)
            hint = f"{way}, or {verb} with" if way else f"{verb} takes"
            raise UserError(f"{found.__name__} has no {needed}, so it is not for {verb}: {hint} -c {_EXAMPLES[verb]}")


def _way(module: type | None, loaded: type | None, args: list[str]) -> str | None:
    """The command for these classes."""
    verbs = [
        verb
        for verb, needed in _NEEDED.items()
        if all(
            found is None or getattr(found, name, None) is not getattr(base, name, None)
            for found, base, name in zip((module, loaded), _BASES.values(), needed, strict=True)
        )
    ]
    files = " ".join(f"-c {path}" for path in configuration_files(args) if not path.endswith("lit_hass/evaluate.yaml"))
    return f"lit-hass {verbs[0]} {files}".rstrip() if verbs and files else None


def with_hint(error: UserError, verb: str, args: list[str]) -> UserError:
    """The parser's refusal with what to type instead."""
    message = str(error)
    if "arguments are required" in message and (named := re.findall(rf"{verb}\.(model|data)\b", message)):
        needs = " and ".join(sorted(set(named), reverse=True))
        return UserError(f"no {needs} given: {verb} needs a configuration (-c FILE), such as -c {_EXAMPLES[verb]}")
    if "unrecognized arguments" in message:
        return UserError(f"{message}; --print_config=skip_unset shows every key, and each is an option")
    if found := re.search(r"Option '([^']*)' is not accepted", message):
        return _unknown_option(found[1], verb, args) or error
    files = configuration_files(args)
    key = re.search(r'Parser key "([\w.]+)"', message)
    if files and key and not any(arg.startswith(f"--{key[1]}") for arg in args):
        return UserError(f"{message} (in {', '.join(files)})")
    return error


def _unknown_option(key: str, verb: str, args: list[str]) -> UserError | None:
    pattern = re.compile(rf"--(model|data)\.([\w.]*\.)?{re.escape(key)}(=|$)")
    typed = [arg.partition("=")[0] for arg in args if pattern.match(arg)]
    if not typed:
        files = ", ".join(configuration_files(args))
        return UserError(f"Option '{key}' is not accepted (in {files})") if files else None
    option = typed[0]
    part: Part = "model" if option.startswith("--model") else "data"
    found = named_class(args, part)
    if found is None:
        return UserError(f"{option}: nothing says of which {part}: begin with a configuration, -c {_EXAMPLES[verb]}")
    needed = _NEEDED.get(verb, _NEEDED["predict"])[part == "data"]
    owners = [
        name
        for name in _PACKAGES[part].__all__
        if isinstance(kind := getattr(_PACKAGES[part], name), type)
        and issubclass(kind, _BASES[part])
        and key in inspect.signature(kind).parameters
        and getattr(kind, needed, None) is not getattr(_BASES[part], needed, None)
    ]
    if owners:
        others = f" ({', '.join(owners[1:])} too)" if owners[1:] else ""
        hint = f"{owners[0]} has{others}: --{part} {owners[0]} {option} ..."
    else:
        hint = f"--{part}.help {found.__name__} lists its own"
    return UserError(f"{option}: {found.__name__} has no such option; {hint}")
