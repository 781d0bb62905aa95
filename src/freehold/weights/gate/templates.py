"""Chat templates: parsed and walked, never rendered. What no published template needs is refused.

The language: https://jinja.palletsprojects.com/en/stable/templates/, with what transformers adds to it
(https://huggingface.co/docs/transformers/chat_templating_writing): loop controls, do, generation, two functions.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from typing import Any

from jinja2 import Environment, TemplateSyntaxError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser

from freehold.types import Finding
from freehold.weights.files import File
from freehold.weights.gate.effort import WIDTH, Complaint, Names, check_effort, define, is_joined, is_text, walk
from freehold.weights.gate.finding import refuse, review
from freehold.weights.reading import Malformed, quoted

MAX_CHARACTERS = 256_000  # the longest of 350 published ones has 28,000
MAX_PARTS = 30_000  # of the parsed tree: theirs have 1,500

FUNCTIONS = {"raise_exception", "strftime_now", "range", "namespace", "dict", "caller"}
METHODS = set(  # transformers' sandbox refuses those that change lists; Kimi's template has append and pop all the same
    str.split(
        "append capitalize casefold center changed copy count cycle endswith expandtabs find get index isalnum "
        "isalpha isascii isdecimal isdigit isidentifier islower isnumeric isspace istitle isupper items join keys "
        "ljust lower lstrip partition pop removeprefix removesuffix replace rfind rindex rjust rpartition rsplit "
        "rstrip split splitlines startswith strip swapcase title update upper values zfill"
    )
)
FILTERS = set(
    str.split(
        "abs batch capitalize center count d default dictsort e escape filesizeformat first float forceescape format "
        "from_json fromjson groupby indent int items join last length list lower map max min pprint random reject "
        "rejectattr replace reverse round safe select selectattr slice sort string striptags sum title to_json tojson "
        "trim truncate unique upper urlencode wordcount wordwrap"
    )
)
TESTS = set(
    str.split(
        "boolean callable contains defined divisibleby eq equalto escaped even false filter float ge greaterthan gt "
        "in integer iterable le lessthan lower lt mapping ne none number odd sameas sequence string test true "
        "undefined upper"
    )
) | {"==", "!=", ">", ">=", "<", "<="}
DOORS = {"self", "super", "lipsum", "cycler", "joiner", "config", "request", "url_for", "get_flashed_messages", "open"}
# How Python's frames and functions are reached without an underscore.
FRAMES = set(
    str.split(
        "mro func_globals func_code func_closure gi_frame gi_code cr_frame cr_code ag_frame ag_code tb_frame tb_next "
        "f_globals f_locals f_builtins f_back f_code im_func im_self im_class format_map popen"
    )
)
_ATTRIBUTE_AT = {
    "selectattr": 0, "rejectattr": 0, "groupby": 0, "sum": 0, "join": 1, "min": 1, "max": 1, "unique": 1, "sort": 2,
}  # fmt: skip
_APPLIED_AT = {"map": 0, "select": 0, "reject": 0, "selectattr": 1, "rejectattr": 1}  # where a filter or test is named
_CONTENT = {"content", "text", "user_message", "prompt", "query"}
_KINDS = {"text", "image", "image_url", "video", "video_url", "audio", "audio_url", "input_audio", "tool_reference"}

_DUNDER = re.compile(r"__\w+__")
_URL = re.compile(
    r"(?i)\b(?!https?://(?:www\.w3|json-schema)\.org/)[a-z][a-z0-9+.-]{1,15}://|\bdata:\w+/[\w.+-]+[;,]|\]\(\s?//"
)
_FIELD = re.compile(r"\{[^{}]*[._\[{]")
_TRIGGER = re.compile(r"[^\W_][\w '.,:!?-]{2,}")


class Generation(Extension):
    """The tag with which transformers marks what the model wrote: a scope of its own, nothing else."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)


_JINJA = Environment(extensions=["jinja2.ext.loopcontrols", "jinja2.ext.do", Generation], autoescape=True)


def check_file(file: File, data: bytes) -> list[Finding]:
    """A template that is a file of its own. Raises Malformed when it is not UTF-8, the one code that loaders read."""
    try:
        return check(file, data.decode("utf-8-sig"), "the file")
    except UnicodeDecodeError as error:
        raise Malformed("not-utf8", f"not UTF-8 at byte {error.start:,}") from None


