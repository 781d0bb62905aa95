"""How long a chat template can run, estimated on its parsed tree: nothing is evaluated.

One estimate serves for everything: the size of a value, in numbers, list items or short texts. What comes from the
caller counts as one, so only what the template itself makes large is large.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import accumulate
from typing import Any

from jinja2 import nodes
from msgspec import Struct

from freehold.weights.reading import quoted

MAX_STEPS = 100_000  # the largest number in use is 16,384; transformers' own sandbox ends ranges here
MAX_DEPTH = 8  # of loops; published ones have 3
_ROUNDS, _MAX_SIZE = 32, 1 << 28  # a sum that is made in rounds stays below it, what doubles does not
_CHANGING = {"append", "pop", "update"}
_TEXT_MAKERS = {"join", "replace", "reverse", "format", "string", "lower", "upper", "map", "first", "last"}
WIDTH = re.compile(r"%[-+ #0]*[\d*]{4,}|\{[^{}]*[:.]\D?\d{4,}")

Complaint = tuple[str, str]  # rule, why


class Names(Struct, frozen=True):
    """What a template defines itself."""

    macros: dict[str, nodes.Macro]
    stored: set[str]
    sizes: dict[str, int]
    joined: set[str]  # names set to a text that is put together
    listed: set[str]  # names set to nothing but lists of macros


def walk(*roots: nodes.Node) -> Iterator[nodes.Node]:
    """The roots and everything below them in the template's order, without recursion."""
    waiting = list(reversed(roots))
    while waiting:
        yield (part := waiting.pop())
        waiting.extend(reversed(list(part.iter_child_nodes())))


def define(parts: list[nodes.Node]) -> Names:
    macros = {part.name: part for part in parts if isinstance(part, nodes.Macro)}
    stored = {part.name for part in parts if isinstance(part, nodes.Name) and part.ctx in {"store", "param"}}
    settings = [
        (name_of(target), part.body if isinstance(part, nodes.AssignBlock) else [part.node])
        for part in parts
        if isinstance(part, nodes.Assign | nodes.AssignBlock)
        for target in (part.target.items if isinstance(part.target, nodes.Tuple) else [part.target])
    ]
    known = Names(macros, stored | set(macros), _sizes(settings), set(), {target for target, _ in settings} - {""})
    for target, values in settings:
        if not all(_is_macro_list(each, {target, *macros}) for each in walk(*values)):
            known.listed.discard(target)
        if any(is_joined(value, known) for value in values):
            known.joined.add(target)
    return known


def _sizes(settings: list[tuple[str, list[Any]]]) -> dict[str, int]:
    """The sizes of names after some rounds of all that sets them; only those in a namespace outlive a round of a loop.

    A value that is made of itself once grows slowly; twice, and it doubles each round.
    """
    sizes: dict[str, int] = {}
    for _ in range(_ROUNDS):
        sizes = {name: size for name, size in sizes.items() if "." in name}
        for target, values in settings:
            doubles = any(isinstance(each, nodes.Concat | nodes.Add) and _names_in(each, target) > 1 for each in values)
            size = sum(size_of(value, sizes) for value in values)
            sizes[target] = max(sizes.get(target, 0), _MAX_SIZE + 1 if doubles else size)
        if max(sizes.values(), default=0) > _MAX_SIZE:
            break
    return sizes


def _names_in(part: nodes.Node, name: str) -> int:
    return sum(name_of(each) == name for each in part.iter_child_nodes())


def _is_macro_list(part: nodes.Node, known: set[str]) -> bool:
    return isinstance(part, nodes.List | nodes.Add) or (isinstance(part, nodes.Name) and part.name in known)


def name_of(part: nodes.Node) -> str:
    if isinstance(part, nodes.NSRef):
        return f"{part.name}.{part.attr}"
    if isinstance(part, nodes.Getattr) and isinstance(part.node, nodes.Name):
        return f"{part.node.name}.{part.attr}"
    return part.name if isinstance(part, nodes.Name) else ""


