"""A model in several files: the index or the parts' own numbers, and what is really beside them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any

from freehold.types import Finding
from freehold.weights import gguf
from freehold.weights.files import File, split_of
from freehold.weights.gate.finding import refuse
from freehold.weights.gate.tensors import Shapes
from freehold.weights.reading import quoted

_FIX = "fetch the index and all files it names again, at one commit"
_MISSING = "fetch the missing file, or remove the others"
_NUMBERED = re.compile(r"(.+)-\d{5,6}-of-(\d{5,6})\.safetensors")
_MAX_TOLD = 5


def check_index(file: File, content: Any, shards: Mapping[str, Shapes]) -> list[Finding]:
    """An index names plain files; of a safetensors index they are there and hold just the tensors it says.

    `shards` are the tensors of every readable safetensors file, by the file's name.
    """
    mapped = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(mapped, dict) or not all(isinstance(shard, str) for shard in mapped.values()):
        return [refuse(file, "bad-index", "weight_map does not map tensors to files", _FIX)]
    names = sorted(set(mapped.values()))
    if outside := [name for name in names if not re.fullmatch(r"[\w+=@ -][\w.+=@ -]*", name)]:
        return [refuse(file, "shard-path", f"names {quoted(outside[0])}: shards are plain names of files", _FIX)]
    if not file.name.lower().endswith(".safetensors.index.json"):
        return []  # of a format that is refused where it is found
    if wrong := [name for name in names if not name.endswith(".safetensors")]:
        return [refuse(file, "shard-path", f"names {quoted(wrong[0])}, which is no safetensors file", _FIX)]
    folder = PurePosixPath(file.name).parent
    here = {name: shards[str(folder / name)] for name in names if str(folder / name) in shards}
    if missing := [name for name in names if name not in here]:
        return [refuse(file, "missing-shard", f"names {_some(missing)}, not beside it or unreadable", _MISSING)]
    return _compare(file, mapped, here)


def _compare(index: File, mapped: Mapping[str, str], here: Mapping[str, Shapes]) -> list[Finding]:
    held = Counter(tensor for tensors in here.values() for tensor in tensors)
    findings = []
    if absent := [tensor for tensor, shard in mapped.items() if tensor not in here[shard]]:
        why = f"{_some(absent)} is not in the file it names"
        findings.append(refuse(index, "index-mismatch", why, _FIX))
    if unnamed := [tensor for tensor in held if tensor not in mapped]:
        why = f"the files hold {_some(unnamed)}, which the index does not name"
        findings.append(refuse(index, "index-mismatch", why, _FIX))
    if twice := [tensor for tensor, count in held.items() if count > 1]:
        why = f"{_some(twice)} is in more than one file: loaders differ in which they take"
        findings.append(refuse(index, "duplicate-tensor", why, _FIX))
    return findings


def check_numbered(files: Mapping[str, File], indexed: set[str]) -> list[Finding]:
    """Of safetensors files that number themselves in a folder without index: at least as many as they say."""
    series: dict[tuple[str, int], list[str]] = {}
    for name in files if len(files) > 1 else ():  # one file alone was named by itself
        if (match := _NUMBERED.fullmatch(name)) and str(PurePosixPath(name).parent) not in indexed:
            series.setdefault((match[1], int(match[2])), []).append(name)
    return [
        refuse(files[names[0]], "missing-shard", f"only {len(names)} of {count} parts are here", _MISSING)
        for (_, count), names in series.items()
        if len(names) < count
    ]


def check_splits(parts: Iterable[tuple[File, gguf.Header]]) -> list[Finding]:
    """What each part of a split GGUF file says of itself (llama.cpp, gguf-split) against its name and its siblings."""
    findings = []
    series: dict[tuple[str, int], dict[int, tuple[File, gguf.Header]]] = {}
    for file, header in parts:
        split = split_of(file.name)
        number = int(file.name[: -len(".gguf")].rsplit("-", 3)[-3]) if split else 1
        count = split[1] if split else 1
        told = header.metadata.get("split.no", number - 1), header.metadata.get("split.count", count)
        if told != (number - 1, count) and not (split is None and told[1] in (0, 1)):
            why = f"says that it is part {told[0]} (from 0) of {told[1]}, its name says {number - 1} of {count}"
            findings.append(refuse(file, "gguf-split", why, "give it the name it was published with"))
        if split:
            series.setdefault(split, {})[number] = file, header
    for (_, count), members in series.items():
        findings += _check_series(count, members)
    return findings


def _check_series(count: int, members: Mapping[int, tuple[File, gguf.Header]]) -> list[Finding]:
    first, header = members[min(members)]
    numbers = range(1, count + 1)
    if missing := [number for number in range(1, min(count, len(members) + _MAX_TOLD) + 1) if number not in members]:
        names = ", ".join(f"{number:05}-of-{count:05}" for number in missing[:_MAX_TOLD])
        return [refuse(first, "missing-shard", f"{len(members)} of {count} parts are here; not {names}", _MISSING)]
    if beyond := [members[number][0] for number in members if number not in numbers]:
        return [refuse(beyond[0], "gguf-split", f"there are {count} parts, from 1", "remove it")]
    held = Counter(tensor.name for _, part in members.values() for tensor in part.tensors)
    told = header.metadata.get("split.tensors.count", held.total())
    if told != held.total() or len(held) != held.total():
        why = f"the parts hold {held.total():,} tensors, {len(held):,} of them different; the first says {told}"
        return [refuse(first, "gguf-split", why, "fetch all parts again, at one commit")]
    return []


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 1:,} more" if len(names) > 1 else ""
    return quoted(names[0]) + more
