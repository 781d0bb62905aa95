"""Sixth: it answers by spelling out the question. How Freehold starts it and talks to it."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path

from freehold.engines import Launchable, Stage, Wanted
from freehold.facts import Model
from freehold.types import Build, Host, Launch, Plan, Refusal, Service, Signals, Stated, Tokens

_SERVER = str(Path(__file__).with_name("server.py"))
_COUNT = re.compile(rb"^sixth_(\w+) (\d+)$", re.MULTILINE)
_MEMORY = re.compile(r"sixth: (\d+) bytes of weights")


class Sixth(Launchable):
    """One process serves one GGUF file, which it only measures."""

    formats = ("gguf",)
    uses_cards = False
    salts = True
    refused_fields: Mapping[str, str] = {"cache_salt": "it chooses whose cached prompts are used"}

    def fit(self, build: Build, model: Model | None, host: Host, wanted: Wanted) -> Plan | Refusal:
        if build.weight_bytes > host.available_bytes:
            hint = "use a smaller build"
            return Refusal(subject=build.name, reason=f"needs {build.weight_bytes:,} bytes of memory", hint=hint)
        context = min(wanted.context or build.context, build.context)
        return Plan(
            build=build.name,
            host=host.name,
            context=context,
            parallel=wanted.parallel,
            threads=1,
            weight_bytes=build.weight_bytes,
            kv_bytes_per_token=0,
            kv_bytes=0,
            compute_bytes=1 << 20,
            available_bytes=host.available_bytes,
            requests_that_fit=wanted.parallel,
            steps=(f"Weights: {build.weight_bytes:,} bytes",),
        )

    def launch(self, service: Service) -> Launch:
        prefixes = dict.fromkeys((sys.prefix, sys.base_prefix))
        parts = (Path(prefix, part) for prefix in prefixes for part in ("bin", "lib", "lib64", "pyvenv.cfg"))
        return Launch(
            argv=(
                sys.executable,
                "-I",
                _SERVER,
                service.socket,
                service.weights,
                service.name,
                *self.arguments(service),
            ),
            socket=service.socket,
            env={"LANG": "C.UTF-8"},
            weights=service.files or (service.weights,),
            readable=(*(str(part) for part in parts if part.exists()), _SERVER),
        )

    def counters(self, metrics: bytes) -> Tokens:
        counted = _counted(metrics)
        return Tokens(prompt=counted.get("prompt", 0), completion=counted.get("completion", 0))

    def signals(self, metrics: bytes) -> Signals:
        return Signals(running=_counted(metrics).get("running"))

    def stage(self, line: str) -> Stage | None:
        return Stage("measuring the weights") if line.startswith("sixth: measuring") else None

    def stated(self, log: str, metrics: bytes) -> Stated:
        said = _MEMORY.search(log)
        return Stated(weight_bytes=int(said[1])) if said else Stated()


def _counted(metrics: bytes) -> dict[str, int]:
    return {name.decode(): int(count) for name, count in _COUNT.findall(metrics) if len(count) < 19}
