"""Reads `.pt` and `.pth` files: only tensors and plain containers, and nothing that expands to more than the size of the file.

torch.save writes an uncompressed zip archive: a pickle, `data.pkl`, and a record of bytes for each storage. A pickle is a program for a
stack machine, which can call any function that it names. The machine in this module has only the operations that tensors and containers
need. It cannot call code, and it loads exactly what it has checked.
"""

from __future__ import annotations

import pickletools
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from lolrt.checkpoint.mapped import map_file, mark, representable, view
from lolrt.checkpoint.packed import Weight
from lolrt.errors import CheckpointError

MOST_PICKLE_BYTES = 16_000_000  # a few hundred for each tensor

# Tied weights are stored once, and two groups may share their weights. No model uses a storage more often than this.
MOST_SHARING = 4

# The most nested keys above a model's weights.
MOST_KEYS = 8

# No tensor of a model has more dimensions, so longer lists are never copied to a shape.
MOST_DIMENSIONS = 16

STORAGES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16, "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64, "IntStorage": torch.int32, "ShortStorage": torch.int16, "CharStorage": torch.int8,
    "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip
# There are no storage classes for newer dtypes: torch saves bytes, and the dtype separately.
UNTYPED = "UntypedStorage"
NEWER = {"float8_e4m3fn": torch.float8_e4m3fn, "float8_e5m2": torch.float8_e5m2}

CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
VALUES = {"BINUNICODE", "SHORT_BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"}
EMPTY: dict[str, type] = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
MARK = object()


class RefusedError(Exception):
    """The fault of a pickle, and what the user should do, as the rest of a sentence that begins with the name of the file."""


class Storage(NamedTuple):
    """The bytes of a record as values of one dtype, mapped."""

    values: Tensor


def read_pickle(path: Path) -> dict[Any, Any]:
    """The dictionary in a file. Its tensors are mapped, not read.

    Raises `lolrt.CheckpointError` for a file that does not exist, holds no weights, is damaged or compressed, names code, holds no
    dictionary, or whose tensors claim more data than it stores.
    """
    data = map_file(path)
    try:
        loaded = _Reader(path, data).load()
    except RefusedError as error:
        raise CheckpointError(f"{path} {error}") from error
    except Exception as error:  # damaged files can make zipfile and the stack machine raise anything
        reason = str(error).partition("\n")[0][:200] or type(error).__name__
        raise CheckpointError(f"{path} is damaged or no plain checkpoint ({reason}); fetch it again") from error
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{path} holds a {type(loaded).__name__}; expected a dictionary of tensors")
    claimed = sum(x.nbytes for _, tensors in dictionaries(loaded) for x in tensors.values() if isinstance(x, Tensor))
    if claimed > MOST_SHARING * len(data):
        raise CheckpointError(
            f"{path} is no plain checkpoint: its tensors repeat what it stores, and would unfold to {claimed:,} bytes; do not trust it"
        )
    return loaded


def dictionaries(content: Mapping[Any, Any]) -> Iterator[tuple[tuple[str, ...], dict[str, Weight]]]:
    """The weights of each dictionary in a file, with the keys that lead to it. The same dictionary is returned only a few times."""
    met: Counter[int] = Counter()
    waiting: list[tuple[tuple[str, ...], Mapping[Any, Any]]] = [((), content)]
    for keys, values in waiting:  # grows during the loop
        met[id(values)] += 1
        if met[id(values)] > MOST_SHARING or len(keys) > MOST_KEYS:
            continue
        if tensors := {str(name): value for name, value in values.items() if isinstance(value, Weight)}:
            yield keys, tensors
        waiting += [((*keys, str(key)), value) for key, value in values.items() if isinstance(value, dict)]


