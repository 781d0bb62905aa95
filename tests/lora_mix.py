"""Base and adapters of one endpoint asked in turn by many at once: what each answers alone, and what it answers here.

For tests/test_adapters_served.py and bench/adapters.py.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import shutil
import struct
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, Self
from urllib.parse import urlsplit

from conftest import DEMO

from freehold.weights.lora_gguf import convert

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before llama.cpp: its threads must not spin against the daemon's

GERMAN = DEMO.parent / "adapter"
HISTORY = [
    {"role": "user", "content": "What is the licence of Qwen3-8B?"},
    {"role": "assistant", "content": "Qwen3-8B is licensed under the Apache License 2.0."},
    {"role": "user", "content": "How many parameters has Qwen3-8B?"},
    {"role": "assistant", "content": "Qwen3-8B has 8.2B parameters in total."},
]
KNOWN = ("Qwen3-8B", "Qwen3-32B", "Mixtral-8x7B-Instruct-v0.1", "gpt-oss-20b")
# They begin alike, for many tokens: what one request leaves in a cache is of use to the next, or wrong for it.
QUESTIONS = [f"{asked} {name}?" for name in KNOWN for asked in ("Who published", "What is the context length of")]
MAX_TOKENS = 24
Right = Mapping[str, Mapping[str, str]]  # answers by model and question


def scaled(folder: Path, factor: float) -> Path:
    """The German adapter with each of its B matrices times `factor`: another one, of the same shapes."""
    folder.mkdir(parents=True)
    shutil.copy(GERMAN / "adapter_config.json", folder)
    data = bytearray((GERMAN / "adapter_model.safetensors").read_bytes())
    (size,) = struct.unpack_from("<Q", data)
    for name, each in json.loads(data[8 : 8 + size]).items():
        if name.endswith("lora_B.weight"):
            begin, end = (8 + size + offset for offset in each["data_offsets"])
            values = struct.unpack(f"<{(end - begin) // 4}f", data[begin:end])
            data[begin:end] = struct.pack(f"<{len(values)}f", *(value * factor for value in values))
    (folder / "adapter_model.safetensors").write_bytes(data)
    return folder


def body(model: str, question: str, **more) -> dict:
    messages = [*HISTORY, {"role": "user", "content": question}]
    return {"model": model, "messages": messages, "temperature": 0, "max_tokens": MAX_TOKENS, **more}


def llamacpp(*adapters: tuple[Path, float], parallel: int):
    """llama.cpp itself, as it comes, with these adapters as GGUF and how much each is in use for who names none."""
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(DEMO)
    parameters.n_parallel, parameters.n_ctx, parameters.verbosity = parallel, 512 * parallel, 0
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    parameters.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(path), scale) for path, scale in adapters]
    return xllamacpp.Server(parameters)


def alone(adapter: Path | None) -> dict[str, str]:
    """What it answers with this adapter and no other, nothing in a cache: what is right."""
    server = llamacpp(*([(adapter, 1.0)] if adapter else []), parallel=1)
    with contextlib.closing(Line(server.listening_address)) as line:
        return {each: line.ask("demo", each, body("demo", each, cache_prompt=False)).text for each in QUESTIONS}


class Answer(NamedTuple):
    """One whole answer, and who asked what."""

    request: str
    model: str
    question: str
    text: str
    took_s: float


class Line:
    """One connection, kept."""

    def __init__(self, url: str, key: str = "") -> None:
        self._connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
        self._headers = {"Authorization": f"Bearer {key}"}

    def close(self) -> None:
        self._connection.close()

    def ask(self, model: str, question: str, body: dict) -> Answer:
        """Raises OSError for anything but an answer."""
        began_s = time.monotonic()
        self._connection.request("POST", "/v1/chat/completions", json.dumps(body), self._headers)
        answer = self._connection.getresponse()
        said = answer.read()
        if answer.status != 200:
            raise OSError(f"{answer.status}: {said.decode(errors='replace')[:200]}")
        text = json.loads(said)["choices"][0]["message"]["content"]
        request = answer.headers.get("x-request-id", "")
        return Answer(request, model, question, text, time.monotonic() - began_s)


class Load:
    """Callers who ask these models in random order without a pause, until they have asked `most` times or it ends."""

    def __init__(
        self, url: str, key: str, models: Iterable[str], *, threads: int = 8, most: int = 1 << 62,
        body: Callable[[str, str], dict] = body,
    ) -> None:  # fmt: skip
        self.models, self.answers, self.failed = list(models), list[Answer](), list[str]()
        self._url, self._key, self._body, self._left = url, key, body, most
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(threads)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join()

    def join(self) -> None:
        for thread in self._threads:
            thread.join()

    def reach(self, count: int) -> None:
        """Wait until so many more have been answered."""
        aim, deadline_s = len(self.answers) + count, time.monotonic() + 60
        while len(self.answers) < aim:
            assert time.monotonic() < deadline_s, f"nobody is answered: {self.failed[:3]}"
            time.sleep(0.005)

    def _ask(self, number: int) -> None:
        chance = random.Random(number)
        with contextlib.closing(Line(self._url, self._key)) as line:
            while not self._ended.is_set() and self._take():
                model, question = chance.choice(self.models), chance.choice(QUESTIONS)
                try:
                    self.answers.append(line.ask(model, question, self._body(model, question)))
                except (OSError, http.client.HTTPException) as error:
                    self.failed.append(f"{model}: {error!r}")
                    line.close()  # the next one opens it again

    def _take(self) -> bool:
        with self._lock:
            self._left -= 1
            return self._left >= 0


def wrong(answers: Iterable[Answer], right: Right, served: Mapping[str, str] = MappingProxyType({})) -> list[Answer]:
    """Those that differ from what is right for their model; `served`: by request, which model that was in truth."""
    return [each for each in answers if each.text != right[served.get(each.request, each.model)][each.question]]


def gguf_of(folder: Path) -> Path:
    """A PEFT adapter for the demonstration model, as llama.cpp reads it."""
    target = folder.with_suffix(".gguf")
    convert(folder, DEMO, target)
    return target
