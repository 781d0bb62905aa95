"""A real start, from the daemon's measurement to what `ps --wide` and `plan` say of it."""

from __future__ import annotations

import json

import msgspec
import pytest
from conftest import DEMO, team_in

from freehold.ledger import measured, report
from freehold.types import ReplicaStatus


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    with team_in(tmp_path_factory.mktemp("measured")) as team:
        team.write(demo=team.demo("parallel = 2"))
        team.serve()
        team.up("demo")
        team.ask("demo")
        team.until(lambda: team.events("engine.measured"))
        team.daemon.ask("POST", "/flush")
        yield team


def test_the_book_has_what_it_took_beside_what_was_predicted(started):
    with report.reading(started.state) as db:
        (one,) = measured.measurements(db)
        assert one.model == report.pin(db, str(DEMO))
    assert (one.endpoint, one.engine, one.build, one.scheme, one.run) == ("demo", "llamacpp", "demo", "gguf-f16", 1)
    assert (one.context, one.parallel) == (512, 2)
    assert one.stated.weight_bytes == pytest.approx(one.predicted.weight_bytes, rel=0.01)
    assert one.stated.kv_bytes == one.predicted.kv_bytes
    assert one.stated.kv_tokens == 1024
    assert one.stated.total_bytes == one.stated.process_bytes
    assert (one.stated.process_bytes or 0) > (one.stated.weight_bytes or 0) + (one.stated.kv_bytes or 0)
    assert one.stated.card_bytes is None
    assert {"verifying the weights", "loading the weights", "probing"} <= one.start_s.keys()


def test_the_status_has_both_and_what_the_engine_says_now(started):
    (endpoint,) = started.daemon.ask("GET", "/status?wide")["endpoints"]
    status = msgspec.convert(endpoint, ReplicaStatus)
    assert status.predicted
    assert status.measured
    assert status.predicted.kv_bytes == status.measured.kv_bytes
    assert (status.context, status.stage, status.adapters) == (512, "", ())
    assert status.signals
    assert status.signals.running == 0
    assert status.signals.prefix_asked > 0


def test_a_person_sees_both(started):
    _, memory, work, _ = started.run("ps", "--wide").split("\n\n")
    assert "(+0.0%)" in memory.splitlines()[1]
    assert memory.splitlines()[1].split()[1] == "512"
    assert work.splitlines()[1].split()[:3] == ["demo", "0", "0"]
    assert "CPU #" in started.run("plan", str(DEMO), "--here")
    (plan,) = json.loads(started.run("plan", str(DEMO), "--here", "--json"))["choice"]["plans"]
    assert plan["measured"]["endpoint"] == "demo"


def test_an_event_says_it_too(started):
    (event,) = started.events("engine.measured")
    assert event["subject"] == "demo"
