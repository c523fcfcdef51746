"""Linear layers in 8 bits: their products against float64, their bits, and models that are loaded with them."""

from __future__ import annotations

import copy
import itertools
import pickle
import sys

import layouts
import numpy as np
import packings
import pytest
import torch
from commands import run
from rule import DTYPES, check, fp64, name_of
from safetensors.torch import save_file
from test_engine import NEIGHBOURS, alone, together
from torch import Tensor

import lolrt
from lolrt import ops
from lolrt.checkpoint.load import with_lora
from lolrt.models.int8_linear import Int8Linear
from lolrt.ops import int8

pytestmark = pytest.mark.skipif(not int8.multiplies_exactly(), reason="this CPU has no VNNI")

SHAPES = [(1, 1, 24, 256, 768), (3, 24, 256, 100), (2, 33, 50, 7), (1, 1, 1, 1)]


def layer(inputs: int, outputs: int, seed: int = 0) -> Int8Linear:
    """With random weights, whose scales differ by much."""
    generator = torch.Generator().manual_seed(seed)
    made = Int8Linear(inputs, outputs).requires_grad_(False)
    made.weight.copy_(torch.randint(-127, 128, (outputs, inputs), generator=generator))
    made.weight_scale.copy_(0.01 * torch.rand(outputs, generator=generator) ** 2 + 1e-6)
    made.bias.copy_(torch.randn(outputs, generator=generator))
    return made


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_layer_is_the_product_of_what_was_quantised(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    *rows, inputs, outputs = shape
    made = layer(inputs, outputs)
    x = (3 * torch.randn(*rows, inputs, generator=torch.Generator().manual_seed(1))).to(dtype)
    out = made(x)
    assert out.shape == (*rows, outputs) and out.dtype == dtype
    step = np.abs(fp64(x)).max(-1, keepdims=True) / 127
    weight, bias = fp64(made.weight) * fp64(made.weight_scale)[:, None], fp64(made.bias)
    q, scale = ops.quantize_rows(x.reshape(1, -1, inputs))
    quantised = ((fp64(q) - 128) * fp64(scale)[..., None]).reshape(x.shape)
    assert np.abs(quantised - fp64(x)).max() <= (0.5 + 1e-4) * step.max()
    torch_s = torch.nn.functional.linear(torch.tensor(quantised).to(dtype), torch.tensor(weight).to(dtype), made.bias.to(dtype))
    check(out, torch_s, quantised @ weight.T + bias, inputs)


def test_the_largest_sums_are_exact() -> None:
    """Of the widest layer of the largest model: 13824 products of 127 x 127 (Wan 14B)."""
    inputs = 13824
    made = Int8Linear(inputs, 16).requires_grad_(False)
    made.weight.fill_(127)
    made.weight[:, 1::2] = -127
    x = torch.ones(1, 5, inputs)
    x[..., 1::2] = -1
    assert torch.equal(made(x), torch.full((1, 5, 16), float(127 * inputs)))


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_bits_depend_on_neither_threads_nor_other_rows(dtype: torch.dtype) -> None:
    threads = torch.get_num_threads()
    made = layer(256, 320)
    x = torch.randn(3, 100, 300).to(dtype)[..., 20:276]
    try:
        results = []
        for count in (1, 2, 5):
            lolrt.set_threads(count)
            results.append(made(x))
            for first, last in ((0, 1), (7, 20), (99, 100)):
                assert torch.equal(made(x[:, first:last]), results[0][:, first:last])
        assert all(torch.equal(out, results[0]) for out in results)
    finally:
        lolrt.set_threads(threads)


def test_a_row_that_is_not_finite_stays_so_alone() -> None:
    x = torch.randn(1, 9, 64)
    x[0, 4, 17] = torch.inf
    assert layer(64, 32)(x)[0].isnan().all(-1).tolist() == [row == 4 for row in range(9)]


def test_other_weights_are_packed_anew_and_copies_do_not_share() -> None:
    first, second, x = layer(64, 32), layer(64, 32, seed=1), torch.randn(1, 5, 64)
    before = first(x)
    copied = copy.deepcopy(first)
    unpickled = pickle.loads(pickle.dumps(first))
    first.load_state_dict(second.state_dict(), assign=True)
    assert torch.equal(first(x), second(x)) and not torch.equal(first(x), before)
    assert torch.equal(copied(x), before) and torch.equal(unpickled(x), before)
    copied.load_state_dict(second.state_dict())  # into the same memory
    assert torch.equal(copied(x), second(x))


# ---- models ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wan(tmp_path_factory: pytest.TempPathFactory):
    """A file of a small DiT in float32, and its tensors."""
    tensors = layouts.dit_tensors()
    layouts.save_wan(tmp_path_factory.mktemp("wan"), tensors)
    return tmp_path_factory.getbasetemp() / "wan0", tensors


def in_blocks(name: str) -> bool:
    """As the public converters choose."""
    kinds = (f"{attn}_attn.{part}" for attn, part in itertools.product(("self", "cross"), "qkvo"))
    return name.startswith("blocks.") and name.endswith(tuple(f"{kind}.weight" for kind in (*kinds, "ffn.0", "ffn.2")))


def test_weights_are_quantised_to_the_nearest(wan) -> None:
    path, tensors = wan
    dit = lolrt.load_dit(path, linear="int8")
    layers = {name for name, module in dit.named_modules() if isinstance(module, Int8Linear)}
    assert layers == {name.removesuffix(".weight") for name in tensors if in_blocks(name)}
    state = dit.state_dict()
    for name in layers:
        exact, scale = tensors[f"{name}.weight"].double(), state[f"{name}.weight_scale"].double()[:, None]
        assert ((state[f"{name}.weight"] * scale - exact).abs() <= scale * 0.5001).all()
        assert (state[f"{name}.weight"].abs().amax(1) == 127).all()
        assert state[f"{name}.bias"].dtype == torch.bfloat16
    assert dit.dtype == torch.bfloat16 and dit.linear == "int8"


@pytest.mark.parametrize("form", ["LightX2V, int8", pytest.param("comfy_quant, int8", marks=pytest.mark.whole)])
def test_files_in_int8_are_taken_as_they_are(form: str, tmp_path) -> None:
    packed = {**packings.PACKINGS, **packings.KITCHEN}[form](packings.dit_tensors())
    file, *_ = packed
    dit = lolrt.load_dit(packings.save(tmp_path / "model.safetensors", packed), linear="int8")
    state = dit.state_dict()
    stored = {name[name.find("blocks.") :]: tensor for name, tensor in file.items() if tensor.dtype == torch.int8}
    assert stored
    for name, values in stored.items():
        assert torch.equal(state[name], values)
        scale = next(tensor for other, tensor in file.items() if other.endswith(f"{name}_scale"))
        assert torch.equal(state[f"{name}_scale"], scale.float().flatten().expand(len(values)))


def test_a_model_in_int8_computes_what_its_weights_say(wan) -> None:
    """Against the same model in float32 with these weights: every layer is where it belongs, and the rest is the rounding of inputs."""
    path, _ = wan
    dit = lolrt.load_dit(path, torch.float32, linear="int8")
    same_weights = lolrt.load_dit(path, torch.float32)
    state = dit.state_dict()
    for name, tensor in same_weights.state_dict().items():
        if f"{name}_scale" in state:
            tensor.copy_(state[name] * state[f"{name}_scale"][:, None])

    def latents(model: lolrt.CausalDiT) -> Tensor:
        text = torch.randn(7, 48, generator=torch.Generator().manual_seed(2))
        stream = lolrt.LatentStream(model, text, 8, 8, window=lolrt.Window(3, 6), sampler=lolrt.Sampler(timesteps=(1000, 500)), seed=3)
        return torch.cat([chunk.latents for chunk in itertools.islice(stream, 4)])

    ours, exact = latents(dit), latents(same_weights)
    assert ((ours - exact).norm() / exact.norm()).item() < 0.03


@pytest.mark.whole
def test_neighbours_change_no_bit(data, rollout_inputs, one_thread) -> None:
    """Sessions of one engine, as test_engine has them; batch_invariant is for the products around the blocks, in float32."""
    dit = lolrt.load_dit(data / "self_forcing_dmd_small.pt", torch.float32, linear="int8")
    made = together(dit, rollout_inputs, batch_invariant=True)
    for case, chunks in zip(NEIGHBOURS, made, strict=True):
        expected = alone(dit, case, rollout_inputs)
        assert all(torch.equal(a.latents, b.latents) for a, b in zip(chunks, expected, strict=True))


def test_adapters_are_merged_before_weights_are_quantised(wan, tmp_path) -> None:
    path, tensors = wan
    name = "blocks.1.ffn.2"
    out, inputs = tensors[f"{name}.weight"].shape
    generator = torch.Generator().manual_seed(4)
    down, up = torch.randn(2, inputs, generator=generator), torch.randn(out, 2, generator=generator)
    lora = tmp_path / "a.safetensors"
    save_file({f"diffusion_model.{name}.lora_down.weight": down, f"diffusion_model.{name}.lora_up.weight": up}, lora)
    loaded = lolrt.load_dit(path, lora=str(lora), linear="int8")
    scale = loaded.state_dict()[f"{name}.weight_scale"][:, None]
    merged = tensors[f"{name}.weight"] + up @ down
    assert ((loaded.state_dict()[f"{name}.weight"] * scale - merged).abs() <= 0.51 * scale).all()
    plain = lolrt.load_dit(path, linear="int8")
    for one, other in ((with_lora(plain, str(lora)), loaded), (with_lora(loaded, None), plain)):
        assert one.state_dict().keys() == other.state_dict().keys()
        assert all(torch.equal(x, other.state_dict()[key]) for key, x in one.state_dict().items())


def test_a_damaged_weight_is_refused(wan, tmp_path) -> None:
    tensors = {**wan[1], "blocks.0.ffn.0.weight": wan[1]["blocks.0.ffn.0.weight"].clone()}
    tensors["blocks.0.ffn.0.weight"][3, 4] = torch.nan
    layouts.save_wan(tmp_path, tensors)
    with pytest.raises(lolrt.CheckpointError, match=r"not finite, in blocks\.0\.ffn\.0\.weight"):
        lolrt.load_dit(tmp_path, linear="int8")


def test_a_stream_that_was_saved_in_full_is_not_resumed_in_int8(wan) -> None:
    path, _ = wan
    full, eight = (lolrt.load_dit(path, torch.float32, linear=choice) for choice in ("full", "int8"))
    streams = [lolrt.LatentStream(dit, torch.ones(3, 48), 8, 8, sampler=lolrt.Sampler(timesteps=(1000,))) for dit in (full, eight)]
    next(streams[0])
    with pytest.raises(lolrt.Error, match=r"model\.linear is None in the saved one and int8 here"):
        streams[1].load_state_dict(streams[0].state_dict())


def test_where_it_cannot_be_computed() -> None:
    with pytest.raises(lolrt.Error, match="the device is cuda"):
        int8.check_int8(torch.device("cuda", 0))


@pytest.mark.whole
def test_a_cpu_without_vnni_is_told() -> None:
    """oneDNN's products would overflow there: they are tried."""
    code = "import lolrt; lolrt.load('tiny', linear='int8')"
    told = run(sys.executable, "-c", code, ONEDNN_MAX_CPU_ISA="AVX2")
    assert told.returncode and "lolrt.errors.Error: linear layers in int8 need VNNI" in told.stderr
