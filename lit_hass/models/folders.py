"""Where a base model's files are, and whether they can be a base model, before any weight is read."""

import re
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from lit_hass.errors import UserError
from lit_hass.models.gguf import PACKAGED, find_gguf, gguf_folder
from lit_hass.records.json_lines import parse_json, read_bytes

PRETRAINED = Path(__file__).resolve().parents[1] / "pretrained"
#: What transformers loads weights from, in this order.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "tekken.json")


def shipped_names() -> tuple[str, ...]:
    """Return the names of the base models that come with the package, sorted."""
    return tuple(sorted(path.parent.parent.name for path in PRETRAINED.glob("*/base/config.json")))


def resolve_base(path_or_name: str | Path) -> str:
    """Find a base model: a shipped name, else a local folder or GGUF file, else a hub id.

    A shipped name wins over a folder of the same name (write ``./name`` for the folder). A GGUF file is converted on
    first use, see `lit_hass.models.gguf`.

    Returns:
        The folder's path, or the hub id unchanged.

    Raises:
        UserError: It is none of the three.
        RunError: A GGUF file's conversion cannot be written.
    """
    name = str(path_or_name)
    if name in shipped_names():
        return str(PRETRAINED / name / "base")
    file = find_gguf(name)
    if file is not None:
        return str(gguf_folder(file))
    folder = Path(name).expanduser()
    if folder.is_dir():
        return str(folder)
    if folder.exists():
        raise UserError(f"{name} is a file; a base model is a folder with config.json and weights, or a .gguf file")
    if name.startswith((".", "~", "/")) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise UserError(f"{name}: no such folder. {_choices()}")
    return name


def check_base(path_or_name: str | Path, needs_tokenizer: bool = True) -> str:
    """Check everything about a base model that can be known without reading its weights.

    Args:
        path_or_name: As for ``load_base``.
        needs_tokenizer: Whether a local folder without tokenizer files is refused.

    Returns:
        What ``resolve_base`` returns.

    Raises:
        UserError: Something is missing, damaged, or not a decoder-only language model.
    """
    source = resolve_base(path_or_name)
    load_config(source)
    folder = Path(source)
    if folder.is_dir():
        _check_weights(folder)
        if needs_tokenizer:
            check_tokenizer_files(folder)
    return source


def load_config(path_or_name: str | Path) -> PreTrainedConfig:
    """Load and check the configuration of a base model.

    Raises:
        UserError: There is none, or it is not that of a decoder-only language model.
    """
    source = resolve_base(path_or_name)
    path = Path(source) / "config.json"
    if path.parent.is_dir():
        if not path.is_file():
            raise UserError(f"{source}: no config.json, so this is not a model folder")
        _read_json(path)
    _refuse_own_code(path)
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, StrictDataclassError) as error:
        if path.parent.is_dir():
            cause = " ".join(str(error).split())[:400]
            raise UserError(f"{path}: transformers {transformers.__version__} cannot use it: {cause}") from error
        raise UserError(
            f"{source}: neither a shipped model nor a local folder, and the hub did not give it: {_line(error)} "
            f"{_choices()} Offline (HF_HUB_OFFLINE=1) a hub model must be in the cache already."
        ) from error
    kind = config.model_type
    if config.is_encoder_decoder:
        raise UserError(f"{source}: an encoder-decoder model ({kind}); the base must be decoder-only")
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise UserError(f"{source}: {kind} is not a causal language model")
    if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False):
        raise UserError(f"{source}: an encoder ({kind}); the base must be a decoder-only language model")
    return config


def _refuse_own_code(path: Path) -> None:
    """Name a model of a kind that only the folder's own code knows; such code is never run, whatever stdin says."""
    content = _read_json(path) if path.is_file() else {}
    kind, own = content.get("model_type"), content.get("auto_map")
    if own and kind not in CONFIG_MAPPING_NAMES:
        raise UserError(
            f"{path}: a model ({kind}) that needs code of its own ({', '.join(sorted(map(str, own)))}), which is never "
            f"run here; only kinds that transformers {transformers.__version__} knows can be used"
        )


def check_tokenizer_files(folder: Path) -> None:
    """Refuse a local folder without any tokenizer file."""
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise UserError(f"{folder}: no tokenizer; looked for {', '.join(TOKENIZER_FILES)}")


def find_weights(folder: Path) -> tuple[Path, list[Path]]:
    """Find a folder's weights.

    Returns:
        The first of `WEIGHT_FILES` that is there, and the files that hold tensors: that one, or those that it names.

    Raises:
        UserError: There is none, or an index that cannot be used; names what is missing.
    """
    found = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if found is None:
        raise UserError(f"{folder}: no weights; looked for {', '.join(WEIGHT_FILES)}")
    shards = [found]
    if found.suffix == ".json":
        index = _read_json(found).get("weight_map")
        if not isinstance(index, dict) or not index:
            raise UserError(f"{found}: no weight_map")
        names = sorted({str(name) for name in index.values()})
        outside = next((name for name in names if Path(name).name != name), None)
        if outside is not None:
            raise UserError(f"{found}: names {outside}, which is not beside it")
        shards = [folder / name for name in names]
    for shard in shards:
        if not shard.is_file():
            raise UserError(f"{found}: names {shard.name}, which is not there")
    return found, shards


def _check_weights(folder: Path) -> None:
    for shard in find_weights(folder)[1]:
        if shard.suffix == ".safetensors":
            _check_safetensors(shard)


def _check_safetensors(path: Path) -> None:
    """Read the header, which also tells how long the file must be."""
    try:
        with safe_open(path, framework="pt"):
            return
    except SafetensorError as error:
        raise UserError(f"{path}: damaged or cut short: {_line(error)}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = parse_json(read_bytes(path, "file"))
    except ValueError as error:
        raise UserError(f"{path}: not readable as JSON: {_line(error)}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object")
    return content


def _choices() -> str:
    names = ", ".join((*shipped_names(), *PACKAGED))
    return f"Give the path of a local folder, a hub id, or a shipped name ({names})."


def _line(error: Exception) -> str:
    """The first line of a message, for an error of one line."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
