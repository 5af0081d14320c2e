"""Thin Lightning callbacks; what they do is in plain classes and functions of `lit_hass`."""

from callbacks.answer_writer import AnswerWriter
from callbacks.collapse_collector import CollapseCollector
from callbacks.collapse_report import CollapseReport
from callbacks.comparison_report import ComparisonReport
from callbacks.correct_data_writer import CorrectDataWriter
from callbacks.feature_buffer import FeatureBuffer
from callbacks.generation_progress import GenerationProgressBar
from callbacks.generation_statistics import GenerationStatistics
from callbacks.length_monitor import LengthMonitor
from callbacks.model_export import ModelExport
from callbacks.perplexity_progress import PerplexityProgressBar
from callbacks.perplexity_report import PerplexityReport
from callbacks.resource_monitor import ResourceMonitor

__all__ = (
    "AnswerWriter",
    "CollapseCollector",
    "CollapseReport",
    "ComparisonReport",
    "CorrectDataWriter",
    "FeatureBuffer",
    "GenerationProgressBar",
    "GenerationStatistics",
    "LengthMonitor",
    "ModelExport",
    "PerplexityProgressBar",
    "PerplexityReport",
    "ResourceMonitor",
)
