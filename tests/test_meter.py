"""Metering: frames come in any pieces, and what the engine states counts to the token."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.errors import EngineFailed
from freehold.gateway.meter import LONGEST_FRAME_BYTES, StreamMeter, WholeMeter, rename_model
from freehold.types import Tokens


def frame(end=b"\n\n", **more) -> bytes:
    return b"data: " + json.dumps({"id": "x", "model": 'engine\'s "own"', **more}).encode() + end


def word(text, **more):
    return {"choices": [{"index": 0, "delta": {"content": text}, **more}]}


TRICKY = 'he said "model":"engine" and "usage":{"prompt_tokens":9} \n\n data: [DONE]'
STREAM = b"".join(
    (
        b": a comment to keep the line open\n\n",
        frame(choices=[{"index": 0, "delta": {"role": "assistant", "content": None}}]),
        frame(**word("Grüße ☃")),
        frame(**word(TRICKY)),
        frame(b"\r\n\r\n", **word("x")),
        frame(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}], usage=None),
        frame(
            choices=[],
            usage={"prompt_tokens": 11, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 4}},
        ),
        b"data: [DONE]\n\n",
    )
)


def passed(pieces, *, hide_usage=False):
    meter = StreamMeter("ours", hide_usage=hide_usage)
    return b"".join(map(meter.feed, pieces)) + meter.close(), meter


def test_cut_at_every_byte():
    whole, _ = passed([STREAM])
    for at in range(len(STREAM)):
        out, meter = passed([STREAM[:at], STREAM[at:]])
        assert out == whole
        assert (meter.tokens, meter.exact, meter.done) == (Tokens(prompt=11, completion=5, cached=4), True, True)
    assert passed([STREAM[i : i + 1] for i in range(len(STREAM))])[0] == whole


@given(st.lists(st.integers(1, len(STREAM)), max_size=20))
def test_cut_anywhere(cuts):
    edges = sorted({0, len(STREAM), *cuts})
    pieces = [STREAM[a:b] for a, b in zip(edges, edges[1:], strict=False)]
    assert passed(pieces)[0] == passed([STREAM])[0]


def test_only_the_model_is_renamed():
    out, _ = passed([STREAM])
    frames = [json.loads(line[6:]) for line in out.splitlines() if line.startswith(b"data: {")]
    assert {f["model"] for f in frames} == {"ours"}
    assert frames[2]["choices"][0]["delta"]["content"] == TRICKY


def test_the_usage_frame_is_hidden_from_who_did_not_ask():
    out, meter = passed([STREAM], hide_usage=True)
    assert b"prompt_tokens_details" not in out
    assert out.endswith(b"data: [DONE]\n\n")
    assert meter.tokens.prompt == 11


def test_a_cut_stream_counts_what_was_seen():
    cut = STREAM[: STREAM.index(b'"usage": null')]
    _, meter = passed([cut])
    assert (meter.tokens.completion, meter.exact, meter.done) == (3, False, False)


def test_a_running_count_is_better_than_counting_frames():
    running = {"prompt_n": 6, "cache_n": 3, "predicted_n": 40}
    _, meter = passed([frame(**word("several tokens"), timings=running)])
    assert (meter.tokens, meter.exact) == (Tokens(prompt=9, completion=40, cached=3), False)


def test_continuous_usage_is_not_added_up():
    _, meter = passed([frame(**word("a"), usage={"prompt_tokens": 5, "completion_tokens": n}) for n in (1, 2, 3)])
    assert meter.tokens == Tokens(prompt=5, completion=3)


def test_an_error_in_the_stream_is_noticed():
    out, meter = passed([b'data: {"error":{"message":"no"}}\n\n'])
    assert meter.failed
    assert b"no" in out


def test_the_last_frame_needs_no_empty_line():
    _, meter = passed([STREAM[:-2]])
    assert meter.done


def test_a_frame_without_end_is_not_kept_for_ever():
    meter = StreamMeter("ours", hide_usage=True)
    with pytest.raises(EngineFailed):
        for _ in range(LONGEST_FRAME_BYTES // (1 << 20) + 1):
            meter.feed(b"x" * (1 << 20))


@given(st.binary(max_size=300))
def test_garbage_passes_untouched(garbage):
    assert passed([b"data: \xff", garbage, b"\n\n"])[0] == b"data: \xff" + garbage + b"\n\n"


def test_whole_answers():
    meter = WholeMeter("ours")
    body = json.dumps({"model": "m", "choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}).encode()
    assert meter.feed(body[:9]) + meter.feed(body[9:]) == b""
    assert json.loads(meter.close())["model"] == "ours"
    assert (meter.tokens, meter.exact, meter.done) == (Tokens(prompt=3, completion=2), True, True)


def test_a_whole_answer_that_is_none():
    meter = WholeMeter("ours")
    meter.feed(b"<html>")
    with pytest.raises(EngineFailed):
        meter.close()


@given(st.text(), st.text(min_size=1))
def test_renaming_changes_the_model_and_nothing_else(said, text):
    body = msgspec.json.encode({"content": text, "model": said, "more": [text]})
    assert msgspec.json.decode(rename_model(body, said, "ours")) == {"content": text, "model": "ours", "more": [text]}
