"""Instructions on the numbers of one thread. Roundings are those of the ISA, bit by bit, except for ex2.approx, which is taken as exact."""

from __future__ import annotations

import operator
from collections.abc import Callable

import numpy as np

from .operands import TYPES, Array, Execute, Operands, elementwise, instruction

INTEGER = r"([us](?:16|32|64))"
BITS = r"(b(?:16|32|64)|pred)"


def quotient(a: Array, b: Array) -> Array:
    """Rounds towards zero; division by zero, which is not specified, gives all ones."""
    divisor = np.where(b == 0, b.dtype.type(1), b)
    floor = a // divisor
    towards_zero = floor + ((a % divisor != 0) & ((a < 0) != (divisor < 0))).astype(a.dtype)
    return np.where(b == 0, ~b.dtype.type(0), towards_zero)


def remainder(a: Array, b: Array) -> Array:
    """The remainder, with the sign of a; by zero, which is not specified, any value."""
    return a - quotient(a, b) * b


def fused(a: Array, b: Array, c: Array) -> Array:
    """a * b + c rounded once: the product is exact in float64; the sum is rounded to odd there, so that the second rounding is right
    (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums", 2008)."""
    return rounded_to_odd(*sum_and_error(a.astype(np.float64) * b, c.astype(np.float64))).astype(np.float32)


def sum_and_error(a: Array, b: Array) -> tuple[Array, Array]:
    """The rounded sum, and its rounding error."""
    total = a + b
    back = total - a
    return total, (a - (total - back)) + (b - back)


def bf16_bits(x: Array, rounding: str) -> Array:
    bits = x.view(np.uint32)
    if rounding == "rn":
        bits = bits + (np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1)))
    return np.where(np.isnan(x), np.uint32(0x7FFF), bits >> np.uint32(16))


def f16_bits(x: Array, rounding: str) -> Array:
    near = x.astype(np.float16)
    bits = near.view(np.uint16)
    if rounding == "rz":
        bits = bits - (np.abs(near).astype(np.float32) > np.abs(x))
    return np.where(np.isnan(x), np.uint32(0x7FFF), bits.astype(np.uint32))


def rounded_to_odd(total: Array, error: Array) -> Array:
    """float64, from a sum and its rounding error."""
    bits = total.view(np.int64)
    step = np.where((error > 0) == (total > 0), 1, -1)
    inexact = ((error > 0) | (error < 0)) & (bits & 1 == 0)
    return np.where(inexact, bits + step, bits).view(np.float64)


def fused_bf16(a: Array, b: Array, c: Array) -> Array:
    """The same of pairs of bfloat16, in words; subnormal numbers are numbers."""

    def half(high: bool) -> Array:
        product, addend = (x.astype(np.float64) for x in (value(a, high) * value(b, high).astype(np.float64), value(c, high)))
        x = rounded_to_odd(*sum_and_error(product, addend))
        _, exponent = np.frexp(np.where(np.isfinite(x), x, 0))
        quantum = np.ldexp(1.0, np.maximum(exponent - 1, -126) - 7)
        return bf16_bits((np.rint(x / quantum) * quantum).astype(np.float32), "rz")

    def value(word: Array, high: bool) -> Array:
        return (word & np.uint32(0xFFFF0000) if high else word << np.uint32(16)).view(np.float32)

    return half(True) << np.uint32(16) | half(False)


def permuted_bytes(a: Array, b: Array, selector: Array) -> Array:
    """Selects bytes of b:a; with the fourth bit of a selector, all bits are the sign of the byte."""
    both = a.astype(np.uint64) | b.astype(np.uint64) << np.uint64(32)
    result = np.zeros(np.broadcast(a, b, selector).shape, np.uint32)
    for i in range(4):
        choice = (selector >> np.uint32(4 * i) & np.uint32(15)).astype(np.uint64)
        byte = (both >> (choice & np.uint64(7)) * np.uint64(8) & np.uint64(0xFF)).astype(np.uint32)
        byte = np.where(choice & np.uint64(8), np.where(byte >> np.uint32(7), np.uint32(0xFF), np.uint32(0)), byte)
        result = result | byte << np.uint32(8 * i)
    return result


