"""Whether this machine can serve: one small check each, with what was found and how to get what is missing."""

from __future__ import annotations

import ctypes
import platform
import shutil
import socket
import sys
import tempfile
from pathlib import Path
from typing import Literal

from msgspec import Struct

from freehold.executors.local import why_no_sandbox
from freehold.fleet.host import cpu_facts, probe
from freehold.plan.cpu_speed import Memory
from freehold.types import Host

GIB = 1 << 30
NEEDED_FLAGS = {"avx2", "fma", "f16c"}  # xllamacpp's wheel is built for Haswell (2013) and later
LIBRARIES = {"libgomp.so.1": "libgomp1", "libstdc++.so.6": "libstdc++6"}  # the wheel does not bring them: apt names


class Check(Struct, frozen=True, kw_only=True):
    """One thing this machine needs: warn is something to know, fail is something to mend first."""

    name: str
    state: Literal["ok", "warn", "fail"]
    found: str
    fix: str = ""


def checks(*, listen: str = "127.0.0.1:8080", state: Path = Path(".freehold")) -> list[Check]:
    """Every check of this machine; starts nothing but `true` under bubblewrap."""
    host = probe()
    return [
        check_python(sys.version_info[:3]),
        check_machine(host),
        check_cpu(platform.machine(), cpu_facts().get("flags", "")),
        *(check_library(library, package) for library, package in LIBRARIES.items() if sys.platform == "linux"),
        check_bubblewrap(shutil.which("bwrap")),
        check_gpus(host),
        check_disk(state),
        check_listen(listen),
    ]


def check_python(version: tuple[int, ...]) -> Check:
    state = "ok" if version >= (3, 11) else "fail"
    fix = "" if state == "ok" else "apt install python3.11 (Debian 12, Ubuntu 24.04 or later have 3.11 or newer)"
    return Check(name="Python", state=state, found=".".join(map(str, version)), fix=fix)


def check_machine(host: Host) -> Check:
    found = (
        f"{host.cpu}, {host.cores} physical cores, "
        f"{host.available_bytes / GIB:.1f} GiB available of {host.memory_bytes / GIB:.1f} GiB RAM"
    )
    if host.available_bytes >= 2 * GIB:
        return Check(name="cores and RAM", state="ok", found=found)
    fix = "free some memory or raise the container's limit: 2 GiB is little even for a model of 1 B parameters"
    return Check(name="cores and RAM", state="warn", found=found, fix=fix)


def check_memory_speed(memory: Memory, measured: str, unkept: str) -> Check:
    """`measured`: when. `unkept`: why plans will not know it; "": they will."""
    found = (
        f"{memory.all_gb_s:g} GB/s read by {memory.cores} cores together, {memory.one_gb_s:g} by one; "
        f"{memory.cache_gb_s:g} by one from its cache; measured {measured}"
    )
    if not unkept:
        return Check(name="memory speed", state="ok", found=found)
    return Check(name="memory speed", state="warn", found=f"{found}, and not kept for plans", fix=unkept)


def check_cpu(machine: str, flags: str) -> Check:
    if machine.lower() not in {"x86_64", "amd64"}:
        return Check(name="CPU features", state="ok", found=f"{machine}: nothing special is needed")
    if not flags:
        return Check(name="CPU features", state="warn", found="unknown", fix="see that the CPU has AVX2")
    if missing := NEEDED_FLAGS - set(flags.split()):
        fix = "use a machine with a CPU from 2013 or later; in a virtual machine, set the CPU type to host"
        return Check(name="CPU features", state="fail", found=f"no {', '.join(sorted(missing))}", fix=fix)
    return Check(name="CPU features", state="ok", found=", ".join(sorted(NEEDED_FLAGS)))


def check_library(library: str, package: str) -> Check:
    try:
        ctypes.CDLL(library)
    except OSError:
        found = "missing: the embedded llama.cpp cannot start"
        return Check(name=library, state="fail", found=found, fix=f"apt install {package}")
    return Check(name=library, state="ok", found="loads")


def check_bubblewrap(program: str | None) -> Check:
    """Being installed is not enough where user namespaces are off, so it is tried."""
    with tempfile.TemporaryDirectory() as folder:
        why = why_no_sandbox(program or "", Path(folder))
    if why is None:
        return Check(name="bubblewrap", state="ok", found=f"{program} works")
    fix = (
        "allow unprivileged user namespaces: sysctl kernel.unprivileged_userns_clone=1 (Debian), "
        "sysctl kernel.apparmor_restrict_unprivileged_userns=0 (Ubuntu 24.04), or a container runtime that allows them"
    )
    found = f"engines run NOT ISOLATED: {why}"
    fix = fix if program else "apt install bubblewrap"
    return Check(name="bubblewrap", state="warn", found=found, fix=f"{fix}; until then: freehold harden systemd")


def check_gpus(host: Host) -> Check:
    if not host.gpus:
        return Check(name="NVIDIA cards", state="ok", found="none: models run on the CPU")
    cards = ", ".join(
        f"{gpu.name} ({gpu.free_bytes / GIB:.1f} of {gpu.memory_bytes / GIB:.1f} GiB free)" for gpu in host.gpus
    )
    return Check(name="NVIDIA cards", state="ok", found=f"{cards}; driver {host.gpus[0].driver}")


def check_disk(state: Path) -> Check:
    folder = next((each for each in (state, *state.resolve().parents) if each.is_dir()), Path("/"))
    free_bytes = shutil.disk_usage(folder).free
    level = "ok" if free_bytes >= 10 * GIB else "warn" if free_bytes >= GIB else "fail"
    fix = "" if level == "ok" else "free some space or move the state folder: a model takes 1 to 100 GiB"
    return Check(name="disk", state=level, found=f"{free_bytes / GIB:.1f} GiB free at {folder}", fix=fix)


def check_listen(listen: str) -> Check:
    host, _, port = listen.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        return Check(name="listen", state="fail", found=f"{listen} is no address", fix='write "127.0.0.1:8080"')
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, int(port)), family=family).close()
    except OSError as error:
        fix = "nothing if that is Freehold itself; else stop the other program or set another listen address"
        return Check(name="listen", state="warn", found=f"{listen}: {error.strerror or error}", fix=fix)
    return Check(name="listen", state="ok", found=f"{listen} is free")
