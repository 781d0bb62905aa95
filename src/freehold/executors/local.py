"""Starts described processes on this machine, in a sandbox where there is one, and leaves none of them behind."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Literal

import msgspec
import psutil

from freehold.errors import BadConfig, NotReady, Refused
from freehold.executors.bubblewrap import SYSTEM, wrap
from freehold.executors.isolation import Report, parts, probed, read_report
from freehold.executors.log import Log
from freehold.types import Launch

_SOCKET_PATH_BYTES = 107  # sockaddr_un holds 108, the last one is 0
_INSTALL = "Install it: apt install bubblewrap, dnf install bubblewrap, or your system's equivalent."


class _Record(msgspec.Struct, frozen=True):
    """What tells a process from a later one that got its number."""

    pid: int
    started_s: float  # since boot: unlike the wall clock's time, it does not move when the clock is set
    name: str


class Process:
    """A started launch. `isolated`: in a sandbox, where nothing it started can outlive it."""

    def __init__(self, child: subprocess.Popen[bytes], record: Path, log: Log, report: int | None) -> None:
        """`report`: where the test of its sandbox reports to, if it has one."""
        self.pid = child.pid
        self.isolated = report is not None
        self._record, self._log = record, log
        self._report = None if report is None else asyncio.ensure_future(read_report(report))
        self._end = asyncio.ensure_future(self._watch(child))

    async def wait(self) -> int:
        """Wait for the end and return the exit code; for a signal N that is -N, or 128 + N out of a sandbox."""
        return await asyncio.shield(self._end)

    async def tested(self) -> Report | None:
        """What the test inside its sandbox found; None without a sandbox. If one failed, there is no engine."""
        return None if self._report is None else await asyncio.shield(self._report)

    def stop_listening(self) -> None:
        self._log.copy()
        self._log.heard = None

    async def stop(self, grace_s: float = 5.0) -> None:
        """End it and everything it started. Its requests are lost: drain it before.

        Without a sandbox it gets SIGTERM, and SIGKILL after `grace_s`; a child that made itself a daemon escapes. In
        a sandbox the first process inside is killed: the kernel ends the rest before bubblewrap returns, so memory is
        free when this returns, as it would not be if bubblewrap itself were signalled.
        """
        if self._end.done():
            return  # the number may be somebody else's by now
        inside = _children(self.pid) if self.isolated else []
        for process in inside:
            _kill(process)
        if not inside:
            _signal_group(self.pid, signal.SIGTERM)
        try:
            async with asyncio.timeout(grace_s):
                await self.wait()
        except TimeoutError:
            for process in _children(self.pid):
                _kill(process)
            _signal_group(self.pid, signal.SIGKILL)
            await self.wait()

    async def _watch(self, child: subprocess.Popen[bytes]) -> int:
        loop, ended, pidfd = asyncio.get_running_loop(), asyncio.Event(), os.pidfd_open(child.pid)
        loop.add_reader(pidfd, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(pidfd)
            os.close(pidfd)
        _signal_group(self.pid, signal.SIGKILL)  # children that stay; before its number can be somebody else's
        code = child.wait()
        self._log.close()
        self._record.unlink(missing_ok=True)
        return code


class Local:
    """Starts processes as this user.

    `run_dir` holds one record for each of them; it and what is in `private` are the daemon's alone. `gateway`, host and
    port, is where callers come in: no engine may reach it.
    """

    gateway: tuple[str, int] | None = None

    def __init__(
        self,
        run_dir: Path,
        isolation: Literal["required", "preferred", "off"] = "preferred",
        private: Sequence[Path] = (),
    ) -> None:
        self._run_dir = run_dir.resolve()
        self._private = (self._run_dir, *(path.resolve() for path in private))
        self._run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._isolation = isolation
        self._bwrap = shutil.which("bwrap") or ""
        self._setpriv = shutil.which("setpriv")
        self.why_not_isolated = (
            "isolation is switched off" if isolation == "off" else why_no_sandbox(self._bwrap, self._run_dir)
        )

    async def start(
        self, launch: Launch, name: str, log_path: Path, heard: Callable[[bytes], None] | None = None
    ) -> Process:
        """Start `launch`; what it prints is appended to `log_path`. Call it from the main thread: see `_argv`.

        `heard` gets that too, until the process is told that nobody listens.

        Raises errors.Refused if isolation is required and not to be had, or if the launch would show the engine this
        daemon's own state; errors.BadConfig for a socket path too long; errors.NotReady if it cannot be started.
        """
        self._check(launch)
        _clear_socket(Path(launch.socket))
        log = Log(log_path, heard)
        with ExitStack() as ends:
            ends.callback(os.close, log.write_end)
            report = report_end = None
            if self.why_not_isolated is None:
                report, report_end = os.pipe2(os.O_CLOEXEC)
                ends.callback(os.close, report_end)
            argv = self._argv(launch, report_end)
            try:
                child = subprocess.Popen(  # noqa: ASYNC220  0.2 ms; the loop's own way forks all of this process, in 2
                    argv,
                    stdin=subprocess.DEVNULL,
                    stdout=log.write_end,
                    stderr=log.write_end,
                    env=launch.env,
                    cwd="/",
                    start_new_session=True,
                    pass_fds=() if report_end is None else (report_end,),
                )
            except OSError as error:
                log.close()
                if report is not None:
                    os.close(report)
                raise NotReady(f"{argv[0]} could not be started: {error.strerror}.") from error
        return Process(child, self._write_record(child.pid, name), log, report)

    def _check(self, launch: Launch) -> None:
        if self.why_not_isolated is None:
            seen = (*SYSTEM, *launch.weights, *launch.readable, *launch.writable, *parts())
            for own in self._private:
                if shown := next((path for path in seen if own.is_relative_to(path)), None):
                    raise Refused(
                        f"The engine would see all of {shown}, and with it {own}, which is this daemon's own.",
                        hint=f"Keep {own} outside of the system's, the engine's and Python's own folders.",
                    )
        elif self._isolation == "required":
            raise Refused(f"Isolation is required, but {self.why_not_isolated}.", hint=_INSTALL)

    def _argv(self, launch: Launch, report_end: int | None) -> tuple[str, ...]:
        """Tie the launch's life to ours. PDEATHSIG follows the thread that forks, so that must be the main one."""
        if report_end is not None:
            return wrap(probed(launch, report_end, self._private, self.gateway), self._bwrap)
        return (self._setpriv, "--pdeathsig", "KILL", "--", *launch.argv) if self._setpriv else launch.argv

    def _write_record(self, pid: int, name: str) -> Path:
        path = self._run_dir / f"process-{pid}.json"
        try:
            started_s = _started_s(psutil.Process(pid))
        except psutil.NoSuchProcess:
            return path  # it has ended already: nothing to sweep
        path.write_bytes(msgspec.json.encode(_Record(pid, started_s, name)))
        return path


