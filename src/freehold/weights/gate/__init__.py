"""The strict gate: a file is refused unless its name and its first bytes both say it is harmless data.

A family of checks is a small pure function from a file to findings, listed in FAMILIES (every file), BY_NAME (files of
one format) or FOLDER_FAMILIES (all files together). Nothing is ever unpickled, imported, rendered or executed.
"""

from __future__ import annotations

import pickletools
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any

from freehold.types import Finding
from freehold.weights import gguf, safetensors
from freehold.weights.files import File
from freehold.weights.gate.finding import refuse
from freehold.weights.reading import MAX_JSON_BYTES, Malformed, parse_json, quoted

Family = Callable[[File], list[Finding]]
FolderFamily = Callable[[Sequence[File]], list[Finding]]

WEIGHTS = (".gguf", ".safetensors")
IMAGES = {
    ".png": b"\x89PNG\r\n\x1a\n", ".jpg": b"\xff\xd8\xff", ".jpeg": b"\xff\xd8\xff", ".gif": b"GIF8", ".webp": b"RIFF",
    ".pdf": b"%PDF-",
}  # fmt: skip
TEXT_SUFFIXES = {".txt", ".md", ".jinja"}
# main: the revision a Hugging Face cache keeps under refs/
TEXT_NAMES = {"LICENSE", "LICENCE", "NOTICE", "README", "COPYING", "USE_POLICY", ".gitattributes", "main"}
CODE = {".py", ".pyc", ".so", ".dll", ".dylib", ".exe", ".sh", ".js", ".wasm", ".ipynb", ".pyd", ".bat", ".ps1"}
PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz", ".dill", ".mar"}
ARCHIVES = {".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar", ".zst", ".whl", ".jar"}

# Keys that make a loader import or fetch code. In a vocabulary keys are tokens, and any token may occur.
CODE_KEYS = {
    "auto_map", "auto_mapping", "trust_remote_code", "custom_generate", "custom_pipelines", "custom_objects",
    "parent_library", "_attn_implementation_internal", "_target_", "__class__", "__reduce__", "py/object", "py/reduce",
}  # fmt: skip
_GLOBAL = re.compile(r"[\w.]+ [\w.]+")  # module and name
VOCABULARIES = {"tokenizer.json", "vocab.json", "added_tokens.json"}


def examine(files: Sequence[File]) -> list[Finding]:
    """Every reason to refuse `files`; empty when there is none."""
    findings = [finding for file in files for family in (*FAMILIES, *BY_NAME) for finding in _run(family, file)]
    return findings + [finding for family in FOLDER_FAMILIES for finding in family(files)]


def _run(family: Family, file: File) -> list[Finding]:
    try:
        return family(file)
    except Malformed as error:
        return [refuse(file, error.rule, error.why, "fetch the file again from its publisher")]
    except OSError as error:
        return [refuse(file, "unreadable", quoted(error.strerror or str(error)), "make it readable and verify again")]


def check_mode(file: File) -> list[Finding]:
    if file.mode & 0o111:
        return [refuse(file, "executable", "data files are not executable", f"chmod a-x '{file.name}'")]
    return []


def check_format(file: File) -> list[Finding]:
    """Default deny: what no rule below knows does not pass."""
    if file.suffix in {*WEIGHTS, *IMAGES, ".json"} or _is_text(file):
        return []
    suffix = file.suffix.lower()
    if suffix in CODE:
        return [refuse(file, "code", "programs are no part of a model", "use a build that needs no remote code")]
    if suffix in PICKLES:
        fix = "use the safetensors or GGUF build; convert one elsewhere, in isolation, if there is none"
        return [refuse(file, "pickle", "this format can run code when it is loaded", fix)]
    if suffix in ARCHIVES:
        return [refuse(file, "archive", "archives hide what they hold", "unpack it, then verify the files")]
    fix = "remove it: weights are .safetensors or .gguf, beside .json, .txt, .md, .jinja, images and PDF"
    return [refuse(file, "unknown-format", f"no rule knows {quoted(file.suffix) or 'files without extension'}", fix)]


def check_gguf(file: File) -> list[Finding]:
    if file.suffix == ".gguf":
        with file.open() as stream:
            gguf.read_header(stream, file.size_bytes)
    return []


