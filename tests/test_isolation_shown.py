"""Every sandbox is tried from inside before the engine is in it: with a hole, or without a word, no engine runs."""

from __future__ import annotations

import _socket
import json
import os
import shutil
import signal
import socket
import stat
import sys
from types import SimpleNamespace

import pytest
from conftest import DEMO

from freehold.executors import isolation, isolation_probe
from freehold.executors.isolation_probe import TESTS
from freehold.executors.local import Local
from freehold.types import Launch

BWRAP = shutil.which("bwrap")
# Goes before the real one: edits its command line, as a careless change of ours would, and runs it.
HOLED = """#!{python} -I
import json, os, sys
edit = json.loads({edit!r})
argv = "\\0" + "\\0".join(sys.argv[1:]) + "\\0"
if "isolation_probe." in argv:
    for before, after in edit.get("replace", []):
        assert "\\0" + before + "\\0" in argv, before
        argv = argv.replace("\\0" + before + "\\0", "\\0" + after + "\\0" if after else "\\0", 1)
    if "rename" in edit:
        os.rename(*edit["rename"])
    if "open" in edit:
        os.set_inheritable(os.open(edit["open"], os.O_RDONLY), True)
    if "instead" in edit:
        report = next(word for word in argv.split("\\0") if word.startswith("report="))[7:]
        at = argv.index("\\0--\\0") + 4
        argv = argv[:at] + "/bin/sh\\0-c\\0" + edit["instead"].replace("N", report) + "\\0"
os.execv({bwrap!r}, [{bwrap!r}, *argv[1:-1].split("\\0")])
"""
ALL_BUT = {
    name: "\0".join(f"--unshare-{each}" for each in ("user", "ipc", "pid", "net", "uts") if each != name)
    for name in ("net", "pid")
}
ENGINE = """
import os
held, log = [], os.readlink("/proc/self/fd/1")
for fd in range(3, 256):
    try:
        os.write(fd, b"ran")
        held.append(fd)
    except OSError:
        pass
for process in ("1", str(os.getppid())):
    try:
        held += (os.readlink(f"/proc/{process}/fd/{fd}") for fd in os.listdir(f"/proc/{process}/fd"))
    except OSError:
        pass
open("FOLDER/ran", "w").write(str([each for each in held if each != log and "pipe" in str(each)]))
"""


class Scene:
    """A state folder with secrets, weights outside of it, and an engine that leaves a mark when it runs."""

    def __init__(self, folder):
        self.folder, self.state = folder, folder / "state"
        self.engine_dir = self.state / "run" / "e"
        self.engine_dir.mkdir(parents=True)
        self.log = folder / "engine.log"
        self.weights = folder / "weights" / "model.gguf"
        self.weights.parent.mkdir()
        for path in (self.weights, self.state / "book.db", self.state / "signing.key", folder / "hub.token"):
            path.write_text("precious")
        self.gateway = socket.create_server(("127.0.0.1", 0))

    async def start(self, *engine):
        local = Local(self.state / "run", private=[self.state, self.folder / "hub.token"])
        local.gateway = self.gateway.getsockname()
        launch = Launch(
            argv=engine or (isolation.parts()[0], "-I", "-c", ENGINE.replace("FOLDER", str(self.engine_dir))),
            socket=str(self.engine_dir / "x.sock"),
            env={"LANG": "C.UTF-8"},
            weights=(str(self.weights),),
        )
        return await local.start(launch, "x", self.log)

    @property
    def ran(self):
        return (self.engine_dir / "ran").exists()


@pytest.fixture
def scene(tmp_path):
    if why := Local(tmp_path / "try").why_not_isolated:
        pytest.skip(why)
    made = Scene(tmp_path)
    yield made
    made.gateway.close()


def holed(folder, monkeypatch, **edit):
    """Put a bwrap with this hole before the real one."""
    script = folder / "bin" / "bwrap"
    script.parent.mkdir()
    script.write_text(HOLED.format(python=os.path.realpath(sys.executable), edit=json.dumps(edit), bwrap=BWRAP))
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}:{os.environ['PATH']}")


async def test_in_a_whole_sandbox_every_test_passes_and_the_engine_runs_without_the_pipe(scene):
    process = await scene.start()
    report = await process.tested()
    assert await process.wait() == 0
    assert scene.ran
    assert report.failed == {}
    assert report.passed.keys() == TESTS.keys()
    assert "book.db, hub.token, signing.key" in report.passed["private"]
    found = scene.weights.stat()
    assert report.weights == ((found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns),)
    assert (scene.engine_dir / "ran").read_text() == "[]"


async def test_the_engine_gets_its_signals_as_they_were(scene):
    process = await scene.start("/bin/grep", "SigIgn", "/proc/self/status")
    assert await process.wait() == 0
    ignored = int(scene.log.read_text().split()[1], 16)
    pythons = sum(1 << number - 1 for number in (signal.SIGPIPE, signal.SIGXFSZ))
    assert not ignored & pythons  # others may have been ignored before there was a daemon


