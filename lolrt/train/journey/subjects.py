"""The subjects that the camera follows: a car, a bus, a horse and a balloon, each with its own motion."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lolrt.train.distances import box, ellipse, polygon, stick
from lolrt.train.journey.canvas import Canvas, inside
from lolrt.train.journey.palette import LAMP, PAINT
from lolrt.train.journey.world import HEIGHT, WIDTH

MIDDLE_X, GROUND_Y = 68.0, 73.0
STRIDE = 28.0  # pixels of way in which a horse's legs come round


class Subject:
    """Paints one subject over a block of frames.

    index: which one. away: [T] pixels from where it is when it is followed. colours: [T, colours] weights. way: float64 [T], how far the
    camera has come. seconds: float64 [T]. light: [T, 3]. night: [T], how much it is night.
    """

    def __init__(
        self, canvas: Canvas, index: int, away: Tensor, colours: Tensor, way: Tensor, seconds: Tensor, light: Tensor, night: Tensor
    ):
        self.canvas, self.light, self.night = canvas, light, night
        self.way, self.seconds = way, seconds
        self.paint_colour = colours @ PAINT
        self.white = (colours[:, -1:] > 0.5).float()
        self.centre = (MIDDLE_X + away + 3 * self.wave(9.0))[:, None, None]
        self.columns = torch.arange(WIDTH) + 0.5 - self.centre
        (self.car, self.bus, self.horse, self.balloon)[index]()

    def wave(self, seconds: float, turns: float = 0.0) -> Tensor:
        """A sine over time, [T]."""
        return torch.sin(2 * math.pi * (self.seconds / seconds + turns)).float()

    def lit(self, colour: Tensor | tuple[float, float, float], ambient: float) -> Tensor:
        """A colour [3] or [T, 3] under the hour's light; `ambient` is the share that needs no light. [T, 3]"""
        return torch.as_tensor(colour) * (ambient + (1 - ambient) * self.light)

    def coat(self) -> Tensor:
        """The subject's colour; it stays recognisable at night."""
        return self.lit(self.paint_colour, 0.5)

    def trim(self, plain: tuple[float, float, float], on_white: tuple[float, float, float]) -> Tensor:
        """What must stand out from the coat."""
        return self.lit(torch.lerp(torch.tensor(plain), torch.tensor(on_white), self.white), 0.35)

    def grid(self, top: int, bottom: int, y0: float) -> tuple[Tensor, Tensor]:
        """x and y of the pixels of some rows, relative to the subject."""
        return self.columns, (torch.arange(top, bottom) + 0.5 - y0).view(1, -1, 1)

    def add(self, top: int, distance: Tensor, colour: Tensor, strength: float = 1.0) -> None:
        self.canvas.paint(strength * inside(distance), colour, top, is_subject=True)

    def glow(self, top: int, coverage: Tensor, strength: float) -> None:
        self.canvas.paint(strength * self.night[:, None, None] * coverage, LAMP, top)

    def shadow(self, half_width: float) -> None:
        x, y = self.grid(68, HEIGHT, GROUND_Y + 0.5)
        self.canvas.paint(0.4 * inside(ellipse(x, y, half_width, 2.2)), torch.tensor([0.08, 0.08, 0.12]), 68)

    def shaded(self, colour: Tensor, y: Tensor, height: float) -> Tensor:
        """A colour [T, 3] that is darker downwards, [T, 3, rows, 1]."""
        return colour[:, :, None, None] * (1.06 - 0.28 * ((y + height) / (2 * height)).clamp(0, 1))[:, None]

    def wheels(self, places: tuple[float, ...], radius: float) -> None:
        x, y = self.grid(58, HEIGHT, GROUND_Y - radius)
        for place in places:
            distance = torch.sqrt((x - place) ** 2 + y**2)
            self.add(58, distance - radius, torch.tensor([0.12, 0.12, 0.14]))
            self.add(58, distance - 0.42 * radius, self.lit((0.80, 0.80, 0.82), 0.3))

    def headlight(self, x: Tensor, y: Tensor, top: int) -> None:
        spread = torch.exp(-(((y - 0.10 * x) / (2 + 0.16 * x.clamp(min=0))) ** 2)) * torch.exp(-x.clamp(min=0) / 16)
        self.glow(top, spread * inside(-x), 0.55)
        self.canvas.paint(inside(torch.sqrt(x**2 + y**2) - 1.8), torch.tensor([1.0, 0.95, 0.72]), top)

    def window_colour(self) -> Tensor:
        day, night = self.lit((0.66, 0.84, 0.95), 0.4), torch.tensor([0.98, 0.84, 0.52])
        return torch.lerp(day, night.expand_as(day), self.night[:, None])

    def car(self) -> None:
        self.shadow(23.0)
        x, y = self.grid(44, HEIGHT, GROUND_Y - 9.0)
        y = y - 0.4 * self.wave(1.1)[:, None, None]
        cabin = torch.maximum(ellipse(x + 2, y + 2, 14.0, 13.0), y - 2)
        self.add(44, torch.minimum(box(x, y - 3, 22.0, 5.5, 5.0), cabin), self.shaded(self.coat(), y, 12.0))
        window = torch.maximum(torch.maximum(ellipse(x + 2, y + 2, 11.0, 9.8), y + 2.6), 1.1 - (x + 2).abs())
        self.canvas.paint(inside(window), self.window_colour(), 44)
        self.headlight(x - 21, y - 1.5, 44)
        self.wheels((-12.5, 12.5), 4.8)

    def bus(self) -> None:
        self.shadow(29.0)
        x, y = self.grid(38, HEIGHT, GROUND_Y - 16.0)
        y = y - 0.4 * self.wave(1.3)[:, None, None]
        self.add(38, box(x, y, 28.0, 13.0, 3.5), self.shaded(self.coat(), y, 13.0))
        self.canvas.paint(inside(box(x, y - 5.5, 28.0, 1.2, 0.5)), self.trim((0.97, 0.94, 0.86), (0.55, 0.62, 0.74)), 38)
        pane = torch.maximum(box(x, y + 4.5, 25.5, 4.2, 1.5), 1.0 - ((x + 5.0).remainder(10.0) - 5.0).abs())
        self.canvas.paint(inside(pane), self.window_colour(), 38)
        self.headlight(x - 27, y - 8.5, 38)
        self.wheels((-17.0, 17.0), 4.8)

    def horse(self) -> None:
        self.shadow(18.0)
        turns = (self.way / STRIDE).frac().float()
        top, bounce = 34, 1.3 * torch.sin(4 * math.pi * turns)[:, None, None]
        x, y = self.grid(top, HEIGHT, GROUND_Y - 19.0)
        y = y - bounce
        coat, dark = self.coat(), 0.72 * self.coat()
        mane = self.trim((0.30, 0.20, 0.14), (0.45, 0.38, 0.34))
        for hip, phase, far in ((-9.5, 0.15, True), (8.5, 0.65, True), (-11.5, 0.0, False), (10.0, 0.5, False)):
            angle = 2 * math.pi * (turns + phase)
            reach, lift = 7.0 * torch.sin(angle), 4.0 * torch.cos(angle).clamp(min=0)
            foot_x, foot_y = reach[:, None, None], (15.5 - lift)[:, None, None] - bounce
            self.add(top, stick(x - hip, y - 3, foot_x, foot_y, 1.8), dark if far else coat)
        tail = stick(x + 14, y + 3, -8.0 + self.wave(0.9)[:, None, None], 7.0 + 0 * bounce, 1.5)
        self.add(top, tail, mane)
        neck = stick(x - 12, y + 2, 8.0, -11.0, 3.6)
        body = torch.minimum(torch.minimum(ellipse(x, y, 16.0, 7.0), ellipse(x - 10, y, 7.0, 7.0)), ellipse(x + 9, y, 8.0, 7.5))
        head = torch.minimum(stick(x - 20, y + 14, 7.0, 5.0, 2.6), polygon(x - 19, y + 19, (0.0, -2.5), (2.5, 3.0), (-2.0, 3.0)))
        self.add(top, torch.minimum(torch.minimum(body, neck), head), self.shaded(coat, y, 14.0))
        self.add(top, stick(x - 10, y + 6, 7.0, -10.0, 1.5), mane)
        self.canvas.paint(inside(torch.sqrt((x - 21.5) ** 2 + (y + 13.5) ** 2) - 0.9), torch.tensor([0.06, 0.05, 0.05]), top)

    def balloon(self) -> None:
        x, y = self.grid(0, 66, 27.0)
        y = y - 3 * self.wave(6.0)[:, None, None]
        basket = self.lit((0.46, 0.30, 0.16), 0.3)
        ropes = (x.abs() - 2.9 - (20 - y) * 0.35).abs() - 0.45 + ((y - 18).abs() - 3.5).clamp(min=0) * 2
        self.add(0, ropes, basket, 0.8)
        self.add(0, box(x, y - 24.0, 3.8, 3.0, 1.0), basket)
        width = 15 * (1 - 0.30 * (y / 15).clamp(0, 1.4) ** 2)  # a round top that tapers to the mouth below
        body = torch.maximum(ellipse(x * 15 / width, y + 1, 15.0, 16.0), y - 16.5) * 0.9
        coat = self.coat()[:, :, None, None] * (1.06 - 0.30 * (x / 15 + 0.25).clamp(0, 1) ** 1.5)[:, None]
        self.add(0, body, coat)
        stripe = torch.cos((x / width).clamp(-1, 1).asin() * 5.0)
        self.canvas.paint(inside(body) * ((stripe - 0.35) * 3).clamp(0, 1) * 0.7, self.trim((1.0, 0.96, 0.86), (0.55, 0.62, 0.74)), 0)
        self.glow(0, inside(body) * torch.exp(-(x**2 + (y - 15) ** 2) / 90), 0.8)
