"""Draws frames of a world: sky, far and middle distance, near ground, the lane, the subject, and the weather over all of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lolrt.train.distances import box, ellipse, polygon, stick
from lolrt.train.journey import palette
from lolrt.train.journey.canvas import Canvas, inside
from lolrt.train.journey.subjects import Subject
from lolrt.train.journey.world import FPS, GROUPS, HEIGHT, VOCABULARY, WIDTH, World, smooth, uniform
from lolrt.train.text import values

HORIZON, MIDDLE_BASE, LANE_TOP = 46.0, 52.0, 63.0
FAR_PARALLAX, MIDDLE_PARALLAX, THINGS_PARALLAX = 0.14, 0.4, 0.72
TAPER = 22.0  # pixels over which far and middle distance slope down to the border of the next place
SOFTNESS = 14.0  # pixels over which colours of one place turn into those of the next
BLOCK = 12  # frames that are painted at a time, as many as stay in the cache
HILLS, TOWN, FOREST, SEA, DESERT, CITY = range(6)
PLACES = values(VOCABULARY, "place")
SIZE, SPOT, KIND, SHADE = range(4)  # what a cell's random numbers decide


@dataclass(frozen=True)
class Cells:
    """Cells along a layer, for each column [T, 1, WIDTH]: the number of the one it is in, and the distance from its middle in pixels."""

    world: World
    stream: int
    number: Tensor
    dx: Tensor

    def chance(self, what: int) -> Tensor:
        """A random number in [0, 1) of each cell."""
        return uniform(self.world.seed, 16 * self.stream + what, self.number)


class Painter:
    def __init__(self, world: World, frames: Tensor) -> None:
        self.world, self.frames = world, frames
        self.canvas = Canvas(len(frames))
        self.x, self.y = torch.arange(WIDTH) + 0.5, torch.arange(HEIGHT) + 0.5
        self.way = world.distance(frames)
        time = world.time(frames)
        _, self.rain, self.snow, self.fog = (w[:, None, None] for w in world.weights("weather", frames).unbind(1))
        self.grey = (0.75 * self.rain + 0.6 * self.snow + 0.75 * self.fog)[:, 0]  # [T, 1]
        self.night = time[:, 3]
        light = time @ palette.LIGHT
        self.light = light * (1 - 0.22 * self.grey)
        overcast = light * torch.tensor([0.70, 0.73, 0.78])
        self.sky_top, self.sky_middle, self.sky_horizon, self.cloud, self.haze = (
            torch.lerp(time @ table, overcast * shade, 0.9 * self.grey)
            for table, shade in (
                (palette.SKY_TOP, 0.82), (palette.SKY_MIDDLE, 0.92), (palette.SKY_HORIZON, 1.04), (palette.CLOUD, 0.9), (palette.HAZE, 1.0),
            )
        )  # fmt: skip
        self.sun, self.sun_at, self.moon_at = time @ palette.SUN, time @ palette.SUN_AT, time @ palette.MOON_AT
        weights, border = world.places(frames, self.x, SOFTNESS)
        self.places = weights[:, None]  # [T, 1, WIDTH, places]
        self.taper = smooth(border / TAPER)[:, None]
        self.shown = [place for place in range(len(PLACES)) if float(weights[..., place].max()) > 0]

    # --- what all layers use

    def paint(self, coverage: Tensor, colour: Tensor, top: int = 0) -> None:
        self.canvas.paint(coverage, colour, top)

    def rows(self, top: int, bottom: int) -> Tensor:
        return self.y[top:bottom].view(1, -1, 1)

    def along(self, parallax: float) -> Tensor:
        """Where each column is in a layer: float64 [T, 1, WIDTH]."""
        return self.x + parallax * self.way[:, None, None]

    def cells(self, parallax: float, spacing: float, stream: int, drift: float = 0.0) -> Cells:
        """Cells of a layer; drift: pixels a frame that it moves by itself."""
        u = (self.along(parallax) + drift * self.frames.double()[:, None, None]) / spacing
        number = u.floor()
        return Cells(self.world, stream, number.long(), ((u - number) * spacing - spacing / 2).float())

    def noise(self, parallax: float, wavelength: float, stream: int) -> Tensor:
        """A smooth random line along a layer in [0, 1], which never repeats: [T, 1, WIDTH]."""
        u = self.along(parallax) / wavelength
        number = u.floor()
        a, b = (uniform(self.world.seed, 16 * stream, number.long() + i) for i in (0, 1))
        return torch.lerp(a, b, smooth((u - number).float()))

    def by_place(self, table: Tensor) -> Tensor:
        """Colours of a table [places, 3] in each column, [T, 3, 1, WIDTH]."""
        return (self.places @ table).movedim(-1, 1)

    def mixed(self, heights: dict[int, Tensor]) -> Tensor:
        """The height of each column, of what the places in view are: [T, 1, WIDTH]."""
        return sum((self.places[..., place] * heights[place] for place in self.shown), torch.zeros(1))

    def distant(self, colour: Tensor, haze: float, snow: float) -> Tensor:
        """A colour [T or 1, 3, 1, WIDTH or 1] of the land under light, haze, fog and snow."""
        white, light = (self.snow * snow)[:, None], self.light[:, :, None, None]
        colour = torch.lerp(colour.expand(len(self.frames), -1, -1, -1), palette.SNOW.view(1, 3, 1, 1), white) * light
        return torch.lerp(colour, self.haze[:, :, None, None], haze + (1 - haze) * (self.fog * (0.35 + 1.2 * haze)).clamp(max=0.9)[:, None])

    def plain(self, colour: tuple[float, float, float] | Tensor, haze: float = 0.06, snow: float = 0.35) -> Tensor:
        return self.distant(torch.as_tensor(colour).view(1, 3, 1, 1), haze, snow)

    # --- from the back to the front

    def sky(self) -> None:
        down = (self.y / (HORIZON + 2)).clamp(0, 1).view(1, 1, -1, 1)
        top, middle, horizon = (c[:, :, None, None] for c in (self.sky_top, self.sky_middle, self.sky_horizon))
        self.canvas.image[:] = torch.lerp(torch.lerp(top, middle, (2 * down).clamp(0, 1)), horizon, (2 * down - 1).clamp(0, 1))
        clear, night, rows = (1 - self.grey)[:, :, None], self.night[:, None, None], self.rows(0, 56)
        if float((clear * night).max()) > 0:
            spots = torch.rand(9, 3, generator=torch.Generator().manual_seed(0))  # the same stars in all worlds
            stars = sum(
                (0.5 + 0.5 * s) * torch.exp(-((self.x - 144 * a) ** 2 + (rows - 3 - 32 * b) ** 2) / 2) for a, b, s in spots.tolist()
            )
            self.paint(night * clear * stars, palette.MOON)
            x, y = (self.moon_at[:, i, None, None] for i in (0, 1))
            moon = inside(torch.sqrt((self.x - x) ** 2 + (rows - y) ** 2) - 6.5)
            moon = moon * (1 - inside(torch.sqrt((self.x - x - 3.4) ** 2 + (rows - y + 1.8) ** 2) - 5.4))
            self.paint(moon * clear * night, palette.MOON)
        if float((clear * (1 - night)).max()) > 0:
            x, y = (self.sun_at[:, i, None, None] for i in (0, 1))
            distance = torch.sqrt((self.x - x) ** 2 + (rows - y) ** 2)
            self.paint(torch.exp(-distance / 11) * 0.5 * clear * (1 - night), self.sun)
            self.paint(inside(distance - 6.5) * clear * (1 - night), self.sun)

    def clouds(self) -> None:
        for stream, (altitude, parallax, scale) in enumerate(((8.0, 0.08, 1.15), (20.0, 0.05, 0.9))):
            cells = self.cells(parallax, 74.0, 1 + stream, drift=0.05)
            size = scale * (0.8 + 0.4 * cells.chance(SIZE))
            dx, dy = (cells.dx + 20 * (cells.chance(SPOT) - 0.5)) / size, (self.rows(0, 34) - altitude - 5 * cells.chance(KIND)) / size
            clear = torch.ones(1)
            for ox, oy, rx, ry in ((0.0, 1.0, 13.0, 3.4), (-5.0, -1.0, 6.0, 3.8), (4.0, -1.6, 7.0, 4.4)):
                clear = clear * (1 - torch.exp(-(((dx - ox) / rx) ** 2) - ((dy - oy) / ry) ** 2))
            there = (cells.chance(SHADE) < 0.6).float() * (1 - 0.8 * self.grey[:, :, None])
            self.paint(0.85 * there * ((0.75 - clear) * 1.8).clamp(0, 1), self.cloud)

    def far(self) -> None:
        p = FAR_PARALLAX
        heights = {}
        for place in self.shown:
            if place == CITY:
                heights[place] = 5 + 19 * self._steps(self.cells(p, 10.0, 5), p, 10.0)
            elif place == DESERT:
                heights[place] = 2 + 12 * smooth((self.noise(p, 40, 6) - 0.42) * 5)
            elif place == SEA:
                heights[place] = (20 * self.noise(p, 46, 7) - 11).clamp(min=0)
            else:
                base, rough = {HILLS: (6.0, 15.0), TOWN: (4.0, 8.0), FOREST: (8.0, 11.0)}[place]
                heights[place] = base + rough * self.noise(p, 44, 8) + 4 * self.noise(p, 17, 9)
        top = HORIZON + 2 - self.taper * self.mixed(heights)
        rows = self.rows(16, 56)
        colour = self.distant(self.by_place(palette.FAR), 0.42, 0.5)
        self.paint(inside(top - rows), colour * (1.05 - 0.2 * ((rows - top) / 30).clamp(0, 1))[:, None], 16)

    def _steps(self, cells: Cells, parallax: float, spacing: float) -> Tensor:
        """Random heights in [0, 1], one a cell, with steep flanks in between."""
        after = uniform(self.world.seed, 16 * cells.stream + SIZE, cells.number + 1)
        return torch.lerp(cells.chance(SIZE), after, smooth((cells.dx - spacing / 2) / 1.8 + 1))

    def middle(self) -> None:
        p, heights, colours = MIDDLE_PARALLAX, {}, self.by_place(palette.MIDDLE)
        for place in self.shown:
            if place == TOWN:
                heights[place], colours = self._houses(colours)
            elif place == CITY:
                cells = self.cells(p, 24.0, 11)
                heights[place] = 14 + 24 * self._steps(cells, p, 24.0)
                tint = 0.8 + 0.4 * cells.chance(SHADE)
                colours = torch.lerp(colours, colours * tint[:, None], self.places[..., CITY][:, None])
            elif place == FOREST:
                cells = self.cells(p, 11.0, 12)
                heights[place] = 10 + (5 + 8 * cells.chance(SIZE)) * (1 - (cells.dx.abs() / 5.5)).clamp(0, 1)
            elif place == SEA:
                heights[place] = torch.zeros(1)
            else:
                heights[place] = (2.5 if place == HILLS else 1.0) + 10 * self.noise(p, 56, 13) + 2.5 * self.noise(p, 23, 14)
        top, rows = MIDDLE_BASE - self.taper * self.mixed(heights), self.rows(8, 64)
        colour = self.distant(colours, 0.16, 0.55)
        self.paint(inside(top - rows), colour * (1.06 - 0.26 * ((rows - top) / 26).clamp(0, 1))[:, None], 8)
        if TOWN in self.shown:
            self._roofs(top)
        if CITY in self.shown:
            self._windows(top)

    def _houses(self, colours: Tensor) -> tuple[Tensor, Tensor]:
        """Heights of walls and gables in a town, and the colours of all places' columns with those of its walls."""
        cells = self.cells(MIDDLE_PARALLAX, 26.0, 10)
        half = 9.0 + 2 * cells.chance(SPOT)
        inner = smooth((half - cells.dx.abs()) / 1.8 + 0.5)
        gable = (half - cells.dx.abs()).clamp(min=0) * 0.75
        height = 2.0 + inner * (9 + 6 * cells.chance(SIZE) + gable)
        shade = torch.stack([1 - 0.25 * cells.chance(SHADE), 1 - 0.4 * cells.chance(KIND), 1 - 0.4 * cells.chance(SHADE)], 1)
        garden = torch.tensor([0.36, 0.56, 0.30]).view(1, 3, 1, 1)
        walls = torch.lerp(garden, palette.MIDDLE[TOWN].view(1, 3, 1, 1) * shade, inner[:, None])
        return height, torch.lerp(colours, walls, self.places[..., TOWN][:, None])

    def _roofs(self, top: Tensor) -> None:
        cells, rows = self.cells(MIDDLE_PARALLAX, 26.0, 10), self.rows(20, 60)
        half, there = 9.0 + 2 * cells.chance(SPOT), self.places[..., TOWN] * self.taper
        eaves = MIDDLE_BASE - self.taper * (11 + 6 * cells.chance(SIZE))
        roof = torch.maximum(torch.maximum(top - rows, rows - eaves), cells.dx.abs() - half)
        self.paint(there * inside(roof), self.plain((0.70, 0.32, 0.24), 0.14, 0.8), 20)
        pane = box((cells.dx.abs() - 4.2), rows - eaves - 4.5, 1.7, 2.0, 0.5)
        colour = torch.lerp(self.plain((0.40, 0.50, 0.58), 0.14, 0.0), palette.LAMP.view(1, 3, 1, 1), self.night[:, None, None, None])
        self.paint(there * inside(pane), colour, 20)

    def _windows(self, top: Tensor) -> None:
        """Windows of a city's buildings, of which half are lit at night."""
        building, rows = self.cells(MIDDLE_PARALLAX, 24.0, 11), self.rows(10, 52)
        column = torch.div(building.dx + 12, 8, rounding_mode="floor")
        wx, wy = building.dx + 12 - 8 * column - 4, rows - top - 4
        storey = torch.div(wy, 7, rounding_mode="floor")
        pane = box(wx, wy - 7 * storey - 3.5, 1.9, 2.2, 0.6)
        lit = uniform(self.world.seed, 177, building.number * 64 + column.long() * 16 + storey.long().clamp(0, 15)) < 0.55
        there = self.places[..., CITY] * self.taper * (storey >= 0) * inside(rows - 50)
        night = self.night[:, None, None, None] * lit[:, None]
        colour = torch.lerp(self.plain((0.62, 0.72, 0.82), 0.2, 0.0), palette.LAMP.view(1, 3, 1, 1), night)
        self.paint(0.85 * there * inside(pane), colour, 10)

    def water(self) -> None:
        if SEA not in self.shown:
            return
        rows = self.rows(44, 66)
        depth = ((rows - HORIZON) / 18).clamp(0, 1)
        slide = (self.along(0.5).remainder(2 * math.pi * 9 * 40) / 9).float()
        swell = torch.sin(rows * (1.6 - 0.9 * depth) + 0.8 * torch.sin(slide) - 0.098175 * self.frames.remainder(64)[:, None, None])
        colour = torch.lerp(
            self.haze[:, :, None, None], palette.WATER.view(1, 3, 1, 1) * self.light[:, :, None, None], 0.5 + 0.45 * depth.sqrt()[:, None]
        )
        there = self.places[..., SEA]
        self.paint(there * inside(HORIZON + 0.5 - rows), colour * (1 + 0.10 * swell * depth)[:, None], 44)
        shining = (1 - self.grey)[:, :, None] * there * inside(HORIZON + 0.5 - rows) * (0.4 + 0.3 * swell) * (1 - 0.5 * depth)
        for at, strength, colour in ((self.sun_at, 0.8 * (1 - self.night), self.sun), (self.moon_at, 0.5 * self.night, palette.MOON)):
            glitter = torch.exp(-(((self.x - at[:, 0, None, None]) / (4 + 9 * depth)) ** 2))
            self.paint(strength[:, None, None] * shining * glitter, colour, 44)
        boats, rows = self.cells(0.5, 110.0, 20), self.rows(38, 60)
        dx, dy = boats.dx + 50 * (boats.chance(SPOT) - 0.5), rows - 55.0
        ship = there * (boats.chance(KIND) < 0.6)
        self.paint(ship * inside(polygon(dx, dy, (0.6, -14.0), (8.0, -2.0), (0.6, -2.0))), self.plain((0.96, 0.95, 0.92)), 38)
        self.paint(ship * inside(polygon(dx, dy, (-0.8, -12.0), (-0.8, -2.0), (-6.0, -2.0))), self.plain((0.86, 0.84, 0.80)), 38)
        self.paint(ship * inside(polygon(dx, dy, (-8.0, -1.0), (9.0, -1.0), (6.0, 2.5), (-6.0, 2.5))), self.plain((0.45, 0.28, 0.20)), 38)

    def ground(self) -> None:
        heights = {place: torch.full((1,), {SEA: 4.0, CITY: 6.0, TOWN: 8.0}.get(place, 8.0)) for place in self.shown}
        for place in set(self.shown) & {HILLS, FOREST, DESERT}:
            heights[place] = 7 + 4 * self.noise(THINGS_PARALLAX, 60, 21)
        self.ground_top = LANE_TOP - self.mixed(heights)
        rows = self.rows(50, 66)
        colour = self.distant(self.by_place(palette.NEAR), 0.03, 0.8)
        self.paint(inside(self.ground_top - rows), colour * (1.08 - 0.25 * ((rows - self.ground_top) / 14).clamp(0, 1))[:, None], 50)

    def things(self) -> None:
        """What stands along the way: trees, firs, palms, cacti, lamps, each where its place is."""
        cells = self.cells(THINGS_PARALLAX, 58.0, 22)
        dx = cells.dx + 26 * (cells.chance(SPOT) - 0.5)
        size, there = cells.chance(SIZE), cells.chance(KIND) < 0.72
        column = (self.x - dx).round().long().clamp(0, WIDTH - 1)
        weights = self.places.expand(-1, -1, WIDTH, -1).gather(2, column[..., None].expand(-1, -1, -1, len(PLACES)))
        top, rows = 18, self.rows(18, 64)
        dy = rows - 62.0
        for place in self.shown:
            shape = weights[..., place] * there
            if place in (HILLS, TOWN):
                self.paint(shape * inside(box(dx, dy + 5, 1.4, 8.0, 0.5)), self.plain((0.34, 0.25, 0.18)), top)
                crown = ellipse(dx, dy + 17 + 3 * size, 7.5 + 2 * size, 8.5 + 2 * size)
                self.paint(shape * inside(crown), self.plain((0.18, 0.45, 0.20)) * (1.1 - 0.2 * (dx / 9).clamp(-1, 1))[:, None], top)
            elif place == FOREST:
                height = 30 + 8 * size
                fir = torch.maximum((dx.abs() * 3.2 + (-dy - height)) / 3.4, dy + 3)
                self.paint(shape * inside(torch.minimum(fir, box(dx, dy, 1.5, 4.0, 0.5))), self.plain((0.10, 0.29, 0.20)), top)
            elif place == SEA:
                trunk = stick(dx, dy, 4.0, -22.0 - 4 * size, 1.3)
                self.paint(shape * inside(trunk), self.plain((0.48, 0.36, 0.24)), top)
                x, y = dx - 4, dy + 22 + 4 * size
                leaves = torch.stack([stick(x, y, lx, ly, 1.9) for lx, ly in ((-9.0, 3.0), (-7.0, -4.0), (8.0, 3.5), (7.0, -4.0))]).amin(0)
                self.paint(shape * inside(leaves), self.plain((0.20, 0.48, 0.24)), top)
            elif place == DESERT:
                trunk, arm = box(dx, dy + 9, 2.4, 12.0, 2.2), box(dx - 4, dy + 9.5, 5.0, 1.7, 1.5)
                cactus = torch.minimum(torch.minimum(trunk, arm), box(dx - 7.2, dy + 13, 1.8, 5.0, 1.7))
                self.paint(shape * inside(cactus), self.plain((0.24, 0.46, 0.26)), top)
            else:
                post = torch.minimum(box(dx, dy + 15, 0.9, 17.0, 0.5), box(dx - 3, dy + 32, 4.0, 1.0, 0.6))
                self.paint(shape * inside(post), self.plain((0.25, 0.27, 0.30)), top)
                glow = torch.exp(-((dx - 6) ** 2 + (dy + 30) ** 2) / 22)
                self.paint(shape * glow * self.night[:, None, None] * 0.9, palette.LAMP, top)

    def lane(self) -> None:
        rows = self.rows(60, HEIGHT)
        colour = self.distant(self.by_place(palette.LANE), 0.0, 0.5)
        self.paint(inside(LANE_TOP - rows), colour * (1.04 - 0.16 * ((rows - LANE_TOP) / 16).clamp(0, 1))[:, None], 60)
        dash = self.cells(1.0, 36.0, 23).dx
        mark = inside(box(dash, rows - 76.5, 9.0, 0.9, 0.3))
        paved = 1 - self.places[..., FOREST] - self.places[..., DESERT]
        self.paint(0.9 * mark * paved, self.plain((0.92, 0.88, 0.76), 0.0), 60)
        kerb = inside((rows - LANE_TOP - 0.3).abs() - 0.7)
        self.paint(0.6 * kerb * paved, self.plain((0.85, 0.83, 0.78), 0.0), 60)

    def subjects(self) -> None:
        seconds = self.frames.double() / FPS + 600 * uniform(self.world.seed, 92, torch.zeros(1)).double()
        for index, away, colours in self.world.subjects(self.frames):
            Subject(self.canvas, index, away, colours, self.way, seconds, self.light, self.night)

    def precipitation(self) -> None:
        """Rain, whose streaks fall a whole period in one latent frame, and snow, which drifts."""
        if float(self.rain.max()) > 0:
            cells_x = (self.x / 8).floor()
            offset = uniform(0, 180, cells_x) * 40
            y = (self.y.view(1, -1, 1) - 10 * self.frames.remainder(4)[:, None, None] - offset + 1.5 * (self.x - 8 * cells_x)).remainder(
                40
            ) - 20
            x = self.x - 8 * cells_x - 4 + 0.25 * y
            self.paint(0.32 * self.rain * inside(box(x, y, 0.6, 6.0, 0.5)), palette.MOON)
        if float(self.snow.max()) > 0:
            for stream, (fall, share, radius) in enumerate(((0.75, 0.5, 1.5), (1.25, 0.9, 2.0))):
                cells = self.cells(share, 19.0, 30 + stream)
                dx = cells.dx + 9 * (cells.chance(SPOT) - 0.5)
                y = (self.y.view(1, -1, 1) - fall * self.frames.remainder(10_000_000)[:, None, None] - 30 * cells.chance(SIZE)).remainder(
                    30
                ) - 15
                self.paint(0.75 * self.snow * inside(torch.sqrt(dx**2 + y**2) - radius), palette.SNOW * (0.55 + 0.45 * self.light[..., :1]))
        if float(self.fog.max()) > 0:
            veil = 0.62 - 0.30 * ((self.y.view(1, -1, 1) - 52).abs() / 40).clamp(0, 1)
            self.paint(0.6 * self.fog * veil, self.haze)

    def all(self, with_subjects: bool) -> Canvas:
        behind = (self.sky, self.clouds, self.far, self.middle, self.water, self.ground, self.things, self.lane)
        for layer in (*behind, *([self.subjects] if with_subjects else []), self.precipitation):
            layer()
        return self.canvas


