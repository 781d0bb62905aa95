"""How an engine may answer, well and in every wrong way: the table of wild_engine.py."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable

PROMPT, WORDS = 7, 4
USAGE = {"prompt_tokens": PROMPT, "completion_tokens": WORDS, "total_tokens": PROMPT + WORDS}
NAMED = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "the-engine's-own"}
DONE = b"data: [DONE]\n\n"
LAST = b"0\r\n\r\n"
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"

WAYS: dict[str, Callable[[Talk], Awaitable[None]]] = {}


class Closing(Exception):
    """The engine closes the connection now."""


class Weary(Exception):
    """The engine closes the connection as soon as it is used again."""


class Talk:
    """One request that the engine has read, and the way back to whoever sent it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: str, asked: dict) -> None:
        self._reader, self._writer, self.asked = reader, writer, asked
        names = (line.partition(": ") for line in head.split("\r\n")[1:])
        self.request = next((value for name, _, value in names if name == "x-request-id"), "")
        self.stream = bool(asked.get("stream"))
        said = asked["messages"][-1]["content"] if "messages" in asked else asked.get("prompt", "")
        self.way, _, number = said.partition("@@")[2].partition("=")
        self.number = int(number or 0)
        self.head, self.said_bytes = head, 0
        self.over = False
        self.left = False  # the gateway closed the connection before the answer was over

    async def say(self, data: bytes) -> None:
        self._writer.write(data)
        self.said_bytes += len(data)
        await self._writer.drain()

    async def gone(self) -> None:
        """Until the gateway leaves."""
        await self._reader.read()
        raise ConnectionResetError

    def pieces(self, *, usage: bool = True, done: bool = True) -> list[bytes]:
        """A good answer: its head, then what comes after it."""
        return self.streamed(usage=usage, done=done) if self.stream else self.whole(usage=usage)

    def streamed(self, *, usage: bool = True, done: bool = True, words: int = WORDS) -> list[bytes]:
        frames = [word(number) for number in range(words)]
        frames.append(frame(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}]))
        frames += [frame(choices=[], usage=USAGE)] * usage
        return [STREAM_HEAD, *map(chunk, frames + [DONE] * done), LAST]

    def whole(self, *, usage: bool = True) -> list[bytes]:
        body = answer(usage=usage)
        middle = len(body) // 2
        return [head(200, f"content-length: {len(body)}"), body[:middle], body[middle:]]


def head(status: int, *lines: str) -> bytes:
    return "\r\n".join((f"HTTP/1.1 {status} Whatever", "content-type: application/json", *lines, "", "")).encode()


def frame(**fields) -> bytes:
    return b"data: %b\n\n" % json.dumps({**NAMED, **fields}).encode()


def word(number: int, **more) -> bytes:
    return frame(choices=[{"index": 0, "delta": {"content": f" w{number}"}}], **more)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def answer(*, usage: bool = True) -> bytes:
    text = "".join(f" w{number}" for number in range(WORDS))
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "text": text, "finish_reason": "stop"}
    said = {**NAMED, "object": "chat.completion", "choices": [choice]}
    return json.dumps({**said, "usage": USAGE} if usage else said).encode()


def way(function: Callable[[Talk], Awaitable[None]]) -> Callable[[Talk], Awaitable[None]]:
    WAYS[function.__name__] = function
    return function


async def _all(talk: Talk, pieces: list[bytes]) -> None:
    for piece in pieces:
        await talk.say(piece)


# time


@way
async def well(talk: Talk) -> None:
    await _all(talk, talk.pieces())


@way
async def stalls_before_the_head(talk: Talk) -> None:
    await talk.gone()


@way
async def stalls_in_the_head(talk: Talk) -> None:
    await talk.say(STREAM_HEAD[:30])
    await talk.gone()


@way
async def stalls_in_the_middle(talk: Talk) -> None:
    await _all(talk, talk.pieces()[:2])
    await talk.gone()


@way
async def trickles(talk: Talk) -> None:
    """Byte by byte."""
    for byte in b"".join(talk.pieces()):
        await talk.say(bytes([byte]))
        await asyncio.sleep(0)


