"""How long a chat template can run: what it defines, what its loops and repetitions cost, whether its macros end.

Everything here is counted on the parsed tree; nothing is evaluated.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from jinja2 import nodes
from msgspec import Struct

from freehold.weights.reading import quoted

MAX_STEPS = 100_000  # of loops over ranges and lists written in the template; and the longest text made by repeating
_ENDLESS = 1 << 64
_BRANCHES = (nodes.If, nodes.For, nodes.CondExpr, nodes.And, nodes.Or)
_TEXT_MAKERS = {"join", "replace", "reverse", "format", "string", "lower", "upper", "map", "first", "last"}
WIDTH = re.compile(r"%[-+ #0]*[\d*]{4,}|\{[^{}]*[:.]\D?\d{4,}")

Complaint = tuple[str, str]  # rule, why


class Names(Struct, frozen=True):
    """What a template defines itself."""

    macros: dict[str, nodes.Macro]
    stored: set[str]
    sizes: dict[str, int]  # of names set to a number, a text or a list
    joined: set[str]  # names set to a text that is put together
    listed: set[str]  # names set to nothing but lists of macros


def walk(*roots: nodes.Node, stop: tuple[type[nodes.Node], ...] = ()) -> Iterator[nodes.Node]:
    """The roots and everything below them, without recursion; of the kinds in `stop` only what is always evaluated."""
    waiting = list(roots)
    while waiting:
        part = waiting.pop()
        yield part
        if isinstance(part, stop):
            waiting.extend(part.iter_child_nodes(only=("test", "iter", "left")))
        else:
            waiting.extend(part.iter_child_nodes())


def define(parts: list[nodes.Node]) -> Names:
    macros = {part.name: part for part in parts if isinstance(part, nodes.Macro)}
    stored = {part.name for part in parts if isinstance(part, nodes.Name) and part.ctx in {"store", "param"}}
    assigned = sorted((part for part in parts if isinstance(part, nodes.Assign)), key=lambda each: each.lineno)
    known = Names(macros, stored | set(macros), {}, set(), {target_of(part.target) for part in assigned} - {""})
    for part in assigned:
        target = target_of(part.target)
        if not all(_is_macro_list(each, {target, *macros}) for each in walk(part.node)):
            known.listed.discard(target)
        if (size := size_of(part.node, known)) is not None:
            known.sizes[target] = max(size, known.sizes.get(target, 0))
        if is_joined(part.node, known):
            known.joined.add(target)
    return known


def _is_macro_list(part: nodes.Node, known: set[str]) -> bool:
    return isinstance(part, nodes.List | nodes.Add) or (isinstance(part, nodes.Name) and part.name in known)


def target_of(part: nodes.Node) -> str:
    if isinstance(part, nodes.NSRef):
        return f"{part.name}.{part.attr}"
    if isinstance(part, nodes.Getattr) and isinstance(part.node, nodes.Name):
        return f"{part.node.name}.{part.attr}"
    return part.name if isinstance(part, nodes.Name) else ""


def size_of(part: nodes.Node | None, names: Names) -> int | None:
    """The number that an expression amounts to, or the length of a text or list; None when it comes from outside."""
    size = None
    match part:
        case nodes.Const(value=bool() | None):
            pass
        case nodes.Const(value=int() | float() as value):
            size = int(abs(value)) if abs(value) < _ENDLESS else _ENDLESS  # what is no number is not less either
        case nodes.Const(value=str() as value):
            size = len(value)
        case nodes.List(items=items) | nodes.Tuple(items=items) | nodes.Dict(items=items):
            size = len(items)
        case nodes.Name() | nodes.Getattr():
            size = names.sizes.get(target_of(part))
        case nodes.Neg(node=inner):
            size = size_of(inner, names)
        case nodes.Call(node=nodes.Name(name="range"), args=args):
            size = max((size_of(each, names) or 0 for each in args[:2]), default=None)
        case nodes.Add(left=left, right=right) | nodes.Mul(left=left, right=right):
            one, other = size_of(left, names), size_of(right, names)
            if one is not None and other is not None:
                size = min(one + other if isinstance(part, nodes.Add) else one * other, _ENDLESS)
    return size


def is_joined(part: nodes.Node, names: Names) -> bool:
    """Whether an expression puts a text together from pieces: how a forbidden name hides."""
    return any(
        isinstance(each, nodes.Concat)
        or (isinstance(each, nodes.Add) and any(is_text(side) for side in (each.left, each.right)))
        or (isinstance(each, nodes.Mod) and is_text(each.left))
        or (isinstance(each, nodes.Filter) and each.name in _TEXT_MAKERS)
        or (isinstance(each, nodes.Name | nodes.Getattr) and target_of(each) in names.joined)
        for each in walk(part)
    )


def is_text(part: nodes.Node) -> bool:
    return isinstance(part, nodes.Const) and isinstance(part.value, str)


def check_operator(part: nodes.BinExpr, names: Names) -> Iterator[Complaint]:
    if isinstance(part, nodes.Pow):
        yield "template-work", "a power: a few characters that can take for ever"
    elif isinstance(part, nodes.Mod):
        if isinstance(part.left, nodes.Const) and WIDTH.search(str(part.left.value)):
            yield "template-work", "formats to a great width"
    elif (size_of(part, names) or 0) > MAX_STEPS:
        yield "template-work", f"repeats something more than {MAX_STEPS:,} times"


def check_growth(part: nodes.Assign, _: Names) -> Iterator[Complaint]:
    """A text that is set to itself twice doubles with each step of a loop."""
    target, uses = target_of(part.target), 0
    waiting: list[tuple[nodes.Node, int]] = [(part.node, 1)] if target else []
    while waiting:
        each, times = waiting.pop()
        if isinstance(each, nodes.Concat):
            waiting.extend((piece, times) for piece in each.nodes)
        elif isinstance(each, nodes.Add | nodes.Mul):
            times += isinstance(each, nodes.Mul)  # times anything is more than once
            waiting.extend(((each.left, times), (each.right, times)))
        elif isinstance(each, nodes.Name | nodes.Getattr) and target_of(each) == target:
            uses += times
    if uses > 1:
        yield "template-work", f"{quoted(target)} grows out of itself more than once"


def check_loops(tree: nodes.Template, names: Names) -> Iterator[Complaint]:
    waiting: list[tuple[nodes.Node, int, tuple[nodes.Node, ...]]] = [(tree, 1, ())]
    while waiting:
        part, steps, around = waiting.pop()
        if isinstance(part, nodes.For):
            steps *= size_of(part.iter, names) or 1
            around = (*around, part.iter)
            if part.recursive:
                yield "template-recursion", "a loop that calls itself"
            if steps > MAX_STEPS:
                yield "template-work", f"loops that take more than {MAX_STEPS:,} steps whatever is asked"
                return
            if len(around) > 12 or Counter(map(repr, around)).most_common(1)[0][1] > 2:
                yield "template-work", "loops over the same values inside each other"
                return
        elif isinstance(part, nodes.Call) and (size_of(part, names) or 0) > MAX_STEPS:
            yield "template-work", f"a range of more than {MAX_STEPS:,} numbers"
            return
        waiting.extend((child, steps, around) for child in part.iter_child_nodes())


def check_recursion(names: Names) -> Iterator[Complaint]:
    """Genuine macros do call themselves, to walk a tool's schema: on a branch, with a piece of what they were given."""
    calls: dict[str, list[Any]] = {
        name: [part for part in walk(macro) if _calls(part, names)] for name, macro in names.macros.items()
    }
    reached = {name: _reached(name, calls) for name in calls}
    for name, macro in names.macros.items():
        if name not in reached[name]:
            continue
        always = [part for part in walk(*macro.body, stop=_BRANCHES) if _calls(part, names)]
        given = {each.name for each in macro.args}
        for call in calls[name]:
            again = name in reached[call.node.name] or call.node.name == name
            if again and (any(call is each for each in always) or not _gets_a_piece(call, given)):
                yield "template-recursion", f"the macro {quoted(name)} may call itself without end"


def _reached(name: str, calls: dict[str, list[Any]]) -> set[str]:
    found: set[str] = set()
    waiting = [name]
    while waiting:
        new = {each.node.name for each in calls[waiting.pop()]} - found
        found |= new
        waiting.extend(new)
    return found


def _calls(part: Any, names: Names) -> bool:
    return isinstance(part, nodes.Call) and isinstance(part.node, nodes.Name) and part.node.name in names.macros


def _gets_a_piece(call: Any, given: set[str]) -> bool:
    return any(
        isinstance(part, nodes.Getattr | nodes.Getitem | nodes.Filter | nodes.Call)
        or (isinstance(part, nodes.Name) and part.name not in given)
        for part in walk(*call.args, *(pair.value for pair in call.kwargs))
    )
