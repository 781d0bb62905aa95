"""An engine's command line held against its own parser before it is started: a wrong flag costs vLLM 20 to 45 seconds.

What a program takes is read by parser_dump.py in the engine's own environment. Here it is only compared: pure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Literal, NamedTuple

import msgspec
from msgspec import Struct

Type = Literal["text", "text-or-json", "integer", "number", "json", "other"]

_NEGATIVE = re.compile(r"-\d+|-\d*\.\d+")
_SIZE = re.compile(r"\d+(\.\d+)?([kKmMgGtT]i?)")
_SIZE_IN_JSON = re.compile(r'("(?:[^"\\]|\\.)*")|\b(\d+)(?:\.\d+)?[kKmMgGtT]\b')
AND = "--and"  # between programs: see bridge.py
_LISTED = 12  # choices that a person reads to the end


class Option(Struct, frozen=True, kw_only=True):
    """What one option takes, or an argument without a name."""

    names: tuple[str, ...] = ()
    least: int = 1  # values; 0 and 0: a flag
    most: int | None = 1
    type: Type = "text"  # `other` is not checked
    choices: tuple[str, ...] = ()
    folds: bool = False  # choices are compared in lower case, with _ for -
    known: tuple[str, ...] = ()  # values that its help names; others may be right too, as of a plugin
    words: tuple[str, ...] = ()  # taken beside the type
    sizes: tuple[str, ...] = ()  # units it takes, each as 1k, and as 1.5k if it takes that
    keys: tuple[str, ...] = ()  # of its JSON object; (): any, or unknown
    required: bool = False


class Flags(Struct, frozen=True, kw_only=True):
    """What one program takes."""

    options: tuple[Option, ...]
    abbreviations: bool = False  # --max-mod for --max-model-len, if nothing else begins so
    flexible: bool = False  # vLLM's ways: _ for -, --config.key value, -O3

    def option(self, name: str) -> Option | None:
        """Find it by any of its names."""
        return next((each for each in self.options if name in each.names), None)


decode = msgspec.json.Decoder(Flags).decode  # of what parser_dump.py printed


class _Hit(NamedTuple):
    """An argument that looks like an option: all that it may mean, and what follows in the same word."""

    name: str
    meant: dict[str, Option]
    value: str | None


def problems(argv: Sequence[str], flags: Flags) -> list[str]:
    """Why the program would refuse `argv`, without its own name; [] if it would not, as far as its parser decides.

    What options mean to one another, and what is found out later (a file that is missing), it does not see.
    """
    names = {name: each for each in flags.options for name in each.names}
    args = [*_flexible(argv, names)] if flags.flexible else [*argv]
    end = args.index("--") if "--" in args else len(args)
    hits = [_hit(arg, names, abbreviations=flags.abbreviations) for arg in args[:end]]
    found: list[str] = []
    seen: list[Option] = []
    loose = args[end + 1 :]
    at = 0
    while at < end:
        hit, at = hits[at], at + 1
        if hit is None:
            loose.append(args[at - 1])
        elif len({id(each) for each in hit.meant.values()}) != 1:
            found.append(_unclear(hit, names))
            at = next((later for later in range(at, end) if hits[later]), end)  # its values are no problem more
        else:
            (option, *_), values = hit.meant.values(), [] if hit.value is None else [hit.value]
            while hit.value is None and at < end and hits[at] is None and len(values) != option.most:
                values.append(args[at])
                at += 1
            seen.append(option)
            found += _wrong(next(iter(hit.meant)), option, values, flexible=flags.flexible)
    return [*found, *_left(loose, seen, flags)]


def of_command(argv: Sequence[str], programs: Mapping[str, bytes]) -> list[str]:
    """The same of a whole command: `PYTHON ... -m PROGRAM ...`, or several with `--and` between them.

    `programs`: what each one takes, as JSON; of one that nobody could read there is nothing to say.
    """
    found: list[str] = []
    for at, word in enumerate(argv[:-1]):
        if word == "-m" and (said := programs.get(argv[at + 1])):
            rest = argv[at + 2 :]
            found += problems(rest[: rest.index(AND)] if AND in rest else rest, decode(said))
    return found


def _flexible(argv: Sequence[str], names: Iterable[str]) -> Iterator[str]:
    """As vLLM's parser rewrites it: dashes in names, -O3 in full, --config.key value as JSON."""
    rest = iter(argv)
    for arg in rest:
        name, given, value = arg.partition("=")
        if arg.startswith("--"):
            head, *keys = name.split(".")
            name = ".".join(["--" + head[2:].replace("_", "-"), *keys])
        if arg.startswith("-O") and "--optimization-level" in names:
            yield "--optimization-level"
            if level := arg[2:].removeprefix("="):
                yield level
        elif name.startswith("-") and "." in name:
            value = value if given else next(rest, None)
            yield name if value is None else _dotted(name, value)
        else:
            yield name + given + value


