"""Base and adapters of one endpoint asked in turn by many at once: what each answers alone, and what it answers here.

For tests/test_adapters_served.py and bench/adapters.py.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import shutil
import struct
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from conftest import DEMO, Team

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


def alone(adapter: Path | None) -> dict[str, str]:
    """What llama.cpp answers with this adapter as GGUF and no other, nothing in a cache: what is right."""
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(DEMO)
    parameters.n_parallel, parameters.n_ctx, parameters.verbosity = 1, 512, 0
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    if adapter:
        parameters.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(adapter), 1.0)]
    server = xllamacpp.Server(parameters)
    line = Line(f"{server.listening_address}/v1")
    return {each: line.ask(body("demo", each, cache_prompt=False)) for each in QUESTIONS}


class Line:
    """One connection, kept."""

    def __init__(self, url: str, key: str = "") -> None:
        self._connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
        self._headers = {"Authorization": f"Bearer {key}"}

    def ask(self, body: dict) -> str:
        """The text. Raises OSError for anything but an answer."""
        self._connection.request("POST", "/v1/chat/completions", json.dumps(body), self._headers)
        answer = self._connection.getresponse()
        said = answer.read()
        if answer.status != 200:
            raise OSError(f"{answer.status}: {said.decode(errors='replace')[:200]}")
        return json.loads(said)["choices"][0]["message"]["content"]


@dataclass
class Load:
    """Callers who ask without a pause, until they have asked `most` times or `stop` is called."""

    url: str
    key: str
    right: Mapping[str, Mapping[str, tuple[str, ...]]]  # by model and question: the answers that are right
    threads: int = 8
    most: int = 1 << 62
    seed: int = 1
    body: Callable[..., dict] = body
    asked: dict[str, int] = field(default_factory=dict)  # by model
    failed: list[str] = field(default_factory=list)
    wrong: list[tuple[str, str, str]] = field(default_factory=list)
    delays_s: list[tuple[float, float]] = field(default_factory=list)  # when it began, and how long it took

    def __post_init__(self) -> None:
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._left = self.most
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(self.threads)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self.join()

    def join(self) -> None:
        for thread in self._threads:
            thread.join()

    def reach(self, count: int) -> None:
        """Wait until so many more have been answered."""
        aim = len(self.delays_s) + count
        deadline_s = time.monotonic() + 60
        while len(self.delays_s) < aim and not self.failed:
            assert time.monotonic() < deadline_s, "nobody is answered"
            time.sleep(0.005)

    def _ask(self, number: int) -> None:
        chance, line = random.Random(f"{self.seed} {number}"), Line(self.url, self.key)
        while not self._stopped.is_set() and self._take():
            model, question = chance.choice(list(self.right)), chance.choice(QUESTIONS)
            began_s = time.monotonic()
            try:
                said = line.ask(self.body(model, question))
            except (OSError, http.client.HTTPException) as error:
                self.failed.append(f"{model}: {error!r}")
                line = Line(self.url, self.key)
                continue
            if said not in self.right[model][question]:
                self.wrong.append((model, question, said))
            with self._lock:
                self.asked[model] = self.asked.get(model, 0) + 1
                self.delays_s.append((began_s, time.monotonic() - began_s))

    def _take(self) -> bool:
        with self._lock:
            self._left -= 1
            return self._left >= 0


def once(answers: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Of each question the one answer that is right."""
    return {question: (answer,) for question, answer in answers.items()}


def gguf_of(folder: Path) -> Path:
    """A PEFT adapter for the demonstration model, as llama.cpp reads it."""
    from freehold.weights.lora_gguf import convert

    target = folder.with_suffix(".gguf")
    convert(folder, DEMO, target)
    return target


def team_of(team: Team, replicas: int = 2, more: str = "") -> None:
    team.write(demo=team.demo(f"replicas = {replicas}\n{more}"))
    team.serve()