class _Reader:
    def __init__(self, path: Path, data: Tensor) -> None:
        """Finds the records of an archive. Raises `RefusedError` and the errors of zipfile."""
        if not zipfile.is_zipfile(path):
            raise RefusedError(
                "is damaged or no plain checkpoint (it is no zip archive, as torch.save has written since 1.6); fetch it again"
            )
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
        unfolded = sum(record.file_size for record in records)
        if any(record.compress_type != zipfile.ZIP_STORED for record in records) or unfolded > len(data):
            raise RefusedError(f"is compressed: it would unfold to {unfolded:,} bytes, and torch.save compresses nothing; do not trust it")
        if not records or min(record.header_offset for record in records):
            raise RefusedError("is damaged or no plain checkpoint (its archive does not begin where the file does); fetch it again")
        self._data = data
        self._records = {record.filename: record for record in records}
        pickles = [record for record in records if record.filename.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1 or pickles[0].file_size > MOST_PICKLE_BYTES:
            raise RefusedError("is damaged or no plain checkpoint (it has no data.pkl of a credible size); fetch it again")
        self._pickle = self._bytes(pickles[0]).numpy().tobytes()
        if zlib.crc32(self._pickle) != pickles[0].CRC:
            raise ValueError("data.pkl is not what its checksum is of")
        self._folder = pickles[0].filename.removesuffix("data.pkl")
        if (order := self._records.get(f"{self._folder}byteorder")) and self._bytes(order).numpy().tobytes() != b"little":
            raise RefusedError("was written on a machine of the other byte order; save it again on one such as this")
        self._storages: dict[tuple[str, torch.dtype], Storage] = {}

    def _bytes(self, record: zipfile.ZipInfo) -> Tensor:
        """The bytes of a record. They follow the record's own header, whose length is not in the archive's directory."""
        header = self._data[record.header_offset :][:30].numpy().tobytes()
        if record.header_offset < 0 or len(header) < 30 or header[:4] != b"PK\3\4":
            raise ValueError(f"{record.filename} is not where the archive says")
        begin = record.header_offset + 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        content = self._data[begin : begin + record.file_size]
        if len(content) < record.file_size:
            raise ValueError(f"{record.filename} ends behind the file's end")
        return content

    def load(self) -> Any:
        """The object that the pickle builds. Raises `RefusedError` for anything but tensors and containers."""
        stack: list[Any] = []
        memo: dict[int, Any] = {}
        calls = {
            "collections OrderedDict": _ordered_dict,
            "torch Size": _size,
            "torch._utils _rebuild_tensor_v2": _tensor,
            "torch._utils _rebuild_tensor_v3": _tensor_of_bytes,
            "torch._utils _rebuild_parameter": _parameter,
            "torch.nn.parameter Parameter": _parameter,
        }
        names: dict[str, Any] = {
            **calls, **{f"torch {name}": dtype for name, dtype in (STORAGES | NEWER).items()}, f"torch.storage {UNTYPED}": torch.uint8
        }  # fmt: skip
        for opcode, argument, _ in pickletools.genops(self._pickle):
            match opcode.name:
                case "PROTO":
                    pass
                case "STOP":
                    return stack.pop()
                case "MARK":
                    stack.append(MARK)
                case name if name in CONSTANTS:
                    stack.append(CONSTANTS[name])
                case name if name in VALUES:
                    stack.append(argument)
                case name if name in EMPTY:
                    stack.append(EMPTY[name]())
                case name if name in TUPLES:
                    stack[-TUPLES[name] :] = [tuple(stack[-TUPLES[name] :])]
                case "TUPLE":
                    stack.append(tuple(_to_mark(stack)))
                case "APPEND":
                    _extend(stack, [stack.pop()])
                case "APPENDS":
                    _extend(stack, _to_mark(stack))
                case "SETITEM":
                    _update(stack, [stack.pop(-2), stack.pop()])
                case "SETITEMS":
                    _update(stack, _to_mark(stack))
                case "BINPUT" | "LONG_BINPUT":
                    memo[cast(int, argument)] = stack[-1]
                case "BINGET" | "LONG_BINGET":
                    stack.append(memo[cast(int, argument)])
                case "GLOBAL":
                    if argument not in names:
                        name = str(argument).replace(" ", ".")[:100]
                        raise RefusedError(f"is no plain checkpoint: it asks for {name}, which is no tensor; nothing of it was run")
                    stack.append(names[argument])
                case "REDUCE":
                    arguments, function = stack.pop(), stack.pop()
                    if not any(function is call for call in calls.values()):
                        raise ValueError("it calls what is no function")
                    stack.append(function(*arguments))
                case "BUILD":
                    stack.pop()  # attributes of a dictionary, such as the module versions in a state_dict
                case "BINPERSID":
                    stack.append(self._storage(*stack.pop()))
                case other:
                    raise RefusedError(f"is no plain checkpoint: its pickle has a {other}; do not trust it")
        raise ValueError("its pickle has no end")

    def _storage(self, kind: str, dtype: torch.dtype, key: str, device: str, elements: int) -> Storage:
        """The storage that a persistent id names. Its original device does not matter."""
        if kind != "storage" or not isinstance(dtype, torch.dtype) or not isinstance(key, str):
            raise ValueError("it asks for what is no storage")
        if (key, dtype) not in self._storages:
            record = self._records.get(f"{self._folder}data/{key}")
            if record is None:
                raise ValueError(f"data/{key} is missing")
            content = self._bytes(record)
            self._storages[key, dtype] = Storage(view(content[: len(content) // dtype.itemsize * dtype.itemsize], dtype))
        found = self._storages[key, dtype]
        if type(elements) is not int or elements > len(found.values):
            raise ValueError(f"data/{key} holds {len(found.values)} values and is to have more")
        return found


def _to_mark(stack: list[Any]) -> list[Any]:
    """Removes the uppermost mark and all items above it. Returns these items."""
    items = []
    while (item := stack.pop()) is not MARK:
        items.append(item)
    return items[::-1]


def _extend(stack: list[Any], items: list[Any]) -> None:
    if not isinstance(stack[-1], list):
        raise ValueError("it appends to what is no list")
    stack[-1].extend(items)


def _update(stack: list[Any], items: list[Any]) -> None:
    """Adds items to a dictionary. Keys must be names or numbers: other keys could have colliding hashes and take quadratic time."""
    if not isinstance(stack[-1], dict) or len(items) % 2:
        raise ValueError("it sets items of what is no dictionary")
    for key in items[::2]:
        if type(key) is not str and not (type(key) is int and abs(key) < 1 << 60):
            raise RefusedError(
                f"is no plain checkpoint: a dictionary's key is a {type(key).__name__}, no name and no small number; do not trust it"
            )
    stack[-1].update(zip(items[::2], items[1::2], strict=True))


def _ordered_dict() -> dict[Any, Any]:
    return {}


def _size(sizes: Any) -> tuple[int, ...]:
    """The sizes or strides of a tensor, checked."""
    if not isinstance(sizes, list | tuple) or len(sizes) > MOST_DIMENSIONS or not all(type(n) is int and 0 <= n < 2**63 for n in sizes):
        raise ValueError("a tensor's sizes are none")
    return tuple(sizes)


def _tensor(storage: Storage, offset: int, size: Any, stride: Any, requires_grad: Any, hooks: Any, metadata: Any = None) -> Tensor:
    size, stride = _size(size), _size(stride)
    if not isinstance(storage, Storage) or type(offset) is not int or offset < 0 or len(size) != len(stride):
        raise ValueError("a tensor has no storage or no place in it")
    if not representable(size):
        raise ValueError(f"a tensor of {list(size)} is no model's")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if 0 not in size and last >= len(storage.values):
        raise ValueError(f"a tensor of {list(size)} needs {last + 1} values of a storage of {len(storage.values)}")
    return mark(storage.values[offset:].as_strided(size, stride))


def _tensor_of_bytes(
    storage: Storage, offset: int, size: Any, stride: Any, requires_grad: Any, hooks: Any, dtype: Any, metadata: Any = None
) -> Tensor:
    if dtype not in NEWER.values() or not isinstance(storage, Storage) or storage.values.dtype != torch.uint8:
        raise ValueError("a tensor of bytes has no dtype that is known here")
    return _tensor(Storage(storage.values.view(dtype)), offset, size, stride, requires_grad, hooks, metadata)


def _parameter(data: Tensor, requires_grad: Any = False, hooks: Any = None) -> Tensor:
    if not isinstance(data, Tensor):
        raise ValueError("a parameter is no tensor")
    return data
