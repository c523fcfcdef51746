"""The C++ core (liblolrt) on DLPack tensors: torch tensors, NumPy and CuPy arrays, or DLPack capsules.

Tensors of a call are all on the CPU, or, for the ops that take a `stream`, all on the current CUDA device: work is then queued on that
stream (a cudaStream_t as a number: `torch.cuda.current_stream().cuda_stream`, `cupy.cuda.get_current_stream().ptr`; 0 is the default
stream) and the call returns; it waits for nothing, and whoever made the tensors has to have queued that on the same stream.

Tensors marked T are float32 or bfloat16 on the CPU, bfloat16 or float16 on CUDA, the same for all of one call; their innermost
dimension is contiguous, and outer ones may be strided where it says so. Nothing is allocated or converted: results are written to the
tensors given for them. Each call releases the GIL. Errors carry one line that names the tensor, what was expected and what was given, and
leave the outputs as they were:
ValueError for arguments that do not fit, outputs that are read-only, and tensors with torch's negative bit set, UnsupportedError (a
RuntimeError) for what this build cannot do, MemoryError, and RuntimeError for a defect of the library.

If torch was imported first, the library computes on torch's threads, on at most as many as torch does; otherwise on threads of its
own. The results are the same. torch's threads do not survive a fork: where `lolrt.ops` is loaded the child computes on one thread, and
elsewhere it has to be told to (`set_threads(1)`): with more it would wait for ever. The formulas, page layout and rules are in
lolrt/include/lolrt/lolrt.h.
"""

from typing import Any, Literal, TypeAlias

_Tensor: TypeAlias = Any  # anything with __dlpack__, or a DLPack capsule

class UnsupportedError(RuntimeError):
    """Correct arguments that this build has no kernel for."""

def kv_write(
    q: _Tensor | None,
    k: _Tensor | None,
    v: _Tensor | None,
    q_weight: _Tensor | None,
    k_weight: _Tensor | None,
    eps: float,
    rotation: _Tensor | None,
    rotation_first_channel: int,
    q_out: _Tensor | None,
    pages: _Tensor | None,
    page_table: _Tensor | None,
    stream: int = 0,
) -> None:
    """Projections to queries and pages: RMSNorm over all heads of a token, weight, rotation by the token's place in its frame.

    q, k, v: T [frames, tokens, heads, dim], strided; q with q_out, or k with v, may be None.
    q_weight, k_weight: T [heads, dim], or None: not normalised.
    rotation: float32 [tokens, pairs, 2] of (cos, sin) for channel pairs from `rotation_first_channel` (even) on, or None.
    q_out: T [frames, tokens, heads, dim], strided.
    pages: T, int8 on the CPU, or float8_e4m3fn on CUDA, [pool_pages, page_elements], rows strided.
    page_table: int32 [frames], the page that each frame's K and V go to; all different.
    """

def frame_attention_workspace(
    q: _Tensor,
    pages: _Tensor,
    page_table: _Tensor,
    page_tokens: int,
    rotation: _Tensor | None,
    bias: _Tensor | None,
    out: _Tensor,
    mass: _Tensor | None,
) -> int:
    """Bytes that `workspace` must have for the same arguments to `frame_attention`, with the threads and kernels now in use."""

