"""What ``lit-hass lengths`` writes: a config for ``predict``, one for ``fit``, and the original's ``cqa.json``."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lit_hass import __version__
from lit_hass.errors import UserError
from lit_hass.models.folders import TOKENIZER_FILES
from lit_hass.records import ensure_writable, to_json, write_text
from lit_hass.records.json_lines import parse_json, read_bytes
from lit_hass.reports.lengths_recommendation import context_text, show_bytes
from lit_hass.terminal import one_line

_TOKENIZER_FILES = (*TOKENIZER_FILES, "merges.txt", "tokenizer_config.json", "chat_template.jinja", "added_tokens.json")


#: The configurations whose settings the files name, and what goes before them on the command line.
_PREDICT = {"questions": "-c configs/generate_hass.yaml", "commonsense_qa": "-c configs/rationale.yaml"}
_FIT = {
    "questions": "-c configs/train_draft.yaml --data.path FILE",
    "commonsense_qa": "-c configs/train_rationale.yaml",
    "completions": "-c configs/train_rationale.yaml",
    "text": "-c configs/train_base.yaml -c configs/data/text.yaml",
}


def tokenizer_digest(folder: str) -> str:
    """SHA-256 over names and contents of a tokenizer's files; the id itself for one of the hub."""
    path = Path(folder)
    if not path.is_dir():
        return folder
    digest = hashlib.sha256()
    for name in sorted(_TOKENIZER_FILES):
        if (path / name).is_file():
            content = (path / name).read_bytes()
            digest.update(f"{name}\0{len(content)}\0".encode())
            digest.update(content)
    return digest.hexdigest()


def predict_config(report: dict[str, Any]) -> str:
    """The YAML that ``lit-hass predict -c ... -c FILE`` takes, provenance and that command in comments."""
    found = report["recommendation"]
    data = {"max_length": found["max_length"]} if report["kind"] == "commonsense_qa" else {}
    if found["batch_size"] is not None:
        data["batch_size"] = found["batch_size"]
    parts = [_comments(report, f"predict {_PREDICT[report['kind']]}")]
    model = ""
    if found["gen_length"] is not None:
        model += f"    # gen_length\n    max_new_tokens: {found['gen_length']}\n"
    if report["context_given"]:
        model += f"    context: {report['context']}\n"
    if model:
        parts.append(f"model:\n  init_args:\n{model}")
    if data:
        parts.append(_data(data))
    return "".join(parts)


def fit_config(report: dict[str, Any]) -> str:
    """The YAML that ``lit-hass fit -c ... -c FILE`` takes; training's memory is another, so it names no batch."""
    # Plain text is cut into blocks, everything else has rows.
    key = "block_size" if report["kind"] == "text" else "max_length"
    # Files are read before options, so the class that has the setting is named here, where the configuration's is not.
    of = "lit_hass.data.ConversationDataModule" if report["kind"] == "questions" else None
    return _comments(report, f"fit {_FIT[report['kind']]}") + _data({key: report["recommendation"]["max_length"]}, of)


def _data(settings: dict[str, int], of: str | None = None) -> str:
    name = "" if of is None else f"  class_path: {of}\n"
    return f"data:\n{name}  init_args:\n" + "".join(f"    {key}: {value}\n" for key, value in settings.items())


def _comments(report: dict[str, Any], command: str) -> str:
    lines = [
        f"Lengths from data, for another config:   lit-hass {command} -c THIS_FILE",
        f"written by lit-hass {__version__} lengths, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        f"data: {report['file']} ({report['kind']}), sha256 {report['file_sha256']}",
        f"tokenizer: {report['tokenizer']}, sha256 {report['tokenizer_sha256']}",
    ]
    if report["n_shot"]:
        lines.append(f"examples: {report['n_shot']}, {report['shot_tokens']} tokens, sha256 {report['n_shot_sha256']}")
    if report["answers_from"]:
        limit = "" if report["limit"] is None else f", generated with at most {report['limit']} tokens"
        cut = "" if report["limit"] is None else f", {report['lengths']['answer']['cut_rate']:.2%} cut"
        lines.append(f"answers: {report['answers_from']}{limit}{cut}")
    lines.append(f"coverage {report['coverage']:g}")
    if report["context_given"]:
        lines.append(context_text(report))
    for name, figures in report["lengths"].items():
        if figures["count"]:
            shown = ", ".join(
                f"{key} {value:g}" for key, value in figures.items() if key.startswith(("p5", "p9", "max"))
            )
            lines.append(f"{name}: n {figures['count']:.0f}, {shown}")
    if (memory := report["memory"]) is not None:
        lines.append(
            f"memory: {show_bytes(memory['total'])} of {show_bytes(memory['budget'])} by formula in {memory['dtype']}, "
            f"model {memory['model']}, sha256 of its config {memory['config_sha256']}"
        )
    lines += report["notes"]
    return "".join(f"# {one_line(line)}\n" for line in lines)


def write_outputs(report: dict[str, Any], out: str | None, fit_out: str | None, write_json: str | None) -> list[str]:
    """Write what was asked for; returns the files' names.

    Raises:
        UserError: a place cannot be written to, or ``write_json`` names a file that is no JSON object.
    """
    written = []
    # Read first: nothing is written where one of the files cannot be.
    merged = None if write_json is None else _merged(Path(write_json), report["recommendation"])
    # What is no question is not answered by predict.
    shape = predict_config if report["kind"] in ("questions", "commonsense_qa") else fit_config
    for name in (out, fit_out, write_json):
        if name is not None:
            ensure_writable(Path(name).parent)
    for name, make in ((out, shape), (fit_out, fit_config)):
        if name is not None:
            write_text(name, make(report))
            written.append(name)
    if write_json is not None and merged is not None:
        write_text(write_json, merged)
        written.append(write_json)
    return written


def check_outputs(paths: Sequence[str | None], overwrite: bool) -> None:
    """Refuse to replace files.

    Raises:
        UserError: one of them exists, and ``overwrite`` is not given.
    """
    for path in paths:
        if path is not None and Path(path).exists() and not overwrite:
            raise UserError(f"{path}: exists; give --overwrite to replace it")


def _merged(path: Path, found: dict[str, Any]) -> str:
    """The text of a JSON file with our keys in it, all others as they were and where they were."""
    content: Any = {}
    if path.exists():
        try:
            content = parse_json(read_bytes(path, "JSON file"))
        except ValueError as error:
            raise UserError(f"{path}: not readable as JSON: {error}") from error
        if not isinstance(content, dict):
            raise UserError(f"{path}: a JSON object is expected")
    ours = {"gen_length": found["gen_length"], "max_length": found["max_length"]}
    return to_json({**content, **{key: value for key, value in ours.items() if value is not None}}, indent=4) + "\n"
