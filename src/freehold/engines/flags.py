"""An engine's command line held against its own parser before it is started: a wrong flag costs vLLM 20 to 45 seconds.

What a program takes is read by parser_dump.py in the engine's own environment. Here it is only compared: pure. Options
are to be written in full, and what they mean to one another is left to the program.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Literal

import msgspec
from msgspec import Struct

AND = "--and"  # between programs: see bridge.py
_NEGATIVE = re.compile(r"-\d+|-\d*\.\d+")
_SIZE = re.compile(r"\s*\d+(\.\d+)?[kKmMgGtT]i?\s*")
_LISTED = 12  # choices that a person reads to the end


class Option(Struct, frozen=True, kw_only=True):
    """What one option takes, or an argument without a name."""

    names: tuple[str, ...] = ()
    least: int = 1  # values; 0 and 0: a flag
    most: int | None = 1
    type: Literal["text", "integer", "number", "json"] = "text"  # text is not checked
    choices: tuple[str, ...] = ()
    folds: bool = False  # choices are compared in lower case, with _ for -
    known: tuple[str, ...] = ()  # values that its help names; others may be right too, as of a plugin
    words: tuple[str, ...] = ()  # taken beside the type
    sizes: bool = False  # so is 4k
    required: bool = False


class Flags(Struct, frozen=True, kw_only=True):
    """What one program takes."""

    options: tuple[Option, ...]
    flexible: bool = False  # vLLM's ways: _ for -, --config.key value, -O3

    def option(self, name: str) -> Option | None:
        """Find it by any of its names."""
        return next((each for each in self.options if name in each.names), None)


decode = msgspec.json.Decoder(Flags).decode  # of what parser_dump.py printed


def problems(argv: Sequence[str], flags: Flags) -> list[str]:
    """Why the program would refuse `argv`, without its own name; [] if it would not, as far as this can tell."""
    names = {name: each for each in flags.options for name in each.names}
    found: list[str] = []
    seen: list[Option] = []
    loose: list[str] = []
    at = 0
    while at < len(argv):
        word, at = argv[at], at + 1
        if not _is_option(word):
            loose.append(word)
            continue
        values = []
        while at < len(argv) and not _is_option(argv[at]):
            values.append(argv[at])
            at += 1
        name, value, checked = _parts(word, names, flexible=flags.flexible)
        option = names.get(name)
        if option is None:  # its values are no problem more
            found.append(f"{name} is no option of this version{_nearest(name, names)}")
            continue
        seen.append(option)
        if value is not None:
            loose += values
            values = [value]
        elif option.most is not None:
            loose += values[option.most :]
            values = values[: option.most]
        found += _wrong(name, option, values, checked=checked)
    return [*found, *_left(loose, seen, flags)]


def of_command(argv: Sequence[str], programs: Mapping[str, bytes]) -> list[str]:
    """The same of a whole command. `programs`: what each takes, as JSON; of others there is nothing to say."""
    return [each for module, given in modules(argv) if module in programs
            for each in problems(given, decode(programs[module]))]  # fmt: skip


def modules(argv: Sequence[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each module that is started as `-m MODULE`, and what it is given."""
    for at in [at + 1 for at, word in enumerate(argv[:-1]) if word == "-m"]:
        end = next((each for each in range(at, len(argv)) if argv[each] == AND), len(argv))
        yield argv[at], tuple(argv[at + 1 : end])


def _is_option(word: str) -> bool:
    return len(word) > 1 and word[0] == "-" and " " not in word.partition("=")[0] and not _NEGATIVE.fullmatch(word)


def _parts(word: str, names: Iterable[str], *, flexible: bool) -> tuple[str, str | None, bool]:
    """Its name, the value in the same word, and whether that can be checked: of --config.key it is a part."""
    name, given, rest = word.partition("=")
    value = rest if given else None
    if not flexible or word in names:
        return name, value, True
    if word.startswith("-O"):
        return "--optimization-level", word[2:].removeprefix("=") or None, True
    name, dot, _ = name.partition(".")
    return (name.replace("_", "-") if name.startswith("--") else name), value, not dot


def _nearest(name: str, names: Iterable[str]) -> str:
    near = get_close_matches(name, names, 1)
    return f"; {near[0]} is" if near else ""


def _wrong(name: str, option: Option, values: Sequence[str], *, checked: bool) -> Iterator[str]:
    if option.most is not None and len(values) > option.most:
        yield f"{name} takes no value, and was given {values[0]!r}"
    elif len(values) < option.least:
        yield f"{name} lacks its value" if option.least == 1 else f"{name} takes {option.least} values"
    elif checked:
        for value in values:
            if why := _misfit(value, option):
                yield f"{name} {value}: {why}"


def _misfit(value: str, option: Option) -> str:
    """Why the value does not fit; "" if it does."""
    if option.choices:
        folded = value.lower().replace("-", "_") if option.folds else value
        listed = ", ".join([*option.choices[:_LISTED], *(["..."] if len(option.choices) > _LISTED else [])])
        return "" if folded in option.choices else f"not among {listed}{_nearest(folded, option.choices)}"
    if option.type == "text" or value in option.words or (option.sizes and _SIZE.fullmatch(value)):
        return ""
    try:
        {"integer": int, "number": float, "json": json.loads}[option.type](value)
    except ValueError as error:
        return {"integer": "no whole number", "number": "no number", "json": f"no JSON: {error}"}[option.type]
    return ""


def _left(loose: Sequence[str], seen: Sequence[Option], flags: Flags) -> Iterator[str]:
    """Of what is there beside options, and what is not there."""
    places = [each for each in flags.options if not each.names]
    room = None if any(each.most is None for each in places) else sum(each.most or 0 for each in places)
    if room is not None and len(loose) > room:
        yield f"{loose[room]!r} follows no option"
    if len(loose) < sum(each.least for each in places):
        yield "an argument without a name is missing"
    for each in flags.options:
        if each.required and each.names and each not in seen:
            yield f"{each.names[0]} is missing"
