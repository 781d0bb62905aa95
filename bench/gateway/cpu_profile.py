"""Where the daemon's CPU goes at full load: kernel by system call, native code by library, Python by file and function.

    python bench/gateway/cpu_profile.py [--load whole] [--asgi] [--before COMMIT] [--seconds 4]

The first two with perf, the last with py-spy (of PyPI), one after the other under the same load. Without one of them
its part is left out. Samples of a thread that waits do not count.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ours
import peers
import psutil
import wire
from load import LOADS
from processes import LOAD_CORE

Frame = tuple[str, str]  # symbol, library
_FRAME = re.compile(r"^\s+[0-9a-f]+ (.*?)(?:\+0x[0-9a-f]+)? \((.*)\)$", re.MULTILINE)


@contextmanager
def loaded(scratch: Path, gateway: wire.Gateway, load: str, seconds: float) -> Iterator[None]:
    """The load, for so long at least; what is inside sees it at work."""
    to = ["-p", str(gateway.port), "-k", gateway.key]
    command = ["taskset", "-c", str(LOAD_CORE), str(scratch / "gwload"), *to, *LOADS[load].arguments.split()]
    with subprocess.Popen([*command, "-w", "1", "-d", f"{seconds + 3:g}"], stdout=subprocess.DEVNULL) as running:
        time.sleep(1)
        try:
            yield
        finally:
            running.terminate()


def by_kernel(pid: int, seconds: float, folder: Path) -> tuple[Counter, Counter]:
    """Samples by system call or library; those outside of the kernel by function too."""
    data = folder / "perf.data"
    record = ["perf", "record", "-q", "-g", "-F", "997", "-o", data, "-p", str(pid), "--", "sleep", f"{seconds:g}"]
    subprocess.run(record, check=True, capture_output=True)
    script = ["perf", "script", "-i", data, "-F", "ip,sym,dso"]
    told = subprocess.run(script, check=True, capture_output=True, text=True).stdout
    samples = [each for sample in told.split("\n\n") if (each := _FRAME.findall(sample))]
    native = Counter(f"{_library(frames[0])} {frames[0][0]}" for frames in samples if not _in_kernel(frames[0]))
    return Counter(map(place, samples)), native


def place(frames: list[Frame]) -> str:
    """Where a stack of perf's ends: `kernel: write, socket`, by the C library's name for the call; or the library."""
    if not _in_kernel(frames[0]):
        return _library(frames[0])
    symbols = [frame[0] for frame in frames if _in_kernel(frame)]
    if not any(symbol.startswith("entry_SYSCALL") for symbol in symbols):
        return "kernel: interrupts"
    caller = next((frame[0] for frame in frames if not _in_kernel(frame)), "unknown")
    call = re.sub(r"^__(GI_)?(__)?(libc_)?|@+.*$", "", caller)
    return f"kernel: {call}, socket" if any(symbol.startswith("sock_") for symbol in symbols) else f"kernel: {call}"


def _in_kernel(frame: Frame) -> bool:
    return "kernel" in frame[1] or frame[1].endswith(".ko")


def _library(frame: Frame) -> str:
    return Path(frame[1]).name.partition(".")[0]


def by_python(pid: int, seconds: float, folder: Path) -> tuple[Counter, Counter]:
    """Samples that held the interpreter, by file and by function: what they call in C counts for them."""
    raw = folder / "py-spy.txt"
    command = [_py_spy(), "record", "-p", str(pid), "-d", f"{seconds:g}", "-r", "500", "--gil", "-f", "raw", "-o", raw]
    subprocess.run(command, check=True, capture_output=True)
    files, functions = Counter(), Counter()
    for line in raw.read_text().splitlines():
        stack, _, count = line.rpartition(" ")
        function, _, where = stack.rpartition(";")[2].partition(" (")
        file = where.partition(":")[0].rstrip(")")
        files[file] += int(count)
        functions[f"{file} {function}"] += int(count)
    return files, functions


def _py_spy() -> str | None:
    return shutil.which("py-spy") or shutil.which("py-spy", path=Path(sys.executable).parent)


def show(title: str, found: Counter, most=25) -> None:
    total = sum(found.values())
    print(f"\n{title}: {total:,} samples")
    for name, count in found.most_common(most):
        print(f"  {100 * count / total:5.1f} %  {name}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--load", choices=LOADS, default="whole")
    parser.add_argument("--asgi", action="store_true", help="without the fast path")
    parser.add_argument("--before", metavar="COMMIT", help="another version, without limits")
    parser.add_argument("--seconds", type=float, default=4)
    args, scratch = parser.parse_args(), peers.SCRATCH
    served = {"commit": args.before} if args.before else {"fast_path": not args.asgi}
    peers.compile_tools(scratch)
    with (
        tempfile.TemporaryDirectory() as temporary,
        peers.upstream(scratch) as upstream,
        ours.served("freehold", upstream, scratch, **served) as gateway,
    ):
        folder = Path(temporary)
        with loaded(scratch, gateway, args.load, args.seconds):
            counted, before = wire.stats(upstream.port)["requests"], psutil.Process(gateway.pid).cpu_times()
            time.sleep(args.seconds)
            after = psutil.Process(gateway.pid).cpu_times()
            counted = max(1, wire.stats(upstream.port)["requests"] - counted)
        user_us, kernel_us = ((getattr(after, of) - getattr(before, of)) * 1e6 / counted for of in ("user", "system"))
        print(f"{counted / args.seconds:,.0f} requests/s; a request: {user_us:.1f} µs user, {kernel_us:.1f} µs kernel")
        if shutil.which("perf"):
            with loaded(scratch, gateway, args.load, args.seconds):
                places, native = by_kernel(gateway.pid, args.seconds, folder)
            show("where the CPU is (perf)", places)
            show("outside of the kernel, by function (perf)", native)
        if _py_spy():
            with loaded(scratch, gateway, args.load, args.seconds):
                files, functions = by_python(gateway.pid, args.seconds, folder)
            show("Python, by file (py-spy)", files)
            show("Python, by function (py-spy)", functions, most=40)


if __name__ == "__main__":
    main()