def frame_attention(
    q: _Tensor,
    pages: _Tensor,
    page_table: _Tensor,
    page_tokens: int,
    rotation: _Tensor | None,
    bias: _Tensor | None,
    scale: float,
    out: _Tensor,
    mass: _Tensor | None,
    workspace: _Tensor,
    stream: int = 0,
) -> None:
    """Softmax attention of every query to every token of the listed pages.

    q, out: T [frames, tokens, heads, dim], strided.
    pages: T, int8 on the CPU, or float8_e4m3fn on CUDA, [pool_pages, page_elements], rows strided.
    page_table: int32 [pages], in any order; -1 for a page that is not there. page_tokens: tokens in a page.
    rotation: float32 [pages, frames, heads, pairs, 2], (cos, sin) of (t_q - t_k) * frequency, turning q's first 2 * pairs
    channels, pair i being channels (2i, 2i + 1); or None.
    bias: float32 [pages, heads], added to the scores, -inf leaves a page out for a head; or None.
    scale: of the scores before the bias; 0 means 1 / sqrt(dim).
    mass: float32 [pages, frames, heads], softmax weight spent on a page, mean over the frame's queries; or None.
    A batch: page_table [batch, pages], each row for an equal group of frames; rotation [batch, pages, frames / batch, heads, pairs, 2],
    bias [batch, pages, heads], mass [batch, pages, frames / batch, heads].
    workspace: uint8, as many as `frame_attention_workspace` says; of any alignment, where q is.
    """

def modulated_norm(
    x: _Tensor, residual: _Tensor | None, gate: _Tensor | None, scale: _Tensor, shift: _Tensor, eps: float, out: _Tensor, stream: int = 0
) -> None:
    """x += gate * residual, in place, if a residual is given; out = LayerNorm(x) * scale + shift.

    x, residual, out: T [frames, tokens, channels], strided. gate (or None: 1), scale, shift: float32 [1 or frames, channels].
    """

def gelu(x: _Tensor, stream: int = 0) -> None:
    """GELU by its tanh form, in place. x: T [frames, tokens, channels], strided."""

def quantize_rows(x: _Tensor, q: _Tensor, scale: _Tensor) -> None:
    """scale = max|x| / 127 of each row, at least 2^-100; q = 128 + x / scale, rounded. A row that is not finite: scale NaN, q 128.

    On the CPU. x: T [frames, tokens, channels], strided. q: uint8 [frames, tokens, channels], strided. scale: float32 [frames, tokens].
    """

def dequantize_rows(x: _Tensor, scale: _Tensor, bias: _Tensor, out: _Tensor) -> None:
    """out = x * scale + bias.

    On the CPU. x: float32 [frames, tokens, channels], strided. scale: float32 [frames, tokens]. bias: float32 [channels].
    out: T [frames, tokens, channels], strided; x itself, if that is what T is.
    """

def sampler_step(
    sample: _Tensor, level: float, velocity: _Tensor, after: float, noise: _Tensor | None, out: _Tensor, stream: int = 0
) -> None:
    """clean = sample - level * velocity, in float64, then rounded; out = (1 - after) * clean + after * noise, or clean without noise.

    All float32 [elements]; out may be sample.
    """

def channel_norm(x: _Tensor, gamma: _Tensor, silu: bool, out: _Tensor) -> None:
    """RMSNorm over the channels of each pixel, then SiLU if `silu`, into the middle of `out`, whose margin is filled with zeros.

    x: float32 or bfloat16 [frames, rows, columns, channels], strided. gamma: float32 [channels].
    out: float32 or bfloat16 [frames, rows + 2 m, columns + 2 m, channels] for a margin m of 0 or more, strided; x itself if they are
    alike.
    """

def conv3d(
    past: _Tensor | None,
    x: _Tensor,
    weight: _Tensor,
    bias: _Tensor,
    residual: _Tensor | None,
    out: _Tensor,
) -> None:
    """out = residual + bias + the convolution of past and x, frames joined, without padding. All float32, channels last.

    past: [kernel_frames - 1, rows, columns, in], or None: zeros. x: [frames, rows, columns, in]; columns adjacent in both.
    weight: [ceil(out / 16), kernel_frames, kernel_rows, kernel_columns, in, 16]. bias: [ceil(out / 16), 16].
    residual: like out, strided, may be out; or None. out: [frames, rows - kernel_rows + 1, columns - kernel_columns + 1, out], strided.
    """

