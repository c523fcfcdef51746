"""The causal DiT with Wan2.1's topology: one forward pass of a chunk of latent frames over the KV cache.

Parameter names are those of `wan/modules/model.py`, so that published weights load unchanged. Values that stay the same over several
passes are computed once: keys and values of the text for each prompt (`encode_text`), modulations for each timestep (`modulations`),
rotations for each chunk.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol, cast

import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from lolrt import ops
from lolrt.errors import Error
from lolrt.models.int8_linear import Int8Linear, PackedOnce
from lolrt.models.pass_inputs import PassInputs, TextContext
from lolrt.models.ulysses import Ulysses
from lolrt.ops import int8
from lolrt.ops.device import upload

LinearChoice = Literal["full", "int8"]


@dataclass(frozen=True)
class DiTConfig:
    """Sizes of a Wan DiT; the defaults are those of Wan2.1-T2V-1.3B."""

    dim: int = 1536
    ffn_dim: int = 8960
    freq_dim: int = 256
    """The length of the timestep's sinusoidal embedding."""
    text_dim: int = 4096
    text_len: int = 512
    """The rows of text that cross-attention sees. A shorter prompt is padded with zeros, which are attended to as well, as in the public
    code."""
    in_dim: int = 16
    out_dim: int = 16
    num_heads: int = 12
    num_layers: int = 30
    eps: float = 1e-6
    patch_size: tuple[int, int, int] = (1, 2, 2)
    rope_dims: tuple[int, int, int] | None = None
    """The channels of a head that are rotated by time, row and column; None is Wan's rule d - 4 (d // 6), 2 (d // 6), 2 (d // 6)."""

    def __post_init__(self) -> None:
        if self.dim % self.num_heads or self.patch_size[0] != 1:
            sizes = f"dim {self.dim}, {self.num_heads} heads, patches {list(self.patch_size)}"
            raise Error(f"{sizes}: dim must be a multiple of the heads, and patches one frame deep")
        if sum(self.axes) != self.head_dim or any(channels % 2 or channels < 0 for channels in self.axes):
            raise Error(f"rope_dims are {list(self.axes)}; expected three even numbers that add up to the head dimension {self.head_dim}")

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads

    @property
    def axes(self) -> tuple[int, int, int]:
        """The channels of a head for time, row and column."""
        spatial = 2 * (self.head_dim // 6)
        return self.rope_dims or (self.head_dim - 2 * spatial, spatial, spatial)

    @property
    def temporal_pairs(self) -> int:
        return self.axes[0] // 2


def parts(module: nn.Module) -> dict[str, Any]:
    """The submodules of a module, by name. Access as attributes is slower: nn.Module looks each up in Python, which takes a microsecond,
    and a pass of the embedded model takes only a few milliseconds."""
    return module._modules


def parameters(module: nn.Module) -> list[Any]:
    """The module's own parameters, in the order in which they were made; for the same reason."""
    return list(module._parameters.values())


def linear(layer: nn.Module, x: Tensor) -> Tensor:
    """nn.Linear on x, without the cost of calling a module, or Int8Linear. Hooks are not called."""
    if isinstance(layer, Int8Linear):
        return layer.forward(x)
    return F.linear(x, *parameters(layer))


class HeadsRMSNorm(nn.Module):
    """The weight of an RMSNorm over all heads of a token; the norm itself is fused into the ops."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))


def side_by_side(*parts: Tensor) -> Tensor:
    """Parameters of one shape as one tensor [sum of rows, ...] that shares their memory. If they are not contiguous, they are first moved
    to one block."""
    first = parts[0].detach()
    whole = [len(parts) * len(first), *first.shape[1:]]
    storage = first.untyped_storage().data_ptr()
    memory = [(part.untyped_storage().data_ptr(), part.storage_offset() - i * first.numel()) for i, part in enumerate(parts)]
    if memory != [(storage, first.storage_offset())] * len(parts):
        with torch.inference_mode(first.is_inference()):  # keeps ordinary tensors ordinary, so that they can be trained
            first = torch.cat([part.detach() for part in parts])
        for part, rows in zip(parts, first.split(len(parts[0])), strict=True):
            part.data = rows
    return first.as_strided(whole, first.stride())


class Attention(nn.Module):
    """The projections of self- and cross-attention. layer: the class of its linear layers."""

    def __init__(self, config: DiTConfig, layer: type[nn.Linear | Int8Linear] = nn.Linear) -> None:
        super().__init__()
        self.q = layer(config.dim, config.dim)
        self.k = layer(config.dim, config.dim)
        self.v = layer(config.dim, config.dim)
        self.o = layer(config.dim, config.dim)
        self.norm_q = HeadsRMSNorm(config.dim)
        self.norm_k = HeadsRMSNorm(config.dim)
        self._fused: tuple[tuple[int, ...], Tensor, Tensor] | None = None
        self._packed = PackedOnce()

    def __getstate__(self) -> dict[str, Any]:
        """The state for copies and pickles. It leaves out the fused tensors, because they share memory with the parameters of this
        object."""
        return {**self.__dict__, "_fused": None}

    def qkv(self, h: Tensor) -> Tensor:
        """q, k and v of h [..., dim], from one matrix product: [..., 3 * dim]."""
        if torch.compiler.is_compiling():  # which cannot follow where parameters lie
            return torch.cat([linear(parts(self)[name], h) for name in "qkv"], -1)
        if isinstance(parts(self)["q"], Int8Linear):
            return int8.linear(h, self.packed_qkv())
        return F.linear(h, *self.fused_qkv())

    def packed_qkv(self) -> int8.Int8Weights:
        """The 8-bit weights of q, k and v, for one product."""
        return self._packed.of(*(cast("Int8Linear", parts(self)[name]) for name in "qkv"))

    def fused_qkv(self) -> tuple[Tensor, Tensor]:
        """The weights and the biases of q, k and v, each as one tensor that shares the parameters' memory."""
        own = parts(self)
        weights, biases = zip(*(parameters(own[name]) for name in "qkv"), strict=True)
        memory = tuple(map(Tensor.data_ptr, weights + biases))  # changes when the parameters get other tensors
        if self._fused is None or self._fused[0] != memory:
            weight, bias = side_by_side(*weights), side_by_side(*biases)
            self._fused = tuple(map(Tensor.data_ptr, weights + biases)), weight, bias
        return self._fused[1:]


class Block(nn.Module):
    def __init__(self, config: DiTConfig, layer: type[nn.Linear | Int8Linear] = nn.Linear) -> None:
        super().__init__()
        self.self_attn = Attention(config, layer)
        self.norm3 = nn.LayerNorm(config.dim, eps=config.eps)
        self.cross_attn = Attention(config, layer)
        self.ffn = nn.Sequential(layer(config.dim, config.ffn_dim), nn.GELU("tanh"), layer(config.ffn_dim, config.dim))
        self.modulation = nn.Parameter(nn.init.normal_(torch.empty(1, 6, config.dim), std=config.dim**-0.5))


class Head(nn.Module):
    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.head = nn.Linear(config.dim, config.out_dim * math.prod(config.patch_size))
        self.modulation = nn.Parameter(nn.init.normal_(torch.empty(1, 2, config.dim), std=config.dim**-0.5))


class Watched(Protocol):
    def check(self) -> None:
        """Raises `lolrt.Error` if the model must not be used any longer."""


class CausalDiT(nn.Module):
    """The diffusion transformer of `DiTConfig`. Source: Wan2.1 `wan/modules/model.py`, Self-Forcing `wan/modules/causal_model.py`.

    linear: "int8" for linear layers of attention and feed-forward in 8 bits, `Int8Linear`.
    """

    def __init__(self, config: DiTConfig, linear: LinearChoice = "full") -> None:
        super().__init__()
        self.config, self.linear = config, linear
        self.patch_embedding = nn.Conv3d(config.in_dim, config.dim, config.patch_size, config.patch_size)
        self.text_embedding = nn.Sequential(nn.Linear(config.text_dim, config.dim), nn.GELU("tanh"), nn.Linear(config.dim, config.dim))
        self.time_embedding = nn.Sequential(nn.Linear(config.freq_dim, config.dim), nn.SiLU(), nn.Linear(config.dim, config.dim))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(config.dim, 6 * config.dim))
        self.blocks = nn.ModuleList(Block(config, Int8Linear if linear == "int8" else nn.Linear) for _ in range(config.num_layers))
        self.head = Head(config)
        self.adapters: tuple[str, ...] = ()
        """The files whose adapters were merged into the weights, each with its strength; shown to users, and used to distinguish models."""
        self.ulysses: Ulysses | None = None
        """This rank's part, if the model runs on several ranks (`shard`)."""
        self.origin: object = None
        """The source of the weights, set by the loader (`lolrt.checkpoint.origin`)."""
        self.watched_files: Watched | None = None
        """The files that the weights are mapped from; None if the weights are in memory of their own."""

    @property
    def dtype(self) -> torch.dtype:
        return self.patch_embedding.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.patch_embedding.weight.device

    @property
    def _blocks(self) -> list[Block]:
        return cast("list[Block]", list(self.blocks))

    def shard(self, group: dist.ProcessGroup | None = None) -> None:
        """From now on runs the model as one of several ranks, which must all make the same calls. Linear layers divide the tokens;
        attention and the KV cache divide the heads (`lolrt.models.ulysses`). Call it before streams are made. group and errors: as in
        `Ulysses`."""
        self.ulysses = Ulysses(self.config.num_heads, group)

    @property
    def page_heads(self) -> int:
        """Heads whose K and V are in this rank's pages."""
        return self.config.num_heads if self.ulysses is None else self.ulysses.heads

    def prepare(self) -> None:
        """Makes what passes need of the weights, now instead of in the first pass: q, k and v of a layer as one tensor, and weights of 8
        bits in the layout of their product."""
        for block in self._blocks:
            if self.linear == "full":
                block.self_attn.fused_qkv()
                continue
            block.self_attn.packed_qkv()
            for layer in (block.self_attn.o, *block.cross_attn.children(), *block.ffn.children()):
                if isinstance(layer, Int8Linear):
                    layer.packed.of(layer)

    def tokens_per_frame(self, height: int, width: int) -> int:
        """The number of tokens of a latent frame of height x width latent pixels."""
        _, patch_height, patch_width = self.config.patch_size
        if height % patch_height or width % patch_width or height < 1 or width < 1:
            raise Error(f"a latent frame of {height} x {width} does not divide into patches of {patch_height} x {patch_width}")
        return (height // patch_height) * (width // patch_width)

    def check_text(self, prompt_embeds: Tensor) -> None:
        """Raises `lolrt.Error` unless the embeddings fit this model, [1 .. text_len, text_dim], and are finite."""
        text_len, text_dim = self.config.text_len, self.config.text_dim
        if not isinstance(prompt_embeds, Tensor):
            raise Error(f"prompt_embeds are {prompt_embeds!r:.100}; expected a tensor of rows of text, as a text encoder gives it")
        if prompt_embeds.ndim != 2 or prompt_embeds.shape[1] != text_dim or not 1 <= prompt_embeds.shape[0] <= text_len:
            raise Error(f"prompt_embeds are {list(prompt_embeds.shape)}; expected [1 to {text_len} text tokens, {text_dim}]")
        if not prompt_embeds.is_meta and not prompt_embeds.isfinite().all():
            raise Error("prompt_embeds have values that are not finite: the text encoder, or the file that they came from, is damaged")

    @torch.inference_mode()
    def encode_text(self, prompt_embeds: Tensor, out: TextContext | None = None) -> TextContext:
        """The keys and values of a prompt [text_tokens, text_dim], padded with zeros to text_len rows; without a mask, as in the public
        code.

        out: the memory for the result; by default new memory.
        """
        config = self.config
        self.check_text(prompt_embeds)
        padding = config.text_len - prompt_embeds.shape[0]
        text = self.text_embedding(F.pad(upload(prompt_embeds.to(self.dtype), self.device), (0, 0, 0, padding)))
        if out is None:
            elements = ops.page_elements(self.dtype, config.text_len, config.num_heads, config.head_dim, self.device)
            pages = torch.empty(config.num_layers, 1, elements, dtype=self.dtype, device=self.device)
            out = TextContext(pages, torch.zeros(1, dtype=torch.int32, device=self.device))
        self.write_text(text, out.pages.unbind(0), out.page_table)
        return out

    def write_text(self, text: Tensor, layer_pages: Sequence[Tensor], page_table: Tensor) -> None:
        """Writes the keys and values of a text [text_len, dim], as `text_embedding` gives it, to a page of each layer [prompts,
        page_elements]. page_table: int32 [1]."""
        for block, pages in zip(self._blocks, layer_pages, strict=True):
            attn = block.cross_attn
            k, v = self._split_heads(attn.k(text)[None]), self._split_heads(attn.v(text)[None])
            ops.kv_write(k, v, pages, page_table, weight=self._head_weight(attn.norm_k), eps=self.config.eps)

    @torch.inference_mode()
    def modulations(self, timesteps: Tensor) -> list[Tensor]:
        """The modulations of timesteps in 0 .. 1000: float [n] -> n tensors, float32 [1, 6 * layers + 2, dim] each.

        The rows are, for each layer, shift, scale and gate of the attention, then those of the feed-forward; and last, shift and scale of
        the head. The scales include the "1 +".
        """
        half = self.config.freq_dim // 2
        angle = timesteps.double()[:, None] * 10000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
        e = self.time_embedding(upload(torch.cat([angle.cos(), angle.sin()], dim=1).to(self.dtype), self.device))
        projected = self.time_projection(e).unflatten(1, (6, self.config.dim))
        return [self._modulation(e[i], projected[i]) for i in range(len(timesteps))]

    def _modulation(self, e: Tensor, projected: Tensor) -> Tensor:
        layers = [block.modulation[0] + projected for block in self._blocks]
        rows = torch.cat([*layers, self.head.modulation[0] + e]).float()
        rows[1::3] += 1  # the scales
        return rows[None]

    @torch.no_grad()  # not inference_mode, in which torch compiles no views; engines are in it already
    def forward(self, inputs: PassInputs) -> Tensor:
        """The flow of noisy chunks, float32 [frames, out_dim, height, width]. Writes the K and V of their frames into the pages.

        `torch.compile(dit, fullgraph=True)` takes the pass as one graph, if its tensors were not made in inference mode."""
        config = self.config
        modulation = inputs.modulation.transpose(0, 1).contiguous()  # [rows, 1 or frames, dim]: the ops need each row contiguous
        height, width = inputs.sample.shape[2:]
        x = self._product(self._patchify, inputs.sample, inputs)
        ulysses, tokens = self.ulysses, x.shape[1]
        if ulysses is not None:
            x = x[:, ulysses.own_tokens(tokens)].contiguous()
        residual: Tensor | None = None
        gate: Tensor | None = None
        blocks = [parts(block) for block in self._blocks]
        affine = torch.stack([part for block in blocks for part in parameters(block["norm3"])]).float()[:, None].unbind(0)
        for i, block in enumerate(blocks):
            shift, scale, attn_gate, ffn_shift, ffn_scale, ffn_gate = modulation[6 * i : 6 * i + 6].unbind(0)
            h = ops.modulated_norm(x, scale, shift, residual=residual, gate=gate, eps=config.eps)
            residual = self._self_attention(block["self_attn"], h, inputs, i)
            h = ops.modulated_norm(x, affine[2 * i], affine[2 * i + 1], residual=residual, gate=attn_gate, eps=config.eps)
            residual = self._cross_attention(block["cross_attn"], h, inputs, i)
            h = ops.modulated_norm(x, ffn_scale, ffn_shift, residual=residual, eps=config.eps)
            residual, gate = self._feed_forward(block["ffn"], h, inputs), ffn_gate

        shift, scale = modulation[-2:].unbind(0)
        h = ops.modulated_norm(x, scale, shift, residual=residual, gate=gate, eps=config.eps)
        flow = self._product(partial(linear, self.head.head), h, inputs)
        return self._unpatchify(flow if ulysses is None else ulysses.all_tokens(flow, tokens), height, width)

    @staticmethod
    def _product(layer: Callable[[Tensor], Tensor], x: Tensor, inputs: PassInputs) -> Tensor:
        """A layer on x [frames, ...], in separate pieces if the pass asks for that."""
        if not inputs.product_frames:
            return layer(x)
        return torch.cat([layer(piece) for piece in x.split(list(inputs.product_frames))])

    def _self_attention(self, attn: Attention, h: Tensor, inputs: PassInputs, i: int) -> Tensor:
        q, k, v = map(self._split_heads, self._product(attn.qkv, h, inputs).chunk(3, dim=-1))
        pages, spatial, first, eps = inputs.layer_pages[i], inputs.spatial_rotation, self.config.axes[0], self.config.eps
        own = parts(attn)
        q_weight, k_weight = self._head_weight(own["norm_q"]), self._head_weight(own["norm_k"])
        rotation = inputs.rotation[min(i, len(inputs.rotation) - 1)]
        bias = None if inputs.bias is None else inputs.bias[min(i, len(inputs.bias) - 1)]
        mass = None if inputs.mass is None else inputs.mass[i]
        tokens = len(spatial)
        if self.ulysses is not None:
            spatial = spatial[self.ulysses.own_tokens(tokens)]
        q = ops.normalize_queries(q, weight=q_weight, rotation=spatial, rotation_first_channel=first, eps=eps)
        if self.ulysses is None:
            ops.kv_write(k, v, pages, inputs.write_table, weight=k_weight, rotation=spatial, rotation_first_channel=first, eps=eps)
            for frames, query in inputs.queries:
                query[i].copy_(q[frames].mean((0, 1), dtype=torch.float32))
            out = ops.frame_attention(q, pages, inputs.page_table, tokens, rotation=rotation, bias=bias, mass=mass)
        else:
            k = ops.normalize_queries(k, weight=k_weight, rotation=spatial, rotation_first_channel=first, eps=eps)
            out = self.ulysses.attend(q, k, v, pages, inputs.write_table, inputs.page_table, tokens, rotation, bias, mass)
        return self._product(partial(linear, own["o"]), out.flatten(2), inputs)

    def _cross_attention(self, attn: Attention, h: Tensor, inputs: PassInputs, i: int) -> Tensor:
        own = parts(attn)
        q = self._split_heads(self._product(partial(linear, own["q"]), h, inputs))
        q = ops.normalize_queries(q, weight=self._head_weight(own["norm_q"]), eps=self.config.eps)
        out = ops.frame_attention(q, inputs.text_pages[i], inputs.text_table, self.config.text_len)
        return self._product(partial(linear, own["o"]), out.flatten(2), inputs)

    def _feed_forward(self, ffn: nn.Sequential, h: Tensor, inputs: PassInputs) -> Tensor:
        up, _, down = parts(ffn).values()
        hidden = self._product(partial(linear, up), h, inputs)
        ops.gelu(hidden)
        return self._product(partial(linear, down), hidden, inputs)

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], self.config.num_heads, self.config.head_dim)

    def _head_weight(self, norm: HeadsRMSNorm) -> Tensor:
        (weight,) = parameters(norm)
        return weight.view(self.config.num_heads, self.config.head_dim)

    def _patchify(self, sample: Tensor) -> Tensor:
        """[frames, channels, height, width] -> [frames, tokens, dim]: the patch convolution as one matrix product."""
        _, ph, pw = self.config.patch_size
        frames, channels, height, width = sample.shape
        patches = sample.to(self.dtype).view(frames, channels, height // ph, ph, width // pw, pw).permute(0, 2, 4, 1, 3, 5)
        return F.linear(patches.reshape(frames, -1, channels * ph * pw), self.patch_embedding.weight.flatten(1), self.patch_embedding.bias)

    def _unpatchify(self, tokens: Tensor, height: int, width: int) -> Tensor:
        """[frames, tokens, patch * out_dim] -> float32 [frames, out_dim, height, width]; the channel is the fastest index of a token."""
        _, ph, pw = self.config.patch_size
        x = tokens.float().view(tokens.shape[0], height // ph, width // pw, ph, pw, self.config.out_dim)
        return x.permute(0, 5, 1, 3, 2, 4).reshape(tokens.shape[0], self.config.out_dim, height, width)