def check_safetensors(file: File) -> list[Finding]:
    if file.suffix == ".safetensors":
        with file.open() as stream:
            safetensors.read_header(stream, file.size_bytes)
    return []


def check_json(file: File) -> list[Finding]:
    if file.suffix != ".json":
        return []
    content = parse_json(_small(file))
    if PurePosixPath(file.name).name in VOCABULARIES or file.name.endswith(".index.json"):
        return []
    keys = sorted({key for key, value in _pairs(content) if key in CODE_KEYS and value not in (None, False, "", [])})
    fix = "use a build that needs no remote code, or remove the key once you know that it is not needed"
    return [refuse(file, "remote-code", f"the key {key} makes loaders run or fetch code", fix) for key in keys]


def check_text(file: File) -> list[Finding]:
    if not _is_text(file):
        return []
    data = _small(file)
    try:
        data.decode()
    except UnicodeDecodeError as error:
        raise Malformed("not-text", f"not UTF-8 at byte {error.start:,}") from None
    if b"\0" in data or data.startswith(b"#!") or _is_pickle(data):
        raise Malformed("not-text", "a program, a pickle or binary data under the name of a text")
    return []


def check_image(file: File) -> list[Finding]:
    if (magic := IMAGES.get(file.suffix)) is None:
        return []
    with file.open() as stream:
        if stream.read(len(magic)) != magic:
            raise Malformed("wrong-magic", f"does not start as a {file.suffix} file does")
    return []


def check_weights(files: Sequence[File]) -> list[Finding]:
    if any(file.suffix in WEIGHTS for file in files):
        return []
    return [Finding(path=".", rule="no-weights", why="no .gguf or .safetensors file", fix="name the model's folder")]


def check_shards(files: Sequence[File]) -> list[Finding]:
    """An index names shards that lie beside it: never a path, never a file that is not there."""
    there = {file.name for file in files}
    findings = []
    for index in (file for file in files if file.name.endswith(".safetensors.index.json")):
        try:
            content = parse_json(_small(index))
        except (Malformed, OSError):
            continue  # check_json has said so
        shards = content.get("weight_map") if isinstance(content, dict) else None
        if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
            findings.append(refuse(index, "bad-index", "weight_map does not map tensors to files", "fetch it again"))
            continue
        folder = PurePosixPath(index.name).parent
        for shard in sorted(set(shards.values())):
            if "/" in shard or str(folder / shard) not in there:
                why = f"names {quoted(shard)}, which is not beside it"
                findings.append(refuse(index, "missing-shard", why, "fetch the missing file, or remove the index"))
    return findings


FAMILIES: tuple[Family, ...] = (check_mode, check_format)
BY_NAME: tuple[Family, ...] = (check_gguf, check_safetensors, check_json, check_text, check_image)
FOLDER_FAMILIES: tuple[FolderFamily, ...] = (check_weights, check_shards)


def _is_text(file: File) -> bool:
    name = PurePosixPath(file.name)
    return name.suffix in TEXT_SUFFIXES or name.name in TEXT_NAMES


def _small(file: File) -> bytes:
    if file.size_bytes > MAX_JSON_BYTES:
        raise Malformed("too-big", f"{file.size_bytes:,} bytes; side files have at most {MAX_JSON_BYTES:,}")
    with file.open() as stream:
        return stream.read(MAX_JSON_BYTES)


def _pairs(content: Any) -> Iterator[tuple[str, Any]]:
    """Every key with its value, at any depth."""
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield from value.items()
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)


def _is_pickle(data: bytes) -> bool:
    """Whether the bytes parse, to their STOP, as a pickle that names a callable: parsed, never loaded.

    Protocol 0 is plain ASCII. A numbered list parses as a pickle too, but names nothing.
    """
    names = False
    try:
        for opcode, argument, _ in pickletools.genops(data[:65536]):
            names = names or (opcode.name in {"GLOBAL", "INST"} and bool(_GLOBAL.fullmatch(str(argument))))
            if opcode.name == "STOP":
                return names
    except (ValueError, IndexError, OverflowError):
        pass
    return False
