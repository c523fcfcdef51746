"""Recognises models of Wan's family that are not supported: those with other inputs than text and noise, or with packed weights."""

from __future__ import annotations

import math
import re

from lolrt.checkpoint.assembly import Foreign
from lolrt.checkpoint.formats import Component
from lolrt.errors import CheckpointError

# Names of tensors, in Wan's and diffusers' layouts, and the model that has them. One name is enough, and the first match counts.
TEXT_ALONE = "; video is made of text here, and of a picture that it begins with (--start): take a text-to-video model"
CAUSAL = "; frames follow each other here, in plain passes: take a model such as Self-Forcing"
WAN_2_2 = "Wan2.2-TI2V-5B, or of LongLive 2, which is made of it; take a model of Wan2.1, whose latents have 16 channels and not 48"
PACKED = "; weights are read here in floats, and in fp8 and int8 with plain scales: take a file of these"
VARIANTS = {
    "dit": (
        (r"vace_", f"a VACE DiT, which is led by a video and masks{TEXT_ALONE}"),
        (r".*audio", f"a speech-to-video DiT{TEXT_ALONE}"),
        (r"face_|pose_patch_embedding|motion_encoder", f"an animation DiT, which is led by poses and faces{TEXT_ALONE}"),
        (r"control_adapter|ref_conv", f"a DiT that is led by a camera, a control video or a reference picture{TEXT_ALONE}"),
        (
            r".*\.proj_l\.",
            f"a DiT of TurboDiffusion, whose frames attend in both directions, sparsely (SLA){CAUSAL}",
        ),
        (r".*delta_embedder\.|.*(far_patch|compressed_patch)", f"an AnyFlow DiT, which is told two times of each pass{CAUSAL}"),
        (r"img_emb\.|.*\.k_img\.|.*image_embedder\.|.*\.add_k_proj\.", f"an image-to-video DiT{TEXT_ALONE}"),
    ),
    "vae": (
        (r"(encoder\.down|decoder\.up)samples\.\d+\.(down|up)samples\.|encoder\.down_blocks\.\d+\.resnets\.", f"the VAE of {WAN_2_2}"),
    ),
}
# What the config beside a DiT may say that it is (`model_type`). It counts where no tensor shows it: Wan2.2's I2V-A14B differs from its T2V
# in the number of inputs alone, and sizes of the config of another model are wrong. "t2v" is what causal weights have too.
MODEL_TYPES = {
    "i2v": f"an image-to-video DiT{TEXT_ALONE}",
    "flf2v": f"a DiT for the video between two pictures{TEXT_ALONE}",
    "ti2v": f"the DiT of {WAN_2_2}",
    "vace": f"a VACE DiT, which is led by a video and masks{TEXT_ALONE}",
    "s2v": f"a speech-to-video DiT{TEXT_ALONE}",
    "animate": f"an animation DiT, which is led by poses and faces{TEXT_ALONE}",
}
# For models with Wan2.1's names: the tensor whose second size is the number of latent channels, which shows the difference.
LATENT_CHANNELS = {"dit": ("patch_embedding.weight", "the DiT"), "taehv": ("decoder.1.weight", "the TAEHV")}


def refuse_variants(component: Component) -> None:
    """Raises `lolrt.CheckpointError` for a model that is known not to be supported."""
    for pattern, what in VARIANTS.get(component.kind, ()):
        if example := next((name for name in component.tensors if re.match(pattern, name)), None):
            raise CheckpointError(f"{component.source} holds {what} (it has {example})")
    name, what = LATENT_CHANNELS.get(component.kind, ("", ""))
    if name in component.tensors and tuple(component.tensors[name].shape[1:2]) == (48,):
        raise CheckpointError(f"{component.source} holds {what} of {WAN_2_2} (it has {name} {list(component.tensors[name].shape)})")
    inputs, outputs = _channels(component)
    if inputs != outputs:
        what = f"a DiT that takes {inputs} channels and gives {outputs}, as those for image-to-video, inpainting and control do"
        raise CheckpointError(f"{component.source} holds {what}{TEXT_ALONE}")
    said = component.config.get("model_type")
    if component.kind == "dit" and isinstance(said, str) and said in MODEL_TYPES:
        raise CheckpointError(f"{component.source} holds {MODEL_TYPES[said]} (the config beside it says model_type {said!r})")
    if foreign := next((weight for weight in component.tensors.values() if isinstance(weight, Foreign)), None):
        raise CheckpointError(f"{component.source} holds weights in {foreign.form}{PACKED} (it has {foreign.example})")


def _channels(component: Component) -> tuple[int, int]:
    """The channels that a DiT takes and gives; zeros if its tensors do not show both."""
    shapes = [tuple(component.tensors[name].shape) for name in ("patch_embedding.weight", "head.head.weight") if name in component.tensors]
    if component.kind != "dit" or [len(shape) for shape in shapes] != [5, 2]:
        return 0, 0
    (_, inputs, *patch), (values, _) = shapes
    return inputs, values // max(1, math.prod(patch))
