"""The memory plan against what torch's allocator hands out while streams run, and the readers' peak against the size of the file."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import layouts
import packings
import pytest
import torch
from ggufs import save_gguf
from packings import PACKINGS
from safetensors.torch import save_file

import lolrt
from lolrt.checkpoint import unfilled
from lolrt.checkpoint.shapes import dit_shapes
from lolrt.memory_plan import codec_memory, plan
from lolrt.models.vae.layers import CausalConv3d, Downsample, Upsample
from lolrt.models.vae.taehv import TAEHVConfig
from lolrt.models.vae.tiles import Tiled
from lolrt.ops import library, planned_for_cuda
from lolrt.ops.int8 import multiplies_exactly
from lolrt.pipeline import preferred_dtype
from lolrt.session.config import StreamConfig

pytestmark = pytest.mark.whole

# Large enough that the few tensors which are outside the plan (noise, the sampler's) stay far below the tolerance, and with little text,
# as at real sizes: there the passes take more than the encoding of a prompt.
DIT = lolrt.DiTConfig(dim=384, ffn_dim=1024, text_dim=64, text_len=24, num_heads=3, num_layers=8)
VAE = lolrt.VAEConfig(dim=16)
WITHIN = 0.05

# If the CPU does not multiply bfloat16, torch's products convert both matrices first, into memory that our plan does not count.
WIDENED = pytest.mark.skipif(preferred_dtype() != torch.bfloat16, reason="torch's products of bfloat16 make copies on this CPU")


def allocated(run) -> tuple[int, int]:
    """Bytes of torch's CPU allocator: the most that `run` held at any time, and what it holds at its end."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        kept = run()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    del kept
    return peak, now


without_vnni = pytest.mark.skipif(not multiplies_exactly(), reason="this CPU has no VNNI")
KINDS = [
    pytest.param(torch.bfloat16, "full", marks=WIDENED),
    pytest.param(torch.float32, "full"),
    pytest.param(torch.float32, "int8", marks=without_vnni),
]


