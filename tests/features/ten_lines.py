"""The example of the README: any `transformers` model, without a Trainer."""

from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_hass.features import CollapseConfig, CollapseMeasurement, extract_features
from lit_hass.reports import CollapseAnalyzer


def collapse_report(path: str, texts: list[str], file: str) -> dict:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)
    with CollapseMeasurement.for_model(model, tokenizer, CollapseConfig(min_samples_per_token=2)) as measurement:
        for text in texts:
            batch = tokenizer(text, return_tensors="pt")
            measurement.add_batch_features(*extract_features(model, batch["input_ids"], batch["attention_mask"]))
        return CollapseAnalyzer().generate_report(measurement.get_collapse_metrics(), file)