def replace(before, after=""):
    return lambda _: {"replace": [(before, after)]}


HOLES = {
    "network": (replace("--unshare-all", ALL_BUT["net"]), {"gateway", "unix_sockets"}),
    "processes": (replace("--unshare-all", ALL_BUT["pid"]), {"processes"}),
    "weights": (
        lambda s: {"replace": [(f"--ro-bind\0{s.weights}", f"--bind\0{s.weights}")]},
        {"weights", "writable"},
    ),
    "state": (
        lambda s: {
            "replace": [(f"--bind\0{s.engine_dir}", f"--ro-bind\0{s.state}\0{s.state}\0--bind\0{s.engine_dir}")]
        },
        {"private"},
    ),
    "token": (
        replace("--remount-ro\0/dev", "--remount-ro\0/dev\0--ro-bind\0{0}/hub.token\0{0}/hub.token"),
        {"private"},
    ),
    "environment": (replace("--clearenv", "--clearenv\0--setenv\0AWS_SECRET\0x"), {"environment"}),
    "namespaces": (replace("--disable-userns"), {"user_namespaces"}),
    "capabilities": (replace("--cap-drop\0ALL", "--cap-add\0ALL"), {"capabilities"}),
    "devices": (replace("--dev\0/dev", "--dev-bind\0/dev\0/dev"), {"devices"}),
    "root": (replace("--remount-ro\0/dev\0--remount-ro\0/", "--remount-ro\0/dev"), {"writable"}),
    "descriptor": (lambda s: {"open": str(s.state / "book.db")}, {"descriptors"}),
}


@pytest.mark.parametrize("hole", HOLES)
async def test_a_hole_is_found_and_no_engine_runs(scene, monkeypatch, hole):
    edit, expected = HOLES[hole]
    edit = json.loads(json.dumps(edit(scene)).replace("{0}", str(scene.folder)))
    holed(scene.folder, monkeypatch, **edit)
    process = await scene.start()
    report = await process.tested()
    assert expected <= report.failed.keys()
    assert report.passed.keys() == TESTS.keys() - report.failed.keys()
    assert await process.wait() == 77
    assert not scene.ran
    assert scene.weights.read_text() == "precious"
    assert stat.S_IMODE(scene.weights.stat().st_mode) == stat.S_IMODE((scene.state / "book.db").stat().st_mode)


PROC = {
    "a local network": ("routes", "Iface Destination\neth0 0000000A 00000000 0001\n", "eth0"),
    "an abstract socket": ("unix_sockets", "Num\n0: 2 0 10000 1 1 9 @bus\n", "1 can be seen"),
    "a setuid program": ("capabilities", "CapEff:\t0\nNoNewPrivs:\t0\n", "setuid"),
    "a bounding set": ("capabilities", "CapBnd:\t1\nNoNewPrivs:\t1\n", "CapBnd is 1"),
    "a mount": ("writable", "1 2 0:1 / /srv/my\\040models rw,nosuid - ext4 /dev/vda rw\n", r"/srv/my\\040models can"),
}


@pytest.mark.parametrize("case", PROC)
def test_what_proc_shows_is_understood(monkeypatch, case):
    name, content, expected = PROC[case]
    given = {name: [] for name in isolation_probe.NAMES}
    monkeypatch.setattr(isolation_probe, "lines", lambda _: content.splitlines())
    with pytest.raises(isolation_probe.Hole, match=expected):
        TESTS[name](given)
    if name == "writable":
        TESTS[name]({**given, "folder": ["/srv/my models"]})


