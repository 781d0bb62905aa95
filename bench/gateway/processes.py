"""Processes on their own core: started, weighed, put to sleep between their turns, and what they cost."""

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil

LOAD_CORE, GATEWAY_CORE = 0, 1
QUIET_S = 0.25


def spawn(command: list[str], log: Path, *, core=GATEWAY_CORE, env=None, cwd=None) -> subprocess.Popen:
    """In a session of its own, pinned to one core."""
    with log.open("ab") as out:
        return subprocess.Popen(
            ["taskset", "-c", str(core), *command],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env={**os.environ, **(env or {})},
            cwd=cwd,
            start_new_session=True,
        )


def end(process: subprocess.Popen, patience_s=10.0) -> None:
    """SIGTERM to all of it, then SIGKILL."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience_s)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def tree(pid: int) -> list[psutil.Process]:
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def cpu_s(pid: int) -> float:
    """User and system time of a process and its children, so far."""
    spent_s = 0.0
    for process in tree(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            spent_s += times.user + times.system
    return spent_s


def memory_mib(pid: int) -> dict[str, float]:
    """Of the whole tree: `pss`, pages shared with others counting for their share; `anonymous`, nobody else's part.

    With other Pythons on the machine `pss` is less than it would be alone, and changes as they come and go.
    """
    found = {"Pss": 0, "Pss_Anon": 0}
    for process in tree(pid):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            told = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
            for figure in found:
                found[figure] += int(re.search(rf"^{figure}: +(\d+) kB", told, re.MULTILINE)[1])
    return {"pss_mib": round(found["Pss"] / 1024, 2), "anonymous_mib": round(found["Pss_Anon"] / 1024, 2)}


def quieten(pid: int, limit_s=10.0) -> None:
    """Wait until it has done what it put off (a book to write, say): less than 5 % of a core."""
    deadline = time.monotonic() + limit_s
    before_s = cpu_s(pid)
    while time.monotonic() < deadline:
        time.sleep(QUIET_S)
        now_s = cpu_s(pid)
        if now_s - before_s < 0.05 * QUIET_S:
            return
        before_s = now_s


def busy_s() -> float:
    """Of all cores together, since the machine started."""
    times = psutil.cpu_times()
    return times.user + times.nice + times.system + times.irq + times.softirq


def pause(pid: int) -> None:
    for process in tree(pid):
        process.suspend()


def resume(pid: int) -> None:
    for process in tree(pid):
        process.resume()


def weigh(pid: int, nice: int) -> None:
    """Kernels with sched_autogroup weigh sessions, not processes. Needs root; elsewhere nothing happens."""
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text(str(nice))


@contextlib.contextmanager
def realtime(*pids: int) -> Iterator[bool]:
    """Before all others of this machine, for loads that leave it idle most of the time. Needs root; tells whether."""
    try:
        _schedule(pids, os.SCHED_RR, 1)
    except PermissionError:
        yield False
        return
    try:
        yield True
    finally:
        _schedule(pids, os.SCHED_OTHER, 0)


def _schedule(pids: Iterable[int], policy: int, priority: int) -> None:
    for process in (each for pid in pids for each in tree(pid)):
        for thread in process.threads():
            with contextlib.suppress(ProcessLookupError):
                os.sched_setscheduler(thread.id, policy, os.sched_param(priority))
