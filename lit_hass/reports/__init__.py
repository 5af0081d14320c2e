"""What a person reads after a run."""

from lit_hass.reports.comparison import compare_runs
from lit_hass.reports.comparison_files import write_comparison
from lit_hass.reports.comparison_view import print_comparison
from lit_hass.reports.environment import environment
from lit_hass.reports.generation_statistics import distribution, generation_statistics

__all__ = (
    "compare_runs",
    "distribution",
    "environment",
    "generation_statistics",
    "print_comparison",
    "write_comparison",
)
