"""The ops of the video decoder, on images with their channels last, by the rule of test_ops.py."""

from __future__ import annotations

import itertools

import numpy as np
import oracle
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rule import DTYPES, check, fp64, name_of
from torch import Tensor

import lolrt
from lolrt import _core, ops
from lolrt.models.vae import decoder

pytestmark = pytest.mark.usefixtures("isa")

# The instruction set stays the same over the examples of one test.
geometries = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)


def within_nan(image: Tensor, right: int = 0) -> Tensor:
    """The same image as a view into a larger one that is NaN elsewhere: `right` columns of each row, rows, frames and both ends."""
    frames, rows, columns, channels = image.shape
    larger = torch.full((frames + 2, rows + 3, columns + right, channels), torch.nan, dtype=image.dtype)
    view = larger[1:-1, 2:-1, :columns]
    view.copy_(image)
    return view


def surroundings(view: Tensor) -> Tensor:
    """A copy of the larger image of `within_nan`, without the view itself."""
    base = view._base.clone()
    base.as_strided(view.shape, view.stride(), view.storage_offset()).fill_(torch.nan)
    return base


def public_norm(x: Tensor, gamma: Tensor, silu: bool, margin: int) -> Tensor:
    """RMSNorm and SiLU as in Wan's code, which rounds in between."""
    y = F.normalize(x.float(), dim=-1).to(x.dtype) * (x.shape[-1] ** 0.5) * gamma.to(x.dtype)
    return F.pad(F.silu(y) if silu else y, (0, 0, margin, margin, margin, margin))


