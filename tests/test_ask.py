"""What is read of a request, what is refused, and what the engine gets instead."""

from __future__ import annotations

import contextlib
import json
import time

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.engines import engine
from freehold.errors import BadRequest
from freehold.gateway.openai import MOST_FIELDS, MOST_PROMPTS, new_request_id, read_ask

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def chat(**more) -> bytes:
    return json.dumps({**CHAT, **more}).encode()


def ask(body: bytes | dict, kind="chat"):
    return read_ask(body if isinstance(body, bytes) else json.dumps({"model": "m", **body}).encode(), kind)


def sent(body: bytes | dict, kind="chat", *, stream=False, cap=None, **more) -> dict:
    return json.loads(ask(body, kind).for_engine("served", stream=stream, more=more, cap=cap))


# reading


def test_the_least_there_is():
    read = ask(chat())
    assert (read.model, read.stream, read.include_usage, read.n, read.prompts) == ("m", False, False, 1, 1)
    assert read.max_tokens is None


def test_null_is_as_good_as_nothing():
    names = ("stream", "stream_options", "n", "best_of", "max_tokens", "max_completion_tokens")
    nothing, read = ask(chat()), ask(chat(**dict.fromkeys(names)))
    for name in ("stream", "include_usage", "n", "prompts", "max_tokens"):
        assert getattr(read, name) == getattr(nothing, name)


def test_stream_options():
    assert ask(chat(stream=True, stream_options={"include_usage": True, "continuous_usage_stats": True})).include_usage
    assert not ask(chat(stream=True, stream_options={"include_usage": None})).include_usage


@pytest.mark.parametrize(
    ("prompt", "more", "prompts", "n"),
    [
        ("one", {}, 1, 1),
        (["one"], {}, 1, 1),
        (["one", "two"], {"n": 3}, 2, 6),
        ([1, 2, 3], {}, 1, 1),
        ([[1, 2], [3]], {}, 2, 2),
        (["one", [1, 2]], {}, 2, 2),
        ([1, "one", 2], {}, 1, 1),  # llama.cpp's own: tokens and texts of one prompt
        ({"prompt_string": "one"}, {}, 1, 1),
        ([], {}, 1, 1),  # for the engine to refuse
        (["one", "two"], {"n": 2, "best_of": 5}, 2, 10),
        ("one", {"n": 5, "best_of": 2}, 1, 5),
        (["x"] * MOST_PROMPTS, {}, MOST_PROMPTS, MOST_PROMPTS),
    ],
)
def test_choices_are_counted_over_all_prompts(prompt, more, prompts, n):
    read = ask({"prompt": prompt, **more}, "completion")
    assert (read.prompts, read.n, read.per_prompt) == (prompts, n, more.get("n", 1))


def test_a_chat_has_one_prompt():
    assert ask(chat(prompt=["a", "b"], n=2)).n == 2


@pytest.mark.parametrize(
    ("limits", "longest"),
    [
        ({"max_tokens": 5}, 5),
        ({"max_completion_tokens": 7}, 7),
        ({"max_tokens": 5, "max_completion_tokens": 7}, 7),
        ({"max_tokens": 7, "max_completion_tokens": 5}, 7),
        ({"max_tokens": 5, "max_completion_tokens": None}, 5),
        ({"max_tokens": -1}, None),
        ({"max_tokens": 5, "max_completion_tokens": -1}, None),
    ],
)
def test_the_longest_an_answer_may_be(limits, longest):
    assert ask(chat(**limits)).max_tokens == longest


def test_a_completion_may_have_no_tokens_but_is_counted_with_one():
    assert ask({"prompt": "x", "max_tokens": 0}, "completion").max_tokens == 1
    assert sent({"prompt": "x", "max_tokens": 0}, "completion", cap=9)["max_tokens"] == 0


