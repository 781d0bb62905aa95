"""The real vLLM, in the sandbox: brought up, measured, counted, refused and killed.

FREEHOLD_VLLM names the Python of an environment that has it (make test-vllm makes one); a start takes half a minute.
Tests print the figures of their run: pytest -rP shows them.
"""

from __future__ import annotations

import json
import math
import os
import re
import signal
import struct
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import msgspec
import psutil
import pytest
from asking import ASKING, chat, connect
from conftest import DEMO, Team, alive, team_in
from conversation import ANSWER, SCHEMA

from freehold.engines import families
from freehold.executors.memory import tree
from freehold.ledger import report
from freehold.types import Measurement, Stated

VLLM = os.environ.get("FREEHOLD_VLLM", "")
MODEL = DEMO.parent / "model"
ENGINE = f'engine = "vllm"\nbinary = "{VLLM}"\nparallel = 8\nstart_seconds = 300\nwait_seconds = 300\n'
CONTEXT = 2048
BLOCKS = 5  # of 128 tokens; one of them is never given to anybody
FEW = f'arguments = ["--enforce-eager", "--num-gpu-blocks-override", "{BLOCKS}"]\n'
STAGES = [
    *("verifying the weights", "launching the engine", "loading the engine", "starting the engine core"),
    *("loading the weights", "compiling", "opening its socket", "probing", "warming up"),
]
LONG = [{"role": "user", "content": "model " * 400}]
pytestmark = [pytest.mark.vllm, pytest.mark.skipif(not VLLM, reason="FREEHOLD_VLLM names no Python")]


class Served(NamedTuple):
    team: Team
    said: dict[str, dict]  # what came of bringing up each of them


def large(folder: Path) -> Path:
    """A small model that keeps 512 KiB for each token: its files are mostly holes."""
    folder.mkdir()
    heads = {"hidden_size": 64, "num_attention_heads": 512, "num_key_value_heads": 512, "head_dim": 256}
    sizes = {"num_hidden_layers": 1, "intermediate_size": 64, "max_position_embeddings": 131_072}
    config = json.loads((MODEL / "config.json").read_text()) | heads | sizes
    (folder / "config.json").write_text(json.dumps(config))
    layer, wide = "model.layers.0", 512 * 256
    shapes = {"model.embed_tokens.weight": (2048, 64), "model.norm.weight": (64,)}
    shapes |= {f"{layer}.{name}_layernorm.weight": (64,) for name in ("input", "post_attention")}
    shapes |= {f"{layer}.self_attn.{name}_proj.weight": (wide, 64) for name in "qkv"}
    shapes |= {f"{layer}.self_attn.o_proj.weight": (64, wide)}
    shapes |= {f"{layer}.mlp.{name}_proj.weight": (64, 64) for name in ("gate", "up", "down")}
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [begin, end]}
    raw = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        file.truncate(8 + len(raw) + end)
    return folder


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("vllm")
    own = f'{ENGINE}weights = "{MODEL}"\n'
    with team_in(folder) as team:
        team.write(
            server='metrics = "127.0.0.1:0"',
            demo=f"{own}context = {CONTEXT}\n",
            few=f'{own}context = "auto"\n{FEW}',
            guess=f'{own}context = 512\nspeculative = "ngram"\n',
            low=f"{own}context = 512\nbatched_tokens = 4\n",
            wrong=f'{own}context = 512\narguments = ["--max-num-sequences", "8"]\n',
            large=f'{ENGINE}weights = "{large(folder / "large")}"\ncontext = 131072\n',
        )
        team.serve()
        names = ["demo", "few", "low"]
        with ThreadPoolExecutor(len(names)) as pool:
            yield Served(team, dict(zip(names, pool.map(team.up, names), strict=True)))


@pytest.fixture
def team(served) -> Team:
    return served.team


def measurement(team: Team, endpoint: str) -> Measurement:
    """Of its last start, which is measured a little after it is up."""

    def last():
        team.daemon.ask("POST", "/flush")
        with report.reading(team.state) as db:
            found = db.execute("select * from measurement where endpoint = ? order by run desc", (endpoint,))
            return found.fetchone()

    values = team.until(last)
    kinds = {"predicted": Stated, "stated": Stated, "start_s": dict[str, float]}
    said = {name: msgspec.json.decode(values[name], type=kind) for name, kind in kinds.items()}
    return Measurement(**{**dict(values), **said})


def events(team: Team, kind: str, subject: str, run: int | None = None) -> list[dict]:
    of = [each for each in team.events(kind) if each["subject"] == subject]
    return [each for each in of if run is None or each["detail"]["run"] == run]


def say(*figures: object) -> None:
    sys.stdout.write(f"{' '.join(map(str, figures))}\n")


