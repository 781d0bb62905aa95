"""What a program takes on its command line, as JSON: run once by the Python of an engine's own environment.

    python -I parser_dump.py MODULE [COMMAND]

MODULE is started as `python -m MODULE` starts it, until it parses its command line; there its parser is read and the
program ends. So no release of an engine needs to be known here, as long as it uses argparse or click. Standard library
only: nothing of Freehold is in that environment. freehold.engines.flags has the types of what is printed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import runpy
import sys
from collections.abc import Callable, Iterable
from typing import Any

_QUIET = {
    "CUDA_VISIBLE_DEVICES": "",  # a busy card is no concern of this
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}
# What each kind of value accepts, and what it does not: a type is known by what it does, whatever it is called.
_KINDS = (
    ("text", ("x", "{x}"), ()),
    ("text-or-json", ("x", "{}"), ("{x}",)),
    ("integer", ("1",), ("x", "1.5")),
    ("number", ("1", "1.5"), ("x", "{}")),
    ("json", ("{}",), ("x", "{x}")),
    ("json", ("[]",), ("x", "{x}")),
)
_DEFAULTS = {"least": 1, "most": 1, "type": "text"}  # left out, as is what is empty or false
_WORDS = ("", "None", "auto")  # that some take beside their kind
_UNITS = ("k", "K", "Ki", "m", "M", "Mi", "g", "G", "Gi", "t", "T", "Ti")
_SIZES = tuple(number + unit for unit in _UNITS for number in ("1", "1.5"))
_SPANS = {None: (1, 1), "?": (0, 1), "*": (0, None), "+": (1, None), argparse.REMAINDER: (0, None)}


class _Found(BaseException):
    """The parser: no program catches this on its way up."""


def capture(module: str) -> Any:
    """The parser that MODULE makes: of argparse, or a command of click. Raises what stops it before."""

    def stop(parser: Any, *_: Any, **__: Any) -> None:
        raise _Found(parser)

    argparse.ArgumentParser.parse_known_args = stop  # type: ignore[assignment]  # parse_args calls it
    try:
        import click  # noqa: PLC0415  the engine's, if it has one
    except ImportError:
        pass
    else:
        click.Command.main = stop  # type: ignore[assignment]
    sys.argv = [module]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except _Found as found:
        return found.args[0]
    raise SystemExit(f"{module} ended without parsing its command line")


def described(parser: Any, command: str = "") -> dict[str, Any]:
    """As JSON; `command`: of a group of click's."""
    if isinstance(parser, argparse.ArgumentParser):
        actions = {id(a): a for group in parser._action_groups for a in group._group_actions}  # noqa: SLF001
        said = {"abbreviations": parser.allow_abbrev, "options": [*map(_lean, map(_action, actions.values()))]}
        return {**said, "flexible": any("Flexible" in each.__name__ for each in _subclasses(argparse.ArgumentParser))}
    if command:
        parser = parser.get_command(None, command)
    help_ = {"names": ["--help"], "least": 0, "most": 0}
    return {"options": [*map(_lean, map(_parameter, parser.params)), help_]}


def _lean(option: dict[str, Any]) -> dict[str, Any]:
    empty = ([], False)
    return {
        key: said for key, said in option.items() if (said != _DEFAULTS[key] if key in _DEFAULTS else said not in empty)
    }


def _subclasses(kind: type) -> Iterable[type]:
    for each in kind.__subclasses__():
        yield each
        yield from _subclasses(each)


def _action(action: argparse.Action) -> dict[str, Any]:
    nargs = action.nargs
    least, most = (nargs, nargs) if isinstance(nargs, int) else _SPANS.get(nargs, (0, None))
    known = action.metavar if isinstance(action.metavar, (list, tuple)) else ()
    if isinstance(action.metavar, str) and (listed := re.match(r"\{([^{}]*)\}", action.metavar)):
        known = listed[1].split(",")
    named = {"names": list(action.option_strings), "least": least, "most": most, "required": action.required}
    return {**named, "known": [*map(str, known)], **_values(action.type, action.choices or ())}


def _parameter(parameter: Any) -> dict[str, Any]:
    """Of click. Its names are exact, its choices a kind of type."""
    flag, argument = getattr(parameter, "is_flag", False), parameter.param_type_name == "argument"
    count = 0 if flag or getattr(parameter, "count", False) else parameter.nargs
    least, most = (int(parameter.required), None) if count == -1 else (count, count)
    choices = getattr(parameter.type, "choices", ())
    if choices and not all(isinstance(each, str) for each in choices):
        choices = [getattr(each, "name", str(each)) for each in choices]  # an enum's
    names = [] if argument else [*parameter.opts, *parameter.secondary_opts]
    named = {"names": names, "least": least, "most": most, "required": parameter.required}
    return {**named, **_values(None if choices else parameter.type, choices)}


def _values(parse: Any, choices: Iterable[Any]) -> dict[str, Any]:
    """What is taken: the choices, or the kind and words beside it."""
    parse = parse or str
    choices = sorted(choices, key=str) if isinstance(choices, (set, frozenset)) else [*choices]
    if choices:
        said = [*dict.fromkeys(word for each in choices for word in (("None", "") if each is None else (str(each),)))]
        return {"choices": said, "folds": _result(parse, "A-B") == "a_b", "type": "text"}
    for kind, taken, refused in _KINDS:
        if all(_accepts(parse, each) for each in taken) and not any(_accepts(parse, each) for each in refused):
            if kind in ("text", "text-or-json"):
                return {"type": kind}
            words, sizes = ([each for each in tried if _accepts(parse, each)] for tried in (_WORDS, _SIZES))
            return {"type": kind, "words": words, "sizes": sizes, "keys": _keys(parse) if kind == "json" else []}
    return {"type": "other"}


def _keys(parse: Any, depth: int = 3) -> list[str]:
    """The keys of an object that refuses others: the fields of a dataclass that its parser has in hand."""
    if depth == 3 and _accepts(parse, '{"freehold_asks": 0}'):
        return []
    held = [*(getattr(parse, "__defaults__", None) or ())]
    held += [cell.cell_contents for cell in getattr(parse, "__closure__", None) or ()]
    for each in held:
        if isinstance(each, type) and dataclasses.is_dataclass(each):
            return sorted(field.name for field in dataclasses.fields(each))
        if depth and callable(each) and (found := _keys(each, depth - 1)):
            return found
    return []


_REFUSED = object()


def _result(parse: Callable[[str], Any], value: str) -> Any:
    try:
        return parse(value)
    except Exception:  # noqa: BLE001  whatever it raises is its way to refuse
        return _REFUSED


def _accepts(parse: Callable[[str], Any], value: str) -> bool:
    return _result(parse, value) is not _REFUSED


def main() -> None:
    """Only the JSON goes to standard output: engines print while they are imported."""
    module, command = sys.argv[1], "".join(sys.argv[2:3])
    os.environ.update(_QUIET)
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    json.dump(described(capture(module), command), out)
    out.flush()
    os._exit(0)  # what was imported may have threads, or much to say at its end


if __name__ == "__main__":
    main()
