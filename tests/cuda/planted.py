"""Bugs to plant in the CUDA kernels, and the check that must find each. A mutation is a change of the source, which is then compiled and
emulated on a few small cases. The check is a report of the emulator, or `numbers`: the rule of rule.py, the mass, or the bank conflicts."""

from __future__ import annotations

import itertools
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import test_emulated_addresses as addresses
import test_emulated_fp8 as casts
import test_emulated_rows as rows
import torch
from batched import NOT_THERE, BatchedAttention, compare
from commands import output_of
from emulated import LIBRARY, ROOT, SIMT, AbiError, Emulated
from rule import check, fp64
from test_emulated_attention import CudaAttention, check_tiles_one_after_another, check_turns
from test_emulated_fp8 import Fp8Attention

KERNELS = ROOT / "csrc" / "cuda"
FLAGS = ["-xc++", "-std=c++17", "-O1", "-fno-thread-jumps", "-ffp-contract=off", "-fsanitize=thread", "-fPIC", "-fvisibility=hidden"]


@dataclass(frozen=True)
class Mutation:
    name: str
    old: str
    new: str
    finds: str
    """Regular expression for the report."""
    file: str = "frame_attention.cuh"
    kernel: str = "frame_attention"
    probe: bool = False
    batched: bool = False
    """Whether only calls with a batch must find it."""
    also: tuple[str, str, str] | None = None
    """A second change: file, old, new."""
    of_launch: bool = False
    """Whether the bug is in the launcher, which then can choose between both tile sizes of a kernel, with the probe and without."""


NOT_ORDERED = "race: .* are not ordered"
UNDER_WAY = "an access and a copy under way"
WRONG = "numbers|not finite|outside"


def compile_mutant(mutation: Mutation, objects: Path, into: Path) -> Emulated:
    """The emulated half with one changed kernel of attention; the others are already compiled."""
    sources = Path(shutil.copytree(KERNELS, into / "cuda"))
    for file, old, new in ((mutation.file, mutation.old, mutation.new), *([mutation.also] if mutation.also else [])):
        changed = sources / file
        text = changed.read_text()
        assert text.count(old) == 1, f"{mutation.name}: what it changes is there {text.count(old)} times"
        changed.write_text(text.replace(old, new))
    unit = sources / f"{mutation.kernel}.cu"
    # One kernel of attention is enough.
    if mutation.kernel in ("frame_attention", "frame_attention_fp8"):
        unit = sources / "frame_attention.cu"
        stored, keys, dtype = ("Bf16", 64, "bfloat16") if mutation.kernel == "frame_attention" else ("Fp8", 32, "float8_e4m3fn")
        kernel = f"frame_attention_kernel<Bf16, {stored}, 128, {keys}, {str(mutation.probe).lower()}>"
        both = f"{{{kernel}, {kernel}}}"
        one = f"kChoices[] = {{{{DType::bfloat16, DType::{dtype}, 128, {{{both}, {both}}}}}}};"
        if mutation.of_launch:
            one = "kChoices[] = {choice<Bf16, 128>(DType::bfloat16)};"
        text, count = re.subn(r"kChoices\[\] = .*?;", one, unit.read_text(), flags=re.DOTALL)
        assert count == 1
        unit.write_text(text)
    elif mutation.kernel == "frame_attention_sm90":
        kernel = "frame_attention_sm90_kernel<Element, {}>"
        chosen = f"probe ? {kernel.format('true')} : {kernel.format('false')}"
        text = unit.read_text()
        assert chosen in text and "kernel_of<Fp16>" in text
        one = chosen if mutation.of_launch else kernel.format(str(mutation.probe).lower())
        unit.write_text(text.replace("kernel_of<Fp16>", "kernel_of<Bf16>").replace(chosen, one))
    csrc = ROOT / "csrc"
    output_of("g++", *FLAGS, f"-I{csrc}", f"-I{csrc / 'include'}", f"-I{SIMT}", f"-I{sources}", "-c", unit, "-o", into / "mutant.o")
    others = [path for path in objects.iterdir() if path.name != f"{unit.name}.o"]
    output_of("g++", "-shared", into / "mutant.o", *others, "-o", into / "liblolrt_cuda.so")
    return Emulated(Path(shutil.copy(LIBRARY, into)))


def attend(cuda: Emulated, probe: bool, rise: float, page_tokens: int, kind: type[CudaAttention] = CudaAttention) -> None:
    bias = rise * torch.arange(3.0)[:, None].repeat(1, 2)
    case = kind(torch.bfloat16, dim=128, tokens=40, page_tokens=page_tokens, pages=3, frames=2, heads=2, bias=bias, cuda=cuda)
    cuda.counts()
    out, mass = case.run(probe=probe)
    ref, ref_mass = case.oracle()
    assert torch.isfinite(out).all(), "not finite"
    check(out, case.torch(), ref, case.dim + case.pages * case.page_tokens)
    assert mass is None or np.abs(fp64(mass) - ref_mass).max() <= 2e-2, "mass"
    conflicts = cuda.counts()["bank_conflicts"]
    assert conflicts == 0, f"{conflicts} bank conflicts"


