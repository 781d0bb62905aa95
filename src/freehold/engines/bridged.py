"""Engines that listen on TCP only: in the sandbox bridge.py makes the Unix socket in front of them.

Without a sandbox their port is open to everybody on the machine: policy.isolation = "required" is for them above all.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from zlib import crc32

import msgspec

from freehold.engines.base import Launchable, Wanted
from freehold.engines.flags import AND
from freehold.engines.vllm import VERSION, interpreter, machine_folders, paged, variables
from freehold.facts import Model
from freehold.types import Build, Host, Launch, Plan, Refusal, Service, WireError

_BRIDGE = str(Path(__file__).with_name("bridge.py"))
_PORTS = range(20_000, 30_000)  # below those that the system gives out by itself


class _Said(msgspec.Struct):
    """An error of SGLang, TensorRT-LLM and Dynamo: what OpenAI puts under `error` is the body itself."""

    message: str
    type: str | None = None
    code: str | int | None = None
    param: str | None = None


_decode = msgspec.json.Decoder(_Said).decode


class Bridged(Launchable):
    """Started by the bridge, on cards only."""

    environment = True
    vllm = VERSION  # whose plan it gets
    takes = frozenset({
        *("version", "tensor_parallel", "pipeline_parallel", "expert_parallel", "card_share", "batched_tokens"),
        *("kv_dtype", "tool_parser", "reasoning_parser", "chat_template"),
    })  # fmt: skip

    def fit(self, build: Build, model: Model | None, host: Host, wanted: Wanted) -> Plan | Refusal:
        """Weights and KV cache take the same room in every engine; what they need beside it is measured of vLLM."""
        if not wanted.card:
            reason = "this engine needs a card, and there is none"
            return Refusal(subject=f"{build.name} on {host.name}", reason=reason, hint="use vllm or llamacpp")
        return paged(build, model, host, msgspec.structs.replace(wanted, version=self.vllm))

    def error(self, status: int, body: bytes) -> tuple[int, WireError]:
        with suppress(msgspec.DecodeError):
            body = msgspec.json.encode({"error": _decode(body)})
        return super().error(status, body)

    def described(
        self,
        service: Service,
        programs: Sequence[Sequence[str]],
        env: dict[str, str],
        *,
        path: str = "",
        file: str = "",
    ) -> Launch:
        """The launch of `programs`, the last of which gets the endpoint's own arguments; the port is that of `port`.

        `path`: answers 200 once it is up. `file`: the text of `config_file`. Raises BadConfig for arguments that are
        not the endpoint's to give.
        """
        template = service.options.chat_template
        joined = [part for program in programs for part in (AND, *program)][1:]
        own = self.arguments(service, (AND, *programs[-1]))  # AND would start another program
        return Launch(
            argv=(
                *(service.program, "-I", _BRIDGE, *(("-w", config_file(service), file) if file else ())),
                *(service.socket, f"{port(service)}{path}", *joined, *own),
            ),
            socket=service.socket,
            env=variables(service) | env,
            weights=(*service.files, *service.draft_files),
            readable=(
                *interpreter(service.program),
                _BRIDGE,
                *machine_folders(service.plan),
                *((template,) if template else ()),
                *((service.adapter_folder,) if service.adapter_folder else ()),
            ),
            writable=(service.cache_folder,) if service.cache_folder else (),
            devices=service.devices,
        )


def port(service: Service) -> int:
    """In the sandbox any would do; without one, replicas share the machine."""
    return _PORTS[crc32(service.socket.encode()) % len(_PORTS)]


def config_file(service: Service) -> str:
    """In the socket's folder, which is the engine's own."""
    return str(Path(service.socket).with_name("config.yaml"))