ANSWERS = {  # what the world answers, where it should not
    "tcp": (isolation_probe, "OUTSIDE", ("127.0.0.1",), "there is a way to 127.0.0.1: .*refused"),
    "udp": (isolation_probe, "OUTSIDE", ("127.0.0.1",), "there is a way to 127.0.0.1: .*refused"),
    "dns": (_socket, "getaddrinfo", lambda *_: [], "was resolved"),
    "keyring": (isolation_probe, "libc", SimpleNamespace(syscall=lambda *_: 4), "there are keys"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_is_a_hole(monkeypatch, name):
    where, what, answer, expected = ANSWERS[name]
    monkeypatch.setattr(where, what, answer)
    with pytest.raises(isolation_probe.Hole, match=expected):
        TESTS[name]({})


def test_an_answer_from_the_gateway_is_a_hole():
    with socket.create_server(("127.0.0.1", 0)) as listening, pytest.raises(isolation_probe.Hole, match="answers"):
        isolation_probe.gateway({"gateway": [f"127.0.0.1:{listening.getsockname()[1]}"]})


def test_weights_that_another_user_owns_are_not_taken_for_read_only(monkeypatch, tmp_path):
    given = {"weights": [str(tmp_path)]}
    monkeypatch.setattr(os, "utime", lambda *_, **__: (_ for _ in ()).throw(PermissionError(1, "not yours")))
    with pytest.raises(isolation_probe.Hole):
        isolation_probe.weights(given)


async def test_names_that_are_no_text_are_no_fault(scene):
    (scene.state / os.fsdecode(b"caf\xe9")).touch()
    process = await scene.start()
    report = await process.tested()
    assert await process.wait() == 0
    assert report.failed == {}
    assert "caf?" in report.passed["private"]


WORDLESS = {
    "killed": ("kill -9 $$", "there is none"),
    "cut short": ("""printf '{"passed":{"tcp":"no ro' >/proc/self/fd/N""", "cut short"),
    "empty": ("echo {} >/proc/self/fd/N", "nonsense"),
    "not ours": ("""echo '{"passed":{},"failed":{},"weights":[],"more":1}' >/proc/self/fd/N""", "nonsense"),
    "too long": ("cat /dev/zero >/proc/self/fd/N", "nonsense"),
    "late": ("exec cat /dev/zero", "none within 0.3 s"),
}


@pytest.mark.parametrize("fault", WORDLESS)
async def test_no_report_is_a_failed_test(scene, monkeypatch, fault):
    instead, why = WORDLESS[fault]
    holed(scene.folder, monkeypatch, instead=instead)
    if fault == "late":
        monkeypatch.setattr(isolation, "DEADLINE_S", 0.3)
    process = await scene.start()
    report = await process.tested()
    assert list(report.failed) == ["report"]
    assert why in report.failed["report"]
    await process.stop()
    assert not scene.ran


@pytest.fixture
def isolated(tmp_path):
    if why := Local(tmp_path / "try").why_not_isolated:
        pytest.skip(why)


@pytest.mark.parametrize("policy", ["preferred", "required"])
def test_a_start_in_a_sandbox_with_a_hole_is_refused(team, isolated, monkeypatch, policy):
    holed(team.folder, monkeypatch, replace=[("--disable-userns", "")])
    team.write(policy=f'isolation = "{policy}"', demo=team.fake())
    team.serve()
    said = team.run("up", code=3)
    assert "the sandbox of `demo` has a hole: user_namespaces: a new one can be made" in said
    (failed,) = team.events("isolation.failed")
    assert failed["detail"]["user_namespaces"] == "a new one can be made"
    assert team.events("isolation.tested") == team.events("probe.passed") == []
    assert team.status("demo")["pid"] is None


def test_a_start_whose_test_is_killed_is_no_start(team, isolated, monkeypatch):
    holed(team.folder, monkeypatch, instead="echo oh no >&2; kill -9 $$")
    team.write(demo=team.fake())
    team.serve()
    assert "gave no report (report: there is none): oh no" in team.run("up", code=5)


def test_a_start_leaves_its_record(team, isolated):
    team.write(demo=team.fake())
    team.serve()
    assert team.up("demo") == {"up": "demo"}
    (tested,) = team.events("isolation.tested")
    assert tested["detail"].keys() == TESTS.keys() | {"run", "tests"}
    assert (tested["detail"]["tests"], tested["detail"]["tcp"]) == (len(TESTS), "no route")
    assert {"book.db", "freehold.toml", "admin.sock"} <= set(tested["detail"]["private"].replace(",", "").split())
    (launching,) = team.events("engine.launching")
    assert f"--model {DEMO} " in launching["detail"]["argv"]


def test_without_a_sandbox_that_is_on_record(team):
    team.write(policy='isolation = "off"', demo=team.fake())
    team.serve()
    assert "NOT ISOLATED: isolation is switched off" in team.run("up")
    (absent,) = team.events("isolation.absent")
    assert absent["detail"]["why_not"] == "isolation is switched off"


def test_weights_that_are_swapped_between_the_check_and_the_start_are_found_inside(team, isolated, monkeypatch):
    weights, other = team.folder / "copy.gguf", team.folder / "other.gguf"
    for path in (weights, other):
        shutil.copy(DEMO, path)
    holed(team.folder, monkeypatch, rename=[str(other), str(weights)])
    team.write(demo=team.fake().replace(str(DEMO), str(weights)))
    team.serve()
    assert "was given other files than were verified" in team.run("up", code=3)
    assert team.events("isolation.tested") == team.events("probe.passed") == []


def test_weights_that_are_touched_while_an_engine_loads_them_are_not_served(team, isolated):
    weights = team.folder / "copy.gguf"
    shutil.copy(DEMO, weights)
    team.write(demo=team.fake(delay_s=0.3).replace(str(DEMO), str(weights)))
    team.serve()
    for line in team.daemon.lines("POST", "/up?endpoint=demo"):
        if line.get("kind") == "isolation.tested":
            with weights.open("r+b") as file:
                file.write(b"GGUF")
    assert "changed after they were verified" in line["error"]
    assert team.events("probe.passed") == []
