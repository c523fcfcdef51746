"""GGUF files, the format of llama.cpp: mapped into memory, with the whole header checked first. Tensors in blocks are unpacked on request.

A file consists of "GGUF", a version, the counts of tensors and of fields, the fields (key, type, value), the descriptions of the tensors
(name, sizes with the fastest first, type, offset), and, aligned, the bytes of the tensors. Source: ggml, docs/gguf.md.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from lolrt.checkpoint.ggml import BLOCKS, PLAIN, TYPES
from lolrt.checkpoint.mapped import map_file, mark, representable, view
from lolrt.checkpoint.packed import Packed, Weight
from lolrt.errors import CheckpointError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ARCHITECTURE, ALIGNMENT, SPLIT = "general.architecture", "general.alignment", "split.count"
# The field with the original shape of a tensor that is stored in rows of another length (ComfyUI-GGUF).
ORIGINAL_SHAPE = "comfy.gguf.orig_shape."

# The longest known header holds UMT5's tokenizer, which takes 7 MB.
MOST_HEADER_BYTES = 64_000_000
MOST_TEXTS = 1_000_000
MOST_DIMENSIONS = 8

# A tensor's sizes, with the fastest last, its type and its offset.
Description = tuple[tuple[int, ...], int, int]

# Tensors of ggml have four sizes at most, and its writer drops outer sizes of 1. So in files of stable-diffusion.cpp the outputs and inputs
# of a convolution over time are one size, and these parameters lack their first size, 1.
GGML_DIMENSIONS = 4
LACK_A_SIZE = ("modulation", "scale_shift_table")

# The types of a field's value, by number, as letters of struct and NumPy. 8 is a text, 9 an array.
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
TEXT, ARRAY = 8, 9

# The names of a T5 encoder's tensors, and transformers' names for them. `BLOCK` has those of a layer.
T5 = {"token_embd": "shared", "enc.output_norm": "encoder.final_layer_norm"}
T5_BLOCK = {
    **{f"attn_{name}": f"layer.0.SelfAttention.{name}" for name in "qkvo"},
    "attn_norm": "layer.0.layer_norm",
    "attn_rel_b": "layer.0.SelfAttention.relative_attention_bias",
    "ffn_gate": "layer.1.DenseReluDense.wi_0",
    "ffn_up": "layer.1.DenseReluDense.wi_1",
    "ffn_down": "layer.1.DenseReluDense.wo",
    "ffn_norm": "layer.1.layer_norm",
}


class GGUF(NamedTuple):
    fields: Mapping[str, Any]
    """The fields by key: numbers, texts, arrays of numbers, lists of texts."""
    tensors: Mapping[str, Weight]
    """The tensors, mapped or in ggml's blocks, under the names of the file; those of a T5 encoder under transformers' names."""

    @property
    def architecture(self) -> str:
        """The architecture that the file names; "" if it names none."""
        return str(self.fields.get(ARCHITECTURE, ""))


class Blocks(Packed):
    """A weight in ggml's blocks, stored in rows of its last dimension or of another length."""

    def __init__(self, shape: tuple[int, ...], kind: str, data: Tensor) -> None:
        """data: all blocks, one after the other, uint8."""
        self.shape, self.form, self.stored = shape, f"{kind} of ggml", (data,)
        self._blocks = BLOCKS[kind]

    def rows(self, first: int, last: int) -> Tensor:
        columns = math.prod(self.shape[1:])
        begin, end = first * columns, last * columns
        block, past = begin // self._blocks.values, -(-end // self._blocks.values)
        data = self.stored[0][block * self._blocks.bytes : past * self._blocks.bytes]
        values = self._blocks.unpack(data.view(-1, self._blocks.bytes)).flatten()
        skipped = block * self._blocks.values
        return values[begin - skipped : end - skipped].view(last - first, columns)


def read_gguf(path: Path) -> GGUF:
    """All fields and tensors of a file. Raises `lolrt.CheckpointError` for a file that does not exist, is damaged or truncated, has
    another version, or holds tensors of a type that is not supported."""
    data = map_file(path)
    return _Reader(path, data).read()


