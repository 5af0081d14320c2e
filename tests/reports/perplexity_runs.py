"""Reports of plans whose tokens have made-up likelihoods, without a model; for tests."""

import torch

from lit_hass.data import PerplexityDataModule
from lit_hass.metrics import Perplexity
from lit_hass.modules import PerplexityModule
from lit_hass.reports.perplexity_files import write_perplexity
from lit_hass.reports.perplexity_result import perplexity_report

MODEL = {"base": "made up", "digest": "0", "dtype": "float32", "zero_weights": 0.0}


def outcomes_of(data: PerplexityDataModule, level: float = 3.0) -> list[dict]:
    """Likelihoods that depend on the token and its place: each recipe has other sums."""
    found = []
    for recipe in data.plan.recipes:
        metric = Perplexity(recipe.documents)
        batch = data.plan.batch(recipe.windows)
        nll = level + torch.sin(batch.targets.double()) + 0.2 * torch.cos(batch.positions.double())
        metric.update(nll, batch.pages, sum(batch.lengths), int((batch.targets == 0).sum()), len(batch.windows))
        metric.add_text(data.text.words, data.text.bytes)
        sums = {"document_nll": metric.nll.tolist(), "document_tokens": metric.tokens.tolist()}
        found.append({name: value.item() for name, value in metric.compute().items()} | sums)
    return found


def report_of(base, text, level: float = 3.0, model=MODEL, **settings):
    data = PerplexityDataModule(str(text), **{"window": 32, **settings})
    data.check(PerplexityModule(str(base)))
    description, outcomes = data.describe(), outcomes_of(data, level)
    return perplexity_report(description, outcomes, model), description, outcomes


def write(folder, made) -> str:
    report, description, outcomes = made
    write_perplexity(folder, report, description, outcomes)
    return str(folder)
