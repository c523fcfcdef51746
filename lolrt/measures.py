"""What the laboratory measures on a rollout's latents and attention. Each docstring is the definition that a report prints.

Series are NumPy arrays over latent frames or over chunks, from the start of a rollout.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Frames around a collapse that count as it, and stretches on both sides that it is compared with.
NEAR = (-3, 6)
FLANKS = ((-33, -8), (10, 35))
# Half the width of the running median, and the frames at a rollout's start that have none before them.
REFERENCE_FRAMES = 33
# How far above its usual mass on the sinks a head is called raised.
RAISED = 1.5
# Lags below it are within one window and say nothing of a loop.
MIN_LAG = 12
LOOP_POINTS = 512
# How far from every predicted frame a frame is that stands for all others.
APART = 20


def sink_distance(latents: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Distance to the sinks: the L2 distance, in latent space, between a latent frame and each sink frame, over the square root of the
    number of elements (latents are normalised to about unit variance, so that two unrelated frames are about sqrt(2) apart). Where a
    policy has fewer sinks than a chunk has frames, the frames of the first chunk stand for them. Plots divide the distance to each
    sink by its median past the first 33 frames."""
    # latents [frames, ...], references [sinks, ...] -> [frames, sinks]
    difference = latents.reshape(len(latents), 1, -1) - references.reshape(1, len(references), -1)
    return np.sqrt(np.square(difference).mean(-1))


def nearest(distance: np.ndarray) -> np.ndarray:
    """Distance to the nearest sink: the least of the distances to the sinks, frame by frame."""
    return distance.min(-1)


def drop(series: np.ndarray) -> np.ndarray:
    """Drop: 1 minus the distance to the nearest sink over its running median (67 frames, the frame in the middle; fewer at both ends):
    0 where nothing happens, 1 where a sink is copied. The first 33 frames, which leave the sinks, count as 0."""
    reference = np.array([np.median(series[max(0, i - REFERENCE_FRAMES) : i + REFERENCE_FRAMES + 1]) for i in range(len(series))])
    dropped = 1 - series / reference
    dropped[:REFERENCE_FRAMES] = 0
    return dropped


def sink_collapse(series: np.ndarray) -> float:
    """Sink-Collapse: 100 times the largest drop of a video. Sink-Collapse Max is the largest of all videos of a policy, Sink-Collapse
    Avg their mean; lower is better. The name is LoL's, which states neither space nor normaliser: values do not compare with its. A scene
    that comes back to its opening by itself counts as well: compare with a policy that has no sinks, and see the snap-back test."""
    return 100 * float(max(drop(series).max(), 0.0))


def dip(series: np.ndarray, frame: int) -> float:
    """Dip at a frame: the least distance to the nearest sink in the 9 frames from 3 before it on, over the median of two stretches of
    25 frames, one ending 8 frames before it and one beginning 10 after: 1 where nothing happens, 0 where a sink is copied."""
    flanks = np.concatenate([series[frame + first : frame + last] for first, last in FLANKS])
    return float(series[frame + NEAR[0] : frame + NEAR[1]].min() / np.median(flanks))


def elsewhere(frames: int, predicted: Sequence[int]) -> list[int]:
    """Elsewhere: dip, rise and synchrony as they are where nothing is predicted: their mean over the frames 66 and more from a video's
    start, 35 and more from its end, and more than 20 from every predicted frame. All three look for an extreme, so that they are not
    1, 1 and 0 where nothing happens; this is what to compare with."""
    first, last = 2 * REFERENCE_FRAMES, frames - FLANKS[1][1]
    return [frame for frame in range(first, last) if all(abs(frame - other) > APART for other in predicted)]


def sink_mass(mass: np.ndarray) -> np.ndarray:
    """Attention mass on the sinks: the share of the softmax weight that a head spends on all sink pages in the last denoise pass, mean
    over the chunk's queries; over layers and heads where no head is named."""
    # [chunks, layers, heads] -> [chunks]
    return mass.mean((1, 2))


def rise(series: np.ndarray, chunk: int) -> float:
    """Rise of the mass at a frame: the largest mass on the sinks in the chunk that holds the frame and its two neighbours, over the
    median past the first 33 frames; 0 where there is no mass on sinks."""
    usual = np.median(series[REFERENCE_FRAMES // 3 :])
    return float(series[chunk - 1 : chunk + 2].max() / usual) if usual else 0.0


def synchrony(mass: np.ndarray) -> np.ndarray:
    """Synchrony: the share of all heads of all layers that are raised in a chunk at once; a head is raised where its mass on the sinks is
    more than 1.5 times its own median past the first 33 frames."""
    # [chunks, layers, heads] -> [chunks]
    usual = np.median(mass[REFERENCE_FRAMES // 3 :], axis=0)
    return (mass > RAISED * usual).mean((1, 2))


def snap_back(drops: np.ndarray, shuffles: int = 999, seed: int = 0) -> tuple[int, float, float]:
    """Snap-back test: do the videos of a policy, which share nothing but their frame numbers, fall back to their sinks at the same
    frame? The statistic is the largest mean drop over videos of any frame. Under the null hypothesis the drops have no common time:
    999 times each video's series is shifted circularly by a number of frames of its own, which keeps its shape and breaks the
    synchrony. p is the share of these statistics, and of the one observed, that reach the one observed. The frame is where it is."""
    # [videos, frames] -> frame, mean drop there, p
    drops = drops[:, REFERENCE_FRAMES:]
    random = np.random.default_rng(seed)
    observed = drops.mean(0)
    shifts = random.integers(0, drops.shape[1], (shuffles, len(drops)))
    null = [np.mean([np.roll(row, shift) for row, shift in zip(drops, shifted, strict=True)], axis=0).max() for shifted in shifts]
    p = (1 + sum(value >= observed.max() for value in null)) / (1 + shuffles)
    return int(observed.argmax()) + REFERENCE_FRAMES, float(observed.max()), float(p)


def motion(latents_step: np.ndarray) -> float:
    """Latent motion: the root mean square difference between neighbouring latent frames, mean over the frames past the first 33."""
    return float(latents_step[REFERENCE_FRAMES:].mean())


def loop(signature: np.ndarray) -> tuple[int, float]:
    """Loop: for each lag from 12 frames to half the video (1000 frames at most), the median over time of the distance between a frame and
    the one a lag later, in latents averaged to at most 4 x 6 places; the loop's lag is that of the least such median, and its strength
    is 1 minus the least over the median of all lags: 0 for none, 1 for a perfect repetition."""
    # [frames, features] -> lag, strength
    signature = signature.astype(np.float32)
    lags = np.arange(MIN_LAG, min(len(signature) // 2, 1000))
    if not len(lags):
        return 0, 0.0
    distances = []
    for lag in lags:
        starts = np.unique(np.linspace(0, len(signature) - lag - 1, LOOP_POINTS).astype(int))
        distances.append(np.median(np.sqrt(np.square(signature[starts + lag] - signature[starts]).mean(1))))
    usual = float(np.median(distances))
    best = int(np.argmin(distances))
    return int(lags[best]), 1 - float(distances[best]) / usual if usual else 0.0


DEFINITIONS = (sink_distance, nearest, drop, sink_collapse, dip, sink_mass, rise, synchrony, elsewhere, snap_back, motion, loop)
