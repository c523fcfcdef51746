"""What the laboratory measures on decoded video. Each docstring is the definition that a report prints."""

from __future__ import annotations

import numpy as np

from lolrt.errors import Error
from lolrt.lab.plots import MISSING

FLOW_FPS = 8
CLIP_FRAMES = 16


def luminance(frames: np.ndarray) -> np.ndarray:
    """Luminance: mean over pixels of 0.2126 R + 0.7152 G + 0.0722 B (Rec. 709 weights on the coded values), 0 .. 255."""
    return luma(frames).mean((1, 2))


def saturation(frames: np.ndarray) -> np.ndarray:
    """Saturation: mean over pixels of (max - min) / max of R, G and B, 0 where the pixel is black."""
    high, low = frames.max(-1).astype(np.float32), frames.min(-1).astype(np.float32)
    return ((high - low) / np.maximum(high, 1)).mean((1, 2))


def sharpness(frames: np.ndarray) -> np.ndarray:
    """Sharpness: variance over pixels of the 4-neighbour Laplacian of the luminance."""
    y = luma(frames)
    return (4 * y[:, 1:-1, 1:-1] - y[:, :-2, 1:-1] - y[:, 2:, 1:-1] - y[:, 1:-1, :-2] - y[:, 1:-1, 2:]).var((1, 2))


def drift(series: np.ndarray) -> float:
    """Drift: of luminance, saturation or sharpness, 100 * (mean over the last tenth of the chunks / the first chunk - 1), in percent."""
    return 100 * float(series[-max(1, len(series) // 10) :].mean() / series[0] - 1)


def flow(before: np.ndarray, after: np.ndarray) -> float:
    """Flow: length in pixels of the optical flow between frames 1/8 s apart (OpenCV's DIS, medium preset, on luminance), mean over the
    5 % of the pixels that move most."""
    try:
        import cv2
    except ImportError as error:
        raise Error(MISSING.format("optical flow", "OpenCV")) from error
    finder = cv2.DISOpticalFlow.create(cv2.DISOpticalFlow_PRESET_MEDIUM)
    first, second = (luma(frame[None])[0].round().astype(np.uint8) for frame in (before, after))
    field = finder.calc(first, second, None)  # type: ignore[call-overload]  # stubs: a flow must be given
    lengths = np.sort(np.linalg.norm(field, axis=-1), axis=None)
    return float(lengths[-max(1, len(lengths) // 20) :].mean())


def dynamic_degree(flows: np.ndarray, height: int, width: int) -> float:
    """Dynamic Degree: the share of a video's clips of 16 flows (2 s; the rest is left out) that are dynamic, that is, have 4 flows or more
    above 6 / 256 of the frame's shorter side. VBench's rule (arXiv 2311.17982) with DIS in the place of RAFT."""
    clips = flows[: len(flows) // CLIP_FRAMES * CLIP_FRAMES].reshape(-1, CLIP_FRAMES)
    return float(((clips > 6 / 256 * min(height, width)).sum(1) >= 4).mean()) if len(clips) else 0.0


def luma(frames: np.ndarray) -> np.ndarray:
    """uint8 [n, height, width, 3] RGB -> float32 [n, height, width]."""
    return frames.astype(np.float32) @ np.array([0.2126, 0.7152, 0.0722], dtype=np.float32)


DEFINITIONS = (luminance, saturation, sharpness, drift, flow, dynamic_degree)
