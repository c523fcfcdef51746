"""Signed distances of pixels from simple shapes, in pixels, negative inside. The worlds are drawn from them."""

import math

import torch
from torch import Tensor


def ellipse(x: Tensor, y: Tensor, rx: float | Tensor, ry: float | Tensor) -> Tensor:
    """Signed distance, to first order, from an ellipse around the origin."""
    r = torch.sqrt((x / rx) ** 2 + (y / ry) ** 2 + 1e-6)
    return (r - 1) * r / torch.sqrt((x / rx**2) ** 2 + (y / ry**2) ** 2 + 1e-6)


def box(x: Tensor, y: Tensor, half_width: float | Tensor, half_height: float | Tensor, radius: float) -> Tensor:
    """Signed distance from a rounded box around the origin."""
    dx, dy = x.abs() - half_width + radius, y.abs() - half_height + radius
    return torch.sqrt(dx.clamp(min=0) ** 2 + dy.clamp(min=0) ** 2) + torch.maximum(dx, dy).clamp(max=0) - radius


def stick(x: Tensor, y: Tensor, to_x: float | Tensor, to_y: float | Tensor, radius: float) -> Tensor:
    """Signed distance from a line with round ends, from the origin to a point."""
    to_x, to_y = torch.as_tensor(to_x), torch.as_tensor(to_y)
    along = ((x * to_x + y * to_y) / (to_x**2 + to_y**2)).clamp(0, 1)
    return torch.sqrt((x - along * to_x) ** 2 + (y - along * to_y) ** 2) - radius


def polygon(x: Tensor, y: Tensor, *corners: tuple[float, float]) -> Tensor:
    """Signed distance, to first order, from a convex polygon whose corners go clockwise on the screen (y down)."""
    edges = []
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
        nx, ny = by - ay, ax - bx
        edges.append(((x - ax) * nx + (y - ay) * ny) / math.hypot(nx, ny))
    return torch.stack(edges).amax(0)