# refusing


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "parse"),
        (b"[1]", "parse"),
        (b'"model"', "parse"),
        (b"null", "parse"),
        (b'{"model": "m", ', "parse"),
        (b'{"model": "m"} {}', "parse"),
        (b'{"model": "m", "top_p": NaN}', "parse"),
        (b'{"model": "m", "top_p": Infinity}', "parse"),
        (b'{"model": "m", "user": "\xff"}', "parse"),
        (b'{"model": "m", "\xff": 1}', "parse"),
        (b'{"model": "m", "user": "\xed\xa0\x80"}', "parse"),
        (b'{"model": "m", "user": "\\ud800"}', "parse"),
        (b'{"model": "m\\udc00"}', "parse"),
        (b'{"model": "m", "user": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "parse"),
        (b'{"model": "m", "stream_options": ' + b'{"a":' * 9000 + b"1" + b"}" * 9001, "parse"),
        (b"{}", "model"),
        (b'{"model": 1}', "model"),
        (b'{"model": "' + b"m" * (1 << 20) + b'"}', "smaller fields"),
        (b'{"model": "' + b"m" * 1000 + b'"}', "model"),
        (chat(stream="yes"), "stream"),
        (chat(stream=1), "stream"),
        (chat(stream_options=[]), "stream_options"),
        (chat(stream_options={"include_usage": 1}), "stream_options"),
        (chat(n=0), "n"),
        (chat(n=1.5), "n"),
        (chat(n=True), "n"),
        (chat(n=129), "n"),
        (chat(best_of=10**40), "best_of"),
        (chat(max_tokens=0), "max_tokens"),
        (chat(max_tokens=-2), "max_tokens"),
        (chat(max_tokens=2**31), "max_tokens"),
        (chat(max_tokens="5"), "max_tokens"),
        (b'{"model": "m", "n": ' + b"9" * 5000 + b"}", "n"),
        (b'{"model": "m", "max_tokens": 1e400}', "max_tokens"),
        (chat(**{f"field{i}": 1 for i in range(MOST_FIELDS)}), "fields"),
    ],
)
def test_what_is_no_request_is_refused_in_a_line(body, said):
    with pytest.raises(BadRequest, match=said) as refused:
        ask(body)
    assert refused.value.status == 400
    assert len(str(refused.value)) < 300


def test_too_many_prompts():
    with pytest.raises(BadRequest, match="more than"):
        ask({"prompt": ["x"] * (MOST_PROMPTS + 1)}, "completion")


LARGE = 16 << 20


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"m",' + b",".join(b'"%x":1' % at for at in range(LARGE // 9)) + b"}",
        b'{"model":"m",' + b'"a":1,' * (LARGE // 6) + b'"a":1}',
        b'{"model":"m",' + b" " * LARGE + b'"a":1,"a":2}',
        b'{"model":"m","messages":[' + b"1," * (LARGE // 2) + b"1],}",
        b'{"model":"m","user":' + b"[" * LARGE,
        b'{"model":"m","prompt":[' + b'"",' * (LARGE // 3) + b'""]}',
        b'{"model":"m","n":' + b"9" * LARGE + b"}",
        b'{"model":"' + b"m" * LARGE + b'"}',
        b'{"model":"m","' + b"\\n" * (LARGE // 2) + b'":1,"a":2}',
    ],
    ids=["fields", "same-fields", "spaces", "numbers", "nested", "prompts", "digits", "model", "escapes"],
)
def test_a_large_body_does_not_hold_up_the_others(body):
    began = time.process_time()
    with pytest.raises(BadRequest):
        read_ask(body, "completion")
    assert time.process_time() - began < 0.5  # tens of milliseconds; a dict of that many fields takes seconds


def test_a_long_chat_may_pass():
    long = chat(messages=[{"role": "user", "content": "word " * (1 << 20)}], tools=[{"x": "y" * (1 << 19)}])
    assert ask(long).model == "m"


# given twice


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (b'{"model":"m","model":"n"}', "model"),
        (b'{"model":"m","model":"m"}', "model"),
        (b'{"model":"m","\\u006dodel":"n"}', "model"),
        (b'{"\\u006dodel":"m","model":"n"}', "model"),
        (b'{"model":"m","stream":true,"stream":false}', "stream"),
        (b'{"model":"m","n":1,"n":99}', "n"),
        (b'{"model":"m","":0,"":0}', ""),
        (b'{ "model" : "m" , "user" : 1 , "user" : 2 }', "user"),
        (b'{"model":"m","lora":[],"temperature":1,"lora":[]}', "lora"),
        (b'{"model":"m","a\\"b":1,"a\\u0022b":1}', 'a"b'),
        (b'{"model":"m","x":1,"\\u0078":"{\\"model\\":\\"m\\",\\"x\\":1}"}', "x"),
        (b'{"model":"m","n":1,"t":12,"n":11}', "n"),
        (b'{"model":"m","stream_options":{"include_usage":true,"include_usage":false}}', "stream_options"),
        (b'{"model":"m","stream_options":{"a":1},"stream_options":{}}', "stream_options"),
    ],
)
def test_a_field_given_twice_is_refused_however_it_is_spelled(body, name):
    with pytest.raises(BadRequest, match="more than once") as refused:
        ask(body)
    assert refused.value.param == name


NAMES = st.text(max_size=6)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=5,
)
SPACES = st.text(" \t\r\n", max_size=3)
READ = {"model", "stream", "stream_options", "n", "best_of", "max_tokens", "max_completion_tokens"}


def written(draw, text: str) -> str:
    """A JSON string, some of its characters escaped."""
    escaped = [draw(st.booleans()) and ord(c) < 0x10000 for c in text]
    inner = (
        f"\\u{ord(c):04x}" if e else json.dumps(c, ensure_ascii=False)[1:-1] for c, e in zip(text, escaped, strict=True)
    )
    return f'"{"".join(inner)}"'


