"""kill -9 in the middle of streams, on the real llama.cpp: callers are told, each request has exactly one record, no
process stays, and the next caller is served. bench/faults.py does the same more often and keeps the figures."""

import crash
import pytest

ROUNDS = 3
STREAMS = 4


@pytest.fixture
def serving(team):
    team.write(demo=team.demo().replace("context = 512", "context = 2048"))
    team.serve()
    return team


@pytest.mark.parametrize("sandbox", [False, True], ids=["engine", "sandbox"])
def test_the_engine_is_killed(serving, sandbox):
    for _ in range(ROUNDS):
        seen = crash.kill_engine(serving, STREAMS, sandbox=sandbox)
        assert set(seen.saw) == {"APIError from an error frame: engine_failed"}
        assert seen.one_record_each
        assert set(seen.outcomes) == {"error"}
        assert all(0 < row["completion_tokens"] < crash.TOKENS for (row,) in seen.records)
        assert seen.processes_left == 0
    assert len(serving.events("replica.backoff")) == ROUNDS


def test_the_daemon_is_killed(serving):
    for number in range(ROUNDS):
        seen = crash.kill_daemon(serving, STREAMS)
        assert set(seen.saw) == {"APIConnectionError: connection lost"}
        assert seen.one_record_each
        assert set(seen.outcomes) == {"cut"}
        assert all(row["lower_bound"] for (row,) in seen.records)
        assert seen.processes_left == 0
        recovered = serving.events("daemon.recovered")
        assert len(recovered) == number + 1
        assert recovered[-1]["detail"]["cut_requests"] == STREAMS
