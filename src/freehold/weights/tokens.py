"""What a fast tokenizer's file says: which words it knows, and which of them are marks of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from freehold.weights.files import list_files
from freehold.weights.reading import MAX_JSON_BYTES, Malformed, parse_json

_FILE = "tokenizer.json"


def words(folder: Path) -> dict[str, int]:
    """Every word and its number; none where there is no such file. The gate has examined it."""
    tokenizer = _tokenizer(folder)
    model = tokenizer.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    numbered = vocabulary.items() if isinstance(vocabulary, dict) else ()
    return {word: number for word, number in numbered if isinstance(number, int)} | _added(tokenizer)


def marks(folder: Path) -> frozenset[str]:
    """Words that were added to the vocabulary, such as <tool_call>."""
    return frozenset(_added(_tokenizer(folder)))


def _added(tokenizer: dict[str, Any]) -> dict[str, int]:
    added = tokenizer.get("added_tokens")
    listed = [each for each in added if isinstance(each, dict)] if isinstance(added, list) else []
    return {str(each.get("content")): each["id"] for each in listed if isinstance(each.get("id"), int)}


def _tokenizer(folder: Path) -> dict[str, Any]:
    file = next((each for each in list_files(folder)[0] if each.name == _FILE), None)
    if file is None or file.size_bytes > MAX_JSON_BYTES:
        return {}
    try:
        with file.open() as stream:
            content = parse_json(stream.read(MAX_JSON_BYTES))
    except (Malformed, OSError):
        return {}
    return content if isinstance(content, dict) else {}
