"""Texts, YAML, SVG and PDF: read as text, searched for what makes a reader of them run or fetch something."""

from __future__ import annotations

import html
import re
from itertools import islice

from freehold.types import Finding
from freehold.weights.files import File
from freehold.weights.gate.config import OBJECT_KEYS
from freehold.weights.gate.disguise import hidden_in, is_pickle
from freehold.weights.gate.finding import refuse, review
from freehold.weights.reading import Malformed, quoted

TIKTOKEN = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n")  # how its lists of tokens begin, some under the name *.model
_FIX = "remove the file, or put back the publisher's own"
_CONTROLS = re.compile("[\0-\x08\x0b\x0e-\x1f\x7f]")
_SCRIPT = re.compile(r"\s*(?:#! ?/|<\?php|<!doctype\s+html|<html|<script)", re.IGNORECASE)
_FENCED = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`", re.DOTALL)
_HTML_SCRIPT = re.compile(r"<script\b|\bjavascript:", re.IGNORECASE)
_YAML_TAG = re.compile(r"!(?:!?[A-Za-z_]|<)")
_YAML_VALUE = re.compile(r"(?:^|[-?:][ \t]+|[\[{,:])[ \t]*(?:&\S+[ \t]+)?$")  # what stands before a value, and so a tag
_YAML_ALIAS = re.compile(r"(?m)(?:^|[-:,\[{])[ \t]*\*\w+[ \t]*(?=[,\]}\n]|$)")
_MAX_ALIASES = 50
_OBJECT_KEY = f"(?:{'|'.join(map(re.escape, sorted(OBJECT_KEYS)))})"
_OBJECT = {  # a key that names the object to make; in a JSON text the quotes of a quoted key are escaped
    ".jsonl": re.compile(rf'(?<!\\)"{_OBJECT_KEY}"\s*:'),
    ".yaml": re.compile(rf"(?m)(?:^|[\s{{,])[\"']?{_OBJECT_KEY}[\"']?\s*:"),
}
_ESCAPED = re.compile(r"\\(?:u00|x|U000000)([2-7][0-9a-fA-F])")
_FRONT_MATTER = re.compile(r"\s*---[\r\n]+(.*?)[\r\n]---(?:[\r\n]|\Z)", re.DOTALL)  # YAML, as huggingface_hub finds it
_FILTER = re.compile(r"\bfilter=(?!lfs(?:\s|$))\S*")
_SVG_ACTIVE = re.compile(
    r"<\s*(?:[\w-]+:)?(?:script|foreignobject|handler|iframe|embed|object)\b"
    r"|[\s\"'/]on(?:load|unload|click|dblclick|error|begin|end|repeat|abort|resize|scroll|zoom|focus|blur|input|change"
    r"|select|submit|wheel|toggle|activate|(?:mouse|key|pointer|touch|drag|animation|transition|focus)[a-z]{1,20})\s*="
    r"|<!entity|<\?xml-stylesheet|@import|javascript:|vbscript:"
    r"|\burl\(\s*+[\"']?+\s*+(?:https?:|//|file:|ftp:)"
    r"|<(?!\s*a\b)[^<>]*\b(?:href|src)\s*+=\s*+[\"']?+\s*+(?!#|data:image/(?:png|jpe?g|gif|webp)[;,])[^\s\"'>]"
    r"|<\s*a\b[^<>]*\bhref\s*+=\s*+[\"']?+\s*+data:",
    re.IGNORECASE,
)
_PDF_NAMES = ("JavaScript", "Launch", "EmbeddedFile", "EmbeddedFiles", "RichMedia", "JS", "XFA")
_PDF_ACTIVE = re.compile(  # any letter may be written as its number
    "/(?:{}|{}|{}|{}|{}|(?:{}|{})(?=\\s*(?:[(<\\[]|\\d+ \\d+ R)))(?![A-Za-z0-9])".format(
        *("".join(f"(?:{char}|#{ord(char):x}|#{ord(char):X})" for char in name) for name in _PDF_NAMES)
    ).encode()
)
_BLOCK_BYTES = 1 << 20


def check(file: File, data: bytes) -> list[Finding]:
    """Of any text. Raises Malformed when it is none."""
    text = read(data)
    if _SCRIPT.match(text):
        return [refuse(file, "script", "a script or a web page under the name of a text", _FIX)]
    if is_pickle(data):
        return [refuse(file, "disguised", "a pickle under the name of a text", _FIX)]
    if what := hidden_in(data):
        return [refuse(file, "encoded-program", f"it holds, encoded, {what}", _FIX)]
    return _own(file, text)


def _own(file: File, text: str) -> list[Finding]:
    """What only the readers of files with that name would run."""
    name = file.name.lower()
    if name.endswith(".gitattributes") and (found := _FILTER.search(text)):
        why = f"{quoted(found[0])}: git would run that filter's program on every file"
        return [refuse(file, "git-filter", why, "remove the line: weights need no filter but lfs")]
    if name.endswith(".jsonl"):
        return _objects(file, text, ".jsonl")
    if not name.endswith(".md"):
        return []
    front = _FRONT_MATTER.match(text)
    findings = _yaml(file, front[1]) if front else []
    if _HTML_SCRIPT.search(_FENCED.sub("", text)):
        why = "the page holds a script, which some viewers run"
        findings.append(review(file, "page-script", why, "read it as plain text"))
    return findings


def check_yaml(file: File, data: bytes) -> list[Finding]:
    return _yaml(file, read(data)) or check(file, data)


def _yaml(file: File, text: str) -> list[Finding]:
    lines = ((text[text.rfind("\n", 0, tag.start()) + 1 : tag.start()]) for tag in _YAML_TAG.finditer(text))
    if "%TAG" in text or any(_YAML_VALUE.search(line[-200:]) and not line.lstrip().startswith("#") for line in lines):
        why = "a YAML tag: readers make objects of any class of it"
        return [refuse(file, "yaml-tag", why, "remove the tag, or the file: no engine needs it")]
    if next(islice(_YAML_ALIAS.finditer(text), _MAX_ALIASES, None), None):
        return [refuse(file, "yaml-alias", "so many aliases can grow beyond all memory when they are read", _FIX)]
    return _objects(file, text, ".yaml")


def _objects(file: File, text: str, language: str) -> list[Finding]:
    """A key that makes readers of `language` import and call what its value names."""
    plain = _ESCAPED.sub(lambda match: chr(int(match[1], 16)), text)
    if not (found := _OBJECT[language].search(plain)):
        return []
    why = f"the key {quoted(found[0].strip())} makes readers import and call what it names"
    return [refuse(file, "object-key", why, "remove the file: no engine needs it")]


def check_svg(file: File, data: bytes) -> list[Finding]:
    text = html.unescape(read(data))
    if "<svg" not in text.lower() and "<svg:svg" not in text.lower():
        raise Malformed("wrong-magic", "no <svg> in it")
    if found := _SVG_ACTIVE.search(text):
        why = f"{quoted(found[0])}: a browser that shows it runs or fetches something"
        return [refuse(file, "svg-active", why, "show it as PNG, or remove it")]
    return check(file, data)


def check_pdf(file: File) -> list[Finding]:
    """In blocks: a card's PDF may have hundreds of megabytes. Names in compressed streams are not seen."""
    with file.open() as stream:
        block = stream.read(_BLOCK_BYTES)
        if b"%PDF-" not in block[:1024]:
            raise Malformed("wrong-magic", "does not begin as a PDF does")
        while block:
            if found := _PDF_ACTIVE.search(block):
                why = f"it holds {found[0].decode()}: readers of it run or unpack something"
                return [refuse(file, "pdf-active", why, "print it to a plain PDF, or remove it")]
            more = stream.read(_BLOCK_BYTES)
            block = block[-64:] + more if more else b""
    return []


def read(data: bytes) -> str:
    """The characters of a text: UTF-8, UTF-16 with its mark, or bytes of an older code without control characters.

    No program is without them. Raises Malformed.
    """
    encoding = "utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        text = data.decode("latin-1")
        if encoding == "utf-16" or _CONTROLS.search(text):
            raise Malformed("not-text", f"not UTF-8 at byte {error.start:,}") from None
    if "\0" in text:
        raise Malformed("not-text", "binary data under the name of a text")
    return text
