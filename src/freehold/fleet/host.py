"""The machine as it is now: memory, cores and cards, within the limits its container sets."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import psutil
import pynvml

from freehold.types import Gpu, Host


def probe(root: Path = Path("/")) -> Host:
    """The machine as last seen. `root` is where /proc and /sys are read from, for tests.

    Never raises because a card, its driver or a limit is missing.
    """
    memory = psutil.virtual_memory()
    total_bytes, available_bytes = memory.total, memory.available
    for limit_bytes, used_bytes in _memory_limits(root):
        total_bytes = min(total_bytes, limit_bytes)
        available_bytes = min(available_bytes, max(0, limit_bytes - used_bytes))
    return Host(
        name=platform.node() or "localhost",
        cpu=cpu_facts(root).get("model name") or platform.machine(),
        cores=_cores(root),
        memory_bytes=total_bytes,
        available_bytes=available_bytes,
        gpus=gpus(),
    )


def cpu_facts(root: Path = Path("/")) -> dict[str, str]:
    """The first processor's lines of /proc/cpuinfo; empty where there is no such file."""
    pairs = (line.partition(":") for line in _read(root / "proc/cpuinfo").split("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def gpus() -> tuple[Gpu, ...]:
    """NVIDIA cards through the driver's own library; none where library, driver or cards are missing."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return ()
    try:
        driver = pynvml.nvmlSystemGetDriverVersion()
        return tuple(gpu for index in range(pynvml.nvmlDeviceGetCount()) if (gpu := _gpu(index, driver)))
    except pynvml.NVMLError:
        return ()
    finally:
        pynvml.nvmlShutdown()


def _gpu(index: int, driver: str) -> Gpu | None:
    try:
        card = pynvml.nvmlDeviceGetHandleByIndex(index)
        memory = pynvml.nvmlDeviceGetMemoryInfo(card)
        name = pynvml.nvmlDeviceGetName(card)
        node = f"/dev/nvidia{pynvml.nvmlDeviceGetMinorNumber(card)}"
    except pynvml.NVMLError:  # a card that fell off the bus does not hide the others
        return None
    return Gpu(name=name, memory_bytes=int(memory.total), free_bytes=int(memory.free), driver=driver, node=node)


def _cores(root: Path) -> int:
    """Physical cores this process may keep busy."""
    cores = psutil.cpu_count(logical=False) or psutil.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = min(cores, len(os.sched_getaffinity(0)))
    for folder in _cgroups(root):
        quota, _, period = _read(folder / "cpu.max").partition(" ")
        if quota.isdigit() and period.strip().isdigit():
            cores = min(cores, max(1, int(quota) // int(period)))
    return cores


def _memory_limits(root: Path) -> list[tuple[int, int]]:
    """Limit and use in bytes of every cgroup above us that has a limit. File cache that can be dropped is not use."""
    limits = []
    for folder in _cgroups(root):
        limit, used = _read(folder / "memory.max").strip(), _read(folder / "memory.current").strip()
        if limit.isdigit() and used.isdigit():
            facts = dict(line.split(" ", 1) for line in _read(folder / "memory.stat").splitlines() if " " in line)
            limits.append((int(limit), int(used) - int(facts.get("inactive_file", 0))))
    return limits


def _cgroups(root: Path) -> list[Path]:
    """Our cgroup (version 2) and those above it; a limit anywhere on the way holds."""
    lines = _read(root / "proc/self/cgroup").splitlines()
    own = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), "")
    base = root / "sys/fs/cgroup"
    parts = [part for part in own.split("/") if part and part != ".."]
    return [base.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1)]


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
