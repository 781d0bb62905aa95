"""An engine's own environment: made by pip from a recipe, in a folder of its own, and never in ours.

FOLDER/NAME-VERSION/ is a virtual environment with an `engine.json` that says what is in it. That file is written last:
without it the folder does not count, and the next attempt clears it away. A private index, a proxy, certificates are
those of pip's own configuration.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
import psutil
from msgspec import Struct

from freehold.errors import BadRequest, DoesNotFit, FreeholdError, HubFailed, Refused, Unknown
from freehold.executors.bubblewrap import wrap
from freehold.executors.local import why_no_sandbox
from freehold.types import Launch, Recipe

Say = Callable[[str], object]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
_KEPT_LINES = 60  # of what pip said, to tell why it failed
_SHOWN_LINES = 6
_READ_S = 600  # for a program to come as far as its command line, from a slow disk
_WHY: tuple[tuple[re.Pattern[str], type[FreeholdError], str], ...] = (
    (
        re.compile("No space left on device|Disk quota exceeded"),
        DoesNotFit,
        "make room where state_dir is, and in TMPDIR",
    ),
    (
        re.compile("DO NOT MATCH THE HASHES|Hashes are required|must have their versions pinned"),
        Refused,
        "the lock is of other archives: find out who changed which; freehold engine lock prints one anew",
    ),
    (
        re.compile("NewConnectionError|Max retries|name resolution|timed out|ProxyError|SSLError|ConnectionReset"),
        HubFailed,
        "pip goes by its own configuration (PIP_INDEX_URL, PIP_PROXY, PIP_CERT): pip config debug shows it",
    ),
    (re.compile("No matching distribution found"), Unknown, "is there such a version for this Python and machine?"),
)
# What the Python of an environment is asked, without any engine being imported.
_PACKAGES = """
import json, importlib.metadata as m
found = {}
for each in m.distributions():
    name = (each.metadata["Name"] or "").lower().replace("_", "-")
    found.setdefault(name, (each.version, str(each._path)))