def _dotted(name: str, value: str) -> str:
    if name.endswith("+"):
        name, value = name[:-1], json.dumps(value.split(","))
    try:
        nested = json.loads(value)
    except ValueError:
        nested = value
    head, *keys = name.split(".")
    for key in reversed(keys):
        nested = {key: nested}
    return f"{head}={json.dumps(nested)}"


def _hit(arg: str, names: dict[str, Option], *, abbreviations: bool) -> _Hit | None:
    """None: a value. By the rules of argparse, which click's hardly differ from."""
    if len(arg) < 2 or not arg.startswith("-"):
        return None
    name, given, rest = arg.partition("=")
    value = rest if given else None
    if arg in names:
        return _Hit(arg, {arg: names[arg]}, None)
    if name in names:
        return _Hit(name, {name: names[name]}, value)
    if arg.startswith("--"):
        meant = {each: option for each, option in names.items() if abbreviations and each.startswith(name)}
    elif arg[:2] in names:
        meant, name, value = {arg[:2]: names[arg[:2]]}, arg[:2], arg[2:]
    else:
        meant = {each: option for each, option in names.items() if each.startswith(name)}
    if not meant and (_NEGATIVE.fullmatch(arg) or " " in arg):
        return None
    return _Hit(name, meant, value)


def _unclear(hit: _Hit, names: Iterable[str]) -> str:
    if hit.meant:
        return f"{hit.name} may be {' or '.join([*hit.meant][:4])}"
    return f"{hit.name} is no option of this version{_nearest(hit.name, names)}"


def _nearest(name: str, names: Iterable[str]) -> str:
    near = get_close_matches(name, names, 1)
    return f"; {near[0]} is" if near else ""


def _wrong(name: str, option: Option, values: Sequence[str], *, flexible: bool) -> Iterator[str]:
    if option.most is not None and len(values) > option.most:
        yield f"{name} takes no value, and was given {values[0]!r}"
    elif len(values) < option.least:
        yield f"{name} lacks its value" if option.least == 1 else f"{name} takes {option.least} values"
    else:
        for value in values:
            if why := _misfit(value, option, flexible=flexible):
                yield f"{name} {value}: {why}"


def _misfit(value: str, option: Option, *, flexible: bool) -> str:
    """Why the value does not fit; "" if it does."""
    if option.choices:
        folded = value.lower().replace("-", "_") if option.folds else value
        listed = ", ".join([*option.choices[:_LISTED], *(["..."] if len(option.choices) > _LISTED else [])])
        return "" if folded in option.choices else f"not among {listed}{_nearest(folded, option.choices)}"
    if value in option.words:
        return ""
    if option.type == "json" or (option.type == "text-or-json" and re.fullmatch(r"\s*{.*}\s*", value, re.DOTALL)):
        return _json_misfit(value, option.keys, flexible=flexible)
    return _number_misfit(value, option) if option.type in ("integer", "number") else ""


def _number_misfit(value: str, option: Option) -> str:
    size = _SIZE.fullmatch(value.strip())
    if size and ("1.5" if size[1] else "1") + size[2] in option.sizes:
        return ""
    try:
        (int if option.type == "integer" else float)(value)
    except ValueError:
        units = ", ".join(each for each in option.sizes if "." not in each)
        kind = "no whole number" if option.type == "integer" else "no number"
        return f"{kind}, nor one such as {units}" if units else kind
    return ""


def _json_misfit(value: str, keys: Sequence[str], *, flexible: bool) -> str:
    try:
        said = json.loads(_SIZE_IN_JSON.sub(lambda m: m[1] or m[2], value) if flexible and keys else value)
    except ValueError as error:
        return f"no JSON: {error}"
    if not keys:
        return ""
    if not isinstance(said, dict):
        return "no JSON object"
    unknown = [f"no key {key!r}{_nearest(key, keys)}" for key in said if key not in keys]
    return ", ".join(unknown)


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
