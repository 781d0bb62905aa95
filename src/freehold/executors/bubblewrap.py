"""The sandbox as an argument vector: what an engine may see, listed; all else does not exist for it."""

from __future__ import annotations

from pathlib import PurePosixPath

from freehold.types import Launch

# Where a Linux keeps its libraries and programs. On merged-usr the short names are links, and bwrap follows them.
SYSTEM = ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin", "/etc/ld.so.cache", "/etc/alternatives")


def wrap(launch: Launch, bwrap: str = "bwrap") -> tuple[str, ...]:
    """Put `launch` in a sandbox: no network, no other process, no file, no right and no variable but those listed.

    The socket's folder, and what is `writable`, which must exist, are the only places it can write to beside a /tmp and
    a /dev/shm of its own.
    The order matters: a later bind lies over an earlier one, so that things under /tmp come after the empty /tmp.
    """
    folder = str(PurePosixPath(launch.socket).parent)
    return (
        bwrap,
        *("--unshare-all", "--unshare-user", "--disable-userns", "--cap-drop", "ALL"),
        *("--new-session", "--die-with-parent", "--hostname", "sandbox", "--clearenv"),
        *(part for name, value in sorted(launch.env.items()) for part in ("--setenv", name, value)),
        *(part for path in SYSTEM for part in ("--ro-bind-try", path, path)),
        *("--proc", "/proc", "--dev", "/dev", "--tmpfs", "/dev/shm", "--tmpfs", "/tmp"),  # noqa: S108 - the sandbox's own
        *(part for path in (*launch.weights, *launch.readable) for part in ("--ro-bind", path, path)),
        *(part for path in launch.devices for part in ("--dev-bind", path, path)),
        *(part for path in (*launch.writable, folder) for part in ("--bind", path, path)),
        # What is bound above keeps its own rights. /proc must be read-only for a daemon that is root: to the kernel the
        # engine then is root's too, and by /proc/sys/kernel/core_pattern it could run programs outside.
        *("--remount-ro", "/proc", "--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/"),
        *("--", *launch.argv),
    )
