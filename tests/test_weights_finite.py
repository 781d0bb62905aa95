"""An adapter with a value that is no finite number is found, whatever the type of its numbers."""

import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from weight_files import facts, safetensors_bytes

from freehold.weights.files import list_files
from freehold.weights.finite import not_finite

PACKED = {"F32": "<f", "F16": "<e"}


def packed(kind: str, values: list[float]) -> bytes:
    if kind == "BF16":
        return b"".join(struct.pack("<f", value)[2:] for value in values)
    return b"".join(struct.pack(PACKED[kind], value) for value in values)


def found(folder, kind: str, values: list[float]) -> list[str]:
    data = packed(kind, values)
    header = {"a.lora_A.weight": facts(kind, (len(values),), (0, len(data)))}
    (folder / "adapter_model.safetensors").write_bytes(safetensors_bytes(header, data))
    return not_finite(list_files(folder)[0])


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
@given(values=st.lists(st.floats(-60000, 60000, width=16), min_size=1, max_size=40))
def test_finite_numbers_pass(tmp_path_factory, kind, values):
    assert found(tmp_path_factory.mktemp("finite"), kind, values) == []


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("odd", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("at", [0, 7, 15])
def test_others_are_found(tmp_path, kind, odd, at):
    assert found(tmp_path, kind, [1.5] * at + [odd] + [-2.0] * (15 - at)) == ["a.lora_A.weight"]


def test_the_largest_of_each_kind_is_finite(tmp_path):
    assert found(tmp_path, "F16", [65504.0]) == []
    assert found(tmp_path, "F32", [3.4028234663852886e38]) == []
    assert found(tmp_path, "BF16", [3.3895313892515355e38]) == []
