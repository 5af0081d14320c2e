"""Metrics of real `CollapseMetrics` over generated features, as a run leaves them in its folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from lit_hass.metrics import CollapseMetrics
from lit_hass.metrics.functional import chunk_entropies, drawn_entropies
from lit_hass.records import to_jsonable, write_json

PLAIN = {
    "save_every": 1024, "max_buffer_size": 10000, "min_samples_per_token": 2, "max_tokens_to_analyze": None,
    "compute_token_metrics": True, "compute_overall_metrics": True, "compute_class_metrics": True,
    "svd_variant": "a", "gnc2_reduction": "mean", "unc3_reduction": "cov_abs", "chunks": 5,
    "chunk_rule": "array_split", "special_tokens": "all",
}  # fmt: skip


def rows(n: int, seed: int, d: int = 24, vocabulary: int = 60, rank: int | None = None) -> dict[str, torch.Tensor]:
    """n rows around the centres of Zipf-distributed classes; ``rank`` flattens them."""
    generator = torch.Generator().manual_seed(seed)
    centres = 2 * torch.randn(vocabulary, d, generator=torch.Generator().manual_seed(99)) + 0.5
    weights = 1 / torch.arange(1, vocabulary + 1, dtype=torch.float64)
    ids = torch.multinomial(weights, n, replacement=True, generator=generator)
    features = centres[ids] + torch.randn(n, d, generator=generator)
    if rank is not None:
        features[:, rank:] *= 0.01
    return {"features": features, "token_ids": ids, "head": centres + 0.5 * torch.randn(vocabulary, d)}


def metrics_dict(draft: bool = True, questions: int = 6, seed: int = 0, d: int = 24, **meta: Any) -> dict[str, Any]:
    """The dict of a run of ``questions`` answers; ``draft``: with accepted, rejected and bonus rows, and CKA."""
    torch.manual_seed(seed)
    head = rows(1, seed, d)["head"]
    accumulators = {
        name: CollapseMetrics(
            d, head, keep_rows=True, num_paired_features=d if draft and name == "answer" else None, num_classes=60,
            ignore_ids=(0,),
        )
        for name in ("prompt", "answer")
    }  # fmt: skip
    chunks = []
    streams: dict[str, list[torch.Tensor]] = {}
    for question in range(questions):
        prompt, answer = rows(40, 7 * question + seed, d), rows(30 + 17 * question, 7 * question + 3 + seed, d, rank=12)
        n = len(answer["features"])
        streams.setdefault("prompt", []).append(prompt["features"])
        streams.setdefault("answer", []).append(answer["features"])
        states = torch.where(torch.arange(n) % 3 == 0, 3, 1) if draft else torch.full((n,), 4)
        accumulators["prompt"].update(prompt["features"], prompt["token_ids"], torch.zeros(40, dtype=torch.int64))
        for state, name in ((1, "accepted"), (3, "bonus"), (4, "baseline")):
            if bool((states == state).any()):
                streams.setdefault(name, []).append(answer["features"][states == state])
        paired = {"paired_features": answer["features"] + 0.4 * torch.randn(n, d)} if draft else {}
        accumulators["answer"].update(answer["features"], answer["token_ids"], states, **paired)
        if draft:
            dropped = rows(12, 7 * question + 5, d)
            streams.setdefault("rejected", []).append(dropped["features"])
            accumulators["answer"].update(
                dropped["features"], dropped["token_ids"], torch.full((12,), 2), paired_features=dropped["features"]
            )
        found = chunk_entropies(answer["features"])
        chunks.append(
            {
                "question_id": question + 1, "choice": 0, "turn": 0, "length": n, "entropies": found.entropies,
                "normalized": found.normalized, "first_minus_last": found.first_minus_last, "pattern": found.pattern,
            }
        )  # fmt: skip
    both = CollapseMetrics(d, head, keep_rows=True, num_classes=60, ignore_ids=(0,))
    for question in range(questions):
        for part in (rows(40, 7 * question + seed, d), rows(30 + 17 * question, 7 * question + 3 + seed, d, rank=12)):
            both.update(part["features"], part["token_ids"])
    scopes = {"overall": both, **accumulators}
    details = {name: scope.compute_details() for name, scope in scopes.items()}
    classes = details["overall"]["classes"]
    columns = zip(
        *(classes[key].tolist() for key in ("ids", "counts", "entropies", "normalized")), strict=True
    )  # fmt: skip
    means = torch.tensor([c["entropies"] for c in chunks]).mean(0).tolist()
    values = details["overall"]["values"]
    states_found: dict[str, Any] = {}
    spectra = {name: found["spectrum"]["raw"]["eigenvalues"].tolist() for name, found in details.items()}
    for scope in accumulators.values():
        for name, (eigenvalues, n) in scope.state_eigenvalues(False).items():
            if n:
                entropy, share = map(float, scope._entropies_of(eigenvalues, n))
                states_found[name] = {"rows": n, "svd_entropy": entropy, "normalized_entropy": share}
                spectra.setdefault(name, eigenvalues.tolist())
    counts = {key: value for key, value in details["overall"].items() if isinstance(value, int)}
    return to_jsonable(
        {
            "total_tokens": details["overall"]["n_rows"],
            "token_metrics": {
                str(i): {
                    "svd_entropy": e, "num_samples": c, "normalized_entropy": n, "sampled": c, "token": f"<tok\n{i}>",
                }
                for i, c, e, n in columns
            },
            "overall_metrics": {
                "svd_entropy": values["svd_entropy/overall"], "gnc2": values["gnc2/mean"],
                "unc3": values["unc3/cov_abs"],
            },
            "chunk_metrics": {
                "num_chunks": 5, "chunk_svd_entropies": means, "avg_svd_entropy": sum(means) / 5,
                "std_svd_entropy": float(torch.tensor(means).std(correction=0)),
            },
            "states": states_found,
            "equal_rows": {
                name: {
                    str(each.rows): {
                        "svd_entropy": each.entropy, "low": each.low, "high": each.high,
                        "normalized_entropy": each.entropy / each.bound, "normalized_low": each.low / each.bound,
                        "normalized_high": each.high / each.bound,
                    }
                    for each in drawn_entropies(torch.cat(parts))
                }
                for name, parts in streams.items()
            },
            "family": {name: found["values"] for name, found in details.items()},
            "undefined": {name: found["undefined"] for name, found in details.items()},
            "spectra": spectra,
            "spectra_sums": {name: sum(values) for name, values in spectra.items()},
            "chunks": chunks,
            "counts": {**counts, "n_special": details["overall"]["n_special"], "n_dropped_rows": 0},
            "settings": PLAIN,
            "meta": {
                "schema_version": 2, "model": "tiny-hass" if draft else "tiny", "method": None,
                "draft": "draft" if draft else None, "question_file": "questions.jsonl", "feature_dim": d,
                "feature_dtype": "float32", "world_size": 1, "questions": questions, "timed": False,
                "versions": {"torch": torch.__version__}, **meta,
            },
            "errors": [],
        }
    )  # fmt: skip


def write_collapse_run(folder: Path, metrics: dict[str, Any]) -> Path:
    """Leave the metrics as a run would."""
    write_json(folder / "collapse_metrics.json", metrics)
    return folder


if __name__ == "__main__":
    print(json.dumps(metrics_dict(), indent=1)[:4000])
