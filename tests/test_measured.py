"""What a start took, beside what was predicted: by the kernel and the driver, in the book, and as it is shown."""

# ruff: noqa: N802 - the fake driver has NVML's own names
from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
import sys
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pynvml
import pytest
import unixhttp
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from freehold.cli.main import cli
from freehold.cli.ps import _memory, _work
from freehold.cli.tables import beside
from freehold.engines import Wanted
from freehold.engines.llamacpp import LlamaCpp
from freehold.executors.local import Local
from freehold.executors.memory import card_bytes, process_bytes, tree
from freehold.fleet.host import probe
from freehold.gateway.exposition import _engines
from freehold.ledger import measured, report
from freehold.ledger.book import Book
from freehold.ledger.sql import migrate
from freehold.plan.deployment import Deployment
from freehold.plan.units import GIB
from freehold.types import Host, Measurement, Options, Plan, ReplicaStatus, Service, Signals, Stated
from freehold.weights import describe

MIB = 1 << 20
DEMO = Path(__file__).parents[1] / "demo" / "demo.gguf"
NOON_NS = 1_763_812_800_000_000_000  # 2025-11-22 12:00 UTC
START = Measurement(
    at_ns=NOON_NS, endpoint="tiny", replica="tiny-1", run=3, engine="llamacpp", engine_version="0.2", model="d" * 64,
    catalogue="acme-1b", build="demo", scheme="gguf-f16", host="laptop", context=2048, parallel=4,
    predicted=Stated(weight_bytes=100 * MIB, kv_bytes=50 * MIB, compute_bytes=MIB, process_bytes=200 * MIB),
    stated=Stated(weight_bytes=101 * MIB, kv_bytes=50 * MIB, kv_tokens=8192, concurrency=4.0, process_bytes=250 * MIB),
    start_s={"loading the weights": 1.5},
)  # fmt: skip


# -- what processes take ---------------------------------------------------------------------------------------------

SHARES = """
import mmap, os, signal
block = mmap.mmap(-1, 64 << 20)  # what a process and its child share
block.write(bytes(64 << 20))
os.fork()
bytes(block[::4096])
print("touched", flush=True)
signal.pause()
"""


async def test_memory_that_processes_share_counts_once_seen_from_outside_of_their_sandbox(tmp_path):
    heard, both = bytearray(), asyncio.Event()

    def hear(text: bytes) -> None:
        heard.extend(text)
        if heard.count(b"touched") == 2:
            both.set()

    python = LlamaCpp().launch(service(tmp_path))  # the same interpreter, and all that it needs
    launch = replace(python, argv=(sys.executable, "-I", "-c", SHARES), weights=())
    process = await Local(tmp_path / "run").start(launch, "shares", tmp_path / "log", hear)
    try:
        async with asyncio.timeout(20):
            await both.wait()
        pids = tree(process.pid)
        assert 64 * MIB < process_bytes(pids) < 100 * MIB
        assert 32 * MIB < process_bytes(pids[-1:]) < 64 * MIB
    finally:
        await process.stop()
    assert tree(process.pid) == []
    assert process_bytes(pids) == 0


def test_what_may_not_be_read_is_its_resident_memory(tmp_path):
    files = {
        "1/smaps_rollup": "55d0-7ffe ---p 00000000 00:00 0 [rollup]\nRss:  900 kB\nPss:  300 kB\nPss_Anon: 1 kB\n",
        "1/status": "Name:\tx\nVmRSS:\t  900 kB\n",
        "2/status": "Name:\tx\nVmHWM:\t 800 kB\nVmRSS:\t  700 kB\n",
        "3/status": "Name:\ta kernel's own thread\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert [process_bytes([pid], tmp_path) for pid in (1, 2, 3, 4)] == [300 << 10, 700 << 10, 0, 0]
    assert process_bytes([1, 2, 3, 4], tmp_path) == 1000 << 10


class FakeNvml:
    """A driver with these processes on each card; None: a card that fell off the bus."""

    NVMLError = pynvml.NVMLError

    def __init__(self, *cards: dict[int, int | None] | None, driver: bool = True) -> None:
        self.cards, self.driver, self.open = cards, driver, 0

    def nvmlInit(self):
        if not self.driver:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)
        self.open += 1

    def nvmlShutdown(self):
        self.open -= 1

    def nvmlDeviceGetCount(self):
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index):
        if self.cards[index] is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        return index

    def nvmlDeviceGetComputeRunningProcesses(self, card):
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in self.cards[card].items()]