print(json.dumps(found))
"""


class Package(Struct, frozen=True, kw_only=True):
    """One that is installed, and the archive that it came in."""

    name: str
    version: str
    sha256: str = ""  # of the archive; "": pip did not say


class Environment(Struct, frozen=True, kw_only=True):
    """An engine that can be started."""

    engine: str
    version: str
    python: str
    made_ns: int = 0
    packages: tuple[Package, ...] = ()
    flags: dict[str, msgspec.Raw] = {}  # of each program: see engines.flags
    unread: dict[str, str] = {}  # programs whose options could not be read, and why

    @property
    def folder(self) -> Path:
        return Path(self.python).parent.parent

    @property
    def digest(self) -> str:
        """Over name, version and digest of every package, in hexadecimal."""
        lines = sorted(f"{each.name}=={each.version} {each.sha256}\n" for each in self.packages)
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def install(recipe: Recipe, folder: Path, python: str = sys.executable, *, locked: Path | None = None,
            say: Say = print) -> Environment:  # fmt: skip
    """Make it, or find that it is there. `locked`: a file of requirements with hashes, of which not one may differ.

    Raises BadRequest for a name that will not do, DoesNotFit for a full disk, HubFailed without a network,
    Unknown for a version that is not there, Refused for archives that are not those of `locked`.
    """
    home = _home(folder, recipe.engine, recipe.version)
    with _alone(folder, say), _room(home):
        if there := _read(home):
            if locked:
                check_lock(there, locked)
            say(f"{recipe.engine} {recipe.version} is there")
            return there
        shutil.rmtree(home, ignore_errors=True)
        try:
            return _make(recipe, home, python, locked, say)
        except BaseException:
            shutil.rmtree(home, ignore_errors=True)
            raise


def find(folder: Path, engine: str, version: str = "") -> Environment | None:
    """The newest version of it, unless one is named. Raises BadRequest for what cannot be a version."""
    if version:
        return _read(_home(folder, engine, version))
    there = (each for each in listing(folder) if each.engine == engine)
    return max(there, key=lambda each: _order(each.version), default=None)


def listing(folder: Path) -> list[Environment]:
    """All that are whole."""
    return [*filter(None, map(_read, sorted(folder.glob("*-*"))))]


def remove(folder: Path, engine: str, version: str, say: Say = print) -> Environment:
    """Raises Unknown when it is not there, Refused while something runs from it."""
    home = _home(folder, engine, version)
    with _alone(folder, say), _room(home):
        found = _read(home)
        if found is None:
            raise Unknown(f"{engine} {version} is not installed", hint="freehold engine list shows what is")
        if users := _users(home):
            hint = "freehold stop ends an endpoint's engine; freehold down all of them"
            raise Refused(f"{engine} {version} is in use by process {users[0]}", hint=hint)
        (home / "engine.json").unlink()  # from here on it does not count
        shutil.rmtree(home)
    return found


def adopt(python: str, recipe: Recipe, folder: Path, say: Say = print) -> Environment:
    """An environment that the team made itself, by its Python. Its programs are read again when the engine changes.

    Raises BadRequest for a file that is no Python, Unknown where it does not have the engine.
    """
    there_are = _ask(python)
    name = next((each for each in recipe.packages if each in there_are), None)
    if name is None:
        hint = f"{python} -m pip list shows what it has"
        raise Unknown(f"{python} has no {' or '.join(recipe.packages)}", hint=hint)
    version, metadata = there_are[name]
    stamps = [path.stat().st_mtime_ns for path in (Path(metadata), Path(recipe.reader)) if path.exists()]
    key = repr((python, version, stamps))
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    cache = folder / f"adopted-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
    if there := _decode(cache):
        return there
    with _alone(folder, say):  # replicas that start together ask together
        if there := _decode(cache):
            return there
        packages = tuple(Package(name=each, version=there_are[each][0]) for each in sorted(there_are))
        made = _described(recipe, python, packages, say)
        made = msgspec.structs.replace(made, version=version)
        _write(cache, made)
    return made


def lock(environment: Environment) -> str:
    """The same once more, as `install(locked=...)` takes it. Raises Refused where pip gave no digest."""
    if without := [each.name for each in environment.packages if not each.sha256]:
        hint = "install them from archives: an index, or wheels"
        raise Refused(f"there is no digest of {', '.join(without[:5])}", hint=hint)
    lines = (f"{each.name}=={each.version} --hash=sha256:{each.sha256}" for each in environment.packages)
    return "\n".join([f"# {environment.engine} {environment.version}", *lines])


def check_lock(environment: Environment, locked: Path) -> None:
    """Raises Refused where what is there was not made from these archives."""
    wanted = [line for line in locked.read_text("utf-8").splitlines() if line and not line.startswith("#")]
    if sorted(wanted) != sorted(lock(environment).splitlines()[1:]):
        hint = f"freehold engine remove {environment.engine} --version {environment.version}, and install it again"
        raise Refused(
            f"{environment.engine} {environment.version} is there, of other archives than {locked}", hint=hint
        )


def size_bytes(environment: Environment) -> int:
    """On the disk, of what nothing else shares."""
    files = (os.lstat(Path(at, name)) for at, _, names in os.walk(environment.folder) for name in names)
    return sum(each.st_blocks * 512 for each in files)


def _make(recipe: Recipe, home: Path, python: str, locked: Path | None, say: Say) -> Environment:
    say(f"making {home}")
    _run(
        [python, "-I", "-m", "venv", str(home)],
        say,
        "apt install python3-venv, or your system's equivalent; or make room",
    )
    own, report = str(home / "bin" / "python"), home / "report.json"
    pip = [own, "-I", "-m", "pip", "--disable-pip-version-check", "--no-input"]
    wanted = list(recipe.requirements)
    if locked:  # what pip builds, it builds with packages that have no hash
        wanted = ["--no-deps", "--require-hashes", "--only-binary", ":all:", "-r", str(locked)]
    _run([*pip, "install", "--progress-bar", "off", "--report", str(report), *wanted], say, recipe.hint)
    packages = _packages(report, recipe)
    if recipe.remove:
        _run([*pip, "uninstall", "--yes", *recipe.remove], say)
    found = {each.name: each.version for each in packages}
    version = next((found[name] for name in recipe.packages if name in found), "none")
    if recipe.version not in (version, version.partition("+")[0]):
        raise Refused(f"what was asked for is {recipe.engine} {recipe.version}, and what came is {version}")
    report.unlink()
    made = _described(recipe, own, packages, say)
    _write(home / "engine.json", made)
    return made


def _packages(report: Path, recipe: Recipe) -> tuple[Package, ...]:
    """What stays: https://pip.pypa.io/en/stable/reference/installation-report/. Names as indexes know them."""
    found = []
    for item in json.loads(report.read_bytes())["install"]:
        name = re.sub(r"[-_.]+", "-", item["metadata"]["name"]).lower()
        hashes = item["download_info"].get("archive_info", {}).get("hashes", {})
        if name not in recipe.remove:
            found.append(Package(name=name, version=item["metadata"]["version"], sha256=hashes.get("sha256", "")))
    return tuple(sorted(found, key=lambda each: each.name))


def _run(argv: Sequence[str], say: Say, hint: str = "") -> None:
    """To its end, its lines passed on. Raises the error that its last ones tell of."""
    said: list[str] = []
    with subprocess.Popen(
        argv,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=_env(),
        close_fds=False,  # it holds the lock too: where we are killed, nobody else begins before it has ended
    ) as process:
        for line in process.stdout or ():
            said.append(line.rstrip())
            del said[:-_KEPT_LINES]
            say(said[-1])
    if process.returncode:
        found = (why for why in _WHY if any(map(why[0].search, said)))
        _, kind, advice = next(found, (None, FreeholdError, ""))
        shown = "\n".join(line for line in said[-_SHOWN_LINES:] if line.strip())
        advice = "; ".join(filter(None, (advice, hint if kind in (Unknown, FreeholdError) else "")))
        raise kind(f"{argv[3]} ended with {process.returncode}:\n{shown}", hint=advice)


