"""What a program takes on its command line, as JSON: run once by the Python of an engine's own environment.

    python -I parser_dump.py MODULE

MODULE is started as `python -m MODULE` starts it, until it parses its command line; there its parser is read and the
program ends. So no release of an engine needs to be known here, as long as it uses argparse. Standard library only:
nothing of Freehold is in that environment. freehold.engines.flags has the types of what is printed.
"""

from __future__ import annotations

import argparse
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
    ("integer", ("1",), ("x", "1.5")),
    ("number", ("1", "1.5"), ("x", "{}")),
    ("json", ("{}",), ("x", "{x}")),
    ("json", ("[]",), ("x", "{x}")),
)
_DEFAULTS = {"least": 1, "most": 1, "type": "text"}  # left out, as is what is empty or false
_WORDS = ("", "None", "auto")  # that some take beside their kind
_SPANS = {None: (1, 1), "?": (0, 1), "*": (0, None), "+": (1, None), argparse.REMAINDER: (0, None)}


class _Found(BaseException):
    """The parser: no program catches this on its way up."""


def capture(module: str) -> argparse.ArgumentParser:
    """The parser that MODULE makes. Raises what stops it before."""

    def stop(parser: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        raise _Found(parser)

    argparse.ArgumentParser.parse_known_args = stop  # type: ignore[assignment]  # parse_args calls it
    sys.argv = [module]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except _Found as found:
        return found.args[0]
    raise SystemExit(f"{module} ended without parsing its command line")


def described(parser: argparse.ArgumentParser) -> dict[str, Any]:
    """As JSON."""
    actions = {id(a): a for group in parser._action_groups for a in group._group_actions}  # noqa: SLF001
    flexible = any("Flexible" in each.__name__ for each in type(parser).__mro__)
    return {"options": [*map(_lean, map(_action, actions.values()))], "flexible": flexible}


def _lean(option: dict[str, Any]) -> dict[str, Any]:
    empty = ([], False)
    return {
        key: said for key, said in option.items() if (said != _DEFAULTS[key] if key in _DEFAULTS else said not in empty)
    }


def _action(action: argparse.Action) -> dict[str, Any]:
    nargs = action.nargs
    least, most = (nargs, nargs) if isinstance(nargs, int) else _SPANS.get(nargs, (0, None))
    known = action.metavar if isinstance(action.metavar, (list, tuple)) else ()
    if isinstance(action.metavar, str) and (listed := re.match(r"\{([^{}]*)\}", action.metavar)):
        known = listed[1].split(",")
    named = {"names": list(action.option_strings), "least": least, "most": most, "required": action.required}
    return {**named, "known": [*map(str, known)], **_values(action.type, action.choices or ())}


def _values(parse: Any, choices: Iterable[Any]) -> dict[str, Any]:
    """What is taken: the choices, or the kind and words beside it; text where it is none of those."""
    parse = parse or str
    choices = sorted(choices, key=str) if isinstance(choices, (set, frozenset)) else [*choices]
    if choices:
        said = [*dict.fromkeys(word for each in choices for word in (("None", "") if each is None else (str(each),)))]
        return {"choices": said, "folds": _result(parse, "A-B") == "a_b"}
    for kind, taken, refused in _KINDS:
        if all(_accepts(parse, each) for each in taken) and not any(_accepts(parse, each) for each in refused):
            words = [each for each in _WORDS if _accepts(parse, each)]
            return {"type": kind, "words": words, "sizes": _accepts(parse, "1k")}
    return {}


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
    os.environ.update(_QUIET)
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    json.dump(described(capture(sys.argv[1])), out)
    out.flush()
    os._exit(0)  # what was imported may have threads, or much to say at its end


if __name__ == "__main__":
    main()