@pytest.mark.parametrize(
    ("nvml", "found"),
    [
        (FakeNvml(driver=False), None),
        (FakeNvml(), None),
        (FakeNvml({7: GIB}), None),  # somebody else's
        (FakeNvml({1: GIB, 7: GIB}), GIB),
        (FakeNvml({1: GIB, 2: GIB}, {2: 3 * GIB, 7: GIB}), 3 * GIB),  # the fullest card
        (FakeNvml(None, {1: GIB}), GIB),
        (FakeNvml({1: None}), None),  # the driver cannot tell the shares apart
        (FakeNvml({1: None, 2: GIB}), GIB),
    ],
)
def test_memory_on_cards_is_that_of_the_card_with_most(monkeypatch, nvml, found):
    monkeypatch.setattr("freehold.executors.memory.pynvml", nvml)
    assert card_bytes([1, 2]) == found
    assert nvml.open == 0


# -- what an engine says, beside the plan ----------------------------------------------------------------------------


def service(folder: Path, context: int = 2048, **options) -> Service:
    build = describe(DEMO)
    plan = LlamaCpp().fit(build, build.model, probe(), Wanted(context=context, parallel=3))
    assert isinstance(plan, Plan)
    return Service(
        name="acme", weights=build.entry, socket=str(folder / "e" / "x.sock"), plan=plan, version=(1, 2),
        options=Options(**options),
    )  # fmt: skip


@pytest.mark.parametrize("context", [256, 2048])
async def test_llamacpp_takes_what_was_predicted(tmp_path, context):
    llamacpp, asked, heard, said = LlamaCpp(), service(tmp_path, context), bytearray(), asyncio.Event()

    def hear(text: bytes) -> None:
        heard.extend(text)
        if b"n_ctx_slot" in heard:  # the last that counts; its log may come after it is ready
            said.set()

    process = await Local(tmp_path / "run").start(llamacpp.launch(asked), "acme", tmp_path / "log", hear)
    try:
        async with asyncio.timeout(20):
            await said.wait()
        await asyncio.to_thread(unixhttp.wait_ready, asked.socket, llamacpp.ready_path, tmp_path / "log")
        _, metrics = await asyncio.to_thread(unixhttp.request, asked.socket, "GET", llamacpp.metrics_path)
        process.stop_listening()
        real, planned = llamacpp.stated(heard.decode(), metrics), asked.plan.predicted
        took = process_bytes(tree(process.pid))
    finally:
        await process.stop()
    assert real.weight_bytes == pytest.approx(planned.weight_bytes, rel=0.01)
    assert real.kv_bytes == planned.kv_bytes
    assert real.kv_tokens == context * 3
    assert real.compute_bytes == pytest.approx(planned.compute_bytes, rel=0.02)
    assert planned.total_bytes is not None
    assert planned.total_bytes < took < planned.total_bytes + 100 * MIB  # Python around it is no part of the plan


# -- in the book -----------------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
COUNT = st.integers(0, 2**63 - 1)
STATED = st.builds(
    Stated,
    **dict.fromkeys(Stated.__struct_fields__, st.none() | COUNT) | {"concurrency": st.none() | st.floats(0, 1e9)},
)
MEASUREMENTS = st.builds(
    Measurement,
    **dict.fromkeys(("endpoint", "engine_version", "model", "catalogue", "host", "card", "options"), TEXT),
    **dict.fromkeys(("at_ns", "run", "tp", "pp", "context", "parallel"), COUNT),
    predicted=STATED,
    stated=STATED,
    start_s=st.dictionaries(TEXT, st.floats(0, 1e6), max_size=3),
)


def a_book() -> sqlite3.Connection:
    db = sqlite3.connect(":memory:")
    migrate(db)
    return db


@given(MEASUREMENTS)
def test_a_measurement_comes_back_as_it_was(one):
    with contextlib.closing(a_book()) as db:
        db.execute(measured.INSERT, measured.row(one))
        assert measured.measurements(db) == [one]


