"""A small language model with Llama's topology (RMSNorm, RoPE on all channels of a head, SwiGLU). It is trained within minutes on the
characters of Python's own documentation, and streamed through the project's kernels with one token per page.

In training, rows of 128 tokens start with BOS, and each token attends to all tokens before it, as usual. Streaming follows StreamingLLM
(arXiv 2309.17453): the first tokens are sinks, followed by the most recent ones, and positions grow without end.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import cast

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from lolrt import ops
from lolrt.engine.kv_window import ChunkPages, KVWindow, Window
from lolrt.engine.page_pool import PagePool
from lolrt.muon import Muon
from lolrt.pipeline import preferred_dtype
from lolrt.positions.rope import Rope, rotation_tables

BOS = 128  # after the ASCII characters
HELD_OUT = 0.1  # share of the text, at its end


@dataclass(frozen=True)
class TextConfig:
    dim: int = 128
    heads: int = 4
    layers: int = 4
    ffn_dim: int = 352
    theta: float = 10000.0
    train_tokens: int = 128
    """The tokens of a training row. Training never sees larger offsets."""

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads


class Layer(nn.Module):
    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        dim, ffn_dim = config.dim, config.ffn_dim
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(dim, dim, bias=False) for _ in range(4))
        self.gate_proj, self.up_proj, self.down_proj = (
            nn.Linear(*sizes, bias=False) for sizes in ((dim, ffn_dim), (dim, ffn_dim), (ffn_dim, dim))
        )
        self.input_layernorm, self.post_attention_layernorm = nn.RMSNorm(dim, eps=1e-6), nn.RMSNorm(dim, eps=1e-6)

    def qkv(self, x: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
        """[..., dim] -> three of [..., heads, head_dim], not rotated."""
        h = self.input_layernorm(x)
        q, k, v = (proj(h).unflatten(-1, (heads, -1)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        return q, k, v

    def rest(self, x: Tensor, attended: Tensor) -> Tensor:
        """The rest of a block after attention. attended: [..., heads, head_dim]."""
        x = x + self.o_proj(attended.flatten(-2))
        h = self.post_attention_layernorm(x)
        return x + self.down_proj(F.silu(self.gate_proj(h)) * self.up_proj(h))


class TextModel(nn.Module):
    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(BOS + 1, config.dim)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.dim, eps=1e-6)
        self.lm_head = nn.Linear(config.dim, BOS + 1, bias=False)
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=config.dim**-0.5)

    @property
    def _layers(self) -> list[Layer]:
        return cast("list[Layer]", list(self.layers))

    def forward(self, tokens: Tensor, positions: Tensor | None = None, visible: Tensor | None = None) -> Tensor:
        """The logits [batch, length, vocabulary] of rows of tokens [batch, length], computed by torch alone.

        positions: [length], by default 0, 1, ... visible: bool [length, length], the attention mask; by default causal.
        """
        config, length = self.config, tokens.shape[1]
        positions = torch.arange(length) if positions is None else positions
        pairs = config.head_dim // 2
        angle = positions[:, None].double() * config.theta ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
        cos, sin = angle.cos().float()[:, None], angle.sin().float()[:, None]

        def rotated(x: Tensor) -> Tensor:
            even, odd = x[..., 0::2], x[..., 1::2]
            return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)

        x = self.embed_tokens(tokens)
        for layer in self._layers:
            q, k, v = layer.qkv(x, config.heads)
            q, k, v = (part.transpose(1, 2) for part in (rotated(q), rotated(k), v))
            attended = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, is_causal=visible is None)
            x = layer.rest(x, attended.transpose(1, 2))
        return self.lm_head(self.norm(x))

    @torch.inference_mode()
    def step(self, token: int, pool: PagePool, pages: ChunkPages, rotation: Tensor) -> tuple[Tensor, Tensor]:
        """Runs one token over the cache, through the kernels. Writes its K and V into its page.

        rotation: float32 [1 or layers, pages, 1, heads, pairs, 2]. Returns logits [vocabulary] and the attention mass, float32
        [layers, heads, pages].
        """
        heads, head_dim = self.config.heads, self.config.head_dim
        mass = torch.empty(self.config.layers, len(pages.frames), 1, heads)
        x = self.embed_tokens(torch.tensor([[token]]))
        for i, layer in enumerate(self._layers):
            q, k, v = (part.view(1, 1, heads, head_dim) for part in layer.qkv(x, heads))
            ops.kv_write(k, v, pool.layer_pages[i], pages.chunk_page_table)
            table = rotation[min(i, len(rotation) - 1)]
            x = layer.rest(x, ops.frame_attention(q, pool.layer_pages[i], pages.page_table, 1, rotation=table, mass=mass[i]))
        return self.lm_head(self.norm(x))[0, 0], mass[:, :, 0].transpose(1, 2)


class TextStream:
    """Streams one text, token by token, in constant memory, with positions, jitter and window as in a video stream."""

    def __init__(self, model: TextModel, rope: Rope, window: Window) -> None:
        config = model.config
        self.model, self.rope, self.window = model, rope, window
        self.pool = PagePool(window.pool_pages, config.layers, 1, config.heads, config.head_dim, torch.float32)
        self.cache = KVWindow(window, self.pool)
        self.increments = rope.increments(config.layers, config.heads, config.head_dim // 2)
        self.next_token = 0

    def add(self, token: int) -> tuple[Tensor, Tensor]:
        """See `TextModel.step`."""
        pages = self.cache.advance(self.next_token, 1)
        self.next_token += 1
        return self.model.step(token, self.pool, pages, self.rotation(pages.frames))

    def rotation(self, positions: Sequence[int]) -> Tensor:
        """The rotation tables of the newest token against every page. positions: those of the pages, its own last."""
        sinks = min(self.window.sink_frames, len(positions) - 1)
        return rotation_tables(self.increments, self.rope.offsets(positions, 1, sinks))


def tokens_of(text: str) -> Tensor:
    return torch.tensor(list(text.encode("ascii", "ignore")))


@cache
def corpus() -> tuple[Tensor, Tensor]:
    """The training tokens and the held-out tokens, from the language reference in Python's `help`."""
    from pydoc_data.topics import topics

    tokens = tokens_of("\n\n".join(topics[name] for name in sorted(topics)))
    cut = round(len(tokens) * (1 - HELD_OUT))
    return tokens[:cut], tokens[cut:]


