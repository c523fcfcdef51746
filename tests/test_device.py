"""Models on a device other than the CPU, as far as this can be tested without one. The meta device stands for it: its tensors have no
values and do not mix with others. torch's answers about CUDA are made up. The kernels themselves are tested in tests/cuda."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from itertools import islice
from types import SimpleNamespace

import pytest
import torch
from test_cli import error_of
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import lolrt
from lolrt import ops
from lolrt.checkpoint import unfilled
from lolrt.cli.video import one_ahead
from lolrt.models.vae.layers import RMSNorm
from lolrt.models.vae.streaming import Norm
from lolrt.ops.device import Coming, on_side_stream, upload, usable

DIT = lolrt.DiTConfig(dim=256, ffn_dim=512, text_dim=64, text_len=16, num_heads=2, num_layers=2)


@pytest.fixture
def far_dit() -> lolrt.CausalDiT:
    with unfilled():
        return lolrt.CausalDiT(DIT).bfloat16().requires_grad_(False)


@pytest.mark.parametrize("gate", [lolrt.SinkGate(), lolrt.SinkGate(bias=-1.0)], ids=["open", "biased"])
def test_a_stream_keeps_all_but_its_positions_and_noise_on_the_device_and_reads_nothing_back(far_dit, gate):
    options = dict(window=lolrt.Window(3, 6, gate=gate), probe=True, sampler=lolrt.Sampler((1000, 500), context_noise=0.1))
    stream = lolrt.LatentStream(far_dit, torch.randn(5, 64), 8, 8, start=torch.randn(4, 16, 8, 8), **options)
    for chunk in islice(stream, 6):
        assert chunk.latents.is_meta and chunk.mass.is_meta
    stream.set_prompt(torch.randn(7, 64), recache="sinks")
    assert next(stream).page_frames == (0, 1, 2, 13, 14, 15, 16, 17, 18)
    state = stream.state_dict()
    assert state["cache.pages"].is_meta and state["inputs"].is_meta
    resumed = lolrt.LatentStream(far_dit, torch.randn(5, 64), 8, 8, **options)
    resumed.load_state_dict(state)
    assert next(resumed).first_frame == 19


def test_frames_are_encoded_and_decoded_on_the_device(far_dit):
    with unfilled():
        vae = lolrt.CausalVAE(lolrt.VAEConfig(dim=16)).bfloat16().requires_grad_(False)
    pipe = lolrt.Pipeline(
        name="far", dit=far_dit, vae=vae, encode_text=lambda _: torch.randn(3, 64), sampler=lolrt.Sampler(), fps=16, height=64, width=64
    )
    assert pipe.encode_video(torch.zeros(64, 64, 3, dtype=torch.uint8) for _ in range(5)).is_meta
    stream = pipe.stream("anything")
    assert [tuple(chunk.frames.shape) for chunk in islice(stream, 2)] == [(9, 64, 64, 3), (12, 64, 64, 3)]
    stream.load_state_dict(stream.state_dict())
    assert len(next(stream).frames) == 12


def test_attention_asks_for_its_workspace_where_its_tensors_are(monkeypatch):
    """Another GPU than the current one may need another size. Tensors and kernels are fakes."""
    current, calls = [0], []

    @contextlib.contextmanager
    def made_current(device):
        current.append(device.index)
        yield
        current.pop()

    kernels = SimpleNamespace(
        frame_attention_workspace=lambda *_: calls.append(("workspace", current[-1])) or 100,
        frame_attention=lambda *arguments, stream: calls.append((arguments[-1].device.index, current[-1], stream)),
    )
    monkeypatch.setattr(torch.cuda, "device", made_current)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=7))
    monkeypatch.setattr(ops.library, "_core", kernels)
    monkeypatch.setattr(torch, "empty", lambda *_, device, **__: SimpleNamespace(device=device))
    q = SimpleNamespace(shape=(2, 3, 1, 64), dtype=torch.bfloat16, device=torch.device("cuda", 1), is_cuda=True)
    ops.library.frame_attention(q, None, None, 3, None, None, None)
    assert calls == [("workspace", 1), (1, 1, 7)]


def test_passes_over_a_full_window_find_everything_where_the_last_one_did(small_dit, rollout_inputs, monkeypatch):
    """This lets a CUDA graph of a pass be replayed: everything that changes from chunk to chunk is written into the same memory."""
    stream = lolrt.LatentStream(small_dit, rollout_inputs["prompt_embeds"], 8, 8)
    list(islice(stream, 4))
    places: list[object] = []
    tables: list[list[int]] = []
    attend, write = ops.frame_attention, ops.kv_write

    def place(*tensors):
        places.append([(x.data_ptr(), x.shape, x.stride()) for x in tensors if x is not None])

    def spy(q, pages, page_table, tokens, *, rotation=None, **options):
        place(pages, page_table, rotation)
        tables.append(page_table.tolist())
        return attend(q, pages, page_table, tokens, rotation=rotation, **options)

    def spy_on_writes(k, v, pages, page_table, **options):
        place(pages, page_table)
        write(k, v, pages, page_table, **options)

    monkeypatch.setattr(ops, "frame_attention", spy)
    monkeypatch.setattr(ops, "kv_write", spy_on_writes)
    for _ in range(2):
        next(stream)
    half = len(places) // 2
    assert places[:half] == places[half:]
    assert tables[0] != tables[-2], "other pages are in the window"


def test_a_pass_brings_nothing_to_the_device(far_dit, monkeypatch):
    """A graph of the pass would upload the same values again."""

    class AllThere(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            assert all(x.is_meta for x in tree_leaves((args, kwargs, out)) if isinstance(x, torch.Tensor)), func
            return out

    forward, passes = lolrt.CausalDiT.forward, []

    def watched(*args, **options):
        passes.append(1)
        with AllThere():
            return forward(*args, **options)

    monkeypatch.setattr(lolrt.CausalDiT, "forward", watched)
    window = lolrt.Window(3, 6, gate=lolrt.SinkGate(bias=-1.0))
    stream = lolrt.LatentStream(far_dit, torch.randn(5, 64), 8, 8, window=window, probe=True, sampler=lolrt.Sampler((1000, 500)))
    for _ in islice(stream, 4):
        pass
    assert len(passes) == 4 * 3


def test_a_state_of_another_device_is_refused(small_dit, rollout_inputs):
    """Its pages may have the same number of elements, in another order."""
    stream = lolrt.LatentStream(small_dit, rollout_inputs["prompt_embeds"], 8, 8)
    next(stream)
    saved = stream.snapshot()
    with pytest.raises(lolrt.Error, match="saved pages are not those of cpu"):
        stream.restore(replace(saved, tensors=saved.tensors | {"cache.on_cuda": torch.tensor(True)}))
    stream.restore(saved)


@pytest.mark.parametrize("silu", [False, True])
def test_the_norm_that_cuda_takes_from_torch_is_that_of_the_kernels(silu):
    norm = RMSNorm(24)
    norm.gamma.data.uniform_(0.5, 2)
    x = torch.randn(2, 5, 7, 24)
    out = torch.full((2, 7, 9, 24), torch.nan)
    layer = Norm(norm, silu)
    torch.testing.assert_close(layer.in_torch(x), layer(x, out)[:, 1:-1, 1:-1], atol=2e-6, rtol=2e-6)


def test_on_the_cpu_nothing_is_copied_and_nothing_waits():
    x = torch.randn(3)
    assert upload(x, torch.device("cpu")) is x
    assert on_side_stream(lambda y: (2 * y, y), x).result()[0].equal(2 * x)
    assert list(one_ahead(iter([1, 2, 3]))) == [1, 2, 3]


def test_the_next_chunk_is_queued_before_this_one_is_given():
    asked: list[int] = []

    def chunks():
        for i in range(3):
            asked.append(i)
            yield i

    coming = one_ahead(chunks())
    assert next(coming) == 0 and asked == [0, 1]


def test_what_comes_is_waited_for():
    waited: list[bool] = []
    coming = Coming((torch.zeros(9),), SimpleNamespace(synchronize=lambda: waited.append(True)))
    assert len(coming.tensors[0]) == 9 and not waited
    assert coming.result() is coming.tensors and waited


def test_kernels_are_queued_on_torchs_stream_of_the_tensors_device(monkeypatch):
    entered: list[object] = []

    @contextlib.contextmanager
    def device(found):
        entered.append(found)
        yield

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=77))
    calls: list[tuple[object, ...]] = []

    def kernel(*arguments, stream=None):
        calls.append((*arguments, stream))

    ops.library._run(kernel, SimpleNamespace(is_cuda=True, device="cuda:1"), 1, 2)
    ops.library._run(kernel, torch.zeros(1), 3)
    assert calls == [(1, 2, 77), (3, None)] and entered == ["cuda:1"]


@pytest.fixture
def gpu(monkeypatch) -> pytest.MonkeyPatch:
    """torch reports a machine with one GPU, an H100; tests take parts of it away."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    for name, answer in dict(
        is_available=True, current_device=0, device_count=1, get_device_capability=(9, 0), get_device_name="H100"
    ).items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)
    full = torch.full
    monkeypatch.setattr(torch, "full", lambda *arguments, device=None, **options: full(*arguments, **options))
    return monkeypatch