def size_of(part: nodes.Node, sizes: dict[str, int]) -> int:  # noqa: PLR0911 - one for each kind of part
    match part:
        case nodes.Const(value=int() | float() as value):
            return int(min(abs(value), _MAX_SIZE))
        case nodes.Const(value=str() as value):
            return 1 + len(value) // 64
        case nodes.Test() | nodes.Compare() | nodes.Not() | nodes.Filter(name="length" | "count"):
            return 1
        case nodes.Filter(name="int", node=nodes.Getattr() | nodes.Getitem()):
            return MAX_STEPS + 1  # a number in what somebody wrote
        case nodes.Name() | nodes.Getattr() if name_of(part) in sizes:
            return sizes[name_of(part)]
        case nodes.Getattr(node=inner) | nodes.Getitem(node=inner):
            return size_of(inner, sizes)
        case (
            nodes.CondExpr(expr1=one, expr2=other) | nodes.Or(left=one, right=other) | nodes.And(left=one, right=other)
        ):
            return max(size_of(each, sizes) for each in (one, other) if each)
        case nodes.Mul(left=left, right=right):
            return min(size_of(left, sizes) * size_of(right, sizes), _MAX_SIZE + 1)
    return min(sum(size_of(each, sizes) for each in part.iter_child_nodes()) or 1, _MAX_SIZE + 1)


def is_joined(part: nodes.Node, names: Names) -> bool:
    """Whether an expression puts a text together from pieces: how a forbidden name hides."""
    return any(
        isinstance(each, nodes.Concat)
        or (isinstance(each, nodes.Add) and (is_text(each.left) or is_text(each.right)))
        or (isinstance(each, nodes.Mod) and is_text(each.left))
        or (isinstance(each, nodes.Filter) and each.name in _TEXT_MAKERS)
        or name_of(each) in names.joined
        for each in walk(part)
    )


def is_text(part: nodes.Node) -> bool:
    return isinstance(part, nodes.Const) and isinstance(part.value, str)


def check_effort(tree: nodes.Template, parts: list[nodes.Node], names: Names) -> Iterator[Complaint]:
    """Every reason to think that rendering it may not end, or not soon."""
    for name, size in names.sizes.items():
        if size > _MAX_SIZE:
            yield "template-work", f"{quoted(name)} grows out of itself more than once"
    for part in parts:
        if isinstance(part, nodes.Const) and type(part.value) in {int, float} and abs(part.value) > MAX_STEPS:
            yield "template-work", f"the number {part.value:.6g}; {MAX_STEPS:,} is the largest that templates need"
        elif isinstance(part, nodes.Pow):
            yield "template-work", "a power: a few characters that can take for ever"
        elif isinstance(part, nodes.Mul) and size_of(part, names.sizes) > MAX_STEPS:
            yield "template-work", f"repeats something more than {MAX_STEPS:,} times"
    yield from _loops(tree, names)
    yield from _recursion(names)


def _loops(tree: nodes.Template, names: Names) -> Iterator[Complaint]:
    waiting: list[tuple[nodes.Node, list[nodes.Node]]] = [(tree, [])]
    while waiting:
        part, around = waiting.pop()
        if isinstance(part, nodes.For):
            around = [*around, part.iter]
            if part.recursive:
                yield "template-recursion", "a loop that calls itself"
            *_, steps = accumulate((size_of(each, names.sizes) for each in around), lambda one, other: one * other)
            if steps > MAX_STEPS or len(around) > MAX_DEPTH or around.count(part.iter) > 2:
                yield "template-work", "loops inside each other that take many steps whatever is asked"
                return
        elif isinstance(part, nodes.Getattr) and part.attr in _CHANGING and part.node in around:
            yield "template-work", "a loop over what changes inside it"
        waiting.extend((child, around) for child in part.iter_child_nodes())


def _recursion(names: Names) -> Iterator[Complaint]:
    """Genuine macros do call themselves, to walk a tool's schema: with a piece of what they were given.

    Calls without one must lead to an end: what all of them cost is known after as many rounds as there are macros.
    """
    calls: dict[str, list[str]] = {}
    for name, macro in names.macros.items():
        given = {each.name for each in macro.args}
        called: list[Any] = [each for each in walk(*macro.body) if _calls_macro(each, names)]
        calls[name] = [each.node.name for each in called if not _gets_piece(each, given)]
    costs, before = dict.fromkeys(calls, 1), {}
    for _ in range(len(calls) + 1):
        before, costs = costs, {name: 1 + sum(costs[each] for each in called) for name, called in calls.items()}
    if costs != before:
        yield "template-recursion", "a macro may call itself without end"
    elif max(costs.values(), default=0) > MAX_STEPS:
        yield "template-work", f"macros that call each other more than {MAX_STEPS:,} times"


def _calls_macro(part: nodes.Node, names: Names) -> bool:
    return isinstance(part, nodes.Call) and isinstance(part.node, nodes.Name) and part.node.name in names.macros


def _gets_piece(call: nodes.Call, given: set[str]) -> bool:
    return any(
        isinstance(part, nodes.Getattr | nodes.Getitem | nodes.Filter | nodes.Call)
        or (isinstance(part, nodes.Name) and part.name not in given)
        for part in walk(*call.args, *(pair.value for pair in call.kwargs))
    )