def exp2(x: Array, flush: bool) -> Array:
    tiny = np.finfo(np.float32).tiny
    y = np.exp2((np.where(np.abs(x) < tiny, np.float32(0), x) if flush else x).astype(np.float64)).astype(np.float32)
    return np.where(y < tiny, np.float32(0), y) if flush else y


@instruction(rf"(add|sub|mul\.lo|div|rem|min|max)\.{INTEGER}")
def integers(x: Operands, name: str, kind: str) -> Execute:
    functions = {"add": np.add, "sub": np.subtract, "mul.lo": np.multiply, "div": quotient, "rem": remainder}
    functions |= {"min": np.minimum, "max": np.maximum}
    return elementwise(x, functions[name], kind, kind, kind)


@instruction(rf"mad\.lo\.{INTEGER}")
def product_and_sum(x: Operands, kind: str) -> Execute:
    return elementwise(x, lambda a, b, c: a * b + c, kind, kind, kind, kind)


@instruction(r"mul\.wide\.([us])(16|32)")
def wide_product(x: Operands, sign: str, bits: str) -> Execute:
    kind, wide = sign + bits, f"{sign}{2 * int(bits)}"
    return elementwise(x, lambda a, b: a.astype(TYPES[wide]) * b.astype(TYPES[wide]), wide, kind, kind)


@instruction(r"neg\.(s16|s32|s64|f32)")
def negative(x: Operands, kind: str) -> Execute:
    return elementwise(x, np.negative, kind, kind)


@instruction(r"abs\.f32")
def magnitude(x: Operands) -> Execute:
    return elementwise(x, np.abs, "f32", "f32")


# .rn is also the default of add, sub and mul; the only difference is that the compiler may not fuse them.
@instruction(r"(add|sub|mul)(?:\.rn)?\.(f32|f64)")
def floats(x: Operands, name: str, kind: str) -> Execute:
    return elementwise(x, {"add": np.add, "sub": np.subtract, "mul": np.multiply}[name], kind, kind, kind)


@instruction(r"div\.rn\.f32")
def float_quotient(x: Operands) -> Execute:
    return elementwise(x, np.divide, "f32", "f32", "f32")


# Of a number and a NaN, the result is the number.
@instruction(r"(min|max)\.f32")
def float_extreme(x: Operands, name: str) -> Execute:
    return elementwise(x, np.fmin if name == "min" else np.fmax, "f32", "f32", "f32")


@instruction(r"fma\.rn\.f32")
def fused_product(x: Operands) -> Execute:
    return elementwise(x, fused, "f32", "f32", "f32", "f32")


@instruction(r"fma\.rn\.bf16x2")
def fused_pairs(x: Operands) -> Execute:
    return elementwise(x, fused_bf16, "b32", "b32", "b32", "b32")


@instruction(r"prmt\.b32")
def permutation(x: Operands) -> Execute:
    return elementwise(x, permuted_bytes, "b32", "b32", "b32", "b32")


@instruction(r"(rcp|sqrt)\.rn\.f32")
def float_function(x: Operands, name: str) -> Execute:
    return elementwise(x, np.sqrt if name == "sqrt" else lambda a: np.float32(1) / a, "f32", "f32")


@instruction(r"ex2\.approx(\.ftz)?\.f32")
def exponential(x: Operands, flush: str | None) -> Execute:
    return elementwise(x, lambda a: exp2(a, bool(flush)), "f32", "f32")


@instruction(rf"(and|or|xor)\.{BITS}")
def logic(x: Operands, name: str, kind: str) -> Execute:
    return elementwise(x, {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}[name], kind, kind, kind)


@instruction(rf"not\.{BITS}")
def inverse(x: Operands, kind: str) -> Execute:
    return elementwise(x, np.invert, kind, kind)


