"""Every engine of ours keeps the contract that others are held to; and the contract finds what breaks it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.engines import Launchable, contract, engine, names
from freehold.engines.flags import Flags
from freehold.engines.vllm import Vllm
from freehold.types import Launch, Service, Tokens, WireError

DUMPS = Path(__file__).parent / "data/flags"
PYTHON = "/opt/engines/one/bin/python"
SERVICES = {
    "dynamo": contract.service(program=PYTHON, devices=("/dev/nvidia0",)),
    "llamacpp": contract.service(weights="/models/demo.gguf", files=(), program="/opt/llama/bin/llama-server"),
    "sglang": contract.service(program=PYTHON, devices=("/dev/nvidia0",)),
    "tensorrt-llm": contract.service(program=PYTHON, devices=("/dev/nvidia0",)),
    "vllm": contract.service(program=PYTHON, plan=contract.plan(card="", card_share=0.0, kv_dtype="bf16")),
}
MODULES = {
    "vllm.entrypoints.openai.api_server": "vllm-0.32.0",
    "sglang.launch_server": "sglang-0.5.23",
    "dynamo.frontend": "dynamo.frontend-1.6.1",
}


# As these engines print them, with numbers that no engine has.
NUMBERS = ("", ".", "1.2.3", "9" * 400, "9" * 5000, "²", "-1", "NaN")
SAID = (
    *(
        "Model loading took {} GiB",
        "Available KV cache memory: {} GiB",
        "Graph capturing finished in 1 secs, took {} GiB",
    ),
    *("model buffer size = {} MiB", "n_slots = {0}, n_ctx_slot = {0}", "Load weight end. mem usage={} GB"),
    *("Loading safetensors checkpoint shards: {}% Completed", "Capturing batches: {}%", "Capturing CUDA graphs: {}%"),
    (
        "max seq len ({0}), ({0} GiB KV cache is needed, which is larger than the available KV cache memory ({0} GiB). "
        "Based on the available memory, the estimated maximum model length is {0}"
    ),
    'vllm:cache_config_info{{kv_cache_memory_bytes="{0}",kv_cache_size_tokens="{0}"}} 1',
    'vllm:cache_config_info{{kv_cache_max_concurrency="{0}"}} 1',
    *("vllm:prompt_tokens_total {}", "sglang:max_total_num_tokens {}", "sglang:kv_cache_memory_usage_gb {}"),
    *("dynamo_frontend_output_tokens_total {}", "trtllm_prompt_tokens_total {}", "llamacpp:prompt_tokens_total {}"),
)


def flags() -> dict[str, Flags]:
    return {
        module: msgspec.json.decode((DUMPS / f"{name}.json").read_bytes(), type=Flags)
        for module, name in MODULES.items()
    }


def launchable(name: str) -> Launchable:
    found = engine(name)
    assert isinstance(found, Launchable)
    return found


def test_all_of_ours_are_held_to_it() -> None:
    assert set(SERVICES) == {name for name in names() if isinstance(engine(name), Launchable)}


@pytest.mark.parametrize("name", SERVICES)
def test_the_contract(name: str) -> None:
    contract.check(launchable(name), SERVICES[name], flags=flags())


@pytest.mark.parametrize("name", SERVICES)
@given(blob=st.binary(max_size=400))
def test_any_bytes(name: str, blob: bytes) -> None:
    contract.check_answers(launchable(name), [blob])
    contract.check_log(launchable(name), contract.plan(), [blob])


@pytest.mark.parametrize("name", SERVICES)
@pytest.mark.parametrize("said", SAID)
def test_numbers_that_no_engine_has(name: str, said: str) -> None:
    blobs = [said.format(number).encode() for number in NUMBERS]
    contract.check_answers(launchable(name), blobs)
    contract.check_log(launchable(name), contract.plan(), blobs)


class Leaks(Vllm):
    def launch(self, service: Service) -> Launch:
        import os

        launch = super().launch(service)
        return msgspec.structs.replace(launch, env={**launch.env, "HOME": os.environ["HOME"]})


class Hides(Vllm):
    def launch(self, service: Service) -> Launch:
        launch = super().launch(service)
        return msgspec.structs.replace(launch, argv=(*launch.argv, "--chat-template=/home/somebody/template.jinja"))


class Writes(Vllm):
    def launch(self, service: Service) -> Launch:
        return msgspec.structs.replace(super().launch(service), writable=("/models",))


class Shares(Vllm):
    def isolate(self, salt: str, slot: int | None, *, same: bool, salted: bool) -> Mapping[str, object]:
        return {"cache_salt": "everybody"}


class Unheard(Vllm):
    refused_fields: Mapping[str, str] = {}


class Raises(Vllm):
    def counters(self, metrics: bytes) -> Tokens:
        return Tokens(prompt=int(metrics.split()[0]))


class Succeeds(Vllm):
    def error(self, status: int, body: bytes) -> tuple[int, WireError]:
        return status, WireError(message="fine", type="server_error")


class Forgets(Vllm):
    adapters = "launch"


class Misspells(Vllm):
    def launch(self, service: Service) -> Launch:
        launch = super().launch(service)
        return msgspec.structs.replace(launch, argv=(*launch.argv, "--max-model-length", "7"))


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (Leaks, "environment"),
        (Hides, "/home/somebody"),
        (Writes, "cache folder"),
        (Shares, "same salt"),
        (Unheard, "cache_salt"),
        (Succeeds, "became 200"),
        (Forgets, "not `hot`"),
        (Misspells, "--max-model-length"),
    ],
)
def test_what_breaks_it_is_found(broken: type[Launchable], words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        contract.check(broken(), SERVICES["vllm"], flags=flags())


def test_an_exception_is_found() -> None:
    with pytest.raises((IndexError, ValueError)):
        contract.check(Raises(), SERVICES["vllm"])