def attend_beside_a_large_bias(cuda: Emulated) -> None:
    bias = torch.tensor([[torch.finfo(torch.float32).min] * 2, [0.0] * 2])
    case = CudaAttention(torch.bfloat16, dim=128, tokens=9, page_tokens=20, pages=2, bias=bias, cuda=cuda)
    assert torch.isfinite(case.run()[0]).all(), "not finite"


def attend_in_batches(cuda: Emulated, probe: bool, page_tokens: int, table: list[list[int]]) -> None:
    compare(BatchedAttention(cuda, table=table, page_tokens=page_tokens), probes=(probe,))


def last_step(cuda: Emulated) -> None:
    cuda.settings(last_blocks=1)
    addresses.test_a_sampler_step_of_more_elements(cuda)


def cases(cuda: Emulated, kernel: str, probe: bool, batched: bool) -> Iterator[Callable[[], None]]:
    """Raises AbiError or AssertionError if something is wrong."""
    none = NOT_THERE
    if batched:
        yield partial(attend_in_batches, cuda, probe, 20, [[2, none, 1], [none, 0, 2], [1, 2, none]])
        yield partial(attend_in_batches, cuda, probe, 260, [[1, none, 2], [0, 1, 0]])
    elif kernel == "frame_attention":
        for rise, page_tokens in ((0.0, 77), (6.0, 77), (0.0, 3), (1.0, 300), (300.0, 300), (-300.0, 300)):
            yield partial(attend, cuda, probe, rise, page_tokens)
        yield partial(attend_beside_a_large_bias, cuda)
        yield partial(addresses.compare, cuda, "frame_attention")
    elif kernel == "frame_attention_fp8":
        for rise, page_tokens in ((0.0, 77), (6.0, 77), (0.0, 3), (1.0, 300)):
            yield partial(attend, cuda, probe, rise, page_tokens, Fp8Attention)
    elif kernel == "kv_write_fp8":
        yield partial(casts.test_kv_write_is_torchs_cast, cuda, True, 150, 3, 10, 2)
        yield partial(casts.test_every_bfloat16_is_cast_as_by_torch, cuda, -100)
        yield partial(casts.test_what_has_no_scale_is_nan, cuda, torch.nan)
        yield partial(addresses.compare, cuda, "kv_write of 8 bits")
    elif kernel == "frame_attention_sm90":
        for rise, page_tokens in ((0.0, 250), (6.0, 130), (0.0, 3), (1.0, 300)):
            yield partial(attend, cuda, probe, rise, page_tokens)
        yield partial(check_turns, cuda)
        yield partial(check_tiles_one_after_another, cuda)
        yield partial(addresses.compare, cuda, "frame_attention")
    elif kernel == "sampler_step":
        yield partial(rows.test_sampler_step_is_the_published_one, cuda, 300, True)
        yield partial(last_step, cuda)
    else:
        if kernel == "kv_write":
            yield partial(rows.test_kv_write_matches_the_oracle, cuda, torch.bfloat16, True, 5, 4, 128, 10, 44)
        elif kernel == "modulated_norm":
            yield partial(rows.test_modulated_norm_matches_the_oracle, cuda, torch.bfloat16, True, True, 2, 9, 50)
        else:
            for channels, offset in ((70, 1), (264, 4)):
                yield partial(rows.test_gelu_matches_the_oracle, cuda, torch.bfloat16, 3, 7, channels, offset)
        yield partial(addresses.compare, cuda, kernel)


def found(cuda: Emulated, kernel: str = "frame_attention", probe: bool = False, batched: bool = False) -> str:
    for seed, case in itertools.product((0, 1), cases(cuda, kernel, probe, batched)):
        cuda.settings(seed, 900 if kernel == "frame_attention_sm90" else 800, multiprocessors=3)
        try:
            case()
        except AbiError as error:
            return str(error)
        except AssertionError as error:
            return f"numbers: {error}"
    return ""


def assert_found(mutation: Mutation, library: Emulated, into: Path) -> None:
    """library: the unchanged kernels, from which all others are taken."""
    mutant = compile_mutant(mutation, library.path.with_name("objects"), into)
    report = found(mutant, mutation.kernel, mutation.probe, mutation.batched)
    assert re.search(mutation.finds, report), f"found: {report or 'nothing'}"
