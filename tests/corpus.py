"""A corpus of model folders, hostile and clean: what the gate is judged on. Payloads only touch a marker file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from weight_files import CONFIG, safetensors_bytes, write


class Case(NamedTuple):
    """A folder that `build` makes; `rule` is the one it breaks, None for a clean one."""

    family: str  # pickle, remote code, template, gguf, safetensors, names, json, tokenizer, adapter, layout
    name: str  # unique in its family
    rule: str | None
    build: Callable[[Path], object]


def model(**more: bytes | str | dict) -> dict[str, bytes | str | dict]:
    """The smallest clean model; `more` adds files by name or replaces them (`**{"config.json": ...}`)."""
    return {"config.json": CONFIG, "model.safetensors": safetensors_bytes(), **more}


def case(family: str, name: str, rule: str | None, files: dict[str, bytes | str | dict] | None = None, **more) -> Case:
    """A case of plain files: a clean model with `files` added to it or put in place of its own."""
    return Case(family, name, rule, lambda folder: write(folder, model(**{**(files or {}), **more})))