@st.composite
def objects(draw) -> tuple[str, list[str]]:
    """The text of a JSON object with a model, and its fields' names as they come, some more than once."""
    pairs = [
        ("model", "m"),
        *draw(st.lists(st.tuples(NAMES.filter(lambda name: name not in READ), VALUES), max_size=6)),
    ]
    if pairs[1:] and draw(st.booleans()):
        name = draw(st.sampled_from(pairs))[0]
        pairs.append((name, "m" if name == "model" else draw(VALUES)))
    pairs = draw(st.permutations(pairs))
    gap = lambda: draw(SPACES)  # noqa: E731
    parts = [
        f"{gap()}{written(draw, name)}{gap()}:{gap()}{json.dumps(value, ensure_ascii=draw(st.booleans()))}{gap()}"
        for name, value in pairs
    ]
    return f"{gap()}{{{','.join(parts)}}}{gap()}", [name for name, _ in pairs]


@given(objects())
def test_a_field_is_refused_if_and_only_if_it_is_there_twice(made):
    text, names = made
    body = text.encode()
    if len(set(names)) < len(names):
        with pytest.raises(BadRequest, match="more than once"):
            ask(body)
    else:
        assert sent(body) == {**json.loads(text), "model": "served"}


@given(st.binary(max_size=40) | st.text(max_size=40).map(str.encode), st.sampled_from(["chat", "completion"]))
def test_nonsense_is_refused_and_nothing_else(body, kind):
    for text in (body, b'{"model":"m",' + body + b"}", b'{"model":"m","stream_options":' + body + b"}"):
        with contextlib.suppress(BadRequest):
            assert read_ask(text, kind).model


def test_names_are_written_as_short_as_can_be():
    """On that rests the quick look at the lengths: a name must not grow and make room for a field that was dropped."""
    controls = {"\b": 2, "\t": 2, "\n": 2, "\f": 2, "\r": 2, '"': 2, "\\": 2}
    for c in map(chr, [*range(0xD800), *range(0xE000, 0x110000, 7)]):
        shortest = controls.get(c, 6 if c < " " else len(c.encode()))
        assert len(msgspec.json.encode(c)) == shortest + 2, hex(ord(c))


# for the engine


def test_the_engine_gets_its_name_and_everything_else_as_it_came():
    body = chat(temperature=0.1, logit_bias={"5": -1}, unknown={"a": [1]})
    assert sent(body) == {**json.loads(body), "model": "served"}


def test_a_stream_is_asked_for_its_usage():
    assert sent(chat(), stream=True)["stream_options"] == {"include_usage": True}
    kept = sent(chat(stream=True, stream_options={"include_usage": False, "other": 1}), stream=True)
    assert kept["stream"] is True
    assert kept["stream_options"] == {"include_usage": True, "other": 1}
    asked = chat(stream=True, stream_options={"include_usage": True, "other": 1})
    assert sent(asked, stream=True) == {**json.loads(asked), "model": "served"}


def test_the_engines_own_fields_win():
    assert sent(chat(cache_prompt=True), cache_prompt=False, id_slot=3)["cache_prompt"] is False


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({}, {"max_tokens": 10}),
        ({"max_tokens": None}, {"max_tokens": 10}),
        ({"max_tokens": 3}, {"max_tokens": 3}),
        ({"max_tokens": 30}, {"max_tokens": 10}),
        ({"max_tokens": -1}, {"max_tokens": 10}),
        ({"max_completion_tokens": 30}, {"max_completion_tokens": 10}),
        ({"max_completion_tokens": -1, "max_tokens": 3}, {"max_completion_tokens": 10, "max_tokens": 3}),
        ({"max_completion_tokens": 4, "max_tokens": 30}, {"max_completion_tokens": 4, "max_tokens": 10}),
    ],
)
def test_the_cap_is_sent_under_the_callers_names(limits, expected):
    body = sent(chat(**limits), cap=10)
    assert {name: body[name] for name in ("max_tokens", "max_completion_tokens") if name in body} == expected


def test_without_a_cap_limits_stay_as_they_are():
    assert sent(chat(max_tokens=-1))["max_tokens"] == -1


@pytest.mark.parametrize("name", ["llamacpp", "external"])
def test_every_refused_field_says_why(name):
    for field, why in engine(name).refused_fields.items():
        assert field.strip() == field
        assert why


# request ids


def test_request_ids_grow_with_time_and_never_repeat():
    made = [new_request_id(now_ns) for now_ns in range(10**18, 10**18 + 5000)]
    assert made == sorted(made)
    assert len({new_request_id(7) for _ in range(5000)}) == 5000
    assert {len(name) for name in made} == {36}