def phase_increments(radians: _Tensor, out: _Tensor) -> None:
    """out = round(radians / 2 pi * 2^64) mod 2^64. radians: float64 [n], radians per frame, |radians| <= 2^32; out: uint64 [n]."""

def rotation_table(turns: _Tensor, offsets: _Tensor, out: _Tensor) -> None:
    """out[page, frame, head, pair] = (cos, sin)(offsets[page, frame] * turns[head, pair]).

    turns: uint64 [heads, pairs], in 2^-64 turns per frame. offsets: int64 [pages, frames], query frame minus page frame.
    out: float32 [pages, frames, heads, pairs, 2].
    """

def normal(seed: int, frame: int, step: int, out: _Tensor) -> None:
    """Fills out, float32 and contiguous, with standard normal draws that depend on (seed, frame, step) and nothing else.

    seed: 0 to 2^64 - 1. frame: int64. step: int32.
    """

def check_array(name: str, array: _Tensor, written: bool) -> None:
    """Raises ValueError, with the name, for an array that `torch.from_dlpack` would misread or end the process for: one with a negative
    stride, a `byte_offset`, sizes that no memory holds; and for one that is `written` though it is read-only."""

def page_elements(
    dtype: Literal["float32", "bfloat16", "float16", "float8_e4m3fn", "int8"] | str,
    tokens: int,
    heads: int,
    dim: int,
    device: Literal["cpu", "cuda"] | str = "cpu",
) -> int:
    """Elements of one page on such a device: K and V of `tokens` tokens and all heads, padding and scales included."""

class Pool:
    """Which of a number of pages are free, and how many hold those that are not."""

    def __init__(self, pages: int) -> None: ...
    def acquire(self) -> int:
        """Takes the lowest free page; MemoryError when none is left."""

    def retain(self, page: int) -> None:
        """Gives a taken page one holder more: it is free again when it has been released as often."""

    def release(self, page: int) -> None: ...
    @property
    def free_pages(self) -> int: ...

class Window:
    """The pages of a stream's window: its first `sink_frames` frames, and the `recent_frames` newest of the later ones."""

    def __init__(self, pool: Pool, sink_frames: int, recent_frames: int) -> None: ...
    def advance(self, first_frame: int, frames: int) -> None:
        """Makes room for the next chunk [first_frame, first_frame + frames) and gives each of its frames a page.

        Frames follow one another without a gap; the first call says where the stream starts; the newest chunk again changes nothing.
        Raises, with the window unchanged, ValueError when the frames do not follow or fit and MemoryError when the pool has no page.
        """

    def read(self) -> tuple[list[int], list[int]]:
        """Pages and their frames, oldest first: sinks, then recent frames, the newest chunk last."""

    def restore(self, frames: list[int]) -> None:
        """Puts a saved list of frames, as `read` gave it, into a new window, taking a page from the pool for each."""

    def __len__(self) -> int: ...

def guard_mapping(address: int, bytes: int) -> int:
    """From now on, pages of a mapped file that are gone when they are touched, because the file has become shorter, are zeros; without
    this the process ends by SIGBUS, whose handler the first call sets. Gives a number for `unguard_mapping`; -1 where there are too
    many."""

def unguard_mapping(number: int) -> None: ...
def take_lost_pages() -> int:
    """How many pages of guarded mappings were gone since the last call."""

def isas() -> list[str]:
    """Kernel sets that this build has and this CPU can run, best first: of "amx", "avx512bf16", "avx512", "avx2"; "neonbf16",
    "neon"; "scalar"."""

def isa() -> str:
    """The kernel set in use: the best, or what the environment variable LOLRT_ISA or `set_isa` named."""

def set_isa(name: str) -> None: ...
def threads() -> int:
    """Threads that the library uses at most, the caller included; by default as many as the process has CPUs, by its affinity and the
    quota of its control group."""

def set_threads(threads: int) -> None: ...
def version() -> str: ...
def abi_version() -> int: ...
