"""What an engine can do to its host: nothing in the sandbox; without one, at least not outlive the daemon."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import msgspec
import psutil
import pytest
import uvloop

from freehold.errors import BadConfig, EngineFailed, NotReady, Refused
from freehold.executors.bubblewrap import wrap
from freehold.executors.local import Local, sweep
from freehold.executors.sockets import open_socket
from freehold.types import Launch

HOSTILE = Path(__file__).with_name("hostile_engine.py")
ESCAPES = [
    *("tcp", "udp", "dns", "abstract socket", "another socket"),
    *("read the book", "read the keys", "see the book", "read passwd"),
    *("daemon's environment", "daemon's environment as its own", "daemon's descriptors", "signal the daemon"),
    *("write the weights", "remove the weights", "write beside the weights", "write a program", "write to the root"),
    *("core pattern", "sysrq", "kernel memory", "user namespace", "root powers"),
]
# Without a sandbox either: they need a network, root, or a daemon that hands down its environment.
NOT_FOR_EVERYBODY = {
    *("dns", "write a program", "write to the root"),
    *("core pattern", "sysrq", "kernel memory", "user namespace", "root powers"),
    *("daemon's environment as its own", "daemon's descriptors"),
}
PATIENCE_S = 30
# /proc shows the environment that a process began with, so the secret is one that was there: the longest variable.
SECRET = max(Path("/proc/self/environ").read_text(errors="replace").split("\0"), key=len).partition("=")[2]


def prefixes() -> tuple[str, ...]:
    roots = (Path(sys.prefix), Path(sys.base_prefix), Path(sys.executable).resolve().parent.parent)
    parts = (root / part for root in dict.fromkeys(roots) for part in ("bin", "lib", "lib64", "pyvenv.cfg"))
    return tuple(str(part) for part in parts if part.exists())


class Scene:
    """A daemon's state folder with its secrets, a model, things to reach for, and the engine that reaches."""

    def __init__(self, folder: Path) -> None:
        self.state = folder / "state"
        self.run_dir = self.state / "run"
        self.run_dir.mkdir(parents=True)
        self.engine_dir = self.run_dir / "e"
        self.engine_dir.mkdir(mode=0o700)
        self.log = self.state / "engine.log"
        self.book, self.keys, self.weights = self.state / "book.db", self.state / "keys", folder / "model.gguf"
        for path in (self.book, self.keys, self.weights):
            path.write_text("precious")
        self.tcp = socket.create_server(("127.0.0.1", 0))
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind(("127.0.0.1", 0))
        self.abstract, self.victim = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
        self.abstract.bind(f"\0freehold-test-{os.getpid()}")
        self.victim.bind(str(self.state / "admin.sock"))
        for listener in (self.abstract, self.victim):
            listener.listen()
        for listener in self.listeners:
            listener.setblocking(False)
        self.connections: list[socket.socket] = []
        os.mkfifo(self.engine_dir / "report")

    @property
    def listeners(self) -> tuple[socket.socket, ...]:
        return self.tcp, self.udp, self.abstract, self.victim

    def launch(self, *attempts: str, deaf: bool = False) -> Launch:
        plan = {
            "attempts": attempts,
            "deaf": deaf,
            "socket": str(self.engine_dir / "x.sock"),
            "book": str(self.book),
            "keys": str(self.keys),
            "weights": str(self.weights),
            "victim": str(self.state / "admin.sock"),
            "abstract": self.abstract.getsockname()[1:].decode(),
            "tcp": self.tcp.getsockname()[1],
            "udp": self.udp.getsockname()[1],
            "daemon": os.getpid(),
            "secret": SECRET,
        }
        return Launch(
            argv=(sys.executable, "-I", str(HOSTILE), json.dumps(plan)),
            socket=plan["socket"],
            env={"LANG": "C.UTF-8"},
            readable=(str(self.weights), str(HOSTILE), *prefixes()),
        )

    async def report(self) -> list[str]:
        """Wait for the engine to listen and say which attempts succeeded."""
        loop, reader = asyncio.get_running_loop(), asyncio.StreamReader()
        pipe = os.fdopen(os.open(self.engine_dir / "report", os.O_RDONLY | os.O_NONBLOCK))
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
        try:
            async with asyncio.timeout(PATIENCE_S):
                return json.loads(await reader.read())
        except TimeoutError:
            pytest.fail(f"no report; the engine said: {self.log.read_text()}")
        finally:
            transport.close()

    async def ask(self, command: bytes, descriptor: int | None = None) -> socket.socket:
        """Give the engine a command; returns the connection, on which it answered."""
        opened = open_socket(str(self.engine_dir / "x.sock")) if descriptor is None else os.dup(descriptor)
        connection = socket.socket(socket.AF_UNIX)
        self.connections.append(connection)
        connection.setblocking(False)
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(PATIENCE_S):
            await loop.sock_connect(connection, f"/proc/self/fd/{opened}")
            os.close(opened)
            await loop.sock_sendall(connection, command)
            assert await loop.sock_recv(connection, 10) == b"done"
        return connection