def test_the_newest_of_each_model_engine_cards_and_machine():
    later, other = replace(START, at_ns=NOON_NS + 9, context=512), replace(START, host="rack", at_ns=NOON_NS + 5)
    same_moment = replace(later, context=256)
    with contextlib.closing(a_book()) as db:
        db.executemany(measured.INSERT, [measured.row(each) for each in (later, START, other, same_moment)])
        assert measured.measurements(db) == [same_moment, other]


def test_a_book_from_before_there_were_measurements_has_none():
    with contextlib.closing(sqlite3.connect(":memory:")) as db:
        assert measured.measurements(db) == []


def test_a_service_says_what_changes_its_memory(tmp_path):
    usual, unusual = service(tmp_path, max_loras=2), service(tmp_path, speculative="ngram", tool_parser="hermes")
    assert measured.about(usual)["options"] == ""  # no adapter is there, and none can come
    assert json.loads(measured.about(unusual)["options"]) == {"speculative": "ngram", "draft_tokens": 3}
    hot = replace(usual, adapter_folder="/adapters")
    assert json.loads(measured.about(hot)["options"]) == {"max_loras": 2, "max_lora_rank": 16}
    one = Measurement(
        at_ns=1,
        endpoint="e",
        replica="e",
        run=1,
        engine="llamacpp",
        model="d",
        stated=Stated(),
        **measured.about(usual),
    )
    assert (one.build, one.context, one.parallel, one.engine_version) == ("demo", 2048, 3, "1.2")
    assert one.predicted.kv_bytes == usual.plan.kv_bytes
    assert one.predicted.total_bytes == usual.plan.total_bytes
    assert replace(usual.plan, card="L4").predicted.card_bytes == usual.plan.total_bytes


DEPLOYMENT = Deployment(
    model="acme-1b", scheme="gguf-f16", native=True, engine="llamacpp", place="this machine", context=1, users=1,
    requests=1, longest=1, kv_tokens=1, sequences=1, weight_bytes=1, activation_bytes=1, usable_bytes=1, pool_bytes=1,
    block_bytes=1, request_blocks=1,
)  # fmt: skip


@pytest.mark.parametrize(
    ("change", "digest", "found"),
    [
        ({}, "", True),
        ({}, "d" * 64, True),
        ({"model": "a file"}, "d" * 64, True),
        ({}, "e" * 64, False),
        ({"model": "acme-2b"}, "", False),
        ({"scheme": "gguf-q4_k_m"}, "", False),
        ({"scheme": "gguf-q4_k_m"}, "d" * 64, False),
        ({"engine": "vllm"}, "", False),
        ({"card": "L4"}, "", False),
        ({"tp": 2}, "", False),
    ],
)
def test_a_start_is_of_the_same_model_engine_and_cards(change, digest, found):
    assert measured.find([START], replace(DEPLOYMENT, **change), digest) == (START if found else None)


# -- as it is shown --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("predicted", "real", "said"),
    [
        (None, None, "-"),
        (None, GIB, "- / 1.00 GiB"),
        (GIB, None, "1.00 GiB / -"),
        (GIB, GIB, "1.00 GiB / 1.00 GiB (+0.0%)"),
        (200 * MIB, 150 * MIB, "200.00 MiB / 150.00 MiB (-25.0%)"),
        (0, MIB, "0.00 MiB / 1.00 MiB"),
    ],
)
def test_predicted_beside_real(predicted, real, said):
    assert beside(predicted, real) == said


STATUS = ReplicaStatus(endpoint="tiny", replica="tiny-1", engine="vllm", state="ready")
BUSY = replace(
    STATUS, context=32768, predicted=START.predicted, measured=START.stated, adapters=("german@2", "legal@1"),
    signals=Signals(running=3, waiting=0, kv_usage=0.25, prefix_asked=4000, prefix_hit=1000, drafted=50, accepted=30),
)  # fmt: skip


