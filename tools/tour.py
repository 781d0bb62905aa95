"""Runs the README's tour again: the output under every `$ command` in a console block becomes what it says today.

What stands before the tour is checked by tests/test_docs.py. Run it in a fresh clone with no daemon, and take the
README from there. Secrets are left out, and the clone's own folder becomes ~/freehold.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
BLOCK = re.compile(r"```console\n\$ (.+)\n(?:.*\n)*?```\n")


def block(match: re.Match[str]) -> str:
    """The same command with what it says now, errors included."""
    env = {**os.environ, "PATH": f"{ROOT / '.venv' / 'bin'}:{os.environ['PATH']}"}
    command = ["bash", "-c", f"exec 2>&1; {match[1]}"]
    said = subprocess.run(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True, check=False).stdout
    text = re.sub(r"fh-[\w-]{43}", "fh-...", said.replace(str(ROOT), "~/freehold"))
    text = "".join(line.rstrip() + "\n" for line in text.strip("\n").splitlines())
    return f"```console\n$ {match[1]}\n{text}```\n"


if __name__ == "__main__":
    before, heading, tour = README.read_text().partition("## A tour")
    README.write_text(before + heading + BLOCK.sub(block, tour))
