"""What huggingface_hub writes beside a model's own files: known by name, and worth nothing but its exact content.

Layouts: huggingface_hub 2.4.0, file_download.py (a cache: models--owner--name/{blobs,refs,snapshots,.no_exist,trees},
.locks/), _local_folder.py (a folder filled with --local-dir: .cache/huggingface/) and utils/_shared_blobs.py.
"""

from __future__ import annotations

import re

MAX_CACHE_FILE_BYTES = 1 << 20
HIDDEN_FOLDERS = re.compile(r"(?:.+/)?(?:\.cache(?:/huggingface)?|\.no_exist|\.locks|\.eval_results)")
_REPO = r"(?:(?:models|datasets|spaces)--[^/]+/)?"
_LOCAL = r"(?:.+/)?\.cache/huggingface/"
_COMMIT = r"[0-9a-f]{40}"
_ETAG = r"[0-9a-f]{40,64}"
_TREE = re.compile(rf"(?:{_REPO}|{_LOCAL})trees/{_COMMIT}\.json")
_BLOB = re.compile(rf"{_REPO}blobs/(?:[0-9a-f]{{2}}/)?{_ETAG}(?:\.[\w.]+)?")
_UNFINISHED = re.compile(r".+\.(?:incomplete|part|partial|aria2|crdownload|tmp)", re.IGNORECASE)
_MEDIA = r"(?!.*\.(?:png|jpe?g|gif|webp|wav|mp3|mp4|json|txt|md)$)"  # a model may have a folder refs of its own

_KNOWN = tuple(
    (re.compile(name), re.compile(content, re.DOTALL))
    for name, content in (
        (rf"{_REPO}refs/{_MEDIA}.+", rb"[0-9a-f]{40}\s?"),
        (rf"{_REPO}\.no_exist/{_COMMIT}/.+", rb""),
        (rf"(?:\.locks/.+|{_LOCAL}(?:download|upload)/.+|{_LOCAL}\.gitignore|blobs/.+)\.lock", rb""),
        (rf"{_LOCAL}download/.+\.metadata", rb'[0-9a-f]{40}\r?\n[\w"./:+=-]{1,200}\r?\n[0-9.]{1,40}\s*'),
        (rf"{_LOCAL}upload/.+\.metadata", rb"(?:[\w.-]{0,80}\r?\n){1,9}"),
        (rf"{_LOCAL}\.gitignore", rb"\*\s*"),
        (rf"(?:{_LOCAL})?CACHEDIR\.TAG", rb"Signature: 8a477f597d28d172789f06886806bc55\s[ -~\s]{0,2000}"),
        (r"blobs/\.huggingface-shared-blobs", rb"1\n"),
        (rf"blobs/[0-9a-f]{{2}}/{_ETAG}\.refs", rb"[\w.\-/\s]*"),
    )
)


def content_of(name: str) -> re.Pattern[bytes] | None:
    """What a file of the cache's own books may hold; None when `name` is not one of them."""
    return next((content for known, content in _KNOWN if known.fullmatch(name)), None)


def is_tree(name: str) -> bool:
    """Whether it is a commit's list of files, which is JSON."""
    return bool(_TREE.fullmatch(name))


def is_book(name: str) -> bool:
    """Whether the cache keeps the file for itself: it is checked, but is no part of the model."""
    return content_of(name) is not None or is_tree(name)


def is_blob(name: str) -> bool:
    """Whether the cache keeps content there by its digest, for snapshots to link to."""
    return bool(_BLOB.fullmatch(name)) and content_of(name) is None


def is_unfinished(name: str) -> bool:
    return bool(_UNFINISHED.fullmatch(name))
