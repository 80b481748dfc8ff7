import json
import math
import pickle
import time
import tracemalloc
from typing import Any

import pytest
import torch
from adapter_files import safetensors_bytes
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from weft.adapters.errors import AdapterInvalid
from weft.adapters.header import DTYPE_BYTES, MAX_HEADER_BYTES, MAX_TENSORS, Header, parse_header

TORCH = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U8": torch.uint8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
}

shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)
tensors = st.dictionaries(
    st.text(min_size=1, max_size=9), st.tuples(st.sampled_from([*TORCH]), shapes)
)


def parse(data: bytes) -> Header:
    return parse_header(data[: 8 + MAX_HEADER_BYTES], len(data))


def entry(shape: list[Any], start: int, stop: int, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


@given(tensors)
def test_files_that_safetensors_writes(entries: dict[str, tuple[str, tuple[int, ...]]]) -> None:
    data = save(
        {name: torch.zeros(shape, dtype=TORCH[dt]) for name, (dt, shape) in entries.items()}
    )
    header = parse(data)
    assert {name: (spec.dtype, spec.shape) for name, spec in header.tensors.items()} == entries
    ends = [spec.stop for spec in header.tensors.values()]
    assert [spec.start for spec in header.tensors.values()] == [0, *ends][:-1] or not ends
    assert header.data_start + max(ends, default=0) == len(data)


def test_metadata_is_skipped() -> None:
    header = parse(
        safetensors_bytes({"__metadata__": {"format": "pt"}, "t": entry([1], 0, 4)}, b"1234")
    )
    assert list(header.tensors) == ["t"]


BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "truncated"),
    "short": (b"\x01\x00", "truncated"),
    "no header": (safetensors_bytes(b""), "not valid JSON"),
    "header beyond the file": ((200).to_bytes(8, "little") + b"{}", "ends beyond the file"),
    "enormous header": ((2**63).to_bytes(8, "little") + b"{}", "at most 8388608"),
    "header of 94 MB": ((94 << 20).to_bytes(8, "little") + b"{}", "at most 8388608"),
    "zip": (b"PK\x03\x04" + bytes(64), "is a pickle; convert it with"),
    "pickle": (pickle.dumps({"weights": [1.0] * 9}, protocol=2), "is a pickle; convert it with"),
    "not an object": (safetensors_bytes(b"[]"), "one JSON object"),
    "not JSON": (safetensors_bytes(b"{'a': 1}"), "not valid JSON"),
    "duplicate tensor": (
        safetensors_bytes(
            b'{"t":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
            b'"t":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
            bytes(4),
        ),
        "'t' occurs twice",
    ),
    "deep": (safetensors_bytes(b'{"t":' + b"[" * 50_000 + b"]" * 50_000 + b"}"), "nested"),
    "metadata": (safetensors_bytes({"__metadata__": {"a": 1}}), "__metadata__"),
    "metadata list": (safetensors_bytes({"__metadata__": []}), "__metadata__"),
    "entry": (safetensors_bytes({"t": 1}), "must hold dtype, shape and data_offsets"),
    "field missing": (safetensors_bytes({"t": {"dtype": "F32", "shape": [1]}}), "must hold dtype"),
    "field more": (safetensors_bytes({"t": entry([1], 0, 4) | {"x": 1}}, bytes(4)), "must hold"),
    "unknown dtype": (
        safetensors_bytes({"t": entry([1], 0, 8, "F64")}, bytes(8)),
        "dtype 'F64' is not",
    ),
    "dtype list": (safetensors_bytes({"t": entry([1], 0, 4, [])}, bytes(4)), "dtype [] is not"),
    "huge and empty": (safetensors_bytes({"t": entry([0, 10**12], 0, 0)}), "list of sizes"),
    "negative": (safetensors_bytes({"t": entry([-1, -1], 0, 4)}, bytes(4)), "list of sizes"),
    "float": (safetensors_bytes({"t": entry([1.0], 0, 4)}, bytes(4)), "list of sizes"),
    "boolean": (safetensors_bytes({"t": entry([True], 0, 4)}, bytes(4)), "list of sizes"),
    "dimensions": (safetensors_bytes({"t": entry([1] * 9, 0, 4)}, bytes(4)), "list of sizes"),
    "overflow": (safetensors_bytes({"t": entry([2**40] * 8, 0, 4)}, bytes(4)), "list of sizes"),
    "size": (safetensors_bytes({"t": entry([3], 0, 4)}, bytes(4)), "its 4 bytes do not hold F32"),
    "reversed": (safetensors_bytes({"t": entry([1], 4, 0)}, bytes(4)), "do not hold"),
    "offsets": (safetensors_bytes({"t": entry([1], 0, 4) | {"data_offsets": [0]}}), "two integers"),
    "overlap": (
        safetensors_bytes({"a": entry([2], 0, 8), "b": entry([1], 4, 8)}, bytes(8)),
        "overlap",
    ),
    "gap": (safetensors_bytes({"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, bytes(12)), "gap"),
    "gap at the start": (safetensors_bytes({"a": entry([1], 4, 8)}, bytes(8)), "gap"),
    "truncated data": (safetensors_bytes({"t": entry([4], 0, 16)}, bytes(15)), "truncated: 15"),
    "trailing data": (safetensors_bytes({"t": entry([1], 0, 4)}, bytes(5)), "1 bytes at its end"),
    "no name": (safetensors_bytes({"": entry([1], 0, 4)}, bytes(4)), "0 characters"),
    "long name": (safetensors_bytes({"n" * 600: entry([1], 0, 4)}, bytes(4)), "600 characters"),
    "too many": (
        safetensors_bytes({f"{i}": entry([1], 4 * i, 4 * i + 4) for i in range(MAX_TENSORS + 1)}),
        "at most 40960",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_refusals_say_what_is_wrong(case: str) -> None:
    data, reason = BAD[case]
    with pytest.raises(AdapterInvalid) as caught:
        parse(data)
    assert reason in caught.value.reason


def filled(unit: str, begin: str = '{"t":[', end: str = "]}", marks: int = 0) -> bytes:
    """JSON of as many units as fit a header, each `%s` a text of its own.

    marks: in a unit; where told, so few units that the whole is just parsed
    """
    most = (MAX_HEADER_BYTES - 99) // (len(unit.replace("%s", "xxxxx").encode()) + 1)
    count = 23 * MAX_TENSORS // marks if marks else most
    units = (unit.replace("%s", f"{number:05x}") for number in range(count))
    return f"{begin}{','.join(units)}{end}".encode()


HOSTILE: dict[str, bytes] = {
    "lists": filled("[]"),
    "objects": filled("{}"),
    "nested": filled("[[[[[[[]]]]]]]"),
    "keys": filled('"%s":[]', "{", "}"),
    "metadata": filled('"%s":""', '{"__metadata__":{', "}}"),
    "tensors": filled('"%s":{"dtype":"F32","shape":[],"data_offsets":[0,4]}', "{", "}"),
    "wide characters": filled("\U0001f600", '{"t":"', '"}'),
    "as many numbers as are parsed": filled("9.5", marks=1),
    "as many lists as are parsed": filled("[]", marks=2),
    "as many objects as are parsed": filled("{}", marks=2),
    "as many nested lists as are parsed": filled("[[[[[[[]]]]]]]", marks=8),
    "as many keys as are parsed": filled('"%s":0', "{", "}", marks=3),
    "as many texts as are parsed": filled('"%s"', marks=3),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_the_worst_headers_take_little_time_and_memory(case: str) -> None:
    data = safetensors_bytes(HOSTILE[case])
    assert len(data) <= 8 + MAX_HEADER_BYTES

    def refuse() -> float:
        begin = time.process_time()
        with pytest.raises(AdapterInvalid):
            parse(data)
        return time.process_time() - begin

    assert min(refuse() for _ in range(2)) < 2  # half a second on a core of its own
    tracemalloc.start()
    try:
        refuse()
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()


def test_the_largest_header_that_experts_need() -> None:
    name = "base_model.model.model.layers.47.mlp.experts.%s.down_proj.lora_A.default.weight"
    entries = {
        name.replace("%s", f"{number:05}"): entry([1, 0, 1, 1, 1, 1, 1, 1], 0, 0)
        for number in range(MAX_TENSORS)
    }
    assert len(parse(safetensors_bytes(entries)).tensors) == MAX_TENSORS


def test_a_refusal_is_one_printable_line_whatever_a_tensor_is_called() -> None:
    with pytest.raises(AdapterInvalid) as caught:
        parse(safetensors_bytes({"a\r\n\x1b[31m\u2028": entry([-1], 0, 0)}))
    assert str(caught.value).isprintable()


def check(data: bytes) -> None:
    """Either a refusal, or a header that describes every byte of the file once."""
    try:
        header = parse(data)
    except AdapterInvalid:
        return
    end = 0
    for name, spec in header.tensors.items():
        assert spec.name == name
        assert spec.start == end
        assert spec.stop == end + DTYPE_BYTES[spec.dtype] * math.prod(spec.shape)
        assert 0 not in spec.shape
        end = spec.stop
    assert header.data_start + end == len(data)


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    check(data)


numbers = st.integers(-2, 20) | st.floats() | st.booleans() | st.just(2**64)
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "BF16", "I64", "", 3]),
        "shape": st.lists(numbers, max_size=3) | numbers,
        "data_offsets": st.lists(numbers, max_size=3) | st.just([0, 4]),
    }
)


@given(st.dictionaries(st.text(max_size=4), entries | numbers, max_size=4), st.binary(max_size=40))
def test_any_header(header: dict[str, Any], data: bytes) -> None:
    check(safetensors_bytes(json.dumps(header).encode(), data))


SOUND = safetensors_bytes({"a": entry([2], 0, 8), "b": entry([1, 2], 8, 12, "F16")}, bytes(12))


@given(st.integers(0, len(SOUND) - 1), st.binary(max_size=3), st.integers(0, 3))
def test_any_damage_to_a_sound_file(at: int, insert: bytes, cut: int) -> None:
    check(SOUND[:at] + insert + SOUND[at + cut :])
