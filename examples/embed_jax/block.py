"""Attention and one block of a causal DiT in JAX, with lolrt's ops under `jax.jit`: chunks of frames over a window of pages.

pip install 'jax[cpu]' && pip install --no-build-isolation .        # of lolrt: the handlers are built where JAX is
python examples/embed_jax/block.py
"""

import jax
import jax.numpy as jnp
import numpy as np

import lolrt.jax as ops
from lolrt import _core

FRAMES, TOKENS, HEADS, DIM, SINKS, RECENT = 3, 60, 4, 64, 3, 9
CHANNELS = HEADS * DIM


def weights(key):
    shapes = {"qkv": (CHANNELS, 3 * CHANNELS), "o": (CHANNELS, CHANNELS), "up": (CHANNELS, 4 * CHANNELS), "down": (4 * CHANNELS, CHANNELS)}
    keys = jax.random.split(key, len(shapes))
    return {name: jax.random.normal(k, shape) * shape[0] ** -0.5 for k, (name, shape) in zip(keys, shapes.items(), strict=True)}


@jax.jit
def block(w, x, pages, write_table, page_table, rotation):
    """x [frames, tokens, channels]; returns x and the pages with this chunk's K and V."""
    one, zero = jnp.ones((1, CHANNELS)), jnp.zeros((1, CHANNELS))
    norm = jnp.ones((HEADS, DIM))
    _, h = ops.modulated_norm(x, one, zero)
    q, k, v = jnp.split((h @ w["qkv"]).reshape(FRAMES, TOKENS, 3, HEADS, DIM), 3, axis=2)
    q, k, v = (part.squeeze(2) for part in (q, k, v))
    pages = ops.kv_write(k, v, pages, write_table, weight=norm)
    out = ops.frame_attention(ops.normalize_queries(q, weight=norm), pages, page_table, TOKENS, rotation=rotation)
    x, h = ops.modulated_norm(x, one, zero, residual=out.reshape(x.shape) @ w["o"])
    return x + ops.gelu(h @ w["up"]) @ w["down"], pages


def main(chunks: int = 6) -> jax.Array:
    window = _core.Window(_core.Pool(SINKS + RECENT), SINKS, RECENT)
    turns = np.zeros((HEADS, DIM // 2), dtype=np.uint64)
    _core.phase_increments(10000.0 ** -np.tile(np.arange(DIM // 2) / (DIM // 2), HEADS), turns.reshape(-1))
    pages = jnp.zeros((SINKS + RECENT, ops.page_elements("float32", TOKENS, HEADS, DIM)))
    w, x = weights(jax.random.key(0)), None
    for chunk in range(chunks):
        window.advance(FRAMES * chunk, FRAMES)
        listed, frames = window.read()
        offsets = np.arange(FRAMES * chunk, FRAMES * (chunk + 1))[None] - np.array(frames)[:, None]
        rotation = np.empty((len(listed), FRAMES, HEADS, DIM // 2, 2), dtype=np.float32)
        _core.rotation_table(turns, offsets, rotation)
        table = np.array(listed, dtype=np.int32)
        x, pages = block(
            w, jax.random.normal(jax.random.key(chunk + 1), (FRAMES, TOKENS, CHANNELS)), pages, table[-FRAMES:], table, rotation
        )
        print(f"chunk {chunk}: {len(listed)} pages, rms {jnp.sqrt(jnp.mean(x**2)):.4f}")
    return x


if __name__ == "__main__":
    main()
