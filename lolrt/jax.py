"""The ops for JAX on the CPU: functions on arrays that work under `jax.jit`, through XLA's foreign function interface.

Arrays that `lolrt.ops` updates in place are arguments and results here. XLA uses the same memory for both if nothing else reads the old
values. Shapes, dtypes and formulas are those of `lolrt.ops`, with JAX arrays instead of tensors. There are no gradients and no batching
(`vmap`). Errors are those that JAX raises for failing functions, with the text of the C ABI.

The handlers are built only if JAX is installed: run `pip install --no-build-isolation .` after installing `jax`.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lolrt
from lolrt import _core

try:
    import jax
    import jaxlib
    import numpy as np
    from jax import Array
except ImportError as error:
    raise ImportError("lolrt.jax needs the package jax: pip install 'jax[cpu]'") from error

OPS = ("kv_write", "frame_attention", "modulated_norm", "gelu", "sampler_step")

if not hasattr(jax, "ffi"):
    raise ImportError(f"lolrt.jax needs jax 0.5 or newer, and this is jax {jax.__version__}: pip install -U 'jax[cpu]'")
_path = lolrt.library().with_name(f"liblolrt_jax{lolrt.library().suffix}")
if not _path.exists():
    raise ImportError("this lolrt was built without JAX: pip install --no-build-isolation lolrt, where jax is installed")
_library = ctypes.CDLL(str(_path))
# XLA checks this too, but when it starts, and then does not start.
_built = tuple((ctypes.c_int32 * 2).in_dll(_library, "lolrt_jax_api"))
_headers = Path(jax.ffi.include_dir(), "xla", "ffi", "api", "c_api.h").read_text()
_found = tuple(int(number) for number in re.findall(r"#define XLA_FFI_API_M(?:AJOR|INOR) (\d+)", _headers))
if _built[0] != _found[0] or _built > _found:
    raise ImportError(
        f"lolrt.jax was built for version {_built[0]}.{_built[1]} of XLA's FFI, and jaxlib {jaxlib.__version__} has "
        f"{_found[0]}.{_found[1]}: update jaxlib, or build lolrt with it (pip install --no-build-isolation --force-reinstall lolrt)"
    )
for _op in OPS:
    jax.ffi.register_ffi_target(f"lolrt_{_op}", jax.ffi.pycapsule(getattr(_library, f"lolrt_jax_{_op}")), platform="cpu")


def _call(op: str, arguments: Mapping[str, Array | None], results: Mapping[str, Any], **attributes: Any) -> tuple[Array, ...]:
    """Calls a handler.

    arguments: by their names in the descriptor; None is left out. results: arrays or shapes like them, by the same names. A result with
    the name of an argument is the updated argument.
    """
    given = {name: array for name, array in arguments.items() if array is not None}
    shapes = tuple(jax.ShapeDtypeStruct(of.shape, of.dtype) for of in results.values())
    aliases = {list(given).index(name): i for i, name in enumerate(results) if name in given}
    call = jax.ffi.ffi_call(f"lolrt_{op}", shapes, input_output_aliases=aliases)
    return tuple(call(*given.values(), names=f"{','.join(given)};{','.join(results)}", **attributes))


def page_elements(dtype: Any, tokens: int, heads: int, dim: int) -> int:
    """The number of elements of a page of the KV cache; see `lolrt.ops.page_elements`."""
    return _core.page_elements(np.dtype(dtype).name, tokens, heads, dim)


def kv_write(
    k: Array,
    v: Array,
    pages: Array,
    page_table: Array,
    *,
    weight: Array | None = None,
    rotation: Array | None = None,
    rotation_first_channel: int = 0,
    eps: float = 1e-6,
) -> Array:
    """The pages with the K and V of some frames written into them; see `lolrt.ops.kv_write`."""
    arguments = {"k": k, "v": v, "k_weight": weight, "rotation": rotation, "page_table": page_table, "pages": pages}
    (written,) = _call(
        "kv_write", arguments, {"pages": pages}, eps=np.float32(eps), rotation_first_channel=np.int64(rotation_first_channel)
    )
    return written


def normalize_queries(
    q: Array, *, weight: Array, rotation: Array | None = None, rotation_first_channel: int = 0, eps: float = 1e-6
) -> Array:
    """See `lolrt.ops.normalize_queries`."""
    arguments = {"q": q, "q_weight": weight, "rotation": rotation}
    (out,) = _call("kv_write", arguments, {"q_out": q}, eps=np.float32(eps), rotation_first_channel=np.int64(rotation_first_channel))
    return out


def frame_attention(
    q: Array,
    pages: Array,
    page_table: Array,
    page_tokens: int,
    *,
    rotation: Array | None = None,
    bias: Array | None = None,
    probe: bool = False,
) -> Array | tuple[Array, Array]:
    """See `lolrt.ops.frame_attention`. With `probe` it also returns the mass, float32 [pages, frames, heads], or for a batch [batch,
    pages, frames / batch, heads]."""
    results: dict[str, Any] = {"out": q}
    if probe:
        *batch, listed = page_table.shape
        frames = q.shape[0] // (batch[0] if batch else 1)
        results["mass"] = jax.ShapeDtypeStruct((*batch, listed, frames, q.shape[2]), np.float32)
    arguments = {"q": q, "pages": pages, "page_table": page_table, "rotation": rotation, "bias": bias}
    out, *mass = _call("frame_attention", arguments, results, page_tokens=np.int64(page_tokens))
    return (out, mass[0]) if probe else out


def attention(
    q: Array, k: Array, v: Array, rotation: Array | None, bias: Array | None = None, probe: bool = False
) -> Array | tuple[Array, Array]:
    """Frame attention on plain arrays; see `lolrt.attention`."""
    count, tokens, heads, dim = k.shape
    pages = jax.numpy.zeros((count, page_elements(k.dtype, tokens, heads, dim)), k.dtype)
    page_table = jax.numpy.arange(count, dtype=np.int32)
    return frame_attention(q, kv_write(k, v, pages, page_table), page_table, tokens, rotation=rotation, bias=bias, probe=probe)


def modulated_norm(
    x: Array, scale: Array, shift: Array, *, residual: Array | None = None, gate: Array | None = None, eps: float = 1e-6
) -> tuple[Array, Array]:
    """Returns (x + gate * residual, its norm); see `lolrt.ops.modulated_norm`, which updates x in place. Without a residual x is
    unchanged."""
    arguments = {"residual": residual, "gate": gate, "scale": scale, "shift": shift, "x": x}
    updated, out = _call("modulated_norm", arguments, {"x": x, "out": x}, eps=np.float32(eps))
    return updated, out


def gelu(x: Array) -> Array:
    """See `lolrt.ops.gelu`. Returns a new array."""
    (out,) = _call("gelu", {"x": x}, {"x": x})
    return out


def sampler_step(sample: Array, level: float, velocity: Array, *, after: float = 0.0, noise: Array | None = None) -> Array:
    """See `lolrt.ops.sampler_step`. All arrays have one shape."""
    flat = {name: None if x is None else x.reshape(-1) for name, x in (("sample", sample), ("velocity", velocity), ("noise", noise))}
    out = jax.ShapeDtypeStruct((sample.size,), np.float32)
    (made,) = _call("sampler_step", flat, {"out": out}, level=np.float64(level), after=np.float64(after))
    return made.reshape(sample.shape)
