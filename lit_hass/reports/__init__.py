"""What a person reads after a run."""

from lit_hass.reports.collapse_analysis import CollapseAnalyzer
from lit_hass.reports.collapse_files import write_collapse_report
from lit_hass.reports.comparison import compare_runs
from lit_hass.reports.comparison_files import write_comparison
from lit_hass.reports.comparison_view import print_comparison
from lit_hass.reports.environment import environment
from lit_hass.reports.generation_statistics import distribution, generation_statistics

__all__ = (
    "CollapseAnalyzer",
    "compare_runs",
    "distribution",
    "environment",
    "generation_statistics",
    "print_comparison",
    "write_collapse_report",
    "write_comparison",
)