@pytest.mark.parametrize(("dtype", "out_dtype"), list(itertools.product(DTYPES, DTYPES)), ids=name_of)
@geometries
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 9), st.integers(1, 50)),
    silu=st.booleans(),
    margin=st.integers(0, 2),
)
def test_channel_norm_matches_the_oracle(
    dtype: torch.dtype, out_dtype: torch.dtype, shape: tuple[int, ...], silu: bool, margin: int
) -> None:
    generator = torch.Generator().manual_seed(hash(shape))
    x, gamma = torch.randn(shape, generator=generator).to(dtype), 3 * torch.randn(shape[-1], generator=generator)
    ref = oracle.channel_norm(fp64(x), fp64(gamma), silu, margin)
    out = within_nan(torch.zeros(ref.shape, dtype=out_dtype))
    _core.channel_norm(within_nan(x), gamma, silu, out)
    check(out, public_norm(x, gamma, silu, margin).to(out_dtype), ref, shape[-1])
    assert surroundings(out).isnan().all()
    inside = torch.ones(ref.shape[1:3], dtype=torch.bool)
    inside[margin : margin + shape[1], margin : margin + shape[2]] = False
    assert (out[:, inside] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_channel_norm_at_the_ends_of_its_range(dtype: torch.dtype) -> None:
    """Pixels of zeros give zeros, huge gains neither overflow nor leave a remainder, and a NaN stays in its pixel."""
    x, gamma = torch.randn(1, 2, 5, 19).to(dtype), torch.full((19,), 1e4)
    x[0, 0, 0], x[0, 1, 1, 3] = 0, torch.nan
    out = torch.empty_like(x)
    _core.channel_norm(x, gamma, True, out)
    assert (out[0, 0, 0] == 0).all() and out[0, 1, 1].isnan().all()
    rest = torch.ones(2, 5, dtype=torch.bool)
    rest[1, 1] = False
    ref = fp64(1e4 * 19**0.5 * F.normalize(x.double(), dim=-1).relu())  # the result of silu for such numbers
    check(out[:, rest], public_norm(x, gamma, True, 0)[:, rest], ref[:, rest.numpy()], 19)
    in_place = x.clone()
    _core.channel_norm(in_place, gamma, True, in_place)
    assert torch.equal(in_place.view(torch.uint8), out.view(torch.uint8))


def packed_with_nan(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The packed weights, with NaN in the padding."""
    packed, packed_bias = ops.pack_convolution(weight, bias)
    if len(weight) % 16:
        packed[-1, ..., len(weight) % 16 :], packed_bias[-1, len(weight) % 16 :] = torch.nan, torch.nan
    return packed, packed_bias


@geometries
@given(
    kernel=st.sampled_from([(3, 3, 3), (3, 1, 1), (1, 1, 1), (1, 2, 2), (2, 3, 1)]),
    frames=st.integers(1, 3),
    rows=st.integers(1, 4),
    columns=st.integers(1, 30),
    channels=st.tuples(st.integers(1, 20), st.integers(1, 40)),
    with_past=st.booleans(),
    with_residual=st.booleans(),
)
def test_conv3d_matches_the_oracle(
    kernel: tuple[int, int, int], frames: int, rows: int, columns: int, channels: tuple[int, int], with_past: bool, with_residual: bool
) -> None:
    generator = torch.Generator().manual_seed(columns)
    n_in, n_out = channels
    x = torch.randn(kernel[0] - 1 + frames, rows + kernel[1] - 1, columns + kernel[2] - 1, n_in, generator=generator)
    weight, bias = torch.randn(n_out, n_in, *kernel, generator=generator), torch.randn(n_out, generator=generator)
    residual = torch.randn(frames, rows, columns, n_out, generator=generator) if with_residual else None
    past, new = x[: kernel[0] - 1], x[kernel[0] - 1 :]
    if not with_past or not len(past):
        past.zero_()
    public = F.conv3d(x.permute(3, 0, 1, 2)[None], weight, bias)[0].permute(1, 2, 3, 0)
    ref = oracle.conv3d(fp64(past), fp64(new), fp64(weight), fp64(bias), fp64(residual))

    out = within_nan(torch.zeros(ref.shape), right=2)
    given_past = within_nan(past, right=3) if with_past and len(past) else None
    given_residual = residual if residual is None else within_nan(residual, right=1)
    _core.conv3d(given_past, within_nan(new, right=1), *packed_with_nan(weight, bias), given_residual, out)
    check(out, public if residual is None else public + residual, ref, weight[0].numel())
    assert surroundings(out).isnan().all()
    if residual is not None:
        in_place = residual.clone()
        _core.conv3d(given_past, new, *packed_with_nan(weight, bias), in_place, in_place)
        assert torch.equal(in_place, out)


def test_image_ops_give_the_same_bits_for_any_number_of_threads() -> None:
    x, gamma = torch.randn(4, 9, 37, 48), torch.randn(48)
    weights = ops.pack_convolution(torch.randn(40, 48, 3, 3, 3), torch.randn(40))
    before, results = _core.threads(), []
    try:
        for threads in (1, 2, 5):
            _core.set_threads(threads)
            normed, out = torch.empty(4, 11, 39, 48), torch.empty(2, 9, 37, 40)
            _core.channel_norm(x, gamma, True, normed)
            _core.conv3d(normed[:2], normed[2:], *weights, None, out)
            results.append((normed, out))
    finally:
        _core.set_threads(before)
    for normed, out in results[1:]:
        assert torch.equal(normed, results[0][0]) and torch.equal(out, results[0][1])


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        ({"x": torch.zeros(1, 4, 4, 5)}, r"x: expected float32 \[frames, rows, columns, in_channels=6\]"),
        ({"x": torch.zeros(1, 4, 4, 6, dtype=torch.bfloat16)}, "x: expected float32"),
        ({"x": torch.zeros(1, 4, 8, 6)[:, :, ::2]}, "its columns are 12 elements apart; expected adjacent ones, 6 apart"),
        ({"x": torch.zeros(1, 2, 4, 6)}, "x has 2 rows of 4, fewer than the kernel's 3 by 3"),
        ({"past": torch.zeros(1, 4, 4, 6)}, "past: expected float32"),
        ({"out": torch.zeros(1, 2, 2, 40)}, "out has 40 channels, but weight has 1 block"),
        ({"out": torch.zeros(1, 2, 3, 7)}, "out: expected float32"),
        ({"residual": torch.zeros(1, 2, 2, 8)}, "residual: expected float32"),
        ({"bias": torch.zeros(2, 16)}, "bias: expected float32"),
    ],
)
def test_conv3d_tells_what_does_not_fit(change: dict[str, Tensor], hint: str) -> None:
    arguments: dict[str, Tensor | None] = {
        "past": torch.zeros(2, 4, 4, 6), "x": torch.zeros(1, 4, 4, 6), "weight": torch.zeros(1, 3, 3, 3, 6, 16),
        "bias": torch.zeros(1, 16), "residual": None, "out": torch.full((1, 2, 2, 7), 5.0),
    }  # fmt: skip
    with pytest.raises(ValueError, match=hint):
        _core.conv3d(**{**arguments, **change})
    assert (arguments["out"] == 5).all()


def test_channel_norm_tells_what_does_not_fit() -> None:
    x, gamma = torch.zeros(1, 4, 4, 6), torch.zeros(6)
    with pytest.raises(ValueError, match=r"out: expected float32 \[.*rows \+ 2 m=6.*columns \+ 2 m=6"):
        _core.channel_norm(x, gamma, True, torch.zeros(1, 6, 5, 6))
    with pytest.raises(ValueError, match=r"out: expected float32 \[.*rows \+ 2 m=4"):
        _core.channel_norm(x, gamma, True, torch.zeros(1, 5, 5, 6))
    with pytest.raises(ValueError, match="gamma"):
        _core.channel_norm(x, gamma[:5], True, x)


# ---- the decoder made of them ----------------------------------------------------------------------------------------------


def test_convolution_of_a_doubled_image_in_four_phases() -> None:
    """Against doubling by repetition and a 3 x 3 convolution, as in public code."""
    block = lolrt.models.vae.layers.Upsample(10, temporal=False)
    x = torch.randn(2, 5, 7, 10)
    conv = block.resample[1]
    with torch.no_grad():
        out = decoder._Upsample(block)(x, {})
        public = block.resample(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    doubled = np.pad(fp64(x).repeat(2, axis=1).repeat(2, axis=2), ((0, 0), (1, 1), (1, 1), (0, 0)))
    ref = oracle.conv3d(None, doubled, fp64(conv.weight.detach())[:, :, None], fp64(conv.bias.detach()), None)
    check(out, public, ref, 90)


@pytest.mark.whole
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_decoding_a_stream_matches_the_clip_path(dtype: torch.dtype) -> None:
    """Any split of a stream gives the same bits, and is as near to the clip in float64 as the clip in the weights' dtype is."""
    torch.manual_seed(3)
    vae = lolrt.CausalVAE(lolrt.VAEConfig(dim=8, z_dim=6, latents_mean=(0.0,) * 6, latents_std=(1.0,) * 6)).to(dtype)
    z = torch.randn(4, 6, 3, 5)
    whole = vae.decode(z, {})
    state: decoder.State = {}
    assert torch.equal(torch.cat([vae.decode(part, state) for part in z.split([1, 2, 1])]), whole)
    with torch.no_grad():
        public = vae.decode_clip(z.transpose(0, 1)[None].to(dtype))[0].transpose(0, 1).clamp(-1, 1)
        ref = vae.double().decode_clip(z.transpose(0, 1)[None].to(dtype).double())[0].transpose(0, 1).clamp(-1, 1)
    check(whole.to(dtype), public, fp64(ref), 27 * 32)


def test_convolutions_may_lay_their_results_out_as_they_like(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's convolutions do this in bfloat16 on a CPU without AVX-512: channels come first, whatever the layout of the input."""
    vae = lolrt.CausalVAE(lolrt.VAEConfig(dim=8)).bfloat16()
    z = torch.randn(2, 16, 2, 3)
    whole = vae.decode(z, {})
    convolve, calls = F.conv3d, []

    def channels_first(*args: Tensor) -> Tensor:
        calls.append(args)
        return convolve(*args).contiguous(memory_format=torch.contiguous_format)

    monkeypatch.setattr(F, "conv3d", channels_first)
    assert torch.equal(vae.decode(z, {}), whole) and calls


def test_the_state_is_two_frames_a_convolution_and_does_not_grow() -> None:
    vae = lolrt.CausalVAE(lolrt.VAEConfig(dim=8))
    state: decoder.State = {}
    vae.decode(torch.randn(2, 16, 2, 3), state)
    places = {slot: (frames.data_ptr(), frames.shape) for slot, frames in state.items()}
    vae.decode(torch.randn(3, 16, 2, 3), state)
    assert {slot: (frames.data_ptr(), frames.shape) for slot, frames in state.items()} == places
    assert all(len(frames) == 2 and frames.untyped_storage().nbytes() == frames.nbytes for frames in state.values())
    causal = [m for m in vae.decoder.modules() if isinstance(m, lolrt.models.vae.layers.CausalConv3d) and m.kernel_size[0] > 1]
    assert state.keys() == {m.slot for m in causal}


@pytest.mark.whole
def test_changed_weights_are_seen() -> None:
    vae = lolrt.CausalVAE(lolrt.VAEConfig(dim=8))
    z = torch.randn(1, 16, 2, 3)
    before = vae.decode(z, {})
    with torch.no_grad():
        vae.decoder.head[2].bias.add_(0.25)
    inside = before.abs() < 0.7  # far from the values where pixels are clipped
    torch.testing.assert_close(vae.decode(z, {})[inside], before[inside] + 0.25, atol=1e-5, rtol=0)
