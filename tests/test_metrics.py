"""What Prometheus reads: the counts agree with the records, names are what the dashboard asks for."""

import http.client
import json
import re
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families as read

from freehold.cli.daemon import _Connection
from freehold.gateway import exposition
from freehold.gateway.metrics import DURATION_S, Labels, Metrics
from freehold.gateway.rundir import admin_socket
from freehold.types import ReplicaStatus, UsageRecord

DASHBOARD = Path(__file__).parents[1] / "dashboards" / "freehold.json"
REFERENCE = DASHBOARD.parents[1] / "docs" / "reference.md"

RECORDS = st.lists(
    st.builds(
        UsageRecord,
        request=st.just("r"),
        key=st.text(max_size=3),
        endpoint=st.sampled_from(["a", "b"]),
        asked=st.sampled_from(["", "a"]),
        kind=st.sampled_from(["chat", "completion", "probe"]),
        stream=st.booleans(),
        started_ns=st.just(1),
        status=st.sampled_from([0, 200, 400, 503]),
        outcome=st.sampled_from(["ok", "cut", "error"]),
        group=st.sampled_from(["", "g"]),
        prompt_tokens=st.integers(0, 10**9),
        completion_tokens=st.integers(0, 10**6),
        cached_tokens=st.integers(0, 100),
        total_ms=st.floats(0, 1e7),
        queue_ms=st.floats(0, 1e7),
        wake_ms=st.just(0.0) | st.floats(0, 1e6),
        first_byte_ms=st.none() | st.floats(0, 1e6),
        charge_pico=st.integers(0, 2**60),
        lower_bound=st.booleans(),
    ),
    max_size=20,
)


def tallied(records):
    metrics = Metrics()
    for record in records:
        metrics.settled(record)
    return [(Labels(*labels), tally) for labels, tally in metrics.tallies.items()]


def samples(families, name):
    return [s for family in families for s in family.samples if s.name == name]


def total(families, name, **labels):
    found = samples(families, name)
    return sum(s.value for s in found if all(s.labels.get(key) == value for key, value in labels.items()))


@given(RECORDS)
def test_nothing_is_counted_twice_or_lost(records):
    families = [*exposition._latencies(tallied(records)), *exposition._requests(tallied(records))]
    assert total(families, "freehold_requests_total") == len(records)
    assert total(families, "freehold_requests_total", outcome="cut") == sum(r.outcome == "cut" for r in records)
    assert total(families, "freehold_lower_bound_requests_total") == sum(r.lower_bound for r in records)
    assert total(families, "freehold_tokens_total", type="input") == sum(r.prompt_tokens for r in records)
    assert total(families, "freehold_tokens_total", type="cached", group="g") == sum(
        r.cached_tokens for r in records if r.group == "g"
    )
    first = "gen_ai_server_time_to_first_token_seconds_count"
    ended = [r for r in records if r.stream and r.outcome == "ok" and r.first_byte_ms is not None]
    assert total(families, first) == len(ended)
    assert total(families, "freehold_wake_seconds_count") == sum(bool(r.wake_ms) for r in records)


@given(RECORDS)
def test_every_bucket_holds_what_is_no_larger(records):
    families = [*exposition._latencies(tallied(records))]
    name = "gen_ai_server_request_duration_seconds"
    for bound in DURATION_S:
        within = sum(r.total_ms <= bound * 1000 for r in records)
        assert total(families, f"{name}_bucket", le=str(bound)) == within
    assert total(families, f"{name}_bucket", le="+Inf") == total(families, f"{name}_count") == len(records)
    assert total(families, f"{name}_sum") == pytest.approx(sum(r.total_ms for r in records) / 1e3)


