"""A model in several files: the index or the parts' own numbers, and what is really beside them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from freehold.types import Finding
from freehold.weights import gguf
from freehold.weights.files import File
from freehold.weights.gate.finding import refuse
from freehold.weights.gate.tensors import Shapes
from freehold.weights.reading import quoted

_FIX = "fetch the index and all files it names again, at one commit"
_MISSING = "fetch the missing file, or remove the others"
_NUMBERED = re.compile(r"(.+)-(\d{5,6})-of-(\d{5,6})\.(?:safetensors|gguf)")


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
    return _compare(file, mapped, here) + _unlisted(file, names, shards)


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


def _unlisted(index: File, names: list[str], shards: Mapping[str, Shapes]) -> list[Finding]:
    """Files numbered as those of the index are, but not in it: engines that load every file would load them too."""
    folder = PurePosixPath(index.name).parent
    stems = {match[1] for name in names if (match := _NUMBERED.fullmatch(name))}
    beside = [path.name for path in map(PurePosixPath, shards) if path.parent == folder]
    extra = [name for name in beside if (match := _NUMBERED.fullmatch(name)) and match[1] in stems]
    if unlisted := sorted({*extra} - {*names}):
        return [refuse(index, "unlisted-shard", f"does not name {_some(unlisted)}, which is beside it", _FIX)]
    return []


def check_parts(files: Mapping[str, File], indexed: set[str], headers: Mapping[str, gguf.Header]) -> list[Finding]:
    """Of files that number themselves, all are there; of GGUF they also say so themselves (llama.cpp, gguf-split).

    A folder in `indexed` has an index that names its safetensors files; `headers` are those of GGUF files by name.
    """
    series: dict[tuple[str, str], dict[int, str]] = {}
    findings = []
    for name, file in files.items():
        match = _NUMBERED.fullmatch(name)
        number, count = (int(match[2]), int(match[3])) if match else (1, 1)
        if match and (name in headers or (str(PurePosixPath(name).parent) not in indexed and len(files) > 1)):
            series.setdefault((match[1], match[3]), {})[number] = name
        said = headers[name].metadata if name in headers else {}
        told = said.get("split.no", number - 1), said.get("split.count", count)
        if told != (number - 1, count) and not (match is None and told[1] in (0, 1)):
            why = f"says that it is part {quoted(str(told))}, from 0 and of how many; its name: {number - 1} of {count}"
            findings.append(refuse(file, "gguf-split", why, "give it the name it was published with"))
    for (_, count), names in series.items():
        first = files[names[min(names)]]
        beyond = first.name in headers and (min(names) < 1 or max(names) > int(count))  # others may begin with 0
        if len(names) < int(count) or beyond:
            why = f"{len(names)} of {int(count)} parts are here, numbered {min(names)} to {max(names)}"
            findings.append(refuse(first, "missing-shard", why, _MISSING))
        elif first.name in headers:
            findings += _check_total(first, [headers[name] for _, name in sorted(names.items()) if name in headers])
    return findings


def _check_total(first: File, parts: list[gguf.Header]) -> list[Finding]:
    held = Counter(tensor.name for part in parts for tensor in part.tensors)
    told = parts[0].metadata.get("split.tensors.count", held.total())
    if told == len(held) == held.total():
        return []
    why = (
        f"the parts hold {held.total():,} tensors, {len(held):,} of them different; the first says {quoted(str(told))}"
    )
    return [refuse(first, "gguf-split", why, "fetch all parts again, at one commit")]


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 1:,} more" if len(names) > 1 else ""
    return quoted(names[0]) + more
