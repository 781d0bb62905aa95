"""How fast this machine reads its memory and its cache: measured, in about a second."""

from __future__ import annotations

import ctypes
import mmap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from freehold.plan.cpu_speed import Memory
from freehold.types import Host

MIB = 1 << 20
RUNS = 5  # the best counts: others use the machine, too
AT_LEAST_BYTES = 64 * MIB  # read in one run, or its end would be seen too coarsely


def measure(host: Host, at_ns: int, root: Path = Path("/")) -> Memory:
    """Read with the C library's memchr, which looks at every byte, writes none, and lets other threads run.

    `root` is where /sys is read from. Takes an eighth of the free memory at most.
    """
    cache = _last_cache_bytes(root) or 16 * MIB
    memory = max(4 * cache, min(max(8 * cache, 256 * MIB), host.available_bytes // 8, 1024 * MIB))
    one_gb_s = _rate(memory, 1)
    return Memory(
        one_gb_s=one_gb_s,
        all_gb_s=max(one_gb_s, _rate(memory, host.cores)),
        cache_gb_s=_rate(cache // 4, 1),
        cache_bytes=cache,
        cores=host.cores,
        cpu=host.cpu,
        at_ns=at_ns,
    )


def _rate(size_bytes: int, threads: int) -> float:
    """GB/s of all threads together, each with a part of so many bytes."""
    memchr = ctypes.CDLL(None).memchr
    memchr.argtypes, memchr.restype = (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t), ctypes.c_void_p
    part = size_bytes // threads
    passes = -(-AT_LEAST_BYTES // size_bytes)
    buffers = [(ctypes.c_char * part).from_buffer(mmap.mmap(-1, part)) for _ in range(threads)]

    def read(buffer: ctypes.Array[ctypes.c_char]) -> None:
        for _ in range(passes):
            memchr(ctypes.addressof(buffer), 0, part)

    best_s = float("inf")
    with ThreadPoolExecutor(threads) as pool:
        for buffer in buffers:
            ctypes.memset(buffer, 1, part)  # pages that were never written are all the same one
        for _ in range(RUNS):
            began_s = time.perf_counter()
            list(pool.map(read, buffers))
            best_s = min(best_s, time.perf_counter() - began_s)
    return round(part * threads * passes / best_s / 1e9, 1)


def _last_cache_bytes(root: Path) -> int:
    """Of the largest cache that the first core has; 0 where the system does not say."""
    sizes = [
        int(text[:-1]) << 10
        for path in (root / "sys/devices/system/cpu/cpu0/cache").glob("index*/size")
        if (text := path.read_text().strip()).endswith("K") and text[:-1].isdigit()
    ]
    return max(sizes, default=0)
