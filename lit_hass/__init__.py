"""Decoding with a HASS draft head, representation collapse, perplexity and lengths, measured on one footing."""

__version__ = "0.1.0"
