"""Loading the base model and its tokenizer, refusing by name whatever would go wrong later."""

import importlib.util
import logging
import pickle
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from lit_hass.errors import UserError
from lit_hass.models.folders import check_base, check_tokenizer_files, load_config, resolve_base

log = logging.getLogger(__name__)

#: Long words and rare ones, which can be divided in many ways.
_ANY_TEXT = "Representations of unconstitutional <table>3.14159</table> hyperparameters, Ünïcödé und 東京. " * 8
_DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "float16": torch.float16,
    "fp16": torch.float16,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float64": torch.float64,
}


def load_base(
    path_or_name: str | Path,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
    device_map: str | dict[str, Any] | None = None,
) -> PreTrainedModel:
    """Load a decoder-only ``transformers`` model, in eval mode and without gradients.

    Args:
        path_or_name: A shipped name such as ``html_to_tsv``, a local folder, or a hub id.
        dtype: ``"auto"`` (float32 on a CPU, the checkpoint's own on a GPU), a name such as ``"bfloat16"``, or a dtype.
        device: Where the model goes; None is the CPU.
        device_map: Passed on to transformers, to spread a model over devices; needs the package accelerate.

    Returns:
        The model, with SDPA attention where it has that and computes the same with it, else eager.

    Raises:
        UserError: The model cannot be found or used; one line says why. Weights that the checkpoint lacks are an
            error, too (transformers would initialise them at random).
    """
    kind: torch.dtype | str = parse_dtype(dtype)
    if device_map is not None and device is not None:
        raise UserError("give either device or device_map, not both")
    if device_map is not None and importlib.util.find_spec("accelerate") is None:
        raise UserError("device_map spreads a model with the package accelerate, which is not installed")
    if isinstance(device_map, str) and device_map != "cpu" and _processes() > 1:
        raise UserError(
            f"device_map {device_map} spreads the model over all devices of the machine, and each of the "
            f"{_processes()} processes would take them all: run one process (trainer.devices 1), or without device_map"
        )
    target = _device(device)
    source = check_base(path_or_name, needs_tokenizer=False)
    config = load_config(source)
    if kind == "auto":
        on_cpu = target.type == "cpu" if device_map is None else not torch.cuda.is_available()
        kind = torch.float32 if on_cpu else "auto"
    model = _load(source, config, dtype=kind, device_map=device_map)
    if device_map is None:
        model.to(target)  # type: ignore[arg-type]
    return model.requires_grad_(False).eval()


def load_tokenizer(path_or_name: str | Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer that belongs to a base model.

    What it leaves to chance (BPE dropout, sampling of segmentations: made for training) is switched off, and the log
    says so: the same text gives the same tokens.

    Raises:
        UserError: There is none, its files cannot be used, or it gives other tokens each time all the same.
    """
    source = resolve_base(path_or_name)
    if Path(source).is_dir():
        check_tokenizer_files(Path(source))
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        if "custom code" in str(error):  # what transformers says without trust_remote_code
            raise UserError(
                f"{source}: a tokenizer that needs code of its own, which is never run here; give another one "
                "(tokenizer), or save it as one that transformers knows"
            ) from error
        raise UserError(f"{source}: the tokenizer cannot be loaded: {_line(error)}") from error
    _leave_nothing_to_chance(tokenizer, source)
    return tokenizer


def _leave_nothing_to_chance(tokenizer: Any, source: str) -> None:
    """Switch off what makes a tokenizer give other tokens each time."""
    model: Any = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    # Of BPE, and of Unigram.
    for name in ("dropout", "alpha"):
        if value := getattr(model, name, None):
            setattr(model, name, None)
            log.warning("%s: the tokenizer's %s of %s is switched off: the same text gives the same tokens",
                        source, name, value)  # fmt: skip
    if (getattr(tokenizer, "sp_model_kwargs", None) or {}).get("enable_sampling"):
        raise UserError(f"{source}: the tokenizer samples its segmentations (sp_model_kwargs.enable_sampling); set it "
                        "to false in tokenizer_config.json")  # fmt: skip
    encoded = [tokenizer(_ANY_TEXT)["input_ids"] for _ in range(4)]
    if any(ids != encoded[0] for ids in encoded):
        raise UserError(f"{source}: the tokenizer gives other tokens for the same text each time, so no run can be "
                        "repeated with it")  # fmt: skip


def _load(source: str, config: PreTrainedConfig, **kwargs: Any) -> PreTrainedModel:
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            config=config,
            attn_implementation=attention_kind(config),
            output_loading_info=True,
            trust_remote_code=False,
            **kwargs,
        )
    except (OSError, SafetensorError, pickle.UnpicklingError, EOFError) as error:
        raise UserError(f"{source}: the weights cannot be read: {_line(error)}") from error
    except RuntimeError as error:
        if "mismatch" in str(error):
            raise UserError(f"{source}: weights and config.json disagree: {_line(error)}") from error
        raise
    model, info = loaded
    missing = sorted(info["missing_keys"])
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise UserError(f"{source}: the checkpoint lacks {', '.join(missing[:5])}{more}")
    if info["unexpected_keys"]:
        log.warning("%s: %d weights are not part of the model, ignored", source, len(info["unexpected_keys"]))
    return model


def attention_kind(config: PreTrainedConfig) -> str:
    """How `load_base` has a model compute its attention.

    By SDPA, unless the model lacks it or caps its attention logits, which SDPA silently leaves out.
    """
    model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if isinstance(model_class, tuple):
        model_class = model_class[0]
    capped = getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None
    return "sdpa" if getattr(model_class, "_supports_sdpa", False) and not capped else "eager"


def dtype_setting(base: str | Path, dtype: str | torch.dtype, device_map: str | None = None) -> str:
    """Return what decides the dtype of a base's weights, without loading them, for a run's key.

    Args:
        base: As for `load_base`.
        dtype: Likewise.
        device_map: Likewise.

    Returns:
        The dtype's full name; ``"auto"`` where that depends on the run's device, which the key has beside it.
    """
    kind = parse_dtype(dtype)
    if kind == "auto" and device_map is not None:  # then the GPUs decide, wherever the run itself is
        own = getattr(load_config(base), "dtype", None)
        kind = torch.float32 if not torch.cuda.is_available() else own or "auto"
    return str(kind).removeprefix("torch.")


def parse_dtype(dtype: str | torch.dtype) -> torch.dtype | str:
    """Read a dtype, a name such as ``"bfloat16"`` or ``"bf16"``, or ``"auto"``.

    Raises:
        UserError: It is none of these.
    """
    if isinstance(dtype, torch.dtype):
        if not dtype.is_floating_point:
            raise UserError(f"dtype {dtype} is not a floating point type")
        return dtype
    name = str(dtype).removeprefix("torch.")
    if name != "auto" and name not in _DTYPES:
        raise UserError(f"unknown dtype {dtype!r}; known are auto, {', '.join(_DTYPES)}")
    return _DTYPES.get(name, "auto")


def _device(device: str | torch.device | None) -> torch.device:
    try:
        target = torch.device("cpu" if device is None else device)
    except RuntimeError as error:
        raise UserError(f"unknown device {device!r}") from error
    if target.type == "cuda" and (target.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device {target} is not there: {torch.cuda.device_count()} CUDA devices found")
    return target


def _processes() -> int:
    """Processes that share the work."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
