"""Fine-tunes the decoder of a trained VAE, so that the sharpness of its video and the change from frame to frame come closer to the data's.

The pixels of a decoder are right on average where they are blurred, since its latents do not tell all details. And all that a latent frame
tells is there with the first of its four video frames: there the video jumps, and then it slows down, the more so with a DiT's latents,
whose errors differ from frame to frame and from chunk to chunk. All of this is mended by what is asked of the decoder; the encoder, and so
the latents that a DiT has learned, stay as they are.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from lolrt.models.vae.layers import VAEConfig
from lolrt.models.vae.wan import CausalVAE
from lolrt.train.codec_pca import SPATIAL, TEMPORAL, load_codec
from lolrt.train.run import Run, autocast
from lolrt.train.teacher_forcing import CHUNK
from lolrt.train.train_vae import (
    CROP,
    load_videos,
    pick,
    random_crops,
    reconstruction_loss,
    round_trip_report,
    split_parameters,
    train_only,
)

PEAK_LR = 8e-4
MOST_NOISE = 0.16  # of the latents, drawn anew for each clip, as those of a DiT are not exact
DETAIL_WEIGHT, CHANGE_WEIGHT, PACE_WEIGHT = 4.0, 1.0, 1.0
AROUND = 7  # pixels; how much there is to see is compared by such squares, not by pixels
CROP_CHUNKS, CROP_BATCH = 3, 2  # of a DiT's latents, in every second step; the first chunk is there only for the decoder's past


def amount(x: Tensor) -> Tensor:
    """The mean size of values around every second pixel: [batch, channels, frames, H, W] to [batch, 1, frames, H / 2, W / 2]."""
    return F.avg_pool3d(x.abs().mean(1, keepdim=True), (1, AROUND, AROUND), (1, 2, 2), (0, AROUND // 2, AROUND // 2))


def laplacian(x: Tensor) -> Tensor:
    """Four times each pixel less its four neighbours."""
    return 4 * x[..., 1:-1, 1:-1] - x[..., :-2, 1:-1] - x[..., 2:, 1:-1] - x[..., 1:-1, :-2] - x[..., 1:-1, 2:]


def amount_loss(y: Tensor, video: Tensor) -> Tensor:
    """The error in the amount of detail, and of change from each frame to the next, wherever it is."""
    detail = (amount(laplacian(y)) - amount(laplacian(video))).abs().mean()
    change = (amount(y.diff(dim=2)) - amount(video.diff(dim=2))).abs().mean()
    return DETAIL_WEIGHT * detail + CHANGE_WEIGHT * change


def pace_loss(y: Tensor, video: Tensor) -> Tensor:
    """The error in how much changes from frame to frame, for each of the TEMPORAL frames of a latent frame: squared, of the logarithm."""
    change, wanted = (x.diff(dim=2).abs().mean((0, 1, 3, 4)) for x in (y, video))
    return torch.stack([(change[i::TEMPORAL].mean() / wanted[i::TEMPORAL].mean()).log().square() for i in range(TEMPORAL)]).mean()


def evenness_loss(y: Tensor) -> Tensor:
    """How unevenly the frames of a chunk change, where no video tells what is right: the variance of the logarithm of their mean changes.

    y: clips [batch, 3, 1 + 4 k, H, W] of whole chunks, the first of which does not count.
    """
    change = y.diff(dim=2).abs().mean((0, 1, 3, 4))
    return change[CHUNK * TEMPORAL - TEMPORAL :].unflatten(0, (-1, CHUNK * TEMPORAL)).mean(0).log().var()


def made_crops(made: Tensor, generator: torch.Generator) -> Tensor:
    """Random parts of whole chunks of latents [streams, frames, z, h, w]: [CROP_BATCH, z, frames, h, w] of the size of CROP."""
    rows, columns = (size // SPATIAL for size in CROP)
    crops = []
    for _ in range(CROP_BATCH):
        stream, first = pick(len(made), generator), CHUNK * pick(made.shape[1] // CHUNK - CROP_CHUNKS + 1, generator)
        y, x = pick(made.shape[3] - rows + 1, generator), pick(made.shape[4] - columns + 1, generator)
        crops.append(made[stream, first : first + CHUNK * CROP_CHUNKS, :, y : y + rows, x : x + columns].transpose(0, 1))
    return torch.stack(crops)


def finetune_decoder(work: Path, minutes: float, config: VAEConfig, made: Tensor, *, batch: int) -> None:
    """Fine-tunes the decoder of `vae.pt` in `work` for a number of minutes, and puts it back there. It learns from PCA latents, and from
    latents that a DiT made, normalised, float32 [streams, frames, z, h, w]."""
    trained = torch.load(work / "vae.pt")
    vae = CausalVAE(config)
    vae.load_state_dict(trained["averaged"])
    parameters = train_only(vae, decoder=True)
    codec = load_codec(work)
    pixels, held_out = load_videos(work)
    run = Run("finetune", work, vae, split_parameters(parameters), minutes, PEAK_LR)
    while run.going():
        generator = run.generator()
        video = random_crops(pixels, batch, generator)
        latents = codec.encode(video)
        noise = MOST_NOISE * torch.rand((batch, 1, 1, 1, 1), generator=generator) * torch.randn(latents.shape, generator=generator)
        with autocast():
            y = vae.decode_clip(latents + noise).float()
            loss = reconstruction_loss(y, video) + amount_loss(y, video) + PACE_WEIGHT * pace_loss(y, video)
            if run.step_number % 2:
                loss = loss + PACE_WEIGHT * evenness_loss(vae.decode_clip(vae.denormalize(made_crops(made, generator))).float())
        run.step(loss)
        if run.report_due():
            run.report(round_trip_report(run.averaged, codec, held_out))
    torch.save({**trained, "averaged": run.averaged.state_dict()}, work / "vae.partial")
    (work / "vae.partial").replace(work / "vae.pt")