def rows_of(tokens: Tensor, starts: Tensor, length: int) -> Tensor:
    """Rows of BOS and the tokens from each start on, [starts, length + 1]."""
    rows = tokens[starts[:, None] + torch.arange(length)]
    return torch.cat([torch.full((len(starts), 1), BOS), rows], dim=1)


def train(config: TextConfig, seed: int, steps: int, batch: int = 32, rate: float = 4e-3) -> TextModel:
    """A trained model; see `training`."""
    torch.manual_seed(seed)
    model = TextModel(config)
    bar = tqdm(training(model, steps, batch, rate), total=steps, desc=f"text model {seed}", unit=" steps")
    for loss in bar:
        bar.set_postfix_str(f"loss {loss:.2f}", refresh=False)
    return model


def training(model: TextModel, steps: int, batch: int = 32, rate: float = 4e-3) -> Iterator[float]:
    """Trains a model by next-token prediction on random rows; in bfloat16 if the CPU can multiply it. Gives the loss of each step."""
    length = model.config.train_tokens
    matrices = [parameter for layer in model.layers for parameter in layer.parameters() if parameter.ndim == 2]
    others = [parameter for parameter in model.parameters() if all(parameter is not matrix for matrix in matrices)]
    muon, (tokens, _) = Muon(matrices, others), corpus()

    def loss(rows: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=preferred_dtype() == torch.bfloat16):
            return F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())

    for step in range(steps):
        now = loss(rows_of(tokens, torch.randint(len(tokens) - length, (batch,)), length))
        now.backward()
        muon.step(rate * min(1, (step + 1) / 20) * (0.05 + 0.95 * (1 + math.cos(math.pi * step / steps)) / 2))
        yield now.item()
