"""Freehold: from constraints to a verified, metered LLM endpoint on hardware you control."""

__version__ = "0.1.0"
