"""Which files belong in a model's folder: default deny, by name and by how their bytes begin."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from freehold.types import Finding
from freehold.weights.files import File
from freehold.weights.gate.finding import refuse
from freehold.weights.reading import Malformed, quoted

WEIGHTS = {".safetensors": "safetensors", ".gguf": "gguf"}
_TEXTS = (
    *(".txt", ".md", ".rst", ".csv", ".tsv", ".jsonl", ".bib", ".cff", ".tiktoken", ".vocab", ".sig"),
    *(".sha256", ".sha512", ".md5"),
    *(".gitattributes", ".gitignore", ".gitkeep"),
)
_SUFFIXES = {
    **WEIGHTS, ".json": "json", ".jinja": "template", ".jinja2": "template", ".yaml": "yaml", ".yml": "yaml",
    ".svg": "svg", ".pdf": "pdf", ".model": "sentencepiece", ".spm": "sentencepiece",
    **dict.fromkeys(_TEXTS, "text"),
}  # fmt: skip
_SENTENCEPIECE = re.compile(r".+\.model\.v\d+(?:m\d+)?", re.IGNORECASE)  # Mistral numbers them: tokenizer.model.v3
_TEXT_NAMES = re.compile(
    r"(?:LICEN[CS]E|NOTICES?|READ_?ME|COPYING|COPYRIGHT|US(?:E|AGE)[-_ ]POLICY|AUTHORS|CITATION|CHANGELOG|CONTRIBUTORS"
    r"|ATTRIBUTION|PATENTS|(?:SHA(?:256|512)|MD5|CHECK)SUMS?|PARAMS|TEMPLATE|SYSTEM|THIRD[-_ ]?PARTY[-_ \w]*|MODELFILE)"
    r"(?:[-_. ][\w.() -]*)?",
    re.IGNORECASE,
)
_IMAGES = (
    b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8\xff",
    b"GIF87a",
    b"GIF89a",
    b"RIFF....WEBP",
    b"....ftypavif",
    b"BM....\0\0\0\0",
)
_BOXES = (b"....ftyp", b"....moov", b"....mdat", b"....wide", b"....free")  # of MP4 and QuickTime
_MEDIA = {  # a dot stands for any byte; pictures often have another picture's suffix
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".gif", ".webp", ".avif", ".bmp"), _IMAGES),
    **dict.fromkeys((".mp4", ".m4a", ".mov"), _BOXES),
    ".wav": (b"RIFF....WAVE",), ".mp3": (b"ID3", b"\xff\xfb", b"\xff\xf3", b"\xff\xf2", b"\xff\xfa"),
    ".flac": (b"fLaC", b"ID3"), ".ogg": (b"OggS",), ".webm": (b"\x1a\x45\xdf\xa3",),
}  # fmt: skip
_CODE = {
    ".py", ".pyc", ".pyd", ".pyx", ".so", ".dll", ".dylib", ".exe", ".msi", ".sh", ".bash", ".zsh", ".bat", ".cmd",
    ".ps1", ".vbs", ".js", ".mjs", ".ts", ".html", ".htm", ".xhtml", ".wasm", ".ipynb", ".jar", ".class", ".java",
    ".rb", ".pl", ".php", ".lua", ".r", ".jl", ".go", ".rs", ".c", ".cc", ".cpp", ".h", ".cu", ".cuh", ".ptx",
    ".cubin", ".o", ".a", ".app", ".desktop", ".lnk",
}  # fmt: skip
_PICKLES = {
    ".bin", ".pt", ".pt2", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz", ".dill", ".cloudpickle",
    ".mar", ".nemo", ".distcp", ".torchscript",
}  # fmt: skip
_ARCHIVES = {
    ".zip", ".tar", ".gz", ".tgz", ".bz2", ".tbz2", ".xz", ".txz", ".7z", ".rar", ".zst", ".lz4", ".whl", ".egg",
    ".deb", ".rpm", ".iso", ".cab",
}  # fmt: skip


def kind_of(name: str) -> str:
    """The family of checks for a file, by its name; empty when no rule knows it."""
    own = PurePosixPath(name).name
    suffix = _suffix(own)
    if suffix in _CODE | _PICKLES | _ARCHIVES:
        return ""
    if suffix in _MEDIA:
        return "media"
    if kind := _SUFFIXES.get(suffix):
        return kind
    if _SENTENCEPIECE.fullmatch(own):
        return "sentencepiece"
    return "text" if _TEXT_NAMES.fullmatch(own) else ""


def check(file: File) -> list[Finding]:
    """Why a file whose kind is empty is refused."""
    suffix = _suffix(PurePosixPath(file.name).name)
    if suffix in _CODE:
        return [refuse(file, "code", "programs are no part of a model", "use a build that needs no remote code")]
    if suffix in _PICKLES:
        fix = "use the safetensors or GGUF build; convert one elsewhere, in isolation, if there is none"
        return [refuse(file, "pickle", "this format can run code when it is loaded", fix)]
    if suffix in _ARCHIVES:
        return [refuse(file, "archive", "archives hide what they hold", "unpack it, then verify the files")]
    fix = "remove it: weights are .safetensors or .gguf, beside JSON, texts, templates, pictures and PDF"
    return [refuse(file, "unknown-format", f"no rule knows {quoted(suffix) or 'files without extension'}", fix)]


def check_media(file: File, head: bytes) -> list[Finding]:
    """Raises Malformed unless it begins as pictures, sound or films of that suffix do."""
    suffix = _suffix(PurePosixPath(file.name).name)
    for magic in _MEDIA[suffix]:
        if len(head) >= len(magic) and all(m in (0x2E, h) for m, h in zip(magic, head, strict=False)):
            return []
    raise Malformed("wrong-magic", f"does not begin as a {suffix} file does")


def _suffix(own: str) -> str:
    return own.lower() if own.startswith(".") and own.count(".") == 1 else PurePosixPath(own).suffix.lower()
