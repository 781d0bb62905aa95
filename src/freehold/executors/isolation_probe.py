"""The first program in every sandbox: tries what no engine must be able to do, reports it, and becomes the engine.

Run as `python -I -S isolation_probe.pyc NAME=VALUE... -- ENGINE ARGUMENTS...`; isolation.py writes that line. The
report is one JSON object on the descriptor `report`, closed before the engine is there. A test that fails ends it here.
Imports what is there in a millisecond (json and socket take 8 each, pathlib 5) and nothing of ours: the sandbox has
only this file.
"""

from __future__ import annotations

import _signal  # pyright: ignore[reportMissingImports]
import _socket
import ctypes
import errno
import os
import stat
import sys
from _json import encode_basestring_ascii as quoted

Given = dict[str, list[str]]
NAMES = ("report", "gateway", "weights", "readable", "folder", "private", "device", "variable")

FAILED = 77  # exit code
NO_WAY = {errno.ENETUNREACH, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}
NOBODY = {*NO_WAY, errno.ECONNREFUSED}
OUTSIDE = ("192.0.2.1", "2001:db8::1")  # RFC 5737 and 3849: nobody's
NODES = {f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom", "tty", "pts/ptmx")}
NEW_USER_NAMESPACE = 0x10000000
KEYCTL = {"x86_64": 250, "aarch64": 219}  # the number of the system call
JOIN_SESSION_KEYRING, READ_KEY, SESSION_KEYRING = 1, 11, -3
libc = ctypes.CDLL(None)


class Hole(Exception):
    """What an engine could do here, in words."""


def tcp(_: Given) -> str:
    for host in OUTSIDE:
        reach(_socket.SOCK_STREAM, host, 443, NO_WAY)
    return "no route"


def udp(_: Given) -> str:
    for host in OUTSIDE:
        reach(_socket.SOCK_DGRAM, host, 53, NO_WAY)
    return "no route"


def dns(_: Given) -> str:
    """Without a resolv.conf the C library asks 127.0.0.1; who answers there is asked first, or it asks for seconds."""
    reach(_socket.SOCK_DGRAM, "127.0.0.1", 53, NOBODY)
    try:
        _socket.getaddrinfo(b"example.com", 443)
    except _socket.gaierror:
        return "no resolver"
    raise Hole("example.com was resolved")


def gateway(given: Given) -> str:
    for address in ("127.0.0.1:443", "[::1]:443", *given["gateway"]):
        host, _, port = address.rpartition(":")
        reach(_socket.SOCK_STREAM, host.strip("[]"), int(port), NOBODY)
    return "refused"


def routes(_: Given) -> str:
    """An interface that is up and has an address has one: a network without a way to the world is found too."""
    for route in lines("/proc/net/route")[1:] + lines("/proc/net/ipv6_route"):
        if "lo" not in route.split():
            raise Hole(route)
    return "only lo"


def unix_sockets(_: Given) -> str:
    """The kernel lists those of this network namespace, abstract ones among them."""
    if found := lines("/proc/net/unix")[1:]:
        raise Hole(f"{len(found)} can be seen")
    return "none"


def weights(given: Given) -> str:
    """Sets their time to what it is. Of a read-only mount the kernel says so before it asks whose a file is."""
    for path in given["weights"]:
        found = os.stat(path)
        try:
            os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
        except OSError as error:
            if error.errno == errno.EROFS:
                continue
        raise Hole(f"{path} can be written to")
    return "read-only"


def private(given: Given) -> str:
    for path in given["private"]:
        if found := shown(path, (*given["readable"], *given["weights"], *given["folder"])):
            raise Hole(f"{found} can be seen")
    hidden = sorted({os.path.basename(path) for path in given["private"] if not os.path.lexists(path)})
    return f"not there: {', '.join(hidden)}"


def writable(given: Given) -> str:
    """Every mount is read-only but the folders it was given, what is the sandbox's own, and device nodes."""
    allowed = {*given["folder"], *given["device"], *NODES, "/tmp", "/dev/shm", "/dev/pts"}
    written = {path.translate({ord(each): f"\\{ord(each):03o}" for each in "\\ \t\n"}) for path in allowed}
    for mount in map(str.split, lines("/proc/self/mountinfo")):
        if mount[4] not in written and "rw" in mount[5].split(",") and "rw" in mount[-1].split(","):
            raise Hole(f"{mount[4]} can be written to")
    return "/tmp and its own folders"


def devices(given: Given) -> str:
    for folder, _, names in os.walk("/dev"):
        for path in (f"{folder}/{name}" for name in names):
            mode = os.lstat(path).st_mode
            if (stat.S_ISCHR(mode) or stat.S_ISBLK(mode)) and path not in {*given["device"], *NODES}:
                raise Hole(f"{path} is there")
    return "only those allowed"


def capabilities(_: Given) -> str:
    """None, and none to be had: a setuid program gives nothing."""
    found = {name: value for name, _, value in (line.partition(":\t") for line in lines("/proc/self/status"))}
    if some := [name for name in found if name.startswith("Cap") and int(found[name], 16)]:
        raise Hole(f"{some[0]} is {found[some[0]]}")
    if found["NoNewPrivs"] != "1":
        raise Hole("a setuid program would get them")
    return "none"


def user_namespaces(_: Given) -> str:
    if libc.unshare(NEW_USER_NAMESPACE) == 0:
        raise Hole("a new one can be made")
    return "no new one"


def processes(_: Given) -> str:
    if others := {int(name) for name in os.listdir("/proc") if name.isdigit()} - {1, os.getpid()}:
        raise Hole(f"{len(others)} others can be seen")
    return "only its own"


def keyring(_: Given) -> str:
    """Leaves the session's keyring for one of its own; where keyrings are forbidden nobody reads them either."""
    if number := KEYCTL.get(os.uname().machine):
        libc.syscall(number, JOIN_SESSION_KEYRING, None)
        if libc.syscall(number, READ_KEY, SESSION_KEYRING, None, 0) > 0:
            raise Hole("there are keys in it")
        return "empty"
    return "not tested on this processor"


def environment(given: Given) -> str:
    if more := {os.fsdecode(name) for name in variables()} - {*given["variable"], "PWD"}:
        raise Hole(f"{min(more)} was not given")
    return "only what was given"


def descriptors(given: Given) -> str:
    for name in {*os.listdir("/proc/self/fd")} - {"0", "1", "2", *given["report"]}:
        if os.path.lexists(path := f"/proc/self/fd/{name}"):  # that of the listing itself is closed by now
            raise Hole(f"{name} is {os.readlink(path)}")
    return "0, 1, 2"


TESTS = {
    each.__name__: each
    for each in (
        *(tcp, udp, dns, gateway, routes, unix_sockets, weights, private, writable, devices, capabilities),
        *(user_namespaces, processes, keyring, environment, descriptors),
    )
}


def reach(kind: int, host: str, port: int, harmless: set[int]) -> None:
    """Talk to it. Raises Hole unless that comes to one of these error numbers at once."""
    tried = _socket.socket(_socket.AF_INET6 if ":" in host else _socket.AF_INET, kind)
    tried.settimeout(0.5)
    try:
        tried.connect((host, port))
        if kind == _socket.SOCK_DGRAM:
            tried.send(b"\0" * 12)
            tried.recv(1)
    except OSError as error:
        if error.errno in harmless:
            return
        raise Hole(f"there is a way to {host}: {error}") from None
    finally:
        tried.close()
    raise Hole(f"{host} answers")


def shown(path: str, given: tuple[str, ...]) -> str | None:
    """What is there, at `path` or in it, beside what was given and the folders that lead to it."""
    if any(within(each, path) for each in given) or not os.path.lexists(path):
        return None
    if not any(within(path, each) for each in given):
        return path
    return next((found for name in os.listdir(path) if (found := shown(f"{path}/{name}", given))), None)


def within(folder: str, path: str) -> bool:
    return path == folder or path.startswith(folder + "/")


def lines(path: str) -> list[str]:
    try:
        with open(path, errors="surrogateescape") as file:
            return file.read().splitlines()
    except FileNotFoundError:  # a kernel without IPv6
        return []


def variables() -> dict[bytes, bytes]:
    """Those this process began with: Python adds one of its own for the locale."""
    with open("/proc/self/environ", "rb") as file:
        pairs = (pair.partition(b"=") for pair in file.read().split(b"\0") if pair)
        return {name: value for name, _, value in pairs}


def in_json(words: dict[str, str]) -> str:
    readable = {name: word.encode(errors="replace").decode() for name, word in words.items()}  # a name may be no text
    return "{" + ",".join(f"{quoted(name)}:{quoted(word)}" for name, word in readable.items()) + "}"


def looks(path: str) -> list[int]:
    """As freehold.weights.files.File.stamp."""
    found = os.stat(path)
    return [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def main() -> None:
    split = sys.argv.index("--")
    words, engine = [word.partition("=") for word in sys.argv[1:split]], sys.argv[split + 1 :]
    given = {name: [value for each, _, value in words if each == name] for name in NAMES}
    passed, failed = {}, {}
    for name, test in TESTS.items():
        try:
            passed[name] = test(given)
        except (Hole, OSError) as error:
            failed[name] = str(error)
    seen = [looks(path) for path in given["weights"]]
    with open(int(given["report"][0]), "w") as pipe:
        pipe.write(f'{{"passed":{in_json(passed)},"failed":{in_json(failed)},"weights":{seen}}}\n')
    if failed:
        sys.exit(FAILED)
    for number in (_signal.SIGPIPE, _signal.SIGXFSZ):  # Python ignores them, and what is ignored stays so
        _signal.signal(number, _signal.SIG_DFL)
    try:
        os.execvpe(engine[0], engine, variables())
    except OSError as error:
        sys.exit(f"{engine[0]} could not be started: {error.strerror}")


if __name__ == "__main__":
    main()
