"""kill -9 at random moments: bench/faults.py does the same two hundred times."""

import pytest
from storm import Storm
from wild_caller import PATHS

ROUNDS = 6


@pytest.mark.parametrize("path", PATHS)
def test_every_request_has_one_record_whoever_is_killed(team, path):
    storm = Storm(team, seed=4, path=path)
    storm.run(ROUNDS)
    assert storm.faults() == []
    assert len(storm.hits) == 3
    assert len(storm.seen) > 50
    assert {row["outcome"] for row in storm.rows} >= {"ok", "error", "cut"}