@pytest.mark.parametrize(
    ("outcome", "status", "error"),
    [("ok", 200, ""), ("cut", 0, "cut"), ("error", 503, "503"), ("error", 200, "engine_failed")],
)
def test_the_type_of_an_error(outcome, status, error):
    record = UsageRecord(
        request="r", key="k", endpoint="a", kind="chat", stream=False, started_ns=1, outcome=outcome, status=status
    )
    (counted,) = samples(exposition._latencies(tallied([record])), "gen_ai_server_request_duration_seconds_count")
    assert counted.labels["error_type"] == error
    assert counted.labels["gen_ai_operation_name"] == "chat"


class _Fleet:
    """What the page reads of fifty endpoints."""

    def __init__(self) -> None:
        journal = SimpleNamespace(in_flight=1, size_bytes=2)
        book = SimpleNamespace(journal=journal, batches_waiting=0, broken=False)
        self.ground = SimpleNamespace(clock_ns=time.time_ns, book=book)
        self.config = SimpleNamespace(machine=SimpleNamespace(name="here", currency="EUR", pico_per_hour=1))

    def status(self):
        return [ReplicaStatus(endpoint=f"e{n}", replica=f"e{n}", engine="llama.cpp", state="ready") for n in range(50)]


async def test_others_go_on_while_a_large_page_is_written():
    """No more than some lines at a time; the whole page is as if it had been written at once."""
    metrics, written, encode = Metrics(), [], exposition.generate_latest
    for number in range(400):
        place, status = f"e{number % 50}", 200 if number % 2 else 502
        metrics.settled(
            UsageRecord(
                request="r", key="k", endpoint=place, replica=place, kind="chat", stream=True, started_ns=1,
                status=status, outcome="ok" if number % 2 else "error", group=f"g{number % 3}", first_byte_ms=1.0,
                prompt_tokens=5, completion_tokens=5, total_ms=20.0,
            )
        )  # fmt: skip
    page = exposition.Exposition(metrics, _Fleet(), SimpleNamespace(times={}))  # type: ignore[arg-type]
    whole = encode(page)

    def counting(registry):
        written.append(encode(registry))
        return written[-1]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(exposition, "generate_latest", counting)
        answer = await page.answer(None)  # type: ignore[arg-type]
    body = answer.body.decode()
    assert max(piece.count(b"\n") for piece in written) < 210 < whole.count(b"\n") / 10
    assert body.count("# TYPE") == whole.count(b"# TYPE")
    varies = ("freehold_machine_cost", "process_")
    said, expected = (
        [family for family in read(text) if not family.name.startswith(varies)] for text in (body, whole.decode())
    )
    assert said == expected


@pytest.fixture(scope="module")
def scraped(tmp_path_factory):
    """A team after some traffic, with the page over TCP, as OpenMetrics, and over the admin socket."""
    from conftest import team_in

    with team_in(tmp_path_factory.mktemp("metrics")) as team:
        team.write(server='metrics = "127.0.0.1:0"\nlog_requests = true', tiny=team.fake())
        team.serve()
        for _ in range(3):
            team.ask("tiny")
        team.post("tiny", "@@n=5", stream=True).read()
        team.post("tiny", "@@error=500").read()
        cut = team.post("tiny", "@@n=500,us=10000", stream=True)
        cut.read(200)
        cut.connection.close()
        team.post("tiny", key="fh-wrong").read()
        team.post("nothing").read()
        team.until(lambda: len(team.records()) == 6)
        team.page = scrape(team)
        yield team


def scrape(team, accept="text/plain"):
    url = urlsplit(team.daemon.ask("GET", "/status")["metrics"])
    connection = http.client.HTTPConnection(url.netloc, timeout=20)
    connection.request("GET", url.path, headers={"Accept": accept})
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    assert answer.status == 200, body
    return answer.headers["content-type"], body


