"""The test of a sandbox from the inside: the launch that begins with it, and what it reports."""

from __future__ import annotations

import asyncio
import functools
import os
import py_compile
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from freehold.types import Launch

REPORT_BYTES = 1 << 20  # at most
DEADLINE_S = 20.0  # it takes 0.02 s; a machine may be busy
_PROBE = Path(__file__).with_name("isolation_probe.py")
_PRIVATE_NAMES = 50  # of each private folder are looked for by name

Stamp = tuple[int, int, int, int, int]  # as weights.files.File.stamp


class Report(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was tested: the answers by test, in a word or two, and how the weights look from inside."""

    passed: dict[str, str]
    failed: dict[str, str]
    weights: tuple[Stamp, ...]


def probed(launch: Launch, report: int, private: Sequence[Path], gateway: tuple[str, int] | None) -> Launch:
    """The launch whose process tests its sandbox, reports to the descriptor `report`, and then becomes `launch`'s.

    `private`: what must not be there. `gateway`: an address that must not be reached, as host and port.
    """
    words = (
        f"report={report}",
        *(f"gateway={host}:{port}" for host, port in ([gateway] if gateway else ())),
        *(f"weights={path}" for path in launch.weights),
        *(f"readable={path}" for path in launch.readable),
        *(f"folder={path}" for path in (Path(launch.socket).parent, *launch.writable)),
        *(f"private={path}" for folder in private for path in (folder, *_inside(folder))),
        *(f"device={path}" for path in launch.devices),
        *(f"variable={name}" for name in launch.env),
    )
    program, probe, *_ = parts()
    return msgspec.structs.replace(
        launch,
        argv=(program, "-I", "-S", probe, *words, "--", *launch.argv),
        readable=tuple(dict.fromkeys((*parts(), *launch.readable))),
    )


@functools.cache
def parts() -> tuple[str, ...]:
    """What the test needs to see: this Python, the test itself, and Python's library, none of a virtual environment."""
    program = Path(sys.executable).resolve()
    folders = (sysconfig.get_path(name) for name in ("stdlib", "platstdlib"))
    libraries = (program.parent.parent / "lib").glob("libpython*")
    return tuple(dict.fromkeys((str(program), _compiled(), *folders, *sorted(map(str, libraries)))))


def _compiled() -> str:
    """The test as bytecode, where that can be kept: it begins 3 ms sooner."""
    try:
        return py_compile.compile(str(_PROBE)) or str(_PROBE)
    except OSError:  # a folder that only root may write to
        return str(_PROBE)


async def read_report(descriptor: int) -> Report:
    """Take the report and close the descriptor. One that is missing, cut short, too long or late is a failed test."""

    def take() -> bytes:
        with os.fdopen(descriptor, "rb") as pipe:
            return pipe.read(REPORT_BYTES)

    try:
        async with asyncio.timeout(DEADLINE_S):
            content = await asyncio.to_thread(take)  # past the deadline it ends with the process
        return msgspec.json.decode(content, type=Report) if content else _no_report("there is none")
    except TimeoutError:
        return _no_report(f"there was none within {DEADLINE_S:g} s")
    except msgspec.DecodeError:
        return _no_report("it is cut short, or nonsense")


def _no_report(why: str) -> Report:
    return Report(passed={}, failed={"report": why}, weights=())


def _inside(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())[:_PRIVATE_NAMES]
    except OSError:  # it is a file, or not there yet
        return []
