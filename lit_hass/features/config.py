"""The settings of feature collection and collapse metrics. No torch here: configurations name it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from lit_hass.errors import UserError

Reduction = Literal["mean", "var", "std", "cov", "cov_abs", "min", "max"]
StorageDtype = Literal["auto", "float32", "float16", "bfloat16"]
StateName = Literal["prompt", "accepted", "rejected", "bonus", "baseline"]

#: What decides the sums themselves: a resume with another value of one of these would mix two kinds of rows.
_DECIDES_STATE = (
    "svd_variant", "chunks", "chunk_rule", "chunk_rows", "nan_strategy", "max_samples_per_class", "hash_salt", "states",
    "storage_dtype", "compute_token_metrics", "compute_overall_metrics", "compute_class_metrics", "layer",
)  # fmt: skip


@dataclass
class CollapseConfig:
    """All settings; those of the original scripts keep their names and defaults.

    Attributes:
        save_every: rows that wait on the model's device before one move to host memory. A run whose answers are
            durable moves them with each batch, whatever this says.
        max_buffer_size: rows kept in host memory before they are folded into the statistics and the reservoir.
        device: where statistics are computed; features are taken on the model's own.
        min_samples_per_token: a class (the next token's id) with fewer rows enters no class metric.
        max_tokens_to_analyze: class and token metrics use the most frequent eligible classes only (ties: smaller id);
            overall spectra use all rows.
        compute_token_metrics: entropies of the rows of each class. Off, no rows are kept for them.
        compute_overall_metrics: spectra of all rows, by scope and state; for entropies of equally many rows of each
            state up to 1,024 rows of each are kept.
        compute_class_metrics: GNC2, UNC3 and the neural-collapse family.
        svd_variant: ``"a"``: p = s / sum s, not centred, nats; ``"b"``: p = s^2 / sum s^2, centred, bits.
        gnc2_reduction: which reduction over pairs of classes is the one number called GNC2.
        unc3_reduction: which reduction over classes is the one number called UNC3.
        correction: of variances; 1 is unbiased, 0 the population's.
        cdnv_exponent: of the squared distance in NC1's CDNV.
        nc4_classes: NC4's linear classifier chooses among eligible classes, or also among all tokens (``"vocab"``).
        chunks: stretches of a sequence whose entropies are compared; 0 leaves them out.
        chunk_rule: ``"array_split"`` or the original's ``"floor_last_rest"``.
        chunk_rows: whose rows: ``"answer"``, ``"prompt"``, ``"sequence"`` (both), or ``"auto"``: the answer's, and all
            of a sequence without one. Special tokens are part of them.
        special_tokens: ``"all"``, the original's ``"eos_pad"``, or ids: rows whose target is one are left out of
            everything but chunks.
        duplicates: pairs of classes with equal directions in GNC2: ``"skip"``, ``"inf"`` or ``"clamp"``.
        nan_strategy: rows with a number that is not finite are dropped and counted, or an error.
        max_samples_per_class: rows kept of each class for token entropies and NC4, two or more; None keeps all of them,
            on disk if there is a place for it. Where `host_bytes` do not suffice it is halved, down to two; then
            classes are left out whole, by a hash of their ids (``counts`` says how many).
        spill_dir: folder for rows that are kept on disk.
        on_error: ``"continue"`` counts rows that cannot be folded for lack of memory and reports a metric that fails as
            null; ``"raise"`` ends the run.
        hash_salt: chooses which rows a reservoir keeps.
        states: rows of which states are taken.
        layer: -1, the last hidden states behind the final norm, which decoders compute anyway. Others as
            `transformers` counts ``hidden_states`` (0 is the embeddings) cost one more forward of the base over each
            answer and its prompt. No output layer reads them, so UNC3, NC3 and NC4's linear side are undefined there;
            rejected rows and the draft's predictions are left out. Not for windows of a text (perplexity).
        storage_dtype: of features from the staging on; ``"auto"`` is the model's own. Statistics see what is stored.
        device_bytes: features that may wait on the model's device.
        host_bytes: rows that may be in host memory (buffered and kept); None is a mebibyte for each number of a row,
            and a gibibyte at least.
        disk_bytes: kept rows that may be on disk.

    Raises:
        UserError: a value that cannot be used; names the field.
    """

    save_every: int = 1024
    max_buffer_size: int = 10000
    device: str = "cpu"
    min_samples_per_token: int = 2
    max_tokens_to_analyze: int | None = None
    compute_token_metrics: bool = True
    compute_overall_metrics: bool = True
    compute_class_metrics: bool = True
    svd_variant: Literal["a", "b"] = "a"
    gnc2_reduction: Reduction = "mean"
    unc3_reduction: Reduction = "cov_abs"
    correction: Literal[0, 1] = 1
    cdnv_exponent: float = 1.0
    nc4_classes: Literal["eligible", "vocab"] = "eligible"
    chunks: int = 5
    chunk_rule: Literal["array_split", "floor_last_rest"] = "array_split"
    chunk_rows: Literal["auto", "answer", "prompt", "sequence"] = "auto"
    special_tokens: Literal["all", "eos_pad"] | list[int] = "all"
    duplicates: Literal["skip", "inf", "clamp"] = "skip"
    nan_strategy: Literal["drop", "error"] = "drop"
    max_samples_per_class: int | None = 256
    spill_dir: str | None = None
    on_error: Literal["continue", "raise"] = "continue"
    hash_salt: int = 0
    states: tuple[StateName, ...] = get_args(StateName)
    layer: int = -1
    storage_dtype: StorageDtype = "auto"
    device_bytes: int = 2**28
    host_bytes: int | None = None
    disk_bytes: int = 2**34

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        self.states = tuple(self.states)
        for name, low in (
            ("save_every", 1), ("max_buffer_size", 1), ("min_samples_per_token", 1), ("chunks", 0),
            ("device_bytes", 1), ("disk_bytes", 0), ("hash_salt", -(2**63)),
        ):  # fmt: skip
            _check_whole(name, getattr(self, name), low)
        for name, low in (("max_tokens_to_analyze", 1), ("max_samples_per_class", 2), ("host_bytes", 2**20)):
            if getattr(self, name) is not None:
                _check_whole(name, getattr(self, name), low)
        for name, known in (
            ("svd_variant", ("a", "b")), ("gnc2_reduction", get_args(Reduction)),
            ("unc3_reduction", get_args(Reduction)), ("correction", (0, 1)), ("nc4_classes", ("eligible", "vocab")),
            ("chunk_rule", ("array_split", "floor_last_rest")),
            ("chunk_rows", ("auto", "answer", "prompt", "sequence")), ("duplicates", ("skip", "inf", "clamp")),
            ("nan_strategy", ("drop", "error")), ("on_error", ("continue", "raise")),
            ("storage_dtype", get_args(StorageDtype)),
        ):  # fmt: skip
            if getattr(self, name) not in known:
                raise _error(name, f"must be one of {', '.join(map(str, known))}", getattr(self, name))
        for name in ("compute_token_metrics", "compute_overall_metrics", "compute_class_metrics"):
            if not isinstance(getattr(self, name), bool):
                raise _error(name, "must be true or false", getattr(self, name))
        if not isinstance(self.cdnv_exponent, int | float) or not 0 < self.cdnv_exponent < math.inf:
            raise _error("cdnv_exponent", "must be a positive number", self.cdnv_exponent)
        strange = [state for state in self.states if state not in get_args(StateName)]
        if strange or not self.states or len(set(self.states)) < len(self.states):
            raise _error("states", f"must be different names out of {', '.join(get_args(StateName))}", self.states)
        ids = self.special_tokens
        if ids not in ("all", "eos_pad") and (
            isinstance(ids, str) or not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids)
        ):
            raise _error("special_tokens", 'must be "all", "eos_pad" or a list of token ids', ids)
        if isinstance(self.layer, bool) or not isinstance(self.layer, int):
            raise _error("layer", "must be a whole number, -1 for the last", self.layer)
        if not isinstance(self.device, str) or not self.device:
            raise _error("device", "must name a device", self.device)

    @property
    def entropy(self) -> dict[str, Any]:
        """``power``, ``center`` and ``base`` of the SVD entropies, by ``svd_variant``."""
        if self.svd_variant == "a":
            return {"power": 1, "center": False, "base": "e"}
        return {"power": 2, "center": True, "base": 2}

    def host_budget(self, num_features: int) -> int:
        """`host_bytes`, or as many as rows of that width get by default."""
        return self.host_bytes or max(2**30, 2**20 * num_features)

    def as_dict(self) -> dict[str, Any]:
        """All settings as plain JSON types."""
        return {**asdict(self), "states": list(self.states)}

    def deciding_state(self) -> dict[str, Any]:
        """Those settings that accumulated statistics depend on; a resume must not change them."""
        everything = self.as_dict()
        return {name: everything[name] for name in _DECIDES_STATE}


def _check_whole(name: str, value: object, low: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise _error(name, "must be a whole number", value)
    if value < low:
        raise _error(name, f"must be at least {low}", value)


def _error(name: str, rule: str, value: object) -> UserError:
    return UserError(f"collapse.{name} {rule}, found {value!r}")