def check(file: File, source: Any, where: str) -> list[Finding]:
    """Every reason to refuse, or to have a person read, the template `source` that `file` holds at `where`."""
    found: dict[str, str] = {}
    try:
        for rule, why in _complaints(source) if isinstance(source, str) else [("template-syntax", "no text")]:
            found.setdefault(rule, why)
    except RecursionError:
        found["template-syntax"] = "nested too deeply"
    mend = "take the template that the model's publisher ships, or remove it and name one when you serve the model"
    look = "read the template: these words change what the model is told; it was not refused for them"
    return [
        review(file, rule, f"{where}: {why}", look)
        if rule == "template-trigger"
        else refuse(file, rule, f"{where}: {why}", mend)
        for rule, why in found.items()
    ]


def hidden_character(text: str) -> str:
    """The first character that changes what people see, or "": control, bidirectional, zero-width, private tags.

    Joiners between letters of scripts that need them, and between emoji, are not hidden.
    """
    for match in _SUSPECT.finditer(text):
        joins = match[0] in "\u200c\u200d\ufe0f" and match.start() and ord(text[match.start() - 1]) > 0x2FF
        if not joins:
            return unicodedata.name(match[0], f"U+{ord(match[0]):04X}").lower()
    return ""


_SUSPECT = re.compile(
    "[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\xad\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e"
    "\u2060-\u206f\u3164\ufeff\uffa0\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e0fff]"
)


def _complaints(source: str) -> Iterator[Complaint]:
    if len(source) > MAX_CHARACTERS:
        yield "template-size", f"{len(source):,} characters; at most {MAX_CHARACTERS:,} are read"
        return
    if character := hidden_character(source):
        yield "template-character", f"holds the invisible character {character}"
    try:
        tree = _JINJA.parse(source)
    except TemplateSyntaxError as error:
        yield "template-syntax", f"not Jinja, line {error.lineno}: {quoted(error.message or '')}"
        return
    except (ValueError, OverflowError) as error:  # numbers of thousands of digits
        yield "template-syntax", f"cannot be parsed: {quoted(str(error))}"
        return
    parts = list(walk(tree))
    if len(parts) > MAX_PARTS:
        yield "template-size", f"{len(parts):,} parts; at most {MAX_PARTS:,} are read"
        return
    names = define(parts)
    for part in parts:
        for look in _LOOKS.get(type(part), ()):
            yield from look(part, names)
    yield from check_effort(tree, parts, names)


def _tag(part: nodes.Node, _: Names) -> Iterator[Complaint]:
    yield "template-tag", f"{type(part).__name__.lower()} brings in or replaces other templates"


def _name(part: nodes.Name, names: Names) -> Iterator[Complaint]:
    if part.ctx == "load" and ((part.name in DOORS and part.name not in names.stored) or _DUNDER.match(part.name)):
        yield "template-name", f"{quoted(part.name)} leads from the template into Python"


def _attribute(part: nodes.Getattr | nodes.NSRef, _: Names) -> Iterator[Complaint]:
    if part.attr.startswith("_") or part.attr in FRAMES:
        yield "template-attribute", f".{quoted(part.attr)} leads from the template into Python"


def _subscript(part: nodes.Getitem, names: Names) -> Iterator[Complaint]:
    key = part.arg
    if is_text(key):
        if key.value.startswith("_") or key.value in FRAMES:  # type: ignore[attr-defined] - a Const
            yield "template-attribute", f"[{quoted(repr(key.value))}] leads from the template into Python"  # type: ignore[attr-defined]
    elif not isinstance(key, nodes.Slice) and is_joined(key, names):
        yield "template-subscript", "a subscript is put together from pieces, which hides what it names"


def _constant(part: nodes.Const | nodes.TemplateData, _: Names) -> Iterator[Complaint]:
    text = part.value if isinstance(part, nodes.Const) else part.data
    if not isinstance(text, str):
        return
    if match := _URL.search(text):
        yield "template-url", f"names an address: {quoted(text[match.start() :], 60)}"
    if isinstance(part, nodes.Const):
        if match := _DUNDER.search(text):
            yield "template-attribute", f"the text {quoted(match[0])} is a name inside Python"
        if character := hidden_character(text):
            yield "template-character", f"a text holds the invisible character {character}"


