"""The first program in every sandbox: tries what no engine must be able to do, reports it, and becomes the engine.

Run as `python -I -S isolation_probe.py NAME=VALUE... -- ENGINE ARGUMENTS...`; isolation.py writes that line. The report
is one JSON object on the descriptor `report`, closed before the engine is there. A test that fails ends it here.
Imports what is there in a millisecond (json and socket take 8 each, pathlib 5) and nothing of ours: the sandbox has
only this file.
"""

from __future__ import annotations

import _signal  # pyright: ignore[reportMissingImports]
import _socket
import ctypes
import errno
import fcntl
import os
import stat
import sys
from _json import encode_basestring_ascii as quoted
from collections.abc import Callable

Given = dict[str, list[str]]

FAILED = 77  # exit code
NO_WAY = {errno.ENETUNREACH, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}
OUTSIDE = ((_socket.AF_INET, "192.0.2.1"), (_socket.AF_INET6, "2001:db8::1"))  # RFC 5737 and 3849: nobody's
NODES = {f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom", "tty", "pts/ptmx")}
NEW_USER_NAMESPACE = 0x10000000
GET_INTERFACE_FLAGS, UP = 0x8913, 1
KEYCTL = {"x86_64": 250, "aarch64": 219}  # the number of the system call
JOIN_SESSION_KEYRING, READ_KEY, SESSION_KEYRING = 1, 11, -3
libc = ctypes.CDLL(None, use_errno=True)


class Hole(Exception):
    """What an engine could do here, in words."""


def tcp(_: Given) -> str:
    for family, address in OUTSIDE:
        if (answer := reach(family, _socket.SOCK_STREAM, (address, 443))) not in NO_WAY:
            raise Hole(f"there is a way to {address}: {in_words(answer)}")
    return "no route"


def udp(_: Given) -> str:
    for family, address in OUTSIDE:
        if (answer := reach(family, _socket.SOCK_DGRAM, (address, 53))) not in NO_WAY:
            raise Hole(f"there is a way to {address}: {in_words(answer)}")
    return "no route"


def gateway(given: Given) -> str:
    for address in ("127.0.0.1:443", "[::1]:443", *given["gateway"]):
        host, _, port = address.rpartition(":")
        family = _socket.AF_INET6 if ":" in host else _socket.AF_INET
        answer = reach(family, _socket.SOCK_STREAM, (host.strip("[]"), int(port)))
        if answer not in NO_WAY and answer != errno.ECONNREFUSED:
            raise Hole(f"{address} can be reached: {in_words(answer)}")
    return "refused"


def dns(_: Given) -> str:
    """Without a resolv.conf the C library asks 127.0.0.1; who answers there is asked first, or it asks for seconds."""
    answer = reach(_socket.AF_INET, _socket.SOCK_DGRAM, ("127.0.0.1", 53))
    if answer not in NO_WAY and answer != errno.ECONNREFUSED:
        raise Hole(f"there may be a resolver at 127.0.0.1: {in_words(answer)}")
    try:
        _socket.getaddrinfo(b"example.com", 443)
    except _socket.gaierror:
        return "no resolver"
    raise Hole("example.com was resolved")


def interfaces(_: Given) -> str:
    """Of those that are up: kernels with tunnels built in put one of each, down, into every network namespace."""
    asked = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM)
    for _index, name in _socket.if_nameindex():
        answer = fcntl.ioctl(asked.fileno(), GET_INTERFACE_FLAGS, name.encode().ljust(40, b"\0"))
        if name != "lo" and answer[16] & UP:
            raise Hole(f"{name} is up")
    routes = lines("/proc/net/route")[1:] + lines("/proc/net/ipv6_route")
    if others := [route for route in routes if "lo" not in (route.split()[0], route.split()[-1])]:
        raise Hole(f"there is a route: {others[0]}")
    return "only lo"


def unix_sockets(_: Given) -> str:
    """The kernel lists those of this network namespace, abstract ones among them."""
    if found := lines("/proc/net/unix")[1:]:
        raise Hole(f"{len(found)} can be seen")
    return "none"


def weights(given: Given) -> str:
    for path in given["weights"]:
        for what, attempt in (("written", write), ("renamed", rename), ("chmodded", chmod), ("touched", touch)):
            if succeeds(attempt, path):
                raise Hole(f"{path} can be {what}")
        beside = path + ".new"
        if not within("/tmp", path) and succeeds(create, beside):  # there it is the sandbox's own
            raise Hole(f"{beside} can be created")
    return "read-only"


def private(given: Given) -> str:
    for path in given["private"]:
        if found := shown(path, (*given["readable"], *given["weights"], *given["folder"])):
            raise Hole(f"{found} can be seen")
    hidden = sorted({path.rpartition("/")[2] for path in given["private"] if not os.path.lexists(path)})
    return f"not there: {', '.join(hidden)}"


def writable(given: Given) -> str:
    """Every mount is read-only but the socket's folder, what is the sandbox's own, and device nodes."""
    allowed = {*given["folder"], *given["device"], *NODES, "/tmp", "/dev/shm", "/dev/pts"}
    for line in lines("/proc/self/mountinfo"):
        fields = line.split()
        path = (
            fields[4]
            .encode(errors="surrogateescape")
            .decode("unicode_escape")
            .encode("latin-1")
            .decode("utf-8", "surrogateescape")
        )
        if path not in allowed and "rw" in fields[5].split(",") and "rw" in fields[-1].split(","):
            raise Hole(f"{path} can be written to")
    return "/tmp and its socket's folder"


def devices(given: Given) -> str:
    for folder, _, names in os.walk("/dev"):
        for path in (f"{folder}/{name}" for name in names):
            mode = os.lstat(path).st_mode
            if (stat.S_ISCHR(mode) or stat.S_ISBLK(mode)) and path not in {*given["device"], *NODES}:
                raise Hole(f"{path} is there")
    return "only those allowed"