class _Reader:
    def __init__(self, path: Path, data: Tensor) -> None:
        self._path, self._data = path, data
        self._at = self._texts = 0
        self._header = data[:MOST_HEADER_BYTES].numpy().data

    def _damaged(self, reason: str) -> CheckpointError:
        return CheckpointError(f"{self._path} is damaged or no GGUF file ({reason}); fetch it again")

    def read(self) -> GGUF:
        if bytes(self._take(4)) != MAGIC:
            raise self._damaged("it does not begin with GGUF")
        version = self._number("I")
        if version not in VERSIONS:
            other = ", as of the other byte order" if version % (1 << 16) == 0 else ""
            raise CheckpointError(f"{self._path} is a GGUF file of version {version}{other}; expected {' or '.join(map(str, VERSIONS))}")
        n_tensors, n_fields = self._number("Q"), self._number("Q")
        fields: dict[str, Any] = {}
        for _ in range(n_fields):
            key = self._text()
            if key in fields:
                raise self._damaged(f"its field {key[:60]!r} comes twice")
            fields[key] = self._value(self._number("I"))
        if type(parts := fields.get(SPLIT, 0)) is not int or parts > 1:
            raise CheckpointError(f"{self._path} is one of {str(parts)[:20]} parts of a file; join them with gguf-split --merge")
        described: dict[str, Description] = {}
        for _ in range(n_tensors):
            name = self._text()
            if name in described:
                raise self._damaged(f"its tensor {name[:60]!r} comes twice")
            described[name] = self._description(name)
        alignment = fields.get(ALIGNMENT, 32)
        if type(alignment) is not int or not 0 < alignment <= 1 << 16:
            raise self._damaged(f"its alignment is {str(alignment)[:60]}")
        start = -(-self._at // alignment) * alignment
        tensors: dict[str, Weight] = {}
        end = 0
        for name, (sizes, kind, offset) in sorted(described.items(), key=lambda item: item[1][2]):
            if offset < end:
                raise self._damaged(f"its tensor {name[:60]!r} overlaps the one before it")
            shape = self._shape(name, sizes, fields) or _whole(name, sizes, described)
            whole = _renamed(name)
            if whole in tensors:
                raise self._damaged(f"its tensor {whole[:60]!r} comes twice, as {name[:60]!r} too")
            tensors[whole], end = self._tensor(name, sizes, shape, kind, start, offset)
        return GGUF(fields, tensors)

    def _take(self, count: int) -> memoryview:
        taken = self._header[self._at : self._at + count]
        if len(taken) < count:
            whole = len(self._header) == len(self._data)
            raise self._damaged("it ends in its header" if whole else f"its header takes more than {MOST_HEADER_BYTES:,} bytes")
        self._at += count
        return taken

    def _number(self, letter: str) -> Any:
        return struct.unpack(f"<{letter}", self._take(struct.calcsize(f"<{letter}")))[0]

    def _text(self) -> str:
        self._texts += 1
        if self._texts > MOST_TEXTS:
            raise self._damaged(f"its header has more than {MOST_TEXTS:,} texts")
        try:
            return str(self._take(self._number("Q")), "utf-8")
        except UnicodeDecodeError:
            raise self._damaged("a text of its header is no UTF-8") from None

    def _value(self, kind: int) -> Any:
        if kind in NUMBERS:
            return self._number(NUMBERS[kind])
        if kind == TEXT:
            return self._text()
        if kind == ARRAY:
            inner, count = self._number("I"), self._number("Q")
            if inner == TEXT:
                return [self._text() for _ in range(count)]
            if inner in NUMBERS:
                dtype = np.dtype(f"<{NUMBERS[inner]}")
                return np.frombuffer(self._take(count * dtype.itemsize), dtype).copy()
            kind = inner
        raise self._damaged(f"a field of it has type {kind}")

    def _description(self, name: str) -> Description:
        count = self._number("I")
        if count > MOST_DIMENSIONS:
            raise self._damaged(f"its tensor {name[:60]!r} has {count} dimensions")
        sizes = tuple(self._number("Q") for _ in range(count))[::-1]
        if not representable(sizes):
            raise self._damaged(f"its tensor {name[:60]!r} has shape {list(sizes)}")
        return sizes, self._number("I"), self._number("Q")

    def _tensor(
        self, name: str, sizes: tuple[int, ...], shape: tuple[int, ...], number: int, start: int, offset: int
    ) -> tuple[Weight, int]:
        """A tensor, and the position where its bytes end."""
        kind = TYPES.get(number)
        if kind is None:
            raise self._damaged(f"its tensor {name[:60]!r} is of type {number}, which ggml does not have")
        if kind not in BLOCKS and kind not in PLAIN:
            told = f"{self._path} holds {name[:60]!r} in {kind} of ggml, which is not read here"
            raise CheckpointError(f"{told}; take a file in {', '.join([*PLAIN, *BLOCKS])}")
        values = math.prod(sizes)
        if kind in PLAIN:
            count = values * PLAIN[kind].itemsize
        else:
            block = BLOCKS[kind]
            if not sizes or sizes[-1] % block.values:
                raise self._damaged(f"its tensor {name[:60]!r} has shape {list(sizes)}, and {kind} goes by blocks of {block.values}")
            count = values // block.values * block.bytes
        data = self._data[start + offset : start + offset + count]
        if len(data) < count or offset > len(self._data):
            raise self._damaged(f"its tensor {name[:60]!r} ends behind the end of the file")
        if kind in PLAIN:
            return mark(view(data, PLAIN[kind]).view(shape)), offset + count
        return Blocks(shape, kind, mark(data)), offset + count

    def _shape(self, name: str, sizes: tuple[int, ...], fields: Mapping[str, Any]) -> tuple[int, ...] | None:
        """The shape of a tensor that a field gives; None if there is none."""
        found = fields.get(f"{ORIGINAL_SHAPE}{name}")
        if found is None:
            return None
        original = found.tolist() if isinstance(found, np.ndarray) and found.size <= MOST_DIMENSIONS else [None]
        if not all(type(n) is int and n > 0 for n in original) or math.prod(original) != math.prod(sizes):
            raise self._damaged(f"its tensor {name[:60]!r} has shape {list(sizes)}, and was to have {str(found)[:60]}")
        return tuple(original)


def _whole(name: str, sizes: tuple[int, ...], described: Mapping[str, Description]) -> tuple[int, ...]:
    """The shape of a tensor that has these sizes in ggml. The bias of a convolution shows the number of its outputs."""
    if len(sizes) == GGML_DIMENSIONS and name.endswith(".weight"):
        outputs = described.get(f"{name.removesuffix('weight')}bias", ((), 0, 0))[0]
        if len(outputs) == 1 and 0 < outputs[0] < sizes[0] and sizes[0] % outputs[0] == 0:
            return (*outputs, sizes[0] // outputs[0], *sizes[1:])
    return (1, *sizes) if len(sizes) == 2 and name.endswith(LACK_A_SIZE) else sizes


def _renamed(name: str) -> str:
    """transformers' name of a T5 encoder's tensor."""
    module, _, leaf = name.rpartition(".")
    if module in T5:
        return f"{T5[module]}.{leaf}"
    begin, _, inner = module.partition(".blk.")
    number, _, part = inner.partition(".")
    return f"encoder.block.{number}.{T5_BLOCK[part]}.{leaf}" if begin == "enc" and part in T5_BLOCK else name
