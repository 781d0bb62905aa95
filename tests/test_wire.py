"""What is read of an engine's usage, and what callers do not see of it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.fleet.wire import hide_cached_in, read_frame, read_usage
from freehold.types import Tokens


def usage(**more) -> bytes:
    return json.dumps({"usage": {"prompt_tokens": 9, "completion_tokens": 5, **more}}).encode()


@pytest.mark.parametrize(
    ("stated", "reasoning"),
    [
        ({"completion_tokens_details": {"reasoning_tokens": 3}}, 3),
        ({"completion_tokens_details": {"reasoning_tokens": None}}, 0),
        ({"completion_tokens_details": {"accepted_prediction_tokens": 2}}, 0),
        ({"completion_tokens_details": None}, 0),
        ({"reasoning_tokens": 4, "completion_tokens_details": None}, 4),  # SGLang
        ({}, 0),
    ],
)
def test_reasoning_tokens_are_read(stated, reasoning):
    assert read_usage(usage(**stated)) == Tokens(prompt=9, completion=5, reasoning=reasoning)


@pytest.mark.parametrize("absurd", [-1, 2**40, "3", 1.5])
def test_a_usage_that_cannot_be_is_none(absurd):
    assert read_usage(usage(completion_tokens_details={"reasoning_tokens": absurd})) is None


SAYS = 'they said "cached_tokens": 7, "cache_n":8 and \\"usage\\":{}'


@pytest.mark.parametrize(
    "details",
    [
        {"prompt_tokens_details": {"cached_tokens": 7}},
        {"prompt_tokens_details": {"cached_tokens": 7, "created_cache_tokens": 2, "multimodal_tokens": {"image": 1}}},
        {"prompt_tokens_details": None},
        {},
    ],
)
def test_a_hit_looks_like_none(details):
    choices = [{"index": 0, "delta": {"content": SAYS}}]
    body = {"id": "x", "choices": choices, "timings": {"cache_n": 7, "prompt_ms": 0.1}, "metrics": {"ttft": 1}}
    body["usage"] = {"prompt_tokens": 9, "completion_tokens": 5, **details}
    text = json.dumps(body).encode()
    for before, after in ((b"", b""), (b"data: ", b"\n\n"), (b"data:", b"\r\n\r\n")):
        hidden = hide_cached_in(before + text + after)
        assert hidden.startswith(before)
        assert hidden.endswith(after)
        assert json.loads(hidden[len(before) : len(hidden) - len(after)]) == {
            "id": "x",
            "choices": choices,
            "usage": {"prompt_tokens": 9, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 0}},
        }


@given(st.text() | st.sampled_from(['{"usage":1}', "}", '"cached_tokens":3', "\\"]), st.integers(0, 99))
def test_what_is_said_stays_as_it_is(said, cached):
    frame = {"choices": [{"text": said}], said: said}
    frame["usage"] = {"prompt_tokens": 99, "prompt_tokens_details": {"cached_tokens": cached}}
    hidden = hide_cached_in(b"data: %b\n\n" % json.dumps(frame).encode())
    frame["usage"]["prompt_tokens_details"]["cached_tokens"] = 0
    seen = json.loads(hidden.removeprefix(b"data: "))
    expected = {name: value for name, value in frame.items() if name not in ("timings", "metrics")}
    assert seen == expected
    read = read_frame(hidden.removeprefix(b"data:").strip())
    assert read is not None
    assert read.usage is not None
    assert read.usage.tokens() == Tokens(prompt=99)