@way
async def trickles_for_ever(talk: Talk) -> None:
    await talk.say(talk.pieces()[0])
    while True:
        await talk.say(chunk(word(0)) if talk.stream else b" ")
        await asyncio.sleep(0.05)


@way
async def words(talk: Talk) -> None:
    """`words=N`: so many, as fast as they are read."""
    pieces = talk.streamed(words=talk.number) if talk.stream else talk.whole()
    for at in range(0, len(pieces), 50):
        await talk.say(b"".join(pieces[at : at + 50]))


@way
async def paced(talk: Talk) -> None:
    """`paced=MS`: between any two words."""
    for piece in talk.pieces():
        await talk.say(piece)
        await asyncio.sleep(talk.number / 1000)


@way
async def flood(talk: Talk) -> None:
    """`flood=MIB`: as fast as they are read, in words of 16 KiB."""
    await talk.say(STREAM_HEAD)
    fat = chunk(frame(choices=[{"index": 0, "delta": {"content": "x" * (16 << 10)}}]))
    for _ in range(talk.number << 6):
        await talk.say(fat)
    await _all(talk, talk.pieces()[-3:])


@way
async def fat(talk: Talk) -> None:
    """`fat=MIB`: a whole answer of that size."""
    body = answer().replace(b" w0", b"x" * (talk.number << 20), 1)
    await _all(talk, [head(200, f"content-length: {len(body)}"), body])


# ends


@way
async def closes_before_the_head(talk: Talk) -> None:
    raise Closing


@way
async def closes_in_the_head(talk: Talk) -> None:
    await talk.say(STREAM_HEAD[:30])
    raise Closing


@way
async def closes_in_the_middle(talk: Talk) -> None:
    await _all(talk, talk.pieces()[:2])
    raise Closing


@way
async def closes_without_the_last_chunk(talk: Talk) -> None:
    """All was said but that it is all: the stream's [DONE] is missing too."""
    pieces = talk.streamed(done=False) if talk.stream else [STREAM_HEAD, chunk(answer()), LAST]
    await _all(talk, pieces[:-1])
    raise Closing


