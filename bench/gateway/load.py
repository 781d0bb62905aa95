"""The loads, and what one of them costs one gateway."""

import json
import shutil
import subprocess
import time
from contextlib import nullcontext
from pathlib import Path

import msgspec
import wire
from processes import LOAD_CORE, alive, busy_s, cpu_s, memory_mib, quieten, realtime


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """One way to ask. Seconds: before anything counts, and counted; in a quick run."""

    arguments: str
    warm_s: float
    seconds: float
    quick_warm_s: float
    quick_s: float
    idle: bool = False  # it leaves the machine idle most of the time: latency counts, and others are kept out


LOADS = {
    "whole": Load(arguments="-m json -c 64", warm_s=0.6, seconds=2.5, quick_warm_s=0.3, quick_s=0.8),
    "rate": Load(arguments="-m json -c 32 -r 1000", warm_s=0.6, seconds=3, quick_warm_s=0.3, quick_s=1, idle=True),
    "streams": Load(  # 12,800 chunks/s
        arguments="-m sse -c 256 -n 60 -u 20000 -s 1200", warm_s=1.4, seconds=3, quick_warm_s=1.3, quick_s=1, idle=True
    ),
    "flood": Load(arguments="-m sse -c 256 -n 100 -u 0", warm_s=0.8, seconds=3, quick_warm_s=0.4, quick_s=1),
    "many": Load(  # 1,000 streams, 10,000 chunks/s
        arguments="-m sse -c 1000 -n 30 -u 100000 -s 3000", warm_s=3.3, seconds=3.2, quick_warm_s=3.2, quick_s=1,
        idle=True,
    ),
    "long": Load(arguments="-m json -c 64 -b 32768", warm_s=0.4, seconds=2.5, quick_warm_s=0.3, quick_s=0.8),
}  # fmt: skip
SLOW_RATE = "20"  # requests/s, of a gateway that does not reach 1,000


class Bench(msgspec.Struct, frozen=True):
    """Where the load comes from and goes to."""

    scratch: Path
    upstream: wire.Gateway
    quick: bool

    def measure(self, gateway: wire.Gateway, name: str, *, slow=False) -> dict:
        """One load on one gateway: gwload's figures, CPU of the gateway and memory. Raises RuntimeError."""
        load = LOADS[name]
        before, busy_before_s, began_s = wire.stats(self.upstream.port), busy_s(), time.monotonic()
        cpu_before_s, own_before_s = cpu_s(gateway.pid), self._own_s(gateway)
        with realtime(gateway.pid, self.upstream.pid) if load.idle else nullcontext(False) as first:
            told = self._load(gateway, load, slow=slow, first=first)
            lasted_s, cpu_then_s = time.monotonic() - began_s, cpu_s(gateway.pid)
            busy_then_s, own_then_s = busy_s(), self._own_s(gateway)
        if not alive(gateway.pid):
            raise RuntimeError("it has ended; see its log")
        if gateway is not self.upstream:
            quieten(gateway.pid)
        spent_s = cpu_s(gateway.pid) - cpu_before_s
        answered = wire.stats(self.upstream.port)["requests"] - before["requests"]
        found = json.loads(told.stdout)
        others_s = busy_then_s - busy_before_s - (own_then_s - own_before_s) - found["cpu_s"]
        return {
            **found,
            "gateway": gateway.name,
            "load": name,
            "requests": answered,
            "gateway_cpu_pct": round(100 * (cpu_then_s - cpu_before_s) / lasted_s, 1),
            "others_cpu_pct": round(100 * max(0.0, others_s) / lasted_s, 1),
            "cpu_us_per_request": _each_us(spent_s, answered),
            "cpu_us_per_chunk": _each_us(spent_s, found.get("chunks_all", 0)),
            **memory_mib(gateway.pid),
        }

    def _own_s(self, gateway: wire.Gateway) -> float:
        return sum(cpu_s(pid) for pid in {gateway.pid, self.upstream.pid})

    def _load(self, gateway: wire.Gateway, load: Load, *, slow: bool, first: bool) -> subprocess.CompletedProcess[str]:
        warm_s, seconds = (load.quick_warm_s, load.quick_s) if self.quick else (load.warm_s, load.seconds)
        arguments = load.arguments.replace("-r 1000", f"-r {SLOW_RATE}") if slow else load.arguments
        where = ["-p", str(gateway.port), "-k", gateway.key, "-M", gateway.model, "-P", gateway.path]
        command = ["taskset", "-c", str(LOAD_CORE), str(self.scratch / "gwload"), *where, *arguments.split()]
        command += ["-w", str(warm_s), "-d", str(seconds)]
        if first and shutil.which("chrt"):
            command = ["chrt", "-r", "1", *command]
        told = subprocess.run(command, check=False, capture_output=True, text=True)
        if told.returncode:
            raise RuntimeError(f"the load on {gateway.name} ended: {told.stderr.strip()}")
        return told


def _each_us(spent_s: float, count: int) -> float | None:
    return round(spent_s * 1e6 / count, 2) if count else None