def ask(team: Team, endpoint: str, question: str) -> str:
    said = team.ask(endpoint, question, temperature=0, max_tokens=40)
    return said["choices"][0]["message"]["content"]


# up


def test_it_comes_up_in_stages_that_everybody_can_see(served):
    team = served.team
    assert served.said["demo"] == {"up": "demo"}
    stages = events(team, "engine.stage", "demo")
    assert [each["detail"]["stage"] for each in stages] == STAGES
    took = measurement(team, "demo").start_s
    assert [*took] == STAGES
    (ready,) = events(team, "replica.ready", "demo")
    assert sum(took.values()) == pytest.approx(ready["detail"]["seconds"], abs=1.0)
    for before, after in pairwise(stages):
        seen_s = (after["at_ns"] - before["at_ns"]) / 1e9
        assert took[before["detail"]["stage"]] == pytest.approx(seen_s, abs=0.1)
    say(f"start {ready['detail']['seconds']:.1f} s, beside two others:", took)


def test_it_is_isolated_and_probed(team):
    (tested,) = events(team, "isolation.tested", "demo")
    assert tested["detail"]["tcp"] == "no route"
    assert tested["detail"]["weights"] == "read-only"
    assert team.status("demo")["isolated"] is True
    (probe,) = events(team, "probe.passed", "demo")
    assert probe["detail"]["completion_tokens"] == 4