def test_a_device_that_can_be_used_has_its_number(gpu):
    assert usable("cuda") == usable("cuda:0") == torch.device("cuda", 0)
    assert usable("cpu", torch.float32) == torch.device("cpu")


def kernel_fails(*_: object) -> None:
    raise RuntimeError("frame_attention: CUDA: no kernel image is available for execution on the device")


def kernel_of_no_code(q: torch.Tensor, *_: object) -> torch.Tensor:
    return torch.zeros_like(q)


def kernel_of_one_dim(q: torch.Tensor, *_: object) -> torch.Tensor:
    return q if q.shape[-1] == 128 else torch.ones_like(q) * 2


@pytest.mark.parametrize(
    "changes, device, dtype, message",
    [
        ({}, "tpu", torch.bfloat16, 'device is \'tpu\'; expected "cpu" or "cuda"'),
        ({}, "meta", torch.bfloat16, "device is 'meta'"),
        ({}, "cuda", torch.float32, "dtype is float32; on CUDA models run in bfloat16"),
        ({"version.cuda": None}, "cuda", torch.bfloat16, "is built without CUDA; install a CUDA build"),
        ({"cuda.is_available": lambda: False}, "cuda", torch.bfloat16, "finds no GPU and driver; nvidia-smi"),
        ({}, "cuda:3", torch.bfloat16, "there are 1 GPUs"),
        ({"cuda.get_device_capability": lambda _: (7, 5)}, "cuda", torch.bfloat16, "cuda:0 is a H100, sm_75; the kernels need sm_80"),
        ({"ops.attention": kernel_fails}, "cuda", torch.bfloat16, "do not run on cuda:0: frame_attention: CUDA: no kernel image"),
        ({"ops.attention": kernel_of_no_code}, "cuda", torch.bfloat16, "attention of dim 128 writes no output; this build has no code"),
        ({"ops.attention": kernel_of_one_dim}, "cuda", torch.bfloat16, "attention of dim 64 writes no output"),
    ],
)
def test_a_device_that_cannot_be_used_is_told(gpu, changes, device, dtype, message):
    for name, value in changes.items():
        owner, _, attribute = name.partition(".")
        gpu.setattr({"version": torch.version, "cuda": torch.cuda, "ops": ops}[owner], attribute, value)
    with pytest.raises(lolrt.Error, match=message):
        usable(device, dtype)


@pytest.mark.whole
@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch is built with CUDA")
def test_the_command_line_says_what_is_missing(tmp_path, data):
    line = error_of("generate", "a red car", "-o", tmp_path / "v.mp4", "--device", "cuda")
    assert "is built without CUDA" in line and "use the CPU" in line
    with pytest.raises(lolrt.Error, match="is built without CUDA"):
        lolrt.load_dit(data / "self_forcing_dmd_small.pt", device="cuda")
