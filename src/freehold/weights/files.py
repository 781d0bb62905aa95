"""The files under a path, without trusting links, names or kinds: what cannot be a plain file is a finding."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from io import BufferedReader
from pathlib import Path

from msgspec import Struct

from freehold.errors import Unknown
from freehold.types import Finding
from freehold.weights.cachefiles import HIDDEN_FOLDERS, is_blob, is_book, is_unfinished
from freehold.weights.reading import quoted

MAX_FILES = 10_000
BESIDE = re.compile(r".*(mmproj|imatrix)[^/]*\.gguf", re.IGNORECASE)  # GGUF files that are no model, but lie beside one
MAX_DEPTH = 8
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+=@ ,()\[\]~-]{0,254}")
_SPLIT = re.compile(r"(.+)-\d{5}-of-(\d{5})\.gguf")
_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_HIDDEN_ALLOWED = {".gitattributes", ".gitignore", ".gitkeep"}  # every hub repository has the first
_DEVICE = re.compile(r"(?:CON|PRN|AUX|NUL|(?:COM|LPT)\d)(?:\..*)?", re.IGNORECASE)  # what Windows opens instead


class File(Struct, frozen=True):
    """A regular file, and where its bytes really are when `name` is a link."""

    name: str  # relative to what was verified, with slashes
    real: Path
    size_bytes: int
    mode: int
    stamp: tuple[int, int, int, int, int]  # device, inode, size, mtime_ns, ctime_ns: to notice any change
    link: Path | None = None  # the name by which others will open it, when that is a link to `real`

    @property
    def suffix(self) -> str:
        return Path(self.name).suffix

    def open(self) -> BufferedReader:
        """Opens the bytes that were looked at. Raises OSError when another file has taken their place."""
        if self.link and _stamp(self.link.stat()) != self.stamp:
            raise OSError("the link leads elsewhere since it was checked")
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # a FIFO would hold us for ever
        stream = open(os.open(self.real, flags), "rb")  # noqa: PTH123, SIM115 - a descriptor; the caller closes
        if _stamp(os.fstat(stream.fileno())) != self.stamp:
            stream.close()
            raise OSError("the file changed while it was checked")
        return stream


def list_files(path: Path) -> tuple[list[File], list[Finding]]:
    """Every file at or under `path`, sorted by name; of a split GGUF file all parts, as an engine would load them.

    In a Hugging Face cache, blobs are known by the names that snapshots give them.
    Raises Unknown when there is nothing at `path`.
    """
    root = root_of(path)
    found = list(_walk(root)) if root.is_dir() else [_admit(each, each.name, _homes(root)) for each in _parts(root)]
    files = [each for each in found if isinstance(each, File)]
    linked = {file.real for file in files if file.link and not is_blob(file.name)}
    files = [file for file in files if not (is_blob(file.name) and file.real in linked)]
    return sorted(files, key=lambda file: file.name), [each for each in found if isinstance(each, Finding)]


def misnamed_blobs(files: Iterable[File], sha256s: Mapping[str, str]) -> list[Finding]:
    """Files of a hub's cache whose content is not what their blob is named by; `sha256s` are by the file's name.

    The hub names large files by their SHA-256, the others as git does. What cannot be read is found elsewhere.
    """
    found = []
    for file in files:
        told = file.real.name
        if not file.link or "blobs" not in file.real.parts[-3:-1] or not _DIGEST.fullmatch(told):
            continue
        with contextlib.suppress(OSError):
            real = sha256s.get(file.name, told) if len(told) == 64 else _git_id(file)
            if real != told:
                why = f"the cache names its content {told[:12]}..., but that is {real[:12]}..."
                found.append(_finding(file.name, "blob-digest", why, "remove the blob and fetch the file again"))
    return found


def _git_id(file: File) -> str:
    digest = hashlib.sha1(f"blob {file.size_bytes}\0".encode(), usedforsecurity=False)
    with file.open() as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def root_of(path: Path) -> Path:
    """`path` made absolute, with no link in it except perhaps the last name of a file."""
    if not os.path.lexists(path):
        raise Unknown(f"there is nothing at {quoted(str(path), 300)}", hint="name a GGUF file or a model's folder")
    return path.resolve() if path.is_dir() else path.parent.resolve() / path.name


def split_of(name: str) -> tuple[str, int] | None:
    """The common stem and the number of parts, when `name` is one part of a split GGUF file."""
    match = _SPLIT.fullmatch(name)
    return (match[1], int(match[2])) if match else None


def _parts(file: Path) -> list[Path]:
    split = split_of(file.name)
    siblings = file.parent.glob("*.gguf") if split else ()
    return sorted({file, *(each for each in siblings if split_of(each.name) == split)})


def _homes(root: Path) -> list[Path]:
    """Folders that links may lead to: the one verified and, in a Hugging Face cache, those its blobs are kept in."""
    homes = [root if root.is_dir() else root.parent]
    snapshot = next((each for each in (root, *root.parents) if each.parent.name == "snapshots"), None)
    repo = snapshot.parent.parent if snapshot else root
    if not repo.name.startswith(("models--", "datasets--", "spaces--")):
        return homes
    shared = repo.parent / "blobs"  # of all repositories of the cache; the hub's marker says that it is that
    candidates = [repo / "blobs", *([shared] if (shared / ".huggingface-shared-blobs").is_file() else [])]
    return homes + [each for each in candidates if each.is_dir() and not each.is_symlink()]


def _walk(root: Path) -> Iterator[File | Finding]:
    homes, waiting, count = _homes(root), [(root, "", 0)], 0
    while waiting:
        folder, prefix, depth = waiting.pop()
        seen: dict[str, str] = {}
        try:
            items = sorted(os.scandir(folder), key=lambda each: each.name)
        except OSError as error:
            yield _finding(prefix or ".", "unreadable", error.strerror or str(error), "make it readable for this user")
            continue
        for item in items:
            name, count = prefix + item.name, count + 1
            if count > MAX_FILES:
                yield _finding(name, "too-many-files", f"more than {MAX_FILES:,} entries", "verify the model alone")
                return
            folder_itself = item.is_dir(follow_symlinks=False)
            if complaint := _check_hidden(item.name, name, folder_itself) or _check_name(item.name, name, seen):
                yield complaint
            elif not folder_itself:
                yield _admit(Path(item.path), name, homes)
            elif depth == MAX_DEPTH:
                yield _finding(name, "too-deep", f"folders nested deeper than {MAX_DEPTH}", "flatten the folder")
            else:
                waiting.append((Path(item.path), name + "/", depth + 1))


def _check_hidden(own: str, name: str, folder: bool) -> Finding | None:
    if not (name.startswith(".") or "/." in name):
        return None
    if folder:  # what lies in a folder is asked for itself
        known = HIDDEN_FOLDERS.fullmatch(name) or not own.startswith(".")
    else:  # .eval_results: where the hub keeps benchmark results
        known = own in _HIDDEN_ALLOWED or is_book(name) or is_unfinished(name) or ".eval_results/" in name
    if known:
        return None
    return _finding(name, "hidden", "hidden files and folders are no part of a model", "remove it")


def _check_name(own: str, name: str, seen: dict[str, str]) -> Finding | None:
    if not _NAME.fullmatch(own.removeprefix(".")):
        return _finding(name, "bad-name", "names are plain ASCII letters, digits and -_.+=@ ,()[]~", "rename it")
    if own.endswith((".", " ")) or _DEVICE.fullmatch(own):
        return _finding(name, "bad-name", "Windows reads this name as another file or a device", "rename it")
    twin = seen.setdefault(own.casefold(), own)
    if twin != own:
        return _finding(name, "name-collision", f"differs from {twin} only in case", "rename or remove one of them")
    return None


def _admit(path: Path, name: str, homes: list[Path]) -> File | Finding:
    try:
        real = path.resolve(strict=True)
        facts = real.lstat()
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
        return _finding(name, "broken-link", f"leads nowhere: {quoted(str(error))}", "remove it or restore its target")
    if path.is_symlink() and not any(real.is_relative_to(home) for home in homes):
        return _finding(name, "link-outside", "a link that leaves the folder", "put a copy of its target here")
    if not stat.S_ISREG(facts.st_mode):
        what = "a link to a folder" if stat.S_ISDIR(facts.st_mode) else "a device, FIFO or socket"
        return _finding(name, "special-file", f"{what}, not a plain file", "remove it")
    link = path if path.is_symlink() else None
    return File(name, real, facts.st_size, facts.st_mode, _stamp(facts), link)


def _stamp(facts: os.stat_result) -> tuple[int, int, int, int, int]:
    return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns


def _finding(name: str, rule: str, why: str, fix: str) -> Finding:
    return Finding(path=quoted(name, 300), rule=rule, why=why, fix=fix)
