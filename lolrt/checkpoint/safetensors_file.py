"""Reads and writes safetensors files. Reading maps the file, after checking the whole header. Writing takes one tensor at a time, so large
files need little memory.

A file consists of the length of the header (uint64, little-endian), the header (JSON: name -> dtype, shape, [begin, end] in the data), and
the data.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lolrt.checkpoint.mapped import map_file, mark, representable, view
from lolrt.errors import CheckpointError
from lolrt.files import replaced

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}

MOST_HEADER_BYTES = 100_000_000  # as in the reference implementation


class Entry(NamedTuple):
    """One tensor of a file: its dtype, its shape, and the bytes [begin, end) of the data."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file, mapped and not read: pages are read when they are first used. Writing to a tensor does not change the file.

    If the length of the header is not a multiple of 8, as in files of old writers, the tensors are not aligned.

    Raises `lolrt.CheckpointError` for a file that does not exist, holds no weights, is truncated, or whose header contradicts itself or
    the file.
    """
    tensors, _ = read_all(path)
    return tensors


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a file. Raises the errors of `read_safetensors`."""
    _, metadata = read_all(path)
    return metadata


def read_all(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a file; see `read_safetensors` and `read_metadata`."""
    data = map_file(path)
    start, entries, metadata = _header(path, data)
    return {
        name: mark(view(data[start + entry.begin : start + entry.end], entry.dtype).view(entry.shape)) for name, entry in entries.items()
    }, metadata


def damaged(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{path} is damaged or no safetensors file ({reason}); fetch it again")


def _header(path: Path, data: Tensor) -> tuple[int, dict[str, Entry], dict[str, str]]:
    """The position where the data begin, the tensors, and the metadata of a file."""
    if len(data) < 8:
        raise damaged(path, "it ends before its header does")
    first = data[:8].numpy().tobytes()
    if first.startswith(b"GGUF"):
        raise CheckpointError(f"{path} is a GGUF file under the name of another kind; rename it to end in .gguf")
    length = int.from_bytes(first, "little")
    if length > min(MOST_HEADER_BYTES, len(data) - 8):
        raise damaged(path, f"its header claims {length} bytes of a file of {len(data)}")
    try:
        header = json.loads(data[8 : 8 + length].numpy().tobytes(), object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"its header is no JSON: {error}") from error
    if not isinstance(header, dict):
        raise damaged(path, "its header is no JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise damaged(path, "its metadata are not text")
    entries = {name: _entry(path, name, value) for name, value in header.items()}
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1][2:]):
        if entry.begin != end:
            raise damaged(path, f"{name!r} {'overlaps the tensor before it' if entry.begin < end else 'leaves a gap before it'}")
        end = entry.end
    if 8 + length + end != len(data):
        raise damaged(path, f"its tensors end at byte {8 + length + end} of a file of {len(data)}")
    return 8 + length, entries, metadata


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a name comes twice")
    return values


def _entry(path: Path, name: str, value: Any) -> Entry:
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise damaged(path, f"{name!r} is described by other fields than dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise damaged(path, f"{name!r} has dtype {dtype!r}, not one of {', '.join(DTYPES)}")
    if not _sizes(shape) or not _sizes(offsets) or len(offsets) != 2:
        raise damaged(path, f"{name!r} has shape {shape} and offsets {offsets}; expected whole numbers, and two offsets")
    if offsets[1] - offsets[0] != math.prod(shape) * DTYPES[dtype].itemsize:
        raise damaged(path, f"{name!r} has {offsets[1] - offsets[0]} bytes; {dtype} {shape} takes another number")
    if not representable(shape):
        raise damaged(path, f"{name!r} has shape {shape}, which no tensor has")
    return Entry(DTYPES[dtype], tuple(shape), *offsets)


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= 64 and all(type(size) is int and 0 <= size < 2**63 for size in value)


def write_safetensors(path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, tensors: Callable[[str], Tensor]) -> None:
    """Writes a file with the tensors of `shapes`, all of one dtype. Each tensor is requested in turn. The file is complete, or does not
    exist.

    Raises `lolrt.OutputError` if the file cannot be written.
    """
    layout = {name: (dtype, shapes[name]) for name in file_order(shapes)}
    with replaced(path) as partial:
        write_tensors(partial, layout, lambda name: tensors(name).to(dtype))


def write_tensors(
    path: Path,
    layout: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    tensors: Callable[[str], Tensor],
    metadata: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Writes a file with the tensors of `layout`, in its order. Each tensor is requested in turn. Raises OSError.

    The safetensors library is not used: it first writes a file with a random name, which would remain if the process is killed.
    """
    end = 0
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    for name, (dtype, shape) in layout.items():
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % 64)  # so that the data begin at a multiple of 64
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in layout:
            file.write(tensors(name).contiguous().view(-1).view(torch.uint8).numpy().data)


def file_order(names: Iterable[str]) -> list[str]:
    """The names in their order, except that q, k and v of a layer are put side by side, so that they can be one matrix product."""
    order: dict[str, int] = {}
    return sorted(names, key=lambda name: order.setdefault(group_of(name), len(order)))


def group_of(name: str) -> str:
    """A key that is equal for tensors that are put side by side."""
    head, _, leaf = name.rpartition(".")
    layer, _, module = head.rpartition(".")
    return f"{layer}.qkv.{leaf}" if module in ("q", "k", "v") else name
