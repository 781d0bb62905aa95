"""Regular expressions of tokenizers: read for shapes that a backtracking engine can take for ever on.

The dialect is Oniguruma's, https://github.com/kkos/oniguruma/blob/master/doc/RE; it is scanned, never compiled.
Published patterns are alternatives of short sequences: hardly any repeats a group.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

MAX_PATTERN = 10_000  # characters; the longest in use has about 1,200
MAX_REPEAT = 1_000
_FEW = 10  # rounds of a repetition that may hold anything

_PART = re.compile(
    r"\\[pP]\{[^}]*\}|\\x\{[^}]*\}|\\[xX][0-9A-Fa-f]{2}|\\u[0-9A-Fa-f]{4}|\\.|[*+?][?+]?|\{\d*,?\d*\}[?+]?"
    r"|\(\?(?:<?[=!]|[>|~#(&]|P?[<=>]\w*>?|[a-zA-Z0-9-]*:?)|[()|\[]|.",
    re.DOTALL,
)
_TIMES = re.compile(r"[*+?][?+]?|\{(?=\d|,\d)(\d*)(,?)(\d*)\}[?+]?")
_REACHES_BACK = re.compile(r"\\[1-9kg]|\(\?(?:R|[0-9&(#]|P[>=])")
_BROAD = re.compile(r"\.|\\[wWSDXO]|\[\^.*", re.DOTALL)  # atoms that swallow what others would


class _Group:
    """What was read of a group up to here."""

    def __init__(self) -> None:
        self.heads: set[str] = set()  # what a round can begin with, in groups within it too
        self.repeats: set[str] = set()  # atoms that repeat without end, in groups within it too
        self.begins = True
        self.branches = False
        self.solid = 0  # atoms that have to be there
        self.last = ""  # the atom that a quantifier would apply to
        self.repeated = ""  # the atom before it, if that repeats without end

    def add(self, atom: str, heads: set[str]) -> None:
        if self.begins:
            self.heads |= heads
        elif self.last:
            self.repeated = ""
        self.begins, self.last = False, atom
        self.solid += 1

    def branch(self) -> None:
        self.begins, self.branches, self.last, self.repeated = True, True, "", ""

    def repeat(self, inner: _Group | None) -> str:
        """Why the last atom, perhaps a group, may not be repeated without end."""
        why = "the same repetition twice in a row" if self.last and self.last == self.repeated else ""
        self.repeats |= inner.heads if inner else {self.last}
        self.repeated = self.last
        return why

    def danger(self) -> str:
        r"""Why repeating it leaves more than one way to read the same text; (?:\p{L}\p{M}*)+ leaves one."""
        broad = any(_BROAD.fullmatch(each) for each in self.repeats | self.heads)
        if self.repeats and (broad or self.repeats & self.heads):
            return "a repetition inside a repetition"
        if self.branches:
            return "a repetition of alternatives"
        return "" if self.solid > 0 else "a repetition of what may be empty"


def complaint(pattern: str) -> str:
    """Why a pattern may run for ever, or "" when nothing speaks for it."""
    if len(pattern) > MAX_PATTERN:
        return f"a pattern of {len(pattern):,} characters; at most {MAX_PATTERN:,} are read"
    groups, closed = [_Group()], None
    for part in _parts(pattern):
        inner, closed = closed, None
        if _REACHES_BACK.match(part):
            return "it refers back to what it matched, or to itself"
        if part[0] == "(":
            groups.append(_Group())
        elif part == "|":
            groups[-1].branch()
        elif times := _TIMES.fullmatch(part):
            if why := _repeat(groups[-1], times, inner):
                return why
        elif part != ")":
            groups[-1].add(part, {part})
        elif len(groups) == 1:
            return "a bracket closes that was never opened"
        else:
            closed = groups.pop()
            groups[-1].add(f"({sorted(closed.heads)})", closed.heads)
            groups[-1].repeats |= closed.repeats
    return "" if len(groups) == 1 else "a bracket opens that is never closed"


def _repeat(group: _Group, times: re.Match[str], inner: _Group | None) -> str:
    if times[1] is None:
        least, most = int(times[0][0] == "+"), 1 if times[0][0] == "?" else math.inf
    else:
        least = int(times[1] or 0)
        most = int(times[3]) if times[3] else math.inf if times[2] else least
    if max(least, most if most < math.inf else 0) > MAX_REPEAT:
        return f"it repeats more than {MAX_REPEAT:,} times"
    possessive = times[0] in {"*+", "++", "?+"}
    why = inner.danger() if inner and most > _FEW and not possessive else ""
    if most == math.inf and not possessive:
        why = why or group.repeat(inner)
    group.solid -= least == 0
    group.last = ""
    return why


def _parts(pattern: str) -> Iterator[str]:
    """Brackets, quantifiers and atoms; a character class is one atom."""
    position = 0
    while match := _PART.match(pattern, position):
        start, position = position, match.end()
        if match[0] == "[":
            position = _class_end(pattern, position)
        yield pattern[start:position]


def _class_end(pattern: str, position: int) -> int:
    """Just after the character class that was opened before `position`; classes nest."""
    depth, start = 1, position
    while position < len(pattern) and depth:
        char = pattern[position]
        if char == "\\":
            position += 1
        elif char == "[":
            depth += 1
        elif char == "]" and not (position == start or pattern[start:position] == "^"):
            depth -= 1
        position += 1
    return position