async def ended(connection: socket.socket) -> bool:
    """Wait until nobody holds the other end: so has ended whoever did."""
    async with asyncio.timeout(PATIENCE_S):
        return await asyncio.get_running_loop().sock_recv(connection, 10) == b""


@pytest.fixture
def scene(tmp_path):
    made = Scene(tmp_path)
    yield made
    for opened in (*made.listeners, *made.connections):
        opened.close()


@pytest.fixture
def isolated(tmp_path):
    why = Local(tmp_path / "try").why_not_isolated
    if why:
        pytest.skip(why)


async def test_in_the_sandbox_no_escape_succeeds(scene, isolated):
    planted = os.open(scene.keys, os.O_RDONLY)
    os.set_inheritable(planted, True)
    process = await Local(scene.run_dir).start(scene.launch(*ESCAPES), "x", scene.log)
    assert process.isolated
    assert set(await scene.report()) <= {"write beside the weights"}  # where that is in a /tmp of its own
    await process.stop()
    os.close(planted)
    assert not scene.weights.with_name("model.gguf.more").exists()
    for listener in scene.listeners:
        with pytest.raises(BlockingIOError):
            listener.recv(1) if listener is scene.udp else listener.accept()
    assert scene.weights.read_text() == "precious"


async def test_without_the_sandbox_they_do_succeed(scene):
    """Otherwise the test above would prove nothing."""
    tried = [name for name in ESCAPES if name not in NOT_FOR_EVERYBODY]
    process = await Local(scene.run_dir, "off").start(scene.launch(*tried), "x", scene.log)
    assert not process.isolated
    assert sorted(await scene.report()) == sorted(tried)
    await process.stop()


async def test_the_daemons_environment_and_descriptors_are_not_inherited_without_a_sandbox_either(scene):
    planted = os.open(scene.keys, os.O_RDONLY)
    os.set_inheritable(planted, True)
    launch = scene.launch("daemon's environment as its own", "daemon's descriptors")
    process = await Local(scene.run_dir, "off").start(launch, "x", scene.log)
    assert await scene.report() == []
    await process.stop()
    os.close(planted)


async def test_a_socket_swapped_for_a_link_leads_nowhere(scene, isolated):
    process = await Local(scene.run_dir).start(scene.launch(), "x", scene.log)
    await scene.report()
    path = str(scene.engine_dir / "x.sock")
    held = open_socket(path)
    await scene.ask(b"swap")
    with pytest.raises(EngineFailed, match="symbolic link"):
        open_socket(path)
    await scene.ask(b"stay", descriptor=held)  # still the engine, not the victim
    os.close(held)
    await process.stop()
    with pytest.raises(BlockingIOError):
        scene.victim.accept()


