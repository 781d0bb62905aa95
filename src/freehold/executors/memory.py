"""What processes take: of the machine's memory as the kernel counts it, of cards' memory as their driver does."""

from __future__ import annotations

from pathlib import Path

import psutil
import pynvml

_PROC = Path("/proc")


def taken(pid: int) -> dict[str, int | None]:
    """`process_bytes` and `card_bytes` of a process and all its descendants. Call it in a thread."""
    pids = tree(pid)
    return {"process_bytes": process_bytes(pids), "card_bytes": card_bytes(pids)}


def tree(pid: int) -> list[int]:
    """A process and all its descendants, seen from outside of their sandbox; none once it has ended."""
    try:
        process = psutil.Process(pid)
        return [pid, *(child.pid for child in process.children(recursive=True))]
    except psutil.NoSuchProcess:
        return []


def process_bytes(pids: list[int], proc: Path = _PROC) -> int:
    """Their resident memory. What several processes share counts once among them: Pss of /proc/PID/smaps_rollup.

    Where that may not be read it is VmRSS, which counts what is shared with each; a process that has ended counts
    nothing. The kernel walks the page tables for it, which takes 0.1 s for 8 GiB: call it in a thread.
    """
    return sum(_process_bytes(proc / str(pid)) for pid in pids)


def card_bytes(pids: list[int]) -> int | None:
    """Their memory on the NVIDIA card where they have most; None where the driver knows none of them.

    It knows processes by their numbers on the host, so inside a container it says nothing; nor does it of a process
    whose share it cannot tell apart (MIG, Windows).
    """
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        count = pynvml.nvmlDeviceGetCount()
        used = [said for index in range(count) if (said := _card_bytes(index, pids)) is not None]
        return max(used, default=None)
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()


def _process_bytes(folder: Path) -> int:
    for name, field in (("smaps_rollup", "Pss:"), ("status", "VmRSS:")):
        try:
            text = (folder / name).read_text(errors="replace")
        except OSError:  # it is not ours to read, or has ended
            continue
        if line := next((line for line in text.splitlines() if line.startswith(field)), ""):
            return int(line.split()[1]) << 10
    return 0


def _card_bytes(index: int, pids: list[int]) -> int | None:
    try:
        card = pynvml.nvmlDeviceGetHandleByIndex(index)
        running = pynvml.nvmlDeviceGetComputeRunningProcesses(card)
    except pynvml.NVMLError:  # a card that fell off the bus does not hide the others
        return None
    used = [each.usedGpuMemory for each in running if each.pid in pids and each.usedGpuMemory is not None]
    return sum(used) if used else None