def _call(part: nodes.Call, names: Names) -> Iterator[Complaint]:
    match part.node:
        case nodes.Name(name="loop"):
            pass  # only loops marked recursive can; _loops says so
        case nodes.Name(name=name):
            if name not in FUNCTIONS and name not in names.macros:
                yield "template-call", f"calls {quoted(name)}, which chat templates do not have"
        case nodes.Getattr(attr="format", node=nodes.Const(value=str() as text)):
            yield from _format(text)
        case nodes.Getattr(attr=attr) | nodes.Getitem(arg=nodes.Const(value=str() as attr)):
            if attr not in METHODS:
                yield "template-call", f"calls the method {quoted(attr)}, which chat templates do not need"
        case nodes.Getitem(node=nodes.Name(name=name)) if name in names.listed:
            pass
        case _:
            yield "template-call", "calls what an expression returns"


def _format(text: str) -> Iterator[Complaint]:
    if _FIELD.search(text):
        yield "template-call", f"formats with fields that reach into values: {quoted(text)}"
    elif WIDTH.search(text):
        yield "template-work", f"formats to a great width: {quoted(text)}"


def _format_operator(part: nodes.Mod, _: Names) -> Iterator[Complaint]:
    if is_text(part.left):
        yield from _format(part.left.value)  # type: ignore[attr-defined] - a Const


def _filter(part: nodes.Filter, _: Names) -> Iterator[Complaint]:
    if part.name not in FILTERS:
        yield "template-filter", f"the filter {quoted(part.name)} is not one that chat templates need"
        return
    if part.dyn_args or part.dyn_kwargs:
        yield "template-filter", f"the filter {part.name} gets its arguments from a variable"
    at = _ATTRIBUTE_AT.get(part.name, len(part.args))
    attributes = [*part.args[at : at + 1], *(pair.value for pair in part.kwargs if pair.key == "attribute")]
    for each in attributes:
        path = each.value if isinstance(each, nodes.Const) else "_"
        if any(step.startswith("_") or step in FRAMES for step in str(path).split(".")):
            yield "template-attribute", f"the filter {part.name} reads an attribute that is hidden or computed"
    if part.name in _APPLIED_AT:
        at, known = _APPLIED_AT[part.name], FILTERS if part.name == "map" else TESTS
        if not all(isinstance(each, nodes.Const) and each.value in known for each in part.args[at : at + 1]):
            yield "template-filter", f"the filter {part.name} applies something that is unknown or computed"
    if part.name == "format" and part.node and is_text(part.node):
        yield from _format(part.node.value)  # type: ignore[attr-defined] - a Const


def _test(part: nodes.Test, _: Names) -> Iterator[Complaint]:
    if part.name not in TESTS:
        yield "template-filter", f"the test {quoted(part.name)} is not one that chat templates need"


def _compare(part: nodes.Compare, _: Names) -> Iterator[Complaint]:
    yield from _trigger([part.expr, *(each.expr for each in part.ops)])


def _search(part: nodes.Call, _: Names) -> Iterator[Complaint]:
    if isinstance(part.node, nodes.Getattr) and part.node.attr in {"startswith", "endswith", "find", "count", "index"}:
        yield from _trigger([part.node.node, *part.args])


def _trigger(sides: list[Any]) -> Iterator[Complaint]:
    """A fixed word that is compared with what people write, or with the date."""
    others = [each for each in sides if not isinstance(each, nodes.Const)]
    written = any(_subject(each) in _CONTENT for each in others)
    dated = any(isinstance(each, nodes.Name) and each.name == "strftime_now" for each in walk(*others))
    for word in (each.value for each in sides if is_text(each)):
        if (written and word not in _KINDS and _TRIGGER.fullmatch(word)) or (dated and word):
            yield "template-trigger", f"looks for {quoted(repr(word))} in what people write, or at the date"


def _subject(part: nodes.Node | None) -> str:
    """The name of the value that is looked at: content, for message.content | lower or message['content'].strip()."""
    while isinstance(part, nodes.Filter | nodes.Call):
        part = part.node.node if isinstance(part, nodes.Call) and isinstance(part.node, nodes.Getattr) else part.node
    match part:
        case nodes.Name(name=name) | nodes.Getattr(attr=name) | nodes.Getitem(arg=nodes.Const(value=str() as name)):
            return name
    return ""


_LOOKS: dict[type[nodes.Node], tuple[Any, ...]] = {
    **dict.fromkeys((nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends, nodes.Block), (_tag,)),
    nodes.Name: (_name,),
    **dict.fromkeys((nodes.Getattr, nodes.NSRef), (_attribute,)),
    nodes.Getitem: (_subscript,),
    nodes.Const: (_constant,),
    nodes.TemplateData: (_constant,),
    nodes.Call: (_call, _search),
    nodes.Filter: (_filter,),
    nodes.Test: (_test,),
    nodes.Compare: (_compare,),
    nodes.Mod: (_format_operator,),
}