async def test_nothing_survives_stop_in_the_sandbox(scene, isolated):
    process = await Local(scene.run_dir).start(scene.launch(deaf=True), "x", scene.log)
    await scene.report()
    engine, daemonized = await scene.ask(b"stay"), await scene.ask(b"fork")
    await process.stop()
    assert await ended(engine)
    assert await ended(daemonized)
    assert not list(scene.run_dir.glob("process-*"))


DAEMON = """
import asyncio, sys, msgspec, uvloop
from pathlib import Path
from freehold.executors.local import Local
from freehold.types import Launch
async def main():
    launch = msgspec.json.decode(sys.argv[1], type=Launch)
    process = await Local(Path(sys.argv[2]), sys.argv[3]).start(launch, "x", Path(sys.argv[4]))
    print(process.pid, flush=True)
    await process.wait()
uvloop.run(main())
"""


@contextlib.contextmanager
def daemon(scene: Scene, isolation: str, **environment: str):
    """Run a daemon of its own that starts the hostile engine; yields it and the pid it started."""
    launch = msgspec.json.encode(scene.launch()).decode()
    argv = (sys.executable, "-c", DAEMON, launch, scene.run_dir, isolation, scene.log)
    python_path = os.pathsep.join(path for path in sys.path if path)
    env = {**os.environ, "PYTHONPATH": python_path, **environment}
    with subprocess.Popen(argv, stdout=subprocess.PIPE, env=env) as process:
        try:
            yield process, int(process.stdout.readline())
        finally:
            process.kill()


async def test_nothing_survives_the_daemon_in_the_sandbox(scene, isolated):
    with daemon(scene, "required") as (process, _):
        await scene.report()
        engine, daemonized = await scene.ask(b"stay"), await scene.ask(b"fork")
        process.send_signal(signal.SIGKILL)
        assert await ended(engine)
        assert await ended(daemonized)


async def test_without_a_sandbox_the_engine_dies_with_the_daemon(scene):
    with daemon(scene, "off") as (process, _):
        await scene.report()
        engine = await scene.ask(b"stay")
        process.send_signal(signal.SIGKILL)
        assert await ended(engine)


async def test_sweep_kills_what_a_crashed_daemon_left(scene):
    with daemon(scene, "preferred", PATH="/nowhere") as (process, pid):  # neither bwrap nor setpriv there
        await scene.report()
        engine = await scene.ask(b"stay")
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert psutil.pid_exists(pid)
        assert sweep(scene.run_dir) == 1
        assert await ended(engine)
        assert sweep(scene.run_dir) == 0


async def test_sweep_spares_a_process_that_only_has_the_number(scene):
    process = await Local(scene.run_dir, "off").start(scene.launch(), "x", scene.log)
    await scene.report()
    engine = await scene.ask(b"stay")
    (record,) = scene.run_dir.glob("process-*")
    written = json.loads(record.read_bytes())
    record.write_text(json.dumps({**written, "started_s": written["started_s"] + 0.01}))
    assert sweep(scene.run_dir) == 0
    assert not record.exists()
    assert psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE
    await process.stop()
    assert await ended(engine)


@pytest.mark.parametrize("deaf", [False, True])
async def test_stop_without_a_sandbox_is_sigterm_then_sigkill(scene, deaf):
    process = await Local(scene.run_dir, "off").start(scene.launch(deaf=deaf), "x", scene.log)
    await scene.report()
    await process.stop(grace_s=0.2 if deaf else PATIENCE_S)
    assert await process.wait() == (-signal.SIGKILL if deaf else -signal.SIGTERM)
    assert not list(scene.run_dir.glob("process-*"))


async def test_weights_may_be_a_link_into_a_store(scene, isolated):
    link = scene.state / "model.gguf"
    link.symlink_to(scene.weights)
    launch = Launch(argv=("/bin/cat", str(link)), socket=scene.launch().socket, readable=(str(link),))
    process = await Local(scene.run_dir).start(launch, "x", scene.log)
    assert (await process.wait(), scene.log.read_text()) == (0, "precious")
    await process.stop()  # too late, and harmless