@pytest.mark.parametrize("dtype, linear", KINDS, ids=["bf16", "float32", "int8"])
@pytest.mark.parametrize("height, width, window", [(64, 96, lolrt.Window(1, 6, 2)), (32, 160, lolrt.Window(3, 9, 3, recall_frames=3))])
def test_a_stream_keeps_to_the_plan(dtype, linear, height, width, window):
    dit = lolrt.CausalDiT(DIT, linear).requires_grad_(False).to(dtype)
    vae = lolrt.CausalVAE(VAE).requires_grad_(False).to(dtype)
    dit.prepare()
    prompt = torch.randn(12, DIT.text_dim)
    sampler = lolrt.Sampler(timesteps=(1000,))
    memory = plan(DIT, VAE, height, width, dtype=dtype, window=window, passes=len(sampler.timesteps), linear=linear)

    def chunks(make: Callable[[], Iterator[lolrt.LatentChunk]]) -> Callable[[], object]:
        def run() -> object:
            stream = make()
            for chunk in islice(stream, -(-window.pages // window.chunk_frames)):
                for _ in range(80 if isinstance(stream, lolrt.Stream) else 0):
                    stream._remember(chunk.latents)  # as a longer run would
            return stream

        return run

    latent_stream = partial(lolrt.LatentStream, dit, prompt, height // 8, width // 8, window=window, sampler=sampler)
    stream = chunks(lambda: lolrt.Stream(latent_stream(), vae, lambda _: prompt))
    stream()  # makes what is made once for all streams: the decoder's packed weights, and the workspace
    held = sum(memory.stream.values()) - memory.stream["workspace of attention"]
    assert allocated(stream) == pytest.approx((held + memory.transient["decoding of a chunk"], held), rel=WITHIN)
    held -= memory.stream["VAE's past frames"] + memory.stream["latents that were decoded"]
    assert allocated(chunks(latent_stream)) == pytest.approx((held + memory.transient["a pass of the DiT"], held), rel=WITHIN)


@pytest.mark.parametrize("kv", [None, torch.int8], ids=["float32", "int8"])
def test_the_workspace_of_attention_is_that_of_the_pages(kv):
    """Each thread keeps the largest that it has used."""
    dit = lolrt.CausalDiT(DIT).requires_grad_(False)
    window, sampler = lolrt.Window(1, 6, 2), lolrt.Sampler(timesteps=(1000,))

    def used() -> int:
        list(islice(lolrt.LatentStream(dit, torch.randn(12, DIT.text_dim), 8, 12, window=window, sampler=sampler, kv_dtype=kv), 4))
        return library._local.workspace.numel()

    with ThreadPoolExecutor(1) as thread:
        planned = plan(DIT, VAE, 64, 96, dtype=torch.float32, window=window, passes=1, kv_dtype=kv).stream["workspace of attention"]
        assert thread.submit(used).result() == planned


@WIDENED
@pytest.mark.parametrize("recache", ["window", "sinks"])
def test_a_new_prompt_keeps_to_the_plan(recache):
    """For a model with as much text as pictures, so that the text's memory shows."""
    config, window = replace(DIT, text_len=512), lolrt.Window(1, 6, 2)
    dit = lolrt.CausalDiT(config).requires_grad_(False).bfloat16()
    dit.prepare()
    first, second = torch.randn(500, DIT.text_dim), torch.randn(12, DIT.text_dim)
    memory = plan(config, VAE, 64, 96, window=window, passes=1)

    def run() -> object:
        stream = lolrt.LatentStream(dit, first, 8, 12, window=window, sampler=lolrt.Sampler(timesteps=(1000,)))
        list(islice(stream, 4))
        stream.set_prompt(second, recache=recache)
        next(stream)
        return stream

    run()
    held = sum(memory.stream.values()) - memory.stream["workspace of attention"] - memory.stream["VAE's past frames"]
    switching = memory.transient["a new prompt"]
    assert switching > memory.transient["a pass of the DiT"]
    assert allocated(run) == pytest.approx((held + switching, held), rel=WITHIN)


TINY = TAEHVConfig(encoder_width=16, decoder_widths=(64, 32, 16, 16))


@pytest.mark.parametrize("encoding", [False, True], ids=["decoding", "encoding"])
@pytest.mark.parametrize(
    "config, tile, dtype",
    [
        pytest.param(VAE, None, torch.bfloat16, marks=WIDENED), (VAE, None, torch.float32),
        pytest.param(VAE, 64, torch.bfloat16, marks=WIDENED), (VAE, 64, torch.float32),
        pytest.param(TINY, None, torch.bfloat16, marks=WIDENED), (TINY, None, torch.float32),
    ],
    ids=["VAE-bf16", "VAE-float32", "tiles-bf16", "tiles-float32", "TAEHV-bf16", "TAEHV-float32"],
)  # fmt: skip
def test_a_codec_keeps_to_its_plan(config, tile, encoding, dtype):
    whole = (lolrt.CausalVAE(config) if config is VAE else lolrt.TAEHV(config)).requires_grad_(False).to(dtype)
    codec = Tiled(whole, tile) if tile else whole
    memory = codec_memory(config, 96, 128, dtype=dtype, encoding=encoding, tile=tile)

    def run() -> object:
        state: dict[str, torch.Tensor] = {}
        for call in range(3):
            if encoding:
                codec.encode(clips[min(call, 1)], state)
            else:
                codec.decode(latents, state).add(1).mul_(127.5).round_().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
        return state

    latents, clips = torch.randn(1, 16, 12, 16), [torch.rand(count, 3, 96, 128) for count in (1, 4)]
    run()  # packs the weights
    assert allocated(run) == pytest.approx((memory.carried + memory.transient, memory.carried), rel=WITHIN)


@pytest.mark.parametrize("encoding, most_mib", [(False, 2500), (True, 1750)], ids=["decoding", "encoding"])
def test_wans_vae_at_480x832_stays_within_the_bound_that_is_stated(encoding, most_mib):
    """docs/streams.md. What is carried is worked out here too: of every convolution over time, two frames of its input with a margin of
    one pixel around them where it is 3 x 3, and of every halving of time, one frame."""
    memory = codec_memory(lolrt.VAEConfig(), 480, 832, encoding=encoding)
    assert memory.carried + memory.transient <= most_mib << 20
    carried = 0
    with unfilled():
        coder = getattr(lolrt.CausalVAE(lolrt.VAEConfig()), "encoder" if encoding else "decoder")
    rows, columns = (480, 832) if encoding else (60, 104)
    for module in coder.modules():
        if isinstance(module, Downsample):
            rows, columns = rows // 2, columns // 2
            carried += 2 * rows * columns * module.time_conv.in_channels if module.time_conv else 0
        elif isinstance(module, Upsample):
            carried += 2 * 2 * rows * columns * module.time_conv.in_channels if module.time_conv else 0
            rows, columns = 2 * rows, 2 * columns
        elif isinstance(module, CausalConv3d) and module.kernel_size == (3, 3, 3):
            carried += 2 * 2 * (rows + 2) * (columns + 2) * module.in_channels
    assert memory.carried == carried


def test_pages_grow_with_the_window():
    short, long = (plan(DIT, VAE, 128, 192, window=window).stream for window in (lolrt.Window(), lolrt.Window(3, 15)))
    assert long["18 pages of 8 layers"] == pytest.approx(1.5 * short["12 pages of 8 layers"], rel=1e-5)
    assert all(long[name] == short[name] for name in ("VAE's past frames", "keys and values of the text"))


def test_on_cuda_pages_are_plain_rows_and_passes_have_memory_of_their_own():
    window = lolrt.Window(3, 9, recall_frames=3)
    cuda, cpu = (plan(DIT, VAE, 64, 96, window=window, device=device) for device in ("cuda", "cpu"))
    tokens, row = 24, 2 * 2 * DIT.dim  # bytes of a token's K and V in bfloat16
    assert cuda.stream["36 pages of 8 layers"] == 36 * 8 * tokens * row
    assert cuda.stream["keys and values of the text"] == 8 * DIT.text_len * row
    assert cpu.stream["36 pages of 8 layers"] == 36 * 8 * 32 * DIT.dim * 2 + 36 * 8 * 24 * DIT.dim * 2, "K by 16 tokens"
    assert cuda.weights == cpu.weights
    total, own = cuda.total, cuda.stream.pop("CUDA graphs' own memory")
    copies = 4 * (3 * 16 * 8 * 12 + (6 * 8 + 2) * DIT.dim + 8 * 15 * 3 * 3)  # sample, modulation, attention mass
    assert own == cuda.transient["a pass of the DiT"] + copies
    assert cuda.stream.keys() == cpu.stream.keys()
    assert total == own + sum(sum(part.values()) for part in (cuda.weights, cuda.stream, cuda.transient))


@WIDENED
def test_decoding_as_on_cuda_keeps_to_the_plan():
    """On CUDA its norms are torch's, and take more memory."""
    vae = lolrt.CausalVAE(VAE).requires_grad_(False).bfloat16()
    state: dict[str, torch.Tensor] = {}
    latents = torch.randn(3, 16, 16, 24)

    def decode() -> None:
        vae.decode(latents, state).add(1).mul_(127.5).round_().to(torch.uint8).permute(0, 2, 3, 1).contiguous()

    with planned_for_cuda(), torch.inference_mode():
        decode()
        peak, _ = allocated(decode)
    planned, on_cpu = (plan(DIT, VAE, 128, 192, device=device).transient["decoding of a chunk"] for device in ("cuda", "cpu"))
    assert peak == pytest.approx(planned, rel=WITHIN)
    assert planned > 1.2 * on_cpu


def test_a_window_that_is_no_multiple_of_a_chunk():
    """Frames leave the window in the middle of a chunk, and a store of one frame would have to choose among frames without values."""
    window = lolrt.Window(3, 10, recall_frames=1, store_frames=1)
    assert "14 pages of 8 layers" in plan(DIT, VAE, 128, 192, window=window).stream


def test_a_size_that_does_not_fit_is_told():
    with pytest.raises(lolrt.Error, match="100 x 192 pixels do not divide into patches of 16 x 16 pixels; 96 x 192 would fit"):
        plan(DIT, VAE, 100, 192)
    with pytest.raises(lolrt.Error, match="do not divide into patches of 16 x 16 pixels"):
        plan(DIT, VAE, 104, 192)


# Run in a process of its own: its peak is that of the loading alone, once libraries have been loaded by a small model. Arguments: the small
# one, and then paths and dtypes in turn.
LOADING = """
import gc, sys, torch, lolrt

def resident(field):
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith(field))

lolrt.load_dit(sys.argv[1], torch.bfloat16)
for path, dtype in zip(sys.argv[2::2], sys.argv[3::2]):
    gc.collect()
    open("/proc/self/clear_refs", "w").write("5")  # the peak so far is forgotten
    before = resident("VmRSS")
    dit = lolrt.load_dit(path, getattr(torch, dtype))
    print(resident("VmHWM") - before, sum(parameter.nbytes for parameter in dit.parameters()))
    del dit
"""


SIZES = lolrt.DiTConfig(dim=768, ffn_dim=3072, text_dim=256, num_heads=6, num_layers=1)
LARGEST = 4 * 768 * 6 * 768  # bytes of time_projection.1.weight


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """A folder with a DiT of 59 MB in float32, as Self-Forcing's .pt and as safetensors."""
    folder = tmp_path_factory.mktemp("large")
    tensors = {name: torch.full(shape, 0.01) for name, shape in dit_shapes(SIZES).items()}
    torch.save({"generator_ema": {f"model.{name}": tensor for name, tensor in tensors.items()}}, folder / "x.pt")
    save_file(tensors, folder / "x.safetensors")
    layouts.save_sharded(folder / "shards", tensors)
    whole = (folder / "x.safetensors").read_bytes()
    length = int.from_bytes(whole[:8], "little")  # with a header of an odd length, as old writers left it, no tensor is aligned
    (folder / "odd.safetensors").write_bytes((length + 1).to_bytes(8, "little") + whole[8 : 8 + length] + b" " + whole[8 + length :])
    layouts.save_wan(folder / "small", layouts.dit_tensors())
    for name, packing in PACKED.items():
        packings.save(folder / name, PACKINGS[packing](tensors))
    for name, kind in GGUFS.items():
        save_gguf(folder / name, tensors, kind)
    packings.save(folder / "small.safetensors", PACKINGS["LightX2V, int8"](layouts.dit_tensors()))
    return folder


# Names of files, and the form of each: every way in which 8 bits are unpacked, and ComfyUI's wrapper in 16.
PACKED = {
    "comfy.safetensors": "ComfyUI, fp16",
    "raw.safetensors": "fp8 e4m3, raw",
    "scaled.safetensors": "fp8_scaled, in ComfyUI's wrapper, with scales of the activations",
    "rows.safetensors": "LightX2V, int8",
    "blocks.safetensors": "TurboDiffusion, int8",
}
GGUFS = {"q8_0.gguf": "Q8_0", "q4_k.gguf": "Q4_K", "q6_k.gguf": "Q6_K", "f16.gguf": "F16"}
CASES = [
    ("x.pt", "bfloat16"),
    ("x.safetensors", "float32"),
    ("x.safetensors", "bfloat16"),
    ("shards", "float32"),
    ("odd.safetensors", "float32"),
    ("odd.safetensors", "bfloat16"),
]


def loaded(small: Path, cases: list[tuple[Path, str]]) -> list[tuple[int, int]]:
    """Peak and size of the weights of each, in bytes."""
    command = [sys.executable, "-c", LOADING, small, *(argument for case in cases for argument in case)]
    # malloc then gives large blocks back at once. Otherwise what it keeps for later differs from run to run, by the largest tensor.
    variables = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 17)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120, env=variables)
    return [(int(peak), int(weights)) for peak, weights in map(str.split, done.stdout.splitlines())]


@pytest.mark.parametrize("name, dtype", CASES)
def test_loading_peaks_below_1_2_times_the_file(name, dtype, large):
    ((peak, weights),) = loaded(large / "small", [(large / name, dtype)])
    file = sum(path.stat().st_size for path in ((large / name).iterdir() if (large / name).is_dir() else [large / name]))
    assert weights == pytest.approx(file if dtype == "float32" else file / 2, rel=0.01)
    copied = dtype != "float32" or name.startswith("odd")
    assert peak < 1.2 * weights + (LARGEST if copied else 0), "the weights, and the one tensor that is being converted"


def test_loading_what_is_packed_peaks_below_1_2_times_the_weights(large):
    cases = [(large / name, dtype) for name in (*PACKED, *GGUFS) for dtype in ("bfloat16", "float32")]
    for (path, dtype), (peak, weights) in zip(cases, loaded(large / "small.safetensors", cases), strict=True):
        itemsize = getattr(torch, dtype).itemsize
        assert weights == itemsize * sum(math.prod(shape) for shape in dit_shapes(SIZES).values())
        assert peak < 1.2 * weights + LARGEST // 4 * itemsize, f"{path.name} as {dtype}: the weights, and one of them that is unpacked"


def test_sessions_that_share_an_engine_keep_to_the_plan():
    """Three of them, stepped together: the plan of what the engine holds is right within 1 %."""
    window, sessions = lolrt.Window(1, 6, 2), 3
    dit = lolrt.CausalDiT(DIT).requires_grad_(False)
    dit.prepare()
    prompts = [torch.randn(count, DIT.text_dim) for count in (3, 8, 12)]
    memory = plan(DIT, VAE, 64, 96, dtype=torch.float32, window=window, passes=1, sessions=sessions)
    config = StreamConfig(window=window, sampler=lolrt.Sampler(timesteps=(1000,)), probe=True)

    def run() -> object:
        engine = lolrt.Engine(dit, 8, 12, pages=sessions * window.pool_pages, sessions=sessions)
        opened = [lolrt.Session(engine, prompt, config) for prompt in prompts]
        for _ in range(2 * -(-window.pages // window.chunk_frames)):
            engine.step(opened)
        return engine, opened

    run()  # the workspace of attention is made once
    not_the_engines = "workspace of attention", "VAE's past frames", "latents that were decoded"
    held = sum(count for name, count in memory.stream.items() if name not in not_the_engines)
    peak, now = allocated(run)
    assert now == pytest.approx(held, rel=0.01)
    assert peak == pytest.approx(held + memory.transient["a pass of the DiT"], rel=WITHIN)
