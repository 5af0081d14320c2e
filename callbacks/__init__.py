"""Thin Lightning callbacks; what they do is in plain classes and functions of `lit_hass`."""

from callbacks.answer_writer import AnswerWriter
from callbacks.comparison_report import ComparisonReport
from callbacks.generation_progress import GenerationProgressBar
from callbacks.generation_statistics import GenerationStatistics
from callbacks.model_export import ModelExport

__all__ = ("AnswerWriter", "ComparisonReport", "GenerationProgressBar", "GenerationStatistics", "ModelExport")
