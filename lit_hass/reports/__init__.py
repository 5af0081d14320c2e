"""What a person reads after a run."""

from lit_hass.reports.environment import environment
from lit_hass.reports.generation_statistics import distribution, generation_statistics

__all__ = ("distribution", "environment", "generation_statistics")
