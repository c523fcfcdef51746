"""wgmma: products of a warpgroup's 64 rows with a matrix in shared memory, which run beside its threads; and setmaxnreg.

ISA, "Asynchronous warpgroup level matrix instructions". A product is carried out when its group is waited for, as late as may be. Until
then nobody touches its results, writes its a, or writes its b; and what other instructions have touched of its registers has to be fenced
before it begins. Products are exact, added in float64 and rounded once each, as those of mma.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .descriptors import DEPTH, chunks, conflicts
from .matrices import A_COLUMN, A_ROW, elements
from .memory import FaultError
from .operands import Array, Execute, Mask, Operands, Ready, condition, instruction
from .parse import parts
from .shared import LANES

if TYPE_CHECKING:
    from .machine import Machine

WARPGROUP_THREADS = 128
ROWS = 64
_REGISTER_FILE, _MOST_REGISTERS = 65536, 248
_LANE = np.arange(WARPGROUP_THREADS)[:, None]
_ROW = 16 * (_LANE // LANES) + _LANE % LANES // 4


@dataclass
class Product:
    d: tuple[int, ...]
    """Registers."""
    registers_of_a: frozenset[int]
    a: Array
    """[64, 16]."""
    places: Array
    """Of the chunks of b in shared memory, as `chunks` has them."""
    transposed: bool
    adds: bool
    element: str


def registers_at_launch(threads: int) -> int:
    """Of each thread, where launch bounds ask for one block on a multiprocessor."""
    return min(_REGISTER_FILE // threads // 8 * 8, _MOST_REGISTERS)


class Warpgroup:
    def __init__(self, threads: Array, registers: int) -> None:
        """registers: numbers of those that products use, [registers]."""
        self.threads = threads
        self.touched = np.ones((registers, WARPGROUP_THREADS), bool)
        """Since the last fence, by other instructions."""
        self.open: list[Product] = []
        self.groups: deque[list[Product]] = deque()

    def under_way(self) -> Iterable[Product]:
        for group in self.groups:
            yield from group
        yield from self.open


class Warpgroups:
    def __init__(self, blocks: int, threads: int, of_products: frozenset[int]) -> None:
        """threads: of a block; where those are not whole warpgroups there are none. of_products: registers that some product uses."""
        self._index = {number: index for index, number in enumerate(sorted(of_products))}
        whole = blocks * threads if threads % WARPGROUP_THREADS == 0 else 0
        places = np.arange(whole).reshape(-1, WARPGROUP_THREADS)
        self._groups = [Warpgroup(place, len(of_products)) for place in places]
        self._block_threads, self._at_launch = threads, registers_at_launch(threads)
        self._registers = np.full(len(places), self._at_launch)
        """Of each thread of each warpgroup."""
        self._multiplying = np.full(blocks, -1)
        """In each block the first thread of the warpgroup that has begun the last product."""

    def of(self, threads: Array) -> list[Warpgroup]:
        return [self._groups[number] for number in np.unique(threads // WARPGROUP_THREADS)] if self._groups else []

    def granted(self, threads: Array, wanted: int) -> Array:
        """For each thread whether its warpgroup can have so many registers of what its block has left, one warpgroup after the other."""
        per_block = self._block_threads // WARPGROUP_THREADS
        left = per_block * self._at_launch - self._registers.reshape(-1, per_block).sum(1)
        numbers = threads // WARPGROUP_THREADS
        granted = []
        for number in np.unique(numbers):
            more = wanted - self._registers[number]
            if more <= left[number // per_block]:
                left[number // per_block] -= more
                granted.append(number)
        return np.isin(numbers, granted)

    def set_registers(self, threads: Array, wanted: int, more: bool) -> None:
        numbers = np.unique(threads // WARPGROUP_THREADS)
        now = self._registers[numbers]
        if (now > wanted).any() if more else (now < wanted).any():
            raise FaultError(int(threads[0]), f"a warpgroup has {now[0]} registers a thread and asks for {wanted}")
        self._registers[numbers] = wanted

    # ---- registers of products ----

    def touch(self, reads: frozenset[int], writes: frozenset[int], threads: Array) -> None:
        """Another instruction does, of those that products use."""
        for group in self.of(threads):
            for product in group.under_way():
                if not (reads | writes).isdisjoint(product.d) or not writes.isdisjoint(product.registers_of_a):
                    raise FaultError(int(threads[0]), "registers of a product under way are touched")
            lanes = threads[(threads >= group.threads[0]) & (threads <= group.threads[-1])] - group.threads[0]
            for number in reads | writes:
                group.touched[self._index[number], lanes] = True

    def fence(self, threads: Array) -> None:
        for group in self.of(threads):
            group.touched[:] = False

    # ---- products ----

    def begin(self, m: Machine, group: Warpgroup, product: Product) -> None:
        for registers in (product.d, product.registers_of_a):
            late = group.touched[[self._index[number] for number in registers]].any(0)
            if late.any():
                raise FaultError(group.threads[late][0], "registers of a product were touched and no fence followed")
        for other in group.under_way():
            if not product.registers_of_a.isdisjoint(other.d) or (other.d != product.d and not set(other.d).isdisjoint(product.d)):
                raise FaultError(group.threads[0], "a product takes results of another under way")
        m.shared.begin_product(group.threads, product.places.ravel())
        group.open.append(product)
        first = group.threads[0]
        m.counts["warpgroup_turns"] += int(self._multiplying[first // self._block_threads] != first)
        self._multiplying[first // self._block_threads] = first

    def close_group(self, threads: Array) -> None:
        for group in self.of(threads):
            group.groups.append(group.open)
            group.open = []

    def wait(self, m: Machine, threads: Array, pending: int) -> None:
        """Until no more than the `pending` youngest groups are under way."""
        for group in self.of(threads):
            sums: dict[tuple[int, ...], Array] = {}
            while len(group.groups) > pending:
                for product in group.groups.popleft():
                    if product.d not in sums:
                        sums[product.d] = _values(m, group.threads, product.d)
                    sums[product.d] = _carried_out(m, product, sums[product.d])
                    m.shared.end_product(group.threads, product.places.ravel())
            for d, total in sums.items():
                _set_values(m, group.threads, d, total)
        m.shared.meet_products(threads)

    def check_none(self, threads: Array) -> None:
        """That these threads, which end, have waited for theirs."""
        for group in self.of(threads):
            if any(group.under_way()):
                raise FaultError(group.threads[0], "products that nobody waits for: the thread ends")


def fragment(columns: int) -> tuple[Array, Array]:
    """Row and column of each element of d that a thread has, [128, columns / 2]."""
    i = np.arange(columns // 2)
    return _ROW + 8 * (i // 2 % 2), 8 * (i // 4) + _LANE % 4 * 2 + (i & 1)


def _values(m: Machine, threads: Array, d: tuple[int, ...]) -> Array:
    """The matrix that registers hold, [64, columns]."""
    matrix = np.empty((ROWS, 2 * len(d)), np.float32)
    matrix[fragment(2 * len(d))] = np.stack([m.registers[number].view(np.float32)[threads] for number in d], -1)
    return matrix


def _set_values(m: Machine, threads: Array, d: tuple[int, ...], matrix: Array) -> None:
    for number, value in zip(d, matrix[fragment(2 * len(d))].T, strict=True):
        values = m.registers[number].copy()
        values[threads] = np.ascontiguousarray(value).view(values.dtype)
        m.registers[number] = values


def _carried_out(m: Machine, product: Product, total: Array) -> Array:
    chunk = m.shared.bytes[product.places[..., None] + np.arange(16)]
    b = elements(chunk.view(np.uint32), product.element).reshape(product.places.shape[0], -1)
    right = b if product.transposed else b.T
    m.counts["warpgroup_products"] += WARPGROUP_THREADS // LANES
    m.counts["bank_conflicts"] += conflicts(product.places, product.transposed)
    return (np.matmul(product.a, right) + (total if product.adds else 0)).astype(np.float32)


@instruction(r"wgmma\.mma_async\.sync\.aligned\.m64n(\d+)k16\.f32\.(bf16|f16)\.(bf16|f16)")
def product(x: Operands, size: str, element: str, other: str) -> Execute:
    columns = int(size)
    d, reads = tuple(x.number(name) for name in parts(x[0])), [x.read(name, "b32") for name in parts(x[1])]
    registers_of_a = frozenset(x.number(name) for name in parts(x[1]))
    descriptor, adds = x.read(x[2], "b64"), x.read(x[3], "pred")
    if element != other or (columns % 8, len(d), len(reads), len(x)) != (0, columns // 2, 4, 7) or x[6] not in ("0", "1"):
        raise x.error("not the operands of wgmma with a in registers")
    if (x[4], x[5]) != ("1", "1"):
        raise x.error("a sign of a or b is not known")

    def execute(m: Machine, mask: Mask) -> None:
        words, descriptors, add = np.stack([m.spread(read(m)) for read in reads], -1), m.spread(descriptor(m)), m.spread(adds(m))
        for group in m.warpgroups.of(m.active(mask)):
            threads = group.threads
            for operand in (descriptors, add):
                if (operand[threads] != operand[threads[0]]).any():
                    raise FaultError(int(threads[0]), "threads of a warpgroup name different matrices")
            a = np.empty((ROWS, DEPTH))
            a[np.tile(A_ROW, (4, 1)) + 16 * (_LANE // LANES), np.tile(A_COLUMN, (4, 1))] = elements(words[threads], element)
            addresses = chunks(int(descriptors[threads[0]]), columns, x[6] == "1")
            flat = addresses.ravel()
            places = m.shared.places(np.full(len(flat), threads[0]), flat, 16).reshape(addresses.shape)
            m.warpgroups.begin(m, group, Product(d, registers_of_a, a, places, x[6] == "1", bool(add[threads[0]]), element))

    return execute


@instruction(r"wgmma\.fence\.sync\.aligned")
def fence(x: Operands) -> Execute:
    return lambda m, mask: m.warpgroups.fence(m.active(mask))


@instruction(r"wgmma\.commit_group\.sync\.aligned")
def close_group(x: Operands) -> Execute:
    return lambda m, mask: m.warpgroups.close_group(m.active(mask))


@instruction(r"wgmma\.wait_group\.sync\.aligned")
def wait_group(x: Operands) -> Execute:
    pending = int(x[0])
    return lambda m, mask: m.warpgroups.wait(m, m.active(mask), pending)


# ---- registers that move between warpgroups ----


_REGISTERS = r"setmaxnreg\.(inc|dec)\.sync\.aligned\.u32"


@condition(_REGISTERS)
def registers_left(x: Operands, direction: str) -> Ready:
    """More have to have been given back by others of the block."""
    wanted = int(x[0])
    return lambda m, threads: m.warpgroups.granted(threads, wanted) if direction == "inc" else np.ones(len(threads), bool)


@instruction(_REGISTERS)
def set_registers(x: Operands, direction: str) -> Execute:
    wanted = int(x[0])
    if wanted % 8 != 0 or not 24 <= wanted <= 256:
        raise x.error("registers come by 8, from 24 to 256")
    return lambda m, mask: m.warpgroups.set_registers(m.active(mask), wanted, direction == "inc")