def _env() -> dict[str, str]:
    """Ours, with pip's configuration, but nothing that would lead Python out of the environment."""
    return {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}


def _described(recipe: Recipe, python: str, packages: tuple[Package, ...], say: Say) -> Environment:
    """With what each program takes on its command line. One that cannot be read is one that is not checked."""
    flags: dict[str, msgspec.Raw] = {}
    unread: dict[str, str] = {}
    for program in recipe.programs:
        say(f"reading the options of {program}")
        try:
            flags[program] = msgspec.json.decode(_said(python, recipe.reader, program), type=msgspec.Raw)
        except subprocess.CalledProcessError as error:
            unread[program] = error.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        except (subprocess.TimeoutExpired, msgspec.DecodeError) as error:
            unread[program] = str(error)
        if program in unread:
            say(f"they will not be checked before a start: {unread[program]}")
    return Environment(
        engine=recipe.engine,
        version=recipe.version,
        python=python,
        made_ns=time.time_ns(),
        packages=packages,
        flags=flags,
        unread=unread,
    )


def _ask(python: str) -> dict[str, tuple[str, str]]:
    """The packages it has: version and folder of its metadata, by name."""
    try:
        return msgspec.json.decode(_said(python, "-c", _PACKAGES), type=dict[str, tuple[str, str]])
    except (OSError, subprocess.SubprocessError, msgspec.DecodeError) as error:
        hint = "name the file bin/python of a virtual environment"
        raise BadRequest(f"{python} does not run as a Python: {error}", hint=hint) from None


def _said(python: str, *words: str) -> bytes:
    """What the Python of an environment prints. Its packages run code then, which nobody has examined.

    So it gets nothing of our own, and is in a sandbox where there is one. Raises OSError, SubprocessError.
    """
    own, home, bwrap = Path(python).parent.parent, Path(python).resolve().parent.parent, shutil.which("bwrap") or ""
    parts = [prefix / part for prefix in (own, home) for part in ("bin", "lib", "lib64", "pyvenv.cfg")]
    parts += map(Path, words)
    with tempfile.TemporaryDirectory() as scratch:
        launch = Launch(
            argv=(python, "-I", *words),
            socket=f"{scratch}/none.sock",
            env={"HOME": "/tmp", "LANG": "C.UTF-8", "PATH": f"{Path(python).parent}:/usr/bin:/bin"},  # noqa: S108
            readable=tuple(str(each) for each in parts if each.is_absolute() and each.exists()),
            devices=tuple(str(each) for each in Path("/dev").glob("nvidia*") if each.is_char_device()),
        )
        argv = launch.argv if why_no_sandbox(bwrap, Path(scratch)) else wrap(launch, bwrap)
        return subprocess.run(argv, capture_output=True, timeout=_READ_S, check=True, env=launch.env, cwd="/").stdout


def _home(folder: Path, engine: str, version: str) -> Path:
    for said in (engine, version):
        if not _NAME.fullmatch(said):
            raise BadRequest(f"{said!r} names no engine and no version of one", hint="a version is written as 0.32.0")
    return folder / f"{engine}-{version}"


@contextmanager
def _alone(folder: Path, say: Say) -> Iterator[None]:
    """One installation at a time: the second waits, and then finds what the first one made."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    held = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    os.set_inheritable(held, True)
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another installation is under way: waiting for it")
            fcntl.flock(held, fcntl.LOCK_EX)
        yield
    finally:
        os.close(held)


@contextmanager
def _room(home: Path) -> Iterator[None]:
    """What the disk has to say."""
    try:
        yield
    except OSError as error:
        kind = DoesNotFit if error.errno in (errno.ENOSPC, errno.EDQUOT) else FreeholdError
        raise kind(f"cannot write {home}: {error}", hint="make room where state_dir is") from None


def _users(home: Path) -> list[int]:
    """Processes whose command line begins in it."""
    inside = f"{home}{os.sep}"
    seen = psutil.process_iter(["cmdline"])
    return [each.pid for each in seen if any(part.startswith(inside) for part in each.info["cmdline"] or ())]


def _read(home: Path) -> Environment | None:
    """None where it is not whole, or was moved: its programs name the folder it was made in."""
    found = _decode(home / "engine.json")
    there = found is not None and Path(found.python).exists() and found.folder.samefile(home)
    return found if there else None


def _decode(path: Path) -> Environment | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Environment)
    except (FileNotFoundError, NotADirectoryError, msgspec.DecodeError):
        return None


def _write(path: Path, made: Environment) -> None:
    """Whole or not at all, also when the power fails."""
    partial = path.with_suffix(".partial")
    with partial.open("wb") as out:
        out.write(msgspec.json.encode(made))
        out.flush()
        os.fsync(out.fileno())
    partial.replace(path)


def _order(version: str) -> tuple[list[int], bool]:
    """Of versions; what is not released yet comes before what is."""
    release = re.match(r"[\d.]*", version)
    numbers = [int(each) for each in (release[0] if release else "").split(".") if each]
    return numbers, not re.search(r"\d(a|b|rc|\.?dev)\d*", version)