@instruction(r"(shl\.b|shr\.u|shr\.s)(16|32|64)")
def shift(x: Operands, name: str, bits: str) -> Execute:
    """A shift by more than the width is one by the width."""
    kind, last = name[-1] + bits, int(bits) - 1
    dtype = TYPES[kind]
    move = np.left_shift if name == "shl.b" else np.right_shift

    def shifted(a: Array, by: Array) -> Array:
        moved = move(a, np.minimum(by, last).astype(dtype))
        return moved if name == "shr.s" else np.where(by > last, dtype.type(0), moved)

    return elementwise(x, shifted, kind, kind, "u32")


@instruction(r"bfi\.b(32|64)")
def inserted_bits(x: Operands, bits: str) -> Execute:
    """Inserts the low bits of a into b: their number is the last operand, their position the one before it."""
    kind = f"b{bits}"
    dtype = TYPES[kind].type

    def insert(a: Array, b: Array, first: Array, count: Array) -> Array:
        ones = np.where(count < int(bits), (dtype(1) << count.astype(dtype)) - dtype(1), ~dtype(0)) << first.astype(dtype)
        return b & ~ones | a << first.astype(dtype) & ones

    return elementwise(x, insert, kind, kind, kind, "u32", "u32")


COMPARISONS: dict[str, Callable[[Array, Array], Array]] = {name: getattr(operator, name) for name in ("eq", "ne", "lt", "le", "gt", "ge")}


@instruction(r"setp\.(eq|ne|lt|le|gt|ge)\.([usb](?:16|32|64))")
def comparison(x: Operands, name: str, kind: str) -> Execute:
    return elementwise(x, COMPARISONS[name], "pred", kind, kind)


# With "u" true where one of them is NaN, else false.
@instruction(r"setp\.(eq|ne|lt|le|gt|ge)(u?)\.f32")
def float_comparison(x: Operands, name: str, unordered: str) -> Execute:
    def compare(a: Array, b: Array) -> Array:
        either_nan = np.isnan(a) | np.isnan(b)
        return np.where(either_nan, bool(unordered), COMPARISONS[name](a, b))

    return elementwise(x, compare, "pred", "f32", "f32")


# Whether one of them is NaN, or none.
@instruction(r"setp\.(nan|num)\.f32")
def nan_comparison(x: Operands, name: str) -> Execute:
    return elementwise(x, lambda a, b: (np.isnan(a) | np.isnan(b)) == (name == "nan"), "pred", "f32", "f32")


@instruction(r"selp\.([usb](?:16|32|64)|f32)")
def select(x: Operands, kind: str) -> Execute:
    return elementwise(x, lambda a, b, predicate: np.where(predicate, a, b), kind, kind, kind, "pred")


@instruction(r"cvt\.([us](?:8|16|32|64))\.([us](?:8|16|32|64))")
def convert_integer(x: Operands, to: str, kind: str) -> Execute:
    return elementwise(x, lambda a: a.astype(TYPES[to]), to, kind)


@instruction(r"cvt\.rn\.f32\.([us](?:16|32|64))")
def convert_to_float(x: Operands, kind: str) -> Execute:
    return elementwise(x, lambda a: a.astype(np.float32), "f32", kind)


# Wider without a rounding, narrower with one.
@instruction(r"cvt\.(f32)\.(f16)|cvt\.(f64)\.(f32)|cvt\.rn\.(f32)\.(f64)")
def convert_float(x: Operands, *kinds: str | None) -> Execute:
    to, kind = filter(None, kinds)
    return elementwise(x, lambda a: a.astype(TYPES[to]), to, kind)


# The first source is the high half.
@instruction(r"cvt\.(rn|rz)\.(bf16|f16)x2\.f32")
def convert_pair(x: Operands, rounding: str, element: str) -> Execute:
    bits = bf16_bits if element == "bf16" else f16_bits
    return elementwise(x, lambda high, low: bits(high, rounding) << np.uint32(16) | bits(low, rounding), "b32", "f32", "f32")
