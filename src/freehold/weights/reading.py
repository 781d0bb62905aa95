"""Bounded reading of bytes nobody vouches for: every length is checked before anything is allocated."""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Mapping
from typing import Any, BinaryIO

MAX_JSON_BYTES = 64 << 20
MAX_JSON_DEPTH = 64
# A byte of JSON can cost 30 bytes once parsed. These hold twice the largest tokenizer in use and cap that cost.
MAX_JSON_MARKS = {b'"': 6_000_000, b",": 3_000_000, b"[": 1_000_000, b"{": 1_000_000}
# Of what is no vocabulary and no index: twice the settings of each expert of the largest models in use.
SMALL_JSON_MARKS = {b'"': 1_500_000, b",": 750_000, b"[": 150_000, b"{": 150_000}
MAY_BE_INFINITE = {"time_step_limit", "time_step_max", "mamba_dt_limit", "dt_limit"}  # of Mamba's layers: no bound

# Possessive, and the closing quote may be missing: so no input makes it look at a byte twice.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_LONG_STRING = re.compile(rb'"[^"\\]{4194304}')  # it would be in memory three times
_NOT_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")


class Malformed(Exception):
    """The bytes are not what their format requires. `rule` is short and stable, `why` is for a person."""

    def __init__(self, rule: str, why: str) -> None:
        super().__init__(why)
        self.rule = rule
        self.why = why


def quoted(text: str, limit: int = 80) -> str:
    """Text from a file, made safe to print: ASCII, no control characters, at most `limit` characters."""
    plain = ascii(text[: limit + 1])[1:-1]
    return plain if len(plain) <= limit else plain[:limit] + "..."


class Reader:
    """Reads little-endian values from a stream that is known to hold `size_bytes`."""

    def __init__(self, stream: BinaryIO, size_bytes: int) -> None:
        self.stream = stream
        self.size_bytes = size_bytes
        self.position = 0

    @property
    def left_bytes(self) -> int:
        return self.size_bytes - self.position

    def require(self, count_bytes: int, what: str) -> None:
        if count_bytes > self.left_bytes:
            raise Malformed("truncated", f"{what} needs {count_bytes:,} bytes, the file has {self.left_bytes:,} left")

    def take(self, count_bytes: int, what: str) -> bytes:
        self.require(count_bytes, what)
        data = self.stream.read(count_bytes)
        if len(data) != count_bytes:
            raise Malformed("truncated", f"the file became shorter while {what} was read")
        self.position += count_bytes
        return data

    def skip(self, count_bytes: int, what: str) -> None:
        self.require(count_bytes, what)
        self.stream.seek(count_bytes, 1)
        self.position += count_bytes

    def number(self, code: str, what: str) -> Any:
        """One value of struct type `code`, for example I for an unsigned 32-bit integer."""
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code), what))[0]


def parse_json(data: bytes, marks: Mapping[bytes, int] = MAX_JSON_MARKS, *, log: bool = False) -> Any:
    """JSON as strict as it can be: UTF-8, no duplicate keys, no NaN, bounded depth and memory (by `marks`).

    Infinity is read (as a float) only where genuine configurations have it: see MAY_BE_INFINITE. A `log` of a
    training may hold it and NaN anywhere: losses are so. Raises Malformed.
    """
    _check_marks(data, marks)
    _check_depth(data)
    infinities: list[str] = []

    def constant(name: str) -> float:
        if log:
            return float(name)
        if name == "NaN":
            raise Malformed("bad-number", "NaN is not a JSON number")
        infinities.append(name)
        return float(name)

    def object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = _object(pairs)
        if infinities and not MAY_BE_INFINITE.isdisjoint(found):
            for key in MAY_BE_INFINITE & found.keys():
                del infinities[: _count_infinite(found[key])]
        return found

    try:
        content = json.loads(
            data.decode(), object_pairs_hook=object_of, parse_constant=constant, parse_float=_finite_float
        )
    except UnicodeDecodeError as error:
        raise Malformed("not-utf8", f"not UTF-8 at byte {error.start:,}") from None
    except (ValueError, RecursionError) as error:  # ValueError: also integers of thousands of digits
        raise Malformed("bad-json", f"not JSON: {quoted(str(error))}") from None
    if infinities:
        raise Malformed("bad-number", f"{infinities[0]} is not a JSON number")
    return content


def _check_marks(data: bytes, marks: Mapping[bytes, int]) -> None:
    for mark, limit in marks.items():
        if (count := data.count(mark)) > limit:
            raise Malformed("json-too-big", f"{count:,} times {mark.decode()}; at most {limit:,} are read")
    if _LONG_STRING.search(data):
        raise Malformed("json-too-big", "a text of more than 4 MiB")


def _check_depth(data: bytes) -> None:
    depth = 0
    for byte in _STRING.sub(b"", data).translate(None, _NOT_BRACKETS):
        depth += 1 if byte in b"[{" else -1
        if depth > MAX_JSON_DEPTH:
            raise Malformed("json-too-deep", f"nested more than {MAX_JSON_DEPTH} deep")
        if depth < 0:
            raise Malformed("bad-json", "not JSON: a bracket closes that was never opened")


def _count_infinite(value: Any) -> int:
    return sum(isinstance(each, float) and math.isinf(each) for each in (value if isinstance(value, list) else [value]))


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise Malformed("duplicate-key", f"key {quoted(twice)} occurs twice: readers differ in which wins")
    return found


def _finite_float(text: str) -> float:
    if math.isinf(value := float(text)):
        raise Malformed("bad-number", f"{quoted(text, 20)} is larger than any floating-point number")
    return value
