"""Regular expressions of tokenizers: read for shapes that a backtracking engine can take for ever on.

The dialect is Oniguruma's, https://github.com/kkos/oniguruma/blob/master/doc/RE; it is scanned, never compiled.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

MAX_PATTERN = 10_000  # characters; the longest in use has about 1,200
MAX_REPEAT = 1_000
MAX_BRANCHES = 500

_PART = re.compile(
    r"\\[pP]\{[^}]*\}|\\x\{[^}]*\}|\\[xX][0-9A-Fa-f]{2}|\\u[0-9A-Fa-f]{4}|\\.|[*+?][?+]?|\{\d*,?\d*\}[?+]?"
    r"|\(\?(?:<?[=!]|[>|~#(&]|P?[<=>]\w*>?|[a-zA-Z0-9-]*:?)|[()|\[]|.",
    re.DOTALL,
)
_COUNTED = re.compile(r"\{\d*,?\d*\}")
_REACHES_BACK = re.compile(r"\\[1-9kg]|\(\?(?:R|[0-9&(#]|P[>=])")
_ANY = {".", r"\w", r"\W", r"\s", r"\S", r"\d", r"\D", r"\X", r"\O"}


class _Group:
    """What was read of a group up to here."""

    def __init__(self, opened: int = 0) -> None:
        self.opened = opened
        self.heads: set[str] = set()  # what a round can begin with, in groups within it too
        self.starts: list[str] = []  # the first atom of each branch
        self.begins = True
        self.solid = 0  # atoms that have to be there
        self.repeats: set[str] = set()  # atoms that repeat without end, in groups within it too
        self.last = ""  # the atom that a quantifier would apply to
        self.repeated = ""  # the atom before it, if that repeats without end

    def add(self, atom: str, closed: _Group | None = None) -> None:
        if self.begins:
            self.starts.append(atom)
            self.heads |= closed.heads if closed else {atom}
            self.begins = False
        elif self.last:
            self.repeated = ""
        self.last = atom
        self.solid += 1

    def is_ambiguous(self) -> bool:
        r"""Whether repeating it leaves more than one way to read the same text.

        Not if each round begins with an atom that no repetition within it can swallow, as in (?:\p{L}\p{M}*)+.
        """
        loose = any(each in _ANY or each.startswith("[^") for each in self.repeats)
        return bool(self.repeats) and (loose or bool(self.repeats & self.heads))

    def is_overlapping(self) -> bool:
        alike = len(set(self.starts)) < len(self.starts)
        return len(self.starts) > 1 and (alike or any(each in _ANY or each.startswith("[^") for each in self.starts))


def complaint(pattern: str) -> str:
    """Why a pattern may run for ever, or "" when nothing speaks for it."""
    if len(pattern) > MAX_PATTERN:
        return f"a pattern of {len(pattern):,} characters; at most {MAX_PATTERN:,} are read"
    groups, closed = [_Group()], None
    for part, end in _parts(pattern):
        if _REACHES_BACK.match(part):
            return "it refers back to what it matched, or to itself"
        if part.startswith("("):
            groups.append(_Group(end))
            closed = None
        elif part != ")":
            if why := _read(groups[-1], part, closed):
                return why
            closed = None
        elif len(groups) == 1:
            return "a bracket closes that was never opened"
        else:
            closed = groups.pop()
            groups[-1].add(f"({pattern[closed.opened : end]}", closed)
            groups[-1].repeats |= closed.repeats
    return "" if len(groups) == 1 else "a bracket opens that is never closed"


def _parts(pattern: str) -> Iterator[tuple[str, int]]:
    """Brackets, quantifiers and atoms, each with the position behind it; a character class is one atom."""
    position = 0
    while match := _PART.match(pattern, position):
        position = _class_end(pattern, match.end()) if match[0] == "[" else match.end()
        yield pattern[match.start() : position], position


def _read(group: _Group, part: str, closed: _Group | None) -> str:
    if part == "|":
        group.begins, group.last, group.repeated = True, "", ""
        return f"more than {MAX_BRANCHES} alternatives" if len(group.starts) > MAX_BRANCHES else ""
    if part[0] in "*+?" or _COUNTED.match(part):
        return _quantify(group, part, closed)
    group.add(part)
    return ""


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


def _quantify(group: _Group, part: str, closed: _Group | None) -> str:
    numbers = [int(each) for each in re.findall(r"\d{1,9}", part)]
    if any(each > MAX_REPEAT for each in numbers):
        return f"it repeats {max(numbers):,} times"
    possessive = part.endswith("+") and len(part) > 1
    endless = part[0] in "*+" or re.match(r"\{\d+,\}", part) is not None
    if part[0] in "*?" or (numbers and numbers[0] == 0):
        group.solid -= 1
        group.starts = [f"{each}?" if each == group.last else each for each in group.starts]
    if closed and not possessive and (endless or any(each > 10 for each in numbers)):
        if closed.is_ambiguous() or (closed.repeats and any(each.endswith("?") for each in closed.starts)):
            return "a repetition inside a repetition"
        if closed.is_overlapping():
            return "a repetition of alternatives that begin alike"
        if closed.solid < 1:
            return "a repetition of what may be empty"
    if endless and not possessive:
        if group.last and group.last == group.repeated:
            return "the same repetition twice in a row"
        group.repeated = group.last
        group.repeats |= closed.heads if closed else {group.last}
    group.last = ""
    return ""
