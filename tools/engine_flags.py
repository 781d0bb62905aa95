"""Read what an engine's program takes out of its unpacked wheel, where the engine itself cannot be installed.

    PYTHON tools/engine_flags.py FOLDER[:FOLDER] MODULE [COMMAND] > tests/data/flags/NAME-VERSION.json

PYTHON: of an environment with as much as there is of what it imports. What is missing is replaced by empty modules, one
after the other until its parser is reached; their names go to standard error. Where the engine is installed,
parser_dump.py needs none of this.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src/freehold/engines"))
import parser_dump

sys.path.pop(0)  # what lies beside it has the names of engines


class _Anything(type):
    """A class that has every attribute: itself."""

    def __getattr__(cls, name: str) -> Any:
        return cls.attribute(name)


class _Nothing(metaclass=_Anything):
    """What an empty module holds under every name."""

    @classmethod
    def attribute(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return cls

    def __new__(cls, *args: Any, **_: Any) -> Any:
        return args[0] if args and callable(args[0]) else cls  # also as a decorator


class _Empty(MetaPathFinder, Loader):
    def __init__(self, absent: list[str]) -> None:
        self._absent = absent

    def find_spec(self, name: str, *_: Any) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.partition(".")[0] in self._absent else None

    def exec_module(self, module: ModuleType) -> None:
        module.__getattr__ = _Nothing.attribute  # type: ignore[method-assign]


def read(folder: str, module: str, command: str, absent: list[str]) -> None:
    sys.path[:0] = folder.split(":")
    sys.meta_path.append(_Empty(absent))
    print(json.dumps(parser_dump.described(parser_dump.capture(module), command), separators=(",", ":")))


def main(folder: str, module: str, command: str = "", *absent: str) -> int:
    if absent:
        read(folder, module, command, [*absent])
        return 0
    lacking = ["-"]
    while True:
        argv = [sys.executable, __file__, folder, module, command, *lacking]
        done = subprocess.run(argv, check=False, capture_output=True, text=True)
        missing = re.findall(r"^ModuleNotFoundError: No module named '([^.']+)", done.stderr, re.MULTILINE)
        if not done.returncode or not missing or missing[-1] in lacking:
            break
        lacking.append(missing[-1])
    print(done.stdout, end="")
    print(*(["empty:", *lacking[1:]] if not done.returncode else [done.stderr]), file=sys.stderr)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
