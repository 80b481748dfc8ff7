"""The header of a safetensors file, parsed without trust. Knows no tensors' values and no torch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeGuard

from weft.adapters.errors import AdapterInvalid
from weft.adapters.strict_json import Json, parse_object

WEIGHTS_NAME = "adapter_model.safetensors"
# Room for three layers of each of 128 experts in 48 layers, each with its own pair: 36,864 tensors
# with names of a hundred characters. A file of any other adapter needs less than 1 MiB.
MAX_HEADER_BYTES = 8 << 20
MAX_TENSORS = 40 << 10
DTYPE_BYTES: Mapping[str, int] = MappingProxyType(
    {"F32": 4, "F16": 2, "BF16": 2, "U8": 1, "I16": 2, "I32": 4, "I64": 8}
)

_LENGTH_BYTES = 8
_MAX_DIMENSIONS = 8
_MAX_NAME = 512
# JSON becomes objects of up to forty times its size, so what is no header is not parsed: marks that
# are no more than those of as many tensors as there may be, each with 24 in eight dimensions.
_MARKS = (b",", b"[", b"{", b'"')
_MAX_MARKS = 24 * MAX_TENSORS
_FIELDS = {"dtype", "shape", "data_offsets"}
CONVERT_COMMAND = (
    'python -c "import torch, safetensors.torch as s; '
    "w = torch.load('adapter_model.bin', map_location='cpu', weights_only=True); "
    "s.save_file({k: v.contiguous().clone() for k, v in w.items()}, "
    f"'{WEIGHTS_NAME}')\""
)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor of the file: bytes `[start, stop)`, counted from the first byte after the header.

    dtype: a key of DTYPE_BYTES
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Header:
    """All tensors of a file in the order of their bytes, which follow each other without a gap.

    data_start: where the first tensor's bytes begin in the file
    """

    tensors: Mapping[str, TensorSpec]
    data_start: int


def parse_header(head: bytes, file_bytes: int, file: str = WEIGHTS_NAME) -> Header:
    """Parses the first bytes of a file of `file_bytes` bytes.

    head: at least the header, which is all of the first 8 + MAX_HEADER_BYTES bytes or of the file
    file: what refusals call it
    Raises AdapterInvalid for anything that is not a plain file of finite size and known types.
    """
    length = _header_length(head, file_bytes, file)
    data_start = _LENGTH_BYTES + length
    text = head[_LENGTH_BYTES:data_start]
    if sum(map(text.count, _MARKS)) > _MAX_MARKS:
        raise AdapterInvalid(file, f"its header holds more than {MAX_TENSORS} tensors could need")
    fields = parse_object(text, file, max_depth=3)
    metadata = fields.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise AdapterInvalid(file, "__metadata__ must map names to text")
    if len(fields) > MAX_TENSORS:
        raise AdapterInvalid(file, f"{len(fields)} tensors; at most {MAX_TENSORS}")
    specs = sorted((_spec(name, entry, file) for name, entry in fields.items()), key=_bytes_order)
    _check_layout(specs, file_bytes - data_start, file)
    return Header(MappingProxyType({spec.name: spec for spec in specs}), data_start)


def _header_length(head: bytes, file_bytes: int, file: str) -> int:
    if len(head) < _LENGTH_BYTES:
        raise AdapterInvalid(file, "is truncated: no safetensors header")
    length = int.from_bytes(head[:_LENGTH_BYTES], "little")
    if length > MAX_HEADER_BYTES:
        if head[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04"):
            raise AdapterInvalid(file, f"is a pickle; convert it with: {CONVERT_COMMAND}")
        raise AdapterInvalid(
            file, f"declares a header of {length} bytes; at most {MAX_HEADER_BYTES}"
        )
    if _LENGTH_BYTES + length > min(len(head), file_bytes):
        raise AdapterInvalid(file, "is truncated: its header ends beyond the file")
    return length


def _spec(name: str, entry: Json, file: str) -> TensorSpec:
    if not 0 < len(name) <= _MAX_NAME:
        raise AdapterInvalid(file, f"a tensor's name has {len(name)} characters")
    if not isinstance(entry, dict) or entry.keys() != _FIELDS:
        raise AdapterInvalid(name, "its header entry must hold dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise AdapterInvalid(name, f"dtype {dtype!r} is not one of {', '.join(DTYPE_BYTES)}")
    if not _whole_numbers(shape) or len(shape) > _MAX_DIMENSIONS or max(shape, default=0) >> 31:
        raise AdapterInvalid(name, "shape must be a short list of sizes below 2**31")
    if not _whole_numbers(offsets) or len(offsets) != 2:
        raise AdapterInvalid(name, "data_offsets must be two integers")
    start, stop = offsets
    if stop - start != math.prod(shape) * DTYPE_BYTES[dtype]:
        raise AdapterInvalid(name, f"its {stop - start} bytes do not hold {dtype} {list(shape)}")
    return TensorSpec(name, dtype, tuple(shape), start, stop)


def _whole_numbers(value: Json) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)


def _bytes_order(spec: TensorSpec) -> tuple[int, int]:
    return spec.start, spec.stop


def _check_layout(specs: list[TensorSpec], data_bytes: int, file: str) -> None:
    """Tensors must follow each other from 0 to the end: no overlap, no gap, nothing unread."""
    end = 0
    for spec in specs:
        if spec.start != end:
            raise AdapterInvalid(spec.name, "its bytes overlap another tensor's or leave a gap")
        end = spec.stop
    if end > data_bytes:
        raise AdapterInvalid(
            file, f"is truncated: {data_bytes} bytes of data, its header says {end}"
        )
    if end < data_bytes:
        raise AdapterInvalid(file, f"{data_bytes - end} bytes at its end are of no tensor")
