"""The README's table of rooms, from the docstrings of the packages: prints it into the README, or checks it."""

from __future__ import annotations

import ast
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
BEGIN, END = "<!-- rooms: made by tools/rooms.py -->\n", "<!-- rooms end -->\n"
# From the roof down, as import-linter holds it; rooms of one floor stand side by side.
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LAYERS = PROJECT["tool"]["importlinter"]["contracts"][0]["layers"]
FLOORS = [room.removeprefix("freehold.") for layer in LAYERS for room in layer.split(" | ")]


def says(room: str) -> str:
    """The first paragraph of the room's docstring, on one line."""
    folder = ROOT / "src" / "freehold" / room
    path = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    return " ".join(docstring.partition("\n\n")[0].split())


def table() -> str:
    rows = [f"| `{room}` | {says(room)} |\n" for room in FLOORS]
    return "".join(["| room | what it does |\n|---|---|\n", *rows])


def renewed(readme: str) -> str:
    """The README with the table as it should be."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{table()}{END}{after}"


def main() -> int:
    readme = README.read_text()
    if "--check" in sys.argv:
        if readme == renewed(readme):
            return 0
        print("README.md: the table of rooms is old; run tools/rooms.py")
        return 1
    README.write_text(renewed(readme))
    return 0


if __name__ == "__main__":
    sys.exit(main())