def capabilities(_: Given) -> str:
    found = status()
    if some := [name for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb") if int(found[name], 16)]:
        raise Hole(f"{some[0]} is {found[some[0]]}")
    return "none"


def new_privileges(_: Given) -> str:
    if status()["NoNewPrivs"] != "1":
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


def host_name(_: Given) -> str:
    if (name := os.uname().nodename) != "sandbox":
        raise Hole(f"it is {name}")
    return "sandbox"


def keyring(_: Given) -> str:
    """Leaves the session's keyring for one of its own; where keyrings are forbidden nobody reads them either."""
    number = KEYCTL.get(os.uname().machine)
    if number is None:
        return "not tested on this processor"
    libc.syscall(number, JOIN_SESSION_KEYRING, None)
    if libc.syscall(number, READ_KEY, SESSION_KEYRING, None, 0) > 0:
        raise Hole("there are keys in it")
    return "empty"


def environment(given: Given) -> str:
    names = {os.fsdecode(name) for name in variables()}
    if more := names - {*given["variable"], "PWD"}:
        raise Hole(f"{min(more)} was not given")
    return "only what was given"


def descriptors(given: Given) -> str:
    expected = {0, 1, 2, *map(int, given["report"])}
    for number in {int(name) for name in os.listdir("/proc/self/fd")} - expected:
        try:
            os.fstat(number)
        except OSError:  # it was that of the listing
            continue
        raise Hole(f"{number} is {os.readlink(f'/proc/self/fd/{number}')}")
    return "0, 1, 2"


TESTS: dict[str, Callable[[Given], str]] = {
    each.__name__: each
    for each in (
        *(tcp, udp, dns, gateway, interfaces, unix_sockets, weights, private, writable, devices, capabilities),
        *(new_privileges, user_namespaces, processes, host_name, keyring, environment, descriptors),
    )
}


def reach(family: int, kind: int, address: tuple[str, int]) -> int:
    """The error number of talking to it, 0 for none; EAGAIN when half a second brings no answer."""
    try:
        tried = _socket.socket(family, kind)
        tried.settimeout(0.5)
        tried.connect(address)
        if kind == _socket.SOCK_DGRAM:
            tried.send(b"\0" * 12)
            tried.recv(1)
    except TimeoutError:
        return errno.EAGAIN
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def in_words(number: int) -> str:
    return os.strerror(number) if number else "it answers"


def write(path: str) -> None:
    os.close(os.open(path, os.O_WRONLY))


def create(path: str) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    os.unlink(path)


def rename(path: str) -> None:
    os.rename(path, path + ".new")
    os.rename(path + ".new", path)


def chmod(path: str) -> None:
    os.chmod(path, stat.S_IMODE(os.stat(path).st_mode))


def touch(path: str) -> None:
    now = os.stat(path)
    os.utime(path, ns=(now.st_atime_ns, now.st_mtime_ns))


def succeeds(attempt: Callable[[str], None], path: str) -> bool:
    try:
        attempt(path)
    except OSError:
        return False
    return True


def within(folder: str, path: str) -> bool:
    return path == folder or path.startswith(folder + "/")


def shown(path: str, given: tuple[str, ...]) -> str | None:
    """What is there, at `path` or in it, beside what was given and the folders that lead to it."""
    if any(within(each, path) for each in given) or not os.path.lexists(path):
        return None
    if not any(within(path, each) for each in given):
        return path
    return next((found for name in os.listdir(path) if (found := shown(f"{path}/{name}", given))), None)


def lines(path: str) -> list[str]:
    try:
        with open(path, errors="surrogateescape") as file:
            return file.read().splitlines()
    except FileNotFoundError:  # a kernel without IPv6
        return []


def status() -> dict[str, str]:
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines("/proc/self/status"))}


def variables() -> dict[bytes, bytes]:
    """Those this process began with: Python adds one of its own for the locale."""
    with open("/proc/self/environ", "rb") as file:
        pairs = (pair.partition(b"=") for pair in file.read().split(b"\0") if pair)
        return {name: value for name, _, value in pairs}


def in_json(words: dict[str, str]) -> str:
    return "{" + ",".join(f"{quoted(name)}:{quoted(word)}" for name, word in words.items()) + "}"


def looks(path: str) -> list[int]:
    """As freehold.weights.files.File.stamp."""
    found = os.stat(path)
    return [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def main() -> None:
    split = sys.argv.index("--")
    names = ("report", "gateway", "weights", "readable", "folder", "private", "device", "variable")
    given: Given = {name: [] for name in names}
    for name, _, value in (word.partition("=") for word in sys.argv[1:split]):
        given[name].append(value)
    passed, failed = {}, {}
    for name, test in TESTS.items():
        try:
            passed[name] = test(given)
        except (Hole, OSError) as error:
            failed[name] = str(error)
    seen = [looks(path) for path in given["weights"]]
    report = f'{{"passed":{in_json(passed)},"failed":{in_json(failed)},"weights":{seen}}}\n'
    with open(int(given["report"][0]), "wb") as pipe:
        pipe.write(report.encode())
    if failed:
        sys.exit(FAILED)
    for number in (_signal.SIGPIPE, _signal.SIGXFSZ):  # Python ignores them, and what is ignored stays so
        _signal.signal(number, _signal.SIG_DFL)
    engine = sys.argv[split + 1 :]
    try:
        os.execvpe(engine[0], engine, variables())
    except OSError as error:
        sys.exit(f"{engine[0]} could not be started: {error.strerror}")


if __name__ == "__main__":
    main()
