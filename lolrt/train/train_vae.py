"""Trains the causal VAE towards the PCA latent space: first decoder and encoder separately, then both together.

Learning an autoencoder from scratch on a CPU takes hours; learning to invert a given linear encoder takes minutes. So the decoder
first learns to turn PCA latents into video and the encoder to turn video into PCA latents. Then the whole is fine-tuned, with the
encoder tied to the PCA space, because the DiT lives there.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lolrt.models.vae.layers import ResidualBlock, VAEConfig
from lolrt.models.vae.wan import CausalVAE
from lolrt.muon import Muon
from lolrt.pipeline import preferred_dtype
from lolrt.train.codec_pca import PCACodec, load_codec, to_unit
from lolrt.train.run import Run, autocast
from lolrt.train.vae_init import initialize, last_convolution

BATCH, CROP = 4, (32, 48)  # clips per step; height and width of the crops
PEAK_LR, JOINT_LR = 2e-3, 8e-4
LATENT_NOISE = 0.05  # on the decoder's input, as the DiT's latents are not exact either
LATENT_TIE = 0.1  # weight of the distance from the PCA latents in the joint phase
EDGE_WEIGHT, GRADIENT_WEIGHT = 6.0, 0.5
MOTION_WEIGHT = 1.0  # without it, the change between frames is a quarter larger where a latent frame begins: the video judders
NARROW = 32  # channels; residual branches at or below are the costly ones, at full resolution
NARROW_OFF = 0.12  # share of the decoder's and encoder's time in which they are off, so that the wide ones learn fast first


def vae_config(z_dim: int, std: float, num_res_blocks: int = 2) -> VAEConfig:
    mean, std_of_all = (0.0,) * z_dim, (std,) * z_dim
    return VAEConfig(
        dim=16, z_dim=z_dim, dim_mult=(1, 2, 4, 4), num_res_blocks=num_res_blocks, latents_mean=mean, latents_std=std_of_all
    )  # fmt: skip


class _Off(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(())


@contextmanager
def narrow_branches_off(vae: CausalVAE, off: bool) -> Iterator[None]:
    """Leaves out the residual branches of few channels, whose last convolution is still zero."""
    blocks = [m for m in vae.modules() if off and isinstance(m, ResidualBlock) and last_convolution(m).out_channels <= NARROW]
    branches = [block.residual for block in blocks]
    for block in blocks:
        block.residual = nn.Sequential(_Off())
    try:
        yield
    finally:
        for block, branch in zip(blocks, branches, strict=True):
            block.residual = branch


def pick(limit: int, generator: torch.Generator) -> int:
    """A random number from 0 to below `limit`."""
    return int(torch.randint(limit, (), generator=generator))


def random_crops(pixels: Tensor, batch: int, generator: torch.Generator) -> Tensor:
    """pixels: uint8 [clips, frames, 3, H, W]. Returns random clips, cut and mirrored at random.

    Returns [batch, 3, frames, *CROP] in [-1, 1].
    """
    crops = []
    for _ in range(batch):
        y, x = (8 * pick((size - crop) // 8 + 1, generator) for size, crop in zip(pixels.shape[3:], CROP, strict=True))
        crop = pixels[pick(len(pixels), generator)][..., y : y + CROP[0], x : x + CROP[1]]
        crops.append(crop.flip(-1) if pick(2, generator) else crop)
    return to_unit(torch.stack(crops))


def detail(video: Tensor) -> Tensor:
    """The amount of detail around each pixel, [batch, 1, frames, H, W]: the mean absolute difference from its neighbours, averaged over 5
    x 5 pixels.
    """
    change = torch.zeros_like(video)
    change[..., 1:] += (video[..., 1:] - video[..., :-1]).abs()
    change[..., 1:, :] += (video[..., 1:, :] - video[..., :-1, :]).abs()
    return F.avg_pool3d(change.mean(1, keepdim=True), (1, 5, 5), 1, (0, 2, 2))


def reconstruction_loss(y: Tensor, video: Tensor) -> Tensor:
    """L1 + 2 L2, weighted by detail; L1 of the differences between neighbours in space and time; and the error in the mean change from
    each frame to the next.
    """
    weight = 1 + EDGE_WEIGHT * detail(video)
    weight = weight / weight.mean()
    y = y.float()
    error = y - video
    gradients = sum((error.diff(dim=dim)).abs().mean() for dim in (2, 3, 4))
    motion, wanted = (x.diff(dim=2).abs().mean((1, 3, 4)) for x in (y, video))
    missed = (motion - wanted).abs().mean()
    return (weight * error.abs()).mean() + 2 * (weight * error.square()).mean() + GRADIENT_WEIGHT * gradients + MOTION_WEIGHT * missed


def half_parameters(vae: CausalVAE, decoder: bool) -> dict[str, nn.Parameter]:
    prefixes = ("decoder.", "conv2.") if decoder else ("encoder.", "conv1.")
    return {name: p for name, p in vae.named_parameters() if name.startswith(prefixes)}


def train_only(vae: CausalVAE, *, decoder: bool) -> dict[str, nn.Parameter]:
    """Freezes all but the decoder, or all but the encoder, whose parameters are returned."""
    parameters = half_parameters(vae, decoder)
    vae.requires_grad_(False)
    for p in parameters.values():
        p.requires_grad_(True)
    return parameters


def load_videos(work: Path) -> tuple[Tensor, Tensor]:
    """The clips to train on, uint8 [clips, frames, 3, H, W], and eight that are held out, float [8, 3, frames, H, W] in [-1, 1]."""
    held_out = torch.load(work / "held_out.pt", mmap=True)["pixels"][:8]
    return torch.load(work / "train.pt", mmap=True)["pixels"], to_unit(held_out)


def split_parameters(parameters: dict[str, nn.Parameter]) -> Muon:
    """An optimiser with Muon for the kernels between features, and AdamW for layers on pixels, norms and biases."""
    ends = ("encoder.conv1.weight", "decoder.head.2.weight")
    matrices = {name for name, p in parameters.items() if p.dim() >= 4 and name not in ends and not name.endswith("gamma")}
    others = [p for name, p in parameters.items() if name not in matrices]
    return Muon([p for name, p in parameters.items() if name in matrices], others, preferred_dtype())


@torch.no_grad()
def reconstruction_psnr(videos: Tensor, reconstructions: Tensor) -> tuple[float, float]:
    """Peak signal-to-noise ratios in dB: mean over videos [batch, 3, frames, H, W] in [-1, 1], and over their 15 % most detailed
    pixels.
    """
    error = (reconstructions.float().clamp(-1, 1) - videos).square() / 4
    where = detail(videos).expand_as(error)
    detailed = where > where[:, :1].flatten().kthvalue(int(0.85 * where[:, :1].numel())).values
    return float((-10 * error.mean((1, 2, 3, 4)).log10()).mean()), float(-10 * error[detailed].mean().log10())


def train_half(work: Path, seed: int, minutes: float, config: VAEConfig, *, decoder: bool, batch: int = BATCH) -> None:
    """Trains the decoder or the encoder against the PCA latents; leaves `decoder.pt` or `encoder.pt` in `work`."""
    vae = CausalVAE(config)
    initialize(vae, seed)
    parameters = train_only(vae, decoder=decoder)
    codec = load_codec(work)
    pixels, held_out = load_videos(work)
    run = Run("decoder" if decoder else "encoder", work, vae, split_parameters(parameters), minutes, PEAK_LR)
    while run.going():
        generator = run.generator()
        video = random_crops(pixels, batch, generator)
        latents = codec.encode(video)
        with narrow_branches_off(vae, run.progress < NARROW_OFF), autocast():
            if decoder:
                y = vae.decode_clip(latents + LATENT_NOISE * torch.randn(latents.shape, generator=generator))
                loss = reconstruction_loss(y, video)
            else:
                error = vae.encode_clip(video).float() - latents
                loss = error.abs().mean() + error.square().mean()
            run.step(loss)
        if run.report_due():
            with (
                torch.no_grad(),
                narrow_branches_off(run.averaged, run.progress < NARROW_OFF),
                autocast(),
            ):
                latents = codec.encode(held_out)
                if decoder:
                    overall, detailed = reconstruction_psnr(held_out, run.averaged.decode_clip(latents))
                    result = f"held-out {overall:.2f} dB, {detailed:.2f} dB in detail"
                else:
                    error = (run.averaged.encode_clip(held_out).float() - latents).square().mean()
                    result = f"held-out latent error {error.sqrt() / latents.std():.4f} of the standard deviation"
            run.report(result)


def train_joint(work: Path, seed: int, minutes: float, config: VAEConfig, *, batch: int = BATCH) -> None:
    """Fine-tunes both halves together, video to video and PCA latents to video; leaves `vae.pt` in `work`."""
    torch.manual_seed(seed)
    vae = CausalVAE(config)
    initialize(vae, seed)
    for name, decoder in (("decoder", True), ("encoder", False)):
        trained = torch.load(work / f"{name}.pt")["averaged"]
        vae.load_state_dict({key: trained[key] for key in half_parameters(vae, decoder)}, strict=False)
    codec = load_codec(work)
    pixels, held_out = load_videos(work)
    run = Run("vae", work, vae, split_parameters(dict(vae.named_parameters())), minutes, JOINT_LR)
    while run.going():
        generator = run.generator()
        video = random_crops(pixels, batch, generator)
        target = codec.encode(video)
        with autocast():
            # Mostly from PCA latents, because the DiT makes such latents; every fourth step through the encoder.
            if run.step_number % 4:
                latents = target + LATENT_NOISE * torch.randn(target.shape, generator=generator)
                loss = reconstruction_loss(vae.decode_clip(latents), video)
            else:
                latents = vae.encode_clip(video)
                error = latents.float() - target
                loss = reconstruction_loss(vae.decode_clip(latents), video) + LATENT_TIE * (error.abs().mean() + error.square().mean())
            run.step(loss)
        if run.report_due():
            run.report(round_trip_report(run.averaged, codec, held_out))


def train_vae(work: Path, seed: int, minutes: float, shares: dict[str, float], config: VAEConfig, *, batch: int = BATCH) -> None:
    """Trains the decoder, the encoder, then both together. shares: the shares of the minutes, by "decoder", "encoder" and "joint"."""
    for name, decoder in (("decoder", True), ("encoder", False)):
        train_half(work, seed, minutes * shares[name], config, decoder=decoder, batch=batch)
    train_joint(work, seed, minutes * shares["joint"], config, batch=batch)


@torch.no_grad()
def round_trip_report(vae: CausalVAE, codec: PCACodec, videos: Tensor) -> str:
    with autocast():
        whole = reconstruction_psnr(videos, vae.decode_clip(vae.encode_clip(videos)))
        from_pca = reconstruction_psnr(videos, vae.decode_clip(codec.encode(videos)))
    return f"held-out {whole[0]:.2f} dB, {whole[1]:.2f} dB in detail; from PCA latents {from_pca[0]:.2f} and {from_pca[1]:.2f}"


@torch.no_grad()
def codec_quality(vae: CausalVAE, codec: PCACodec, videos: Tensor) -> dict[str, float]:
    """PSNR in dB of videos [n, 3, frames, H, W] in [-1, 1], through encoder and decoder and from PCA latents; drift: second half minus
    first."""
    dtype = vae.conv2.weight.dtype
    whole = torch.cat([vae.decode_clip(vae.encode_clip(v[None].to(dtype))).float() for v in videos])
    from_pca = torch.cat([vae.decode_clip(codec.encode(v[None]).to(dtype)).float() for v in videos])
    result = dict(zip(("psnr", "psnr_detail"), reconstruction_psnr(videos, whole), strict=True))
    result |= dict(zip(("pca_psnr", "pca_psnr_detail"), reconstruction_psnr(videos, from_pca), strict=True))
    half = videos.shape[2] // 2
    early = reconstruction_psnr(videos[:, :, :half], whole[:, :, :half])[0]
    late = reconstruction_psnr(videos[:, :, half:], whole[:, :, half:])[0]
    return {**result, "drift": late - early}