@pytest.mark.parametrize("isolation", ["off", "preferred"])
def test_uvloop_reports_the_exit_and_the_log_is_appended_to(scene, isolation):
    launch = Launch(argv=("/bin/sh", "-c", "echo out; echo err >&2; exit 7"), socket=scene.launch().socket)

    async def run() -> int:
        process = await Local(scene.run_dir, isolation).start(launch, "x", scene.log)
        return await process.wait()

    for _ in range(2):
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            assert runner.run(run()) == 7
    assert scene.log.read_text() == "out\nerr\n" * 2
    assert scene.log.stat().st_mode & 0o777 == 0o600


async def test_required_isolation_refuses_where_there_is_none(scene, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    local = Local(scene.run_dir, "required")
    assert local.why_not_isolated == "bubblewrap is not installed"
    with pytest.raises(Refused, match="Isolation is required") as refused:
        await local.start(scene.launch(), "x", scene.log)
    assert "apt install bubblewrap" in refused.value.hint


async def test_a_launch_that_would_show_the_daemons_state_is_refused(scene, isolated):
    launch = msgspec.structs.replace(scene.launch(), readable=(str(scene.state),))
    with pytest.raises(Refused, match="would see all of"):
        await Local(scene.run_dir).start(launch, "x", scene.log)


async def test_a_program_that_is_missing_is_an_error_with_its_name(scene, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    launch = Launch(argv=("/nowhere/llama-server",), socket=scene.launch().socket)
    with pytest.raises(NotReady, match="/nowhere/llama-server could not be started"):
        await Local(scene.run_dir, "off").start(launch, "x", scene.log)


async def test_a_socket_path_too_long_for_the_kernel_is_refused(scene):
    launch = msgspec.structs.replace(scene.launch(), socket=str(scene.engine_dir / ("x" * 100 + ".sock")))
    with pytest.raises(BadConfig, match="over 107 bytes"):
        await Local(scene.run_dir, "off").start(launch, "x", scene.log)


def test_only_a_socket_of_ours_is_opened(tmp_path):
    (tmp_path / "file").touch()
    for name in ("missing", "file"):
        with pytest.raises(EngineFailed):
            open_socket(str(tmp_path / name))


def test_the_sandbox_is_an_allow_list():
    launch = Launch(
        argv=("/opt/llama-server", "--model", "/w/m.gguf"),
        socket="/run/freehold/e/x.sock",
        env={"LANG": "C.UTF-8"},
        weights=("/w/m.gguf",),
        readable=("/opt/llama-server",),
        devices=("/dev/nvidia0",),
    )
    assert wrap(launch) == (
        *("bwrap", "--unshare-all", "--unshare-user", "--disable-userns", "--cap-drop", "ALL"),
        *("--new-session", "--die-with-parent", "--hostname", "sandbox", "--clearenv"),
        *("--setenv", "LANG", "C.UTF-8"),
        *("--ro-bind-try", "/usr", "/usr", "--ro-bind-try", "/lib", "/lib", "--ro-bind-try", "/lib32", "/lib32"),
        *("--ro-bind-try", "/lib64", "/lib64", "--ro-bind-try", "/bin", "/bin", "--ro-bind-try", "/sbin", "/sbin"),
        *("--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"),
        *("--ro-bind-try", "/etc/alternatives", "/etc/alternatives"),
        *("--proc", "/proc", "--dev", "/dev", "--tmpfs", "/dev/shm", "--tmpfs", "/tmp"),
        *("--ro-bind", "/w/m.gguf", "/w/m.gguf", "--ro-bind", "/opt/llama-server", "/opt/llama-server"),
        *("--dev-bind", "/dev/nvidia0", "/dev/nvidia0"),
        *("--bind", "/run/freehold/e", "/run/freehold/e"),
        *("--remount-ro", "/proc", "--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/"),
        *("--", "/opt/llama-server", "--model", "/w/m.gguf"),
    )