def test_a_replica_in_ps_wide():
    assert [*_memory(as_json(BUSY))] == [
        *("tiny-1", "32,768", "100.00 MiB / 101.00 MiB (+1.0%)", "50.00 MiB / 50.00 MiB (+0.0%)"),
        *("200.00 MiB / 250.00 MiB (+25.0%)", "8,192", "4"),
    ]
    assert [*_work(as_json(BUSY))] == ["tiny-1", "3", "0", "25%", "25% of 4,000", "60% of 50", "german@2, legal@1"]
    assert [*_memory(as_json(STATUS))] == ["tiny-1", *"------"]
    assert [*_work(as_json(STATUS))] == ["tiny-1", *"------"]


def as_json(status: ReplicaStatus) -> dict:
    return json.loads(msgspec.json.encode(status))


def test_prometheus_gets_what_engines_say_and_nothing_where_they_do_not():
    said = {
        (sample.name.removeprefix("freehold_"), sample.labels["replica"], sample.labels.get("part")): sample.value
        for family in _engines([BUSY, replace(STATUS, replica="tiny-2", signals=Signals(running=1))])
        for sample in family.samples
    }
    assert said["engine_requests_running", "tiny-1", None] == 3
    assert said["engine_kv_cache_ratio", "tiny-1", None] == 0.25
    assert said["engine_prefix_hit_tokens_total", "tiny-1", None] == 1000
    assert said["engine_accepted_tokens_total", "tiny-1", None] == 30
    assert said["replica_predicted_bytes", "tiny-1", "total"] == 200 * MIB
    assert said["replica_measured_bytes", "tiny-1", "weight"] == 101 * MIB
    of_the_second = {name for name, replica, _ in said if replica == "tiny-2" and not name.endswith("_total")}
    assert of_the_second == {"engine_requests_running"}


@pytest.fixture
def team(tmp_path, monkeypatch):
    """A folder whose book has one start of the demonstration model."""
    monkeypatch.chdir(tmp_path)
    laptop = Host(name="laptop", cpu="any", cores=8, memory_bytes=32 * GIB, available_bytes=24 * GIB)
    monkeypatch.setattr("freehold.fleet.host.probe", lambda: laptop)
    (tmp_path / "freehold.toml").write_text(f'[endpoints.tiny]\nweights = "{DEMO}"\n')

    async def fill() -> None:
        (tmp_path / ".freehold").mkdir()
        book = Book(tmp_path / ".freehold")
        await book.set_pin(str(DEMO), START.model, "me")
        book.save_measurement(START)
        await book.close()

    asyncio.run(fill())
    return tmp_path


def planned(*words: str) -> str:
    result = CliRunner().invoke(cli, ["plan", *words])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_plan_shows_what_a_start_took(team):
    shown = planned(str(DEMO), "--here")
    assert "CPU #" in shown
    assert "# started here before" in shown
    assert "measured here: " not in shown
    full = planned(str(DEMO), "--here", "--explain")
    assert "measured here: 2025-11-22 12:00:00 on laptop, llamacpp 0.2; predicted / real:" in full
    assert "weights 100.00 MiB / 101.00 MiB (+1.0%)" in full
    assert "KV cache 50.00 MiB / 50.00 MiB (+0.0%), 2,048 tokens for 4 at once" in full
    assert "total 200.00 MiB / 250.00 MiB (+25.0%)" in full
    (plan,) = json.loads(planned(str(DEMO), "--here", "--json"))["choice"]["plans"]
    assert msgspec.convert(plan["measured"], Measurement) == START
    assert plan["weight_bytes"] != START.stated.weight_bytes  # what was measured changes no prediction


def test_files_that_nobody_started_have_no_measurement(team, tmp_path):
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(DEMO.read_bytes())
    assert "CPU #" not in planned(str(copy), "--here")
    (plan,) = json.loads(planned(str(copy), "--here", "--json"))["choice"]["plans"]
    assert plan["measured"] is None


def test_a_book_that_cannot_be_read_does_not_stop_a_plan(team):
    (team / ".freehold" / "book.db").write_bytes(b"no database at all, but longer than a header of one" * 40)
    assert "Note: what starts took here is not known: the book at" in planned(str(DEMO), "--here")


def test_the_book_is_read_while_nobody_writes_it(team):
    with report.reading(team / ".freehold", exact=True) as db:
        assert measured.measurements(db) == [START]
