"""How fast does the scenery pass? The camera's speed, from two frames of a video, by matching the layers of the landscape."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lolrt.train.journey.landscape import FAR_PARALLAX, LANE_TOP, MIDDLE_PARALLAX, THINGS_PARALLAX

APART = 6  # frames between the two that are matched; not a multiple of 4, in which rain falls back into its place
FLAT = 4.0  # grey levels; a layer whose differences are smaller on average says less
FLANKS = ((0, 38), (98, 144))  # columns on both sides of the subject, which does not move with the scenery
LIMIT, STEPS = 3.2, 129  # pixels a frame of what is nearest, the fastest that is tried; and how many speeds are tried
BANDS = {  # parallax: the rows in which a layer is seen
    FAR_PARALLAX: (26, 44),
    MIDDLE_PARALLAX: (34, 52),
    THINGS_PARALLAX: (24, 62),
    1.0: (int(LANE_TOP) + 11, int(LANE_TOP) + 16),
}


def camera_speed(before: Tensor, after: Tensor) -> float:
    """Pixels a frame of what is nearest, from two frames, uint8 [height, width, 3], that are APART frames apart.

    Each layer of a landscape moves at its parallax times the speed. For each speed that is tried, the rows of each layer are moved by
    as much, and the differences that are left are compared with those of no motion at all; the layers' shares are added.
    """
    speeds = torch.linspace(0, LIMIT, STEPS)
    total = torch.zeros(STEPS)
    for parallax, (top, bottom) in BANDS.items():
        for left, right in FLANKS:
            total += left_over(before[top:bottom, left:right], after[top:bottom, left:right], parallax * APART * speeds)
    best = int(total[1:-1].argmin()) + 1
    low, middle, high = total[best - 1 : best + 2].tolist()
    bend = low - 2 * middle + high
    return float(speeds[best] + (speeds[1] - speeds[0]) * (0.5 * (low - high) / bend if bend > 0 else 0.0))


def left_over(before: Tensor, after: Tensor, shifts: Tensor) -> Tensor:
    """The mean absolute difference of two strips, uint8 [rows, width, 3], once the second is moved right by each shift in pixels, as a
    share of the mean over all shifts."""
    a, b = (x.permute(2, 0, 1).float() for x in (before, after))
    longest = int(shifts.max()) + 1
    width = a.shape[2] - longest
    differences = torch.stack([(b[..., :width] - a[..., s : s + width]).abs().mean() for s in range(longest + 1)])
    at = 2 * shifts / longest - 1
    grid = torch.stack([at, torch.zeros_like(at)], -1)[None, None]
    found = F.grid_sample(differences[None, None, None], grid, mode="bicubic", align_corners=True)[0, 0, 0]
    return found / found.mean().clamp(min=FLAT)
