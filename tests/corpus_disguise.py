"""The corpus: pickles, archives and programs under harmless names."""

from __future__ import annotations

import base64
import bz2
import gzip
import lzma
import pickle

from corpus import Case, case
from corpus_bytes import ELF, NPY, PE, WASM, ZIP, holding, tar_bytes
from weight_files import ASCII_PICKLE, PICKLE, Payload, facts, safetensors_bytes


def disguised(as_name: str, name: str, content: bytes) -> Case:
    return case("pickle", f"{name} as {as_name}", "disguised", {as_name: content})


LEGACY = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps(Payload(), 2)
CONTENTS = {
    **{f"pickle {protocol}": pickle.dumps(Payload(), protocol) for protocol in range(6)},
    "PyTorch before 1.6": LEGACY, "zip": ZIP, "tar": tar_bytes(), "gzip": gzip.compress(PICKLE),
        "bzip2": bz2.compress(PICKLE),
    "xz": lzma.compress(PICKLE), "7z": b"7z\xbc\xaf\x27\x1c\0\4" + b"\0" * 24, "rar": b"Rar!\x1a\7\1\0" + b"\0" * 24,
    "zstd": b"\x28\xb5\x2f\xfd" + b"\0" * 16, "ELF": ELF, "PE": PE, "wasm": WASM, "NumPy": NPY,
    "HDF5": b"\x89HDF\r\n\x1a\n" + b"\0" * 32, "Mach-O": b"\xcf\xfa\xed\xfe" + b"\0" * 32,
    "bytecode": b"\xa7\x0d\r\n\0\0\0\0" + b"\0" * 24, "ONNX": b"\x08\x08\x12\x07pytorch\x3a\x10" + b"\0" * 16,
}  # fmt: skip
HARMLESS = (
    "config.json",
    "README.md",
    "LICENSE",
    "logo.png",
    "tokenizer.model",
    "chat_template.jinja",
    "paper.pdf",
    "a.yaml",
)
DISGUISES = [
    *(disguised("model.safetensors", name, content) for name, content in CONTENTS.items() if name != "ONNX"),
    *(disguised("m.gguf", name, content) for name, content in CONTENTS.items() if name != "ONNX"),
    *(disguised("UPPER.SAFETENSORS", name, content) for name, content in CONTENTS.items() if "pickle" in name),
    *(disguised(as_name, "pickle", PICKLE) for as_name in HARMLESS),
    *(disguised(as_name, "ASCII pickle", ASCII_PICKLE) for as_name in HARMLESS),
    *(disguised(as_name, "zip", ZIP) for as_name in HARMLESS),
    *(disguised(as_name, "ONNX", CONTENTS["ONNX"]) for as_name in ("tokenizer.model", "spiece.model")),
    disguised("README.md", "long ASCII pickle", pickle.dumps(("a" * 99_999, Payload()), 0)),
    disguised("LICENSE", "pickle after many marks", b"(" * 200_000 + ASCII_PICKLE),
    disguised("logo.png", "zip at the end", b"\x89PNG\r\n\x1a\n" + b"\0" * 99 + ZIP),
    disguised("logo.jpg", "zip with a comment", b"\xff\xd8\xff\xe0" + ZIP[:-2] + b"\5\0hello"),
    disguised("card.pdf", "zip before more data", b"%PDF-1.7\n" + ZIP + b"\n%%EOF\n"),
    disguised("m.gguf", "zip in a tensor", holding(b"\7" * 40 + ZIP)),
    disguised("model.safetensors", "zip in a tensor", safetensors_bytes({"w": facts("U8", (40 + len(ZIP),), (0,
        40 + len(ZIP)))}, b"\7" * 40 + ZIP)),
    *(
        case("pickle", f"{name} in {where}", "encoded-program",
            {where: before + each + b'"}' * where.endswith("json") + b"\n"})
        for name, each in (("base64", base64.b64encode(PICKLE)), ("hex", PICKLE.hex().encode()), ("ELF",
            base64.b64encode(ELF)))
        for where, before in (("README.md", b"see: "), ("notes.txt", b""), ("extra.json", b'{"x":"'))
    ),
    *(
        case("pickle", f"pointer {name}", "lfs-pointer",
            {name: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"})
        for name in ("model.safetensors", "m.gguf", "tokenizer.json", "logo.png")
    ),
]  # fmt: skip

CASES = DISGUISES