@torch.no_grad()
def render(world: World, frames: Tensor, *, with_subjects: bool = True) -> tuple[Tensor, Tensor]:
    """Draws frames of a world, or of its landscape alone.

    frames: [T] frame numbers, none negative, 16 a second. Returns video uint8 [T, 3, HEIGHT, WIDTH], and the share of each pixel that
    the subject covers, fp32 [T, HEIGHT, WIDTH].
    """
    video, masks = [], []
    for block in frames.split(BLOCK):
        canvas = Painter(world, block).all(with_subjects)
        video.append((canvas.image.clamp(0, 1) * 255).round().byte())
        masks.append(canvas.mask)
    return torch.cat(video), torch.cat(masks)


@torch.no_grad()
def labels(world: World, frames: Tensor) -> dict[str, Tensor]:
    """What is in frames: for each group, how much of each value there is, [T, values]; "speed" in pixels a frame of what is nearest, [T].

    A place's share is that of the screen; a subject's is one where it alone is within the screen.
    """
    there = {group: world.weights(group, frames) for group in ("weather", "colour")}
    there["time"] = world.time(frames)
    there["place"] = world.places(frames, torch.arange(WIDTH) + 0.5, SOFTNESS)[0].mean(1)
    there["subject"] = torch.zeros(len(frames), len(values(VOCABULARY, "subject")))
    for index, away, colours in world.subjects(frames):
        near = (1 - away.abs() / 90).clamp(0, 1)
        there["subject"][:, index] += near
        there["colour"] = torch.where((near > 0.5)[:, None], colours, there["colour"])
    return {**{group: there[group] for group in GROUPS if group in there}, "speed": world.speed(frames)}
