"""Checks that the outputs of a chunk's passes are finite. Otherwise the video would stay black for ever.

The check uses sums: a sum is not finite when one of its terms is not. On CUDA the sum is not waited for; it arrives at the CPU with the
frames.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lolrt.errors import Error


def total(x: Tensor) -> Tensor:
    """The sum of a tensor, float32."""
    return x.sum(dtype=torch.float32)


def check(sums: Tensor, first_frame: int, n_frames: int, *, decoded: bool = False) -> None:
    """Raises `lolrt.Error` unless all `sums` of a chunk are finite. There is one for each pass in order, the cache pass last, and, if
    `decoded`, one for the video frames."""
    if sums.is_meta:  # it has no values
        return
    wrong = (~sums.isfinite()).nonzero().flatten().tolist()
    if wrong:
        passes = len(sums) - decoded
        where = f"pass {wrong[0] + 1} of {passes}" if wrong[0] < passes else "their decoding"
        raise Error(
            f"latent frames {first_frame} to {first_frame + n_frames - 1} are not finite from {where} on: the model's numbers have gone "
            "beyond its dtype; check its weights (lolrt inspect) and the sampler's settings, or load it in float32"
        )
