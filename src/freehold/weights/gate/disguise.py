"""Programs, archives and pickles under harmless names, known by their own bytes: parsed, never loaded or unpacked.

A loader goes by content, not by name: torch.load opens any zip, tar or pickle, whatever it is called.
"""

from __future__ import annotations

import base64
import contextlib
import pickletools
import re
import zlib
from collections.abc import Callable
from itertools import islice
from typing import BinaryIO

HEAD_BYTES = 4096  # enough for every test of how a file begins
_MAX_RUNS = 50_000  # that are decoded: a text with more is a vocabulary
_MAX_OPCODES = 100_000
_GLOBAL = re.compile(r"[\w.]+ [\w.]+")  # module and name
_NAME = re.compile(r"[\w.]{2,}")

_MAGICS = {
    b"PK\x03\x04": "a zip archive", b"PK\x05\x06": "a zip archive", b"PK\x07\x08": "a zip archive",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive", b"\xfd7zXZ\0": "xz data", b"\x28\xb5\x2f\xfd": "zstd data",
    b"\x04\x22\x4d\x18": "lz4 data", b"Rar!\x1a\x07": "a rar archive", b"MSCF\0\0\0\0": "a cabinet archive",
    b"!<arch>\n": "an ar archive", b"\x7fELF": "an ELF program", b"\xcf\xfa\xed\xfe": "a Mach-O program",
    b"\xce\xfa\xed\xfe": "a Mach-O program", b"\xfe\xed\xfa\xcf": "a Mach-O program",
    b"\xfe\xed\xfa\xce": "a Mach-O program", b"\xca\xfe\xba\xbe": "a Java class or Mach-O program",
    b"\0asm\x01\0\0\0": "a WebAssembly program", b"dex\n035": "an Android program", b"\x93NUMPY": "a NumPy file",
    b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.": "a PyTorch pickle", b"\x89HDF\r\n\x1a\n": "an HDF5 file",
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "an OLE document",
}  # fmt: skip
_BZIP2 = re.compile(rb"BZh[1-9](?:1AY&SY|\x17\x72\x45\x38\x50\x90)")
_DOS = b"MZ\x90\0\x03\0\0\0\x04"  # as linkers begin a Windows program
_PYC = re.compile(rb".[\x0a-\x10]\r\n[\0-\x03]\0\0\0", re.DOTALL)
_SCRIPT = re.compile(rb"#! ?/[ -~]{1,200}\n")
_ONNX = re.compile(rb"\x08[\x01-\x20](?:\x12|\x3a|\x42)")  # its version, then a producer, graph or operators
_ENCODED = re.compile(rb"[A-Za-z0-9+/_-]{40,65536}+={0,2}")  # base64 or hex


def nature(head: bytes) -> str:
    """What a file that begins like this really is; empty when it is none of what is looked for."""
    named = next((what for magic, what in _MAGICS.items() if head.startswith(magic)), "")
    return named or next((what for what, holds in _TESTS.items() if holds(head)), "")


def is_onnx(head: bytes) -> bool:
    return bool(_ONNX.match(head))


def is_pickle(data: bytes) -> bool:
    """Whether the bytes parse as a pickle that names a callable: parsed, never loaded.

    Protocol 0 is plain ASCII. A numbered list parses as a pickle too, but names nothing. A binary pickle need not
    reach its end: `data` may be only its beginning.
    """
    names, named, count = False, False, 0
    binary = len(data) > 1 and data[0] == 0x80 and 2 <= data[1] <= 5
    try:
        for opcode, argument, _ in pickletools.genops(data):
            named |= isinstance(argument, str) and bool(_NAME.fullmatch(argument))
            names |= (opcode.name == "STACK_GLOBAL" and named) or (
                opcode.name in {"GLOBAL", "INST"} and bool(_GLOBAL.fullmatch(str(argument)))
            )
            count += 1
            if opcode.name == "STOP":
                return names
            if count > _MAX_OPCODES:
                return True  # no text parses for so long
    except (ValueError, IndexError, OverflowError, Warning) as error:  # where warnings are errors: of odd escapes
        names &= binary or "unknown" not in str(error)  # cut short, not nonsense
    return (names and (binary or len(data) >= HEAD_BYTES)) or (binary and count > 12)


def hidden_in(text: bytes) -> str:
    """What an encoded run in a text decodes to, if that is a program, an archive or a pickle."""
    runs = islice(_ENCODED.finditer(text), _MAX_RUNS)
    return next((what for run in runs if (what := _decoded(run[0]))), "")


def payload_in(text: str) -> str:
    """What a metadata string is, raw or encoded, if that is a program, an archive or a pickle."""
    data = text.encode(errors="surrogateescape")
    raw = {data[:65536]}
    if text.isascii() is False and all(ord(character) < 256 for character in text):
        raw.add(text[:65536].encode("latin-1"))  # JSON can hold bytes only as characters
    return next((what for each in raw if (what := nature(each))), "") or hidden_in(data)


def zip_at_end(stream: BinaryIO, size_bytes: int) -> bool:
    """Whether zip readers would find an archive in the file: they look for its directory from the end.

    A record counts when it leads to a directory that is there. Format: APPNOTE.TXT 6.3.10, section 4.3.16.
    """
    tail_bytes = min(size_bytes, 65_535 + 22)
    stream.seek(size_bytes - tail_bytes)
    tail = stream.read(tail_bytes)
    at = len(tail)
    while (at := tail.rfind(b"PK\x05\x06", 0, at)) >= 0:
        directory_bytes = int.from_bytes(tail[at + 12 : at + 16], "little")
        start = size_bytes - tail_bytes + at - directory_bytes
        if len(tail) - at >= 22 and start >= 0:
            stream.seek(start)
            if stream.read(4) == b"PK\x01\x02":
                return True
            stream.seek(max(0, size_bytes - tail_bytes + at - 20))
            if stream.read(4) == b"PK\x06\x07":  # the locator of a zip64 directory
                return True
    return False


def _decoded(run: bytes) -> str:
    """A run may be longer than what was encoded: it is cut to a whole number of groups."""
    plain = run.rstrip(b"=").translate(bytes.maketrans(b"-_", b"+/"))
    plain = plain[: len(plain) & ~3] if len(plain) % 4 == 1 else plain + b"=" * (-len(plain) % 4)
    found = [base64.b64decode(plain)]
    with contextlib.suppress(ValueError):
        found.append(bytes.fromhex(run[: len(run) & ~1].decode()))
    return next((what for data in found if (what := nature(data))), "")


def _inflates(head: bytes) -> bool:
    try:
        return bool(zlib.decompressobj(31).decompress(head, 16)) or len(head) < 32
    except zlib.error:
        return False


def _is_windows(head: bytes) -> bool:
    at = int.from_bytes(head[60:64], "little")
    return head.startswith(b"MZ") and (head.startswith(_DOS) or head[at : at + 4] == b"PE\0\0")


_TESTS: dict[str, Callable[[bytes], object]] = {
    "a tar archive": lambda head: head[257:262] == b"ustar",
    "bzip2 data": _BZIP2.match,
    "gzip data": lambda head: head.startswith(b"\x1f\x8b\x08") and _inflates(head),
    "a Windows program": _is_windows,
    "compiled Python": _PYC.match,
    "a script": _SCRIPT.match,
    "a pickle": is_pickle,
}
