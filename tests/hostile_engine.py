"""An engine that tries to get out: a script run by test_isolation.py. A FIFO beside its socket takes what worked.

Then it serves its socket, one command a connection: `swap` replaces the socket by a link, `fork` leaves a daemon of its
own behind that keeps the connection, `stay` keeps it in this process.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

plan = json.loads(sys.argv[1])
here = Path(plan["socket"]).parent
kept = []
given = {path.name for path in Path("/proc/self/fd").iterdir()}


def connect(family: int, kind: int, address: object) -> None:
    with socket.socket(family, kind) as probe:
        probe.settimeout(2)
        probe.connect(address)
        probe.send(b"out")
        probe.send(b"out")  # where nobody listens, UDP says so the second time


def read_daemon_environment() -> None:
    for process in Path("/proc").glob("[0-9]*"):
        if process.name not in {"self", str(os.getpid())} and plan["secret"].encode() in environment_of(process):
            return
    raise PermissionError


def environment_of(process: Path) -> bytes:
    try:
        return (process / "environ").read_bytes()
    except OSError:
        return b""


def own_environment() -> None:
    if plan["secret"] not in str(dict(os.environ)):
        raise PermissionError


def inherited_descriptors() -> None:
    if not given - {"0", "1", "2", "3"}:  # 3 was the listing's own
        raise PermissionError


def open_to_write(path: str) -> None:
    os.close(os.open(path, os.O_WRONLY))


def make_user_namespace() -> None:
    if subprocess.run(["unshare", "--user", "--map-root-user", "true"], check=False).returncode:
        raise PermissionError


def gain_root_powers() -> None:
    os.chroot("/")


ATTEMPTS = {
    "tcp": lambda: connect(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", plan["tcp"])),
    "udp": lambda: connect(socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", plan["udp"])),
    "dns": lambda: socket.getaddrinfo("example.org", 443),
    "abstract socket": lambda: connect(socket.AF_UNIX, socket.SOCK_STREAM, "\0" + plan["abstract"]),
    "another socket": lambda: connect(socket.AF_UNIX, socket.SOCK_STREAM, plan["victim"]),
    "read the book": lambda: Path(plan["book"]).read_bytes(),
    "read the keys": lambda: Path(plan["keys"]).read_bytes(),
    "see the book": lambda: Path(plan["book"]).stat(),
    "read passwd": lambda: Path("/etc/passwd").read_bytes(),
    "daemon's environment": read_daemon_environment,
    "daemon's environment as its own": own_environment,
    "daemon's descriptors": inherited_descriptors,
    "signal the daemon": lambda: os.kill(plan["daemon"], 0),
    "write the weights": lambda: open_to_write(plan["weights"]),
    "remove the weights": lambda: Path(plan["weights"]).rename(plan["weights"] + ".gone"),
    "write beside the weights": lambda: Path(plan["weights"] + ".more").write_bytes(b""),
    "write a program": lambda: Path(sys.prefix, "bin", "freehold-was-here").write_bytes(b""),
    "write to the root": lambda: Path("/freehold-was-here").write_bytes(b""),
    "core pattern": lambda: open_to_write("/proc/sys/kernel/core_pattern"),
    "sysrq": lambda: open_to_write("/proc/sysrq-trigger"),
    "kernel memory": lambda: Path("/proc/kcore").open("rb").close(),
    "user namespace": make_user_namespace,
    "root powers": gain_root_powers,
}


def succeeded() -> list[str]:
    names = []
    for name, attempt in ATTEMPTS.items():
        try:
            if name in plan["attempts"]:
                attempt()
                names.append(name)
        except OSError:
            pass
    return names


def leave_daemon(connection: socket.socket) -> None:
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            connection.sendall(b"done")
            signal.pause()
        os._exit(0)
    os.wait()


if plan.get("deaf"):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
listener = socket.socket(socket.AF_UNIX)
listener.bind(plan["socket"])
listener.listen()
(here / "report").write_text(json.dumps(succeeded()))
while True:
    connection, _ = listener.accept()
    command = connection.recv(10)
    if command == b"swap":
        Path(plan["socket"]).unlink()
        Path(plan["socket"]).symlink_to(plan["victim"])
        connection.sendall(b"done")
    elif command == b"fork":
        leave_daemon(connection)
    elif command == b"stay":
        kept.append(connection)
        connection.sendall(b"done")
        continue
    connection.close()
