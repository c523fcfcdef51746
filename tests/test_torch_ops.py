"""The ops as torch users meet them: on plain tensors, under torch.library's own checks, and compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import oracle
import pytest
import torch
from capsules import Capsule

import lolrt
from lolrt import ops


def example(dtype: torch.dtype = torch.float32, pages: int = 5) -> dict[str, torch.Tensor]:
    """q, k, v of 2 frames and some pages of 13 tokens, 3 heads of 64, and rotations by real angles."""
    torch.manual_seed(pages)
    angles = torch.randn(pages, 2, 3, 22)
    return {
        "q": torch.randn(2, 13, 3, 64).to(dtype),
        "k": torch.randn(pages, 13, 3, 64).to(dtype),
        "v": torch.randn(pages, 13, 3, 64).to(dtype),
        "rotation": torch.stack([angles.cos(), angles.sin()], -1),
    }


@pytest.mark.parametrize("dtype, atol", [(torch.float32, 2e-6), (torch.bfloat16, 2e-2)])
def test_attention_on_plain_tensors(dtype, atol):
    """atol: a few roundings of values of order 1 in the dtype; test_ops.py has the sharp rule."""
    tensors = example(dtype)
    bias = torch.randn(5, 3)
    out, mass = lolrt.attention(**tensors, bias=bias, probe=True)
    expected, expected_mass = oracle.frame_attention(*(t.double().numpy() for t in (*tensors.values(), bias)))
    assert out.dtype == dtype and out.shape == (2, 13, 3, 64)
    torch.testing.assert_close(out.double(), torch.from_numpy(expected), atol=atol, rtol=0)
    torch.testing.assert_close(mass.double(), torch.from_numpy(expected_mass), atol=atol, rtol=0)
    assert torch.equal(lolrt.attention(**tensors, bias=bias), out)


def test_attention_without_rotation_is_plain_attention():
    tensors = example()
    q, k, v = tensors["q"], *(tensors[name].flatten(0, 1)[None].expand(2, -1, -1, -1) for name in "kv")
    expected = torch.nn.functional.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v))).transpose(1, 2)
    torch.testing.assert_close(lolrt.attention(q, tensors["k"], tensors["v"], None), expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize(
    "change, hint",
    [
        ({"q": torch.zeros(2, 13, 2, 64)}, "heads"),
        ({"q": torch.zeros(2, 13, 3, 64, dtype=torch.bfloat16)}, "float32"),
        ({"v": torch.zeros(5, 12, 3, 64)}, "v"),
        ({"rotation": torch.zeros(4, 2, 3, 22, 2)}, "rotation"),
        ({"bias": torch.zeros(5, 2)}, "bias"),
    ],
)
def test_shapes_that_do_not_fit_are_told(change, hint):
    with pytest.raises(ValueError, match=hint):
        lolrt.attention(**{**example(), **change})


OPS = [name for name in ops.library.ARGUMENTS if name != "frame_attention_probed"]  # what ops.frame_attention is with mass


def calls() -> dict[str, tuple[Callable[..., Any], dict[str, torch.Tensor], dict[str, Any]]]:
    """Each op with the tensors of numbers that it takes, and its other arguments."""
    heads, rows, row, images = torch.ones(1, 4, 2, 8), torch.ones(1, 4, 16), torch.ones(1, 16), torch.ones(1, 4, 4, 16)
    pages, table = torch.ones(1, ops.page_elements(torch.float32, 4, 2, 8)), torch.zeros(1, dtype=torch.int32)
    filters, bias = ops.pack_convolution(torch.ones(3, 16, 2, 3, 3), torch.ones(3))
    turns = torch.ones(1, 1, 2, 4, 2)
    found: dict[str, tuple[Callable[..., Any], dict[str, torch.Tensor], dict[str, Any]]] = {
        "attention": (lolrt.attention, dict(q=heads, k=heads, v=heads, rotation=turns, bias=torch.zeros(1, 2)), {}),
        "kv_write": (
            ops.kv_write,
            dict(k=heads, v=heads, pages=pages, weight=torch.ones(2, 8), rotation=torch.ones(4, 2, 2)),
            dict(page_table=table),
        ),
        "normalize_queries": (ops.normalize_queries, dict(q=heads, weight=torch.ones(2, 8), rotation=torch.ones(4, 2, 2)), {}),
        "frame_attention": (
            ops.frame_attention,
            dict(q=heads, pages=pages, rotation=turns, bias=torch.zeros(1, 2), mass=torch.zeros(1, 1, 2)),
            dict(page_table=table, page_tokens=4),
        ),
        "modulated_norm": (ops.modulated_norm, dict(x=rows, scale=row, shift=row, residual=rows.clone(), gate=row), {}),
        "gelu": (ops.gelu, dict(x=rows), {}),
        "quantize_rows": (ops.quantize_rows, dict(x=rows), {}),
        "dequantize_rows": (ops.dequantize_rows, dict(x=rows, scale=torch.ones(1, 4), bias=row[0], out=torch.zeros(1, 4, 16)), {}),
        "sampler_step": (ops.sampler_step, dict(sample=rows, velocity=rows, noise=rows), dict(level=0.5)),
        "channel_norm": (ops.channel_norm, dict(x=images, gamma=row[0], out=torch.zeros(1, 6, 6, 16)), dict(silu=True)),
        "conv3d": (
            ops.conv3d,
            dict(x=images, weight=filters, bias=bias, out=torch.zeros(1, 2, 2, 3), past=images, residual=torch.zeros(1, 2, 2, 3)),
            {},
        ),
        "pack_convolution": (ops.pack_convolution, dict(weight=torch.ones(3, 16, 2, 3, 3), bias=torch.ones(3)), {}),
    }
    assert found.keys() == {"attention", "pack_convolution", *OPS}, "every op"
    return found


@pytest.mark.parametrize("name", calls())
def test_gradients_are_not_dropped_in_silence(name: str) -> None:
    """Whichever tensor requires them."""
    op, tensors, others = calls()[name]
    op(**tensors, **others)
    for asking in tensors:
        wanted = {key: x.clone().requires_grad_(key == asking) for key, x in tensors.items()}
        with pytest.raises(ValueError, match=f"^{name} computes no gradients"):
            op(**wanted, **others)
        with torch.no_grad():
            op(**wanted, **others)


@pytest.mark.parametrize("name", calls())
def test_what_is_no_array_is_refused_by_the_name_of_the_argument(name: str) -> None:
    """Whichever argument it is; None is fine where nothing is asked for."""
    op, tensors, others = calls()[name]
    for wrong in tensors:
        for value in (1, "x", [1.0], object()):
            with pytest.raises(TypeError, match=rf"{wrong}\b.*expected"):
                op(**{**tensors, wrong: value}, **others)


WRITTEN = {
    "kv_write": ["pages"], "frame_attention": ["mass"], "modulated_norm": ["x"], "gelu": ["x"], "channel_norm": ["out"], "conv3d": ["out"],
    "dequantize_rows": ["out"],
}  # fmt: skip


@pytest.mark.parametrize("name", OPS)
def test_autograd_learns_what_is_written(name: str) -> None:
    """A product has saved the tensor that the op then changes, so its gradient would be wrong."""
    op, tensors, others = calls()[name]
    factors = {key: torch.ones_like(x, requires_grad=True) for key, x in tensors.items()}
    products = {key: factors[key] * x for key, x in tensors.items()}
    with torch.no_grad():
        op(**tensors, **others)
    for key, product in products.items():
        if key in WRITTEN.get(name, []):
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                product.sum().backward()
        else:
            product.sum().backward()


def model_step(tensors: dict[str, torch.Tensor], pages: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """All ops in sequence, as in a block of the model."""
    page_table = torch.arange(5, dtype=torch.int32)
    ops.kv_write(tensors["k"], tensors["v"], pages, page_table, weight=weight)
    q = ops.normalize_queries(tensors["q"], weight=weight)
    mass = torch.empty(5, 2, 3)
    out = ops.frame_attention(q, pages, page_table, 13, rotation=tensors["rotation"], mass=mass).flatten(2)
    row = torch.ones(1, 192)
    out = ops.modulated_norm(tensors["q"].flatten(2).clone(), row, 0 * row, residual=out, gate=row) + mass.sum()
    ops.gelu(out)
    return ops.sampler_step(out, 0.9, out.flip(0).contiguous(), after=0.5, noise=out.clone())


def test_arrays_of_numpy_are_taken_for_tensors():
    """For each op; those that write in place write into the array."""
    g = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, 5, 3, 64, generator=g)
    weight, rotation, table = torch.rand(3, 64, generator=g), torch.randn(2, 2, 3, 8, 2, generator=g), torch.tensor([2, 0]).int()
    x, row = torch.randn(2, 5, 192, generator=g), torch.rand(1, 192, generator=g)
    pages = torch.zeros(3, ops.page_elements(torch.float32, 5, 3, 64))
    images, (filters, bias) = (
        torch.randn(2, 6, 7, 16, generator=g),
        ops.pack_convolution(torch.randn(4, 16, 1, 3, 3, generator=g), torch.ones(4)),
    )

    def everything(given: Callable[[torch.Tensor], Any]) -> list[Any]:
        own, mass, changed, residual = given(pages), given(torch.zeros(2, 2, 3)), given(x), given(x)
        normed, convolved = given(torch.zeros(2, 8, 9, 16)), given(torch.zeros(2, 4, 5, 4))
        ops.kv_write(given(k), given(v), own, given(table), weight=given(weight))
        ops.gelu(changed)
        return [
            own,
            ops.normalize_queries(given(q), weight=given(weight)),
            ops.frame_attention(given(q), own, given(table), 5, rotation=given(rotation), bias=given(row[:, :6].view(2, 3)), mass=mass),
            mass,
            changed,
            ops.modulated_norm(residual, given(row), given(row), residual=given(x), gate=given(row)),
            residual,
            ops.sampler_step(given(x), 0.9, given(x + 1), after=0.5, noise=given(x - 1)),
            ops.channel_norm(given(images), given(row[0, :16].contiguous()), normed, silu=True),
            ops.conv3d(given(images), given(filters), given(bias), convolved),
            lolrt.attention(given(q), given(k), given(v), given(rotation)),
        ]

    arrays, tensors = everything(lambda t: t.numpy().copy()), everything(torch.clone)
    assert sum(isinstance(array, np.ndarray) for array in arrays) == 6, "those that were given"
    for array, tensor in zip(arrays, tensors, strict=True):
        assert tensor.any() and np.array_equal(array, tensor)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones((1, 4, 16), np.float32)[:, ::-1], "^x: its elements go backwards in memory"),
        (np.ones((1, 4, 16), np.float32)[..., ::-1], "^x: its elements go backwards in memory"),
        (Capsule((1, 4, 8), byte_offset=32), "^x: its data begins within its buffer"),
        (Capsule((2, 4, 8), (2**61, 8, 1)), "^x: no memory holds"),
        (Capsule((2**40, 2**40, 8), (0, 0, 1)), "^x: no memory holds"),
        (Capsule((1, -4, 8)), "^x: no memory holds"),
        (Capsule((1, 4, 8), ndim=2**31 - 1), "^x: expected an array of 0 to 64 dimensions"),
        (Capsule((1, 4, 8), version=(2, 0)), "^x: DLPack of version 2"),
        (Capsule((1, 4, 8), version=(1, 0), flags=1), "^x: it is written, but its memory is read-only"),
    ],
)
def test_arrays_that_torch_would_die_of_or_misread(array: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ops.gelu(array)


def test_arrays_that_are_only_read_may_be_read_only() -> None:
    q, k, v, rotation = (tensor.numpy() for tensor in example().values())
    expected = lolrt.attention(q, k, v, rotation)
    for array in (q, k, v, rotation):
        array.flags.writeable = False
    assert torch.equal(lolrt.attention(q, k, v, rotation), expected)
    with pytest.raises(ValueError, match=r"^k: its elements go backwards"):
        lolrt.attention(q, k[::-1], v, rotation)
    x = np.ones((1, 4, 16), np.float32)
    x.flags.writeable = False
    with pytest.raises(ValueError, match=r"^x: it is written, but its memory is read-only"):
        ops.gelu(x)
    assert (x == 1).all()


@pytest.mark.whole
def test_compiled_without_a_graph_break_the_ops_give_the_same_bits():
    tensors, weight = example(), torch.rand(3, 64)
    pages = torch.zeros(2, 5, ops.page_elements(torch.float32, 13, 3, 64))
    compiled = torch.compile(model_step, fullgraph=True, backend="aot_eager")
    with torch.inference_mode():
        assert torch.equal(compiled(tensors, pages[0], weight), model_step(tensors, pages[1], weight))
    assert torch.equal(pages[0], pages[1])


def image_step(image: torch.Tensor, past: torch.Tensor, kernel: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    normed = ops.channel_norm(image, torch.ones(5), torch.empty(2, 6, 8, 5), silu=True)
    return ops.conv3d(normed, *kernel, torch.empty(2, 4, 6, 7), past=past, residual=torch.ones(2, 4, 6, 7))


def test_compiled_image_ops_give_the_same_bits():
    arguments = (torch.randn(2, 4, 6, 5), torch.randn(2, 6, 8, 5), ops.pack_convolution(torch.randn(7, 5, 3, 3, 3), torch.randn(7)))
    with torch.inference_mode():
        assert torch.equal(torch.compile(image_step, fullgraph=True, backend="aot_eager")(*arguments), image_step(*arguments))


def test_registrations_pass_torchs_own_checks():
    tensors, weight = example(), torch.rand(3, 64)
    pages = torch.zeros(5, ops.page_elements(torch.float32, 13, 3, 64))
    page_table = torch.arange(5, dtype=torch.int32)
    row, x = torch.ones(1, 192), torch.randn(2, 13, 192)
    image, kernel = torch.randn(1, 4, 6, 5), ops.pack_convolution(torch.randn(7, 5, 1, 3, 3), torch.randn(7))
    table = torch.tensor([[0, 2, -1], [4, 2, 0]], dtype=torch.int32)
    rotation, mass = torch.ones(2, 3, 1, 3, 22, 2), torch.empty(2, 3, 1, 3)
    batched = (tensors["q"], pages, table, 13, rotation, torch.zeros(2, 3, 3), mass)
    checks = ("test_schema", "test_faketensor")
    for op, arguments in (
        (torch.ops.lolrt.kv_write, (tensors["k"], tensors["v"], pages, page_table, weight, None, 0, 1e-6)),
        (torch.ops.lolrt.normalize_queries, (tensors["q"], weight, None, 0, 1e-6)),
        (torch.ops.lolrt.frame_attention, (tensors["q"], pages, page_table, 13, tensors["rotation"], None)),
        (torch.ops.lolrt.frame_attention_probed, (tensors["q"], pages, page_table, 13, tensors["rotation"], None, torch.empty(5, 2, 3))),
        (torch.ops.lolrt.frame_attention_probed, batched),
        (torch.ops.lolrt.modulated_norm, (x, row, row, x.clone(), row, 1e-6)),
        (torch.ops.lolrt.gelu, (x,)),
        (torch.ops.lolrt.quantize_rows, (x,)),
        (torch.ops.lolrt.dequantize_rows, (x, torch.ones(2, 13), torch.zeros(192), x.clone())),
        (torch.ops.lolrt.sampler_step, (x, 0.9, x.clone(), 0.5, x.clone())),
        (torch.ops.lolrt.channel_norm, (image, torch.ones(5), torch.empty(1, 6, 8, 5), True)),
        (torch.ops.lolrt.conv3d, (image, *kernel, torch.empty(1, 2, 4, 7), None, torch.zeros(1, 2, 4, 7))),
    ):
        torch.library.opcheck(op.default, arguments, test_utils=checks)


def test_torch_multiplies_as_before_around_a_call() -> None:
    """The kernels may use the processor's matrix tiles; afterwards they restore the state in which they found them."""
    generator = torch.Generator().manual_seed(2)
    a, b = (torch.randn(96, 96, generator=generator).bfloat16() for _ in range(2))
    q = torch.randn(1, 40, 1, 64, generator=generator).bfloat16()
    pages = torch.zeros(1, ops.page_elements(torch.bfloat16, 40, 1, 64), dtype=torch.bfloat16)
    before = a @ b
    for _ in range(3):
        ops.frame_attention(q, pages, torch.zeros(1, dtype=torch.int32), 40)
        assert torch.equal(a @ b, before)


@pytest.mark.parametrize("given_back", ["sample", "velocity", "noise"])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    "op", [ops.sampler_step, lambda sample, level, velocity, noise: torch.ops.lolrt.sampler_step(sample, level, velocity, 0.2, noise)]
)
def test_a_tensor_whose_memory_was_given_back_is_refused(op, transposed, given_back):
    """Also where it would be copied first, which torch does without a look at its memory."""
    tensors = {name: torch.randn(3, 3).T if transposed else torch.randn(3, 3) for name in ("sample", "velocity", "noise")}
    tensors[given_back].untyped_storage().resize_(0)
    with pytest.raises((ValueError, RuntimeError), match=f"sampler_step: {given_back}: its data pointer is NULL"):
        op(tensors["sample"], 0.5, tensors["velocity"], noise=tensors["noise"])
