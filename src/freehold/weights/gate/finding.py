"""What a family of checks says of a file."""

from __future__ import annotations

from freehold.types import Finding
from freehold.weights.files import File


def refuse(file: File, rule: str, why: str, fix: str) -> Finding:
    return Finding(path=file.name, rule=rule, why=why, fix=fix)


def review(file: File, rule: str, why: str, fix: str) -> Finding:
    """Nothing is wrong by itself, but a person should look at it."""
    return Finding(path=file.name, rule=rule, why=why, fix=fix, review=True)