def test_the_page_agrees_with_the_records(scraped):
    kind, page = scraped.page
    assert kind.startswith("text/plain")
    families, records = [*read(page)], scraped.records()
    for outcome, count in Counter(record["outcome"] for record in records).items():
        assert total(families, "freehold_requests_total", outcome=outcome) == count, outcome
    for kind, column in (("input", "prompt_tokens"), ("output", "completion_tokens")):
        assert total(families, "freehold_tokens_total", type=kind) == sum(record[column] for record in records)
    charged = sum(record["charge_pico"] for record in records) / 10**12
    assert total(families, "freehold_charge_total", currency="EUR") == pytest.approx(charged)
    assert total(families, "freehold_refused_requests_total", error_type="invalid_api_key") == 1
    assert total(families, "freehold_refused_requests_total", error_type="model_not_found") == 1


def test_the_values_of_this_moment(scraped):
    families = [*read(scraped.page[1])]
    assert total(families, "freehold_replica_state", endpoint="tiny", state="ready") == 1
    assert total(families, "freehold_replica_state", endpoint="tiny") == 1
    assert total(families, "freehold_replica_starts_total", endpoint="tiny") == 1
    assert total(families, "freehold_requests_in_flight") == total(families, "freehold_requests_open") == 0
    assert total(families, "freehold_machine_cost_total") > 0
    assert total(families, "freehold_journal_bytes") > 0
    assert total(families, "process_resident_memory_bytes") > 1e6


def test_the_admin_socket_says_the_same(scraped):
    connection = _Connection(admin_socket(scraped.state), 20)
    connection.request("GET", "/metrics")
    other = connection.getresponse().read().decode()
    connection.close()
    assert {family.name for family in read(other)} == {family.name for family in read(scraped.page[1])}


def test_nothing_of_a_key_is_in_the_page(scraped):
    page = scraped.page[1]
    assert scraped.key not in page
    assert "fh-" not in page
    assert all(record["key"] not in page for record in scraped.records())


def test_the_dashboard_asks_for_what_there_is(scraped):
    there = {sample.name for family in read(scraped.page[1]) for sample in family.samples}
    there |= {family.name + "_total" for family in read(scraped.page[1]) if family.type == "counter"}  # still without
    there |= {family.name for family in read(scraped.page[1]) if family.type == "gauge"}  # this engine may not say
    there |= {f"{family.name}_bucket" for family in read(scraped.page[1]) if family.type == "histogram"}
    panels = json.loads(DASHBOARD.read_text())["panels"]
    queries = [target["expr"] for panel in panels for target in panel["targets"]]
    asked = {name for query in queries for name in re.findall(r"\b(?:gen_ai_[a-z]+|freehold|process)_\w+\b", query)}
    labels = {label for family in read(scraped.page[1]) for s in family.samples for label in s.labels}
    assert asked - labels <= there
    assert len(queries) > 20


def test_the_reference_has_every_metric(scraped):
    rows = [
        line.split("|")[1] for line in REFERENCE.read_text().splitlines() if line.startswith(("| `gen_ai", "| `freeh"))
    ]
    documented = {name for row in rows for name in re.findall(r"`((?:gen_ai|freehold)_\w+)`", row)}
    families = [*read(scraped.page[1])]
    there = {f"{each.name}_total" if each.type == "counter" else each.name for each in families}
    assert documented == {name for name in there if not name.startswith("process_")}


def test_the_dashboard_can_be_imported():
    dashboard = json.loads(DASHBOARD.read_text())
    assert {each["name"]: each["type"] for each in dashboard["templating"]["list"]}["datasource"] == "datasource"
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    sources = {target["datasource"]["uid"] for panel in dashboard["panels"] for target in panel["targets"]}
    assert sources == {"${datasource}"}


def test_the_log_has_a_line_for_each_request(scraped):
    lines = [json.loads(line) for line in (scraped.folder / "daemon.log").read_text().splitlines()]
    said = {line["request"]: line for line in lines if line["logger"] == "freehold.requests"}
    for record in scraped.records():
        assert said[record["request"]].get("completion_tokens", 0) == record["completion_tokens"]
    assert "@@" not in (scraped.folder / "daemon.log").read_text()
