"""Metering: frames come in any pieces, and what the engine states counts to the token."""

import json
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.errors import EngineFailed
from freehold.gateway.meter import LONGEST_FRAME_BYTES, StreamMeter, WholeMeter, renaming
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
    pieces = [STREAM[a:b] for a, b in pairwise(edges)]
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
    meter.feed(b"x" * LONGEST_FRAME_BYTES)
    with pytest.raises(EngineFailed):
        meter.feed(b"x")


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
    pair = renaming(body, said, "ours")
    renamed = body.replace(*pair) if pair else body
    assert msgspec.json.decode(renamed) == {"content": text, "model": "ours", "more": [text]}


def said(prompt, completion, cached=0):
    details = {"cached_tokens": cached}
    return {"prompt_tokens": prompt, "completion_tokens": completion, "prompt_tokens_details": details}


def ends(index, **more):
    return {"choices": [{"index": index, "text": "", "finish_reason": "stop"}], **more}


def test_completions_state_usage_beside_the_end_of_each_choice():
    """llama.cpp's way. Two prompts, two choices each: the prompt counts once for both of its choices."""
    ended = (frame(**ends(index, usage=said(prompt, 2))) for index, prompt in enumerate((6, 6, 1, 1)))
    meter = StreamMeter("ours", n=2, hide_usage=False)
    assert meter.feed(b"data: null\n\n") == b""
    assert b"".join(map(meter.feed, ended)).count(b"usage") == 4
    assert (meter.tokens, meter.exact) == (Tokens(prompt=7, completion=8), False)  # there may be more
    usage, done = meter.feed(b"data: [DONE]\n\n").split(b"\n\n", 1)
    assert done == b"data: [DONE]\n\n"
    merged = json.loads(usage.removeprefix(b"data: "))
    assert (merged["choices"], merged["usage"]["total_tokens"]) == ([], 15)
    assert (meter.tokens, meter.exact) == (Tokens(prompt=7, completion=8), True)


def test_several_choices_cut_in_the_middle_count_all_of_them():
    running = [{"prompt_n": 5, "predicted_n": tokens} for tokens in (30, 20)]
    frames = [
        frame(choices=[{"index": index, "delta": {"content": "x"}}], timings=timings)
        for index, timings in enumerate(running)
    ]
    meter = StreamMeter("ours", n=2, hide_usage=True)
    for each in (*frames, frame(choices=[], usage=said(5, 30))):  # one of them has ended
        meter.feed(each)
    assert (meter.tokens, meter.exact) == (Tokens(prompt=5, completion=50), False)