def test_its_memory_is_what_was_planned(team):
    """Its tokens are counted by vLLM from its own layout of the cache; its processes by the kernel."""
    one = measurement(team, "demo")
    planned, real = one.predicted, one.stated
    per_token = 2 * 2 * 64 * 4 * 2  # key and value x heads x dimension x layers x bytes
    assert (real.kv_bytes, real.kv_tokens * per_token) == (planned.kv_bytes, planned.kv_bytes)
    assert real.kv_tokens == (8 * CONTEXT // 128 + 1) * 128
    assert real.concurrency == pytest.approx(real.kv_tokens / CONTEXT)
    assert real.process_bytes == pytest.approx(planned.total_bytes, rel=0.25)
    row = next(line for line in team.run("ps", "--wide").splitlines() if re.match(r"demo +2,048", line))
    assert "(+0.0%)" in row
    say(f"processes: planned {planned.total_bytes / 2**20:.0f} MiB, real {real.process_bytes / 2**20:.0f} MiB")


# what is refused


def test_a_wrong_option_is_refused_before_anything_is_started(team):
    began_s = time.monotonic()
    said = team.up("wrong")
    took_s = time.monotonic() - began_s
    assert took_s < 3
    assert said["error"].endswith("--max-num-sequences is no option of this version; --max-num-seqs is")
    assert not events(team, "engine.started", "wrong")
    say(f"a wrong option: refused after {took_s:.2f} s")


def test_a_value_that_only_vllm_knows_to_be_wrong_is_said_in_its_words(served):
    said = served.said["low"]
    words = "max_num_batched_tokens (4) must be greater than or equal to max_num_seqs (8)"
    assert said["error"].endswith(f"vLLM refuses what it is told: {words}")
    assert len(events(served.team, "engine.started", "low")) == 1


def test_a_context_that_does_not_fit_is_refused_with_one_that_does(team):
    said = team.up("large")
    assert "one request of 131,072 tokens needs more" in said["error"]
    assert re.fullmatch(r'this fits: a context of [\d,]+; or context = "auto"', said["hint"])
    assert not events(team, "engine.started", "large")
    say("too large a context:", said["hint"])


def test_where_vllm_itself_counts_otherwise_it_is_started_again_with_what_it_names(served):
    """Its cache is smaller than was planned, by an argument of the team's own: its word is the last."""
    team = served.team
    assert served.said["few"] == {"up": "few"}
    (shortened,) = events(team, "plan.shortened", "few")
    assert shortened["detail"]["context"] == team.status("few")["context"] == (BLOCKS - 1) * 128
    assert len(events(team, "engine.started", "few")) == 2
    assert team.status("few")["measured"]["kv_tokens"] == BLOCKS * 128
    refused = team.post("few", "model " * 600)
    assert (refused.status, json.loads(refused.read())["error"]["code"]) == (400, "context_length_exceeded")


# what it serves


def test_speculation_is_refused_where_its_answers_go_wrong(team):
    """With ngram on a CPU 150 of 160 short questions at a temperature of 1 got nonsense; greedily they were right."""
    said = team.up("guess")
    assert "vLLM 0.32 answers nonsense with speculation" in said["error"]
    assert not events(team, "engine.started", "guess")


def test_groups_do_not_read_each_other_s_cache(team):
    """Blocks of 128 tokens: of a prompt of 400, three are found again, by whoever has the same salt."""
    other = team.daemon.ask("POST", "/keys", {"name": "other"})["secret"]

    def found(key: str) -> int:
        usage = team.ask("demo", key=key, messages=LONG, max_tokens=1)["usage"]
        return (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0

    assert [found(team.key), found(team.key), found(other), found(other)] == [0, 384, 0, 384]
    assert [row["cached_tokens"] for row in team.records()[-4:]] == [0, 384, 0, 384]


def test_requests_of_every_kind_are_counted_to_the_token(team):
    strict = {"type": "json_schema", "json_schema": {"name": "licence", "strict": True, "schema": SCHEMA}}
    kinds: list[dict] = [{}, {"logprobs": True, "top_logprobs": 3}, {"response_format": strict, "max_tokens": 64}]
    kinds += [{"n": 2, "temperature": 1}, {"max_tokens": 3}, {"stop": ["under"]}, {"messages": LONG, "max_tokens": 2}]
    asked = {"model": "demo", "messages": ASKING, "temperature": 0}
    with connect(team) as client, ThreadPoolExecutor(8) as pool:
        stream = client.chat.completions.create(**asked, stream=True, max_tokens=1900, extra_body={"ignore_eos": True})
        for _ in range(5):
            next(stream)
        stream.close()
        cut = team.until(lambda: [row for row in team.records() if row["outcome"] == "cut"])[-1]
        assert 4 <= cut["completion_tokens"] < 1900
        assert all(pool.map(lambda more: client.chat.completions.create(**asked | more).choices, kinds * 3))
        assert client.completions.create(model="demo", prompt=["Qwen3-8B is", "The"], max_tokens=5).choices
    (run,) = [each for each in json.loads(team.run("usage", "--reconcile", "--json")) if each["endpoint"] == "demo"]
    of_one = next(row["prompt_tokens"] for row in team.records() if row["completion_tokens"] == 3)
    assert run["counted_prompt"] - run["recorded_prompt"] == of_one, (
        "only the prompt of the one that was cut is not known"
    )
    say("reconciled:", run)
    assert "differs" not in team.run("usage", "--reconcile")


def test_every_parser_of_ours_is_one_that_this_vllm_has():
    (package,) = Path(VLLM).parent.parent.glob("lib/python*/site-packages/vllm")
    for folder, ours in (("tool_parsers", families.TOOLS), ("reasoning", families.REASONING)):
        names = re.findall(r'^ +"([\w.-]+)": \(', (package / folder / "__init__.py").read_text(), re.MULTILINE)
        assert set(ours.values()) <= set(names)


# killed


class Inside(NamedTuple):
    """The processes of one engine, by what vLLM calls them."""

    pids: list[int]
    api: int


def inside(team: Team, replica: str) -> Inside:
    (status,) = [each for each in team.daemon.ask("GET", "/status")["endpoints"] if each["replica"] == replica]
    lines = {pid: " ".join(psutil.Process(pid).cmdline()) for pid in tree(status["pid"])}
    assert {part for part in ("EngineCore", "Worker") if any(part in line for line in lines.values())}, lines
    (api,) = [pid for pid, line in lines.items() if line.startswith(VLLM) and "api_server" in line]
    return Inside([*lines], api)


def test_killed_it_leaves_nothing_and_who_asks_meanwhile_is_answered(team):
    there, first = inside(team, "demo"), measurement(team, "demo")
    os.kill(there.api, signal.SIGKILL)
    began_s = time.monotonic()
    with ThreadPoolExecutor(4) as pool, connect(team, timeout=300) as client:
        answers = [pool.submit(chat, client, temperature=0) for _ in range(4)]
        team.until(lambda: not any(alive(pid) for pid in there.pids), timeout_s=10)
        gone_s = time.monotonic() - began_s
        assert {each.result().choices[0].message.content for each in answers} == {ANSWER}
    answered_s = time.monotonic() - began_s
    team.until(lambda: measurement(team, "demo").run == first.run + 1)
    again = measurement(team, "demo")
    say(f"kill -9: {len(there.pids)} processes gone after {gone_s:.2f} s, the next answer after {answered_s:.1f} s")
    assert (first.run, again.run) == (1, 2)
    assert team.status("demo")["run"] == 2
    compiled = [each for each in (team.state / "compiled").rglob("*") if each.is_file()]
    assert compiled, "what it compiled is kept"
    took = {each.run: each.start_s["compiling"] + each.start_s["warming up"] for each in (first, again)}
    say(
        f"compiling and warming up: {took[1]:.1f} s, and from what was kept {took[2]:.1f} s;",
        first.start_s,
        again.start_s,
    )
    assert took[2] < took[1]