def why_no_sandbox(bwrap: str, folder: Path) -> str | None:
    """Run something in the very sandbox that engines get: only that tells whether this kernel allows it."""
    if not sys.platform.startswith("linux"):
        return "bubblewrap exists on Linux only"
    if not bwrap:
        return "bubblewrap is not installed"
    command = wrap(Launch(argv=("/bin/true",), socket=str(folder / "probe.sock")), bwrap)
    try:
        tried = subprocess.run(
            command, env={}, cwd="/", stdin=subprocess.DEVNULL, capture_output=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"bubblewrap does not run here: {error}"
    said = tried.stderr.decode("utf-8", "replace").strip()
    return f"bubblewrap does not work here: {said or tried.returncode}" if tried.returncode else None


def sweep(run_dir: Path) -> int:
    """Kill what a daemon that crashed left behind, with all its descendants; return how many engines that were.

    A process is only taken for ours if both its number and its start time are those recorded.
    """
    swept = 0
    for path in run_dir.glob("process-*.json"):
        try:
            record = msgspec.json.decode(path.read_bytes(), type=_Record)
            process = psutil.Process(record.pid)
            if _started_s(process) == record.started_s and not _ended(process):
                family = [process, *process.children(recursive=True)]
                _signal_group(record.pid, signal.SIGKILL)
                for member in family:
                    _kill(member)
                _wait_until_ended(family)
                swept += 1
        except (msgspec.DecodeError, psutil.NoSuchProcess):
            pass  # half written as the daemon died, or gone already: either way nothing is left to kill
        path.unlink(missing_ok=True)
    return swept


def _ended(process: psutil.Process) -> bool:
    """A zombie has ended too: it holds nothing, and in a container nobody may ever collect it."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _wait_until_ended(processes: list[psutil.Process], limit_s: float = 5.0) -> None:
    deadline_s = time.monotonic() + limit_s
    while not all(map(_ended, processes)) and time.monotonic() < deadline_s:
        time.sleep(0.01)


def _clear_socket(socket: Path) -> None:
    if len(os.fsencode(socket)) > _SOCKET_PATH_BYTES:
        raise BadConfig(
            f"The socket's path is over {_SOCKET_PATH_BYTES} bytes long: {socket}",
            hint="Choose a state folder with a shorter path.",
        )
    socket.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    socket.unlink(missing_ok=True)  # of the last run: an engine cannot bind where a socket lies


def _started_s(process: psutil.Process) -> float:
    return round(process.create_time() - psutil.boot_time(), 2)


def _children(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _kill(process: psutil.Process) -> None:
    with suppress(psutil.NoSuchProcess):  # it ended before we asked
        process.kill()


def _signal_group(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):  # it ended before we asked
        os.killpg(pid, number)