@way
async def ends_in_the_middle(talk: Talk) -> None:
    """In good order, as HTTP sees it."""
    body = answer()
    half = talk.pieces()[:3] if talk.stream else [STREAM_HEAD, chunk(body[: len(body) // 2])]
    await _all(talk, [*half, LAST])


@way
async def says_nothing(talk: Talk) -> None:
    await talk.say(STREAM_HEAD + LAST if talk.stream else head(200, "content-length: 0"))


@way
async def says_too_little(talk: Talk) -> None:
    """Fewer bytes than it announced."""
    text = b"".join([word(n) for n in range(WORDS)]) if talk.stream else answer()
    await talk.say(head(200, f"content-length: {len(text) + 100}") + text)
    raise Closing


@way
async def says_too_much(talk: Talk) -> None:
    """More bytes than it announced: half of the answer."""
    text = b"".join([word(n) for n in range(WORDS)]) if talk.stream else answer()
    await talk.say(head(200, f"content-length: {len(text) // 2}") + text)


@way
async def answers_twice(talk: Talk) -> None:
    """The second one is nobody's, and must not be given to whoever comes next."""
    await talk.say(b"".join(talk.pieces()) * 2)


@way
async def http_1_0(talk: Talk) -> None:
    """A body with no length, ended by the end of the connection."""
    body = b"".join([*(word(n) for n in range(WORDS)), frame(choices=[], usage=USAGE), DONE])
    await talk.say(b"HTTP/1.0 200 OK\r\n\r\n" + (body if talk.stream else answer()))
    raise Closing


@way
async def early_hints(talk: Talk) -> None:
    await talk.say(b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n")
    await _all(talk, talk.pieces())


@way
async def closes_when_used_again(talk: Talk) -> None:
    """This one is answered; the next request on its connection finds it closed."""
    await _all(talk, talk.pieces())
    raise Weary


# garbage


@way
async def garbage(talk: Talk) -> None:
    await talk.say(b"\x16\x03\x01\x02\x00SSH-2.0-nonsense\r\n" * 10)
    await talk.gone()


@way
async def garbage_in_the_middle(talk: Talk) -> None:
    """No chunk, and not the rest of the JSON."""
    body = answer()
    half = head(200, f"content-length: {len(body)}") + body[:40] + b"\0" * (len(body) - 40)
    await talk.say(b"".join(talk.pieces()[:3]) + b"zzz\r\nnonsense\r\n" if talk.stream else half)
    if talk.stream:
        await talk.gone()


@way
async def switches_protocols(talk: Talk) -> None:
    await talk.say(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\nnonsense")
    await talk.gone()


@way
async def garbage_json(talk: Talk) -> None:
    text = b'{"choices": [{"index": "no", "delta"'
    frames = [STREAM_HEAD, chunk(b"data: %b\n\n" % text), *talk.streamed()[1:]]
    await _all(talk, frames if talk.stream else [head(200, f"content-length: {len(text)}"), text])


@way
async def huge_frame(talk: Talk) -> None:
    """Without an end, or an answer of more than anybody wants to hold."""
    await talk.say(STREAM_HEAD + chunk(b'data: {"choices": [{"index": 0, "delta": {"content": "'))
    piece = chunk(b"x" * (1 << 20))
    while True:
        await talk.say(piece)


@way
async def error_in_200(talk: Talk) -> None:
    said = b'{"error": {"message": "it hurts", "type": "server_error", "code": 500}}'
    await talk.say(head(200, f"content-length: {len(said)}") + said)


@way
async def error_frame(talk: Talk) -> None:
    """As llama.cpp and vLLM say it in the middle of a stream."""
    said = frame(error={"message": "it hurts", "type": "server_error", "code": 500})
    await _all(talk, [*talk.streamed()[:3], chunk(said), LAST])


@way
async def refuses(talk: Talk) -> None:
    """`refuses=STATUS`, in HTML."""
    said = b"<html>it hurts</html>"
    await talk.say(head(talk.number, f"content-length: {len(said)}") + said)


@way
async def refuses_for_ever(talk: Talk) -> None:
    await talk.say(b"HTTP/1.1 500 No\r\ntransfer-encoding: chunked\r\n\r\n")
    while True:
        await talk.say(chunk(b"no " * 20_000))


# usage


@way
async def usage_twice(talk: Talk) -> None:
    twice = frame(choices=[], usage=USAGE)
    await _all(talk, [*talk.streamed()[:-2], chunk(twice), chunk(DONE), LAST] if talk.stream else talk.whole())


@way
async def usage_never(talk: Talk) -> None:
    await _all(talk, talk.pieces(usage=False))


@way
async def usage_beside_text(talk: Talk) -> None:
    """In the frame of the last word, which ends the choice too."""
    last = {"index": 0, "delta": {"content": " w3"}, "finish_reason": "stop"}
    frames = [*(word(n) for n in range(WORDS - 1)), frame(choices=[last], usage=USAGE), DONE]
    await _all(talk, [STREAM_HEAD, *map(chunk, frames), LAST])


@way
async def usage_running(talk: Talk) -> None:
    """vLLM's continuous_usage_stats; a word is two tokens here. `usage_running=N`: cut after so many frames."""
    frames = [word(n, usage={**USAGE, "completion_tokens": 2 * n + 2}) for n in range(WORDS)]
    frames += [frame(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}]), frame(choices=[], usage=USAGE)]
    if talk.number:
        await _all(talk, [STREAM_HEAD, *map(chunk, frames[: talk.number])])
        raise Closing
    await _all(talk, [STREAM_HEAD, *map(chunk, [*frames, DONE]), LAST])


@way
async def no_blank_line(talk: Talk) -> None:
    await _all(talk, [*talk.streamed()[:-2], chunk(DONE.strip()), LAST])


@way
async def no_done(talk: Talk) -> None:
    await _all(talk, talk.pieces(done=False))


@way
async def talks_after_done(talk: Talk) -> None:
    """For ever."""
    await _all(talk, talk.streamed()[:-1])
    while True:
        await talk.say(chunk(b": and another thing\n\n"))
        await asyncio.sleep(0.001)
